"""Figure 1 of Marion et al. 2023: how far the weights of L layers are from the limit, along gradient descent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count, positive
from ..depth.grid import DepthGrid
from ..flows.continuous import ContinuousFlow
from ..flows.finite import FiniteFlow
from ..initial import smooth
from ..orders import observed_order, said
from ..time.integrate import integrate
from ..time.trajectory import Trajectory
from .base import STUDIES, ProblemSetup, Progress, Study, whole
from .published import claimed, summarise

_ORDER = 0.05


def run(
    setup: ProblemSetup,
    *,
    depths: Sequence[int] = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    iterations: int = 50,
    rate: float = 0.01,
    scale: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """‖W^L − W‖ in L² over depth after each of 50 gradient steps with learning rate 0.01 L, for depths 2¹ … 2¹⁰.

    The layers are Euler layers that sample a smooth random profile; the reference is the continuous model itself, moved
    by the same steps on a collocation grid, where the paper takes a network of depth 2¹⁴.

    Parameters
    ----------
    setup : ProblemSetup
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
    loss, d = setup.problem.loss, setup.problem.z0.shape[-1]
    generator = torch.Generator().manual_seed(count("study.seed", seed, least=0))
    profile = smooth(d, positive("study.scale", scale), generator)
    times = torch.arange(steps + 1, dtype=torch.float64) * h
    flow = ContinuousFlow(setup.grid, loss, setup.depth)
    descent: dict[str, Any] = {"method": "euler", "step": h * (1 + 1e-9)} | setup.budgets()
    reference = whole(integrate(flow, flow.sample(profile), times, **descent, observe=_kept), "continuous model")
    finer = DepthGrid.gauss(2 * setup.grid.panels, setup.grid.order)
    doubled = integrate(flow.on(finer), flow.on(finer).sample(profile), times, **descent, observe=_kept)
    apart = _apart(whole(doubled, "continuous model on a doubled grid"), setup.grid, reference, finer.nodes)
    floor = float(apart.max())
    distances, gaps = [], []
    for k, L in enumerate(depths):
        if progress is not None:
            progress(k / len(depths), f"L = {L}")
        net = FiniteFlow(L, loss)
        path = whole(integrate(net, net.sample(profile), times, **descent, observe=_kept), f"network of {L} layers")
        distances.append(_apart(path, setup.grid, reference, net.nodes))
        gaps.append(torch.linalg.matrix_norm(path.z - reference.z).numpy())
    distance, gap = np.array(distances), np.array(gaps)
    later = slice(1, None)  # at iteration 0 the layers are the profile
    found = [observed_order(np.array(depths), column, floor) for column in distance[:, later].T]
    orders = np.array([order.value for order in found])
    dataset = xr.Dataset(
        {
            "distance": (("depth", "iteration"), distance, {"long_name": "‖W^L − W‖ in L² over depth"}),
            "error_z": (("depth", "iteration"), gap, {"long_name": "‖z_L − z‖, Frobenius norm"}),
            "error_grid": ((), floor, {"long_name": "limit minus the same on a doubled depth grid"}),
            "order": ("later", orders, {"long_name": "observed order in 1/L"}),
        },
        coords={
            "depth": ("depth", list(depths), {"long_name": "layers L"}),
            "iteration": ("iteration", np.arange(steps + 1), {"long_name": "gradient steps"}),
        },
    )
    off = float(np.abs(orders - 1).max())
    return claimed(
        dataset,
        study="depth_heatmap",
        figure="F2",
        title=f"Marion et al. 2023, figure 1: {setup.problem.title}",
        claim="the weights converge to the limit as L grows, uniformly over the iterations, at rate 1/L",
        published=1.0,
        measured=[float(orders.min()), float(orders.max())],
        check="the order at each iteration from 1",
        error=off,
        bound=_ORDER,
        passed=off <= _ORDER,
        verdict=(
            f"‖W^L − W‖ falls at order {said(found)} in 1/L at every one of {steps} "
            f"iterations, from {distance[0].max():.1e} at L = {depths[0]} to {distance[-1].max():.1e} at "
            f"L = {depths[-1]}."
        ),
        reference_error=floor,
    )


def _apart(path: Trajectory, grid: DepthGrid, reference: Trajectory, nodes: Tensor) -> np.ndarray:
    """‖W − W_reference‖, root mean square over the nodes of the path, at each time."""
    assert path.observed is not None
    assert reference.observed is not None
    gap = path.observed - grid.interpolate(reference.observed, nodes)
    return gap.square().sum((-2, -1)).mean(-1).sqrt().numpy()


def _kept(i: int, W: Tensor) -> Tensor:
    return W.clone()


STUDIES.register("depth_heatmap")(
    Study(
        run,
        summarise,
        ProblemSetup,
        question="Do the weights of residual networks of L layers stay near those of the continuous model during "
        "gradient descent, at which rate in L?",
    )
)
