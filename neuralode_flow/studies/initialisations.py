"""Only these initialisations: which starts with one z₀ share a curve z(t), and what criterion B says of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count, positive, real, seeded
from ..depth import DepthSolver
from ..depth.grid import sample
from ..finding import Check, Claim, Finding, sentence
from ..flows.base import Flow
from ..flows.continuous import ContinuousFlow
from ..flows.finite import FiniteFlow
from ..flows.intrinsic import IntrinsicFlow
from ..initial import (
    Detour,
    balanced,
    random_direction,
    random_shift,
    random_twist,
    relaxed_balanced,
    relaxed_balanced_layers,
)
from ..intrinsic import depth_criterion, report
from ..intrinsic.report import Verdict
from ..intrinsic.systems.linear_network import laws_of, phi_of
from ..kernels import DividedDifference, LogMean
from ..matrices import inverse, matrix_exp
from ..problems import Problem
from ..signatures import Depths, Seed, at_least
from ..time.endings import REACHED
from ..time.trajectory import Trajectory, at_times, stopped
from .axes import arranged, axis, largest_of, time
from .base import STUDIES, AnyClock, Progress, Start, Study, check_matrices

# What the starts of a family have in common besides z₀.
FAMILIES = {
    "one_shift": "relaxed balanced, all with the same λ",
    "any_shift": "relaxed balanced, each with its own λ",
    "detour": "not relaxed balanced",
}
_BALANCED = ["one_shift", "any_shift"]

# Criterion B is asked of networks with at most this many parameters L d².
_MOST_PARAMETERS = 200
NOT_ASKED = "not asked"

# Curves that are nearer to each other than this are one.
_BOUND = 1e-8


@dataclass(frozen=True, eq=False)
class _Family:
    """Starts with one z₀, the flows in z alone that they should follow, and what stands for these in steps."""

    flow: Flow
    states: Tensor
    criterion: Callable[[Tensor], tuple[Verdict, float]]
    closed: list[tuple[Flow, Callable[[], Start]]] | None


@dataclass(frozen=True, eq=False)
class _Found:
    """What became of the starts of a family, in the order of the start where there is one."""

    z: np.ndarray
    distance_closed: np.ndarray
    law_drift: float
    law_holds: bool
    metric: list[str]
    metric_change: list[float]
    status: str
    ending: str


def run(
    problem: Problem,
    solver: DepthSolver,
    clock: AnyClock,
    *,
    draws: Annotated[int, at_least(2)] = 6,
    depths: Depths = (2, 4, 8),
    twist: float = 2.0,
    shift: float = 1.0,
    detour: float = 0.5,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Trajectories of z from many starts with the same z₀, by family, for networks of L layers and in the limit.

    Parameters
    ----------
    problem : Problem
    solver : DepthSolver
    clock : Clock or Steps
        Along the flows, or in steps, where another start with the same z₀ and λ stands for the closed flow.
    draws : int
        Starts of each family, at least 2.
    depths : sequence of int
        Numbers of Euler layers L >= 2, increasing.
    twist, shift : float
        Size of Ω(s) and λ(s); networks take frames at random and λ(s_k)/L².
    detour : float
        Size of what breaks relaxed balance: an exponential between the layers that cancels in the product.
    seed : int
        Of all draws.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        depth 0 stands for the limit of infinite depth. `spread` is the largest Frobenius distance between two starts
        of a family; `distance_closed` that of a start from its own closed flow.

    Raises
    ------
    TypeError, ValueError
        For bad arguments.
    """
    n = count("draws", draws, least=2)
    for L in depths:
        count("depths", L, least=2)
    check_matrices(problem, "whose curve all starts share")
    sizes = {"twist": real("twist", twist), "shift": real("shift", shift), "detour": positive("detour", detour)}
    families: dict[tuple[str, int], _Family] = {}
    for depth in (*depths, 0):
        generator = seeded("seed", seed)
        make = (
            _networks(problem, depth, n, sizes, generator) if depth else _profiles(problem, solver, n, sizes, generator)
        )
        families |= {(name, depth): family for name, family in make.items()}
    found: dict[tuple[str, int], _Found] = {}
    for i, ((name, depth), family) in enumerate(families.items()):
        if progress is not None:
            progress(i / len(families), f"{FAMILIES[name]}, {f'L = {depth}' if depth else 'infinite depth'}")
        found[name, depth] = _followed(clock, f"{name}-{depth}", family)
    dataset = _dataset(clock, problem.z0.double().cpu().numpy(), found).assign_attrs(_how(clock, found))
    early = next((family for family in reversed(found.values()) if family.status != "ok"), None)
    status, ending = ("ok", "ok") if early is None else (early.status, early.ending)
    return _finding(dataset, problem.title, status, ending).attached(dataset)


