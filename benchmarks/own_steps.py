"""Steps of a member's own beside shared steps: python benchmarks/own_steps.py [continuous] [intrinsic] or one of
[whole] [layers] [closed]

256 members, d = 4, the rates of whose losses are spread over 10³; each has a closed solution, from which its error is
measured, in tolerances. Shared steps are also taken at tolerances so much smaller that their largest error is no larger
than with own steps. torchode (where it is installed; not a dependency) has steps of a member's own too: it is given the
same velocities, which it computes for all members until the last has arrived. Times are the processor's on one thread,
medians in alternation. `whole`: runs of one state in whole steps of the compiled engine beside the same by velocities.
`layers`: what a layer of a finite network costs in runs of 64 members. `closed`: velocities of the closed flow of
layers, of 256 members with shifts of their own, by torch and in C.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

import torch
from harness import machine
from torch import Tensor

import neuralode_flow as nf
from neuralode_flow.depth.engine import divided, explicit, polar
from neuralode_flow.losses import Squares
from neuralode_flow.losses.base import of_some

MEMBERS, D, REPEATS = 256, 4, 3
RTOL, ATOL = 1e-8, 1e-10
METHODS = ("DOP853", "dopri5")
TIGHTER = (1.0, 3.0, 10.0, 30.0)


class Rated:
    """f(z) = ½ c ‖z − T‖², with a rate c `(members,)` and a target for each member."""

    def __init__(self, target: Tensor, rate: Tensor) -> None:
        self.target, self.rate = target, rate
        self.shape, self.dimension = target.shape[-2:], target.shape[-1]

    def __call__(self, z: Tensor) -> Tensor:
        return self.rate * (z - self.target).square().sum((-2, -1)) / 2

    def gradient(self, z: Tensor) -> Tensor:
        return self.rate[..., None, None] * (z - self.target)

    def squares(self) -> Squares:
        return Squares(None, self.target, weight=self.rate)

    def select(self, members: Sequence[int], index: Tensor) -> Rated:
        some = copy.copy(self)
        some.target, some.rate = of_some(self.target, 2, members, index), of_some(self.rate, 0, members, index)
        return some


def problem(kind: str) -> tuple[Any, Tensor, Tensor, Tensor, Rated]:
    """A flow, its start, the output times, and z there in closed form: the target commutes with the start."""
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(MEMBERS, D, D, generator=generator)).Q
    sigma = 0.5 + 1.5 * torch.rand(MEMBERS, D, generator=generator)
    rate = torch.logspace(-1, 2, MEMBERS)[torch.randperm(MEMBERS, generator=generator)]
    times = torch.linspace(0, 2, 3)
    known = [nf.exact.aligned_limit(c * times, torch.ones(D), s) for c, s in zip(rate, sigma, strict=True)]
    z = Q @ torch.diag_embed(torch.stack(known, 1)) @ Q.mT
    loss = Rated(Q @ torch.diag_embed(sigma) @ Q.mT, rate)
    if kind == "intrinsic":
        return nf.IntrinsicFlow(loss, nf.LogMean()), torch.eye(D).expand(MEMBERS, D, D).clone(), times, z, loss
    grid = nf.DepthGrid.gauss(panels=4, order=6)
    return nf.ContinuousFlow(grid, loss), torch.zeros(MEMBERS, len(grid.nodes), D, D), times, z, loss


def error(z: Tensor, known: Tensor) -> float:
    """The largest error of a member, in tolerances."""
    allowed = ATOL + RTOL * torch.linalg.matrix_norm(known)
    return float((torch.linalg.matrix_norm(z - known) / allowed).max())


class Ran(NamedTuple):
    """z at the output times, and how many velocities of members that took."""

    z: Tensor
    number: int


def by_torchode(flow: Any, start: Tensor, times: Tensor, tighter: float) -> Ran:
    """The same flow by torchode's dopri5, which interpolates what lies inside its steps."""
    import torchode

    def velocity(t: Tensor, y: Tensor) -> Tensor:
        return flow.velocity(y.view_as(start)).flatten(1)

    term = torchode.ODETerm(velocity)
    control = torchode.IntegralController(atol=ATOL / tighter, rtol=RTOL / tighter, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), control)
    given = torchode.InitialValueProblem(y0=start.flatten(1), t_eval=times.expand(MEMBERS, -1))
    with torch.no_grad():
        path = solver.solve(given)
    assert bool((path.status == 0).all()), path.status
    z = [flow.product(path.ys[:, k].reshape(start.shape)) for k in range(len(times))]
    return Ran(torch.stack(z), int(path.stats["n_f_evals"].sum()))


