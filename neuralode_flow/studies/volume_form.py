"""Cohen, Menon, Veraszto 2023: matrix completion at infinite depth, and the volume form along it."""

from __future__ import annotations

import math

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count, positive
from ..finding import Check, Claim, Finding
from ..flows.intrinsic import IntrinsicFlow
from ..kernels import LogMean
from ..losses import Completion
from ..signatures import Dimension, Seed
from ..time.integrate import integrate
from ..time.trajectory import Trajectory
from .axes import arranged, time
from .base import STUDIES, Clock, Progress, Study

_BOUND = 1e-10

# Gauss–Legendre nodes for the integral of the metric: exact to round-off for singular values within a factor of 1e6.
_NODES = 40


def run(
    clock: Clock,
    *,
    dimension: Dimension = 6,
    rank: int = 2,
    observed: float = 0.6,
    start: float = 0.1,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Completion of a matrix of low rank by the infinite-depth flow, from a random z₀ of the size `start`.

    g is the metric of the flow, ż = −g⁻¹∇f. Its volume √det g, assembled without a singular value decomposition, times
    the Jacobian Π_{i<j} |σ_i² − σ_j²| of that decomposition, is Π σ_i⁻¹ Π_{i<j} |log σ_i² − log σ_j²|.

    Parameters
    ----------
    clock : Clock
    dimension : int
        d.
    rank : int
        Of the target.
    observed : float
        Part of the entries that is seen, in (0, 1].
    start : float
        Size of z₀, above 0.
    seed : int
        Of target, mask and z₀.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
    """
    d, generator = (
        count("study.dimension", dimension),
        torch.Generator().manual_seed(count("study.seed", seed, least=0)),
    )
    target, mask = _problem(d, count("study.rank", rank, most=d), positive("study.observed", observed), generator)
    noise = torch.randn(d, d, generator=generator, dtype=torch.float64, device="cpu")
    z0 = positive("study.start", start) * torch.linalg.matrix_exp(noise / (2 * math.sqrt(d)))
    if progress is not None:
        progress(0.0, "infinite depth")
    flow = IntrinsicFlow(Completion(target, mask), LogMean())
    path = integrate(flow, z0, clock.times, **clock.options("limit"))
    dataset = _dataset(path, target, mask)
    title = f"Cohen, Menon, Veraszto 2023: a {d} × {d} matrix of rank {rank} completed, {observed:.0%} seen"
    return _finding(dataset, title, path.status).attached(dataset)


def _dataset(path: Trajectory, target: Tensor, mask: Tensor) -> xr.Dataset:
    sigma = torch.linalg.svdvals(path.z)
    energy = sigma / sigma.sum(-1, keepdim=True)
    hidden = torch.where(mask, 0.0, path.z - target)
    unseen = torch.linalg.matrix_norm(hidden) / torch.linalg.matrix_norm(torch.where(mask, 0.0, target))
    formula = torch.stack([_log_volume(values) for values in sigma])
    numeric = torch.stack([_log_volume_of_metric(z) for z in path.z])
    return arranged(
        {
            "singular_values": (("time", "mode"), sigma, "singular values of z"),
            "log_volume": ("time", formula, "log volume form, by its formula"),
            "log_volume_metric": ("time", numeric, "log volume form, from the metric"),
            "effective_rank": ("time", torch.exp(torch.special.entr(energy).sum(-1)), "effective rank"),
            "loss": ("time", path.loss, "loss on the entries that are seen"),
            "unseen": ("time", unseen, "relative error of the entries that are not seen"),
        },
        [time(path.times)],
    )


def _finding(dataset: xr.Dataset, title: str, status: str) -> Finding:
    error = float(abs(dataset.log_volume - dataset.log_volume_metric).values.max())  # NaN stays
    last = dataset.isel(time=-1)
    return Finding(
        study="volume_form",
        problem=title,
        status=status,
        verdict=f"The volume form of the metric is its formula to {error:.1e} along the whole trajectory; the loss "
        f"falls to {float(last.loss):.1e}, with an effective rank of {float(last.effective_rank):.2f} and an error of "
        f"{float(last.unseen):.2g} on the entries that are not seen.",
        claim=Claim(
            "√det g times the Jacobian of the singular values is Π σ_i⁻¹ Π |log σ_i² − log σ_j²|",
            measured=error,
            published="identity",
            figure="F7",
        ),
        checks=(
            Check("logarithm of the volume form, from the metric against the formula", error, _BOUND, "sup over t"),
        ),
    )


def _problem(d: int, rank: int, observed: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    left, right = (torch.randn(d, rank, generator=generator, dtype=torch.float64, device="cpu") for _ in range(2))
    mask = torch.rand(d, d, generator=generator, dtype=torch.float64, device="cpu") < observed
    mask[0, 0] = True
    return left @ right.mT / math.sqrt(rank), mask


def _log_volume(sigma: Tensor) -> Tensor:
    logs = torch.log(sigma.square())
    i, j = torch.triu_indices(len(sigma), len(sigma), offset=1)
    return torch.log((logs[i] - logs[j]).abs()).sum() - torch.log(sigma).sum()


def _log_volume_of_metric(z: Tensor) -> Tensor:
    """½ log det g + Σ_{i<j} log |σ_i² − σ_j²|, g⁻¹ = ∫₀¹ (zzᵀ)^{1−s} ⊗ (zᵀz)^s ds by quadrature."""
    nodes, weights = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(_NODES))
    left, right = (torch.linalg.eigh(gram) for gram in (z @ z.mT, z.mT @ z))

    def power(gram: tuple[Tensor, Tensor], s: float) -> Tensor:
        rates, basis = gram
        return basis * rates.clamp(min=1e-300) ** s @ basis.mT

    inverse = sum(
        w / 2 * torch.kron(power(left, 1 - s), power(right, s))
        for s, w in zip(((nodes + 1) / 2).tolist(), weights.tolist(), strict=True)
    )
    assert isinstance(inverse, Tensor)
    squares = left[0]
    i, j = torch.triu_indices(len(z), len(z), offset=1)
    return -torch.linalg.slogdet(inverse).logabsdet / 2 + torch.log((squares[i] - squares[j]).abs()).sum()


STUDIES.register("volume_form")(
    Study(
        run,
        question="How does the infinite-depth flow complete a matrix, and what is its volume form along the way?",
    )
)
