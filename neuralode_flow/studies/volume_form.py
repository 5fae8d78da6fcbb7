"""Cohen, Menon, Veraszto 2023: matrix completion at infinite depth; the volume form and the entropy along it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count, positive, seeded
from ..finding import Check, Claim, Finding
from ..flows.intrinsic import IntrinsicFlow
from ..kernels import LogMean
from ..losses import Completion
from ..matrices import matrix_exp
from ..orders import Order, observed_order, said_one
from ..signatures import Depths, Dimension, Seed, at_least
from ..time.integrate import integrate
from ..time.trajectory import Trajectory
from .axes import arranged, axis, depth, time
from .base import STUDIES, Clock, Progress, Study
from .orbit import entropy, factors, geometric, log_volume

_BOUND = 1e-10

# Layers of the networks whose orbits are measured, and by how much their first layer grows and their last one shrinks
# in the control.
_FACTORS, _UNBALANCED = (2, 4), 2.0

# Round-off of an entropy; how far an order may be from its own; how far a control must be.
_ROUND_OFF, _ORDER, _FAR = 1e-12, 0.05, 0.1

_MOVED = 0.1  # how far z must move for a trajectory, as a part of its start

# Gauss–Legendre nodes for the integral of the metric: exact to round-off for singular values within a factor of 1e6.
_NODES = 40

_LONG_NAMES = {
    "moved": "how far z is from its start, over the size of that",
    "velocity_missed": "distance of the velocity of z from −g⁻¹∇f, over the largest velocity",
    "entropy_gap": "distance of the entropy from that of infinite depth, sup over time",
    "entropy_rest": "the same without the part of order 1 in 1/N",
    "entropy_other": "the same from the entropy of the geometric mean",
}


def run(
    clock: Clock,
    *,
    dimension: Annotated[Dimension, at_least(2)] = 6,
    rank: int = 2,
    observed: float = 0.6,
    start: float = 0.1,
    depths: Depths = (2, 4, 8, 16, 32, 64, 128, 256),
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Completion of a matrix of low rank by the infinite-depth flow, from a random z₀ of the size `start`.

    g is the metric of the flow, ż = −g⁻¹∇f. Its volume √det g, assembled without a singular value decomposition, times
    the Jacobian Π_{i<j} |σ_i² − σ_j²| of that decomposition, is Π σ_i⁻¹ Π_{i<j} |log σ_i² − log σ_j²|.

    The entropy of N balanced layers is the logarithm of the volume of all of them that have the product z. Up to a
    constant it is ½ Σ_{i<j} log K_ij with their kernel K, and tends to that of the kernel of infinite depth.

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
    depths : sequence of int
        N, increasing: whose entropies are compared with that of infinite depth.
    seed : int
        Of target, mask, z₀ and the frames between layers.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
    """
    d, generator = (
        count("study.dimension", dimension, least=2),
        seeded("study.seed", seed),
    )
    target, mask = _problem(d, count("study.rank", rank, most=d), positive("study.observed", observed), generator)
    noise = torch.randn(d, d, generator=generator, dtype=torch.float64, device="cpu")
    z0 = positive("study.start", start) * matrix_exp(noise / (2 * math.sqrt(d)))
    if progress is not None:
        progress(0.0, "infinite depth")
    flow = IntrinsicFlow(Completion(target, mask), LogMean())
    path = integrate(flow, z0, clock.times, **clock.options("limit"))
    dataset = _dataset(path, target, mask, depths, _orbits(path.z[[0, -1]], generator), _missed(flow, path.z))
    title = f"Cohen, Menon, Veraszto 2023: a {d} × {d} matrix of rank {rank} completed, {observed:.0%} seen"
    return _finding(dataset, title, path.status).attached(dataset)


