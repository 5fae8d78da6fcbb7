"""The axes of datasets, with their units, variables with their long names, and the extremes of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

Axis = tuple[str, np.ndarray, dict[str, str]]


def axis(name: str, values: Any, long_name: str, units: str = "") -> Axis:
    """A coordinate: its name, its values `(n,)` and what they are."""
    return name, array(values), {"long_name": long_name} | ({"units": units} if units else {})


def time(times: Tensor, long_name: str = "training time t", units: str = "flow time") -> Axis:
    """Output times of a training flow."""
    return axis("time", times, long_name, units)


def depth(depths: Sequence[int], long_name: str = "number of layers L") -> Axis:
    """Numbers of layers."""
    return axis("depth", list(depths), long_name)


def array(values: Any) -> np.ndarray:
    """A NumPy array of numbers, texts or a tensor on any device."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def largest_of(values: Any) -> float:
    """The largest of some numbers; NaN where one of them is: xarray leaves it out by itself, and it holds nothing."""
    return float(np.max(array(values)))


def least_of(values: Any) -> float:
    """The least of some numbers; NaN where one of them is."""
    return float(np.min(array(values)))


def arranged(
    variables: Mapping[str, tuple[Any, Any] | tuple[Any, Any, str]],
    axes: Sequence[Axis] = (),
    long_names: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """A dataset.

    Parameters
    ----------
    variables : dict of str to (dims, values) or (dims, values, long_name)
        Values are numbers, arrays or tensors.
    axes : sequence of Axis
        Its coordinates.
    long_names, units : dict of str to str, optional
        Of variables that do not bring theirs.
    """
    known, measured = long_names or {}, units or {}
    made = {}
    for name, (dims, values, *said) in variables.items():
        attributes = {"long_name": said[0] if said else known[name]} if said or name in known else {}
        made[name] = (dims, array(values), attributes | ({"units": measured[name]} if name in measured else {}))
    if any(values.dtype.hasobject for _, values, _ in axes):
        return xr.Dataset(made, coords=_coordinates(axes))
    told = tuple((name, values.dtype.str, values.tobytes(), tuple(said.items())) for name, values, said in axes)
    return xr.Dataset(made, coords=_known_coordinates(told))


def _coordinates(axes: Sequence[Axis]) -> xr.Coordinates:
    return xr.Dataset(coords={name: (name, values, attributes) for name, values, attributes in axes}).coords


@lru_cache(maxsize=8)
def _known_coordinates(axes: tuple[tuple[str, str, bytes, Any], ...]) -> xr.Coordinates:
    """Those of axes by their numbers: members of a run have the same, whose indices take long to make."""
    return _coordinates([(name, np.frombuffer(values, kind).copy(), dict(said)) for name, kind, values, said in axes])
