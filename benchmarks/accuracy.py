"""Measures the accuracy that README.md states, and prints it as the table there: python benchmarks/accuracy.py

python benchmarks/accuracy.py grids measures how near the grids of `DepthGrid.auto` are to what was asked for;
python benchmarks/accuracy.py default how right the default grid of the command line is, beside grids that are chosen;
python benchmarks/accuracy.py steps how near the errors in time that ``estimate=True`` states are to the true ones;
python benchmarks/accuracy.py adapt how far z is off where the grid follows W from four nodes on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from hydra import compose, initialize_config_module
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.linalg import matrix_norm

import neuralode_flow as nf
from neuralode_flow import exact
from neuralode_flow.app.job import build
from neuralode_flow.app.schema import checked
from neuralode_flow.depth.grid import Profile, sample
from neuralode_flow.depth.sizing import ORDERS, PANELS, Truth, sweepable
from neuralode_flow.flows.base import Flow
from neuralode_flow.initial import random_shift, random_twist
from neuralode_flow.losses import Quadratic
from neuralode_flow.time import Trajectory

TIMES = torch.linspace(0, 2, 6, dtype=torch.float64)
SEEDS = range(5)


def randn(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def start(d: int, generator: torch.Generator) -> torch.Tensor:
    """A random z₀ near the identity with det > 0."""
    while True:
        z0 = torch.eye(d, dtype=torch.float64) + randn(d, d, generator=generator) / (2 * math.sqrt(d))
        if torch.linalg.det(z0) > 0.1:
            return z0


def solve(flow: Flow, state: torch.Tensor, method: str = "DOP853", rtol: float = 1e-11) -> Trajectory:
    path = nf.integrate(flow, state, TIMES, method, rtol=rtol, atol=rtol / 100)
    if path.status != "ok":
        raise RuntimeError(path.status)
    return path


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(one - other).max())


def relaxed_balanced(d: int, seed: int) -> tuple[Quadratic, torch.Tensor, Profile]:
    """A random quadratic loss, z₀, and a relaxed balanced profile with random twist and shift."""
    generator = torch.Generator().manual_seed(seed)
    z0, loss = start(d, generator), nf.Quadratic(2 * randn(d, d, generator=generator) / math.sqrt(d))
    return loss, z0, nf.relaxed_balanced(z0, random_shift(1.0, generator), random_twist(d, 2.0, generator))


def limit_error(d: int, seed: int) -> float:
    loss, z0, W0 = relaxed_balanced(d, seed)
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 8), loss)
    return distance(solve(flow, flow.sample(W0)).z, solve(nf.IntrinsicFlow(loss, nf.LogMean()), z0).z)


def finite_error(L: int, d: int, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    z0, target = start(d, generator), start(d, generator)
    shifts = torch.cat((torch.zeros(1).double(), torch.cumsum(randn(L - 1, generator=generator), 0)))
    state, loss = nf.relaxed_balanced_layers(z0, shifts, generator), nf.Quadratic(target)
    closed = nf.IntrinsicFlow(loss, nf.DividedDifference(shifts, time_scale=1 / L))
    return distance(solve(nf.FiniteFlow(L, loss), state).z, solve(closed, z0).z)


def drift(kind: str, seed: int) -> float:
    loss, _, W0 = relaxed_balanced(4, seed)
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 12), loss) if kind == "continuous" else nf.FiniteFlow(64, loss)
    return float(solve(flow, flow.sample(W0), "dopri5", 1e-10).drift.max())


def aligned_error() -> float:
    sigma, tau = torch.tensor([[0.3, 1.0, 2.0], [2.0, 0.5, -0.5]], dtype=torch.float64)
    path = solve(nf.IntrinsicFlow(nf.Quadratic(torch.diag(tau)), nf.LogMean()), torch.diag(sigma), rtol=1e-12)
    return distance(path.z, torch.diag_embed(exact.aligned_limit(TIMES, sigma, tau)))


def gradient_error(seed: int) -> float:
    loss, _, W0 = relaxed_balanced(4, seed)
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(3, 4), loss)
    state = flow.sample(W0).requires_grad_()
    (slope,) = torch.autograd.grad(loss(flow.product(state)), state)
    velocity = flow.velocity(state.detach())
    return distance(velocity, -slope / flow.grid.weights[:, None, None]) / float(velocity.abs().max())


def depth_ratios() -> list[float]:
    """Estimated over true depth error of z, on grids that resolve W from badly to well."""
    ratios = []
    for d, seed in ((2, 0), (4, 1), (8, 2)):
        loss, z0, W0 = relaxed_balanced(d, seed)
        limit = solve(nf.IntrinsicFlow(loss, nf.LogMean()), z0, rtol=1e-12)
        for panels, order in ((1, 4), (1, 6), (2, 4), (4, 3), (4, 4), (4, 6), (8, 4)):
            flow = nf.ContinuousFlow(nf.DepthGrid.gauss(panels, order), loss)
            path = nf.integrate(flow, W0, TIMES, "DOP853", rtol=1e-12, atol=1e-14)
            ratios.append(float(path.depth_error.max()) / distance(path.z, limit.z))
    return ratios


COARSE = ((1, 3), (1, 4), (1, 6), (1, 8), (2, 3), (2, 4), (2, 6), (4, 3), (4, 4))


def random_depth_ratios(problems: int = 60) -> tuple[list[float], list[float]]:
    """Stated over true error of z that a coarse grid makes, where it is least: estimated, and with ``estimate=True``.

    Half of the profiles are relaxed balanced, the others entire; the horizons are 0.3 to 20.
    """
    ratios: tuple[list[float], list[float]] = [], []
    for seed in range(problems):
        generator = torch.Generator().manual_seed(seed)
        d, times = 2 + seed // 2 % 5, torch.linspace(0, 1, 7).double() * 10 ** (1.8 * (seed / problems) - 0.5)
        if seed % 2:
            loss, _, W0 = relaxed_balanced(d, seed)
        else:
            loss, W0 = (
                nf.Quadratic(2 * randn(d, d, generator=generator) / math.sqrt(d)),
                Wave.random("entire", d, generator),
            )
        flow = nf.ContinuousFlow(nf.DepthGrid.gauss(*COARSE[seed % len(COARSE)]), loss)
        true = nf.integrate(flow.on(nf.DepthGrid.gauss(4, 16)), W0, times, "DOP853", rtol=1e-11, atol=1e-13)
        for estimate, found in zip((False, True), ratios, strict=True):
            path = nf.integrate(flow, W0, times, "DOP853", rtol=1e-11, atol=1e-13, estimate=estimate)
            found.append(float((path.depth_error / matrix_norm(path.z - true.z)).min()))
    return ratios


STATED = ("dopri5", "DOP853", "RK23", "Radau", "rodas5p", "LSODA", "BDF", "CVODE_Adams", "CVODE_BDF", "auto")


def closed_run(seed: int) -> tuple[Flow, Tensor, Tensor, float]:
    """A random closed flow of d ≤ 4, its z₀, 2 to 20 output times up to 0.3 … 100, and a tolerance, 1e-8 … 1e-3."""
    generator = torch.Generator().manual_seed(seed)
    d, between = 1 + seed % 4, torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    loss, z0 = Quadratic(2 * randn(d, d, generator=generator) / math.sqrt(d)), start(d, generator)
    kernel = (nf.LogMean(), nf.TwoLayer(0.5))[seed // 4 % 2]
    times = torch.linspace(0, 10 ** (2.5 * between[0] - 0.5), (2, 3, 6, 20)[seed // 8 % 4], dtype=torch.float64)
    return nf.IntrinsicFlow(loss, kernel), z0, times, 10 ** (5 * between[1] - 8)


def study_of_steps(problems: int = 64) -> None:
    """True over stated error at the worst output of each run, and evaluations of the estimate over those of the run."""
    print("| method | median | 9 of 10 | largest | evaluations of the estimate |")
    for method in STATED:
        ratios, costs = [], []
        for seed in range(problems):
            flow, z0, times, rtol = closed_run(seed)
            true = nf.integrate(flow, z0, times, "DOP853", rtol=1e-13, atol=1e-15, checks=False)
            path = nf.integrate(flow, z0, times, method, rtol=rtol, atol=rtol / 100, estimate=True)
            if path.time_error is None or len(path.times) < len(times):
                raise RuntimeError(path.status)
            off = matrix_norm(path.z - true.z)
            told = off > 1e-11  # what the reference itself may be off by
            ratios.append(float((off / path.time_error)[told].max()) if told.any() else 0.0)
            costs.append(path.stats["estimate_evaluations"] / path.stats["evaluations"])
        low, high = np.quantile(ratios, (0.5, 0.9))
        print(f"| {method} | {low:.2f} | {high:.2f} | {max(ratios):.2f} | {np.median(costs):.1f} |", flush=True)


FOLLOWING = {
    "gradient flow": lambda flow: flow,
    "that of steps of 0.2": lambda flow: nf.ModifiedFlow(flow, 0.2),
    "inertia, friction 0.5": lambda flow: nf.MomentumFlow(flow, 0.5),
    "inertia alone": lambda flow: nf.MomentumFlow(flow, 0.0),
}


def study_of_following(problems: int = 20) -> None:
    """The error of z in tolerances, the largest of each run, of runs with ``adapt=True`` from 1 × 4 nodes on, and of
    the same on 4 × 16, whose error is that in time; random profiles of d = 2 … 6, horizons 0.3 to 20."""
    print("| flow | rtol | adapt=True: median, largest | 4 × 16: median, largest | nodes at the end |")
    print("|---|---|---|---|---|")
    for name, made in FOLLOWING.items():
        for rtol in (1e-4, 1e-6, 1e-8):
            adaptive, fixed, nodes = [], [], []
            for seed in range(problems):
                times = torch.linspace(0, 1, 7, dtype=torch.float64) * 10 ** (1.8 * (seed / problems) - 0.5)
                loss, _, W0 = relaxed_balanced(2 + seed % 5, seed)
                few, many = (made(nf.ContinuousFlow(nf.DepthGrid.gauss(*size), loss)) for size in ((1, 4), (4, 16)))
                true = nf.integrate(many, W0, times, "DOP853", rtol=1e-12, atol=1e-14, checks=False).z
                allowed = rtol / 100 + rtol * matrix_norm(true)
                for flow, found in ((few, adaptive), (many, fixed)):
                    path = nf.integrate(flow, W0, times, "DOP853", rtol, rtol / 100, adapt=flow is few)
                    if path.ending == "depth":
                        raise RuntimeError(path.status)
                    found.append(float((matrix_norm(path.z - true) / allowed).max()))
                    if flow is few:
                        nodes.append(path.stats["grid"][0] * path.stats["grid"][1])
            said = " | ".join(f"{np.median(found):.2g}, {max(found):.2g}" for found in (adaptive, fixed))
            print(f"| {name} | {rtol:g} | {said} | {min(nodes)} … {max(nodes)} |", flush=True)


KINDS = ("entire", "wiggly", "piecewise", "large")
DIMENSIONS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
ASKED = (1e-4, 1e-6, 1e-8, 1e-10)
LOSSES = 4  # random ones, for each profile
PAST = 3  # orders that are too low, one below the other, after which no lower one is tried
SOLVED = 8  # the largest d for which DOP853 is asked as well


class Wave(NamedTuple):
    """W(s) = A₀ + A₁ sin(a₁ s) + A₂ cos(a₂ s), and one matrix more on each of some equal parts of [0, 1]."""

    matrices: Tensor
    rates: tuple[float, float]
    parts: int

    def at(self, nodes: Tensor) -> Tensor:
        A, (a, b), s = self.matrices, self.rates, nodes[:, None, None]
        W = A[0] + torch.sin(a * s) * A[1] + torch.cos(b * s) * A[2]
        return W if self.parts == 1 else W + A[3 + (self.parts * nodes).long().clamp(max=self.parts - 1)]

    def __call__(self, s: float) -> Tensor:
        return self.at(torch.tensor([s], dtype=torch.float64))[0]

    @classmethod
    def random(cls, kind: str, d: int, generator: torch.Generator) -> Wave:
        """Of norm 0.5 to 4, or 5 to 20 if `large`; "wiggly" with 8 to 30 radians; "piecewise" with 1, 3 or 7 jumps."""

        def between(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand(1, generator=generator, dtype=torch.float64))

        rates = (between(8, 30), between(8, 30)) if kind == "wiggly" else (between(1, 4), between(1, 4))
        size = between(5, 20) if kind == "large" else between(0.5, 4)
        parts = 2 ** int(between(1, 4)) if kind == "piecewise" else 1
        return cls(size / (4 * math.sqrt(d)) * randn(11, d, d, generator=generator), rates, parts)


def dimension(seed: int) -> int:
    return DIMENSIONS[seed // len(KINDS) % len(DIMENSIONS)]


@dataclass(frozen=True)
class Sized:
    """A profile, its propagators on 640 nodes, and losses ½‖z − T‖² with T as large as z."""

    W: Wave
    grid: nf.DepthGrid
    before: Tensor
    after: Tensor
    z: Tensor
    targets: Tensor

    @classmethod
    def random(cls, seed: int) -> Sized:
        generator, d = torch.Generator().manual_seed(seed), dimension(seed)
        W, grid = Wave.random(KINDS[seed % len(KINDS)], d, generator), nf.DepthGrid.gauss(64, 10)
        before, after, z = nf.Collocation(grid).propagators(sample(W, grid.nodes))
        targets = randn(LOSSES, d, d, generator=generator)
        return cls(W, grid, before, after, z, targets * (matrix_norm(z) / d))

    @cached_property
    def steepness(self) -> float:
        return float(matrix_norm(sample(self.W, self.grid.nodes[::10]), 2).max())

    def velocity_at(self, before: Tensor, after: Tensor, target: Tensor) -> Tensor:
        return -after.mT @ (self.z - target) @ before.mT

    def error(self, grid: nf.DepthGrid) -> float:
        """Of the velocity at the nodes of a grid, relative to the largest over depth; of the worst of the losses."""
        state, errors = sample(self.W, grid.nodes), []
        before, after = (self.grid.interpolate(P, grid.nodes) for P in (self.before, self.after))
        for target in self.targets:
            gap = nf.ContinuousFlow(grid, Quadratic(target)).velocity(state)
            gap -= self.velocity_at(before, after, target)
            largest = matrix_norm(self.velocity_at(self.before, self.after, target)).max()
            errors.append(float(matrix_norm(gap).max() / largest))
        return max(errors)

    def product_error(self, grid: nf.DepthGrid) -> float:
        z = nf.Collocation(grid).product(sample(self.W, grid.nodes))
        return float(matrix_norm(z - self.z) / matrix_norm(self.z))

    def fewest(self, tol: float, found: nf.DepthGrid) -> int:
        """The nodes of the smallest grid that meets `tol`: `found`, or one that `auto` could have chosen instead."""
        best = len(found)
        for panels in PANELS:
            missed = 0
            for order in reversed([m for m in ORDERS if panels * m < len(found) and sweepable(self.steepness, panels)]):
                missed = 0 if self.error(nf.DepthGrid.gauss(panels, order)) <= tol else missed + 1
                if missed == 0:
                    best = min(best, panels * order)
                if missed == PAST:
                    break
        return best

    def by_scipy(self) -> float:
        """The error of the propagators at some nodes against DOP853 at 1e-13, relative to their largest product."""
        d, nodes = self.W.matrices.shape[-1], self.grid.nodes[5::40].numpy()
        before, z = propagated(lambda s, X: self.W(s).numpy() @ X, d, nodes, self.W.parts)
        # Y(r) = P(1, 1 − r)ᵀ solves Y' = W(1 − r)ᵀ Y
        after, _ = propagated(lambda r, Y: self.W(1 - r).numpy().T @ Y, d, 1 - nodes[::-1], self.W.parts)
        solved = [torch.from_numpy(P) for P in (before, after[::-1].copy().swapaxes(-1, -2), z)]
        ours = [self.before[5::40], self.after[5::40], self.z]
        return max(float((matrix_norm(a - b) / matrix_norm(b)).max()) for a, b in zip(ours, solved, strict=True))


def propagated(slope, d: int, nodes: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """X at the nodes and at 1, of X' = slope(s, X), X(0) = I; SciPy starts again after each part."""
    X, kept = np.eye(d), []
    for part in range(parts):
        low, high = part / parts, (part + 1) / parts
        within = nodes[(low < nodes) & (nodes <= high)]

        def flat(s: float, x: np.ndarray, low: float = low, high: float = high) -> np.ndarray:
            # The ends of a part belong to it.
            return slope(min(max(s, low + 1e-15), high - 1e-15), x.reshape(d, d)).ravel()

        run = solve_ivp(flat, (low, high), X.ravel(), "DOP853", [*within, high], rtol=1e-13, atol=1e-15)
        if not run.success:
            raise RuntimeError(run.message)
        kept.extend(run.y.T[:-1].reshape(-1, d, d))
        X = run.y[:, -1].reshape(d, d)
    return np.array(kept), X


