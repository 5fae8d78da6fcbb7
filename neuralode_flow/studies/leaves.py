"""Which two linear layers close on z = UVᵀ: a search for points where criterion B holds, and does after training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..finding import Check, Claim, Finding
from ..flows.factorization import FactorizationFlow
from ..intrinsic.report import report
from ..intrinsic.systems.linear_network import laws_of, phi_of
from ..losses import Quadratic
from ..matrices import matrix_exp, normal
from ..signatures import Count, Positive, Seed, at_least, at_most
from ..time.integrate import integrate
from .axes import arranged, axis, largest_of, least_of
from .base import STUDIES, Progress, Study, whole
from .leafsearch import (
    DROPPED,
    KINDS,
    NOT_REACHED,
    OTHER,
    TWO,
    ZERO,
    Leaves,
    TwoLayers,
    closed_metric,
    leaves,
    reached,
    unit,
)

CHAIN = (1, 2, 2, 1)
_BISECTIONS = 60
_PUSHED = 0.01  # of ‖θ‖
# What training and the closed formula may leave of a zero, and what a control must have at least: ten times as much.
_CLOSED, _FAR = 1e-8, 1e-7
# Growth of θ from which on its law, a difference of squares, has no digit left.
_LOST = torch.finfo(torch.float64).eps ** -0.5
_ACCURACY: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-13}

LONG_NAMES = {
    "number": "starts that end at a leaf of this kind",
    "outputs": "n, rows of U",
    "inputs": "m, rows of V",
    "width": "r, columns of U and V",
    "start_change": "‖∂M‖/‖θ‖ on the kernel at the random start",
    "change": "‖∂M‖/‖θ‖ on the kernel where the search ends",
    "trained_change": "‖∂M‖/‖θ‖ on the kernel after training, the largest of all losses",
    "moved": "how far training moves θ, over ‖θ‖",
    "pushed_change": "‖∂M‖/‖θ‖ on the kernel one percent off, where not every point is a zero (control)",
    "metric_error": "error of M from z and the law alone after training, over ‖M‖",
    "chain_change": "criterion B of 1-2-2-1 at its zeros, relative (control)",
    "chain_trained": "the same after training (control)",
}

Largest = Annotated[int, at_least(2), at_most(4)]  # with n = m = 1 every point is a zero
Starts = Annotated[int, at_least(5)]  # some of which end at a leaf of two eigenvalues


def run(
    *,
    largest: Largest = 3,
    starts: Starts = 200,
    losses: Count = 3,
    horizon: Positive = 0.3,
    zeros: Count = 8,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Searches two linear layers for points where ∂M = 0 on the common kernel of ∂φ and ∂h, trains and classifies them.

    Parameters
    ----------
    largest : int
        n ≥ m up to this, of every width from 1 to n + m + 1; n < m is the transposed network.
    starts : int
        Random starts of each search.
    losses : int
        Random linear losses, along whose flows, one after another, a zero must stay one.
    horizon : float
        How long each of these flows is; the slopes of the losses are standard normal.
    zeros : int
        Of the network 1-2-2-1, a control: criterion B holds there, and not after training.
    seed : int
        Of all that is random.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        `number` over case and kind; the sizes of ∂M over case and start.

    Raises
    ------
    ValueError
        If the flows are so long that float64 keeps nothing of the law.
    RuntimeError
        If a flow does not reach its end.
    """
    say: Callable[[float, str], None] = progress or (lambda fraction, what: None)
    generator = torch.Generator().manual_seed(seed)
    sizes = [(n, m) for n in range(1, largest + 1) for m in range(1, n + 1)]
    networks = [TwoLayers(n, m, r) for n, m in sizes for r in range(1, n + m + 2)]
    cases = []
    for i, network in enumerate(networks):
        say(i / (len(networks) + 1), f"leaves of {'-'.join(map(str, network.widths))}")
        cases.append(_case(network, starts, losses, horizon, generator))
    say(len(networks) / (len(networks) + 1), "zeros of 1-2-2-1")
    chain = _chain(zeros, generator)
    variables: dict[str, Any] = {
        "number": (("case", "kind"), [np.bincount(case.kind, minlength=len(KINDS)) for case in cases]),
        "kind_of_start": (("case", "start"), [case.kind for case in cases], "kind, counted from 0"),
        "disagreeing": ("case", [case.disagreeing for case in cases], "leaves of which criterion B says otherwise"),
    }
    variables |= {name: ("case", [getattr(one, name) for one in networks]) for name in ("outputs", "inputs", "width")}
    variables |= {name: (("case", "start"), [case.sizes[name] for case in cases]) for name in cases[0].sizes}
    variables |= {name: ("zero", values) for name, values in chain.items()}
    axes = [
        axis("case", ["-".join(map(str, network.widths)) for network in networks], "widths m-r-n"),
        axis("kind", list(KINDS), "kind of leaf"),
        axis("start", np.arange(starts), "start"),
        axis("zero", np.arange(zeros), "zero of 1-2-2-1"),
    ]
    dataset = arranged(variables, axes, LONG_NAMES)
    return _finding(dataset, f"n, m up to {largest}, {starts} starts of each width").attached(dataset)


