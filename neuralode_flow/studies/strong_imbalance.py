"""Strong imbalance between layers: a limit of its own, m times the logarithmic mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from scipy.optimize import brentq
from torch import Tensor

from ..checks import count, real
from ..flows.finite import FiniteFlow
from ..flows.intrinsic import IntrinsicFlow
from ..initial import relaxed_balanced_layers
from ..kernels import DividedDifference, LogMean
from ..orders import observed_order, said
from ..time.integrate import integrate
from .base import STUDIES, ProblemSetup, Progress, Study, whole
from .published import claimed, summarise

# m for ℓ = 1, 2, to the digits that were derived before.
DERIVED = {1.0: 1.0453, 2.0: 1.2549}
_ORDER, _BOUND = 0.05, 1e-8


def run(
    setup: ProblemSetup,
    *,
    depths: Sequence[int] = (8, 16, 32, 64, 128, 256, 512),
    strengths: Sequence[float] = (0.0, 1.0, 2.0),
    network_depth: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Layers with U_{k+1}ᵀU_{k+1} − U_kU_kᵀ = ℓ/L · I: their flow tends to m · logmean as L → ∞.

    ∫₀¹ log(x + ℓs) ds = 0 has one root x* > 0 for ℓ < e, and m = ∫₀¹ ds/(x* + ℓs). ℓ = 0 is the balanced case, m = 1;
    an imbalance of ℓ/L² leads there as well, which is shown beside it.

    Parameters
    ----------
    setup : ProblemSetup
    depths : sequence of int
        L, increasing.
    strengths : sequence of float
        ℓ, from 0 to below e.
    network_depth : int
        L of the layers that are trained themselves, to verify the closed flow.
    seed : int
        Of their frames.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
    """
    L0, loss, z0 = count("study.network_depth", network_depth), setup.problem.loss, setup.problem.z0
    errors: list[list[float]] = []
    weak: list[list[float]] = []
    missed: list[list[float]] = []
    factors, curves, floors, square = [], [], [], 0.0
    balanced = integrate(IntrinsicFlow(loss, LogMean()), z0, setup.times, **setup.options("balanced"))
    one = whole(balanced, "balanced limit").z
    for k, strength in enumerate(strengths):
        ell = real(f"study.strengths[{k}]", strength)
        m = factor(ell)
        factors.append(m)
        fast, again = (
            whole(integrate(IntrinsicFlow(loss, LogMean()), z0, m * at.times, **at.options(f"{name}-{k}")), "limit")
            for at, name in ((setup, "limit"), (setup.tight(), "tight"))
        )
        floors.append(float(torch.linalg.matrix_norm(setup.time_error(fast.z, again.z)).max()))
        columns: list[list[float]] = [[], [], []]
        for i, L in enumerate(depths):
            if progress is not None:
                progress((k + i / len(depths)) / len(strengths), f"ℓ = {ell:g}, L = {L}")
            strong = _closed(setup, z0, ell / L, L, f"{k}-{L}")
            gentle = _closed(setup, z0, ell / L**2, L, f"{k}-{L}-weak")
            for column, pair in zip(columns, ((strong, fast.z), (gentle, one), (strong, one)), strict=True):
                column.append(_apart(*pair))
        for table, column in zip((errors, weak, missed), columns, strict=True):
            table.append(column)
        curves.append(fast.loss.numpy())
        generator = torch.Generator().manual_seed(count("study.seed", seed, least=0))
        layers = relaxed_balanced_layers(z0, _shifts(ell / L0, L0).to(z0), generator)
        path = integrate(FiniteFlow(L0, loss), layers, setup.times, **setup.options(f"layers-{k}"))
        square = max(square, _apart(whole(path, "layers").z, _closed(setup, z0, ell / L0, L0, f"{k}-own")))
    error, floor = np.array(errors), max(floors)
    orders, weak_orders = (
        [observed_order(np.array(depths), np.array(column), setup.floor(floor)) for column in table]
        for table in (errors, weak)
    )
    known = max((abs(factors[i] - DERIVED[e]) for i, e in enumerate(strengths) if e in DERIVED), default=0.0)
    dataset = xr.Dataset(
        {
            "error_z": (("strength", "depth"), error, {"long_name": "sup over t of ‖z_L − z_∞‖"}),
            "error_weak": (("strength", "depth"), weak, {"long_name": "the same with λ = ℓ/L² against m = 1"}),
            "error_balanced": (("strength", "depth"), missed, {"long_name": "with λ = ℓ/L against m = 1"}),
            "error_time": (
                "strength",
                floors,
                {"long_name": "error in time of the limit"},
            ),
            "factor": ("strength", factors, {"long_name": "m"}),
            "loss": (("strength", "time"), np.stack(curves), {"long_name": "loss of the limit"}),
        },
        coords={
            "strength": ("strength", list(strengths), {"long_name": "ℓ"}),
            "depth": ("depth", list(depths), {"long_name": "layers L"}),
            "time": ("time", setup.times.numpy(), {"long_name": "training time t", "units": "flow time"}),
        },
    )
    imbalanced = [i for i, e in enumerate(strengths) if e > 0]
    distances = [abs(order[i].value - 1) for i in imbalanced for order in (orders, weak_orders)]
    off = float(np.max(distances, initial=0.0))  # NaN where one of them is undecided
    plateau = min((missed[i][-1] / errors[i][-1] for i in imbalanced), default=np.inf)
    limits = ", ".join(f"m = {m:.4f} at ℓ = {e:g} (order {p})" for m, e, p in zip(factors, strengths, orders))
    return claimed(
        dataset,
        study="strong_imbalance",
        figure="own",
        title=f"Strong imbalance λ_k = ℓ/L: {setup.problem.title}",
        claim="with λ_k = ℓ/L the limit is m · logmean, reached at order 1; m = 1.0453 (ℓ = 1), 1.2549 (ℓ = 2)",
        published=list(DERIVED.values()),
        measured=factors,
        check=f"{L0} trained layers against their closed flow",
        error=square,
        bound=_BOUND,
        passed=square <= _BOUND and off <= _ORDER and known <= 5e-5 and plateau > 2,
        verdict=(
            f"Networks with λ = ℓ/L tend to m · logmean: {limits}; at L = {depths[-1]} they are {plateau:.2g} times as "
            f"far from logmean itself, to which those with λ = ℓ/L² tend at order {said(weak_orders)}. {L0} "
            f"trained layers follow their closed flow to {square:.1e}."
        ),
        reference_error=floor,
    )


