"""One long training flow, next to the intrinsic limit: made to be left alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count
from ..depth import DepthSolver
from ..depth.grid import Profile
from ..depth.rules import LAYERS
from ..finding import Check, Finding, sentence
from ..flows.base import Flow
from ..flows.capabilities import AtDepths, offers
from ..flows.continuous import ContinuousFlow
from ..flows.finite import FiniteFlow
from ..flows.intrinsic import IntrinsicFlow
from ..kernels import KERNELS, LogMean
from ..problems import Problem
from ..registry import Registry
from ..signatures import Layers, Positive, known
from ..time.endings import EVENTS_ASKED, REACHED
from ..time.integrate import integrate
from ..time.progress import Progress as Where
from ..time.trajectory import Trajectory
from .axes import arranged, time
from .base import STUDIES, Clock, Progress, Study
from .heldout import LONG_NAME, along, numbers, verdict
from .weights import kept, weights

_MOST = 10_000_000  # evaluations of a run that is left alone

# What is trained: each makes a flow and what it starts from.
Start = tuple[Flow, Tensor | Profile]
MODELS: Registry[Callable[[ContinuousFlow, Profile, int, str, str], Start]] = Registry("model")


@MODELS.register("continuous")
def _continuous(limit: ContinuousFlow, initial: Profile, layers: int, rule: str, kernel: str) -> Start:
    return limit, initial


@MODELS.register("finite")
def _finite(limit: ContinuousFlow, initial: Profile, layers: int, rule: str, kernel: str) -> Start:
    return FiniteFlow(layers, limit.loss, rule), initial


@MODELS.register("intrinsic")
def _intrinsic(limit: ContinuousFlow, initial: Profile, layers: int, rule: str, kernel: str) -> Start:
    return IntrinsicFlow(limit.loss, KERNELS[kernel]()), limit.product(limit.sample(initial))


def run(
    problem: Problem,
    initial: Profile,
    solver: DepthSolver,
    clock: Clock,
    *,
    model: Annotated[str, known(MODELS)] = "continuous",
    network_depth: Layers = 64,
    rule: Annotated[str, known(LAYERS)] = "euler",
    kernel: Annotated[str, known(KERNELS)] = "logmean",
    adapt: bool = True,
    estimate: bool = True,
    stop_loss: Positive | None = None,
    stop_gradient: Positive | None = None,
    stop_steady: Positive | None = None,
    stop_sigma_min: Positive | None = None,
    stop_norm: Positive | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """One training flow to the end, its errors measured, with the intrinsic limit at the same times.

    Parameters
    ----------
    problem : Problem
    initial : callable
        Profile W0(s).
    solver : DepthSolver
    clock : Clock
    model : {"continuous", "finite", "intrinsic"}
    network_depth : int
        Layers L of the finite model.
    rule : str
        Layer rule of the finite model.
    kernel : str
        Kernel of the intrinsic model; "logmean" is that of infinite depth.
    adapt : bool
        Whether the depth grid of the continuous model follows W, as in `integrate`.
    estimate : bool
        Whether a second, more accurate run measures the error in time, as in `integrate`.
    stop_loss, stop_gradient, stop_steady, stop_sigma_min, stop_norm : float, optional
        Events that end the run, as in `integrate`.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        Status "ok" if the last time or an event was reached, or the target is out of reach; else what was reached.
    """
    MODELS.check(model)
    count("network_depth", network_depth)
    continuous = ContinuousFlow(solver.grid, problem.loss, solver)
    flow, start = MODELS[model](continuous, initial, network_depth, rule, kernel)
    wanted = {
        "loss": stop_loss, "gradient": stop_gradient, "steady": stop_steady, "sigma_min": stop_sigma_min,
        "norm": stop_norm,
    }  # fmt: skip

    path = integrate(
        flow,
        start,
        clock.times,
        **{"max_evaluations": _MOST, **clock.options(model), "progress": _told(clock, progress)},
        stop={name: bound for name, bound in wanted.items() if bound is not None},
        observe=partial(_first_weights, len(clock.times)) if model != "intrinsic" else None,
        adapt=adapt and model == "continuous",
        estimate=estimate,
    )
    dataset = _dataset(model, path, _limit(problem, clock, path))
    if problem.held_out is not None:
        dataset["loss_held_out"] = (dataset.loss.dims, along(problem.held_out, path.z), {"long_name": LONG_NAME})
    if model == "intrinsic":
        dataset.attrs["kernel"] = kernel
    if path.observed is not None:
        dataset = dataset.merge(
            weights(_all_weights(path), flow.nodes if offers(flow, AtDepths) else solver.grid.nodes)
        )
    return _finding(dataset, path, problem.title).attached(dataset)


def _told(clock: Clock, progress: Progress | None) -> Callable[[Where], None]:
    """What `integrate` reports to: the clock's pace, and who asked for progress."""
    pace = clock.pace.watch(clock.method)

    def report(where: Where) -> None:
        if pace is not None:
            pace(where)
        if progress is not None:
            progress(where.fraction, str(where))

    return report


