"""The commuting square, solved: networks of all depths, the continuous model, and their intrinsic dynamics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import count
from ..depth.grid import DepthGrid, Profile, sample
from ..flows.base import Flow
from ..flows.continuous import ContinuousFlow
from ..flows.finite import FiniteFlow, starts
from ..flows.intrinsic import IntrinsicFlow
from ..initial import balanced
from ..initial.layers import Ends
from ..kernels import DividedDifference, LogMean
from ..laws import depth_curvature
from ..orders import relative_noise
from ..parallel import side_by_side
from ..time.trajectory import Trajectory
from .base import AnyClock, Progress, Start, whole
from .together import Paths, flow_kind, raise_any
from .weights import MOST_NUMBERS, MOST_ROWS


@dataclass(frozen=True, eq=False)
class Reference:
    """The right edge of the square and its own errors."""

    flow: ContinuousFlow
    states: list[Tensor]
    path: Trajectory
    intrinsic: Trajectory
    error_grid: float = np.nan
    error_time: float = np.nan
    error_profile_grid: float = np.nan  # of W(s), which the grid holds less accurately between its nodes than z


@dataclass(frozen=True, eq=False)
class Network:
    """A finite network, or several, beside the continuous model; arrays have NaN after an early end.

    Attributes
    ----------
    layers : array (T, N, d, d) or None
        Of the first network at the depth nodes, where they are kept.
    z, loss : array (networks, T, ...)
    error_z, noise_z : float
        sup over time of the distance of z from that of the continuous model, root mean square over networks, and its
        relative standard error over them.
    error_profile : float
        The same of the layers, in L² over depth.
    drift : float
        Its largest.
    """

    layers: np.ndarray | None
    z: np.ndarray
    loss: np.ndarray
    error_z: float
    noise_z: float
    error_profile: float
    drift: float
    evaluations: int
    seconds: float
    status: str


@dataclass(frozen=True, eq=False)
class Square:
    """All edges.

    Attributes
    ----------
    sides : (depths, 2)
        The left and the bottom one.
    broken : dict
        Why those of a depth did not come to the last time, by depth.
    """

    reference: Reference
    depths: list[int]
    layers: list[str]
    networks: dict[tuple[str, int], Network]
    sides: np.ndarray
    broken: dict[int, str]

    def table(self, name: str) -> np.ndarray:
        """An attribute of all networks, `(rule, depth, …)`."""
        return np.array([[getattr(self.networks[layer, L], name) for L in self.depths] for layer in self.layers])


@dataclass(frozen=True, eq=False)
class _Posed:
    """A square that is to be solved: the arguments of `solve_square`."""

    flow: ContinuousFlow
    initial: Profile
    clock: AnyClock
    depths: list[int]
    layers: list[str]
    sampling: str
    workers: int | None
    progress: Progress | None

    @property
    def kind(self) -> Any:
        """What squares that can be solved side by side have in common; None for one that cannot."""
        flow = flow_kind(self.flow)
        if flow is None or self.clock.checkpoints is not None:
            return None
        return flow, tuple(self.depths), tuple(self.layers), self.sampling


def solve_square(
    flow: ContinuousFlow,
    initial: Profile,
    clock: AnyClock,
    depths: list[int],
    layers: list[str],
    sampling: str,
    workers: int | None,
    progress: Progress | None,
) -> Square:
    """Solves all edges, side by side; raises RuntimeError if the reference itself could not be computed."""
    posed = _Posed(flow, initial, clock, depths, layers, sampling, workers, progress)
    return clock.solved(_squares, posed, posed.kind)


def _squares(posed: list[_Posed]) -> list[Square]:
    """The squares of members of one kind: every edge of all of them at once, with members as the first axis."""
    first = posed[0]
    clock, depths, layers, nodes = first.clock, first.depths, first.layers, len(first.flow.grid)
    flows = {(layer, L): [_network(own, layer, L) for own in posed] for layer in layers for L in depths}
    sides = {("square", L): L for L in depths}
    checks = [("doubled", 2 * nodes), ("tight", nodes)]
    meter = _Meter(first.progress, (len(layers) + 1) * sum(depths) + 4 * nodes)
    right = _right_edges(posed, meter)
    shown = ("euler" if "euler" in layers else layers[0]) if _fits(right, depths) else None
    # Networks of one depth begin alike, and are looked at alike.
    begin = [starts([flows[layers[0], L][i] for L in depths], own.initial) for i, own in enumerate(posed)]
    states = {L: torch.stack(own) for L, own in zip(depths, zip(*begin, strict=True), strict=True)}
    looks = {L: _looks(right, flows[layers[0], L][0].nodes) for L in depths}

    def edge(key: tuple[str, int]) -> Any:
        if key in sides:
            return _side_edges(right, clock, key[1])
        if key == checks[0]:
            return _doubled(right, [own.initial for own in posed], clock)
        if key == checks[1]:
            return _tight(right, clock)
        keep, L = key[0] == shown, key[1]
        return _top_edges(right, states[L], clock, f"{key[0]}-{L}", flows[key], looks[L], keep=keep)

    edges = {}
    # The checks first: without them nothing else counts.
    keys = [*checks, *sorted([*flows, *sides], key=lambda key: -key[1])]
    for key, result in side_by_side(edge, keys, first.workers):
        edges[key] = result
        meter.step(key[1], f"{key[0]}, L = {key[1]}")
    (of_grid, of_profile), of_time = (edges[key] for key in checks)
    return [
        Square(
            Reference(own.flow, list(states), path, intrinsic, of_grid[i], of_time[i], of_profile[i]),
            depths,
            layers,
            {key: edges[key][i] for key in flows},
            np.array([edges[key][i][0] for key in sides]),
            {L: edges[key][i][1] for key, L in sides.items() if edges[key][i][1]},
        )
        for i, (own, states, path, intrinsic) in enumerate(
            zip(posed, right.states.unbind(1), right.paths.each, right.intrinsic.each, strict=True)
        )
    ]


def _network(posed: _Posed, layer: str, L: int) -> FiniteFlow:
    return FiniteFlow(L, posed.flow.loss, layer, posed.sampling)


def _runs(clock: AnyClock, flows: Sequence[Flow], states: Tensor, name: str, **more: Any) -> Paths:
    """A run of each member, from states `(members, …)`."""
    paths = clock.beside(flows, states, name, **more)
    raise_any(paths.errors, len(flows))
    return paths


def _fits(right: _Right, depths: Sequence[int]) -> bool:
    """Whether the layers of one network of each depth are few enough numbers to be kept."""
    numbers = right.states[:, 0].numel() * len(depths)
    return numbers <= MOST_NUMBERS and right.states.shape[-1] <= MOST_ROWS


class _Meter:
    """Turns the weights of finished work into a fraction; a network of depth L weighs L."""

    def __init__(self, progress: Progress | None, total: float) -> None:
        self.progress = progress
        self.total = total
        self.finished = 0.0

    def step(self, weight: float, what: str) -> None:
        self.finished += weight
        if self.progress is not None:
            self.progress(min(self.finished / self.total, 1.0), what)


def check_depths(depths: Sequence[int]) -> list[int]:
    """Depths that increase; raises ValueError for others."""
    checked = [count("depths", L) for L in depths]
    if not checked or any(b <= a for a, b in zip(checked, checked[1:], strict=False)):
        raise ValueError(f"depths must be a non-empty increasing list of numbers of layers, got {list(depths)}")
    return checked


@dataclass(frozen=True, eq=False)
class _Right:
    """The right edges of the squares of some members.

    Attributes
    ----------
    flows : list of ContinuousFlow
    paths, intrinsic : Paths
    z : Tensor (T, members, d, d)
    states : Tensor (T, members, N, d, d)
    curvature : Tensor (members, N, 1, 1)
        λ(s) at the nodes, at the start.
    ends : Ends
        What relaxed balanced networks with the same z₀ have in common.
    """

    flows: list[ContinuousFlow]
    paths: Paths
    intrinsic: Paths
    z: Tensor
    states: Tensor
    curvature: Tensor
    ends: Ends

    @property
    def grid(self) -> DepthGrid:
        """That of all."""
        return self.flows[0].grid


class _Kept:
    """An observer that keeps the states."""

    def __init__(self, meter: _Meter, weight: float) -> None:
        self._meter, self._weight = meter, weight

    def __call__(self, i: int, state: Tensor) -> Tensor:
        self._meter.step(self._weight, "continuous model")
        return state

    @staticmethod
    def together(observers: Sequence[_Kept], i: int, states: Tensor) -> Tensor:
        """The states of several members."""
        return states


def _right_edges(posed: Sequence[_Posed], meter: _Meter) -> _Right:
    clock, flows = posed[0].clock, [own.flow for own in posed]
    samples = [own.flow.sample(own.initial) for own in posed]
    if len({(own.dtype, own.device) for own in samples}) > 1:
        raise ValueError("squares that are solved side by side must have one dtype and device")
    start = torch.stack(samples)
    keep = _Kept(meter, len(flows[0].grid) / len(clock.times))
    paths = _runs(clock, flows, start, "continuous", observe=[keep] * len(flows))
    _check_whole(paths, "continuous model")
    z, states = paths.column("z"), paths.column("observed")
    z0 = z[0]
    closed = [IntrinsicFlow(flow.loss, LogMean()) for flow in flows]
    intrinsic = _by_z(clock, closed, z0, lambda: (flows[0], balanced(z0[0])), "intrinsic")
    _check_whole(intrinsic, "intrinsic limit")
    curvature = depth_curvature(flows[0].grid, states[0]).diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return _Right(flows, paths, intrinsic, z, states, curvature, Ends(z0))


def _by_z(clock: AnyClock, closed: Sequence[IntrinsicFlow], z0: Tensor, other: Callable[[], Start], name: str) -> Paths:
    """What z₀ alone decides: of the only member, as `clock` has it."""
    if len(closed) > 1:
        return _runs(clock, closed, z0, name)
    return Paths.of([clock.by_z(closed[0], z0[0], other, name)], clock.times)


def _check_whole(paths: Paths, what: str) -> None:
    """Raises RuntimeError unless all paths reached the last time; of several members `SomeFailed`."""
    errors: dict[int, Exception] = {}
    for i, path in enumerate([] if all(paths.reached) else paths.each):
        try:
            whole(path, what)
        except RuntimeError as error:
            errors[i] = error
    raise_any(errors, len(paths.reached))


class _Beside:
    """An observer of how far states `(..., N, d, d)` are from W(t, s) of the reference, in L² over depth.

    Parameters
    ----------
    states : Tensor (T, members, N, d, d)
        Of the references of all members.
    grid : DepthGrid
        On which these are.
    nodes, weights : Tensor (N,)
        Depths of what is observed, and what they count.
    kept : Tensor, optional
        Those of the nodes whose values are observed as well, of the first state of each member.
    """

    def __init__(
        self, states: Tensor, grid: DepthGrid, nodes: Tensor, weights: Tensor, kept: Tensor | None = None
    ) -> None:
        self._states, self._depths, self._weights, self._kept = states, (grid.nodes, nodes), weights, kept
        self._limit, self._member = grid.interpolation(nodes), 0

    def keeping(self, kept: Tensor) -> _Beside:
        """The same, which observes some of the nodes as well."""
        other = copy(self)
        other._kept = kept
        return other

    def each(self) -> list[_Beside]:
        """One for every member."""
        own = [copy(self) for _ in range(self._states.shape[1])]
        for i, one in enumerate(own):
            one._member = i
        return own

    def _looks_like(self, other: _Beside) -> bool:
        """Whether both look at the same depths."""
        if self._depths is other._depths and self._kept is other._kept:
            return True
        return _same(self._kept, other._kept) and all(map(_same, self._depths, other._depths))

    def __call__(self, i: int, state: Tensor) -> Tensor:
        return self.together([self], i, state.unsqueeze(0))[0]

    @staticmethod
    def together(observers: Sequence[_Beside], i: int, states: Tensor) -> Tensor:
        """What those of some members see of a state of each `(m, ..., N, d, d)`.

        Raises ValueError unless all look at the same depths.
        """
        first = observers[0]
        if not all(own._looks_like(first) for own in observers):
            raise ValueError("observers of one batch must look at the same depths")
        if all(own._states is first._states for own in observers):
            members = [own._member for own in observers]
            everybody = members == [*range(len(first._states[i]))]
            references = first._states[i] if everybody else first._states[i, members]
        else:  # of squares that are solved one by one
            references = torch.stack([own._states[i, own._member] for own in observers])
        limits = first._limit(references)
        batch = states.flatten(1, -4) if states.ndim > 4 else states.unsqueeze(1)
        squares = (batch - limits.unsqueeze(1)).square_().mul_(first._weights[:, None, None])
        seen = squares.flatten(-3).sum(-1).mean(-1, keepdim=True).sqrt()
        return seen if first._kept is None else torch.cat((seen, batch[:, 0, first._kept].flatten(1)), dim=1)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _doubled(right: _Right, initial: Sequence[Profile], clock: AnyClock) -> tuple[list[float], list[float]]:
    """What the depth grid contributes to the references: to z, and to W(s) between the nodes."""
    grid = right.grid
    finer = DepthGrid.gauss(2 * grid.panels, grid.order)
    flows = [ContinuousFlow(finer, flow.loss, flow.depth.on(finer)) for flow in right.flows]
    # That it resolves W0 has been seen on fewer nodes.
    start = torch.stack([sample(W0, finer.nodes) for W0 in initial]).to(right.states)
    compare = _Beside(right.states, grid, finer.nodes, finer.weights.to(start))
    paths = _runs(clock, flows, start, "doubled", observe=compare.each(), checks=False)
    _check_whole(paths, "continuous model on a doubled grid")
    return distances(paths.column("z"), right.z), paths.column("observed").amax((0, 2)).tolist()


def _tight(right: _Right, clock: AnyClock) -> list[float]:
    """What the steps in time contribute to z of the references."""
    paths = _runs(clock.tight(), right.flows, right.states[0], "tight")
    _check_whole(paths, "continuous model in finer steps")
    return torch.linalg.matrix_norm(clock.time_error(right.z, paths.column("z"))).amax(0).tolist()


def distance(z: Tensor, other: Tensor) -> float:
    """sup over times of the Frobenius distance of `(T, d, d)` paths."""
    return float(torch.linalg.matrix_norm(z - other).max())


def distances(z: Tensor, other: Tensor) -> list[float]:
    """`distance` for every member, of `(T, members, d, d)`."""
    return torch.linalg.matrix_norm(z - other).amax(0).tolist()


def _looks(right: _Right, nodes: Tensor) -> _Beside:
    """The observer of networks with layers at these depths."""
    L = len(nodes)
    return _Beside(right.states, right.grid, nodes, right.states.new_full((L,), 1 / L))


def _top_edges(
    right: _Right,
    start: Tensor,
    clock: AnyClock,
    name: str,
    flows: Sequence[FiniteFlow],
    looks: _Beside,
    *,
    keep: bool,
) -> list[Network]:
    """A finite network of every member against its continuous model.

    It can `keep` the layers at the depth nodes, of the first network of each member.
    """
    nodes, L = right.grid.nodes, flows[0].depth
    if keep:
        looks = looks.keeping((nodes * L).floor().long().clamp(max=L - 1).to(start.device))
    paths = _runs(clock, flows, start, name, observe=looks.each())
    z, seen, reached = paths.column("z"), paths.column("observed"), paths.reached
    several = z.reshape(*z.shape[:2], -1, *z.shape[-2:])  # (T, members, networks, d, d)
    gaps = torch.linalg.matrix_norm(several - right.z.unsqueeze(2)).movedim(0, 1)  # (members, T, networks)
    largest = gaps.square().mean(-1).sqrt().max(-1)
    noise = [relative_noise(own[i]) for own, i in zip(gaps, largest.indices.tolist(), strict=True)]
    found: dict[str, Sequence[Any]] = {
        "layers": _arrays(seen[..., 1:].unflatten(-1, (len(nodes), *z.shape[-2:])), 1) if keep else [None] * len(flows),
        "z": _arrays(several.movedim(2, 0), 2),
        "loss": _arrays(paths.column("loss").reshape(several.shape[:3]).movedim(2, 0), 2),
        "error_z": _of(largest.values, reached),
        "noise_z": noise,
        "error_profile": _of(seen[..., 0].amax(0), reached),
        "drift": paths.largest("drift").tolist(),
        "evaluations": paths.evaluations,
        "seconds": paths.seconds,
        "status": paths.statuses,
    }
    return [Network(**dict(zip(found, own, strict=True))) for own in zip(*found.values(), strict=True)]


def _of(values: Tensor, reached: Sequence[bool]) -> list[float]:
    """Those of the members that came to the last time; NaN for others."""
    return [value if whole else np.nan for value, whole in zip(values.tolist(), reached, strict=True)]


def _arrays(values: Tensor, members: int) -> list[np.ndarray]:
    """The values of each of the members along an axis, in memory of its own: one that has ended holds no others."""
    return [own.cpu().numpy().copy() for own in values.unbind(members)]


def _side_edges(right: _Right, clock: AnyClock, L: int) -> list[tuple[tuple[float, float], str]]:
    """Left and bottom edges at depth L: exactly relaxed balanced Euler networks, their intrinsic flows, and the limit.

    And why they did not come to the last time, "" where they did.

    A network has the λ_k = λ(s_k)/L² of the continuous model, s_k = k/L. In steps another one with these and frames at
    random stands for the intrinsic flow.
    """
    ends, z0 = right.ends, right.z[0]
    between = torch.arange(1, L, dtype=z0.dtype, device=z0.device) / L
    steps = right.grid.interpolate(right.curvature, between).flatten(1) / L**2 if L > 1 else z0[:, 0, :0]
    shifts = torch.cat((torch.zeros_like(z0[:, 0, :1]), torch.cumsum(steps, -1)), -1)
    flows = [FiniteFlow(L, flow.loss) for flow in right.flows]
    networks = _runs(clock, flows, ends.layers(shifts), f"square-{L}-network", checks=False)
    kernels = [DividedDifference(own, time_scale=1 / L) for own in shifts]
    limits = [IntrinsicFlow(flow.loss, kernel) for flow, kernel in zip(flows, kernels, strict=True)]

    def turned() -> Start:
        return flows[0], ends.layers(shifts, torch.Generator().manual_seed(0))[0]

    closed = _by_z(clock, limits, z0, turned, f"square-{L}-intrinsic")
    z = closed.column("z")
    left, bottom = distances(networks.column("z"), z), distances(z, right.intrinsic.column("z"))
    broken = [one or other for one, other in zip(networks.broken, closed.broken, strict=True)]
    edges = zip(left, bottom, strict=True)
    return [((np.nan, np.nan) if end else edge, end) for edge, end in zip(edges, broken, strict=True)]
