"""The commuting square, solved: networks of all depths, the continuous model, and their intrinsic dynamics."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import count
from ..depth.grid import DepthGrid, Profile, sample
from ..flows.continuous import ContinuousFlow
from ..flows.finite import FiniteFlow, starts
from ..flows.intrinsic import IntrinsicFlow
from ..initial import balanced
from ..initial.layers import Ends
from ..kernels import DividedDifference, LogMean
from ..laws import depth_curvature
from ..orders import relative_noise
from ..parallel import side_by_side
from ..time.checkpoint import digest
from ..time.endings import REACHED
from ..time.trajectory import Trajectory
from .base import AnyClock, Progress, Start, whole
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
    """One finite network beside the continuous model; arrays begin with members and have NaN after an early end."""

    layers: np.ndarray | None  # of the first member at the depth nodes, (T, N, d, d), where they are kept
    z: np.ndarray
    loss: np.ndarray
    whole: bool
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
    error_z, noise_z : (rules, depths)
        sup over time of the distance of z from the reference, and its relative standard error over members.
    """

    reference: Reference
    depths: list[int]
    layers: list[str]
    networks: dict[tuple[str, int], Network]
    sides: np.ndarray
    error_z: np.ndarray
    noise_z: np.ndarray

    def table(self, name: str) -> np.ndarray:
        """An attribute of all networks, `(rule, depth, …)`."""
        return np.array([[getattr(self.networks[layer, L], name) for L in self.depths] for layer in self.layers])


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
    flows = {(layer, L): FiniteFlow(L, flow.loss, layer, sampling) for layer in layers for L in depths}
    sides = {("square", L): L for L in depths}
    nodes = len(flow.grid)
    checks = [("doubled", 2 * nodes), ("tight", nodes)]
    meter = _Meter(progress, (len(layers) + 1) * sum(depths) + 4 * nodes)
    reference = _reference(flow, initial, clock, meter)
    curvature = depth_curvature(flow.grid, reference.states[0]).diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    ends = Ends(reference.path.z[0])
    shown = ("euler" if "euler" in layers else layers[0]) if _fits(reference, depths) else None
    # Networks of one depth begin alike, and are looked at alike.
    some = {L: flows[layers[0], L] for L in depths}
    states = dict(zip(some, starts(list(some.values()), initial), strict=True))
    looks = {L: _looks(reference, some[L].nodes) for L in depths}

    def edge(key: tuple[str, int]) -> Any:
        if key in sides:
            return _side_edges(reference, ends, curvature, clock, key[1])
        if key in checks:
            return _doubled(reference, initial, clock) if key[0] == "doubled" else _tight(reference, clock)
        keep, L = key[0] == shown, key[1]
        return _top_edge(reference, states[L], clock, f"{key[0]}-{L}", flows[key], looks[L], keep=keep)

    edges = {}
    # The checks first: without them nothing else counts.
    keys = [*checks, *sorted([*flows, *sides], key=lambda key: -key[1])]
    for key, result in side_by_side(edge, keys, workers):
        edges[key] = result
        meter.step(key[1], f"{key[0]}, L = {key[1]}")
    (error_grid, error_profile_grid), error_time = (edges[key] for key in checks)
    reference = replace(reference, error_grid=error_grid, error_time=error_time, error_profile_grid=error_profile_grid)
    corners = np.array([edges[key] for key in sides])
    networks = {key: edges[key] for key in flows}
    errors = np.array([_distances(reference, [networks[layer, L] for L in depths]) for layer in layers])
    return Square(reference, depths, layers, networks, corners, errors[:, 0], errors[:, 1])


def _fits(reference: Reference, depths: Sequence[int]) -> bool:
    """Whether the layers of one network of each depth are few enough numbers to be kept."""
    numbers = reference.path.z.shape[0] * reference.states[0].numel() * len(depths)
    return numbers <= MOST_NUMBERS and reference.path.z.shape[-1] <= MOST_ROWS


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


