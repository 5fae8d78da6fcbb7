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
from ..time.integrate import integrate
from .base import STUDIES, Clock, Progress, Study
from .published import claimed, summarise

_ORDER = 0.1


def run(
    setup: Clock,
    *,
    dimension: int = 20,
    rank: int = 3,
    products: Sequence[float] = (0.01, 0.1, 1.0, 10.0),
    widths: Sequence[int] = (100, 200, 400, 800, 1600, 3200),
    repeats: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """z = UVᵀ with independent normal entries of variance σ², w columns: UUᵀ and VVᵀ concentrate at σ²w I.

    So z follows the two-layer flow ż = −(√(zzᵀ + (σ²w)²) G + G √(zᵀz + (σ²w)²)) from z = 0 up to O(w^{−1/2}); large σ²w
    is lazy, small σ²w rich. The target is a random matrix of low rank and norm about 1.

    Parameters
    ----------
    setup : Clock
        Times are in units in which σ²w t is held fixed for σ²w > 1.
    dimension : int
        d; the paper takes 500.
    rank : int
        Of the target.
    products : sequence of float
        σ²w.
    widths : sequence of int
        w, increasing.
    repeats : int
        Draws of the weights.
    seed : int
        Of target and weights.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
    """
    d, number = count("study.dimension", dimension), count("study.repeats", repeats)
    generator = torch.Generator().manual_seed(count("study.seed", seed, least=0))
    target = _target(d, count("study.rank", rank, most=d), generator)
    loss = Quadratic(target)
    errors, starts, losses, stable, status = [], [], [], [], "ok"
    for k, product in enumerate(products):
        c = positive(f"study.products[{k}]", product)
        times = setup.times / max(1.0, c)
        kernel = TwoLayer(2 * c)
        column, apart = [], []
        for i, w in enumerate(widths):
            if progress is not None:
                progress((k + i / len(widths)) / len(products), f"σ²w = {c:g}, w = {w}")
            weights = (c / w) ** 0.5 * torch.randn(number, 2, d, w, generator=generator, dtype=torch.float64)
            network = integrate(FactorizationFlow(_product, loss), weights, times, **setup.options(f"network-{k}-{w}"))
            closed = integrate(IntrinsicFlow(loss, kernel), network.z[0], times, **setup.options(f"closed-{k}-{w}"))
            for path in (network, closed):
                status = status if path.ending == "ok" else path.status
            gap = torch.linalg.matrix_norm(network.z - closed.z).amax(0)
            column.append(float(gap.square().mean().sqrt()))
            apart.append(float(torch.linalg.matrix_norm(network.z[0]).square().mean().sqrt()))
        errors.append(column)
        starts.append(apart)
        zero = integrate(IntrinsicFlow(loss, kernel), torch.zeros(d, d).double(), times, **setup.options(f"zero-{k}"))
        losses.append(zero.loss.numpy())
        sigma = torch.linalg.svdvals(zero.z[-1])
        shares = sigma / sigma.sum()
        stable.append(float(torch.exp(torch.special.entr(shares).sum())))
    error = np.array(errors)
    orders = np.log(error[:, 0] / error[:, -1]) / np.log(widths[-1] / widths[0])
    dataset = xr.Dataset(
        {
            "error_z": (("product", "width"), error, {"long_name": "sup over t of the distance from the closed flow"}),
            "start": (("product", "width"), np.array(starts), {"long_name": "‖z₀‖"}),
            "loss": (("product", "step"), np.stack(losses), {"long_name": "loss of the closed flow from z = 0"}),
            "effective_rank": ("product", stable, {"long_name": "effective rank of z at the end"}),
            "order": ("product", orders, {"long_name": "order in 1/w"}),
        },
        coords={
            "product": ("product", list(products), {"long_name": "σ²w"}),
            "width": ("width", list(widths), {"long_name": "width w"}),
            "step": ("step", setup.times.numpy(), {"long_name": "training time t max(1, σ²w)", "units": "flow time"}),
        },
    )
    off = float(max(0.5 - orders.min(), 0.0))
    return claimed(
        dataset,
        study="mixed_regime",
        figure="F4",
        title=f"Tu, Aranguri, Jacot 2024, figure 1: d = {d}, rank {rank} (seed {seed})",
        claim="wide random two-layer networks follow the closed flow with |λ|/2 = σ²w, at least at order ½ in 1/w",
        published=0.5,
        measured=orders.tolist(),
        check="how far the order in 1/w is below ½",
        error=off,
        bound=_ORDER,
        passed=off <= _ORDER,
        verdict=(
            f"The distance of random networks from the closed flow falls at order {orders.min():.2f} to "
            f"{orders.max():.2f} in 1/w, from {error[:, 0].max():.2g} to {error[:, -1].max():.2g}; the effective rank "
            f"of z goes from {stable[0]:.1f} (σ²w = {products[0]:g}) to {stable[-1]:.1f} (σ²w = {products[-1]:g})."
        ),
        status=status,
        scaled_down="" if d >= 500 else f"d = {d} in place of 500",
    )


def _target(d: int, rank: int, generator: torch.Generator) -> Tensor:
    left, right = (torch.randn(d, rank, generator=generator, dtype=torch.float64) for _ in range(2))
    return left @ right.mT / d


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