def _first_weights(times: int, _: int, state: Tensor) -> Tensor | None:
    """What is kept of the weights of the first member."""
    return kept(times, state.reshape(-1, *state.shape[-3:])[0])


def _all_weights(path: Trajectory) -> Tensor:
    """The weights at all times; also at the end of a run between two outputs, unless the grid has changed by then."""
    assert path.observed is not None
    if len(path.observed) == len(path.times):
        return path.observed
    last = _first_weights(len(path.times), -1, path.state)
    if last is None or last.shape != path.observed.shape[1:]:
        last = torch.full_like(path.observed[0], torch.nan)
    return torch.cat((path.observed, last.unsqueeze(0)))


def _limit(problem: Problem, clock: Clock, path: Trajectory) -> np.ndarray:
    """The intrinsic limit at the same times; NaN where it was not reached, or the path has several members."""
    if path.z.ndim != 3:
        return np.full(path.z.shape, np.nan)
    options = clock.options("limit")
    if path.ending not in (*REACHED, *EVENTS_ASKED):  # it may go on, and then the limit is that at other times
        options["checkpoint"] = None
    limit = integrate(IntrinsicFlow(problem.loss, LogMean()), path.z[0], path.times, **options)
    z = np.full(path.z.shape, np.nan)
    z[: len(limit.z)] = limit.z.cpu().numpy()[: len(z)]
    return z


LONG_NAMES = {
    "z": "end-to-end map",
    "z_limit": "solution of the intrinsic limit from the same map",
    "singular_values": "singular values of z",
    "loss": "loss",
    "drift": "drift of the conservation law",
    "depth_error": "estimated error of z from the depth grid, largest so far",
    "time_error": "measured error of z from the steps in time",
    "distance_from_limit": "Frobenius distance of z from the intrinsic limit",
}
ERRORS = ("distance_from_limit", "time_error", "depth_error", "drift")


def _dataset(model: str, path: Trajectory, limit: np.ndarray) -> xr.Dataset:
    z = path.z.cpu().numpy()
    members = [f"member_{i}" for i in range(z.ndim - 3)]
    matrix, scalar = ("time", *members, "row", "column"), ("time", *members)
    variables: dict[str, tuple[Any, Any]] = {
        "z": (matrix, z),
        "z_limit": (matrix, limit),
        "singular_values": ((*scalar, "mode"), torch.linalg.svdvals(path.z)),
        "loss": (scalar, path.loss),
        "drift": (scalar, path.drift),
        "depth_error": ("time", path.depth_error),
        "distance_from_limit": (scalar, np.linalg.norm(z - limit, axis=(-2, -1))),
    }
    if path.time_error is not None:
        variables["time_error"] = ("time", path.time_error)
    return arranged(variables, [time(path.times)], LONG_NAMES).assign_attrs(
        ending=path.ending,
        how_it_ended="the last time was reached" if path.status == "ok" else path.status,
        model=model,
        history="; ".join(path.stats["history"]),
        **{name: path.stats[name] for name in ("evaluations", "products", "steps", "method", "rtol", "atol")},
    )


def _finding(dataset: xr.Dataset, path: Trajectory, problem: str) -> Finding:
    fine, attrs = path.ending in (*REACHED, *EVENTS_ASKED), dataset.attrs
    names = ("model", "ending", "history", "method", "rtol", "atol", "evaluations", "products", "steps")
    largest = {name: float(dataset[name].max()) for name in ERRORS if name in dataset}
    norm = "largest over time, Frobenius norm"
    return Finding(
        study="trajectory",
        problem=problem,
        status="ok" if fine else path.status,
        verdict=_verdict(dataset),
        checks=tuple(
            Check(LONG_NAMES[name], error, norm="0 in exact arithmetic" if name == "drift" else norm)
            for name, error in largest.items()
        ),
        numbers={
            **{name: attrs[name] for name in (*names, "kernel") if name in attrs},
            "reached_time": float(dataset.time[-1]),
            "loss": float(dataset.loss.isel(time=-1).max()),
            "reference_error": largest["distance_from_limit"],
            "depth_error": largest["depth_error"],
            "time_error": largest.get("time_error"),
            "law_drift": largest["drift"],
            **numbers(dataset, "loss"),
        },
    )


def _verdict(dataset: xr.Dataset) -> str:
    """What happened, with its error."""
    attrs, last = dataset.attrs, dataset.isel(time=-1)
    errors = f"depth error {float(dataset.depth_error.max()):.1e}"
    if "time_error" in dataset:
        errors = f"time error {float(dataset.time_error.max()):.1e}, {errors}"
    ending = attrs["how_it_ended"]
    if attrs.get("kernel", "logmean") != "logmean":
        ending = f"{ending} with the kernel {attrs['kernel']}"
    history = f" On the way: {attrs['history']}." if attrs["history"] else ""
    return (
        f"{sentence(ending)} (t = {float(last.time):.6g}, loss {float(last.loss.max()):.6g}, {errors}, "
        f"{attrs['evaluations']} evaluations).{history}{verdict(dataset, 'loss')}"
    )


STUDIES.register("trajectory")(
    Study(
        run,
        question="Where does this training flow go, how does it end, and how large is the error of what was computed?",
    )
)