def _is_whole(path: Trajectory) -> bool:
    """Whether a path reached the last time with numbers to trust; its target may be out of reach."""
    return path.ending in REACHED


def _reference(flow: ContinuousFlow, initial: Profile, clock: AnyClock, meter: _Meter) -> Reference:
    def keep(_: int, state: Tensor) -> Tensor:
        meter.step(len(flow.grid) / len(clock.times), "continuous model")
        return state

    path = whole(clock.run(flow, flow.sample(initial), "continuous", observe=keep), "continuous model")
    states = list(_observed(path))
    z0 = path.z[0]
    closed = IntrinsicFlow(flow.loss, LogMean())
    intrinsic = clock.by_z(closed, z0, lambda: (flow, balanced(z0)), "intrinsic")
    return Reference(flow, states, path, whole(intrinsic, "intrinsic limit"))


class _Beside:
    """An observer of how far states `(..., N, d, d)` are from W(t, s) of the reference, in L² over depth.

    Parameters
    ----------
    reference : Reference
    nodes, weights : Tensor (N,)
        Depths of what is observed, and what they count.
    """

    _kept: Tensor | None = None

    def __init__(self, reference: Reference, nodes: Tensor, weights: Tensor) -> None:
        grid = reference.flow.grid
        self._reference, self._weights, self._limit = reference, weights, grid.interpolation(nodes)
        self._looks = tuple(digest(part) for part in (grid.nodes, nodes, weights))

    def keeping(self, kept: Tensor) -> _Beside:
        """The same, which observes some of the nodes of the first state as well."""
        other = copy(self)
        other._kept, other._looks = kept, (*self._looks, digest(kept))
        return other

    def __call__(self, i: int, state: Tensor) -> Tensor:
        return self.together([self], i, state.unsqueeze(0))[0]

    @staticmethod
    def together(observers: Sequence[_Beside], i: int, states: Tensor) -> Tensor:
        """What each observer makes of a state of its own `(m, ..., N, d, d)`; ValueError where they look elsewhere."""
        first = observers[0]
        if any(own._looks != first._looks for own in observers):
            raise ValueError("observers must look at the same depths in the same way")
        limits = first._limit(torch.stack([own._reference.states[i] for own in observers]))
        batch = states.flatten(1, -4) if states.ndim > 4 else states.unsqueeze(1)
        squares = (batch - limits.unsqueeze(1)).square_().sum((-2, -1))
        seen = (squares * first._weights).sum(-1).mean(-1, keepdim=True).sqrt()
        return seen if first._kept is None else torch.cat((seen, batch[:, 0, first._kept].flatten(1)), dim=1)


def _doubled(reference: Reference, initial: Profile, clock: AnyClock) -> tuple[float, float]:
    """What the depth grid contributes to the reference: to z, and to W(s) between the nodes."""
    grid = reference.flow.grid
    finer = DepthGrid.gauss(2 * grid.panels, grid.order)
    flow = ContinuousFlow(finer, reference.flow.loss, reference.flow.depth.on(finer))

    start = sample(initial, finer.nodes).to(reference.states[0])  # that it resolves W0 has been seen on fewer nodes
    compare = _Beside(reference, finer.nodes, finer.weights.to(start))
    path = clock.run(flow, start, "doubled", observe=compare, checks=False)
    whole(path, "continuous model on a doubled grid")
    return distance(path.z, reference.path.z), float(_observed(path).max())


def _tight(reference: Reference, clock: AnyClock) -> float:
    """What the steps in time contribute to z of the reference."""
    path = whole(clock.tight().run(reference.flow, reference.states[0], "tight"), "continuous model in finer steps")
    return float(torch.linalg.matrix_norm(clock.time_error(reference.path.z, path.z)).max())


def distance(z: Tensor, other: Tensor) -> float:
    """sup over times of the Frobenius distance of `(T, d, d)` paths."""
    return float(torch.linalg.matrix_norm(z - other).max())


def _observed(path: Trajectory) -> Tensor:
    """What was observed at the output times."""
    assert path.observed is not None
    return path.observed