class Grids(NamedTuple):
    """What `auto` found for one profile and tolerance."""

    kind: str
    tol: float
    error: float
    product_error: float
    nodes: int
    fewest: int


def grids(seeds: Sequence[int], asked: Sequence[float] = ASKED) -> list[Grids]:
    """The errors of the grids that `auto` chooses for random profiles, and the fewest nodes that would have done."""
    found = []
    for seed in seeds:
        case, kind = Sized.random(seed), KINDS[seed % len(KINDS)]
        for tol in asked:
            grid = nf.DepthGrid.auto(case.W, tol)
            errors = case.error(grid), case.product_error(grid)
            found.append(Grids(kind, tol, *errors, len(grid), case.fewest(tol, grid)))
    return found


def said(found: Sequence[Grids], of: str) -> str:
    """One row of the table of `grids`."""
    parts = np.array([f.error / f.tol for f in found])
    excess = np.array([f.nodes - f.fewest for f in found])
    lower, middle, upper = np.quantile(parts, (0.25, 0.5, 0.75))
    return (
        f"| {of} | {parts.max():.2f} | {lower:.2g} / {middle:.2g} / {upper:.2g} | {(parts >= 0.01).mean():.0%} | "
        f"{max(f.product_error / f.tol for f in found):.1g} | {np.median([f.nodes for f in found]):g} | "
        f"{np.median(excess):g}, {excess.max()} |"
    )