def factor(ell: float) -> float:
    """m of the strength ℓ, 0 <= ℓ < e.

    Raises
    ------
    ValueError
        If ℓ is out of range.
    """
    if not 0 <= ell < np.e:
        raise ValueError(f"study.strengths must be at least 0 and below e, got {ell:g}")
    if ell < 1e-8:
        return 1.0

    def mean_log(x: float) -> float:
        return ((x + ell) * np.log(x + ell) - (x * np.log(x) if x > 0 else 0.0)) / ell - 1

    root = brentq(mean_log, 0.0, 1.0, xtol=1e-300, rtol=1e-15)
    return float(np.log1p(ell / root) / ell)


def _shifts(lam: float, L: int) -> Tensor:
    return lam * torch.arange(L, dtype=torch.float64)


def _closed(setup: ProblemSetup, z0: Tensor, lam: float, L: int, name: str) -> Tensor:
    """z(t) of L layers with the same λ between all of them."""
    kernel = DividedDifference(shifts=_shifts(lam, L).to(z0), time_scale=1 / L)
    path = integrate(IntrinsicFlow(setup.problem.loss, kernel), z0, setup.times, **setup.options(name))
    return whole(path, f"flow of {L} layers").z


def _apart(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.matrix_norm(a - b).max())


STUDIES.register("strong_imbalance")(
    Study(
        run,
        summarise,
        ProblemSetup,
        question="Which limit do networks have whose layers are out of balance by ℓ/L, and how fast do they reach it?",
    )
)
