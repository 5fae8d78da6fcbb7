"""Tu, Aranguri, Jacot 2024: wide two-layer networks with random weights follow a closed flow, from lazy to rich."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count, positive, seeded
from ..finding import Check, Claim, Finding
from ..flows.factorization import FactorizationFlow
from ..flows.intrinsic import IntrinsicFlow
from ..kernels import TwoLayer
from ..losses import Loss, Quadratic
from ..matrices import wishart_factor
from ..orders import LEAST_POINTS, Order, observed_order, relative_noise, said
from ..signatures import Dimension, Seed
from ..time.integrate import integrate
from .axes import arranged, axis, largest_of, time
from .base import STUDIES, Clock, Progress, Study, whole

_ORDER = 0.1
_EXACT = 1e-12  # of what is known
_LAZY = 0.05  # how near the laziest flow must come to the lazy limit


@dataclass(frozen=True, eq=False)
class _Regime:
    """Networks by width at one σ²w, and the closed flow from z = 0."""

    error_z: list[float]
    order: Order
    error_time: float
    loss: np.ndarray
    test_error: np.ndarray
    effective_rank: float


def run(
    clock: Clock,
    *,
    dimension: Dimension = 32,
    rank: int = 2,
    products: Sequence[float] = (0.01, 0.1, 1.0, 10.0),
    widths: Sequence[int] = (10_000, 100_000, 1_000_000, 10_000_000),
    repeats: int = 4,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """z = UVᵀ with independent normal entries of variance σ², w columns: UUᵀ and VVᵀ concentrate at σ²w I.

    So z follows the two-layer flow ż = −(√(zzᵀ + (σ²w)²) G + G √(zᵀz + (σ²w)²)) from z = 0 up to O(w^{−1/2}); large σ²w
    is lazy, small σ²w rich. The data Y = A* + E are a matrix of low rank and noise, both with entries of variance 1,
    divided by the largest singular value of Y, which only changes the unit of σ²w and of time. The test error is that
    of z against A*.

    z depends on the weights through M = (U; V)(U; V)ᵀ alone, which for w ≥ 2d has the law of BBᵀ with the triangular
    Bartlett factor B of a Wishart matrix. So a network of any width is run as one of width 2d.

    Parameters
    ----------
    clock : Clock
        Times are in units in which σ²w t is held fixed for σ²w > 1.
    dimension : int
        d; the paper takes 500.
    rank : int
        Of A*; the paper takes 5.
    products : sequence of float
        σ²w in units of the largest singular value of Y, increasing.
    widths : sequence of int
        w, increasing, at least 2d and at least three of them.
    repeats : int
        Draws of the weights.
    seed : int
        Of data and weights.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
    """
    d, number = count("study.dimension", dimension), count("study.repeats", repeats)
    if len(widths) < LEAST_POINTS:
        raise ValueError(f"study.widths must be at least three widths, for an order, got {list(widths)}")
    for k, w in enumerate(widths):
        count(f"study.widths[{k}]", w, least=2 * d)
    generator = seeded("study.seed", seed)
    data, truth = _data(d, count("study.rank", rank, most=d), generator)
    loss = Quadratic(data)
    regimes: list[_Regime] = []
    for k, product in enumerate(products):
        c, gaps = positive(f"study.products[{k}]", product), []
        for i, w in enumerate(widths):
            if progress is not None:
                progress((k + i / len(widths)) / len(products), f"σ²w = {c:g}, w = {w}")
            weights = (c / w) ** 0.5 * torch.stack([_bartlett(w, d, generator) for _ in range(number)])
            gaps.append(_distances(clock, loss, c, weights, f"{k}-{w}"))
        regimes.append(_regime(clock, loss, truth, c, widths, gaps, str(k)))
    lazy = _lazy(data, truth)
    dataset = _dataset(clock, products, widths, regimes, lazy, abs(lazy - _best_multiple(data, truth)))
    title = f"Tu, Aranguri, Jacot 2024, figure 1: d = {d}, rank {rank} and noise (seed {seed})"
    scaled_down = "" if d >= 500 else f"d = {d}, rank {rank} in place of 500 and 5"
    return _finding(dataset, [regime.order for regime in regimes], title, scaled_down).attached(dataset)


def _distances(clock: Clock, loss: Loss, c: float, weights: Tensor, name: str) -> Tensor:
    """Of networks with `weights` at σ²w = c from the closed flow, sup over t: `(n, 2, d, w)` → `(n,)`."""
    times, flow = clock.times.double() / max(1.0, c), IntrinsicFlow(loss, TwoLayer(2 * c))
    network = integrate(FactorizationFlow(_product, loss), weights, times, **clock.options(f"network-{name}"))
    closed = integrate(flow, network.z[0], times, **clock.options(f"closed-{name}"))
    gap = whole(network, f"networks at σ²w = {c:g}").z - whole(closed, f"flow at σ²w = {c:g}").z
    return torch.linalg.matrix_norm(gap).amax(0)


def _regime(
    clock: Clock, loss: Loss, truth: Tensor, c: float, widths: Sequence[int], gaps: list[Tensor], name: str
) -> _Regime:
    """What the distances `gaps` of networks by width say, and the closed flow from z = 0 itself."""
    flow, zero, tight, unit = IntrinsicFlow(loss, TwoLayer(2 * c)), torch.zeros_like(truth), clock.tight(), max(1.0, c)
    limit = integrate(flow, zero, clock.times.double() / unit, **clock.options(f"zero-{name}"))
    again = integrate(flow, zero, tight.times.double() / unit, **tight.options(f"tight-{name}"))
    what = f"flow at σ²w = {c:g}"
    gap = clock.time_error(whole(limit, what).z, whole(again, what).z)
    error_time = float(torch.linalg.matrix_norm(gap).max())
    errors = [float(gap.square().mean().sqrt()) for gap in gaps]
    noise = np.array([relative_noise(gap) for gap in gaps])
    order = observed_order(np.array(widths), np.array(errors), clock.floor(error_time), noise)
    test_error = (torch.linalg.matrix_norm(limit.z - truth) / torch.linalg.matrix_norm(truth)).square()
    shares = torch.linalg.svdvals(limit.z[int(test_error.argmin())])
    return _Regime(
        error_z=errors,
        order=order._replace(rule=f"z in 1/w, σ²w = {c:g}", expected=0.5),
        error_time=error_time,
        loss=limit.loss.numpy(),
        test_error=test_error.numpy(),
        effective_rank=float(torch.exp(torch.special.entr(shares / shares.sum()).sum())),
    )


def _dataset(
    clock: Clock, products: Sequence[float], widths: Sequence[int], regimes: list[_Regime], lazy: float, lazy_off: float
) -> xr.Dataset:
    errors, losses, tests = ([getattr(r, name) for r in regimes] for name in ("error_z", "loss", "test_error"))
    return arranged(
        {
            "error_z": (("product", "width"), errors, "sup over t of the distance from the closed flow"),
            "loss": (("product", "time"), losses, "loss of the closed flow from z = 0"),
            "test_error": (("product", "time"), tests, "‖z − A*‖²/‖A*‖² of the closed flow from z = 0"),
            "test_error_lazy": ((), lazy, "least test error along the lazy limit, a line to Y"),
            "lazy_off": ((), lazy_off, "distance of that from the test error of the multiple of Y by least squares"),
            "effective_rank": (
                "product",
                [r.effective_rank for r in regimes],
                "effective rank of z where the test error is least",
            ),
            "order": ("product", [r.order.value for r in regimes], "order in 1/w"),
            "error_time": ("product", [r.error_time for r in regimes], "error in time of the closed flow"),
        },
        [
            axis("product", list(products), "σ²w"),
            axis("width", list(widths), "width w"),
            time(clock.times, "training time t max(1, σ²w)"),
        ],
    )


def _finding(dataset: xr.Dataset, orders: list[Order], title: str, scaled_down: str) -> Finding:
    error, products, ranks = (dataset[name].values for name in ("error_z", "product", "effective_rank"))
    least, lazy = dataset.test_error.values.min(axis=1), float(dataset.test_error_lazy)
    error_time = float(dataset.error_time.values.max())
    rising, goes = [], f"is {least[0]:.2g} at σ²w = {products[0]:g} (effective rank {ranks[0]:.1f})"
    if len(products) > 1:
        still = float((~(np.diff(least) > 0)).sum())
        name = "values of σ²w from which on the least test error does not rise"
        rising.append(Check(name, still, 0.0, "their number"))
        goes = (
            f"goes from {least[0]:.2g} at σ²w = {products[0]:g} (rich: effective rank {ranks[0]:.1f}) to "
            f"{least[-1]:.2g} at σ²w = {products[-1]:g} (effective rank {ranks[-1]:.1f})"
        )
    return Finding(
        study="mixed_regime",
        problem=title,
        status="ok",
        verdict=f"The distance of random networks from the closed flow falls at order {said(orders)} in 1/w, "
        f"from {error[:, 0].max():.2g} to {error[:, -1].max():.2g}. The least test "
        f"error along training {goes}; that of the lazy limit is {lazy:.2g}.",
        claim=Claim(
            "wide random two-layer networks follow the closed flow with |λ|/2 = σ²w at order ½ in 1/w, and learn A* "
            "better the smaller σ²w is",
            measured={"orders": dataset.order.values, "test errors": least, "test error, lazy limit": lazy},
            published=0.5,
            figure="F4",
        ),
        checks=(
            Check(
                "how far the order in 1/w is from ½",
                float(abs(dataset.order.values - 0.5).max()),
                _ORDER,
                "sup over σ²w",
            ),
            *rising,
            Check(
                "least test error at the largest σ²w, against that of the lazy limit",
                float(abs(least[-1] / lazy - 1)),
                _LAZY,
                "relative",
            ),
            Check(
                "test error of z = 0 from 1, and of the lazy limit from the best multiple of Y",
                largest_of([largest_of(abs(dataset.test_error[:, 0] - 1)), float(dataset.lazy_off)]),
                _EXACT,
                "the largest",
            ),
            Check("error in time of the closed flow", error_time, norm="sup over σ²w and t, Frobenius norm"),
        ),
        orders=tuple(orders),
        numbers={"reference_error": error_time, "scaled_down": scaled_down},
    )


def _lazy(data: Tensor, truth: Tensor) -> float:
    """The least test error along the line to Y."""
    return 1 - float((data * truth).sum() ** 2 / (data.square().sum() * truth.square().sum()))


def _best_multiple(data: Tensor, truth: Tensor) -> float:
    """‖sY − A*‖²/‖A*‖² of the s of least squares."""
    s = torch.linalg.lstsq(data.reshape(-1, 1), truth.reshape(-1, 1)).solution.squeeze()
    return float((s * data - truth).square().sum() / truth.square().sum())


def _data(d: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Y = A* + E and A*, divided by the largest singular value of Y; the entries of A* = CDᵀ and E have variance 1."""
    C, D = (
        rank**-0.25 * torch.randn(d, rank, generator=generator, dtype=torch.float64, device="cpu") for _ in range(2)
    )
    truth = C @ D.mT
    data = truth + torch.randn(d, d, generator=generator, dtype=torch.float64, device="cpu")
    size = torch.linalg.matrix_norm(data, 2)
    return data / size, truth / size


def _bartlett(w: int, d: int, generator: torch.Generator) -> Tensor:
    """U and V with 2d columns, `(2, d, 2d)`: (U; V)(U; V)ᵀ has the law of that of 2d × w independent normal numbers."""
    return wishart_factor(2 * d, w, generator).reshape(2, d, 2 * d)


def _product(weights: Tensor) -> Tensor:
    """(U, V), `(..., 2, d, w)` → UVᵀ."""
    U, V = weights.unbind(-3)
    return U @ V.mT


STUDIES.register("mixed_regime")(
    Study(
        run,
        question="Do wide two-layer networks with random weights follow the flow of relaxed balanced ones, from the "
        "lazy to the rich regime?",
    )
)
