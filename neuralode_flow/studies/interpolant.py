"""Azulay et al. 2021: which interpolant a diagonal linear network reaches, by the scale and the shape of its start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count
from ..finding import Check, Claim, Finding
from ..flows.factorization import FactorizationFlow
from ..losses import Custom, LeastSquares
from ..orders import local_orders
from ..problems import Problem
from ..signatures import Positive, Seed, at_least, below, distinct, each
from ..time.integrate import integrate
from .axes import arranged, axis, largest_of
from .base import STUDIES, TRAINED, Clock, Progress, Study, whole
from .bias import Sparse, certificate_missed, least_l1, reached, widest_l1
from .margin import largest_margin

Shapes = Annotated[Sequence[float], distinct, each(at_least(0.0), below(1.0))]

_FLOW, _ORDER = 1e-8, 0.05
_APART, _MARGIN, _TELLS = 10.0, 0.1, 2.0

# Of a linear programme, whose constraints are kept to 1e-7.
_GAP = 1e-6
_MET = 1e-6  # of a margin, beside the least one, which it is then itself

# Errors below it have no digits left for an order: the linear programme and Newton's method stand behind them.
_RESOLVED = 1e-8

# α, at which the square and the shape are followed; decades of the small ones, and how many of them at most.
_LARGE, _SHARE, _DECADES = (2.0, 4.0, 8.0, 16.0), 8.0, 60.0

# Of 1 − s, the shapes at which the start is of the scale 1.
_UNEVEN = tuple(2.0**-j for j in range(3, 9))

# ‖b‖₁ at which the direction of a classifier is looked at.
_NORMS = (1e1, 1e2, 1e3, 1e4)
_LOOKS = 200  # times of it, between which b is linear


def run(
    problem: Problem,
    clock: Clock,
    *,
    rows: int = 4,
    column: int = 0,
    scale: Positive = 0.5,
    shapes: Shapes = (0.0, 0.5, 0.9),
    seed: Seed = 4,
    progress: Progress | None = None,
) -> xr.Dataset:
    """b = u₊v₊ − u₋v₋ trained from b = 0 on a few samples of a table: with k = 2α²(1 + s²)/(1 − s²), b = k sinh(2xᵀν).

    α² = uv is the scale of the start and s = (u − v)/(u + v) its shape. Small α leads to the interpolant of least
    ℓ₁ norm at order 2(1 − q), q its dual certificate; large α, or a shape near 1, to that of least ℓ₂ norm.

    Parameters
    ----------
    problem : Problem
        One with samples: x and one column of y are taken, and for the classifier the sign of y.
    clock : Clock
        In units of 1/the slowest rate at the end of the flow.
    rows : int
        Number of samples, fewer than x has columns; drawn.
    column : int
        Of y.
    scale : float
        α at which the flow itself is integrated.
    shapes : sequence of float
        s at which it is, in [0, 1).
    seed : int
        Of the rows.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    ValueError
        If the problem has no samples, or the rows do not suit it.
    """
    x, y = _samples(problem, rows, column, seed)
    sparse, short = least_l1(x, y), np.linalg.pinv(x) @ y
    found: dict[str, Any] = {"flow": []}
    for i, s in enumerate(shapes):
        if progress is not None:
            progress(i / (1 + len(shapes)), f"shape {s:g}")
        found["flow"].append(_trained(clock, x, y, scale, s))
    if progress is not None:
        progress(len(shapes) / (1 + len(shapes)), "classifier")
    signed = np.sign(y)[:, None] * x
    widest = widest_l1(signed)
    margins = signed @ widest.b
    met = signed[margins < (1 + _MET) * margins.min()]
    found["certificates"] = [certificate_missed(x, sparse), certificate_missed(met, widest)]
    found["margin"] = _classifier(clock, signed, widest)
    dataset = _dataset(x, y, sparse, short, shapes, found)
    return _finding(dataset, problem, rows, sparse, widest).attached(dataset)


def _samples(problem: Problem, rows: int, column: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    table = getattr(problem.loss, "samples", None)
    if table is None:
        raise ValueError(f"problem={problem.name} has no samples; choose one of a table, such as breast_cancer_white")
    n, d = table.inputs.shape
    count("study.rows", rows, most=min(n, d - 1))
    count("study.column", column, least=0, most=table.y.shape[1] - 1)
    drawn = np.random.default_rng(seed).choice(n, rows, replace=False)
    x, y = table.inputs[drawn].cpu().double().numpy(), table.y[drawn, column].cpu().double().numpy()
    if np.linalg.matrix_rank(x) < rows:
        raise ValueError(
            f"study.seed={seed} draws {rows} rows of x that are linearly dependent, so that not all targets can be "
            f"fitted; choose another seed, or fewer study.rows"
        )
    if not np.abs(y).min() > 0:
        raise ValueError(
            f"study.seed={seed} draws a row whose target in study.column={column} is 0, which is of no class; choose "
            f"another seed, or another column"
        )
    return x, y


def phi(theta: Tensor) -> Tensor:
    """(u₊, v₊, u₋, v₋) → u₊v₊ − u₋v₋."""
    u, v, other_u, other_v = theta.chunk(4, dim=-1)
    return u * v - other_u * other_v


def start(d: int, scale: float, shape: float) -> Tensor:
    """θ of b = 0 with uv = α² and (u − v)/(u + v) = s in all entries."""
    size = scale / (1 - shape**2) ** 0.5
    u, v = (1 + shape) * size, (1 - shape) * size
    return torch.tensor([u, v, u, v], dtype=torch.float64).repeat_interleave(d)


def width(scale: float, shape: float) -> float:
    """k = u² + v² of that start."""
    return 2 * scale**2 * (1 + shape**2) / (1 - shape**2)


def _trained(clock: Clock, x: np.ndarray, y: np.ndarray, scale: float, shape: float) -> dict[str, float]:
    """How far the end of the flow is from the formula, and from fitting the samples, also over where it began."""
    k, flow = width(scale, shape), FactorizationFlow(phi, LeastSquares(torch.as_tensor(x), torch.as_tensor(y)))
    slowest = np.linalg.eigvalsh((x * 2 * np.hypot(reached(x, y, [k])[0], k)) @ x.T)[0] / len(y)
    times = clock.times / slowest
    path = integrate(flow, start(x.shape[1], scale, shape), times, **clock.options(f"shape-{shape:g}"))
    b = whole(path, f"flow of shape {shape:g}").z[-1].numpy()
    expected = reached(x, x @ b, [k])[0]  # of what is fitted by then
    loss = float(path.loss[-1])
    return {"missed": float(np.linalg.norm(b - expected)), "loss": loss, "left": loss / float(path.loss[0])}


def _classifier(clock: Clock, z: np.ndarray, widest: Sparse) -> np.ndarray:
    """What the ℓ₁ margin min zb / ‖b‖₁ misses of the widest one, relative to it, by ‖b‖₁; last, in ℓ₂.

    The exponential loss in normalised time, f = log Σ exp(−zb): ‖b‖₁ grows like e^{2γt}, γ the widest margin.
    """
    margins, d, size = torch.as_tensor(z), z.shape[1], float(np.abs(widest.b).sum())
    flow = FactorizationFlow(phi, Custom(lambda b: torch.logsumexp(-(margins @ b), 0), axes=1))
    times = torch.linspace(0, size / 2 * float(np.log(1e2 * _NORMS[-1])), _LOOKS, dtype=torch.float64)
    timed = replace(clock, times=times, method="auto", step=None)
    path = whole(integrate(flow, start(d, 1.0, 0.0), times, **timed.options("classifier")), "classifier")
    norms = path.z.abs().sum(-1).numpy()
    if not norms[-1] >= _NORMS[-1]:
        raise RuntimeError(f"the classifier has come to ‖b‖₁ = {norms[-1]:.3g} only; its margin is too small")
    after, b = np.array([int(np.argmax(norms >= norm)) for norm in _NORMS]), path.z.numpy()
    part = (np.array(_NORMS) - norms[after - 1]) / (norms[after] - norms[after - 1])
    seen = [*(b[after - 1] + part[:, None] * (b[after] - b[after - 1])), largest_margin(z).direction]
    return np.array([1 - size * float((z @ b).min() / np.abs(b).sum()) for b in seen])


def _far(b: np.ndarray, end: np.ndarray) -> np.ndarray:
    return np.linalg.norm(b - end, axis=-1)


def _dataset(
    x: np.ndarray, y: np.ndarray, sparse: Sparse, short: np.ndarray, shapes: Sequence[float], found: dict[str, Any]
) -> xr.Dataset:
    decades = min(_DECADES, _SHARE / max(2 * (1 - sparse.certificate), 1e-9))
    scales = np.append(np.array(_LARGE[::-1]), 10.0 ** -np.linspace(0, decades, 9))
    b = reached(x, y, [width(scale, 0.0) for scale in scales])
    uneven = reached(x, y, [width(1.0, 1 - gap) for gap in _UNEVEN[::-1]])[::-1]
    return arranged(
        {
            "to_l1": ("scale", _far(b, sparse.b), "distance of b from the interpolant of least ℓ₁ norm"),
            "to_l2": ("scale", _far(b, short), "distance of b from the interpolant of least ℓ₂ norm"),
            "uneven_to_l2": ("gap", _far(uneven, short), "the same at the scale 1, by the shape of the start"),
            "missed": ("shape", [f["missed"] for f in found["flow"]], "distance of the trained b from the formula"),
            "loss": ("shape", [f["loss"] for f in found["flow"]], "loss at the end of training"),
            "left": ("shape", [f["left"] for f in found["flow"]], "the same over that at the start"),
            "certificate_missed": (
                "programme", found["certificates"], "distance of the dual certificate from that by the signs of b",
            ),
            "margin_missed": ("norm", found["margin"][:-1], "what the ℓ₁ margin misses of the widest one, relative"),
            "control_missed": ((), found["margin"][-1], "the same of the widest ℓ₂ margin"),
        },
        [
            axis("scale", scales.tolist(), "scale α of the start"),
            axis("gap", list(_UNEVEN), "1 − s, s the shape of the start"),
            axis("shape", list(shapes), "shape s of the start"),
            axis("norm", list(_NORMS), "‖b‖₁ of the classifier"),
            axis("programme", ["interpolant", "classifier"], "linear programme"),
        ],
    )  # fmt: skip


class _Approach(NamedTuple):
    """The last two local orders at which b tends to an end, and the order that is expected."""

    orders: tuple[float, float]
    expected: float
    over: str

    @property
    def off(self) -> float:
        """The larger distance from the expected one, relative to it."""
        return float(np.abs(np.array(self.orders) / self.expected - 1).max())

    def __str__(self) -> str:
        return "an undecided order" if np.isnan(self.orders[-1]) else f"order {self.orders[-1]:.3f}"


def _approach(sizes: np.ndarray, errors: np.ndarray, expected: float, over: str) -> _Approach:
    """In 1/size, of errors that have digits; NaN where there are too few."""
    orders = local_orders(sizes[errors > _RESOLVED], errors[errors > _RESOLVED])
    return _Approach((orders[-2], orders[-1]) if len(orders) > 1 else (np.nan, np.nan), expected, over)


def _finding(dataset: xr.Dataset, problem: Problem, rows: int, sparse: Sparse, widest: Sparse) -> Finding:
    small, large = dataset.isel(scale=slice(len(_LARGE), None)), dataset.isel(scale=slice(len(_LARGE) - 1, None, -1))
    to_l1 = _approach(1 / small.scale.values, small.to_l1.values, 2 * (1 - sparse.certificate), "in α, smallest scales")
    to_l2 = _approach(large.scale.values, large.to_l2.values, 4.0, "in 1/α, largest scales")
    by_shape = _approach(1 / dataset.gap.values, dataset.uneven_to_l2.values, 2.0, "in 1 − s, at α = 1")
    ends = {"least ℓ₁ norm": to_l1, "least ℓ₂ norm": to_l2, "least ℓ₂ norm by shape": by_shape}
    missed, loss, left = (float(dataset[name].values.max()) for name in ("missed", "loss", "left"))
    end = f"The trained network ends at b = k sinh(2xᵀν) to {missed:.1e}"
    if not left <= TRAINED:
        missed, end = np.nan, f"Training leaves {left:.0%} of the loss, which is too much to say where it ends"
    apart = float(np.min([small.to_l2[-1] / small.to_l1[-1], large.to_l1[-1] / large.to_l2[-1]]))
    margin, control = float(dataset.margin_missed[-1]), float(dataset.control_missed)
    return Finding(
        study="interpolant",
        problem=f"{rows} samples of {problem.title}",
        status="ok",
        verdict=f"{end}. Small starts lead to the b of "
        f"least ℓ₁ norm at {to_l1} in α (expected 2(1 − q) = {to_l1.expected:.3f}), large ones to that of least ℓ₂ "
        f"norm at {to_l2} in 1/α (4), and so do uneven ones of the scale 1, at {by_shape} in 1 − s (2). As a "
        f"classifier it misses the widest ℓ₁ margin by {margin:.1%} at ‖b‖₁ = {_NORMS[-1]:g}; the widest ℓ₂ margin "
        f"misses it by {control:.1%}.",
        claim=Claim(
            "scale and shape of the start choose among the interpolants, from least ℓ₁ to least ℓ₂ norm",
            measured={name: end.orders for name, end in ends.items()},
        ),
        checks=(
            Check("the trained b against k sinh(2xᵀν)", missed, _FLOW, "Euclidean, largest over the shapes"),
            *(Check(f"order to {name}, off the expected one", end.off, _ORDER, f"relative, {end.over}")
              for name, end in ends.items()),
            Check("distance from the other end over that from its own, a control", apart, _APART,
                  "at the smallest and at the largest scale", least=True),
            Check("least ℓ₁ norms off the bound by their dual solution", float(np.max([sparse.gap, widest.gap])), _GAP,
                  "relative, of the interpolant and of the widest margin"),
            Check("dual certificates off those by the signs of b", largest_of(dataset.certificate_missed), _GAP,
                  "the larger of the interpolant and of the widest margin"),
            Check("what the classifier misses of the widest ℓ₁ margin", margin, _MARGIN, "relative"),
            Check("what the widest ℓ₂ margin misses of it, a control", control / margin, _TELLS,
                  "over what the classifier misses", least=True),
            Check("loss at the end of training", loss, norm="largest over the shapes"),
            Check("the same over that at the start", left, TRAINED, "largest over the shapes"),
        ),
        numbers={
            "certificate": sparse.certificate,
            "certificate of the classifier": widest.certificate,
            "orders": {name: list(end.orders) for name, end in ends.items()},
        },
    )  # fmt: skip


STUDIES.register("interpolant")(
    Study(
        run,
        question="Which b of all that fit the samples does a diagonal network reach, by scale and shape of its start?",
        own_axes={"scale": ("problem", "study")},  # small ones fall as far as the dual certificate of the rows asks
    )
)
