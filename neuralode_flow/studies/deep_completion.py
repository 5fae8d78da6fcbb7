"""Arora et al. 2019: matrix completion by deep factorisation, with the curve of infinite depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count, positive
from ..flows.factorization import FactorizationFlow
from ..flows.intrinsic import IntrinsicFlow
from ..intrinsic.systems.linear_network import phi_of
from ..kernels import DividedDifference, Kernel, LogMean
from ..losses import Completion
from ..time.integrate import integrate
from .base import STUDIES, Clock, Progress, Study
from .published import claimed, summarise

_BOUND = 1e-8
_CLEARLY = 0.75  # of the pairs of runs on the same entries


def run(
    setup: Clock,
    *,
    dimension: int = 20,
    rank: int = 2,
    start: float = 1e-3,
    depths: Sequence[int] = (2, 3, 4),
    observations: Sequence[int] = (100, 140, 180, 240),
    members: int = 5,
    fall: float = 1e-4,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Reconstruction error and effective rank of deep factorisations of a low-rank matrix, by entries that are seen.

    Balanced networks of N layers whose product starts small follow a closed flow of z, which is run until the loss on
    the entries that are seen has fallen; infinite depth is its limit. All depths get the same matrices and entries, so
    that they are compared pair by pair.

    Parameters
    ----------
    setup : Clock
        Its last time bounds the runs.
    dimension : int
        n of the n × n matrix; the paper takes 100.
    rank : int
        Of the matrix; the paper takes 5.
    start : float
        z₀ is the identity times this part of the Frobenius norm n of the matrix. From small starts infinite depth now
        and then lets one mode shoot up in the entries that are not seen, far beyond what the others say of it.
    depths : sequence of int
        N, increasing; the first is what the others are compared with.
    observations : sequence of int
        Numbers of entries that are seen.
    members : int
        Draws of matrix and entries.
    fall : float
        At which part of its first value the loss ends a run.
    seed : int
        Of the draws.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
    """
    n, draws = count("study.dimension", dimension), count("study.members", members)
    size, end = positive("study.start", start), positive("study.fall", fall)
    generator = torch.Generator().manual_seed(count("study.seed", seed, least=0))
    r = count("study.rank", rank, most=n)
    z0 = size * n * torch.eye(n, dtype=torch.float64)
    cases = [(_matrix(n, r, generator), torch.rand(n * n, generator=generator).argsort()) for _ in range(draws)]
    names = [*depths, 0]
    shape = (len(names), len(observations), draws)
    (unseen, ranks, losses, ends), status = np.full((4, *shape), np.nan), "ok"
    for i, N in enumerate(names):
        for j, number in enumerate(observations):
            if progress is not None:
                progress((i + j / len(observations)) / len(names), f"{N or 'infinite'} layers, {number} entries")
            for k, (target, order) in enumerate(cases):
                f = _seen(target, order, count(f"study.observations[{j}]", number, most=n * n))
                stop = {"loss": end * float(f(z0))}
                flow = IntrinsicFlow(f, _kernel(N))
                path = integrate(flow, z0, setup.times, **setup.options(f"{N}-{number}-{k}"), stop=stop)
                if path.ending not in ("ok", "loss"):
                    status = path.status
                hidden = torch.where(f.mask, 0.0, path.z[-1] - target)
                unseen[i, j, k] = float(hidden.norm() / torch.where(f.mask, 0.0, target).norm())
                shares = torch.linalg.svdvals(path.z[-1])
                ranks[i, j, k] = float(torch.exp(torch.special.entr(shares / shares.sum()).sum()))
                losses[i, j, k] = float(path.loss[-1] / path.loss[0])
                ends[i, j, k] = float(path.times[-1])
    N = names[min(1, len(depths) - 1)]
    square = _trained(N, _seen(*cases[0], observations[0]), z0, float(ends[names.index(N), 0, 0]), **setup.budgets())
    dataset = xr.Dataset(
        {
            "unseen": (("network", "entries", "member"), unseen, {"long_name": "relative error of the unseen entries"}),
            "effective_rank": (("network", "entries", "member"), ranks, {"long_name": "effective rank of z"}),
            "loss": (("network", "entries", "member"), losses, {"long_name": "loss at the end, relative"}),
        },
        coords={
            "network": ("network", names, {"long_name": "layers N; 0 is infinite depth"}),
            "entries": ("entries", list(observations), {"long_name": "entries that are seen"}),
        },
    )
    better = {N: float((unseen[i] < unseen[0]).mean()) for i, N in enumerate(names) if i > 0}
    shares = {_name(N): share for N, share in better.items()}
    middle = np.median(unseen, axis=-1)
    few = int(np.argmax(middle[0] - middle[1:].min(axis=0)))
    return claimed(
        dataset,
        study="deep_completion",
        figure="F6",
        title=f"Arora et al. 2019: completion of {n} × {n} matrices of rank {r}, z₀ = {size * n:g} I",
        claim="deeper factorisations complete a low-rank matrix from fewer entries than two layers do",
        published="deeper is better at few entries",
        measured=shares,
        check=f"{N} trained factors against their closed flow, relative",
        error=square,
        bound=_BOUND,
        passed=square <= _BOUND and all(better[N] >= _CLEARLY for N in depths[1:]),
        verdict=(
            f"On the same entries of the same matrices deeper is better than {depths[0]} layers in "
            + ", ".join(f"{share:.0%} ({name})" for name, share in shares.items())
            + f" of {len(observations) * draws} pairs; with {observations[few]} of {n * n} entries the median errors "
            f"on the others are "
            + ", ".join(f"{middle[i, few]:.2g} ({_name(N)})" for i, N in enumerate(names))
            + f", the largest of all at infinite depth {unseen[-1].max():.2g}; {N} trained factors follow their closed "
            f"flow to {square:.1e}."
        ),
        status=status,
        reference_error=square,
        scaled_down="" if n >= 100 else f"n = {n}, rank {r} in place of 100 and 5",
    )


