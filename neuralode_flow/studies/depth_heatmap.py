"""Figure 1 of Marion et al. 2023: how far the weights of L layers are from the limit, along gradient descent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count, positive, seeded
from ..depth import DepthSolver
from ..depth.grid import DepthGrid, Profile
from ..finding import Check, Claim, Finding
from ..flows.continuous import ContinuousFlow
from ..flows.finite import FiniteFlow
from ..initial import smooth
from ..orders import Order, observed_order, said
from ..problems import Problem
from ..signatures import Depths, Seed
from ..time.integrate import integrate
from ..time.trajectory import Trajectory
from .axes import arranged, axis, depth, largest_of
from .base import STUDIES, Clock, Progress, Reads, Study, whole

_ORDER = 0.05
_WRITTEN = 1e-6  # of what is measured of the first depth, by two routes to one limit: round-off


def run(
    problem: Problem,
    solver: DepthSolver,
    clock: Annotated[Clock, Reads(("max_evaluations", "max_seconds"))],
    *,
    depths: Depths = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    iterations: int = 50,
    rate: float = 0.01,
    scale: float = 1.0,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """‖W^L − W‖ in L² over depth after each of 50 gradient steps with learning rate 0.01 L, for depths 2¹ … 2¹⁰.

    The layers are Euler layers that sample a smooth random profile; the reference is the continuous model itself, moved
    by the same steps on a collocation grid, where the paper takes a network of depth 2¹⁴.

    Parameters
    ----------
    problem : Problem
    solver : DepthSolver
    clock : Clock
        Its budgets; the steps are those of the paper.
    depths : sequence of int
        L, increasing.
    iterations : int
    rate : float
        Learning rate divided by L.
    scale : float
        Size of the initial profile.
    seed : int
        Of the initial profile.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
    """
    steps, h = count("study.iterations", iterations), positive("study.rate", rate)
    loss, d = problem.loss, problem.z0.shape[-1]
    generator = seeded("study.seed", seed)
    profile = smooth(d, positive("study.scale", scale), generator)
    times = torch.arange(steps + 1, dtype=torch.float64) * h
    descent: dict[str, Any] = {"method": "euler", "step": h * (1 + 1e-9)} | clock.budgets()

    def descended(flow: Any, what: str) -> Trajectory:
        path = integrate(flow, flow.sample(profile), times, **descent, observe=lambda i, W: W.clone())
        return whole(path, what)

    flow = ContinuousFlow(solver.grid, loss, solver)
    finer = DepthGrid.gauss(2 * solver.grid.panels, solver.grid.order)
    reference = descended(flow, "continuous model")
    doubled = descended(flow.on(finer), "continuous model on a doubled grid")
    floor = float(_apart(doubled, solver.grid, reference, finer.nodes).max())
    distances, gaps = [], []
    for k, L in enumerate(depths):
        if progress is not None:
            progress(k / len(depths), f"L = {L}")
        net = FiniteFlow(L, loss)
        path = descended(net, f"network of {L} layers")
        distances.append(_apart(path, solver.grid, reference, net.nodes))
        gaps.append(torch.linalg.matrix_norm(path.z - reference.z).numpy())
    later = np.array(distances)[:, 1:]  # at iteration 0 the layers are the profile
    found = [observed_order(np.array(depths), column, floor) for column in later.T]
    written = _written(problem, profile, depths[0], rate, solver.grid, reference)
    pairs = zip((distances, gaps), written, strict=True)
    off = [largest_of(np.abs(measured[0][1:] / own[1:] - 1)) for measured, own in pairs]
    dataset = _dataset(depths, distances, gaps, floor, found).assign(
        written_off=(
            (),
            largest_of(off),
            {"long_name": "distances at the first L off those of steps written out, relative"},
        )
    )
    return _finding(dataset, f"Marion et al. 2023, figure 1: {problem.title}", found).attached(dataset)


def _written(
    problem: Problem, profile: Profile, L: int, rate: float, grid: DepthGrid, reference: Trajectory
) -> tuple[np.ndarray, np.ndarray]:
    """The distances in W and in z of L layers after each step, (iterations + 1,) each, written out in NumPy.

    W_k ← W_k − γL ∂f/∂W_k of f(U_L … U_1), U_k = I + W_k/L, by products of all other layers; the limit by the
    polynomials of its panels.
    """
    assert reference.observed is not None
    limit, limit_z = (values.detach().cpu().double().numpy() for values in (reference.observed, reference.z))
    eye, s = np.eye(limit.shape[-1]), (np.arange(L) + 0.5) / L
    nodes, panel = grid.nodes.cpu().numpy(), np.minimum((s * grid.panels).astype(int), grid.panels - 1)
    own = [slice(k * grid.order, (k + 1) * grid.order) for k in panel]
    at = np.stack([np.tensordot(_lagrange(nodes[k], x), limit[:, k], (0, 1)) for k, x in zip(own, s, strict=True)], 1)
    W = np.stack([profile(float(x)).detach().cpu().double().numpy() for x in s])
    apart, apart_z = [], []
    for n in range(len(limit)):
        U = eye + W / L
        before, after = [eye], [eye]  # U_{k−1} … U_1 and U_L … U_{k+1}
        for k in range(L - 1):
            before.append(U[k] @ before[-1])
            after.append(after[-1] @ U[L - 1 - k])
        z = U[-1] @ before[-1]
        apart.append(np.sqrt(np.square(W - at[n]).sum((1, 2)).mean()))
        apart_z.append(np.sqrt(np.square(z - limit_z[n]).sum()))
        slope = problem.loss.gradient(torch.as_tensor(z).to(reference.z)).detach().cpu().double().numpy()
        W = W - rate * np.stack([A.T @ slope @ B.T for A, B in zip(after[::-1], before, strict=True)])
    return np.array(apart), np.array(apart_z)


def _lagrange(nodes: np.ndarray, x: float) -> np.ndarray:
    """The Lagrange polynomials of nodes at x."""
    gaps = nodes[:, None] - nodes + np.eye(len(nodes))
    ratios = (x - nodes) / gaps
    np.fill_diagonal(ratios, 1.0)
    return np.asarray(ratios.prod(1))


def _dataset(
    depths: Sequence[int], distances: list[np.ndarray], gaps: list[np.ndarray], floor: float, found: Sequence[Order]
) -> xr.Dataset:
    return arranged(
        {
            "distance": (("depth", "iteration"), distances, "‖W^L − W‖ in L² over depth"),
            "error_z": (("depth", "iteration"), gaps, "‖z_L − z‖, Frobenius norm"),
            "error_grid": ((), floor, "limit minus the same on a doubled depth grid"),
            "order": ("later", [order.value for order in found], "observed order in 1/L"),
        },
        [depth(depths, "layers L"), axis("iteration", np.arange(len(found) + 1), "gradient steps")],
    )


def _finding(dataset: xr.Dataset, title: str, found: Sequence[Order]) -> Finding:
    orders, first, last = dataset.order.values, dataset.isel(depth=0), dataset.isel(depth=-1)
    off = float(np.abs(orders - 1).max())  # NaN where one of them is undecided
    error_grid = float(dataset.error_grid)
    by_iteration = tuple(p._replace(rule=f"W in 1/L, iteration {k}", expected=1.0) for k, p in enumerate(found, 1))
    return Finding(
        study="depth_heatmap",
        problem=title,
        status="ok",
        verdict=f"‖W^L − W‖ falls at order {said(found)} in 1/L at every one of {len(found)} iterations, from "
        f"{first.distance.values.max():.1e} at L = {int(first.depth)} to {last.distance.values.max():.1e} at "
        f"L = {int(last.depth)}.",
        claim=Claim(
            "the weights converge to the limit as L grows, uniformly over the iterations, at rate 1/L",
            measured=[float(orders.min()), float(orders.max())],
            published=1.0,
            figure="F2",
        ),
        checks=(
            Check("the order at each iteration from 1", off, _ORDER, "largest over the iterations"),
            Check(
                f"distances at L = {int(first.depth)} off those of steps written out",
                float(dataset.written_off),
                _WRITTEN,
                "relative, of W and z, largest over the iterations",
            ),
            Check("error in depth of the limit", error_grid, norm="largest over the iterations, L² over depth"),
        ),
        orders=by_iteration,
        numbers={"reference_error": error_grid},
    )


def _apart(path: Trajectory, grid: DepthGrid, reference: Trajectory, nodes: Tensor) -> np.ndarray:
    """‖W − W_reference‖, root mean square over the nodes of the path, at each time."""
    assert path.observed is not None
    assert reference.observed is not None
    gap = path.observed - grid.interpolate(reference.observed, nodes)
    return gap.square().sum((-2, -1)).mean(-1).sqrt().numpy()


STUDIES.register("depth_heatmap")(
    Study(
        run,
        steps="study.iterations, study.rate",
        question="Do the weights of residual networks of L layers stay near those of the continuous model during "
        "gradient descent, at which rate in L?",
    )
)
