"""Measures speed against the peers of peers.py: python benchmarks/speed.py [SECTION ...] [--threads N] [--out FILE]

Sections: velocity, finite, ensemble, flow, steps, memory, kernels, stiff, imports; study, large and floors run only
when they are named. Each prints a Markdown table and is written to the JSON file as soon as it is done; other sections
stay. --engine holds the compiled engine at a lower instruction set. --figure draws the work–precision diagram of the
section flow, --quick checks with tiny sizes that everything runs.

Everything is in float64. The two sides of a ratio are timed in alternation, in one process, and the ratio is taken in
each round; tables show the median and the quartiles. An accuracy is asked of everybody (the bar): a peer runs at the
loosest tolerance at which its own error meets it, in the fastest of its variants that do. The floor of a velocity is
three matrix products per node or layer in one call of torch.bmm. Linux only: the threads of all libraries are bounded
by the set of processors that this process may use.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import peers
import torch
from harness import Row, Section, alternated, contest, machine, needed, table, trial, versions
from solvers import synthetic
from threadpoolctl import threadpool_limits
from torch import Tensor

import neuralode_flow as nf
from neuralode_flow.depth.engine import by_torch, compiled
from neuralode_flow.depth.grid import Profile
from neuralode_flow.depth.rules import LAYERS
from neuralode_flow.files import atomic_write
from neuralode_flow.flows.base import Flow
from neuralode_flow.initial import INITIALS, random_shift, random_twist
from neuralode_flow.problems import PROBLEMS
from neuralode_flow.time.base import METHODS, Control, Start

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "speed.json"
FIGURE = HERE.parent / "docs" / "images" / "work_precision.png"

PANELS, ORDER = 1, 13  # the depth grid of velocities: the fewest nodes that meet the bar
COMPOSITE = (4, 6)  # panels and order of the rows without peers, as a grid for W that is less smooth would be
# Relative errors in the max norm: of a velocity, of z after training, of z along stiff training.
BAR, FLOW_BAR, STIFF_BAR = 1e-8, 1e-7, 5e-7
TOLERANCES = tuple(10.0**-k for k in range(6, 14))
TIGHTEST = 1e-13
INNER = (1.0, 1e-2)  # tolerances of a nested depth solve, in those of the solve over training time
ENGINES = ("plain", "avx2", "avx512")  # by their levels in engine.c
LOW_STORAGE = "carpenter_kennedy"  # of states that fill the memory
FLOW_METHODS = ("auto", "DOP853", "dopri5", "dopri8", "RK45", "LSODA")
FINE_GRID = (1, 16)  # of the work–precision diagram, so that the depth grid has no part in it


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    dimensions: tuple[int, ...] = (8, 16, 32, 64, 128)
    scipy: int = 32  # the largest d for SciPy
    autograd: tuple[int, ...] = (1024, 4096)
    depths: tuple[int, ...] = (256, 1024, 4096, 16384, 65536)
    members: int = 64
    flow: tuple[int, float] = (16, 5.0)  # d and the last training time
    flow_tolerances: tuple[float, ...] = tuple(10.0**-k for k in range(3, 13))
    memory: tuple[tuple[str, int, int], ...] = (("finite", 65536, 16), ("continuous", 24, 512))
    floors: tuple[int, ...] = (8, 16, 32, 64, 96, 128, 256, 384, 512)
    large: tuple[tuple[str, int, int], ...] = (("finite", 10**6, 16), ("continuous", 24, 1024))
    kernels: tuple[int, ...] = (16, 64, 256)
    stiff: float = 1e3  # the last training time
    study: tuple[int, ...] | None = None  # depths; those of the default config when left out
    rounds: int = 15
    budget: float = 30.0  # seconds of the rounds of one row; three are always done
    longest: float = 60.0  # seconds of one call, beyond which no tighter tolerance is tried
    peers: tuple[str, ...] = ("torchdiffeq", "diffrax")  # of single velocities


QUICK = Size(
    dimensions=(8,),
    autograd=(64,),
    depths=(64, 256),
    members=4,
    flow=(3, 0.1),
    flow_tolerances=(1e-3, 1e-9),
    memory=(("finite", 16384, 16), ("continuous", 24, 256)),
    floors=(8, 64),
    large=(("finite", 16384, 16), ("continuous", 24, 64)),
    kernels=(16,),
    stiff=20.0,
    study=(4, 8),
    rounds=3,
    budget=1.0,
    longest=1.0,
)


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator)


def scaled_waves(nodes: Tensor, d: int, seed: int = 0) -> Tensor:
    """W(s) = A₀ + A₁ sin 2s + A₂ cos 3s with normal entries, of largest spectral norm 2 on the nodes: (N, d, d)."""
    A = normal(3, d, d, generator=torch.Generator().manual_seed(seed))
    s = nodes[:, None, None]
    W = A[0] + A[1] * torch.sin(2 * s) + A[2] * torch.cos(3 * s)
    # Of many layers a few say how large W is.
    largest = torch.linalg.matrix_norm(W[:: max(1, len(W) // 64)], 2).max()
    return W * (2 / largest)


def tensor(values: Any) -> Tensor:
    """A result of any peer as a torch tensor."""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def relative(values: Any, reference: Tensor, axes: int) -> float:
    """The error in the max norm over the last `axes` axes, relative to the reference; the largest of a batch."""
    where = tuple(range(-axes, 0))
    error = (tensor(values) - reference).abs().amax(where) / reference.abs().amax(where)
    return float(error.max()) if bool(error.isfinite().all()) else math.inf


def within(bar: float, error: float, what: str) -> None:
    """RuntimeError unless an error of our own meets the bar."""
    if not error <= bar:
        raise RuntimeError(f"{what} is {error:.1e}, above the bar {bar:g}")


class Variant(NamedTuple):
    """A method for the two depth solves, and whether its steps end on the depth nodes."""

    method: str
    landing: bool

    def __str__(self) -> str:
        return f"{self.method}, steps {'end on the nodes' if self.landing else 'free'}"


@dataclass(frozen=True)
class Velocity:
    """One velocity to compute: of a state `(..., N, d, d)` for f(z) = ½‖z − target‖²."""

    grid: nf.DepthGrid
    state: Tensor
    target: Tensor

    @cached_property
    def loss(self) -> nf.Quadratic:
        return nf.Quadratic(self.target)

    @cached_property
    def reference(self) -> Tensor:
        """The velocity of the same panel polynomials on a much finer grid."""
        fine = nf.DepthGrid.gauss(4 * self.grid.panels, 16)
        forward, backward, z = nf.Collocation(fine).propagators(self.grid.interpolate(self.state, fine.nodes))
        before, after = (fine.interpolate(values, self.grid.nodes) for values in (forward, backward))
        return -after.mT @ self.loss.gradient(z).unsqueeze(-3) @ before.mT

    def error(self, velocity: Any) -> float:
        return relative(velocity, self.reference, 3)

    def ours(self) -> Callable[[], Tensor]:
        """Our velocity, checked against the bar."""
        call = partial(nf.ContinuousFlow(self.grid, self.loss).velocity, self.state)
        within(BAR, self.error(call()), "the error of our own velocity")
        return call

    def torchdiffeq(self) -> dict[Hashable, Callable[[float], Tensor]]:
        def run(variant: Variant, tolerance: float) -> Tensor:
            peer = peers.Torchdiffeq(self.grid, self.loss, variant.method, tolerance, variant.landing)
            return peer.velocity(self.state)

        return {v: partial(run, v) for v in variants("dopri5", "dopri8")}

    def diffrax(self, *methods: str) -> dict[Hashable, Callable[[float], Any]]:
        def prepared(variant: Variant) -> Callable[[float], Any]:
            peer = peers.Diffrax(self.grid, *variant)
            function = peer.velocity() if self.state.ndim == 3 else peer.ensemble()
            state, target = peer.array(self.state), peer.array(self.target)
            return lambda tolerance: function(state, target, tolerance).block_until_ready()

        return {v: prepared(v) for v in variants(*methods)}

    def scipy(self) -> dict[Hashable, Callable[[float], Tensor]]:
        return {"DOP853": lambda tolerance: peers.Scipy(self.grid, self.loss, tolerance).velocity(self.state)}


def variants(*methods: str) -> list[Variant]:
    return [Variant(method, landing) for method in methods for landing in (False, True)]


def floor(number: int, d: int) -> Callable[[], Tensor]:
    """Three products of d × d matrices for each of `number` nodes or layers, in one call."""
    factors = normal(3 * number, d, d, generator=torch.Generator().manual_seed(0))
    return partial(torch.bmm, factors, factors)


def against(
    case: str,
    ours: Mapping[str, Callable[[], Any]],
    bound: Callable[[], Any],
    contestants: Mapping[str, Mapping[Hashable, Callable[[float], Any]]],
    error: Callable[[Any], float],
    size: Size,
) -> Row:
    """A row of our sides, the first of which is compared, their floor, and the winners among the variants of peers."""
    sides = {**ours, "floor": bound}
    notes: dict[str, Any] = {name: {"error": error(call())} for name, call in ours.items()}
    for name, peer in contestants.items():
        print(f"{case}, {name}", file=sys.stderr)
        winner = contest(peer, error, BAR, TOLERANCES, size.longest)
        notes[name] = {"variant": "does not meet the bar"} if winner is None else winner.note
        if winner is not None:
            sides[name] = winner.call
    first = next(iter(ours))
    pairs = [(first, "floor"), *((name, first) for name in sides if name not in (first, "floor"))]
    return Row(case, alternated(sides, size), pairs, notes)


def velocity(size: Size) -> Section:
    """One velocity of the continuous model, by dimension."""
    grid, rows = nf.DepthGrid.gauss(PANELS, ORDER), []
    for d in size.dimensions:
        problem = Velocity(grid, scaled_waves(grid.nodes, d), 1.5 * torch.eye(d))
        contestants: dict[str, Any] = {}
        if "torchdiffeq" in size.peers:
            contestants["torchdiffeq"] = problem.torchdiffeq()
        if "diffrax" in size.peers:
            contestants |= {f"diffrax {method}": problem.diffrax(method) for method in ("Tsit5", "Dopri8")}
        if d <= size.scipy:
            contestants["SciPy"] = problem.scipy()
        sides = {"ours": problem.ours()}
        rows.append(against(f"d = {d}", sides, floor(len(grid), d), contestants, problem.error, size))
    composite = nf.DepthGrid.gauss(*COMPOSITE)
    for d in size.dimensions:
        flow = nf.ContinuousFlow(composite, nf.Quadratic(1.5 * torch.eye(d)))
        sides = {"ours": partial(flow.velocity, scaled_waves(composite.nodes, d)), "floor": floor(len(composite), d)}
        rows.append(Row(f"d = {d}, {len(composite)} nodes", alternated(sides, size), [("ours", "floor")]))
    return Section(rows, {"depth nodes": len(grid), "bar": BAR})


def floors(size: Size) -> Section:
    """Velocities over their floor, without peers; on one thread by the time of the processor, also where it is busy."""
    clock, rows = time.process_time if torch.get_num_threads() == 1 else time.perf_counter, []
    for panels, order in ((PANELS, ORDER), COMPOSITE):
        grid = nf.DepthGrid.gauss(panels, order)
        for d in size.floors:
            flow = nf.ContinuousFlow(grid, nf.Quadratic(1.5 * torch.eye(d)))
            sides = {"ours": partial(flow.velocity, scaled_waves(grid.nodes, d)), "floor": floor(len(grid), d)}
            samples = alternated(sides, size, clock)
            rows.append(Row(f"{panels} × {order} nodes, d = {d}", samples, [("ours", "floor")]))
            print(f"{rows[-1].case}: {np.median(samples['ours'] / samples['floor']):.2f}", file=sys.stderr, flush=True)
    return Section(rows)


def ensemble(size: Size) -> Section:
    """The velocities of many models at once, d = 8."""
    grid, d = nf.DepthGrid.gauss(PANELS, ORDER + 1), 8  # one node more than for one: the worst member must meet the bar
    generator = torch.Generator().manual_seed(0)
    targets = 1.5 * torch.eye(d) + 0.1 * normal(size.members, d, d, generator=generator)
    states = torch.stack([scaled_waves(grid.nodes, d, seed) for seed in range(size.members)])
    problem = Velocity(grid, states, targets)
    flows = [nf.ContinuousFlow(grid, nf.Quadratic(target)) for target in targets]
    sides = {
        "ours": problem.ours(),
        "ours, in a loop": lambda: torch.stack([flow.velocity(state) for flow, state in zip(flows, states)]),
    }
    contestants = {"torchdiffeq": problem.torchdiffeq(), "diffrax vmap": problem.diffrax("Tsit5", "Dopri8")}
    bound = floor(size.members * len(grid), d)
    row = against(f"{size.members} members, d = {d}", sides, bound, contestants, problem.error, size)
    return Section([row, trained(size, d)], {"depth nodes": len(grid), "bar": BAR})


def trained(size: Size, d: int) -> Row:
    """The training flows of many models as one run, and one after the other."""
    end = size.flow[1]
    each = [Training.random(d, end, seed) for seed in range(size.members)]
    grid = nf.DepthGrid.gauss(PANELS, ORDER)
    flows = [nf.ContinuousFlow(grid, training.loss) for training in each]
    together = nf.ContinuousFlow(grid, nf.Quadratic(torch.stack([training.target for training in each])))
    states = torch.stack([training.state(grid) for training in each])
    reference = torch.stack([training.reference for training in each])

    def z(flow: nf.ContinuousFlow, state: Tensor) -> Tensor:
        return nf.integrate(flow, state, each[0].times, "DOP853", rtol=1e-8, atol=1e-8).z[-1]

    sides = {
        "ours": partial(z, together, states),
        "ours, in a loop": lambda: torch.stack([z(flow, state) for flow, state in zip(flows, states)]),
    }
    notes = {name: {"error": relative(call(), reference, 2)} for name, call in sides.items()}
    for name, note in notes.items():
        within(FLOW_BAR, note["error"], f"the error of {name}")
    case = f"{size.members} members, d = {d}, trained to T = {end:g}"
    return Row(case, alternated(sides, size), [("ours, in a loop", "ours")], notes)


def network(L: int, d: int) -> tuple[nf.Quadratic, Tensor]:
    """The loss and the state of a finite network: the profile of `velocity` on the middles of L layers."""
    return nf.Quadratic(1.5 * torch.eye(d)), scaled_waves((torch.arange(L) + 0.5) / L, d)


def finite(size: Size) -> Section:
    """One velocity of an Euler network against autograd, and its growth with the number of layers."""
    d, rows, medians = 16, [], []
    for L in size.autograd:
        loss, state = network(L, d)
        flows = {
            "ours": nf.FiniteFlow(L, loss),
            "autograd": peers.AutogradFlow(L, loss),
            "autograd, unbound": peers.AutogradFlow(L, loss, unbound=True),
        }
        sides = {name: partial(flow.velocity, state) for name, flow in flows.items()}
        notes = {f"{name}, difference": agreement(sides[name](), sides["ours"]()) for name in list(sides)[1:]}
        pairs = [("ours", "floor"), ("autograd", "ours"), ("autograd, unbound", "ours")]
        rows.append(Row(f"L = {L}, d = {d}", alternated(sides | {"floor": floor(L, d)}, size), pairs, notes))
    for L in size.depths:
        loss, state = network(L, d)
        sides = {"ours": partial(nf.FiniteFlow(L, loss).velocity, state), "floor": floor(L, d)}
        rows.append(Row(f"L = {L}, d = {d}, ours alone", alternated(sides, size), [("ours", "floor")]))
        medians.append(float(np.median(rows[-1].samples["ours"])))
    exponent = np.polyfit(np.log(size.depths), np.log(medians), 1)[0]
    return Section(rows, {"exponent of our seconds against L": float(exponent), "depths of the fit": size.depths})


def agreement(one: Tensor, other: Tensor) -> float:
    """The relative difference of two ways to compute the same velocity; RuntimeError above the bar."""
    difference = relative(one, other, 3)
    within(BAR, difference, "the difference of two ways to compute one velocity")
    return difference


class Nested(NamedTuple):
    """A method over training time around two depth solves, whose tolerance is the outer one times `factor`."""

    outer: str
    inner: Variant
    factor: float

    def tolerance(self, outer: float) -> float:
        return max(self.factor * outer, TIGHTEST)

    def __str__(self) -> str:
        return f"{self.outer} around {self.inner}, inner tolerance × {self.factor:g}"


@dataclass(frozen=True)
class Training:
    """A training flow to compute: z at the last time, from a relaxed balanced start."""

    z0: Tensor
    target: Tensor
    profile: Profile
    times: Tensor

    @classmethod
    def random(cls, d: int, end: float, seed: int = 0) -> Training:
        generator = torch.Generator().manual_seed(seed)
        z0, target = near_identity(d, generator), near_identity(d, generator)
        profile = nf.relaxed_balanced(z0, random_shift(1.0, generator), random_twist(d, 1.0, generator))
        return cls(z0, target, profile, torch.tensor([0.0, end]))

    @cached_property
    def loss(self) -> nf.Quadratic:
        return nf.Quadratic(self.target)

    @cached_property
    def reference(self) -> Tensor:
        """z of the intrinsic limit."""
        limit = nf.IntrinsicFlow(self.loss, nf.LogMean())
        return nf.integrate(limit, self.z0, self.times, "DOP853", rtol=1e-12, atol=1e-14, throw=True).z[-1]

    def error(self, z: Any) -> float:
        return relative(z, self.reference, 2)

    def state(self, grid: nf.DepthGrid) -> Tensor:
        return nf.ContinuousFlow(grid, self.loss).sample(self.profile)

    def ours(self, grid: nf.DepthGrid) -> dict[Hashable, Callable[[float], Tensor]]:
        """Our methods; z is taken whatever the status: like that of a peer it is judged by its error."""
        flow, state = nf.ContinuousFlow(grid, self.loss), self.state(grid)

        def run(method: str, tolerance: float) -> Tensor:
            return nf.integrate(flow, state, self.times, method, rtol=tolerance, atol=tolerance).z[-1]

        return {method: partial(run, method) for method in FLOW_METHODS}

    def smallest_grid(self) -> nf.DepthGrid:
        """The grid with the fewest nodes whose own error is at most half the bar."""
        grids = (nf.DepthGrid.gauss(1, order) for order in range(4, 33, 2))
        return next(grid for grid in grids if self.error(self.ours(grid)["DOP853"](1e-11)) <= FLOW_BAR / 2)

    def contestants(self, grid: nf.DepthGrid, inner: Mapping[str, Variant]) -> dict[str, dict[Hashable, Any]]:
        """Functions of a tolerance that give z on one grid; `inner` has the depth solves of the nested peers."""
        return {
            "ours": self.ours(grid),
            "torchdiffeq": self.torchdiffeq(grid, inner["torchdiffeq"]),
            "diffrax": self.diffrax(grid, inner["diffrax"]),
        }

    def torchdiffeq(self, grid: nf.DepthGrid, inner: Variant) -> dict[Hashable, Callable[[float], Tensor]]:
        state = self.state(grid)

        def run(nested: Nested, tolerance: float) -> Tensor:
            depth = nested.tolerance(tolerance)
            peer = peers.Torchdiffeq(grid, self.loss, nested.inner.method, depth, nested.inner.landing)
            return peer.flow(state, self.times, nested.outer, tolerance)[-1]

        return {nested: partial(run, nested) for nested in nestings(("dopri5", "dopri8"), inner)}

    def diffrax(self, grid: nf.DepthGrid, inner: Variant) -> dict[Hashable, Callable[[float], Any]]:
        peer = peers.Diffrax(grid, *inner)
        state = peer.array(self.state(grid))
        target, times = peer.array(self.target), peer.array(self.times)
        functions = {outer: peer.flow(outer) for outer in ("Tsit5", "Dopri8")}

        def run(nested: Nested, tolerance: float) -> Any:
            arguments = state, target, times, tolerance, nested.tolerance(tolerance)
            return functions[nested.outer](*arguments).block_until_ready()[-1]

        return {nested: partial(run, nested) for nested in nestings(tuple(functions), inner)}


def near_identity(d: int, generator: torch.Generator) -> Tensor:
    """A random map near the identity with det > 0.1."""
    while True:
        z = torch.eye(d) + normal(d, d, generator=generator) / (2 * math.sqrt(d))
        if torch.linalg.det(z) > 0.1:
            return z


def nestings(outer: Sequence[str], inner: Variant) -> list[Nested]:
    return [Nested(method, inner, factor) for method in outer for factor in INNER]


def flow(size: Size) -> Section:
    """A whole training flow: z at the last time as accurate as the bar, and the work–precision of the winners."""
    d, end = size.flow
    training = Training.random(d, end)
    grid, fine = training.smallest_grid(), nf.DepthGrid.gauss(*FINE_GRID)
    inner = depth_solves(Velocity(grid, training.state(grid), training.target), size)
    winners = {
        name: needed(contest(contestant, training.error, FLOW_BAR, size.flow_tolerances, size.longest), name)
        for name, contestant in training.contestants(grid, inner).items()
    }
    samples = alternated({name: winner.call for name, winner in winners.items()}, size)
    pairs = [(name, "ours") for name in winners if name != "ours"]
    row = Row(f"d = {d}, T = {end:g}", samples, pairs, {name: winner.note for name, winner in winners.items()})
    on_fine = training.contestants(fine, inner)
    curves = {
        name: work_precision(winner.variant, on_fine[name][winner.variant], training.error, size)
        for name, winner in winners.items()
    }
    facts = {"depth nodes": len(grid), "bar": FLOW_BAR, "nodes of the work–precision": len(fine)}
    return Section([row], facts | {"work–precision": curves})


def depth_solves(start: Velocity, size: Size) -> dict[str, Variant]:
    """The fastest depth solves of the nested peers, for the velocity at the start."""
    solves = {"torchdiffeq": start.torchdiffeq(), "diffrax": start.diffrax("Tsit5", "Dopri8")}
    winners = {name: contest(solve, start.error, BAR, TOLERANCES, size.longest) for name, solve in solves.items()}
    return {name: needed(winner, f"the depth solve of {name}").variant for name, winner in winners.items()}


def work_precision(
    variant: Hashable, run: Callable[[float], Any], error: Callable[[Any], float], size: Size
) -> dict[str, Any]:
    """Tolerance, error and seconds of one variant, from loose to tight, as far as it is worth while."""
    points: list[dict[str, float]] = []
    for tolerance in size.flow_tolerances:
        result, _, taken = trial(partial(run, tolerance), fresh=not points)
        if result is None:
            break
        points.append({"tolerance": tolerance, "error": error(result), "seconds": taken})
        if taken > size.longest or points[-1]["error"] < 1e-10:
            break
    return {"variant": str(variant), "points": points}


def draw(facts: Mapping[str, Any], case: str, path: Path) -> None:
    """The work–precision diagram of the section flow."""
    import matplotlib
    from matplotlib.figure import Figure

    from neuralode_flow.figures.style import BLUE, GREEN, HEIGHT, STYLE, VERMILION, WIDTH

    image, nodes = BytesIO(), facts["nodes of the work–precision"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        for (name, curve), colour, marker in zip(facts["work–precision"].items(), (BLUE, VERMILION, GREEN), "osD"):
            work, precision = ([point[key] for point in curve["points"]] for key in ("seconds", "error"))
            label = f"{name}: {curve['variant']}"
            axes.loglog(precision, work, color=colour, marker=marker, label=label)
        axes.invert_xaxis()
        axes.set_xlabel("error of $z$ at the last time, relative, against the intrinsic limit")
        axes.set_ylabel("seconds")
        figure.legend(loc="outside lower left")
        figure.suptitle(f"A training flow to a given accuracy: {case}, {nodes} depth nodes", x=0.01, ha="left")
        figure.savefig(image, format="png", metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, image.getvalue())


def steps(size: Size) -> Section:
    """A step of `descend` beside a velocity: what a longer run takes more, by step.

    The steps are so small that the velocity of the last state takes what that of the first does.
    """
    rows = []
    for d, (panels, order) in itertools.product(size.dimensions, (COMPOSITE, (PANELS, ORDER))):
        grid = nf.DepthGrid.gauss(panels, order)
        z0 = near_identity(d, torch.Generator().manual_seed(0))
        flow, number = nf.ContinuousFlow(grid, nf.Quadratic(1.5 * torch.eye(d))), max(10, 3200 // d)
        state = flow.sample(nf.INITIALS["relaxed_balanced"](z0))

        def run(rule: str, n: int, flow: Flow = flow, state: Tensor = state) -> Any:
            return nf.descend(flow, state, n, rule, 1e-9, record=1000)

        def velocities(flow: Flow = flow, state: Tensor = state, number: int = number) -> None:
            for _ in range(number):
                flow.velocity(state)

        sides: dict[str, Callable[[], Any]] = {"velocity": velocities}
        for rule in ("gd", "heavy_ball", "adam", "muon"):
            sides |= {rule: partial(run, rule, 1 + number), f"{rule}, one": partial(run, rule, 1)}
        samples = alternated(sides, size)
        each = list(sides)[1::2]
        for rule in each:
            samples[rule] = (samples[rule] - samples.pop(f"{rule}, one")) / number
        samples["velocity"] = samples["velocity"] / number
        rows.append(Row(f"d = {d}, {panels} × {order} nodes", samples, [(rule, "velocity") for rule in each]))
    return Section(rows, {"record": 1000})


def kernels(size: Size) -> Section:
    """Velocities of the intrinsic flow, as multiples of one singular value decomposition."""
    rows = []
    for d in size.kernels:
        generator = torch.Generator().manual_seed(0)
        z, loss = near_identity(d, generator), nf.Quadratic(1.5 * torch.eye(d))
        shifts = torch.cumsum(normal(64, generator=generator), 0)
        chosen = {
            "LogMean": nf.LogMean(),
            "TwoLayer": nf.TwoLayer(1.0),
            "DividedDifference": nf.DividedDifference(shifts, time_scale=1 / len(shifts)),
        }
        sides = {name: partial(nf.IntrinsicFlow(loss, kernel).velocity, z) for name, kernel in chosen.items()}
        samples = alternated({"svd": partial(torch.linalg.svd, z)} | sides, size)
        rows.append(Row(f"d = {d}", samples, [(name, "svd") for name in sides]))
    return Section(rows, {"layers of DividedDifference": 64})


def stiff(size: Size) -> Section:
    """The closed equation in z on ill-conditioned data, where only implicit methods get far; error in tolerances."""
    end, rows = size.stiff, []
    problem = PROBLEMS["breast_cancer"]()
    cases = {"breast_cancer": (problem.loss, problem.z0), "condition 1e6": (synthetic(), torch.eye(8))}
    for name, (loss, z0) in cases.items():
        times = torch.cat((torch.zeros(1), torch.logspace(0, math.log10(end), 4)))
        flow, closed = nf.IntrinsicFlow(loss, nf.LogMean()), peers.Closed(loss)
        reference = closed.scipy(z0, times, 1e-12)

        def ours(tolerance: float, method: str = "auto", flow=flow, z0=z0, times=times) -> nf.Trajectory:
            return nf.integrate(flow, z0, times, method, tolerance, tolerance / 100, throw=True)

        def error(z: Any, reference=reference) -> float:
            return relative(z, reference, 2)

        contestants: dict[str, dict[Hashable, Callable[[float], Any]]] = {
            "ours": {m: lambda tolerance, m=m, ours=ours: ours(tolerance, m).z for m in ("auto", "BDF")},
            "SciPy": {m: partial(closed.scipy, z0, times, method=m) for m in ("Radau", "BDF")},
        }
        if find_spec("diffrax"):
            contestants["diffrax"] = {"Kvaerno5": peers.Closed.diffrax(loss, z0, times, "Kvaerno5")}
        tolerances = tuple(10.0 ** (-k / 2) for k in range(8, 20))
        winners = {
            side: needed(contest(peer, error, STIFF_BAR, tolerances, size.longest), side)
            for side, peer in contestants.items()
        }
        notes: dict[str, Any] = {side: winner.note for side, winner in winners.items()}
        notes["evaluations"] = ours(winners["ours"].tolerance, str(winners["ours"].variant)).stats["evaluations"]
        for tolerance in (1e-6, 1e-8, 1e-10):
            distance = torch.linalg.matrix_norm(ours(tolerance).z - reference)
            allowed = tolerance / 100 + tolerance * torch.linalg.matrix_norm(reference)
            notes[f"error / tolerance at {tolerance:g}"] = float((distance / allowed).max())
        samples = alternated({side: winner.call for side, winner in winners.items()}, size, time.process_time)
        rows.append(Row(f"{name}, t ≤ {end:g}", samples, [(side, "ours") for side in list(winners)[1:]], notes))
        rows.append(stiff_in_depth(f"{name}, 4 × 8 nodes, t ≤ {end:g}", loss, z0, times, size))
    return Section(rows, {"bar": STIFF_BAR, "seconds": "of processor time"})


def stiff_in_depth(case: str, loss: nf.Regression, z0: Tensor, times: Tensor, size: Size) -> Row:
    """The continuous flow at one tolerance: Newton's systems through z, and by GMRES with products of directions."""
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 8), loss)
    start = flow.sample(INITIALS["relaxed_balanced"](z0))
    methods = {"ours": "auto", "GMRES": "CVODE_BDF"}
    calls = {side: partial(nf.integrate, flow, start, times, method, 1e-6, 1e-8) for side, method in methods.items()}
    notes = {f"evaluations of {side}": call().stats["evaluations"] for side, call in calls.items()}
    return Row(case, alternated(calls, size, time.process_time), [("GMRES", "ours")], notes)