def measured(kind: str, method: str) -> None:
    flow, start, times, known, _ = problem(kind)
    own = nf.integrate(flow, start, times, method, RTOL, ATOL, control="member")

    def by_us(control: str, tighter: float) -> Ran:
        path = nf.integrate(flow, start, times, method, RTOL / tighter, ATOL / tighter, control=control)
        assert path.status == "ok", path.status
        members = path.stats.get("members")
        return Ran(path.z, sum(members["evaluations"]) if members else MEMBERS * path.stats["evaluations"])

    def run(control: str, tighter: float = 1.0) -> tuple[Ran, float]:
        before = time.process_time()
        path = by_torchode(flow, start, times, tighter) if control == "torchode" else by_us(control, tighter)
        return path, time.process_time() - before

    def as_accurate(control: str) -> float:
        """How much tighter the tolerances must be."""
        return next(t for t in TIGHTER if t == TIGHTER[-1] or error(run(control, t)[0].z, known) <= worst)

    worst = error(own.z, known)
    runs = {"own": ("member", 1.0), "shared": ("shared", 1.0), "shared, as accurate": ("shared", as_accurate("shared"))}
    if method == "dopri5" and find_spec("torchode"):
        runs["torchode, as accurate"] = ("torchode", as_accurate("torchode"))
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, how in runs.items():
            path, seconds = run(*how)
            spent[name].append(seconds)
            if len(spent[name]) == REPEATS:
                ratio = median(spent[name]) / median(spent["own"])
                print(
                    f"| {kind} | {method} | {name} | {RTOL / how[1]:.1e} | {path.number} | {error(path.z, known):.2g} "
                    f"| {median(spent[name]):.2f} | {ratio:.2f} |",
                    flush=True,
                )
    alone = []
    for i in range(0, MEMBERS, 8):
        one = copy.copy(flow)
        one.loss = flow.loss.select((MEMBERS,), torch.tensor(i))
        path = nf.integrate(one, start[i], times, method, RTOL, ATOL)
        alone.append((path.stats["evaluations"], own.stats["members"]["evaluations"][i], path.z, own.z[:, i]))
    needed, taken = sum(row[0] for row in alone), sum(row[1] for row in alone)
    apart = max(float((row[2] - row[3]).abs().max()) for row in alone)
    print(
        f"| {kind} | {method} | {len(alone)} of them alone | {RTOL:.1e} | {needed}; own: {taken} | z apart {apart:.1e} "
        f"| | |",
        flush=True,
    )


