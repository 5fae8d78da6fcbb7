"""Dominé et al. 2025: two λ-balanced layers from lazy to rich, against the closed solution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count, real
from ..finding import Check, Claim, Finding
from ..flows.factorization import FactorizationFlow
from ..intrinsic.derivatives import jacobian
from ..intrinsic.systems import System
from ..intrinsic.systems.balanced_two_layer import balanced_two_layer
from ..signatures import Seed
from ..time.integrate import integrate
from ..time.trajectory import at_times
from .axes import arranged, axis, largest_of, time
from .base import STUDIES, Clock, Progress, Study

_BOUND = 1e-8
_MOVED = 100 * _BOUND  # z must move by this: a closed solution that is off by 1 % of it shows then
_LAZY = 0.2  # how far the kernel may move at the largest |λ|, as a part of how far it moves at the smallest
_RICH = 0.1  # how far it must move there, as a part of itself


@dataclass(frozen=True, eq=False)
class _Trained:
    """Two layers with one balance, trained to the end; NaN, but for the loss so far, where they did not come to it."""

    loss: np.ndarray
    error_z: float
    moved: float
    kernel_change: float
    kernel_off: float
    status: str
    ending: str


def run(
    clock: Clock,
    *,
    balances: Sequence[float] = (-100.0, -10.0, -1.0, -0.1, -0.01, 0.0, 0.01, 0.1, 1.0, 10.0, 100.0),
    width: int = 5,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Two layers 5-5-5 with UᵀU − VᵀV = λI, one z₀ and one target for all λ, trained to the end.

    z of the trained layers is compared with the closed solution in t; how far the neural tangent kernel moves tells the
    lazy from the rich.

    Parameters
    ----------
    clock : Clock
    balances : sequence of float
        λ, increasing.
    width : int
        All three sizes.
    seed : int
        Of z₀ and the target.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
    """
    size, trained = count("study.width", width), []
    for k, balance in enumerate(balances):
        lam = real(f"study.balances[{k}]", balance)
        if progress is not None:
            progress(k / len(balances), f"λ = {lam:g}")
        trained.append(_trained(clock, balanced_two_layer(size, size, size, lam, seed), lam, f"lambda-{k}"))
    dataset = _dataset(clock, balances, trained)
    title = f"Dominé et al. 2025: two λ-balanced layers {size}-{size}-{size} (seed {seed})"
    early = next((network for network in reversed(trained) if network.status != "ok"), None)
    status, ending = ("ok", "ok") if early is None else (early.status, early.ending)
    moved = float(np.array([network.moved for network in trained]).min())
    return _finding(dataset, title, status, ending, moved).attached(dataset)


def _trained(clock: Clock, system: System, lam: float, name: str) -> _Trained:
    flow = FactorizationFlow(system.phi, system.loss, system.laws)
    path = integrate(flow, system.theta, clock.times, **clock.options(name), observe=lambda i, th: th.clone())
    (solution,) = system.checks.values()
    assert path.observed is not None
    loss = at_times(path, clock.times, "loss").numpy()
    if path.ending != "ok":  # what it has come to says nothing of the last time
        return _Trained(loss, math.nan, math.nan, math.nan, math.nan, path.status, path.ending)
    first, last = (J @ J.mT for J in (jacobian(system.phi, path.observed[i]) for i in (0, -1)))
    change = float(torch.linalg.matrix_norm(last - first) / torch.linalg.matrix_norm(first))
    return _Trained(
        loss=loss,
        error_z=solution(path.times, path.observed),
        moved=float(torch.linalg.matrix_norm(path.z - path.z[0]).max()),
        kernel_change=change,
        kernel_off=abs(change - _closed_change(path.z[0], path.z[-1], lam)),
        status="ok",
        ending="ok",
    )


