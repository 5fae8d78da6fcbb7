"""Figure 2 of Sander, Ablin, Peyré 2022: linear residual networks at n layers against their limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count
from ..flows.finite import FiniteFlow
from ..flows.intrinsic import IntrinsicFlow
from ..kernels import LogMean
from ..losses import Quadratic
from ..orders import LEAST_POINTS, observed_order, said
from ..time.integrate import integrate
from ..time.trajectory import Trajectory
from .base import STUDIES, Clock, Progress, Study, whole
from .published import claimed, summarise

# Errors of one target in the paper's setting, at n = 25, 50, 100, 200.
PUBLISHED = [6.0e-2, 3.0e-2, 1.5e-2, 7.7e-3]
_ORDER = 0.03


def run(
    setup: Clock,
    *,
    depths: Sequence[int] = (25, 50, 100, 200),
    targets: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Layers I + A_i/n from A = 0, d = 2, f(z) = ½‖z − T‖², T = I + randn, gradient flow with learning rate n.

    Random targets with det T > 0 are compared with the exact limit; as many with det T < 0 are shown beside them: the
    limit stalls on det z = 0 at ½σ_min(T)², which finite networks feel as well.

    Parameters
    ----------
    setup : Clock
    depths : sequence of int
        n, increasing, at least three.
    targets : int
        Of either sign of the determinant.
    seed : int
        Of the targets.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
    """
    number = count("study.targets", targets)
    if len(depths) < LEAST_POINTS:
        raise ValueError(f"study.depths must be at least three numbers of layers, for an order, got {list(depths)}")
    within, beyond = _targets(number, count("study.seed", seed, least=0))
    values, losses = {}, {}
    for k, depth in enumerate((0, *depths)):
        if progress is not None:
            progress(k / (1 + len(depths)), f"n = {depth}" if depth else "limit")
        for name, T in (("within", within), ("beyond", beyond)):
            path = _trained(setup, depth, T, name)
            values[name, depth], losses[name, depth] = path.z.numpy(), path.loss.numpy()
    errors = np.stack(
        [np.linalg.norm(values["within", n] - values["within", 0], axis=(-2, -1)).max(axis=0) for n in depths]
    )
    again = _trained(setup.tight(), 0, within, "tight").z
    gap = setup.time_error(torch.as_tensor(values["within", 0]), again)
    error_time = float(torch.linalg.matrix_norm(gap).max())
    found = [observed_order(np.array(depths), column, setup.floor(error_time)) for column in errors.T]
    orders = np.array([order.value for order in found])
    stall = (torch.linalg.svdvals(beyond)[:, -1] ** 2 / 2).numpy()
    dataset = xr.Dataset(
        {
            "error_z": (("depth", "target"), errors, {"long_name": "sup over t of ‖z_n − z_∞‖"}),
            "error_time": ((), error_time, {"long_name": "error in time of the limit, from the same in finer steps"}),
            "order": ("target", orders, {"long_name": "observed order in 1/n"}),
            "loss_within": (
                ("network", "time", "target"),
                np.stack([losses["within", n] for n in (0, *depths)]),
                {"long_name": "loss, det T > 0"},
            ),
            "loss_beyond": (
                ("network", "time", "target"),
                np.stack([losses["beyond", n] for n in (0, *depths)]),
                {"long_name": "loss, det T < 0"},
            ),
            "stall": ("target", stall, {"long_name": "½σ_min(T)², the least loss on det z = 0"}),
        },
        coords={
            "depth": ("depth", list(depths), {"long_name": "layers n"}),
            "network": ("network", [0, *depths], {"long_name": "layers n; 0 is the limit"}),
            "time": ("time", setup.times.numpy(), {"long_name": "training time t", "units": "flow time"}),
        },
    )
    off = float(np.abs(orders - 1).max())
    nearest = int(np.abs(np.log(errors / _at(depths)[:, None])).sum(axis=0).argmin())
    left = float((losses["beyond", 0][-1] - stall).min())
    return claimed(
        dataset,
        study="residual_scaling",
        figure="F1",
        title=f"Sander, Ablin, Peyré 2022, figure 2: d = 2, {number} targets of either sign of det T",
        claim="the error of n layers to the limit falls like 1/n, for every target with det T > 0",
        published=PUBLISHED,
        measured=[float(error) for error in errors[:, nearest]],
        check="the order of each target from 1",
        error=off,
        bound=_ORDER,
        passed=off <= _ORDER,
        verdict=(
            f"The error of z falls at order {said(found)} in 1/n, n = {depths[0]} to {depths[-1]}, "
            f"for the {number} targets with det T > 0. With det T < 0 no flow of the limit falls below "
            f"½σ_min(T)² (least distance {left:.1e} at t = {float(setup.times[-1]):g})."
        ),
        reference_error=error_time,
        orders=orders.tolist(),
        stall_gap=left,
    )


def _at(depths: Sequence[int]) -> np.ndarray:
    """The published errors at other n, by their 1/n."""
    return PUBLISHED[1] * 50 / np.array(depths)


def _targets(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """`(number, 2, 2)` targets I + randn with det > 0, and with det < 0."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    while min(map(len, found.values())) < number:
        T = torch.eye(2, dtype=torch.float64) + torch.randn(2, 2, generator=generator, dtype=torch.float64)
        found[bool(torch.linalg.det(T) > 0)].append(T)
    return torch.stack(found[True][:number]), torch.stack(found[False][:number])


def _trained(setup: Clock, depth: int, T: Tensor, name: str) -> Trajectory:
    """All targets at once, with n layers, or in the limit for 0."""
    loss, z0 = Quadratic(T), torch.eye(2, dtype=torch.float64)
    flow: Any = FiniteFlow(depth, loss) if depth else IntrinsicFlow(loss, LogMean())
    start = T.new_zeros(len(T), depth, 2, 2) if depth else z0.expand(T.shape).clone()
    path = integrate(flow, start, setup.times, **setup.options(f"{name}-{depth}"))
    return whole(path, f"flow of {depth} layers" if depth else "limit")


STUDIES.register("residual_scaling")(
    Study(
        run,
        summarise,
        Clock,
        question="At which rate do linear residual networks of n layers, trained with learning rate n, tend to their "
        "limit, and what happens where the limit cannot reach the target?",
    )
)