class _Case(NamedTuple):
    """What was found of one network: a kind for each start, sizes by name, how often criterion B says otherwise."""

    kind: np.ndarray
    sizes: dict[str, np.ndarray]
    disagreeing: int


def _case(network: TwoLayers, starts: int, losses: int, horizon: float, generator: torch.Generator) -> _Case:
    start = normal(generator, starts, network.dimension)
    theta, rank = reached(network, start)
    begun, change = network.change(start), network.change(theta)
    trained = _trained(network, theta, losses, horizon, generator)
    after = torch.stack([network.change(one) for one in trained]).amax(0)
    known = leaves(network, theta, rank)
    kind = torch.where(after <= _CLOSED, known.kind, DROPPED)
    kind = torch.where(change <= ZERO, kind, NOT_REACHED)
    pushed = network.change(theta + _PUSHED * unit(normal(generator, *theta.shape)))
    found = {
        "start_change": begun,
        "change": change,
        "trained_change": after,
        "moved": (trained[-1] - theta).norm(dim=-1) / theta.norm(dim=-1),
        "pushed_change": torch.where((begun > ZERO).any() & (change <= ZERO), pushed, torch.nan),
        "metric_error": torch.stack([_metric_error(network, known, one, generator) for one in trained]).amax(0),
    }
    kinds = kind.cpu().numpy()
    found_sizes = {name: values.cpu().numpy() for name, values in found.items()}
    some = [int((kinds == one).argmax()) for one in np.unique(kinds) if one > DROPPED]
    return _Case(kinds, found_sizes, _disagreeing(network, trained[0][some]))


def _trained(network: TwoLayers, theta: Tensor, losses: int, horizon: float, generator: torch.Generator) -> Tensor:
    """θ (losses, b, N) along the flows of random linear losses, one after another, each point with its own.

    For f = ⟨G, z⟩ the flow is Q' = −[[0, G], [Gᵀ, 0]] Q, linear: it has no error in time.
    """
    n, m = network.outputs, network.inputs
    Q, passed = network.stacked(theta), []
    for _ in range(losses):
        G = normal(generator, len(theta), n, m)
        top = torch.cat((G.new_zeros(len(theta), n, n), G), dim=-1)
        bottom = torch.cat((G.mT, G.new_zeros(len(theta), m, m)), dim=-1)
        Q = matrix_exp(-horizon * torch.cat((top, bottom), dim=-2)) @ Q
        passed.append(network.flat(Q))
    grown = float((passed[-1].norm(dim=-1) / theta.norm(dim=-1)).max())
    if not grown < _LOST:
        far = f"to {grown:.2g} times its size" if math.isfinite(grown) else "beyond the range of numbers"
        raise ValueError(
            f"study.horizon={horizon:g} and study.losses={losses}: θ grows {far}, where nothing is left of its law in "
            "float64; take a shorter horizon or fewer losses"
        )
    return torch.stack(passed)


def _metric_error(network: TwoLayers, known: Leaves, theta: Tensor, generator: torch.Generator) -> Tensor:
    """How far M G is from what z and the law say of it, over ‖M G‖, for one random G of each point."""
    z = phi_of(network.widths)(theta)
    G = normal(generator, *z.shape)
    M = network.training_metric(theta, G)
    return torch.linalg.matrix_norm(closed_metric(known, z, G) - M) / torch.linalg.matrix_norm(M)


def _disagreeing(network: TwoLayers, theta: Tensor) -> int:
    """How many of the points θ (b, N) do not satisfy criterion B as the library has it for any φ."""
    phi, laws = phi_of(network.widths), laws_of(network.widths)
    return sum(report(phi, one, laws).metric is not True for one in theta)