def memory(size: Size) -> Section:
    """The peak memory of one velocity above that of its state, in units of the state, in a process of its own."""
    rows = []
    for kind, number, d in size.memory:
        code = f"import speed; print(speed.peak({kind!r}, {number}, {d}, {torch.get_num_threads()}))"
        peaks = [float(output([sys.executable, "-c", code], cwd=HERE)) for _ in range(3)]
        case = f"{kind}, {number} {'layers' if kind == 'finite' else 'nodes'}, d = {d}"
        rows.append(
            Row(case, {"peak": np.array(peaks)}, notes={"bytes of the state": 8 * number * d * d}, unit="states")
        )
    return Section(rows, {"the velocity itself": "1 state"})


def peak(kind: str, number: int, d: int, threads: int) -> float:
    """What a velocity of this process takes at its peak, in states."""
    prepare(kind, threads)
    flow, state = model(kind, number, d)
    return above(state, partial(flow.velocity, state))[0]


def prepare(kind: str, threads: int) -> None:
    """Sets this process up, and loads what is loaded at first use."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(threads)
    flow, state = model(kind, math.prod(COMPOSITE), 4)
    nf.integrate(flow, state, [0.0, 1e-3], LOW_STORAGE)


def above(state: Tensor, call: Callable[[], Any]) -> tuple[float, Any]:
    """The peak of memory of a call above what there was before, in states, and its result."""
    # The peak is reset, since making the state has left one. (That of getrusage cannot be, and a process has it from
    # the one that started it.)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    result = call()
    return (resident("VmHWM") - before) / (8 * state.numel()), result


def large(size: Size) -> Section:
    """States that fill the memory: peaks of a velocity, a step and a flow above the state, each in its own process."""
    rows = []
    for kind, number, d in size.large:
        peaks, notes = {}, {"bytes of the state": 8 * number * d * d}
        for what in ("velocity", "step", "flow"):
            code = f"import speed; speed.lone({what!r}, {kind!r}, {number}, {d}, {torch.get_num_threads()})"
            found = json.loads(output([sys.executable, "-c", code], cwd=HERE))
            peaks[what] = np.array([found.pop("peak")])
            notes[what] = found
        case = f"{kind}, {number} {'layers' if kind == 'finite' else 'nodes'}, d = {d}"
        rows.append(Row(case, peaks, notes=notes, unit="states"))
    return Section(rows, {"method": LOW_STORAGE, "a flow": "one step, and what is recorded at both of its ends"})


def lone(what: str, kind: str, number: int, d: int, threads: int) -> None:
    """Prints the peak and the seconds of a velocity, a step or a flow, and the error of a velocity."""
    prepare(kind, threads)
    flow, state = model(kind, number, d)
    if kind == "continuous":
        state = turning(flow.grid.nodes, d)
    method = METHODS[LOW_STORAGE]
    calls: dict[str, Callable[[], Any]] = {
        "velocity": lambda: flow.velocity(state),
        "step": lambda: method(
            Start(lambda _, W: flow.velocity(W), 0.0, state, 1e-2, Control(1e-6, 1e-8, None), {})
        ).advance(1e-2),
        "flow": lambda: nf.integrate(flow, state, [0.0, 1e-2], LOW_STORAGE, throw=True),
    }
    start = time.process_time()
    states, result = above(state, calls[what])
    found = {"peak": states, "s of processor time": time.process_time() - start}
    if what == "velocity":
        found["error"] = by_another_engine(flow, state, result) if kind == "finite" else by_exponentials(flow, result)
    print(json.dumps(found))


def turn(d: int) -> tuple[Tensor, Tensor]:
    """A with normal entries and a skew B, of spectral norms 1 and about 0.7."""
    A, B = normal(2, d, d, generator=torch.Generator().manual_seed(1)) / (2 * d**0.5)
    return A, (B - B.mT) / 2


def turning(nodes: Tensor, d: int) -> Tensor:
    """W(s) = e^{sB} A e^{−sB}, for which P(s, 0) = e^{sB} e^{s(A − B)}."""
    A, B = turn(d)
    return torch.stack([torch.matrix_exp(s * B) @ A @ torch.matrix_exp(-s * B) for s in nodes])


def by_exponentials(flow: nf.ContinuousFlow, velocity: Tensor) -> float:
    """The error of a velocity at the first, a middle and the last node of `turning`, by its closed form."""
    A, B = turn(velocity.shape[-1])
    z = torch.matrix_exp(B) @ torch.matrix_exp(A - B)
    missed = []
    for i in (0, len(velocity) // 2, len(velocity) - 1):
        s = flow.grid.nodes[i]
        before = torch.matrix_exp(s * B) @ torch.matrix_exp(s * (A - B))
        after = torch.matrix_exp(B) @ torch.matrix_exp((1 - s) * (A - B)) @ torch.matrix_exp(-s * B)
        missed.append(relative(velocity[i], -after.mT @ flow.loss.gradient(z) @ before.mT, 2))
    return max(missed)


def by_another_engine(flow: nf.FiniteFlow, state: Tensor, velocity: Tensor) -> float:
    """The difference of a velocity of Euler layers from that of torch's engine."""
    expected = by_torch.chain(state, flow.loss.gradient, LAYERS["euler"], len(state)).neg_()
    size = float(expected.abs().max())
    return float(expected.sub_(velocity).abs_().max()) / size


