"""How linear tensor networks tend to their directions when they classify."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..flows.base import Flow
from ..flows.factorization import FactorizationFlow
from ..time.integrate import integrate
from ..time.trajectory import Trajectory
from .base import whole
from .margin import largest_margin
from .tensorlimits import Stationary, stationary
from .tensors import Basis, FullyConnected, Network, network

# Margins at which a classifier is looked at, over the last.
_PARTS = tuple(4.0**-j for j in range(5, -1, -1))


def trained(flow: Flow, state: Tensor, times: Sequence[float], method: str, what: str, **more: Any) -> Trajectory:
    """A whole path of a flow; `what` it is, if it is not."""
    return whole(integrate(flow, state, list(times), method, rtol=1e-9, atol=1e-12, **more), what)


def far(b: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distances of vectors from one."""
    return np.linalg.norm(b - end, axis=-1)


def _unit(b: np.ndarray) -> np.ndarray:
    return b / np.linalg.norm(b, axis=-1, keepdims=True)


def classified(one: Network, z: Tensor, theta: Tensor, size: float) -> dict[str, Any]:
    """How layers and product tend to their directions, by margin: the exponential loss, in a time that it takes on.

    The flow is that of asinh log Σ exp(−m), in which the margin grows like t^{L/2}.
    """
    points, depth, basis = z.cpu().numpy(), one.depth, one.basis
    flow = FactorizationFlow(one.product, Margins(z))
    times = size ** (2 / depth) * np.array((0.0, *(part ** (2 / depth) for part in _PARTS)))
    path = trained(
        flow, theta, times.tolist(), "auto", f"classifier of {depth} layers", observe=lambda _, state: state.clone()
    )
    assert path.observed is not None
    b = path.z[1:].cpu().numpy()
    limit = stationary(basis, depth, points, None if depth == 2 else b[-1])
    margins = -torch.logsumexp(-path.z[1:] @ z.mT, -1).cpu().numpy()
    held = b @ points[limit.active].T
    expected, singular = _expected(one, limit)
    least = limit if depth == 2 else stationary(basis, 2, points)
    norms = [basis.counts @ np.linalg.norm(basis.of(found.b), axis=-1) for found in (limit, least)]
    return {
        "margin": (("end",), margins),
        "deviation": (("end",), far(_unit(b), _unit(limit.b))),
        "singular": (("end",), [_turned(one, flow, state) for state in path.observed[1:]]),
        "spread": (("end",), np.ptp(held, axis=-1) / held.mean(-1)),
        "growth_missed": _growth_missed(one, limit, points, path, margins),
        "expected": expected,
        "singular_expected": singular,
        "residual": limit.residual,
        "gap": limit.gap,
        "pulls_off": _pulls_off(basis, depth, limit),
        "least_margin": float((points @ limit.b).min()),
        "to_widest_l2": float(far(_unit(b[-1]), largest_margin(points).direction)),
        "direction": (("entry",), _unit(b[-1])),
        "excess": float(norms[0] / norms[1] - 1),
    }


def _pulls_off(basis: Basis, depth: int, limit: Stationary) -> float:
    """How far ‖Σ λ_i u_gi‖ is from ‖c_g‖^{2/L−1} on the groups that do not vanish, over the largest of them."""
    wanted = np.linalg.norm(basis.of(limit.b), axis=-1)[limit.on] ** (2 / depth - 1)
    return float(np.abs(limit.pulls_size[limit.on] - wanted).max() / wanted.max())


def to_diagonal(depth: int, z: Tensor, trained: np.ndarray) -> float:
    """How far a direction is from the one that a diagonal network would have, from there on."""
    basis = network("diagonal", depth, len(trained)).basis
    return float(far(trained, _unit(stationary(basis, depth, z.cpu().numpy(), None if depth == 2 else trained).b)))


class Margins:
    """asinh log Σ_i exp(−⟨x_i, z⟩) of signed samples x: the gradient flow of the exponential loss in another time."""

    dimension: int | None = None

    def __init__(self, signed: Tensor) -> None:
        self.signed = signed

    def __call__(self, z: Tensor) -> Tensor:
        return torch.asinh(torch.logsumexp(-z @ self.signed.mT, -1))

    def gradient(self, z: Tensor) -> Tensor:
        products = -z @ self.signed.mT
        value = torch.logsumexp(products, -1, keepdim=True)
        return -(torch.softmax(products, -1) @ self.signed) / torch.sqrt(1 + value**2)


def _turned(one: Network, flow: FactorizationFlow, theta: Tensor) -> float:
    """How far the layers are from the directions in which they move: at singular vectors of the tensor both agree."""
    pairs = zip(one.layers(theta), one.layers(flow.velocity(theta)), strict=True)
    return max(float((at / at.norm() - moved / moved.norm()).norm()) for at, moved in pairs)


def _expected(one: Network, limit: Stationary) -> tuple[float, float]:
    """The orders in 1/margin of the direction of b, and of those of the layers."""
    depth, inside = one.depth, min(1.0, limit.slowest)
    if isinstance(one, FullyConnected):
        return 1 / depth, 1 / depth
    vanishing = 1.0 if depth > 2 else 1 - float(limit.pulls_size[~limit.on].max(initial=0.0))
    return min(inside, vanishing), min(inside, vanishing / depth)


def _growth_missed(one: Network, limit: Stationary, z: np.ndarray, path: Trajectory, margins: np.ndarray) -> float:
    """How far what vanishes last in the direction is from growing by its power of the margin, at the last two.

    Of two layers it is the group of the largest ‖Σ λ_i u_gi‖, which is its power; its size along this pull is
    a² sinh(v)/2, a its size at the start, and v the logarithm that is taken, whatever the sign. In a fully connected
    network it is the part of b off the span of the active samples, of the power 1 − 1/L: that of the first layer
    stays. NaN else.
    """
    b = path.z[1:].cpu().numpy()
    if isinstance(one, FullyConnected):
        span = z[limit.active]
        logs, power = np.log(far(b, b @ np.linalg.pinv(span) @ span)), 1 - 1 / one.depth
    elif one.depth == 2 and not limit.on.all():
        assert path.observed is not None
        last = int(np.argmax(np.where(limit.on, -1.0, limit.pulls_size)))
        power = float(limit.pulls_size[last])
        along = one.basis.of(b)[:, last] @ limit.pulls[last] / power
        logs = np.arcsinh(2 * along / float(one.sizes(path.observed[0])[last, 0]) ** 2)
    else:
        return np.nan
    return float(abs((logs[-1] - logs[-2]) / np.log(margins[-1] / margins[-2]) - power))
