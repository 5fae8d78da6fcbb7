"""Arora et al. 2019: matrix completion by deep factorisation, with the curve of infinite depth."""

from __future__ import annotations

import math
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


def run(
    setup: Clock,
    *,
    dimension: int = 20,
    rank: int = 2,
    start: float = 0.1,
    depths: Sequence[int] = (2, 3, 4),
    observations: Sequence[int] = (80, 120, 160, 240),
    members: int = 3,
    fall: float = 1e-4,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Reconstruction error and effective rank of deep factorisations of a low-rank matrix, by entries that are seen.

    Balanced networks of N layers whose product starts at `start` times the identity follow a closed flow of z, which is
    run until the loss on the entries that are seen has fallen; infinite depth is its limit.

    Parameters
    ----------
    setup : Clock
        Its last time bounds the runs.
    dimension : int
        n of the n × n matrix; the paper takes 100.
    rank : int
        Of the matrix; the paper takes 5.
    start : float
        Size of z₀, above 0; the paper takes 1e-3. From so small a start infinite depth lets one mode shoot up, far
        beyond what the seen entries say of it.
    depths : sequence of int
        N, increasing.
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
    cases = [(_matrix(n, r, generator), torch.rand(n * n, generator=generator).argsort()) for _ in range(draws)]
    names = [*depths, 0]
    shape = (len(names), len(observations), draws)
    unseen, ranks, losses, status = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan), "ok"
    for i, N in enumerate(names):
        for j, number in enumerate(observations):
            if progress is not None:
                progress((i + j / len(observations)) / len(names), f"{N or 'infinite'} layers, {number} entries")
            for k, (target, order) in enumerate(cases):
                mask = torch.zeros(n * n, dtype=torch.bool)
                mask[order[: count(f"study.observations[{j}]", number, most=n * n)]] = True
                f = Completion(target, mask.reshape(n, n))
                z0 = size * torch.eye(n, dtype=torch.float64)
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
    square = _trained(setup, generator)
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
    mean = unseen.mean(axis=-1)
    fewest = int(np.argmax(mean[0] - mean[1:].min(axis=0)))
    gain = float(mean[0, fewest] / mean[1:, fewest].min())
    return claimed(
        dataset,
        study="deep_completion",
        figure="F6",
        title=f"Arora et al. 2019: completion of {n} × {n} matrices of rank {r}, z₀ = {size:g} I",
        claim="deeper factorisations complete a low-rank matrix from fewer entries than two layers do",
        published="deeper is better at few entries",
        measured={f"{N or 'infinite'} layers": float(mean[i, fewest]) for i, N in enumerate(names)},
        check="three trained factors against their closed flow",
        error=square,
        bound=_BOUND,
        passed=square <= _BOUND and gain > 1,
        verdict=(
            f"With {observations[fewest]} of {n * n} entries two layers are wrong by {mean[0, fewest]:.2g} on the "
            f"others, the best deeper network by {mean[1:, fewest].min():.2g}, infinite depth by "
            f"{mean[-1, fewest]:.2g} (means of {draws} draws); three trained factors follow their "
            f"closed flow to {square:.1e}."
        ),
        status=status,
        scaled_down="" if n >= 100 else f"n = {n}, rank {r}, start {size:g} in place of 100, 5 and 1e-3",
    )


def _matrix(n: int, rank: int, generator: torch.Generator) -> Tensor:
    left, right = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for _ in range(2))
    product = left @ right.mT
    return n * product / product.norm()


def _kernel(N: int) -> Kernel:
    """Of N balanced layers in the time of the limit; of the limit for 0."""
    return DividedDifference(torch.zeros(N, dtype=torch.float64), time_scale=1 / N) if N else LogMean()


def _trained(setup: Clock, generator: torch.Generator) -> float:
    """The distance of three trained factors of a small matrix from their closed flow."""
    d, N = 4, 3
    target, mask = _matrix(d, 2, generator), torch.rand(d, d, generator=generator) < 0.6
    mask[0, 0] = True
    f, times = Completion(target, mask), torch.linspace(0, 3, 7, dtype=torch.float64)
    z0 = 0.3 * torch.eye(d, dtype=torch.float64)
    theta = (0.3 ** (1 / N) * torch.eye(d, dtype=torch.float64)).flatten().repeat(N)
    options: dict[str, Any] = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-13}
    network = integrate(FactorizationFlow(phi_of([d] * (N + 1)), f), theta, times, **options)
    closed = integrate(IntrinsicFlow(f, DividedDifference(torch.zeros(N, dtype=torch.float64))), z0, times, **options)
    return float(torch.linalg.matrix_norm(network.z - closed.z).max()) / math.sqrt(d)


STUDIES.register("deep_completion")(
    Study(
        run,
        summarise,
        Clock,
        question="How many entries of a low-rank matrix must be seen for a factorisation of N layers to complete it, "
        "and what does infinite depth do?",
    )
)