def _how(clock: AnyClock, found: dict[tuple[str, int], _Found]) -> dict[str, Any]:
    """What the runs were controlled by, whether z₀ decides them, and whether all of them keep the law."""
    holds = all(family.law_holds for family in found.values())
    return {**clock.control, "decided": int(clock.decided), "law_holds": int(holds)}


def _followed(clock: AnyClock, name: str, family: _Family) -> _Found:
    path = clock.run(family.flow, family.states, name)
    closed = [
        clock.by_z(flow, path.z[0, k], other, f"{name}-closed-{k}")
        for k, (flow, other) in enumerate(family.closed or [])
    ]
    z = at_times(path, clock.times).double().cpu()
    verdicts = [family.criterion(state) for state in family.states]
    return _Found(
        z=z.numpy(),
        distance_closed=_distances(clock, closed, z).numpy(),
        law_drift=float(path.drift.max()),
        law_holds=path.stats.get("law_in_steps", True),
        metric=[str(verdict) for verdict, _ in verdicts],
        metric_change=[change for _, change in verdicts],
        status=next((own.status for own in (path, *closed) if own.ending not in REACHED), "ok"),
        ending=stopped([path, *closed]),
    )


def _distances(clock: AnyClock, closed: Sequence[Trajectory], z: Tensor) -> Tensor:
    """Distance of each start from its closed flow, (T, n); NaN where there is none."""
    gap = torch.full(z.shape[:2], torch.nan, dtype=torch.float64)
    for k, path in enumerate(closed):
        gap[:, k] = torch.linalg.matrix_norm(at_times(path, clock.times).cpu() - z[:, k])
    return gap


def trained(problem: Problem, solver: DepthSolver, clock: AnyClock, **_: Any) -> Start:
    """What `run` trains at infinite depth, and from one of its starts, of the same arguments."""
    return ContinuousFlow(solver.grid, problem.loss, solver), balanced(problem.z0)


def _profiles(
    problem: Problem, solver: DepthSolver, n: int, sizes: dict[str, float], generator: torch.Generator
) -> dict[str, _Family]:
    """The families at infinite depth."""
    z0, loss, grid = problem.z0, problem.loss, solver.grid
    d = z0.shape[-1]

    def criterion(W: Tensor) -> tuple[Verdict, float]:
        found = depth_criterion(grid, W)
        return found.metric, found.size / found.scale

    common = random_shift(sizes["shift"], generator)
    twists = [random_twist(d, sizes["twist"], generator) for _ in range(n)]
    one = [relaxed_balanced(z0, common, twist) for twist in twists]
    each = [relaxed_balanced(z0, random_shift(sizes["shift"], generator), twist) for twist in twists]
    astray = [Detour(profile, random_direction(d, sizes["detour"], generator)) for profile in one]
    flow = ContinuousFlow(grid, loss, solver)
    closed: list[tuple[Flow, Callable[[], Start]]] = [
        (IntrinsicFlow(loss, LogMean()), lambda: (flow, balanced(z0)))
    ] * n
    starts: dict[str, list[Any]] = {"one_shift": one, "any_shift": each, "detour": astray}
    return {
        name: _Family(
            flow,
            torch.stack([sample(p, grid.nodes) for p in profiles]),
            criterion,
            None if name == "detour" else closed,
        )
        for name, profiles in starts.items()
    }


