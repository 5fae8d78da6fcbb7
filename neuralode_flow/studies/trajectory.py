"""One long training flow, next to the intrinsic limit: made to be left alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count
from ..depth import DepthGrid, DepthSolver
from ..depth.grid import Profile, like, sample
from ..depth.rules import LAYERS
from ..finding import Check, Finding, sentence
from ..flows.capabilities import AtDepths, offers
from ..flows.continuous import ContinuousFlow
from ..flows.finite import FiniteFlow
from ..flows.intrinsic import IntrinsicFlow
from ..initial import balanced
from ..kernels import KERNELS, LogMean
from ..laws import defect_scale, relaxed_balance_defect
from ..problems import Problem
from ..registry import Registry
from ..signatures import CountsWith, Layers, Positive, known
from ..time.endings import REACHED
from ..time.progress import Progress as Where
from ..time.trajectory import Trajectory, at_times, common_times, stopped
from .axes import arranged, time
from .base import STUDIES, AnyClock, Progress, Start, Study
from .heldout import LONG_NAME, along, numbers, verdict
from .weights import kept, weights

_MOST = 10_000_000  # evaluations of a run that is left alone

# Relative to the size of W²: up to here a start is relaxed balanced, and the defect is that of a derivative in s.
_BALANCED = 1e-6

# What the distance from the limit may be of the errors that are measured of both, which are bounds, and of that defect.
_OF_ERRORS, _OF_DEFECT = 2.0, 10.0

# What is trained: each makes a flow and what it starts from.
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
    clock: AnyClock,
    *,
    model: Annotated[str, known(MODELS)] = "continuous",
    network_depth: Annotated[Layers, CountsWith(("model",), "finite")] = 64,
    rule: Annotated[str, known(LAYERS), CountsWith(("model",), "finite")] = "euler",
    kernel: Annotated[str, known(KERNELS), CountsWith(("model",), "intrinsic")] = "logmean",
    adapt: Annotated[bool, CountsWith(("model",), "continuous")] = True,
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
    clock : Clock or Steps
        Along the flow, or in steps.
    model : {"continuous", "finite", "intrinsic"}
    network_depth : int
        Layers L of the finite model.
    rule : str
        Layer rule of the finite model.
    kernel : str
        Kernel of the intrinsic model; "logmean" is that of infinite depth.
    adapt : bool
        Whether the depth grid of the continuous model follows W, as in `integrate`. In steps it stays the same.
    estimate : bool
        Whether a second, more accurate run measures the error in time, and another one that of a coarse depth grid, as
        in `integrate`. In steps it starts one rounding away. The continuous model is then held to the intrinsic limit
        from a relaxed balanced start: they may differ by twice what is measured of both.
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
    flow, start = trained(problem, initial, solver, clock, model, network_depth, rule, kernel)
    wanted = {
        "loss": stop_loss, "gradient": stop_gradient, "steady": stop_steady, "sigma_min": stop_sigma_min,
        "norm": stop_norm,
    }  # fmt: skip

    path = clock.run(
        flow,
        start,
        model,
        max_evaluations=clock.max_evaluations or _MOST,
        progress=_told(clock, progress),
        stop={name: bound for name, bound in wanted.items() if bound is not None},
        observe=partial(_first_weights, len(clock.times)) if model != "intrinsic" else None,
        adapt=adapt and model == "continuous",
        estimate=estimate,
    )
    held = model == "continuous" and estimate and not clock.in_steps
    defect = _defect(solver.grid, initial) if held else math.nan
    limit = _limit(problem, solver, clock, path, estimate=held)
    dataset = _dataset(clock, model, path, limit)
    if problem.held_out is not None:
        dataset["loss_held_out"] = (dataset.loss.dims, along(problem.held_out, path.z), {"long_name": LONG_NAME})
    if model == "intrinsic":
        dataset.attrs["kernel"] = kernel
    if path.observed is not None:
        seen = _all_weights(path, flow, len(clock.times))
        dataset = dataset.merge(weights(seen, flow.nodes if offers(flow, AtDepths) else solver.grid.nodes))
    return _finding(dataset, clock, path, limit, problem.title, defect).attached(dataset)


def trained(
    problem: Problem,
    initial: Profile,
    solver: DepthSolver,
    clock: AnyClock,
    model: str,
    network_depth: int,
    rule: str,
    kernel: str,
    **_: Any,
) -> Start:
    """What `run` trains, and from where, of the same arguments."""
    continuous = ContinuousFlow(solver.grid, problem.loss, solver)
    return MODELS[model](continuous, initial, network_depth, rule, kernel)


def _told(clock: AnyClock, progress: Progress | None) -> Callable[[Where], None]:
    """What `integrate` reports to: the clock's pace, and who asked for progress."""
    pace = clock.watched()

    def report(where: Where) -> None:
        if pace is not None:
            pace(where)
        if progress is not None:
            progress(where.fraction, str(where))

    return report