def _orbits(ends: Tensor, generator: torch.Generator) -> Tensor:
    """Entropies of the orbits through networks whose product is one of `ends`, from their tangent vectors.

    At balanced layers, and where the first and the last one are not: (2, networks, ends).
    """
    d, found = ends.shape[-1], ends.new_zeros(2, len(_FACTORS), len(ends))
    for i, N in enumerate(_FACTORS):
        for j, z in enumerate(ends):
            layers = factors(z, N, generator)
            found[0, i, j] = log_volume(layers)
            layers[0], layers[-1] = layers[0] * _UNBALANCED, layers[-1] / _UNBALANCED
            found[1, i, j] = log_volume(layers)
        found[:, i] -= d * (d - 1) / 4 * math.log(N)
    return found


def _missed(flow: IntrinsicFlow, z: Tensor) -> Tensor:
    """How far dz/dt is from −g⁻¹∇f at each z `(T, d, d)`, over the largest of all: NaN where nothing moves."""
    gradients = flow.loss.gradient(z)
    expected = -torch.stack([
        (_inverse_metric(at) @ slope.flatten()).reshape(at.shape) for at, slope in zip(z, gradients, strict=True)
    ])  # fmt: skip
    gap = torch.linalg.matrix_norm(flow.velocity(z) - expected)
    return gap / torch.linalg.matrix_norm(expected).max()


def _dataset(
    path: Trajectory, target: Tensor, mask: Tensor, depths: Sequence[int], orbits: Tensor, missed: Tensor
) -> xr.Dataset:
    sigma = torch.linalg.svdvals(path.z)
    energy = sigma / sigma.sum(-1, keepdim=True)
    hidden = torch.where(mask, 0.0, path.z - target)
    unseen = torch.linalg.matrix_norm(hidden) / torch.linalg.matrix_norm(torch.where(mask, 0.0, target))
    formula = torch.stack([_log_volume(values) for values in sigma])
    numeric = torch.stack([_log_volume_of_metric(z) for z in path.z])
    networks = [*depths, 0]
    entropies = torch.stack([entropy(sigma, N) for N in networks])
    ends = torch.stack([entropy(sigma[[0, -1]], N) for N in _FACTORS])
    return arranged(
        {
            "singular_values": (("time", "mode"), sigma, "singular values of z"),
            "log_volume": ("time", formula, "log volume form, by its formula"),
            "log_volume_metric": ("time", numeric, "log volume form, from the metric"),
            "velocity_missed": ("time", missed),
            "moved": ("time", torch.linalg.matrix_norm(path.z - path.z[0]) / torch.linalg.matrix_norm(path.z[0])),
            "effective_rank": ("time", torch.exp(torch.special.entr(energy).sum(-1)), "effective rank"),
            "loss": ("time", path.loss, "loss on the entries that are seen"),
            "unseen": ("time", unseen, "relative error of the entries that are not seen"),
            "entropy": (("network", "time"), entropies, "entropy, by its formula"),
            "entropy_orbit": (("balance", "factors", "end"), orbits, "entropy, from the tangent vectors of the orbit"),
            "entropy_formula": (("factors", "end"), ends, "the same, by its formula"),
            **_gaps(sigma, depths),
        },
        [
            time(path.times),
            axis("network", networks, "layers N; 0 is infinite depth"),
            axis("balance", ["balanced", "unbalanced"], "whether the layers are balanced"),
            axis("factors", list(_FACTORS), "layers N"),
            axis("end", path.times[[0, -1]], "training time t"),
            depth(depths, "layers N"),
        ],
        _LONG_NAMES,
    )


def _gaps(sigma: Tensor, depths: Sequence[int]) -> dict[str, Any]:
    """How far entropies of networks are from others, sup over time, at singular values `(time, d)`.

    From that of infinite depth; the same without their part of order 1, −(d − 1) log det z / 2N; and, without it as
    well, from that of another mean.
    """
    finite, layers = torch.stack([entropy(sigma, N) for N in depths]), torch.tensor(depths).to(sigma)[:, None]
    limit, other = entropy(sigma, 0), geometric(sigma)
    corrected = finite + other / layers
    gaps = {"entropy_gap": finite - limit, "entropy_rest": corrected - limit, "entropy_other": corrected - other}
    return {name: ("depth", gap.abs().amax(-1)) for name, gap in gaps.items()}