def model(kind: str, number: int, d: int) -> tuple[Flow, Tensor]:
    if kind == "finite":
        loss, state = network(number, d)
        return nf.FiniteFlow(number, loss), state
    grid = nf.DepthGrid.gauss(number // COMPOSITE[1], COMPOSITE[1])
    return nf.ContinuousFlow(grid, nf.Quadratic(1.5 * torch.eye(d))), scaled_waves(grid.nodes, d)


def resident(name: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS is the memory in use, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def output(command: Sequence[str], cwd: Path | None = None) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def imports(size: Size) -> Section:
    """Processes that import the package, the help of the command line, and small runs with all of their figures."""
    python, program = sys.executable, str(Path(sys.executable).with_name("neuralode-flow"))
    commands = {
        "import torch": [python, "-c", "import torch"],
        "import torch, neuralode_flow": [python, "-c", "import torch, neuralode_flow"],
        "neuralode-flow --help": [program, "--help"],
    }
    with TemporaryDirectory() as folder:
        for run in ("debug=quick", "experiment=diagonal"):
            commands[f"neuralode-flow {run}"] = [program, run, "-q", f"out={folder}"]
        sides = {name: partial(output, command) for name, command in commands.items()}
        samples = alternated(sides, replace(size, rounds=min(size.rounds, 7)))
    pairs = [(name, "import torch") for name in commands if name != "import torch"]
    code = "import sys; from neuralode_flow.app.main import command; sys.argv[1:] = ['--help']\ntry: command()\n"
    code += "finally: sys.exit('torch' in sys.modules)"
    status = subprocess.run([python, "-c", code], capture_output=True).returncode
    return Section([Row("a new process", samples, pairs)], {"--help imports torch": bool(status)})


def study(size: Size) -> Section:
    """The convergence study of breast_cancer, else at the defaults, against its finite networks trained by autograd.

    Autograd takes too long to train them: its time is that of single velocities times the evaluations that the study
    reports, shared out evenly among the processors. Those of Euler layers count twice, since the square has a second
    network of each depth, with as many evaluations. The rest of the study (solver, outputs, the continuous model, the
    intrinsic flows) is in our time alone.
    """
    from hydra import compose, initialize_config_module

    from neuralode_flow.app.job import build
    from neuralode_flow.app.schema import checked
    from neuralode_flow.studies import convergence

    with initialize_config_module("neuralode_flow.conf", version_base="1.3"):
        job = checked(compose("config", ["problem=breast_cancer"]))
    options = dict(job.study.parameters) | ({} if size.study is None else {"depths": size.study})
    inputs, threads, workers = build(job), torch.get_num_threads(), len(os.sched_getaffinity(0))
    torch.set_num_threads(1)  # as in the study, whose networks run side by side
    results: list[Any] = []
    start = time.perf_counter()  # one run at least, and three if they fit
    while not results or (len(results) < 3 and time.perf_counter() - start < size.budget):
        began = time.perf_counter()
        results.append((convergence.run(**inputs, **options), time.perf_counter() - began))
    dataset, rows, totals = results[-1][0], [], {"autograd": 0.0, "autograd, unbound": 0.0}
    for layer in options["layers"]:
        for L in options["depths"]:
            row = one_network(inputs, layer, L, options["sampling"], size)
            row.notes["evaluations"] = int(dataset["evaluations"].sel(rule=layer, depth=L))
            networks = 2 if layer == "euler" else 1
            for name in totals:
                totals[name] += networks * row.notes["evaluations"] * float(np.median(row.samples[name])) / workers
            rows.append(row)
    torch.set_num_threads(threads)
    whole = {"ours": np.array([taken for _, taken in results])}
    whole |= {name: np.array([value]) for name, value in totals.items()}
    rows.insert(0, Row("the whole study; autograd computed", whole, [(name, "ours") for name in totals]))
    how = "median seconds of one velocity × evaluations of the study, summed over the networks, / processes"
    return Section(rows, {"processes": workers, "autograd of the whole study": how})


def one_network(inputs: dict[str, Any], layer: str, L: int, sampling: str, size: Size) -> Row:
    """One velocity of a network of the study."""
    loss = inputs["problem"].loss
    flows = {
        "ours": nf.FiniteFlow(L, loss, layer, sampling),
        "autograd": peers.AutogradFlow(L, loss, layer, sampling),
        "autograd, unbound": peers.AutogradFlow(L, loss, layer, sampling, unbound=True),
    }
    state = flows["ours"].sample(inputs["initial"])
    sides = {name: partial(flow.velocity, state) for name, flow in flows.items()}
    notes = {"difference": max(agreement(call(), sides["ours"]()) for call in sides.values())}
    samples = alternated(sides, replace(size, rounds=3))
    return Row(f"{layer}, L = {L}", samples, [(name, "ours") for name in list(sides)[1:]], notes)


# In the order in which they run: the study forks, which it must not do beside the threads of JAX.
SECTIONS: dict[str, Callable[[Size], Section]] = {
    "study": study,
    "imports": imports,
    "steps": steps,
    "memory": memory,
    "velocity": velocity,
    "finite": finite,
    "ensemble": ensemble,
    "flow": flow,
    "kernels": kernels,
    "stiff": stiff,
    "large": large,
    "floors": floors,
}
NAMED = ("study", "large", "floors")  # which run only when they are named
DEFAULT = tuple(name for name in SECTIONS if name not in NAMED)


def measured(name: str, size: Size) -> dict[str, Any]:
    """A section as it is saved."""
    start = time.perf_counter()
    section = SECTIONS[name](size)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - start,
        "machine": machine(),
        "versions": versions(),
        "rows": [row.record() for row in section.rows],
        "facts": section.facts,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures the speed of the package against its peers.")
    parser.add_argument(
        "sections",
        nargs="*",
        metavar="SECTION",
        help=f"of {', '.join(SECTIONS)}; default all but {', '.join(NAMED)}",
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all processors")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file of the results, default %(default)s")
    parser.add_argument(
        "--figure", type=Path, nargs="?", const=FIGURE, help="draws the work–precision of the section flow"
    )
    parser.add_argument("--engine", choices=ENGINES, help="the most that the compiled engine may use")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.sections) - set(SECTIONS))
    if unknown:
        parser.error(f"unknown section {unknown[0]!r} (valid: {', '.join(SECTIONS)})")
    if not 1 <= chosen.threads <= len(os.sched_getaffinity(0)):
        parser.error(f"threads must be from 1 to {len(os.sched_getaffinity(0))}, the processors here")
    if chosen.quick and chosen.out == RESULTS:
        parser.error("--quick measures nothing that should be kept: give it an --out of its own")
    return chosen