def _first_weights(times: int, _: int, state: Tensor) -> Tensor | None:
    """What is kept of the weights of the first member."""
    return kept(times, state.reshape(-1, *state.shape[-3:])[0])


def _all_weights(path: Trajectory, flow: Any, times: int) -> Tensor:
    """What was kept of the weights at so many times, and the same at the end of a run between two of them.

    All on the grid of the flow, whatever grid the run has ended on.
    """
    assert path.observed is not None
    if len(path.observed) == len(path.times):
        return path.observed
    state, grid = path.state, path.stats["grid"]
    if grid is not None and (*grid,) != (flow.grid.panels, flow.grid.order):
        state = flow.on(like(flow.grid, *grid)).transfer(state, flow.grid)
    last = _first_weights(times, -1, state)
    assert last is not None
    return torch.cat((path.observed, last.unsqueeze(0)))


def _defect(grid: DepthGrid, initial: Profile) -> float:
    """How far a start is from relaxed balance, relative to the size of W²."""
    W = sample(initial, grid.nodes, "initial")
    return float(relaxed_balance_defect(grid, W).max()) / defect_scale(W)


def _limit(
    problem: Problem, solver: DepthSolver, clock: AnyClock, path: Trajectory, estimate: bool
) -> Trajectory | None:
    """What z₀ decides at infinite depth, until the same time; None where there is no such thing."""
    if path.z.ndim != 3 or not clock.decides(path.z[0]):
        return None
    flow, z0 = ContinuousFlow(solver.grid, problem.loss, solver), path.z[0]
    # One that has not ended may go on, and then the limit is that at other times.
    unsaved = {} if stopped([path]) == "ok" else {"checkpoint": None}
    closed = IntrinsicFlow(problem.loss, LogMean())
    return clock.by_z(closed, z0, lambda: (flow, balanced(z0)), "limit", path.times, estimate=estimate, **unsaved)


def _missing(clock: AnyClock, path: Trajectory, limit: Trajectory | None) -> list[str]:
    """What is to be said of a limit that did not come as far as the run, or not with numbers to trust."""
    if limit is None or limit.ending in REACHED:
        return []
    known, what = common_times(limit.times, path.times), "infinite depth" if clock.in_steps else "the intrinsic limit"
    until = f" is known up to t = {float(path.times[known - 1]):.6g} only" if known < len(path.times) else ""
    return [f"{what}{until}: {limit.status}"]


LONG_NAMES = {
    "z": "end-to-end map",
    "z_limit": "solution of the intrinsic limit from the same map",
    "singular_values": "singular values of z",
    "loss": "loss",
    "drift": "drift of the conservation law",
    "depth_error": "estimated error of z from the depth grid, largest so far",
    "time_error": "measured error of z from the steps in time",
    "limit_error": "measured error of the intrinsic limit from the steps in time",
    "distance_from_limit": "Frobenius distance of z from the intrinsic limit",
}
# What these names stand for in steps, and where the rule moves the law as nobody has written down.
IN_STEPS = {
    "z_limit": "z of infinite depth from the balanced start with the same map, in the same steps",
    "time_error": "distance of z from the same steps from a start that is one rounding away",
    "distance_from_limit": "Frobenius distance of z from infinite depth in the same steps",
}
# With `estimate`, which measures it where the estimate may fall short.
MEASURED = {"depth_error": "error of z from the depth grid, largest so far"}
MOVED_LAW = {"drift": "change of what gradient flow conserves, which steps of this rule move"}
ERRORS = ("distance_from_limit", "time_error", "depth_error", "limit_error", "drift")


def _dataset(clock: AnyClock, model: str, path: Trajectory, beside: Trajectory | None) -> xr.Dataset:
    z = path.z.cpu().numpy()
    limit = np.full(z.shape, np.nan) if beside is None else at_times(beside, path.times).cpu().numpy()
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
    if beside is not None and beside.time_error is not None:
        variables["limit_error"] = ("time", at_times(beside, path.times, "time_error"))
    names = LONG_NAMES | (IN_STEPS if clock.in_steps else {} if path.time_error is None else MEASURED)
    if not path.stats.get("law_in_steps", True):
        names = names | MOVED_LAW
    return arranged(variables, [time(path.times)], names).assign_attrs(
        ending=path.ending,
        how_it_ended="the last time was reached" if path.status == "ok" else path.status,
        model=model,
        history="; ".join(path.stats["history"]),
        **{name: path.stats[name] for name in ("evaluations", "products", "steps")},
        **(clock.control | {name: path.stats[name] for name in ("rtol", "atol") if name in path.stats}),
    )