def study_of_grids(count: int = 200) -> None:
    found = grids(range(count))
    print("| profiles | largest error / tol | quartiles | at least tol/100 | z | nodes | above the fewest |")
    print("|---|---|---|---|---|---|---|")
    for tol in ASKED:
        print(said([f for f in found if f.tol == tol], f"tol {tol:g}"))
    for kind in KINDS:
        print(said([f for f in found if f.kind == kind], kind))
    print(said(found, "all"))
    solved = [s for s in range(count) if dimension(s) <= SOLVED][:20]
    worst = max(Sized.random(seed).by_scipy() for seed in solved)
    print(f"\nReference against DOP853 at 1e-13, {len(solved)} profiles: {worst:.1e}")


# What comes with the package, in `study=trajectory` to its default horizon.
COMMANDS = ("problem=linnerud", "problem=linnerud initial=smooth", "problem=linnerud initial=detour",
            "problem=breast_cancer_white", "problem=digits", "problem=teacher problem.dimension=4")  # fmt: skip


def on_the_grid_of(words: str) -> tuple[int, float, float, float]:
    """Nodes of the grid of a command; the errors there of the velocity at the start, of z(T), and of W(T) between."""
    with initialize_config_module("neuralode_flow.conf", version_base="1.3"):
        job = checked(compose("config", ["study=trajectory", *words.split()]))
    problem, W, solver, clock = build(job).values()
    fine, times = nf.DepthGrid.gauss(8, 16), clock.times[[0, -1]]
    here, true = (
        nf.integrate(nf.ContinuousFlow(grid, problem.loss), W, times, "DOP853", rtol=1e-12, atol=1e-14)
        for grid in (solver.grid, fine)
    )
    z, depths = true.z[-1], torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    W_here, W_true = solver.grid.interpolate(here.state, depths), fine.interpolate(true.state, depths)
    velocity = Truth.on(fine, lambda nodes: sample(W, nodes)).error(solver.grid, sample(W, solver.grid.nodes))
    between = float(matrix_norm(W_here - W_true).max() / matrix_norm(W_true).max())
    return len(solver.grid), velocity, float(matrix_norm(here.z[-1] - z) / matrix_norm(z)), between


