"""The results of the members of a sweep as one dataset, and which of them do not go into it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..storable import as_told

# A joined dataset may be so many times as large as what it is made of, or so many bytes: axes without common values
# fill it with NaN.
_PADDING = 16
_ALWAYS = 32 * 2**20

_STATUS = "run_status"

_MOST_COORDINATES = 100  # settings that are stored beside the members

_NAME = re.compile(r"\w[\w.@+-]*")  # of a setting that netCDF takes as a name
_KINDS = {"b": "numbers", "i": "numbers", "u": "numbers", "f": "numbers", "c": "complex numbers"}
_KINDS |= {"m": "times", "M": "times"}
_INTEGER = re.compile(r"(-?\d+)?")


def joined(
    datasets: Mapping[str, xr.Dataset], settings: Mapping[str, Mapping[str, Any]], statuses: Mapping[str, str]
) -> tuple[xr.Dataset | None, dict[str, str]]:
    """Datasets along a new axis `member`, with the settings as coordinates; what is short is padded with NaN.

    How each has run is the variable `run_status`.

    The axis `member` of a dataset itself is called `own_member`. Settings that netCDF cannot name are left out.

    Parameters
    ----------
    datasets : mapping of str to xarray.Dataset
        By member.
    settings : mapping of str to mapping
        Of each member, the settings in which members differ.
    statuses : mapping of str to str
        Of each member, "ok" or why it did not run whole.

    Returns
    -------
    xarray.Dataset or None
        None if there is nothing to join.
    dict of str to str
        Why a member is not in it, by member: its study or its axes are not those of most, or nothing can be joined.
    """
    # The axis of the draws inside a run gives its name to that of the runs.
    datasets = {name: _renamed(dataset) for name, dataset in datasets.items()}
    apart = _of_other_studies(datasets)
    fitting = {name: dataset for name, dataset in datasets.items() if name not in apart}
    fitting = _with_integers_alike(fitting)
    apart |= _of_other_kinds(fitting)
    fitting = {name: dataset for name, dataset in fitting.items() if name not in apart}
    if not fitting:
        return None, apart
    try:
        _check_size(list(fitting.values()))
        return _along_members(fitting, settings, statuses), apart
    except Exception as error:  # whatever xarray raises at datasets that no study has written
        return None, apart | dict.fromkeys(fitting, f"the members cannot be joined: {error}")


def _renamed(dataset: xr.Dataset) -> xr.Dataset:
    names = {*dataset.dims, *dataset.variables}
    return dataset.rename(member="own_member") if "member" in names and "own_member" not in names else dataset


def _of_other_studies(datasets: Mapping[str, xr.Dataset]) -> dict[str, str]:
    """The members that are not of the study of most; all of them if no study has more than half."""
    studies = {name: str(dataset.attrs.get("study", "")) for name, dataset in datasets.items()}
    most, count = Counter(studies.values()).most_common(1)[0] if studies else ("", 0)
    if 2 * count <= len(studies):
        return {name: f"it is of the study {study}, and no study has most members" for name, study in studies.items()}
    return {name: f"it is of the study {study}, most are of {most}" for name, study in studies.items() if study != most}


def _with_integers_alike(datasets: dict[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """The same with texts in place of integers that are texts in others, as runs of several members have them."""
    told: set[Hashable] = set()
    for dataset in datasets.values():
        texts = [(name, own.values) for name, own in dataset.data_vars.items() if own.dtype.kind in "OU"]
        told |= {name for name, values in texts if all(map(_INTEGER.fullmatch, map(str, values.ravel().tolist())))}
    if not told:
        return datasets
    return {
        member: _with_texts(dataset, [name for name in told & {*dataset.data_vars} if dataset[name].dtype.kind in "iu"])
        for member, dataset in datasets.items()
    }


def _of_other_kinds(datasets: Mapping[str, xr.Dataset]) -> dict[str, str]:
    """The members with a variable on other axes or of another kind than in most, or with a value twice on an axis."""
    kinds: dict[Hashable, Counter[str]] = {}
    for dataset in datasets.values():
        for name in dataset.variables:
            kinds.setdefault(name, Counter())[_kind(dataset, name)] += 1
    usual = {name: counted.most_common(1)[0][0] for name, counted in kinds.items()}
    uneven = _uneven(list(datasets.values()))
    apart = {}
    for member, dataset in datasets.items():
        own = ((name, _kind(dataset, name)) for name in dataset.variables)
        reasons = [f"{name} has {kind}, in most {usual[name]}" for name, kind in own if kind != usual[name]]
        twice = (name for name in uneven & set(dataset.indexes) if not dataset.indexes[name].is_unique)
        reasons += [f"its axis {name} has a value twice" for name in twice]
        reasons += ["it has both member and own_member"] * ("member" in {*dataset.dims, *dataset.variables})
        if reasons:
            apart[member] = reasons[0]
    return apart


def _kind(dataset: xr.Dataset, name: Hashable) -> str:
    variable = dataset.variables[name]
    what = _KINDS.get(variable.dtype.kind, "texts")
    place = " as a coordinate" if name in dataset.coords else ""
    return f"{what}{place} over ({', '.join(map(str, variable.dims))})"


def _uneven(datasets: Sequence[xr.Dataset]) -> set[Hashable]:
    """The axes that have not the same coordinates in all datasets."""
    first: dict[Hashable, Any] = {}
    uneven = set()
    for dataset in datasets:
        for name, index in dataset.indexes.items():
            if not first.setdefault(name, index).equals(index):
                uneven.add(name)
    return uneven


def _check_size(datasets: Sequence[xr.Dataset]) -> None:
    """Raises ValueError if the joined dataset would be mostly padding."""
    lengths: dict[Hashable, int] = {}
    values: dict[Hashable, set[Any]] = {}
    for dataset in datasets:
        for axis, size in dataset.sizes.items():
            lengths[axis] = max(size, lengths.get(axis, 0))
            if axis in dataset.indexes:
                values.setdefault(axis, set()).update(dataset.indexes[axis].tolist())
    lengths |= {axis: max(lengths[axis], len(found)) for axis, found in values.items()}
    shapes = {name: variable.dims for dataset in datasets for name, variable in dataset.data_vars.items()}
    size = 8 * len(datasets) * sum(math.prod(lengths[axis] for axis in dims) for dims in shapes.values())
    if size > max(_ALWAYS, _PADDING * sum(dataset.nbytes for dataset in datasets)):
        sizes = ", ".join(f"{axis}: {length}" for axis, length in lengths.items())
        raise ValueError(f"their axes have too few values in common ({sizes} together)")


def _along_members(
    datasets: Mapping[str, xr.Dataset], settings: Mapping[str, Mapping[str, Any]], statuses: Mapping[str, str]
) -> xr.Dataset:
    names = list(datasets)
    first = datasets[names[0]]
    numbered = [dataset.drop_attrs() for dataset in _numbered(list(datasets.values()))]
    dataset = _concatenated(numbered, names)
    if lossy := [name for name in dataset.data_vars if _has_lost(name, dataset, numbered)]:
        dataset = _concatenated([_with_texts(own, lossy) for own in numbered], names)
        dataset = dataset.assign({name: dataset[name].fillna("") for name in lossy})
    if _STATUS not in {*dataset.variables, *dataset.dims}:
        ended = _coordinate([statuses[name] for name in names])
        dataset[_STATUS] = ("member", ended, {"long_name": "how the run of the member ended"})
    taken = {*dataset.variables, *dataset.dims}
    keys = dict.fromkeys(key for name in names for key in settings[name] if _NAME.fullmatch(key) and key not in taken)
    values = {
        key: ("member", _coordinate([settings[name].get(key) for name in names]))
        for key in list(keys)[:_MOST_COORDINATES]
    }
    dataset = dataset.assign_coords(values)
    for name in dataset.variables:
        theirs = [own[name].attrs for own in datasets.values() if name in own.variables]
        if theirs:
            dataset[name].attrs = _common(theirs)
    problems = {str(dataset.attrs.get("problem", "")) for dataset in datasets.values()}
    # What members differ in does not stand for all.
    problem = problems.pop() if len(problems) == 1 else ""
    dataset.attrs = {"study": str(first.attrs.get("study", "")), "sweep": 1, "problem": problem}
    return dataset


def _concatenated(datasets: Sequence[xr.Dataset], names: Sequence[str]) -> xr.Dataset:
    member = xr.DataArray(names, dims="member", name="member")
    return xr.concat(datasets, dim=member, data_vars="all", coords="minimal", compat="override", join="outer")


def _has_lost(name: Hashable, dataset: xr.Dataset, datasets: Sequence[xr.Dataset]) -> bool:
    """Whether a variable of all members has become a float, and integers of some are none."""
    own = [other.variables[name].values for other in datasets if name in other.variables]
    return dataset.variables[name].dtype.kind in "fc" and loses_digits([*own, np.array(np.nan)])


def _with_texts(dataset: xr.Dataset, names: Sequence[Hashable]) -> xr.Dataset:
    """The same with texts in place of the numbers of some variables."""
    own = [name for name in names if name in dataset.variables]
    return dataset.assign({name: dataset[name].copy(data=_texts(dataset[name].values)) for name in own})


def _common(attributes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all say alike, such as a name: one that is true of the first member alone is none of all."""
    first = attributes[0]
    return {
        key: value for key, value in first.items() if all(repr(own.get(key)) == repr(value) for own in attributes[1:])
    }