def _finding(
    dataset: xr.Dataset, clock: AnyClock, path: Trajectory, limit: Trajectory | None, problem: str, defect: float
) -> Finding:
    attrs, missing = dataset.attrs, _missing(clock, path, limit)
    early = [] if stopped([path]) == "ok" else [path.status]
    names = ("model", "ending", "history", *clock.control, "evaluations", "products", "steps")
    largest = {name: float(dataset[name].max()) for name in ERRORS if name in dataset}
    held = "limit_error" in dataset and defect <= _BALANCED
    bounds = {"distance_from_limit": _allowed(dataset, defect)} if held else {}
    norms = dict.fromkeys(largest, "largest over time, Frobenius norm")
    if path.stats.get("law_in_steps", True):
        norms["drift"] = "0 in exact arithmetic"
    return Finding(
        study="trajectory",
        problem=problem,
        status="; ".join([*early, *missing]) or "ok",
        verdict=" ".join([_verdict(dataset), *(f"{sentence(why)}." for why in missing)]),
        checks=tuple(
            Check(dataset[name].attrs["long_name"], error, bounds.get(name), norms[name])
            for name, error in largest.items()
        ),
        numbers={
            **{name: attrs[name] for name in (*names, "kernel") if name in attrs},
            **({"ending": limit.ending} if limit is not None and missing and not early else {}),
            "reached_time": float(dataset.time[-1]),
            "loss": float(dataset.loss.isel(time=-1).max()),
            "reference_error": largest["distance_from_limit"],
            "depth_error": largest["depth_error"],
            "time_error": largest.get("time_error"),
            "limit_error": largest.get("limit_error"),
            "law_drift": largest["drift"],
            **numbers(dataset, "loss"),
        },
    )


def _allowed(dataset: xr.Dataset, defect: float) -> float | None:
    """How far z may be from the intrinsic limit where its start is relaxed balanced, up to that defect.

    None where an error could not be measured at some time.
    """
    errors = (dataset.time_error + dataset.depth_error + dataset.limit_error).values
    if not np.isfinite(errors[np.isfinite(dataset.distance_from_limit)]).all():
        return None
    size = float(np.nanmax(np.linalg.norm(dataset.z_limit, axis=(-2, -1))))
    return _OF_ERRORS * float(np.nanmax(errors)) + (_OF_DEFECT * defect + 1e-12) * size


def _verdict(dataset: xr.Dataset) -> str:
    """What happened, with its error."""
    attrs, last = dataset.attrs, dataset.isel(time=-1)
    in_steps = "rate" in attrs
    errors = f"depth error {float(dataset.depth_error.max()):.1e}"
    if "time_error" in dataset:
        of_time = "one rounding of the start grows to" if in_steps else "time error"
        errors = f"{of_time} {float(dataset.time_error.max()):.1e}, {errors}"
    ending = attrs["how_it_ended"]
    if attrs.get("kernel", "logmean") != "logmean":
        ending = f"{ending} with the kernel {attrs['kernel']}"
    history = f" On the way: {attrs['history']}." if attrs["history"] else ""
    return (
        f"{sentence(ending)} (t = {float(last.time):.6g}, loss {float(last.loss.max()):.6g}, {errors}, "
        f"{attrs['evaluations']} {'gradients' if in_steps else 'evaluations'}).{_steps(dataset) if in_steps else ''}"
        f"{history}{verdict(dataset, 'loss')}"
    )


def _steps(dataset: xr.Dataset) -> str:
    """Which steps they were, and what they have to do with those of infinite depth."""
    attrs, away = dataset.attrs, float(dataset.distance_from_limit.max())
    options = f", {attrs['options']}" if attrs["options"] else ""
    taken = f" {attrs['steps']} steps of {attrs['method']} (η = {attrs['rate']:g}{options})"
    if attrs["model"] == "intrinsic":
        taken += " of z along its closed flow, which are not the steps that W takes"
    if np.isnan(away):
        return f"{taken}; nothing that z₀ alone decides is beside them."
    return f"{taken}; z is within {away:.1e} of infinite depth in the same steps from the balanced start with its z₀."


STUDIES.register("trajectory")(
    Study(
        run,
        question="Where does this training flow go, how does it end, and how large is the error of what was computed?",
        trained=trained,
    )
)
