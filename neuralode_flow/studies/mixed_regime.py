"""Tu, Aranguri, Jacot 2024: wide two-layer networks with random weights follow a closed flow, from lazy to rich."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count, positive
from ..flows.factorization import FactorizationFlow
from ..flows.intrinsic import IntrinsicFlow
from ..kernels import TwoLayer
from ..losses import Quadratic
from ..orders import LEAST_POINTS, observed_order, relative_noise, said
from ..time.integrate import integrate
from .base import STUDIES, Clock, Progress, Study, whole
from .published import claimed, summarise

_ORDER = 0.1
_LAZY = 0.05  # how near the laziest flow must come to the lazy limit


def run(
    setup: Clock,
    *,
    dimension: int = 32,
    rank: int = 2,
    products: Sequence[float] = (0.01, 0.1, 1.0, 10.0),
    widths: Sequence[int] = (10_000, 100_000, 1_000_000, 10_000_000),
    repeats: int = 4,
    seed: int = 0,
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
    setup : Clock
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
    generator = torch.Generator().manual_seed(count("study.seed", seed, least=0))
    data, truth = _data(d, count("study.rank", rank, most=d), generator)
    loss = Quadratic(data)
    found, errors, tests, losses, ranks, floors = [], [], [], [], [], []
    for k, product in enumerate(products):
        c = positive(f"study.products[{k}]", product)
        times = setup.times / max(1.0, c)
        flow, column, noise, what = IntrinsicFlow(loss, TwoLayer(2 * c)), [], [], f"at σ²w = {c:g}"
        for i, w in enumerate(widths):
            if progress is not None:
                progress((k + i / len(widths)) / len(products), f"σ²w = {c:g}, w = {w}")
            weights = (c / w) ** 0.5 * torch.stack([_bartlett(w, d, generator) for _ in range(number)])
            network = integrate(FactorizationFlow(_product, loss), weights, times, **setup.options(f"network-{k}-{w}"))
            closed = integrate(flow, network.z[0], times, **setup.options(f"closed-{k}-{w}"))
            gap = torch.linalg.matrix_norm(whole(network, f"networks {what}").z - whole(closed, f"flow {what}").z)
            column.append(float(gap.amax(0).square().mean().sqrt()))
            noise.append(relative_noise(gap.amax(0)))
        zero = torch.zeros(d, d, dtype=torch.float64)
        limit = integrate(flow, zero, times, **setup.options(f"zero-{k}"))
        tight = setup.tight()
        again = integrate(flow, zero, tight.times / max(1.0, c), **tight.options(f"tight-{k}"))
        errors.append(column)
        gap = setup.time_error(whole(limit, f"flow {what}").z, whole(again, f"flow {what}").z)
        floors.append(float(torch.linalg.matrix_norm(gap).max()))
        found.append(observed_order(np.array(widths), np.array(column), setup.floor(floors[-1]), np.array(noise)))
        losses.append(limit.loss.numpy())
        tests.append((torch.linalg.matrix_norm(limit.z - truth) / torch.linalg.matrix_norm(truth)).square().numpy())
        shares = torch.linalg.svdvals(limit.z[int(tests[-1].argmin())])
        ranks.append(float(torch.exp(torch.special.entr(shares / shares.sum()).sum())))
    error, test = np.array(errors), np.array(tests)
    orders = np.array([order.value for order in found])
    lazy = 1 - float((data * truth).sum() ** 2 / (data.square().sum() * truth.square().sum()))
    dataset = xr.Dataset(
        {
            "error_z": (("product", "width"), error, {"long_name": "sup over t of the distance from the closed flow"}),
            "loss": (("product", "time"), np.stack(losses), {"long_name": "loss of the closed flow from z = 0"}),
            "test_error": (("product", "time"), test, {"long_name": "‖z − A*‖²/‖A*‖² of the closed flow from z = 0"}),
            "test_error_lazy": ((), lazy, {"long_name": "least test error along the lazy limit, a line to Y"}),
            "effective_rank": ("product", ranks, {"long_name": "effective rank of z where the test error is least"}),
            "order": ("product", orders, {"long_name": "order in 1/w"}),
            "error_time": (
                "product",
                floors,
                {"long_name": "error in time of the closed flow"},
            ),
        },
        coords={
            "product": ("product", list(products), {"long_name": "σ²w"}),
            "width": ("width", list(widths), {"long_name": "width w"}),
            "time": ("time", setup.times.numpy(), {"long_name": "training time t max(1, σ²w)", "units": "flow time"}),
        },
    )
    least = test.min(axis=1)
    off = float(np.abs(orders - 0.5).max())
    return claimed(
        dataset,
        study="mixed_regime",
        figure="F4",
        title=f"Tu, Aranguri, Jacot 2024, figure 1: d = {d}, rank {rank} and noise (seed {seed})",
        claim="wide random two-layer networks follow the closed flow with |λ|/2 = σ²w at order ½ in 1/w, and learn A* "
        "better the smaller σ²w is",
        published=0.5,
        measured={"orders": orders.tolist(), "test errors": least.tolist(), "test error, lazy limit": lazy},
        check="how far the order in 1/w is from ½",
        error=off,
        bound=_ORDER,
        passed=off <= _ORDER and bool((np.diff(least) > 0).all()) and abs(least[-1] / lazy - 1) <= _LAZY,
        verdict=(
            f"The distance of random networks from the closed flow falls at order {said(found)} in 1/w, "
            f"from {error[:, 0].max():.2g} to {error[:, -1].max():.2g}. The least test "
            f"error along training goes from {least[0]:.2g} at σ²w = {products[0]:g} (rich: effective rank "
            f"{ranks[0]:.1f}) to {least[-1]:.2g} at σ²w = {products[-1]:g} (effective rank {ranks[-1]:.1f}); that of "
            f"the lazy limit is {lazy:.2g}."
        ),
        reference_error=max(floors),
        scaled_down="" if d >= 500 else f"d = {d}, rank {rank} in place of 500 and 5",
    )


def _data(d: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Y = A* + E and A*, divided by the largest singular value of Y; the entries of A* = CDᵀ and E have variance 1."""
    C, D = (rank**-0.25 * torch.randn(d, rank, generator=generator, dtype=torch.float64) for _ in range(2))
    truth = C @ D.mT
    data = truth + torch.randn(d, d, generator=generator, dtype=torch.float64)
    size = torch.linalg.matrix_norm(data, 2)
    return data / size, truth / size


def _bartlett(w: int, d: int, generator: torch.Generator) -> Tensor:
    """U and V with 2d columns, `(2, d, 2d)`: (U; V)(U; V)ᵀ has the law of that of 2d × w independent normal numbers."""
    B = torch.randn(2 * d, 2 * d, generator=generator, dtype=torch.float64).tril(-1)
    freedom = torch.arange(w, w - 2 * d, -1, dtype=torch.float64)
    # A gamma variable of half the degrees of freedom, doubled, is chi-squared.
    chi = (2 * torch._standard_gamma(freedom / 2, generator=generator)).sqrt()
    return (B + chi.diag()).reshape(2, d, 2 * d)


def _product(weights: Tensor) -> Tensor:
    """(U, V), `(..., 2, d, w)` → UVᵀ."""
    U, V = weights.unbind(-3)
    return U @ V.mT


STUDIES.register("mixed_regime")(
    Study(
        run,
        summarise,
        Clock,
        question="Do wide two-layer networks with random weights follow the flow of relaxed balanced ones, from the "
        "lazy to the rich regime?",
    )
)