def _chain(zeros: int, generator: torch.Generator) -> dict[str, np.ndarray]:
    """Criterion B of 1-2-2-1 at points where it holds, and after training from there.

    ∂φ and ∂h have 7 rows there, θ has 8 entries, and M is one number: criterion B holds where det [∂φ; ∂h; ∂M] = 0.
    This is of degree 11 in θ, so that it changes its sign on each half circle from a point to its opposite.
    """
    phi, laws = phi_of(CHAIN), laws_of(CHAIN)

    def jacobian(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return torch.func.jacrev(lambda theta: function(theta).reshape(-1))

    def metric(theta: Tensor) -> Tensor:
        return jacobian(phi)(theta).square().sum()

    def determinant(theta: Tensor) -> Tensor:
        return torch.linalg.det(torch.cat([jacobian(function)(theta) for function in (phi, laws, metric)]))

    first, second = normal(generator, 2, zeros, 8)
    low, high = first.new_zeros(zeros), first.new_full((zeros,), torch.pi)

    def at(angle: Tensor) -> Tensor:
        return first * angle.cos()[:, None] + second * angle.sin()[:, None]

    signs = torch.func.vmap(determinant)
    begun = signs(first).sign()
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        same = signs(at(middle)).sign() == begun
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    theta = at(low)
    flow = FactorizationFlow(phi, Quadratic(normal(generator, zeros, 1, 1)))
    path = integrate(flow, theta, [0.0, 1.0], "DOP853", **_ACCURACY)
    trained = whole(path, "training of 1-2-2-1").state
    relative = [[report(phi, one, laws).metric_relative for one in points] for points in (theta, trained)]
    return {"chain_change": np.array(relative[0]), "chain_trained": np.array(relative[1])}


def _finding(dataset: xr.Dataset, title: str) -> Finding:
    total = dataset.number.sum("case")
    numbers = {str(kind): int(total.sel(kind=kind)) for kind in KINDS}
    checks = _checks(dataset)
    said = ", ".join(f"{number} {kind}" for kind, number in numbers.items())
    return Finding(
        study="leaves",
        problem=f"Two linear layers that close on z = UVᵀ, {title}",
        status="ok",
        verdict=f"{int(total.sum())} searches: {said}. After training, M is that of z and the law alone to "
        f"{checks[3].error:.1e}. Of 1-2-2-1, {dataset.sizes['zero']} points at which criterion B holds "
        f"({largest_of(dataset.chain_change):.1e}) lose it in training (at least "
        f"{least_of(dataset.chain_trained):.1e}).",
        claim=Claim(
            "two linear layers along whose training criterion B holds are relaxed balanced, contain a narrower relaxed "
            "balanced network and nothing else, or have a law with one positive eigenvalue, n times, and one negative, "
            "m times",
            measured=numbers["other"],
            published=None,
        ),
        checks=checks,
        numbers={"kinds": numbers},
    )


def _checks(dataset: xr.Dataset) -> tuple[Check, ...]:
    wide = dataset.number.sel(kind=KINDS[TWO]).where(dataset.width >= dataset.outputs + dataset.inputs, drop=True)
    kept = dataset.kind_of_start > DROPPED
    pushed, moved = dataset.pushed_change.where(kept), dataset.moved.median("start", skipna=False)
    return (
        Check("leaves of another kind", float(dataset.number.sel(kind=KINDS[OTHER]).sum()), 0.0, "their number"),
        Check(
            "zeros of two layers that do not survive training",
            float(dataset.number.sel(kind=KINDS[DROPPED]).sum()),
            0.0,
            "their number",
        ),
        Check(
            "how far training moves θ",
            least_of(moved),
            _PUSHED,
            "over ‖θ‖, least of the medians of networks; one percent off a leaf is told from it",
            least=True,
        ),
        Check(
            "M from z and the law alone after training",
            float(np.max(dataset.metric_error.values[kept.values], initial=0.0)),
            _CLOSED,
            "relative, sup over leaves and losses",
        ),
        Check("widths from n + m on without a leaf of two eigenvalues", float((wide == 0).sum()), 0.0, "their number"),
        Check(
            "leaves of which the criterion of any map says otherwise",
            float(dataset.disagreeing.sum()),
            0.0,
            "their number, one of each kind and width",
        ),
        Check("criterion B at zeros of 1-2-2-1", largest_of(dataset.chain_change), ZERO, "relative, sup"),
        Check(
            "criterion B at zeros of 1-2-2-1 after training, a control",
            least_of(dataset.chain_trained),
            _FAR,
            "relative, the least",
            least=True,
        ),
        Check("∂M one percent off a leaf, a control", float(pushed.min()), _FAR, "over ‖θ‖, the least", least=True),
    )


STUDIES.register("leaves")(
    Study(
        run,
        question="Which two linear layers have training flows that close on z = UVᵀ, and are there others than those "
        "that are relaxed balanced and those whose law has one positive and one negative eigenvalue?",
    )
)
