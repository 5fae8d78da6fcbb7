"""Arora et al. 2019: matrix completion by deep factorisation, with the curve of infinite depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count, positive, seeded
from ..finding import Check, Claim, Finding, sentence
from ..flows.factorization import FactorizationFlow
from ..flows.intrinsic import IntrinsicFlow
from ..intrinsic.systems.linear_network import phi_of
from ..losses import Completion
from ..signatures import Count, Depths, Dimension, Members, Seed, at_least
from ..time.integrate import integrate
from .axes import arranged, axis, largest_of
from .base import STUDIES, Clock, Progress, Study
from .orbit import factors, kernel
from .realisation import forward_mode
from .shooting import SHOOTS, shots

_BOUND = 1e-8
_CLEARLY = 0.75  # of the pairs of runs on the same entries
_ZEROS = 1.0  # the error of zeros in place of the entries that are not seen


@dataclass(frozen=True, eq=False)
class _Completed:
    """Where one completion ended: `unseen` is NaN, and `time` 0, where the loss has not fallen to what ends it.

    squared : unseen² by a second route, the square of all errors less twice the loss.
    all_squared : the square of all errors, in its unit.
    """

    unseen: float
    squared: float
    all_squared: float
    effective_rank: float
    loss: float
    time: float
    status: str


def run(
    clock: Clock,
    *,
    dimension: Annotated[Dimension, at_least(2)] = 20,
    rank: int = 2,
    start: float = 1e-3,
    depths: Depths = (2, 3, 4),
    observations: Sequence[int] = (100, 140, 180, 240),
    matrices: Members = 5,
    fall: float = 1e-4,
    draws: Annotated[Members, at_least(1)] = 40,
    drawn_dimension: Annotated[Dimension, at_least(2)] = 6,
    drawn_entries: Count = 20,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Reconstruction error and effective rank of deep factorisations of a low-rank matrix, by entries that are seen.

    Balanced networks of N layers whose product starts small follow a closed flow of z, which is run until the loss on
    the entries that are seen has fallen; infinite depth is its limit. All depths get the same matrices and entries, so
    that they are compared pair by pair.

    Infinite depth is also run on small matrices u vᵀ and −u vᵀ: where its norm shoots up, it is run once more from the
    rotation that leads v to u in place of the identity.

    Parameters
    ----------
    clock : Clock
        Its last time bounds the runs.
    dimension : int
        n of the n × n matrix; the paper takes 100.
    rank : int
        Of the matrix; the paper takes 5.
    start : float
        z₀ is the identity times this part of the Frobenius norm n of the matrix. From small starts infinite depth now
        and then lets one mode shoot up in the entries that are not seen, far beyond what the others say of it (a
        completion whose norms grow without bound: Razin, Cohen 2020, arXiv 2005.06398).
    depths : sequence of int
        N, increasing; the first is what the others are compared with.
    observations : sequence of int
        Numbers of entries that are seen, fewer than all.
    matrices : int
        Drawn matrices, each with an order of its entries.
    fall : float
        At which part of its first value the loss ends a run.
    draws : int
        Small matrices of rank 1, of either sign, of which it is counted how many shoot.
    drawn_dimension : int
        Their n.
    drawn_entries : int
        Number of their entries that are seen, fewer than all.
    seed : int
        Of the draws.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
    """
    n, number_of = count("study.dimension", dimension, least=2), count("study.matrices", matrices)
    small = count("study.drawn_dimension", drawn_dimension, least=2)
    few = count("study.drawn_entries", drawn_entries, most=small * small - 1)
    size, end = positive("study.start", start), positive("study.fall", fall)
    generator = seeded("study.seed", seed)
    r = count("study.rank", rank, most=n)
    for j, number in enumerate(observations):
        count(f"study.observations[{j}]", number, most=n * n - 1)
    z0 = size * n * torch.eye(n, dtype=torch.float64)
    cases = _cases(n, r, number_of, generator)
    say: Progress = progress or (lambda fraction, what: None)
    networks, runs = [*depths, 0], []
    for i, N in enumerate(networks):
        for j, number in enumerate(observations):
            say((i + j / len(observations)) / (len(networks) + 1), f"{N or 'infinite'} layers, {number} entries")
            for k, (target, order) in enumerate(cases):
                runs.append(_completed(clock, N, _seen(target, order, number), z0, end, f"{N}-{number}-{k}"))
    trained = min(1, len(depths) - 1)
    N, until = networks[trained], runs[trained * len(observations) * number_of].time
    square = _trained(N, _seen(*cases[0], observations[0]), z0, until, **clock.budgets())
    missed = largest_of([_missed(N, _seen(*cases[0], observations[0]), seed) for N in depths])
    dataset, drawn = _dataset(networks, observations, runs), _cases(small, 1, count("study.draws", draws), generator)

    def complete(case: int, sign: int, z0: Tensor, name: str) -> float:
        say((len(networks) + case / draws) / (len(networks) + 1), f"small matrix {case + 1} of {draws}")
        target, order = drawn[case]
        runs.append(_completed(clock, 0, _seen(sign * target, order, few), z0, end, name))
        return runs[-1].unseen

    dataset = dataset.merge(shots([target for target, _ in drawn], size * small, complete))
    title = f"Arora et al. 2019: completion of {n} × {n} matrices of rank {r}, z₀ = {size * n:g} I"
    status = next((run.status for run in reversed(runs) if run.status != "ok"), "ok")
    scaled_down = "" if n >= 100 else f"n = {n}, rank {r} in place of 100 and 5"
    return _finding(dataset, n * n, N, square, missed, title, status, scaled_down).attached(dataset)