def whole() -> None:
    """Runs of one state, as they are and with the velocity asked for at each stage, of the closed flow outside of C."""
    modules, generator = (explicit, polar, divided), torch.Generator().manual_seed(0)
    takes = [module.takes for module in modules]
    print("| flow | d | method | steps | ms by velocities | in whole steps | ratio |")
    print("|---|---|---|---|---|---|---|")
    for d in (4, 8, 16, 32):
        loss = nf.Quadratic(torch.eye(d) + 0.5 * torch.randn(d, d, generator=generator) / d**0.5)
        flows = {
            "16 Euler layers": nf.FiniteFlow(16, loss),
            "13 nodes": nf.ContinuousFlow(nf.DepthGrid.gauss(1, 13), loss),
            "closed": nf.IntrinsicFlow(loss, nf.LogMean()),
        }
        if d <= divided.LARGEST:
            shifts = torch.cumsum(torch.randn(16, generator=torch.Generator().manual_seed(1)), 0) / 16**2
            flows["closed, 16 layers"] = nf.IntrinsicFlow(loss, nf.DividedDifference(shifts, 1 / 16))
        for name, flow in flows.items():
            state = torch.eye(d) if name.startswith("closed") else flow.sample(nf.identity(d))
            for method in METHODS:
                spent: dict[bool, list[float]] = {False: [], True: []}
                for _ in range(2 * REPEATS + 1):
                    for how, seconds in spent.items():
                        for module, its in zip(modules, takes):
                            module.takes = its if how else lambda *_: False
                        before = time.process_time()
                        path = nf.integrate(flow, state, torch.linspace(0, 2, 5), method, RTOL, ATOL)
                        seconds.append(time.process_time() - before)
                by_velocities, in_whole = (1e3 * median(seconds) for seconds in spent.values())
                print(
                    f"| {name} | {d} | {method} | {path.stats['steps']} | {by_velocities:.1f} | {in_whole:.1f} "
                    f"| {by_velocities / in_whole:.1f} |",
                    flush=True,
                )


def closed() -> None:
    """Velocities of the closed flow of layers, by torch and in the compiled engine."""
    generator, takes = torch.Generator().manual_seed(0), divided.takes
    print("| d | layers | µs by torch | in C | ratio |")
    print("|---|---|---|---|---|")
    for d in (2, 4, 8, 10, 16, 32):
        for L in (4, 16, 64, 256, 1024):
            shifts = torch.cumsum(torch.randn(MEMBERS, L, generator=generator), 1) / L**2
            z = torch.eye(d) + 0.5 * torch.randn(MEMBERS, d, d, generator=generator)
            flow = nf.IntrinsicFlow(nf.Quadratic(torch.eye(d)), nf.DividedDifference(shifts[0], 1 / L))
            flow.kernel = nf.DividedDifference.together([nf.DividedDifference(own, 1 / L) for own in shifts])
            spent: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(4 * REPEATS + 1):
                for how, seconds in spent.items():
                    divided.takes = takes if how else lambda _: False
                    before = time.process_time()
                    flow.velocity(z)
                    seconds.append(time.process_time() - before)
            by_torch, in_C = (1e6 * median(seconds) / MEMBERS for seconds in spent.values())
            print(f"| {d} | {L} | {by_torch:.1f} | {in_C:.1f} | {by_torch / in_C:.1f} |", flush=True)


def layers() -> None:
    """Processor time for each layer in each velocity of a member, with all that belongs to the run (DOP853)."""
    generator, members = torch.Generator().manual_seed(0), 64
    print("| d | rule | ns a layer: L = 4 | 16 | 64 |")
    print("|---|---|---|---|---|")
    for d in (2, 3, 4, 5, 6, 8):
        loss = nf.Quadratic(torch.eye(d) + 0.5 * torch.randn(members, d, d, generator=generator) / d**0.5)
        for rule in ("euler", "rk2", "cayley", "exp"):
            each: list[str] = []
            for L in (4, 16, 64):
                flow, costs = nf.FiniteFlow(L, loss, rule), []
                start = torch.randn(members, L, d, d, generator=generator) / d**0.5
                for _ in range(2 * REPEATS + 1):
                    before = time.process_time()
                    path = nf.integrate(flow, start, [0.0, 4.0], METHODS[0], RTOL, ATOL, control="member")
                    number = sum(path.stats["members"]["evaluations"])
                    costs.append((time.process_time() - before) / (number * L))
                each.append(f"{1e9 * median(costs):.0f}")
            print(f"| {d} | {rule} | {' | '.join(each)} |", flush=True)


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    facts = machine()
    print(f"{facts}\n")
    for name, measure in (("whole", whole), ("layers", layers), ("closed", closed)):
        if name in sys.argv:
            return measure()
    print("| flow | method | steps | rtol | velocities of members | largest error, tolerances | s | over own |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in sys.argv[1:] or ("continuous", "intrinsic"):
        for method in METHODS:
            measured(kind, method)


if __name__ == "__main__":
    main()
