"""One long training flow, next to the intrinsic limit: made to be left alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count
from ..depth.grid import Profile
from ..finding import Check, Finding
from ..flows.base import Flow
from ..flows.capabilities import AtDepths, offers
from ..flows.continuous import ContinuousFlow
from ..flows.finite import FiniteFlow
from ..flows.intrinsic import IntrinsicFlow
from ..kernels import LogMean
from ..registry import Registry
from ..time.endings import EVENTS_ASKED, REACHED
from ..time.integrate import integrate
from ..time.progress import Progress as Where
from ..time.trajectory import Trajectory
from .axes import arranged, time
from .base import STUDIES, Progress, Setup, Study
from .weights import kept, weights

_MOST = 10_000_000  # evaluations of a run that is left alone

# What is trained: each makes a flow and what it starts from.
MODELS: Registry[Any] = Registry("model")


@MODELS.register("continuous")
def _continuous(setup: Setup, layers: int, rule: str) -> tuple[Flow, Tensor | Profile]:
    return ContinuousFlow(setup.grid, setup.problem.loss, setup.depth), setup.initial


@MODELS.register("finite")
def _finite(setup: Setup, layers: int, rule: str) -> tuple[Flow, Tensor | Profile]:
    return FiniteFlow(layers, setup.problem.loss, rule), setup.initial


@MODELS.register("intrinsic")
def _intrinsic(setup: Setup, layers: int, rule: str) -> tuple[Flow, Tensor | Profile]:
    z0 = ContinuousFlow(setup.grid, setup.problem.loss, setup.depth)
    return IntrinsicFlow(setup.problem.loss, LogMean()), z0.product(z0.sample(setup.initial))


def run(
    setup: Setup,
    *,
    model: str = "continuous",
    network_depth: int = 64,
    rule: str = "euler",
    adapt: bool = True,
    estimate: bool = True,
    stop_loss: float | None = None,
    stop_gradient: float | None = None,
    stop_steady: float | None = None,
    stop_sigma_min: float | None = None,
    stop_norm: float | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """One training flow to the end, its errors measured, with the intrinsic limit at the same times.

    Parameters
    ----------
    setup : Setup
    model : {"continuous", "finite", "intrinsic"}
    network_depth : int
        Layers L of the finite model.
    rule : str
        Layer rule of the finite model.
    adapt, estimate : bool
        As in `integrate`; the grid of the continuous model may follow W.
    stop_loss, stop_gradient, stop_steady, stop_sigma_min, stop_norm : float, optional
        Events that end the run.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        Status "ok" if the last time or an event was reached, or the target is out of reach; else what was reached.
    """
    MODELS.check(model)
    count("network_depth", network_depth)
    flow, start = MODELS[model](setup, network_depth, rule)
    wanted = {
        "loss": stop_loss, "gradient": stop_gradient, "steady": stop_steady, "sigma_min": stop_sigma_min,
        "norm": stop_norm,
    }  # fmt: skip

    pace = setup.pace.watch(setup.method)

    def report(where: Where) -> None:
        if pace is not None:
            pace(where)
        if progress is not None:
            progress(where.fraction, str(where))

    path = integrate(
        flow,
        start,
        setup.times,
        **{"max_evaluations": _MOST, **setup.options(model), "progress": report},
        stop={name: bound for name, bound in wanted.items() if bound is not None},
        observe=partial(_first_weights, len(setup.times)) if model != "intrinsic" else None,
        adapt=adapt and model == "continuous",
        estimate=estimate,
    )
    dataset = _dataset(model, path, _limit(setup, path))
    if path.observed is not None:
        dataset = dataset.merge(weights(_all_weights(path), flow.nodes if offers(flow, AtDepths) else setup.grid.nodes))
    return _finding(dataset, path, setup.problem.title).attached(dataset)


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


def _limit(setup: Setup, path: Trajectory) -> np.ndarray:
    """The intrinsic limit at the same times; NaN where it was not reached, or the path has several members."""
    if path.z.ndim != 3:
        return np.full(path.z.shape, np.nan)
    options = setup.options("limit")
    if path.ending not in (*REACHED, *EVENTS_ASKED):  # it may go on, and then the limit is that at other times
        options["checkpoint"] = None
    limit = integrate(IntrinsicFlow(setup.problem.loss, LogMean()), path.z[0], path.times, **options)
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
            **{name: attrs[name] for name in names},
            "reached_time": float(dataset.time[-1]),
            "loss": float(dataset.loss.isel(time=-1).max()),
            "reference_error": largest["distance_from_limit"],
            "depth_error": largest["depth_error"],
            "time_error": largest.get("time_error"),
            "law_drift": largest["drift"],
        },
    )


def _verdict(dataset: xr.Dataset) -> str:
    """What happened, with its error."""
    attrs, last = dataset.attrs, dataset.isel(time=-1)
    errors = f"depth error {float(dataset.depth_error.max()):.1e}"
    if "time_error" in dataset:
        errors = f"time error {float(dataset.time_error.max()):.1e}, {errors}"
    ending = attrs["how_it_ended"]
    history = f" On the way: {attrs['history']}." if attrs["history"] else ""
    return (
        f"{ending[0].upper()}{ending[1:]} (t = {float(last.time):.6g}, loss {float(last.loss.max()):.6g}, {errors}, "
        f"{attrs['evaluations']} evaluations).{history}"
    )


STUDIES.register("trajectory")(
    Study(
        run,
        question="Where does this training flow go, how does it end, and how large is the error of what was computed?",
    )
)