def _looks(reference: Reference, nodes: Tensor) -> _Beside:
    """The observer of networks with layers at these depths."""
    L = len(nodes)
    return _Beside(reference, nodes, reference.states[0].new_full((L,), 1 / L))


def _top_edge(
    reference: Reference, start: Tensor, clock: AnyClock, name: str, flow: FiniteFlow, looks: _Beside, *, keep: bool
) -> Network:
    """One finite network against the continuous model; it can `keep` its layers at the depth nodes, of the first."""
    nodes = reference.flow.grid.nodes
    if keep:
        looks = looks.keeping((nodes * flow.depth).floor().long().clamp(max=flow.depth - 1).to(start.device))
    path = clock.run(flow, start, name, observe=looks)
    members = path.z.reshape(len(path.z), -1, *path.z.shape[-2:])
    reached, seen = _is_whole(path), _observed(path)
    layers = seen[:, 1:].reshape(len(seen), 1, len(nodes), *path.z.shape[-2:]) if keep else None
    return Network(
        layers=None if layers is None else _padded(layers, len(clock.times))[0],
        z=_padded(members, len(clock.times)),
        loss=_padded(path.loss.reshape(len(members), -1), len(clock.times)),
        whole=reached,
        error_profile=float(seen[:, 0].max()) if reached else np.nan,
        drift=float(path.drift.max()),
        evaluations=path.stats["evaluations"],
        seconds=path.stats["seconds"],
        status=path.status,
    )


def _distances(reference: Reference, networks: Sequence[Network]) -> tuple[list[float], list[float]]:
    """The distance of z of each network from the reference, the largest over time, and its relative standard error."""
    z = torch.from_numpy(np.stack([network.z for network in networks]))
    gaps = torch.linalg.matrix_norm(z - reference.path.z.cpu()).mT.contiguous()  # (networks, T, members)
    largest = gaps.square().mean(-1).sqrt().max(-1)
    errors = [
        error if network.whole else np.nan for error, network in zip(largest.values.tolist(), networks, strict=True)
    ]
    return errors, [relative_noise(own[i]) for own, i in zip(gaps, largest.indices.tolist(), strict=True)]


def _padded(values: Tensor, length: int) -> np.ndarray:
    """`(t, members, …)` → `(members, T, …)`, with NaN after an early end."""
    found = np.swapaxes(values.cpu().numpy(), 0, 1).copy()
    missing = length - found.shape[1]
    return (
        np.pad(found, [(0, 0), (0, missing), *[(0, 0)] * (found.ndim - 2)], constant_values=np.nan)
        if missing
        else found
    )


def _side_edges(reference: Reference, ends: Ends, curvature: Tensor, clock: AnyClock, L: int) -> tuple[float, float]:
    """Left and bottom edge at depth L: an exactly relaxed balanced Euler network, its intrinsic flow, and the limit.

    The network has the λ_k = λ(s_k)/L² of the continuous model, s_k = k/L, whose λ at the nodes is `curvature`. In
    steps another one with these and frames at random stands for the intrinsic flow.
    """
    grid, z0, loss = reference.flow.grid, ends.z0, reference.flow.loss
    between = torch.arange(1, L, dtype=z0.dtype, device=z0.device) / L
    steps = grid.interpolate(curvature, between).reshape(-1) / L**2 if L > 1 else between
    shifts = torch.cat((torch.zeros(1, dtype=z0.dtype, device=z0.device), torch.cumsum(steps, 0)))
    flow = FiniteFlow(L, loss)
    network = clock.run(flow, ends.layers(shifts), f"square-{L}-network", checks=False)
    limit = IntrinsicFlow(loss, DividedDifference(shifts, time_scale=1 / L))

    def turned() -> Start:
        return flow, ends.layers(shifts, torch.Generator().manual_seed(0))

    closed = clock.by_z(limit, z0, turned, f"square-{L}-intrinsic")
    if not (_is_whole(network) and _is_whole(closed)):
        return np.nan, np.nan
    return distance(network.z, closed.z), distance(closed.z, reference.intrinsic.z)