def _orders(dataset: xr.Dataset) -> list[Order]:
    """In 1/N, of the distances from infinite depth."""
    said = {"entropy_gap": ("entropy of N layers", 1.0), "entropy_rest": ("entropy without its part of order 1", 2.0)}
    return [
        observed_order(dataset["depth"].values, dataset[name].values, _ROUND_OFF)._replace(rule=rule, expected=expected)
        for name, (rule, expected) in said.items()
    ]


def _finding(dataset: xr.Dataset, title: str, status: str) -> Finding:
    error = float(abs(dataset.log_volume - dataset.log_volume_metric).values.max())  # NaN stays
    orbits = abs(dataset.entropy_orbit - dataset.entropy_formula).values
    last, orders = dataset.isel(time=-1), _orders(dataset)
    missed = float(last.unseen)
    unseen = "" if np.isnan(missed) else f" and an error of {missed:.2g} on the entries that are not seen"
    along = "along the whole trajectory" if status == "ok" else "as far as the trajectory goes"
    moved = float(dataset.moved.values.max())
    if not moved >= _MOVED:
        along = f"where z begins, and it moves by {moved:.1e} of its size only"
    return Finding(
        study="volume_form",
        problem=title,
        status=status,
        verdict=f"The volume form of the metric is its formula to {error:.1e} {along}; the loss "
        f"falls to {float(last.loss):.1e}, with an effective rank of {float(last.effective_rank):.2f}{unseen}. "
        f"The entropy of the gauge orbit is its formula to "
        f"{orbits[0].max():.1e}; it tends to ½ Σ log K_ij of infinite depth at {said_one(orders[0])} in 1/N, and "
        f"without −(d − 1) log det z / 2N at {said_one(orders[1])}.",
        claim=Claim(
            "√det g times the Jacobian of the singular values is Π σ_i⁻¹ Π |log σ_i² − log σ_j²|",
            measured=error,
            published="identity",
            figure="F7",
        ),
        checks=(
            Check("logarithm of the volume form, from the metric against the formula", error, _BOUND, "sup over t"),
            Check(
                "entropy, from the tangent vectors of the orbit against the formula",
                float(orbits[0].max()),
                _BOUND,
                f"largest over {', '.join(map(str, _FACTORS))} layers, first and last z",
            ),
            Check(
                "velocity of z from −g⁻¹∇f", float(dataset.velocity_missed.values.max()), _BOUND, "relative, sup over t"
            ),
            Check("how far z moves", moved, _MOVED, "over the size of its start, sup over t", least=True),
            *(
                Check(
                    f"order in 1/N, {order.rule}, off {order.expected:g}",
                    abs(order.value - order.expected),
                    _ORDER,
                )
                for order in orders
            ),
            Check(
                "entropy of layers that are not balanced against the formula, a control",
                float(orbits[1].min()),
                _FAR,
                "the least",
                least=True,
            ),
            Check(
                "entropy of the deepest network, distance from the geometric mean over that from its limit, a control",
                float(dataset.entropy_other[-1] / dataset.entropy_rest[-1]),
                1 / _FAR,
                "sup over t of both, without the part of order 1",
                least=True,
            ),
        ),
        orders=tuple(orders),
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
    """½ log det g + Σ_{i<j} log |σ_i² − σ_j²|."""
    squares = torch.linalg.eigh(z @ z.mT).eigenvalues
    i, j = torch.triu_indices(len(z), len(z), offset=1)
    logs = torch.log((squares[i] - squares[j]).abs())
    return -torch.linalg.slogdet(_inverse_metric(z)).logabsdet / 2 + logs.sum()


def _inverse_metric(z: Tensor) -> Tensor:
    """g⁻¹ = ∫₀¹ (zzᵀ)^{1−s} ⊗ (zᵀz)^s ds by quadrature, `(d², d²)`, on the rows of a matrix one after the other."""
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
    return inverse


STUDIES.register("volume_form")(
    Study(
        run,
        question="How does the infinite-depth flow complete a matrix, and what is its volume form along the way?",
    )
)
