"""Strong imbalance between layers: a limit of its own, m times the logarithmic mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from scipy.optimize import brentq
from torch import Tensor

from ..checks import count, real
from ..finding import Check, Claim, Finding
from ..flows.finite import FiniteFlow
from ..flows.intrinsic import IntrinsicFlow
from ..initial import relaxed_balanced_layers
from ..kernels import DividedDifference, LogMean
from ..orders import Order, observed_order, said
from ..problems import Problem
from ..signatures import Depths, Layers, Seed
from ..time.integrate import integrate
from ..time.trajectory import Trajectory
from .axes import arranged, axis, depth, time
from .base import STUDIES, Clock, Progress, Study, whole

# m for ℓ = 1, 2, to the digits that were derived before.
DERIVED = {1.0: 1.0453, 2.0: 1.2549}
_ORDER, _BOUND, _DIGITS, _PLATEAU = 0.05, 1e-8, 5e-5, 2.0


def run(
    problem: Problem,
    clock: Clock,
    *,
    depths: Depths = (8, 16, 32, 64, 128, 256, 512),
    strengths: Sequence[float] = (0.0, 1.0, 2.0),
    network_depth: Layers = 8,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Layers with U_{k+1}ᵀU_{k+1} − U_kU_kᵀ = ℓ/L · I: their flow tends to m · logmean as L → ∞.

    ∫₀¹ log(x + ℓs) ds = 0 has one root x* > 0 for ℓ < e, and m = ∫₀¹ ds/(x* + ℓs). ℓ = 0 is the balanced case, m = 1;
    an imbalance of ℓ/L² leads there as well, which is shown beside it.

    Parameters
    ----------
    problem : Problem
    clock : Clock
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
    L0, start = count("study.network_depth", network_depth), count("study.seed", seed, least=0)
    one = _limit(problem, clock, 1.0, "balanced", "balanced limit").z
    found = []
    for k, strength in enumerate(strengths):
        ell = real(f"study.strengths[{k}]", strength)
        m = factor(ell)
        fast = _limit(problem, clock, m, f"limit-{k}")
        again = _limit(problem, clock.tight(), m, f"tight-{k}")
        error_time = float(torch.linalg.matrix_norm(clock.time_error(fast.z, again.z)).max())
        distances = []
        for i, L in enumerate(depths):
            if progress is not None:
                progress((k + i / len(depths)) / len(strengths), f"ℓ = {ell:g}, L = {L}")
            strong = _closed(problem, clock, ell / L, L, f"{k}-{L}")
            weak = _closed(problem, clock, ell / L**2, L, f"{k}-{L}-weak")
            distances.append([_apart(strong, fast.z), _apart(weak, one), _apart(strong, one)])
        trained = _trained(problem, clock, ell, L0, start, f"layers-{k}")
        layers = _apart(trained, _closed(problem, clock, ell / L0, L0, f"{k}-own"))
        found.append(_Strength(m, fast.loss, error_time, distances, layers))
    dataset = _dataset(clock.times, depths, strengths, found)
    square, floor = (
        float(np.max([strength.layers for strength in found])),
        clock.floor(float(dataset.error_time.values.max())),
    )
    return _finding(dataset, problem.title, L0, square, floor).attached(dataset)


@dataclass(frozen=True, eq=False)
class _Strength:
    """What is computed at one ℓ.

    distances : at each L those of λ = ℓ/L from m · logmean, of λ = ℓ/L² from logmean, and of λ = ℓ/L from logmean.
    layers : distance of trained layers from their closed flow.
    """

    factor: float
    loss: Tensor
    error_time: float
    distances: list[list[float]]
    layers: float


def _dataset(times: Tensor, depths: Sequence[int], strengths: Sequence[float], found: list[_Strength]) -> xr.Dataset:
    error, weak, missed = np.array([strength.distances for strength in found]).transpose(2, 0, 1)
    return arranged(
        {
            "error_z": (("strength", "depth"), error, "sup over t of ‖z_L − z_∞‖"),
            "error_weak": (("strength", "depth"), weak, "the same with λ = ℓ/L² against m = 1"),
            "error_balanced": (("strength", "depth"), missed, "with λ = ℓ/L against m = 1"),
            "error_time": ("strength", [strength.error_time for strength in found], "error in time of the limit"),
            "factor": ("strength", [strength.factor for strength in found], "m"),
            "loss": (("strength", "time"), torch.stack([strength.loss for strength in found]), "loss of the limit"),
        },
        [axis("strength", list(strengths), "ℓ"), depth(depths, "layers L"), time(times)],
    )


def _finding(dataset: xr.Dataset, title: str, L0: int, square: float, floor: float) -> Finding:
    strengths, factors, depths = (dataset[name].values.tolist() for name in ("strength", "factor", "depth"))
    orders, weak_orders = (
        [observed_order(dataset.depth.values, column, floor) for column in dataset[name].values]
        for name in ("error_z", "error_weak")
    )
    imbalanced = [i for i, e in enumerate(strengths) if e > 0]
    further = _against_logmean(dataset, [orders, weak_orders]) if imbalanced else []
    against = ""
    if further:
        against = (
            f"; at L = {depths[-1]} they are {further[-1].error:.2g} times as far from logmean itself, to which those "
            f"with λ = ℓ/L² tend at order {said(weak_orders)}"
        )
    limits = ", ".join(f"m = {m:.4f} at ℓ = {e:g} (order {p})" for m, e, p in zip(factors, strengths, orders))
    told = [(f"{e:g}/L", p) for e, p in zip(strengths, orders, strict=True)]
    told += [(f"{strengths[i]:g}/L²", weak_orders[i]) for i in imbalanced]
    error_time = float(dataset.error_time.values.max())
    return Finding(
        study="strong_imbalance",
        problem=f"Strong imbalance λ_k = ℓ/L: {title}",
        status="ok",
        verdict=f"Networks with λ = ℓ/L tend to m · logmean: {limits}{against}. {L0} trained layers follow "
        f"their closed flow to {square:.1e}.",
        claim=Claim(
            _claimed(strengths, L0),
            measured=factors,
            published=[DERIVED.get(e) for e in strengths],
        ),
        checks=(
            Check(f"{L0} trained layers against their closed flow", square, _BOUND, "sup over t, Frobenius norm"),
            *further,
            Check("error in time of the limit", error_time, norm="sup over t and ℓ, Frobenius norm"),
        ),
        orders=tuple(p._replace(rule=f"z in 1/L, λ = {lam}", expected=1.0) for lam, p in told),
        numbers={"reference_error": error_time},
    )


def _claimed(strengths: Sequence[float], L0: int) -> str:
    """What is put to the test, of these ℓ."""
    if not max(strengths) > 0:
        return f"{L0} trained layers that are in balance follow their closed flow"
    known = ", ".join(f"{DERIVED[e]} (ℓ = {e:g})" for e in strengths if e in DERIVED)
    return "with λ_k = ℓ/L the limit is m · logmean, reached at order 1" + (f"; m = {known}" if known else "")


def _against_logmean(dataset: xr.Dataset, orders: Sequence[Sequence[Order]]) -> list[Check]:
    """What is asked of each ℓ > 0, since ℓ = 0 is logmean itself; `orders` are with λ = ℓ/L and with ℓ/L²."""
    strengths, factors = dataset.strength.values, dataset.factor.values
    distances = [abs(order.value - 1) for own in orders for order, e in zip(own, strengths, strict=True) if e > 0]
    known = [abs(m - DERIVED[e]) for m, e in zip(factors, strengths, strict=True) if e in DERIVED]
    farther = (dataset.error_balanced.values[:, -1] / dataset.error_z.values[:, -1])[strengths > 0]
    found = [  # NaN where an order is undecided
        Check(
            "the order at each ℓ > 0 from 1",
            float(np.max(distances)),
            _ORDER,
            "largest over ℓ, with λ = ℓ/L and with ℓ/L²",
        )
    ]
    if known:
        digits = float(np.max(known))
        found.append(Check("m against its derived digits", digits, _DIGITS, "largest over the ℓ that have them"))
    plateau = float(np.min(farther))
    name = "times as far from logmean as from m · logmean"
    return [*found, Check(name, plateau, _PLATEAU, "last L, ℓ > 0", least=True)]


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


def _limit(problem: Problem, clock: Clock, m: float, name: str, what: str = "limit") -> Trajectory:
    """The flow of m · logmean, at the times of the clock."""
    flow = IntrinsicFlow(problem.loss, LogMean())
    return whole(integrate(flow, problem.z0, m * clock.times.double(), **clock.options(name)), what)


def _trained(problem: Problem, clock: Clock, ell: float, L: int, seed: int, name: str) -> Tensor:
    """z(t) of L layers with λ = ℓ/L that are trained themselves, from random frames."""
    z0, generator = problem.z0, torch.Generator().manual_seed(seed)
    layers = relaxed_balanced_layers(z0, _shifts(ell / L, L).to(z0), generator)
    flow = FiniteFlow(L, problem.loss)
    return whole(integrate(flow, layers, clock.times, **clock.options(name)), "layers").z


def _closed(problem: Problem, clock: Clock, lam: float, L: int, name: str) -> Tensor:
    """z(t) of L layers with the same λ between all of them."""
    kernel = DividedDifference(shifts=_shifts(lam, L).to(problem.z0), time_scale=1 / L)
    flow = IntrinsicFlow(problem.loss, kernel)
    path = integrate(flow, problem.z0, clock.times, **clock.options(name))
    return whole(path, f"flow of {L} layers").z


def _apart(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.matrix_norm(a - b).max())


STUDIES.register("strong_imbalance")(
    Study(
        run,
        question="Which limit do networks have whose layers are out of balance by ℓ/L, and how fast do they reach it?",
        accepts=("depth",),
    )
)
