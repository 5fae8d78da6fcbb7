"""Yun, Krishnan, Mobahi 2021: the implicit bias of fully connected, diagonal and convolutional linear networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..finding import Check, Claim, Finding
from ..flows.factorization import FactorizationFlow
from ..losses import LeastSquares
from ..matrices import normal
from ..orders import local_orders
from ..signatures import Positive, Seed, above, at_least, at_most, distinct, increasing
from .axes import arranged, axis, largest_of, least_of
from .base import STUDIES, TRAINED, Progress, Study
from .tensorlimits import ends, reached
from .tensors import KINDS, Network, in_phase, network
from .tensortraining import classified, far, to_diagonal, trained

DECOMPOSABLE = KINDS[1:]

_CLOSED, _FLOW, _ORDER, _SHORTFALL, _NEARER = 1e-8, 1e-7, 0.1, 0.2, 0.5
_CONDITIONS, _FAR, _APART, _EXCESS, _TELLS = 1e-8, 0.1, 1e-4, 1e-3, 1e-2

# Times of the flow that is compared with the closed one, times the gain; of training, times the slowest rate.
_SHORT, _LONG = (0.0, 0.1, 0.2, 0.4), 30.0
_LONGER = (1.0, 10.0, 100.0, 1000.0)  # times that time, until the loss has fallen

# Scales of large starts; errors that have digits for an order: the linear programme stands behind them.
_LARGE, _RESOLVED = (16.0, 8.0, 4.0, 2.0), 1e-8
_ROUND_OFF = 1e-12  # that of the formula alone

# Decades by which the distance from least ℓ₁ norm is to fall, and of small starts at most.
_SHARE, _DECADES = 8.0, 60.0

LONG_NAMES = {
    "closed": "distance of the closed flow from that of the layers, relative",
    "missed": "distance of the trained b from the formula of the interpolant, relative",
    "loss": "loss at the end of training",
    "left": "loss at the end of training over that at the start",
    "small": "scales α of small starts",
    "to_l1": "distance of b from the interpolant of least weighted ℓ₁ norm",
    "to_l2": "distance of b from the interpolant of least weighted ℓ₂ norm",
    "to_l1_expected": "order in α that is expected",
    "margin": "margin log 1/Σ exp(−m) of the classifier",
    "deviation": "distance of the direction of b from the stationary one",
    "singular": "distance of the directions of layers from singular vectors, the largest",
    "spread": "largest minus smallest of the margins that are active, over their mean",
    "growth_missed": "distance of the growth of what vanishes in the direction from its power of the margin",
    "expected": "order in 1/margin that is expected of the direction",
    "residual": "what is left of the conditions of Karush, Kuhn and Tucker at the stationary direction, relative",
    "least_margin": "least margin of the stationary direction, 1",
    "pulls_off": "distance of ‖Σ λ_i u_gi‖ from ‖c_g‖^{2/L−1} there, on groups that do not vanish, relative",
    "to_widest_l2": "distance of the trained direction from that of the widest ℓ₂ margin",
}


def _depths(key: str, values: Sequence[int]) -> None:
    if list(values[:1]) != [2] or len(values) < 2 or values[-1] > 5:
        raise ValueError(f"{key} must be 2 and one or more of 3, 4, 5, got {list(values)}")


def run(
    *,
    dimension: Annotated[int, at_least(5), at_most(64)] = 8,
    samples: Annotated[int, at_least(2)] = 3,
    points: Annotated[int, at_least(2)] = 4,
    depths: Annotated[Sequence[int], distinct, increasing, _depths] = (2, 3),
    scale: Positive = 0.3,
    size: Annotated[float, above(100.0), at_most(1e9)] = 1e6,
    seed: Seed = 18,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Linear networks ⟨x, b⟩ of three kinds, each in its basis: which interpolant and which classifier they reach.

    Parameters
    ----------
    dimension : int
        d, length of x and b.
    samples : int
        Of the regression: fewer than there are frequencies, d // 2 + 1.
    points : int
        Of the classification, of random classes; fewer than d.
    depths : sequence of int
        L: 2, and others up to 5.
    scale : float
        α, the size of the start of the regression that is trained.
    size : float
        Margin at which the classification ends, about.
    seed : int
        Of samples and starts.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        `missed`, `to_l1`, `to_l2` of the regression, `deviation`, `singular`, `spread` of the classification.

    Raises
    ------
    ValueError
        If there are too many samples.
    RuntimeError
        If a training does not reach its end.
    """
    for name, number, most in (("samples", samples, dimension // 2), ("points", points, dimension - 1)):
        if number > most:
            raise ValueError(f"study.{name} must be at most {most} with study.dimension={dimension}, got {number}")
    say: Callable[[float, str], None] = progress or (lambda fraction, what: None)
    random = torch.Generator().manual_seed(seed)
    x, apart = (
        in_phase(random, normal(random, samples, dimension // 2 + 1), dimension),
        normal(random, samples, dimension),
    )
    y, z = normal(random, samples), normal(random, points, dimension)
    found: dict[str, Any] = {}
    cases = [(kind, depth) for kind in KINDS for depth in depths]
    for i, (kind, depth) in enumerate(cases):
        say(i / len(cases), f"{kind.replace('_', ' ')} network of {depth} layers")
        one = network(kind, depth, dimension)
        loss, theta = LeastSquares(apart, y), one.other(random)
        _add(found, "network", {"closed": _closed(one, one, theta, loss)})
        if kind == "convolution":
            _add(found, "", {"closed_control": _closed(one, network("diagonal", depth, dimension), theta, loss)})
        if kind in DECOMPOSABLE:
            _add(found, "kind", _regression(one, (x, apart), y, scale, random))
        _add(found, "network", classified(one, z, one.start(random, 1.0), size))
        if kind == "convolution":
            _add(found, "", {"to_diagonal": to_diagonal(depth, z, found["direction"][1][-1])})
    axes = [
        axis("network", list(KINDS), "network"),
        axis("kind", list(DECOMPOSABLE), "network whose tensor is orthogonally decomposable"),
        axis("depth", list(depths), "number of layers L"),
        axis("phases", ["common", "drawn"], "phases of the samples at each frequency"),
        axis("large", list(_LARGE), "scale α of large starts"),
    ]
    dataset = arranged(_gathered(found, len(depths)), axes, LONG_NAMES)
    title = f"{samples} and {points} samples in dimension {dimension}"
    return _finding(dataset, title).attached(dataset)


def _add(found: dict[str, Any], over: str, values: dict[str, Any]) -> None:
    """Puts what was found of one more network beside the others; a value with axes of its own is (axes, numbers)."""
    for name, value in values.items():
        more, numbers = value if isinstance(value, tuple) else ((), value)
        dims = (*filter(None, (over,)), "depth", *more)
        found.setdefault(name, (dims, []))[1].append(numbers)


def _gathered(found: dict[str, Any], depths: int) -> dict[str, Any]:
    """Variables of what was added network by network, and for each depth by depth."""
    gathered = {}
    for name, (dims, values) in found.items():
        outer = (depths,) if dims[0] == "depth" else (len(values) // depths, depths)
        gathered[name] = (dims, np.array(values).reshape(*outer, *np.shape(values[0])))
    return gathered


def _closed(one: Network, by: Network, theta: Tensor, loss: LeastSquares) -> float:
    """The flow of b that is closed in the basis of `by` against that of the layers of `one`, relative."""
    times = np.array(_SHORT) / one.basis.gain
    b = trained(FactorizationFlow(one.product, loss), theta, times.tolist(), "DOP853", "flow of the layers").z
    path = trained(by.closed(loss, theta), b[0], times.tolist(), "DOP853", "closed flow").z
    return float((path - b).norm(dim=-1).max() / b.norm(dim=-1).max())


def _regression(
    one: Network, inputs: tuple[Tensor, Tensor], y: Tensor, scale: float, random: torch.Generator
) -> dict[str, Any]:
    """The trained b against the formula on samples of common and of drawn phases, and the formula against its ends."""
    theta, basis, depth = one.start(random, scale), one.basis, one.depth
    shape = one.sizes(theta)[:, 0].cpu().numpy() / scale
    found: dict[str, list[float]] = {"missed": [], "loss": [], "left": []}
    for x in inputs:
        samples = x.cpu().numpy()
        rate = reached(basis, depth, samples, y.cpu().numpy(), shape, [scale])[1] / len(y)
        flow = FactorizationFlow(one.product, LeastSquares(x, y))
        # Small starts of many layers stay for long where they are.
        for longer in _LONGER:
            path = trained(flow, theta, (0.0, longer * _LONG / rate), "auto", f"regression of {depth} layers")
            if path.loss[-1] <= TRAINED * path.loss[0]:
                break
        b = path.z[-1].cpu().numpy()
        formula = reached(basis, depth, samples, samples @ b, shape, [scale])[0][-1]  # of what is fitted by then
        found["missed"].append(float(np.linalg.norm(b - formula) / np.linalg.norm(b)))
        found["loss"].append(float(path.loss[-1]))
        found["left"].append(float(path.loss[-1] / path.loss[0]))
    known = (inputs[0].cpu().numpy(), y.cpu().numpy(), shape)
    end = ends(basis, depth, *known)
    order = 2 * (1 - end.certificate) if depth == 2 else float(depth)
    lead = 1.0 if depth == 2 else min(1.0, 1 - end.certificate) ** (1 / (depth - 2))
    small = lead * 10.0 ** -np.linspace(0, min(_DECADES, _SHARE / max(order, 1e-9)), 9)
    return {name: (("phases",), values) for name, values in found.items()} | {
        "small": (("fall",), small),
        "to_l1": (("fall",), far(reached(basis, depth, *known, small.tolist())[0], end.sparse)),
        "to_l2": (("large",), far(reached(basis, depth, *known, _LARGE)[0], end.short)),
        "to_l1_expected": order,
    }


def _last(values: xr.DataArray, sizes: xr.DataArray) -> np.ndarray:
    """The last local order in 1/size, of each network and depth."""
    orders = [
        [local_orders(m, e)[-1] for m, e in zip(*row, strict=True)]
        for row in zip(sizes.values, values.values, strict=True)
    ]
    return np.array(orders)


def _approach(sizes: np.ndarray, errors: np.ndarray, least: float) -> float:
    """The last local order of errors above the least one that has digits; NaN where there are too few."""
    orders = local_orders(sizes[errors > least], errors[errors > least])
    return float(orders[-1]) if len(orders) else np.nan


def _ends(dataset: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The orders to both ends of the interpolants over the expected ones, (kind, depth)."""
    at = [(kind, depth) for kind in range(dataset.sizes["kind"]) for depth in range(dataset.sizes["depth"])]
    shape = (dataset.sizes["kind"], -1)
    small = [_approach(1 / dataset.small.values[i], dataset.to_l1.values[i], _RESOLVED) for i in at]
    large = [_approach(np.array(_LARGE[::-1]), dataset.to_l2.values[i][::-1], _ROUND_OFF) for i in at]
    expected = dataset.to_l1_expected.values
    return np.reshape(small, shape) / expected, np.reshape(large, shape) / (2 * dataset["depth"].values)


def _finding(dataset: xr.Dataset, title: str) -> Finding:
    small, large = _ends(dataset)
    left = float(dataset.left.values.max())
    missed = dataset.missed.where(dataset.left <= TRAINED)  # of what is not trained nothing is known
    trained_to = f"end at the interpolant of the formula to {float(missed[:, :, 0].values.max()):.1e}"
    if not left <= TRAINED:
        trained_to = f"keep {left:.0%} of the loss, which is too much to say where they end; the formula"
    direction = _last(dataset.deviation, dataset.margin)
    last = dataset.isel(end=-1)
    return Finding(
        study="unifying",
        problem=f"Yun, Krishnan, Mobahi 2021: linear networks of three kinds, {title}",
        status="ok",
        verdict=f"The flow of b that is closed in the basis of each network is that of its layers to "
        f"{largest_of(dataset.closed):.1e}. Trained on samples in phase, diagonal and convolutional networks "
        f"{trained_to}, which tends to least weighted ℓ₁ norm and to least weighted ℓ₂ norm in their bases at "
        f"{_between(small)} and {_between(large)} of the orders that are expected. As classifiers they come within "
        f"{largest_of(last.deviation):.1e} of a stationary direction of the ℓ_{{2/L}} margin at margins near "
        f"{least_of(last.margin):.0e}, at orders {direction.min():.2f} to {direction.max():.2f} in 1/margin.",
        claim=Claim(
            "a network whose tensor is orthogonally decomposable tends to a stationary direction of the ℓ_{2/L} margin "
            "in its basis, and in regression to an interpolant between least weighted ℓ₁ and ℓ₂ norms there",
            measured=dict(zip(KINDS, direction.tolist(), strict=True)),
            figure="Yun 2021",
        ),
        checks=_checks(dataset, missed.values, small, large, direction),
        numbers={
            "depths": dataset["depth"].values.tolist(),
            "orders_of_direction": direction.tolist(),
            "orders_of_direction_expected": dataset.expected.values.tolist(),
            "orders_of_layers": _last(dataset.singular, dataset.margin).tolist(),
            "orders_to_l1_expected": dataset.to_l1_expected.values.tolist(),
            "to_widest_l2": dataset.to_widest_l2.values.tolist(),
            "missed_of_drawn_phases": dataset.missed[1, :, 1].values.tolist(),
        },
    )


def _between(shares: np.ndarray) -> str:
    """The least and the largest part of an order; of those that are not known it says so."""
    return "an unknown part" if np.isnan(shares).any() else f"{shares.min():.3f} to {shares.max():.3f}"


def _checks(
    dataset: xr.Dataset, missed: np.ndarray, small: np.ndarray, large: np.ndarray, direction: np.ndarray
) -> tuple[Check, ...]:
    first, tensors = dataset.isel(depth=0), dataset.sel(network=list(DECOMPOSABLE))
    layers = _last(dataset.singular, dataset.margin)
    spread = np.abs(_last(dataset.spread, dataset.margin) - 1)
    over = "largest of the networks"
    return (
        Check("the closed flow against that of the layers", largest_of(dataset.closed), _CLOSED, f"relative, {over}"),
        Check("closed flow of a diagonal network against convolutional layers, a control",
              least_of(dataset.closed_control), _TELLS, "relative", least=True),
        Check("the trained b against the formula of the interpolant",
              float(np.max([missed[..., 0].max(), missed[0].max()])), _FLOW, f"relative, {over}"),
        Check("the same of a convolutional network on samples of drawn phases, a control", float(missed[1, :, 1].min()),
              _APART, "relative", least=True),
        Check("order to least weighted ℓ₁ norm, off the expected one", float(np.abs(small - 1).max()), _ORDER,
              f"relative, smallest scales, {over}"),
        Check("order to least weighted ℓ₂ norm, off the expected one", float(np.abs(large - 1).max()), _ORDER,
              f"relative, largest scales, {over}"),
        Check("loss at the end of training over that at the start", float(dataset.left.values.max()), TRAINED, over),
        Check("order in 1/margin at which the active margins become equal, off 1", float(np.nanmax(spread)),
              _ORDER, f"largest margins, {over}"),
        Check("growth of what vanishes in the direction, off its power", float(dataset.growth_missed.max()), _ORDER,
              f"of the margin, {over}"),
        Check("order of the direction, short of the expected one", float((dataset.expected.values - direction).max()),
              _SHORTFALL, f"in 1/margin, largest margins, {over}"),
        Check("the same order over the expected one", least_of(direction / dataset.expected.values), _NEARER,
              "the least of the networks; below ½ it is nearer to none", least=True),
        Check("order of the layers to singular vectors, short of the expected one",
              float((dataset.singular_expected.values - layers).max()), _SHORTFALL,
              f"in 1/margin, largest margins, {over}"),
        Check("that order of the layers over the expected one", least_of(layers / dataset.singular_expected.values),
              _NEARER, "the least of the networks; below ½ it is nearer to none", least=True),
        Check("conditions of Karush, Kuhn and Tucker at the stationary direction", largest_of(dataset.residual),
              _CONDITIONS, f"relative, {over}"),
        Check("margin of the stationary direction, and its pulls by the size of each group, from what they must be",
              float(np.max([np.abs(dataset.least_margin.values - 1).max(), largest_of(dataset.pulls_off)])),
              _CONDITIONS, f"relative, {over}"),
        Check("duality gap of the ℓ₁ margin, two layers", largest_of(first.gap), _CONDITIONS, f"relative, {over}"),
        Check("distance from the widest ℓ₂ margin, diagonal and convolutional, a control",
              least_of(tensors.to_widest_l2), _FAR, "of directions, the least", least=True),
        Check("distance from the direction of the diagonal formula, convolutional, a control",
              least_of(dataset.to_diagonal), _FAR, "the least", least=True),
        Check("ℓ₁ norm of the direction of more layers over the least one, less 1, a control",
              largest_of(tensors.excess[:, 1:]), _EXCESS, "at equal margins, the largest", least=True),
    )  # fmt: skip


STUDIES.register("unifying")(
    Study(
        run,
        question="Which interpolant and which direction do fully connected, diagonal and convolutional linear networks "
        "reach, how fast, and in which basis?",
    )
)