def _networks(
    problem: Problem, L: int, n: int, sizes: dict[str, float], generator: torch.Generator
) -> dict[str, _Family]:
    """The families of L Euler layers."""
    z0, loss = problem.z0, problem.loss
    d = z0.shape[-1]
    widths = [d] * (L + 1)
    phi, laws, identity = phi_of(widths), laws_of(widths), torch.eye(d, dtype=z0.dtype, device=z0.device)

    def criterion(state: Tensor) -> tuple[Verdict, float]:
        if state.numel() > _MOST_PARAMETERS:
            return NOT_ASKED, math.nan
        found = report(phi, (identity + state / L).reshape(-1), laws)
        return found.metric, found.metric_size / found.metric_scale

    shifts = [_shifts(random_shift(sizes["shift"], generator), L, z0) for _ in range(n + 1)]
    one = [relaxed_balanced_layers(z0, shifts[n], generator) for _ in range(n)]
    each = [relaxed_balanced_layers(z0, c, generator) for c in shifts[:n]]
    between = [[random_direction(d, sizes["detour"], generator).to(z0) for _ in range(L - 1)] for _ in range(n)]
    astray = [_led_astray(state, directions) for state, directions in zip(one, between, strict=True)]
    flow = FiniteFlow(L, loss)

    def closed(c: Tensor) -> tuple[Flow, Callable[[], Start]]:
        dynamics = IntrinsicFlow(loss, DividedDifference(shifts=c, time_scale=1 / L))
        return dynamics, lambda: (flow, relaxed_balanced_layers(z0, c))

    return {
        "one_shift": _Family(flow, torch.stack(one), criterion, [closed(shifts[n])] * n),
        "any_shift": _Family(flow, torch.stack(each), criterion, [closed(c) for c in shifts[:n]]),
        "detour": _Family(flow, torch.stack(astray), criterion, None),
    }


def _shifts(lam: Callable[[float], float], L: int, like: Tensor) -> Tensor:
    """c_k = λ_1 + … + λ_{k−1} with λ_k = λ(k/L)/L²."""
    steps = [0.0, *(lam(k / L) / L**2 for k in range(1, L))]
    return torch.tensor(steps, dtype=like.dtype, device=like.device).cumsum(0)


def _led_astray(state: Tensor, directions: list[Tensor]) -> Tensor:
    """The layers A_k U_k A_{k−1}⁻¹ with A_k = exp(directions[k]) between them: their product stays."""
    L, identity = len(state), torch.eye(state.shape[-1], dtype=state.dtype, device=state.device)
    inner = [matrix_exp(direction) for direction in directions]
    after, before = [*inner, identity], [identity, *inner]
    layers = torch.stack(after) @ (identity + state / L) @ inverse(torch.stack(before))
    return L * (layers - identity)


def _dataset(clock: AnyClock, z0: np.ndarray, found: dict[tuple[str, int], _Found]) -> xr.Dataset:
    depths = list(dict.fromkeys(depth for _, depth in found))
    of = ("family", "depth")

    def table(column: str) -> np.ndarray:
        """Of `(family, depth, …)`."""
        values = np.stack([np.asarray(getattr(found[label], column)) for label in product(FAMILIES, depths)])
        return values.reshape(len(FAMILIES), len(depths), *values.shape[1:])

    z = table("z")  # family, depth, time, start, row, column
    gaps = np.linalg.norm(z[:, :, :, :, None] - z[:, :, :, None], axis=(-2, -1)).max(axis=(-2, -1))
    return arranged(
        {
            "z": ((*of, "time", "start", "row", "column"), z, "end-to-end map"),
            "start_off": (
                (*of, "start"),
                np.linalg.norm(z[:, :, 0] - z0, axis=(-2, -1)),
                "Frobenius distance of z of a start from z₀",
            ),
            "spread": ((*of, "time"), gaps, "largest Frobenius distance between two starts of a family"),
            "distance_closed": (
                (*of, "time", "start"),
                table("distance_closed"),
                "Frobenius distance of a start from its closed flow",
            ),
            "law_drift": (of, table("law_drift"), "drift of the conservation law"),
            "metric": ((*of, "start"), table("metric"), "criterion B at the start"),
            "metric_change": ((*of, "start"), table("metric_change"), "‖∂M‖ on the kernel, relative to ‖M‖/‖θ‖"),
        },
        [
            ("family", np.array(list(FAMILIES)), {}),
            axis("depth", depths, "layers; 0 is infinite depth"),
            time(clock.times),
        ],
    )