def _coordinate(values: Sequence[Any]) -> np.ndarray:
    """Numbers where all values are, else texts."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        numbers = np.array(values)
        # Not integers that are larger than NumPy's, or no floats beside one.
        if numbers.dtype.kind in "iuf" and as_told(values, numbers):
            return numbers
    return np.array([str(value).replace("\0", r"\0") for value in values])


def _numbered(datasets: list[xr.Dataset]) -> list[xr.Dataset]:
    """The datasets with numbers along axes of no coordinates and several lengths, so that what is short is padded."""
    sizes: dict[Any, set[int]] = {}
    for dataset in datasets:
        for axis, size in dataset.sizes.items():
            sizes.setdefault(axis, set()).add(size)
    uneven = [axis for axis, found in sizes.items() if len(found) > 1]
    return [
        dataset.assign_coords(
            {a: np.arange(dataset.sizes[a]) for a in uneven if a in dataset.dims and a not in dataset.coords}
        )
        for dataset in datasets
    ]


def of_one_kind(values: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """The same, as texts where it is a text in one member and a number in another, or loses digits as a float."""
    if len({value.dtype.kind in "OU" for value in values}) < 2 and not loses_digits(values):
        return values
    return [*map(_texts, values)]


def _texts(values: np.ndarray) -> np.ndarray:
    return np.array([*map(_text, values.ravel().tolist())], dtype=object).reshape(values.shape)


def _text(item: Any) -> str:
    """A text or number as text, of NaN none; an integer that has become a float, beside NaN, is an integer there."""
    if item != item:
        return ""
    return str(int(item)) if isinstance(item, float) and abs(item) < 2**63 and item.is_integer() else str(item)


def loses_digits(values: Sequence[np.ndarray]) -> bool:
    """Whether some are integers that differ from what they become together, which is a float that has 53 bits."""
    if any(value.dtype.kind not in "biufc" for value in values) or np.result_type(*values).kind not in "fc":
        return False
    large = [value[(value > 2**53) | (value < -(2**53))] for value in values if value.dtype.kind in "iu"]
    return any(int(float(number)) != number for own in large for number in own.tolist())
