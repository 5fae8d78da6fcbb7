"""Datasets as netCDF can hold them: what it has no kind or no name for is kept as text, or under another name.

A study of a user's own may return whatever xarray holds, and is not to lose what it has computed at its end.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

REWRITTEN = "rewritten_for_netcdf"  # the attribute that says what was changed
_LARGEST = 16  # bytes of a complex number
_DEEPEST = 100  # lists in lists: one may hold itself


def storable(dataset: xr.Dataset) -> xr.Dataset:
    """The same as netCDF can hold it; the attribute `rewritten_for_netcdf` says in what it differs, if it does.

    Names that netCDF has no room for ("a/b") are changed, and values that it has no kind for (objects, intervals, dates
    beyond the year 2262) are texts. Levels of an index of several become coordinates.
    """
    said: list[str] = []
    for name in [name for name, index in dataset.xindexes.items() if isinstance(index, xr.indexes.PandasMultiIndex)]:
        if name in dataset.dims and name in dataset.variables:
            dataset = dataset.reset_index(name)
            said.append(f"the index {_shown(name)} is kept as its levels")
    names = _names([*dict.fromkeys([*dataset.dims, *dataset.variables])])
    if names:
        dataset = dataset.rename(names)
        said += [f"{_shown(old)} is called {new}" for old, new in names.items() if str(old) != new]
    changed: dict[str, xr.Variable] = {}
    for name, variable in dataset.variables.items():
        values = _values(variable)
        if values is not None:
            changed[str(name)] = xr.Variable(variable.dims, values, variable.attrs)
            if values.dtype.kind in "OU":
                said.append(f"{name} has texts in place of values that netCDF has no kind for")
    if changed:
        dataset = dataset.drop_indexes([name for name in changed if name in dataset.xindexes]).assign(changed)
    if any(map(_refused, _attributes(dataset))):
        dataset = dataset.copy(deep=False)
        for owner in owners(dataset):
            owner.attrs = _named(owner.attrs)
    if said:
        before = dataset.attrs.get(REWRITTEN)
        dataset = dataset.assign_attrs({REWRITTEN: "; ".join([before, *said] if isinstance(before, str) else said)})
    return dataset


def as_attribute(value: Any) -> Any:
    """The value of an attribute as netCDF can hold it.

    That is, numbers for truth values, and text for what is neither numbers nor text, with all digits and entries.
    """
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, bytes):
        return value if _is_plain(value.decode("utf-8", "surrogateescape")) else repr(value)
    if not (isinstance(value, np.ndarray) and value.dtype.kind in "biufc"):
        value = _spelt(value)
    try:
        array = np.asarray(value)
    except Exception:  # lists of different lengths, or what cannot become an array, such as a sparse tensor
        return _clean(repr(value))
    if array.dtype.kind == "b":
        return array.astype(np.int64)[()]
    if array.dtype.kind in "iuf" or (array.dtype.kind == "c" and array.dtype.itemsize <= _LARGEST):
        if array.dtype.kind == "f" and isinstance(value, (list, tuple)) and not as_told(value, array):
            return _clean(repr(value))
        return array if isinstance(value, range) else value
    words = np.ravel(np.asarray(value, dtype=object)).tolist() if array.dtype.kind == "U" else [None]
    return value if all(isinstance(word, str) and _is_plain(word) for word in words) else _clean(repr(value))


def _spelt(value: Any, depth: int = 0) -> Any:
    """The same with lists in place of arrays and tensors in it: these write out some of their digits and entries."""
    if depth > _DEEPEST or isinstance(value, type):
        return value
    if isinstance(value, Mapping):
        return {key: _spelt(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_spelt(item, depth + 1) for item in value]
        return items if isinstance(value, list) else tuple(items)
    numbers = getattr(value.values if isinstance(value, xr.DataArray) else value, "tolist", None)
    if not callable(numbers) or isinstance(value, np.generic):
        return value
    try:
        return _spelt(numbers(), depth + 1)
    except Exception:  # of a tensor that is sparse, or has no numbers: it is kept as it says itself
        return value


def owners(dataset: xr.Dataset) -> list[Any]:
    """What has attributes: the dataset itself, and each of its variables."""
    return [dataset, *dataset.variables.values()]


def _attributes(dataset: xr.Dataset) -> list[tuple[Any, Any]]:
    return [item for owner in owners(dataset) for item in owner.attrs.items()]


def _refused(item: tuple[Any, Any]) -> bool:
    """Whether netCDF has no such attribute."""
    name, value = item
    if not isinstance(name, str) or name != _name(name):
        return True
    return not isinstance(value, (int, float, np.number)) and not (isinstance(value, str) and _is_plain(value))


def _named(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes with names and values that netCDF can hold; truth values stay what they are till they are written."""
    names = _names([*attributes], slash="/")
    return {
        names.get(name, name): value if isinstance(value, (bool, np.bool_)) else as_attribute(value)
        for name, value in attributes.items()
    }