def _closed_change(first: Tensor, last: Tensor, lam: float) -> float:
    """The relative change of the tangent kernel of two square layers from z and λ alone.

    It is A ⊗ I + I ⊗ B with A² − λA = zzᵀ and B² + λB = zᵀz, so that ‖·‖² = n‖A‖² + n‖B‖² + 2 tr A tr B.
    """

    def parts(z: Tensor) -> Tensor:
        left, sigma, right = torch.linalg.svd(z)
        middle = torch.sqrt(sigma.square() + lam**2 / 4)
        return torch.stack((left * (middle + lam / 2) @ left.mT, right.mT * (middle - lam / 2) @ right))

    def size(both: Tensor) -> float:
        traces = both.diagonal(dim1=-2, dim2=-1).sum(-1)
        return float((both.shape[-1] * both.square().sum() + 2 * traces.prod()).sqrt())

    return size(parts(last) - parts(first)) / size(parts(first))


def _dataset(clock: Clock, balances: Sequence[float], trained: list[_Trained]) -> xr.Dataset:
    errors, moved = [network.error_z for network in trained], [network.kernel_change for network in trained]
    return arranged(
        {
            "loss": (("balance", "time"), [network.loss for network in trained], "loss"),
            "error_z": ("balance", errors, "sup over t of the distance of z from the closed solution"),
            "kernel_change": ("balance", moved, "relative change of the tangent kernel M"),
            "kernel_off": (
                "balance",
                [network.kernel_off for network in trained],
                "distance of that change from the one of the closed kernel, from z and λ alone",
            ),
        },
        [axis("balance", list(balances), "λ"), time(clock.times)],
    )


def _finding(dataset: xr.Dataset, title: str, status: str, ending: str, moved: float) -> Finding:
    size, errors = np.abs(dataset.balance.values), dataset.error_z.values
    worst = float(errors.max())
    lazy, rich = (float(dataset.kernel_change[int(i)]) for i in (size.argmax(), size.argmin()))
    compared = [Check("how far z moves", moved, _MOVED, "least over λ of the sup over t, Frobenius norm", least=True)]
    if several := size.max() > size.min():
        change = lazy / rich if rich else math.nan  # a network that did not move is neither
        name = "change of the tangent kernel at the largest |λ|, against that at the smallest"
        compared.append(Check(name, change, _LAZY, "Frobenius norm, relative"))
        name = "change of the tangent kernel at the smallest |λ|"
        compared.append(Check(name, rich, _RICH, "Frobenius norm, relative", least=True))
    return Finding(
        study="lazy_to_rich",
        problem=title,
        status=status,
        verdict=_verdict(errors, lazy, rich, several),
        claim=Claim(
            "the closed solution in t holds for every λ; large |λ| is lazy, small |λ| rich",
            measured={"kernel change at largest |λ|": lazy, "at smallest": rich},
            figure="F3",
        ),
        checks=(
            Check(
                "z of the trained layers against the closed solution", worst, _BOUND, "sup over λ and t, Frobenius norm"
            ),
            *compared,
            Check(
                "change of the tangent kernel from that of its closed form",
                largest_of(dataset.kernel_off),
                _BOUND,
                "largest over λ, relative to the kernel",
            ),
        ),
        numbers={"ending": ending},
    )


def _verdict(errors: np.ndarray, lazy: float, rich: float, several: bool) -> str:
    """What is known of the networks that came to the last time."""
    ended = errors[np.isfinite(errors)]
    if not len(ended):
        return f"None of {len(errors)} networks came to the last time."
    of = "" if len(ended) == len(errors) else f"of {len(errors)} "
    moved = f"{100 * lazy:.2g} % at the largest |λ| and by {100 * rich:.3g} % at the smallest"
    if not several:
        moved = f"{100 * rich:.3g} %"
    if np.isnan(lazy + rich):
        moved = "an amount that is not known at the largest or at the smallest |λ|"
    return (
        f"The closed solution holds to {ended.max():.1e} for {len(ended)} {of}values of λ; the tangent kernel moves by "
        f"{moved}."
    )


STUDIES.register("lazy_to_rich")(
    Study(
        run,
        question="How does the balance λ of two layers move their training between the lazy and the rich regime, and "
        "does the closed solution hold for all of them?",
    )
)
