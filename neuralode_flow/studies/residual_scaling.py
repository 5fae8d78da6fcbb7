"""Figure 2 of Sander, Ablin, Peyré 2022: linear residual networks at n layers against their limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count
from ..finding import Check, Claim, Finding
from ..flows.finite import FiniteFlow
from ..flows.intrinsic import IntrinsicFlow
from ..kernels import LogMean
from ..losses import Quadratic
from ..orders import LEAST_POINTS, Order, observed_order, said
from ..signatures import Depths, Seed
from ..time.integrate import integrate
from ..time.trajectory import Trajectory
from .axes import arranged, axis, depth, largest_of, least_of, time
from .base import STUDIES, Clock, Progress, Study, whole

# Errors of one target in the paper's setting, at n = 25, 50, 100, 200.
PUBLISHED = [6.0e-2, 3.0e-2, 1.5e-2, 7.7e-3]
_ORDER = 0.03
_ROUND_OFF = 1e-12


def run(
    clock: Clock,
    *,
    depths: Depths = (25, 50, 100, 200),
    targets: int = 10,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Layers I + A_i/n from A = 0, d = 2, f(z) = ½‖z − T‖², T = I + randn, gradient flow with learning rate n.

    Random targets with det T > 0 are compared with the exact limit; as many with det T < 0 are shown beside them: the
    limit stalls on det z = 0 at ½σ_min(T)², which finite networks feel as well.

    Parameters
    ----------
    clock : Clock
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
    paths = {}
    for k, n in enumerate((0, *depths)):
        if progress is not None:
            progress(k / (1 + len(depths)), f"n = {n}" if n else "limit")
        for name, T in (("within", within), ("beyond", beyond)):
            paths[name, n] = _trained(clock, n, T, name)
    gap = clock.time_error(paths["within", 0].z, _trained(clock.tight(), 0, within, "tight").z)
    error_time = float(torch.linalg.matrix_norm(gap).max())
    values = [paths["within", n].z.numpy() for n in (0, *depths)]
    errors = np.stack([np.linalg.norm(z - values[0], axis=(-2, -1)).max(axis=0) for z in values[1:]])
    found = [observed_order(np.array(depths), column, clock.floor(error_time)) for column in errors.T]
    losses = [torch.stack([paths[name, n].loss for n in (0, *depths)]) for name in ("within", "beyond")]
    stall = torch.linalg.svdvals(beyond)[:, -1] ** 2 / 2
    dataset = arranged(
        {
            "error_z": (("depth", "target"), errors, "sup over t of ‖z_n − z_∞‖"),
            "error_time": ((), error_time, "error in time of the limit, from the same in finer steps"),
            "order": ("target", [order.value for order in found], "observed order in 1/n"),
            "loss_within": (("network", "time", "target"), losses[0], "loss, det T > 0"),
            "loss_beyond": (("network", "time", "target"), losses[1], "loss, det T < 0"),
            "stall": ("target", stall, "½σ_min(T)², the least loss on det z = 0"),
            "stall_off": (
                "target",
                abs(stall - _closed_stall(beyond)) / beyond.square().sum((-2, -1)),
                "its distance from that by ‖T‖ and det T, over ‖T‖²",
            ),
        },
        [depth(depths, "layers n"), axis("network", [0, *depths], "layers n; 0 is the limit"), time(clock.times)],
    )
    return _finding(dataset, found).attached(dataset)


def _finding(dataset: xr.Dataset, found: Sequence[Order]) -> Finding:
    errors, depths, number = dataset.error_z.values, dataset.depth.values, len(found)
    off = float(np.abs(dataset.order.values - 1).max())  # NaN where one of them is undecided
    nearest = int(np.abs(np.log(errors / _at(depths)[:, None])).sum(axis=0).argmin())
    above, error_time = dataset.loss_beyond[0] - dataset.stall, float(dataset.error_time)
    left, beneath = least_of(above[-1]), -least_of(above)
    falls = (
        f"no flow of the limit falls below ½σ_min(T)² (least distance {left:.1e} at t = {float(dataset.time[-1]):g})"
    )
    if not beneath <= _ROUND_OFF:
        falls = f"a flow of the limit falls below ½σ_min(T)², by {beneath:.1e}"
    orders = tuple(p._replace(rule=f"z in 1/n, target {k}", expected=1.0) for k, p in enumerate(found, 1))
    return Finding(
        study="residual_scaling",
        problem=f"Sander, Ablin, Peyré 2022, figure 2: d = 2, {number} targets of either sign of det T",
        status="ok",
        verdict=f"The error of z falls at order {said(found)} in 1/n, n = {depths[0]} to {depths[-1]}, "
        f"for the {number} targets with det T > 0. With det T < 0 {falls}.",
        claim=Claim(
            "the error of n layers to the limit falls like 1/n, for every target with det T > 0",
            measured=errors[:, nearest].tolist(),
            published=PUBLISHED,
            figure="F1",
        ),
        checks=(
            Check("the order of each target from 1", off, _ORDER, "largest over the targets"),
            Check(
                "loss of the limit below ½σ_min(T)², det T < 0", beneath, _ROUND_OFF, "largest over t and the targets"
            ),
            Check(
                "½σ_min(T)² from that by ‖T‖ and det T", largest_of(dataset.stall_off), _ROUND_OFF, "over ‖T‖², largest"
            ),
            Check("error in time of the limit", error_time, norm="sup over t and the targets, Frobenius norm"),
        ),
        orders=orders,
        numbers={"reference_error": error_time, "orders": dataset.order.values.tolist(), "stall_gap": left},
    )


def _at(depths: Sequence[int]) -> np.ndarray:
    """The published errors at other n, by their 1/n."""
    return PUBLISHED[1] * 50 / np.array(depths)


def _closed_stall(T: Tensor) -> Tensor:
    """½σ_min(T)² of T (..., 2, 2) by the quadratic equation of σ², without cancellation."""
    square, det = T.square().sum((-2, -1)), torch.linalg.det(T).square()
    return det / (square + torch.sqrt((square**2 - 4 * det).clamp(min=0)))


def _targets(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """`(number, 2, 2)` targets I + randn with det > 0, and with det < 0."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    while min(map(len, found.values())) < number:
        T = torch.eye(2, dtype=torch.float64) + torch.randn(
            2, 2, generator=generator, dtype=torch.float64, device="cpu"
        )
        found[bool(torch.linalg.det(T) > 0)].append(T)
    return torch.stack(found[True][:number]), torch.stack(found[False][:number])


def _trained(clock: Clock, n: int, T: Tensor, name: str) -> Trajectory:
    """All targets at once, with n layers, or in the limit for 0."""
    loss, z0 = Quadratic(T), torch.eye(2, dtype=torch.float64)
    flow: Any = FiniteFlow(n, loss) if n else IntrinsicFlow(loss, LogMean())
    start = T.new_zeros(len(T), n, 2, 2) if n else z0.expand(T.shape).clone()
    path = integrate(flow, start, clock.times, **clock.options(f"{name}-{n}"))
    return whole(path, f"flow of {n} layers" if n else "limit")


STUDIES.register("residual_scaling")(
    Study(
        run,
        question="At which rate do linear residual networks of n layers, trained with learning rate n, tend to their "
        "limit, and what happens where the limit cannot reach the target?",
    )
)