def _names(present: Collection[Any], slash: str = "_") -> dict[Any, str]:
    """Other names for those that netCDF does not take, each of which no other has."""
    taken = {name for name in present if isinstance(name, str) and name == _name(name, slash)}
    names: dict[Any, str] = {}
    for name in present:
        if name in taken:
            continue
        stem = new = _name(name, slash)
        number = 1
        while new in taken:
            number += 1
            new = f"{stem}_{number}"
        taken.add(new)
        names[name] = new
    return names


def _name(name: Any, slash: str = "/") -> str:
    text = _clean(str(name)).replace("/", slash)
    return text if text.strip(".") else f"{text or '_'}".replace(".", "_")


def _shown(name: Any) -> str:
    return _clean(name if isinstance(name, str) and name else repr(name))


def _is_plain(text: str) -> bool:
    """Whether it is a text to HDF5."""
    return "\0" not in text and (text.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in text))


def _clean(text: str) -> str:
    """The same with what HDF5 does not take for text written out."""
    return text if _is_plain(text) else text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def as_told(items: Any, array: np.ndarray) -> bool:
    """Whether numbers are, as floats beside one another, what they are alone: integers may have more digits."""
    told = np.ravel(np.asarray(items, object))
    return all(a == b or a != a for a, b in zip(told, array.ravel().tolist(), strict=True))


def _values(variable: xr.Variable) -> np.ndarray | None:
    """Other values for those that netCDF does not take, of the same shape; None if it does."""
    if not isinstance(variable.dtype, np.dtype):
        # One of pandas, whose values NumPy would round, or take to another zone.
        values = np.empty(variable.size, dtype=object)
        for i, item in enumerate(variable.to_index().tolist()):
            values[i] = None if item is pd.NA else item
        values = values.reshape(variable.shape)
        own = _objects(values)
        return values if own is None else own
    kind, size = variable.dtype.kind, variable.dtype.itemsize
    if kind == "M":
        return None if _in_range(variable.values) else variable.values.astype(str).astype(object)
    if kind == "U":
        return None if _is_plain("".join(variable.values.ravel().tolist())) else _texts(variable.values)
    if kind == "O":
        return _objects(variable.values)
    return None if kind in "biufSTm" or (kind == "c" and size <= _LARGEST) else _texts(variable.values)


def _objects(values: np.ndarray) -> np.ndarray | None:
    """The same for objects of Python."""
    items = values.ravel().tolist()
    if all(isinstance(item, str) or item is None or _is_nan(item) for item in items):
        return None if all(_is_plain(item) for item in items if isinstance(item, str)) else _texts(values)
    if all(isinstance(item, bytes) for item in items):
        return None
    if all(isinstance(item, (bool, np.bool_)) for item in items):
        return values.astype(bool)
    numbers = _numbers(items)
    return _texts(values) if numbers is None else numbers.reshape(values.shape)


def _is_nan(item: Any) -> bool:
    return isinstance(item, (float, complex, np.number)) and bool(item != item)


def _in_range(dates: np.ndarray) -> bool:
    """Whether dates are read as what they are: in nanoseconds."""
    fine = dates.astype("M8[ns]")
    return bool(np.array_equal(fine.astype(dates.dtype)[~np.isnat(dates)], dates[~np.isnat(dates)]))


def _numbers(items: list[Any]) -> np.ndarray | None:
    """Objects as numbers, with NaN for None, if no digit is lost."""
    if not all(item is None or isinstance(item, (int, float, complex, np.number)) for item in items):
        return None
    try:
        numbers = np.array([np.nan if item is None else item for item in items])
    except OverflowError:
        return None
    if numbers.dtype.kind not in "iufc":
        return None
    kept = (item is None or item == own or _is_nan(item) for item, own in zip(items, numbers.tolist(), strict=True))
    return numbers if all(kept) else None


def _texts(values: np.ndarray) -> np.ndarray:
    """Each of the values as a text, with all of its digits and entries."""
    texts = np.empty(values.size, dtype=object)
    for i, item in enumerate(values.ravel().tolist()):
        texts[i] = _clean(item if isinstance(item, str) else str(_spelt(item)))
    return texts.reshape(values.shape)