def _cases(n: int, rank: int, number: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Matrices, each with an order of its entries in which they are seen."""
    drawn = []
    for _ in range(number):
        target = _matrix(n, rank, generator)
        # In single precision whatever the default is: another one would draw other entries.
        place = torch.rand(n * n, generator=generator, dtype=torch.float32, device="cpu")
        drawn.append((target, place.argsort()))
    return drawn


def _completed(clock: Clock, N: int, loss: Completion, z0: Tensor, fall: float, name: str) -> _Completed:
    """The end of the closed flow of N layers, run until the loss is `fall` times its first value."""
    flow, stop = IntrinsicFlow(loss, kernel(N)), {"loss": fall * float(loss(z0))}
    path = integrate(flow, z0, clock.times, **clock.options(name), stop=stop)
    hidden = torch.where(loss.mask, 0.0, path.z[-1] - loss.target)
    shares = torch.linalg.svdvals(path.z[-1])
    fallen = path.ending == "loss"
    every, size = (
        (float((z - loss.target).square().sum()), 2 * float(loss(z))) for z in (path.z[-1], torch.zeros_like(z0))
    )
    unit = size[0] - size[1]
    return _Completed(
        unseen=float(hidden.norm() / torch.where(loss.mask, 0.0, loss.target).norm()) if fallen else np.nan,
        squared=(every[0] - every[1]) / unit,
        all_squared=every[0] / unit,
        effective_rank=float(torch.exp(torch.special.entr(shares / shares.sum()).sum())),
        loss=float(path.loss[-1] / path.loss[0]),
        time=float(path.times[-1]) if fallen else 0.0,
        status="ok" if path.ending in ("ok", "loss") else path.status,
    )


def _dataset(networks: list[int], observations: Sequence[int], runs: list[_Completed]) -> xr.Dataset:
    dims, shape = ("network", "entries", "member"), (len(networks), len(observations), -1)
    said = {
        "unseen": "relative error of the unseen entries, NaN where the loss has not fallen",
        "effective_rank": "effective rank of z",
        "loss": "loss at the end, relative",
    }
    off = [0.0 if np.isnan(run.unseen) else abs(run.unseen**2 - run.squared) / run.all_squared for run in runs]
    return arranged(
        {name: (dims, np.reshape([getattr(run, name) for run in runs], shape), what) for name, what in said.items()}
        | {
            "unseen_off": (
                dims,
                np.reshape(off, shape),
                "distance of its square from all errors less the loss, 0 where it is not known",
            )
        },
        [
            axis("network", networks, "layers N; 0 is infinite depth"),
            axis("entries", list(observations), "entries that are seen"),
        ],
    )


def _finding(
    dataset: xr.Dataset,
    entries: int,
    trained: int,
    square: float,
    missed: float,
    title: str,
    status: str,
    scaled_down: str,
) -> Finding:
    """Of matrices with `entries`, whose network of `trained` layers is `square` away from its closed flow.

    The velocities of the closed flows are `missed` by those of factors.
    """
    unseen, (first, *deeper) = dataset.unseen.values, dataset.network.values.tolist()
    pairs = np.where(np.isnan(unseen[1:] + unseen[0]), np.nan, unseen[1:] < unseen[0])
    better = dict(zip(deeper, pairs.mean((1, 2)).tolist(), strict=True))
    straight, turned = dataset.shot_straight.values, dataset.shot_turned.values
    turned = turned[~(straight <= SHOOTS) | np.isfinite(turned)]
    by_sign, worst = (straight > SHOOTS).sum(0).tolist(), float(np.max(turned)) if len(turned) else np.nan
    known = int(np.isfinite(straight).sum())
    shooting = sum(by_sign) if known else np.nan
    return Finding(
        study="deep_completion",
        problem=title,
        status=status,
        verdict=" ".join(
            [
                *_compared(dataset, entries, better, f"{trained} trained factors", square),
                *_shot(straight, by_sign, worst),
                *_not_known(np.isnan(unseen), np.isnan(straight)),
            ]
        ),
        claim=Claim(
            f"deeper factorisations complete a low-rank matrix from fewer entries than "
            f"{'two layers' if first == 2 else _name(first)} do",
            measured={_name(N): share for N, share in better.items()},
            published="deeper is better at few entries",
            figure="F6",
        ),
        checks=(
            Check(
                f"{trained} trained factors against their closed flow, relative",
                square,
                _BOUND,
                "sup over t, Frobenius norm",
            ),
            Check(
                "velocity of z by balanced factors against that of the closed flow",
                missed,
                _BOUND,
                "relative, largest over N, at one z",
            ),
            *(
                Check(
                    f"{_name(N)} against {first} on the same entries",
                    share,
                    _CLEARLY,
                    "part of the pairs in which they are better",
                    least=True,
                )
                for N, share in better.items()
                if N or not deeper[:-1]
            ),
            Check(
                "square of the unseen errors from that of all errors less the loss",
                largest_of(dataset.unseen_off),
                _BOUND,
                "over that of all errors",
            ),
            Check("errors from a turned start, where the straight one shoots up", worst, _ZEROS, "the largest"),
            Check("small matrices on which infinite depth shoots up, a control", shooting, 1, least=True),
        ),
        numbers={
            "reference_error": square,
            "scaled_down": scaled_down,
            "shooting": {"matrices": known, "overlap <= 0": by_sign[0], "overlap > 0": by_sign[1]},
        },
    )


def _compared(
    dataset: xr.Dataset, entries: int, better: dict[int, float], trained: str, square: float
) -> Iterator[str]:
    """What is known of networks on the same entries, and of layers that are trained themselves."""
    unseen, names = dataset.unseen.values, [_name(N) for N in dataset.network.values.tolist()]
    middle, told = np.median(unseen, axis=-1), []
    ahead = middle[0] - middle[1:].min(axis=0)
    if shares := [f"{share:.0%} ({_name(N)})" for N, share in better.items() if np.isfinite(share)]:
        told.append(
            f"On the same entries of the same matrices deeper is better than {names[0]} in {', '.join(shares)} of "
            f"{unseen[0].size} pairs"
        )
    if np.isfinite(ahead).any():
        few = int(np.nanargmax(ahead))
        errors = ", ".join(f"{error:.2g} ({name})" for name, error in zip(names, middle[:, few], strict=True))
        told.append(
            f"with {int(dataset.entries[few])} of {entries} entries the median errors on the others are {errors}, the "
            f"largest of all at infinite depth {np.nanmax(unseen[-1]):.2g}"
        )
    if np.isfinite(square):
        told.append(f"{trained} follow their closed flow to {square:.1e}")
    if told:
        yield f"{sentence('; '.join(told))}."


def _shot(straight: np.ndarray, by_sign: list[int], worst: float) -> Iterator[str]:
    """What is known of small matrices."""
    known = straight[np.isfinite(straight)]
    if len(known):
        turned = f"; from a start that is turned towards them their errors are at most {worst:.2g}"
        yield (
            f"Of {len(known)} small matrices u vᵀ infinite depth shoots up in {sum(by_sign)}, {by_sign[0]} with "
            f"⟨u, v⟩ ≤ 0 and {by_sign[1]} with ⟨u, v⟩ > 0, up to an error of {known.max():.2g}"
            f"{turned if np.isfinite(worst) else ''}."
        )


def _not_known(completions: np.ndarray, small: np.ndarray) -> Iterator[str]:
    """How many runs are left out of what is said."""
    if completions.any() or small.any():
        yield (
            f"{completions.sum()} of {completions.size} completions and {small.sum()} of {small.size} small ones ended "
            "before their loss had fallen, and what they miss is not known."
        )


def _name(N: int) -> str:
    return f"{N} layers" if N else "infinite depth"


def _seen(target: Tensor, order: Tensor, number: int) -> Completion:
    """The loss on the first `number` entries in an order."""
    mask = torch.zeros(target.numel(), dtype=torch.bool)
    mask[order[:number]] = True
    return Completion(target, mask.reshape(target.shape))


def _matrix(n: int, rank: int, generator: torch.Generator) -> Tensor:
    left, right = (torch.randn(n, rank, generator=generator, dtype=torch.float64, device="cpu") for _ in range(2))
    product = left @ right.mT
    return n * product / product.norm()


def _trained(N: int, loss: Completion, z0: Tensor, end: float, **budgets: Any) -> float:
    """The relative distance of N trained factors from their closed flow, up to a time of the closed flow."""
    if end == 0.0:  # which has not come to its end
        return np.nan
    n, times = len(z0), torch.linspace(0, end, 7, dtype=torch.float64)
    theta = z0.diagonal().pow(1 / N).diag().flatten().repeat(N)
    network = integrate(
        FactorizationFlow(phi_of([n] * (N + 1)), loss), theta, times / N, "DOP853", 1e-11, 1e-13, **budgets
    )
    closed = integrate(IntrinsicFlow(loss, kernel(N)), z0, times, "DOP853", 1e-11, 1e-13, **budgets)
    if not (network.ending == closed.ending == "ok"):
        return np.nan
    return float(torch.linalg.matrix_norm(network.z - closed.z).max() / torch.linalg.matrix_norm(closed.z).max())


def _missed(N: int, loss: Completion, seed: int) -> float:
    """The relative distance of the velocity of z by N balanced factors from the closed one, at a random z."""
    generator = torch.Generator().manual_seed(seed)
    n = len(loss.target)
    z = torch.randn(n, n, generator=generator, dtype=torch.float64, device="cpu")
    flow, theta = FactorizationFlow(phi_of([n] * (N + 1)), loss), factors(z, N, generator).flatten()
    with forward_mode():
        moved = torch.func.jvp(flow.product, (theta,), (flow.velocity(theta),))[1] / N
    closed = IntrinsicFlow(loss, kernel(N)).velocity(z)
    return float(torch.linalg.matrix_norm(moved - closed) / torch.linalg.matrix_norm(closed))


STUDIES.register("deep_completion")(
    Study(
        run,
        question="How many entries of a low-rank matrix must be seen for a factorisation of N layers to complete it, "
        "and what does infinite depth do?",
    )
)
