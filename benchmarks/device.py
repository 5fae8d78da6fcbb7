"""What an accelerator does: python benchmarks/device.py [--device cuda] [--out FILE] [--seconds 200]

Velocities of the continuous model beside the floor of their products on that device and beside its peers there, whole
training flows of 10⁴ members, how often the processor waits for the device in a step, and how far all of it is from
the numbers of the processor. On a machine without such a device it runs on the CPU: then what is said of looks and
floors is not of a device, and its title says "not measured".
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of the memory at its start

import torch
from harness import Row, Section, alternated, contest, machine, table, versions
from speed import BAR, ORDER, PANELS, TOLERANCES, Velocity, relative, scaled_waves
from torch import Tensor

import neuralode_flow as nf
from neuralode_flow.looks import Looks, postponed

SIZES = {1: (8, 16, 32, 64, 128, 256, 512), 64: (8, 16, 32, 64, 128), 4096: (8, 16, 32)}  # dimensions by members
PEERS = ((8, 1), (64, 1), (8, 64))
ROUND_OFF = 1e-12

METHODS = {"DOP853": {}, "dopri5": {}, "dopri8": {}, "RK45": {}, "rk4": {"step": 0.05}}
RULES = {"gd": {}, "heavy_ball": {"momentum": 0.9}, "adam": {}}


@dataclass(frozen=True)
class Effort:
    rounds: int = 7
    budget: float = 1.0
    longest: float = 20.0


class Bench:
    """A device, and the time that is left on it."""

    def __init__(self, device: str, seconds: float) -> None:
        self.device, self.end = torch.device(device), time.perf_counter() + seconds
        self.real = self.device.type == "cuda"
        self.effort = Effort() if self.real else Effort(rounds=2, budget=0.2, longest=1.0)

    def over(self, what: str) -> bool:
        """Whether there is no time for more, which is said."""
        if time.perf_counter() < self.end:
            return False
        print(f"no time was left for {what}", file=sys.stderr)
        return True

    def clock(self) -> float:
        """Seconds, when all that was asked of the device is done."""
        if self.real:
            torch.cuda.synchronize()
        return time.perf_counter()

    def sides(self, what: str, **sides: Callable[[], Any]) -> dict[str, Any]:
        """Seconds of each, in turn."""
        print(f"{what}, {self.end - time.perf_counter():.0f} s are left", file=sys.stderr, flush=True)
        return alternated(sides, self.effort, self.clock)


def waves(d: int, members: int, nodes: Tensor) -> Tensor:
    """`scaled_waves` of a few seeds, over and over again: (members, N, d, d)."""
    some = torch.stack([scaled_waves(nodes, d, seed) for seed in range(min(members, 4))])
    return some.repeat(-(-members // len(some)), 1, 1, 1)[:members]


def replayed(flow: nf.ContinuousFlow, state: Tensor) -> Callable[[], Tensor]:
    """The velocity as runs have it: not looked at, and from the second call on without its operations being named."""
    looks = Looks()

    def call() -> Tensor:
        with postponed(looks):
            value = looks.replayed(0, flow.velocity, state)
        looks.doubts.clear()
        return value

    return call


def velocity(bench: Bench) -> Section:
    """One velocity, by dimension and members."""
    grid, rows = nf.DepthGrid.gauss(PANELS, ORDER, device=bench.device), []
    on_cpu = nf.DepthGrid.gauss(PANELS, ORDER)
    for members, dimensions in SIZES.items() if bench.real else ((1, (8, 16)), (64, (8,))):
        for d in dimensions:
            if bench.over(f"d = {d}, {members} members"):
                continue
            state = waves(d, members, on_cpu.nodes)
            loss = nf.Quadratic(1.5 * torch.eye(d))
            known = nf.ContinuousFlow(on_cpu, loss).velocity(state[:4])
            state = state.to(bench.device)
            flow = nf.ContinuousFlow(grid, nf.Quadratic(loss.target.to(bench.device)))
            factors = torch.randn(3 * members * len(grid), d, d, device=bench.device)
            ours, again = partial(flow.velocity, state), replayed(flow, state)
            again()
            errors = {name: relative(call()[:4].cpu(), known, 3) for name, call in (("ours", ours), ("in runs", again))}
            sides = {"ours": ours, "in runs": again, "floor": partial(torch.bmm, factors, factors)}
            pairs = [("ours", "floor"), ("in runs", "floor")]
            case = f"{members} members, d = {d}"
            rows.append(Row(case, bench.sides(case, **sides), pairs, {"from the CPU": errors}))
            del state, factors, ours, again, sides
    return Section(rows, {"depth nodes": len(on_cpu)})


class There(Velocity):
    """A velocity to compute on a device; its reference is computed here."""

    device: torch.device

    def on(self, device: torch.device) -> There:
        grid = nf.DepthGrid.gauss(self.grid.panels, self.grid.order, device=device)
        moved = There(grid, self.state.to(device), self.target.to(device))
        moved.__dict__["reference"] = self.reference  # cached
        return moved

    def error(self, velocity: Any) -> float:
        return relative(velocity.cpu() if isinstance(velocity, Tensor) else velocity, self.reference, 3)


def peers(bench: Bench) -> Section:
    """The same velocities by torchdiffeq and, compiled, by diffrax, at the bar."""
    grid, rows = nf.DepthGrid.gauss(PANELS, ORDER), []
    for d, members in PEERS if bench.real else PEERS[:1]:
        if bench.over(f"peers at d = {d}, {members} members"):
            continue
        state = scaled_waves(grid.nodes, d) if members == 1 else waves(d, members, grid.nodes)
        target = 1.5 * torch.eye(d).expand(*state.shape[:-3], d, d)
        problem = There(grid, state, target).on(bench.device)
        contestants: dict[str, dict[Hashable, Callable[[float], Any]]] = {"torchdiffeq": problem.torchdiffeq()}
        try:
            contestants["diffrax"] = problem.diffrax("Dopri8")
        except ModuleNotFoundError as error:
            print(error, file=sys.stderr)
        flow = nf.ContinuousFlow(problem.grid, problem.loss)
        sides = {"ours": problem.ours(), "in runs": replayed(flow, problem.state)}
        notes: dict[str, Any] = {"ours": {"error": problem.error(sides["ours"]())}}
        for name, variants in contestants.items():
            some = dict(list(variants.items())[-2:])  # of the method of order 8
            winner = contest(some, problem.error, BAR, TOLERANCES[3:], bench.effort.longest)
            notes[name] = {"variant": "does not meet the bar"} if winner is None else winner.note
            if winner is not None:
                sides[name] = winner.call
        pairs = [(name, other) for name in sides if name in contestants for other in ("ours", "in runs")]
        case = f"{members} members, d = {d}"
        rows.append(Row(case, bench.sides(case, **sides), pairs, notes))
    return Section(rows, {"bar": BAR})


def ensemble(members: int, d: int, device: torch.device | str) -> tuple[nf.ContinuousFlow, Tensor]:
    """A flow of members with a target each, near the identity, where they start."""
    random = torch.Generator().manual_seed(0)
    targets = torch.linalg.matrix_exp(0.5 * torch.randn(members, d, d, generator=random))
    grid = nf.DepthGrid.gauss(PANELS, ORDER, device=device)
    return nf.ContinuousFlow(grid, nf.Quadratic(targets.to(device))), torch.zeros(
        members, len(grid), d, d, device=device
    )


def flows(bench: Bench) -> Section:
    """Whole training flows of many members, with shared steps and with steps of their own."""
    rows, members = [], 10_000 if bench.real else 16
    times = [0.0, 1.0, 2.0]
    few = ensemble(64, 4, "cpu")
    known = nf.integrate(*few, times, "DOP853").z
    found = nf.integrate(*ensemble(64, 4, bench.device), times, "DOP853").z.cpu()
    agreement = float((found - known).abs().max())
    for number in (64, members):
        for control in ("shared", "member"):
            if bench.over(f"{number} flows, {control}"):
                continue
            given = ensemble(number, 4, bench.device)
            start = bench.clock()
            path = nf.integrate(*given, times, "DOP853", control=control)
            seconds = bench.clock() - start
            notes = {"status": path.status, "steps": path.stats["steps"], "64 from the CPU": agreement}
            rows.append(
                Row(f"{number} flows, d = 4, {control}", {"seconds": torch.tensor([seconds]).numpy()}, [], notes)
            )
    return Section(rows, {"times": str(times)})


@contextmanager
def looked() -> Iterator[list[int]]:
    """Counts how often the processor waits for the device."""
    count = [0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield count
        finally:
            torch.cuda.set_sync_debug_mode("default")
            count[0] = sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def looks(bench: Bench) -> Section:
    """How often the processor waits in a step, from what twice as long a run adds, and how long steps take."""
    rows = []
    for kind in ("continuous", "euler", "intrinsic"):
        for name in (*METHODS, *RULES):
            if bench.over(f"looks of {kind}, {name}"):
                continue
            counts, steps, seconds = [], [], []
            for end in (1.0, 3.0):
                flow, start = model(kind, bench.device)
                run = partial(trained, flow, start, name, end)
                run()
                before = bench.clock()
                path = run()
                seconds.append(bench.clock() - before)
                if bench.real:
                    with looked() as count:
                        run()
                    counts.append(count[0])
                steps.append(path.stats["steps"])
            more = steps[1] - steps[0]
            values = {"of a step": torch.tensor([(seconds[1] - seconds[0]) / max(1, more)]).numpy()}
            waits = (counts[1] - counts[0]) / max(1, more) if counts else "not measured"
            rows.append(Row(f"{kind}, {name}", values, [], {"looks": {"for a step": waits, "steps": steps[1]}}))
    return Section(rows, {"d": 8})


def model(kind: str, device: torch.device) -> tuple[Any, Tensor]:
    random, d = torch.Generator().manual_seed(1), 8
    loss = nf.Quadratic(torch.linalg.matrix_exp(0.3 * torch.randn(d, d, generator=random)).to(device))
    if kind == "continuous":
        grid = nf.DepthGrid.gauss(PANELS, ORDER, device=device)
        return nf.ContinuousFlow(grid, loss), torch.zeros(len(grid), d, d, device=device)
    if kind == "intrinsic":
        return nf.IntrinsicFlow(loss, nf.LogMean()), torch.eye(d, device=device)
    return nf.FiniteFlow(64, loss, kind), torch.zeros(64, d, d, device=device)


def trained(flow: Any, start: Tensor, name: str, end: float) -> nf.Trajectory:
    if name in RULES:
        return nf.descend(flow, start, round(end / 0.02), name, 0.02, record=10**6, **RULES[name])
    return nf.integrate(flow, start, [0.0, end], name, **METHODS[name])


SECTIONS = {"flows": flows, "velocity": velocity, "looks": looks, "peers": peers}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the package on an accelerator.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default %(default)s")
    parser.add_argument("--seconds", type=float, default=200.0, help="after which nothing new is begun, %(default)s")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    chosen = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    bench, results = Bench(chosen.device, chosen.seconds), {}
    name = torch.cuda.get_device_name(bench.device) if bench.real else "no accelerator: not measured"
    print(f"# {name}\n\n{machine()}\n{versions()}", flush=True)
    for section in chosen.sections or SECTIONS:
        found = SECTIONS[section](bench)
        results[section] = {"device": name, "rows": [row.record() for row in found.rows], "facts": found.facts}
        print(f"\n## {section}\n\n{table(results[section])}", flush=True)
        if chosen.out is not None:
            chosen.out.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
