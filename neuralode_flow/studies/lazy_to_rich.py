"""Dominé et al. 2025: two λ-balanced layers from lazy to rich, against the closed solution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from ..checks import count, real
from ..flows.factorization import FactorizationFlow
from ..intrinsic.derivatives import jacobian
from ..intrinsic.systems.balanced_two_layer import balanced_two_layer
from ..time.integrate import integrate
from .base import STUDIES, Clock, Progress, Study
from .published import claimed, summarise

_BOUND = 1e-8


def run(
    setup: Clock,
    *,
    balances: Sequence[float] = (-100.0, -10.0, -1.0, -0.1, -0.01, 0.0, 0.01, 0.1, 1.0, 10.0, 100.0),
    width: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Two layers 5-5-5 with UᵀU − VᵀV = λI, one z₀ and one target for all λ, trained to the end.

    z of the trained layers is compared with the closed solution in t; how far the neural tangent kernel moves tells the
    lazy from the rich.

    Parameters
    ----------
    setup : Clock
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
    size, errors, losses, moved, status = count("study.width", width), [], [], [], "ok"
    for k, balance in enumerate(balances):
        lam = real(f"study.balances[{k}]", balance)
        if progress is not None:
            progress(k / len(balances), f"λ = {lam:g}")
        system = balanced_two_layer(size, size, size, lam, seed)
        flow = FactorizationFlow(system.phi, system.loss, system.laws)
        path = integrate(
            flow, system.theta, setup.times, **setup.options(f"lambda-{k}"), observe=lambda i, th: th.clone()
        )
        if path.ending != "ok":
            status = path.status
        (solution,) = system.checks.values()
        assert path.observed is not None
        errors.append(solution(path.times, path.observed))
        losses.append(np.pad(path.loss.numpy(), (0, len(setup.times) - len(path.loss)), constant_values=np.nan))
        kernels = [J @ J.mT for J in (jacobian(system.phi, path.observed[i]) for i in (0, -1))]
        moved.append(float(torch.linalg.matrix_norm(kernels[1] - kernels[0]) / torch.linalg.matrix_norm(kernels[0])))
    dataset = xr.Dataset(
        {
            "loss": (("balance", "time"), np.array(losses), {"long_name": "loss"}),
            "error_z": ("balance", errors, {"long_name": "sup over t of the distance of z from the closed solution"}),
            "kernel_change": ("balance", moved, {"long_name": "relative change of the tangent kernel M"}),
        },
        coords={
            "balance": ("balance", list(balances), {"long_name": "λ"}),
            "time": ("time", setup.times.numpy(), {"long_name": "training time t", "units": "flow time"}),
        },
    )
    largest = np.abs(np.array(balances))
    lazy, rich = moved[int(largest.argmax())], moved[int(largest.argmin())]
    worst = max(errors)
    return claimed(
        dataset,
        study="lazy_to_rich",
        figure="F3",
        title=f"Dominé et al. 2025: two λ-balanced layers {size}-{size}-{size} (seed {seed})",
        claim="the closed solution in t holds for every λ; large |λ| is lazy, small |λ| rich",
        published=None,
        measured={"kernel change at largest |λ|": lazy, "at smallest": rich},
        check="z of the trained layers against the closed solution",
        error=worst,
        bound=_BOUND,
        passed=worst <= _BOUND and lazy < 0.2 * rich,
        verdict=(
            f"The closed solution holds to {worst:.1e} for {len(balances)} values of λ; the tangent kernel moves by "
            f"{100 * lazy:.2g} % at the largest |λ| and by {100 * rich:.3g} % at the smallest."
        ),
        status=status,
    )


STUDIES.register("lazy_to_rich")(
    Study(
        run,
        summarise,
        Clock,
        question="How does the balance λ of two layers move their training between the lazy and the rich regime, and "
        "does the closed solution hold for all of them?",
    )
)