def limit_threads(threads: int) -> None:
    """Bounds torch, BLAS below NumPy and, by the set of processors, XLA, which starts later."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    threadpool_limits(threads)


def main() -> None:
    chosen = arguments()
    limit_threads(chosen.threads)
    if chosen.engine is not None and compiled.library() is not None:
        compiled.set_level(ENGINES.index(chosen.engine))
    torch.set_default_dtype(torch.float64)
    results = json.loads(chosen.out.read_text(encoding="utf-8")) if chosen.out.exists() else {}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    wanted = chosen.sections or DEFAULT
    if chosen.figure is not None and "flow" not in {*results, *wanted}:
        sys.exit(f"--figure draws the section flow, which {chosen.out} does not have: name it too")
    for name in (name for name in SECTIONS if name in wanted):
        results[name] = measured(name, QUICK if chosen.quick else Size())
        atomic_write(chosen.out, (json.dumps(results, indent=2, ensure_ascii=False) + "\n").encode())
        print(f"\n## {name}\n\n{table(results[name])}", flush=True)
    if chosen.figure is not None:
        draw(results["flow"]["facts"], results["flow"]["rows"][0]["case"], chosen.figure)


if __name__ == "__main__":
    try:
        main()
    except ModuleNotFoundError as error:
        sys.exit(str(error))