def study_of_the_default() -> None:
    print("| command | grid | nodes | velocity at the start | z at the end | W between nodes at the end |")
    print("|---|---|---|---|---|---|")
    for command in COMMANDS:
        for chosen in ("", "depth.tol=1e-10", "depth.tol=1e-8"):
            nodes, *errors = on_the_grid_of(f"{command} {chosen}")
            said = " | ".join(f"{error:.0e}" for error in errors)
            print(f"| {command} | {chosen or 'default'} | {nodes} | {said} |", flush=True)


def claims() -> None:
    rows = {
        "continuous model − intrinsic limit, random twist and shift, d = 2 … 16, 32 depth nodes": max(
            limit_error(d, seed) for d in (2, 3, 5, 8, 16) for seed in SEEDS[:2]
        ),
        "L layers, mixed λ_k, random gauge − their divided-difference flow, L = 2 … 8, d = 2 … 6": max(
            finite_error(L, d, seed) for L in (2, 3, 5, 8) for d in (2, 4, 6) for seed in SEEDS[:2]
        ),
        "intrinsic limit − closed solution, aligned modes": aligned_error(),
        "law drift, continuous flow, dopri5 at rtol 1e-10, d = 4": max(drift("continuous", seed) for seed in SEEDS),
        "law drift, 64 Euler layers, dopri5 at rtol 1e-10, d = 4": max(drift("euler", seed) for seed in SEEDS),
        "continuous velocity − autograd through the depth product, relative": max(gradient_error(s) for s in SEEDS),
    }
    print("| claim | measured |\n|---|---|")
    for claim, figure in rows.items():
        print(f"| {claim} | {figure:.0e} |")
    ratios = depth_ratios()
    print(f"| depth_error over the true depth error, 21 grids | {min(ratios):.2g} … {max(ratios):.2g} |")
    guessed, measured = random_depth_ratios()
    least, median = (f"{min(found):.2g}, {np.median(found):.2g}" for found in (guessed, measured))
    print(
        f"| the same on 60 coarse grids, where it is least, and with estimate=True: least, median | {least}; {median} |"
    )


SECTIONS = {
    "claims": claims,
    "grids": study_of_grids,
    "default": study_of_the_default,
    "steps": study_of_steps,
    "adapt": study_of_following,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="?", default="claims", choices=[*SECTIONS])
    torch.set_num_threads(1)
    SECTIONS[parser.parse_args().section]()


if __name__ == "__main__":
    main()