def _name(N: int) -> str:
    return f"{N} layers" if N else "infinite depth"


def _seen(target: Tensor, order: Tensor, number: int) -> Completion:
    """The loss on the first `number` entries in an order."""
    mask = torch.zeros(target.numel(), dtype=torch.bool)
    mask[order[:number]] = True
    return Completion(target, mask.reshape(target.shape))


def _matrix(n: int, rank: int, generator: torch.Generator) -> Tensor:
    left, right = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for _ in range(2))
    product = left @ right.mT
    return n * product / product.norm()


def _kernel(N: int) -> Kernel:
    """Of N balanced layers in the time of the limit; of the limit for 0."""
    return DividedDifference(torch.zeros(N, dtype=torch.float64), time_scale=1 / N) if N else LogMean()


def _trained(N: int, loss: Completion, z0: Tensor, end: float, **budgets: Any) -> float:
    """The relative distance of N trained factors from their closed flow, up to a time of the closed flow."""
    if end == 0.0:  # a budget was used up before the first step
        return np.inf
    n, times = len(z0), torch.linspace(0, end, 7, dtype=torch.float64)
    theta = z0.diagonal().pow(1 / N).diag().flatten().repeat(N)
    network = integrate(
        FactorizationFlow(phi_of([n] * (N + 1)), loss), theta, times / N, "DOP853", 1e-11, 1e-13, **budgets
    )
    closed = integrate(IntrinsicFlow(loss, _kernel(N)), z0, times, "DOP853", 1e-11, 1e-13, **budgets)
    if not (network.ending == closed.ending == "ok"):
        return np.inf
    return float(torch.linalg.matrix_norm(network.z - closed.z).max() / torch.linalg.matrix_norm(closed.z).max())


STUDIES.register("deep_completion")(
    Study(
        run,
        summarise,
        Clock,
        question="How many entries of a low-rank matrix must be seen for a factorisation of N layers to complete it, "
        "and what does infinite depth do?",
    )
)
