"""A trajectory as a dataset."""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr
from torch import Tensor

from ..display import crossed
from ..time.trajectory import Trajectory
from .axes import arranged, time

# What the attributes have of the statistics of a path.
KNOWN = ("evaluations", "products", "steps", "method", "rtol", "atol", "rate", "record")

LONG_NAMES = {
    "z": "end-to-end map",
    "singular_values": "singular values of z",
    "log_sigma": "logarithms of the singular values of z, as the run carried them",
    "loss": "loss",
    "drift": "drift of the conservation law",
    "depth_error": "error of z from the depth grid, largest so far",
    "time_error": "measured error of z from the steps in time",
    "error": "distance of z from the exact flow: depth error plus time error",
    "observed": "what the observer returned",
}


def dataset(path: Trajectory) -> xr.Dataset:
    """The dataset of `Trajectory.to_xarray`, which says what is in it."""
    number = path.loss.ndim - 1
    scalar = ("time", *(f"member_{i}" for i in range(number)))
    rest = path.z.ndim - path.loss.ndim
    axes = ("row", "column") if rest == 2 else tuple(f"axis_{i}" for i in range(rest))
    variables: dict[str, tuple[Any, Any]] = {
        "z": ((*scalar, *axes), path.z),
        "loss": (scalar, path.loss),
        "drift": (scalar, path.drift),
        "depth_error": ("time", path.depth_error),
    }
    if path.error is not None:
        variables |= {"time_error": ("time", path.time_error), "error": ("time", path.error)}
    if path.carried_log_sigma is not None:
        variables["log_sigma"] = ((*scalar, "mode"), path.carried_log_sigma)
    if rest == 2:
        variables["singular_values"] = ((*scalar, "mode"), torch.linalg.svdvals(path.z))
    if path.observed is not None:
        observed = _at_all_times(path.observed, len(path.times))
        variables["observed"] = (("time", *(f"observed_{i}" for i in range(observed.ndim - 1))), observed)
    grid = path.stats["grid"]
    return arranged(variables, [time(path.times)], LONG_NAMES).assign_attrs(
        status=path.status,
        ending=path.ending,
        history="; ".join(path.stats["history"]),
        grid="" if grid is None else crossed(grid),
        **{name: path.stats[name] for name in KNOWN if name in path.stats},
    )


def _at_all_times(observed: Tensor, times: int) -> Tensor:
    """With NaN for the end of a run between two outputs, at which nothing is observed."""
    if len(observed) == times:
        return observed
    values = observed if observed.is_floating_point() else observed.double()
    return torch.cat((values, values.new_full((times - len(values), *values.shape[1:]), torch.nan)))
