"""Measures the accuracy that README.md states, and prints it as the table there: python benchmarks/accuracy.py"""

from __future__ import annotations

import math

import torch

import neuralode_flow as nf
from neuralode_flow import exact
from neuralode_flow.depth.grid import Profile
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


def main() -> None:
    torch.set_num_threads(1)
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


if __name__ == "__main__":
    main()