def _finding(dataset: xr.Dataset, title: str, status: str, ending: str) -> Finding:
    spread, change = dataset.spread.max("time", skipna=False), dataset.metric_change
    limit = {name: float(spread.sel(family=name, depth=0)) for name in FAMILIES}
    verdicts = {name: dataset.metric.sel(family=name).values for name in FAMILIES}
    law_drift, attrs = float(dataset.law_drift.max()), dataset.attrs
    bound = _BOUND if attrs["decided"] else None
    other = "another start with its z₀ and λ" if "rate" in attrs else "its own closed flow"
    law = "0 in exact arithmetic" if attrs["law_holds"] else "which steps of this rule move"
    return Finding(
        study="initialisations",
        problem=title,
        status=status,
        verdict=_verdict(dataset) if status == "ok" else f"{sentence(status)}. {_verdict(dataset)}",
        claim=Claim(
            "at infinite depth relaxed balanced starts with one z₀ share a curve, others do not", measured=limit
        ),
        checks=(
            Check(
                f"z of each relaxed balanced start against {other}",
                _from_closed(dataset),
                bound,
                "sup over starts, layers and t, Frobenius norm",
            ),
            *(
                Check(
                    f"spread at infinite depth, {FAMILIES[name]}",
                    limit[name],
                    bound,
                    "sup over starts and t, Frobenius norm",
                    least,
                )
                for name, least in (("any_shift", False), ("detour", True))
            ),
            Check(
                f"spread of networks, {FAMILIES['any_shift']}, a control",
                largest_of(spread.sel(family="any_shift")[:-1]),
                bound,
                "sup over starts, layers and t, Frobenius norm",
                least=True,
            ),
            Check(
                "z of each start from z₀",
                largest_of(dataset.start_off),
                bound,
                "the largest of all starts, Frobenius norm",
            ),
            Check("starts on which criterion B is wrong or undecided", _misjudged(verdicts), 0.0, "their number"),
            Check("drift of the conservation law", law_drift, norm=law),
        ),
        numbers={
            "depths": [depth or None for depth in dataset.depth.values.tolist()],
            "spread": {name: spread.sel(family=name).values for name in FAMILIES},
            "metric": {name: {v: int((said == v).sum()) for v in np.unique(said)} for name, said in verdicts.items()},
            "metric_change_balanced": float(change.sel(family=_BALANCED).max()),
            "metric_change_others": float(change.sel(family="detour").min()),
            "law_drift": law_drift,
            "ending": ending,
        },
    )


def _from_closed(dataset: xr.Dataset) -> float:
    """The largest distance of a relaxed balanced start from its closed flow; NaN if not all came to the last time."""
    return largest_of(dataset.distance_closed.sel(family=_BALANCED))


def _misjudged(verdicts: dict[str, np.ndarray]) -> float:
    """On how many starts criterion B was asked and is wrong or undecided."""
    wanted = {name: [str(name in _BALANCED), NOT_ASKED] for name in verdicts}
    return float(sum((~np.isin(said, wanted[name])).sum() for name, said in verdicts.items()))


def _verdict(dataset: xr.Dataset) -> str:
    spread, limit = dataset.spread.max("time", skipna=False), {"depth": 0}
    closed = _from_closed(dataset)
    balanced = largest_of(spread.sel(family=_BALANCED, **limit))
    finite = [depth for depth in dataset.depth.values.tolist() if depth]
    own = ", ".join(f"{float(spread.sel(family='any_shift', depth=L)):.1e} at L = {L}" for L in finite)
    said = {name: sorted({*dataset.metric.sel(family=name).values.flat} - {NOT_ASKED}) for name in FAMILIES}
    others, one = (
        largest_of(values) for values in (spread.sel(family="detour", **limit), spread.sel(family="one_shift"))
    )
    if not dataset.attrs["decided"]:
        return (
            f"{dataset.attrs['method']} does not turn with the gradient, and z₀ decides nothing: at infinite depth "
            f"relaxed balanced starts spread by {balanced:.2g}, others by {others:.2g}, and networks with one λ by "
            f"{one:.2g}."
        )
    path = "what another start with its z₀ and λ does" if "rate" in dataset.attrs else "its own closed flow"
    return (
        f"At infinite depth all relaxed balanced starts share one curve z(t), to {balanced:.1e}, whatever λ; the "
        f"others fan out by {others:.2g}. Networks with one λ share a curve, to {one:.1e}; with λ of their own they "
        f"spread by {own}, each on {path}, to {closed:.1e}. Criterion B says "
        f"{'/'.join(said['one_shift'])} and {'/'.join(said['any_shift'])} of the relaxed balanced, "
        f"{'/'.join(said['detour'])} of the others."
    )


STUDIES.register("initialisations")(
    Study(
        run,
        question="Which starts with the same end-to-end map train along the same curve z(t), and does "
        "criterion B tell them from the others?",
        trained=trained,
    )
)
