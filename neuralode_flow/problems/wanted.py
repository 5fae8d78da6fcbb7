"""What is wanted of a user's file: a whole table, or columns of it by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..display import counted
from ..registry import did_you_mean

# Bytes of a file, and of its numbers: 2²⁷ of them. A regression keeps several copies and products of its tables.
MOST_BYTES = 2**30
# What is compressed grows no more than so many times, above the first size: tables of measurements grow five times.
FREE_GROWTH, MOST_GROWTH = 2**26, 100
# What a sentence about a missing entry ends with.
DROP = "or set problem.missing=drop to leave such rows out"
_SHOWN = 20


class Refused(ValueError):
    """The file is sound, but not what is wanted of it."""


class Wanted(NamedTuple):
    """What is wanted of a file.

    Attributes
    ----------
    key : str
        The array or variable, where a file holds several.
    chosen : bool
        Whether the user has set it: then it must be there, also where a file holds one.
    setting : str
        The setting that chooses it.
    header : str
        Whether the first line of a text holds names: "yes", "no" or "auto".
    missing : bool
        Whether entries that are missing become NaN; else they are refused.
    columns : dict of str to list of str, or None
        Names of columns by the setting that asks for them; None for the whole table.
    """

    key: str = ""
    chosen: bool = False
    setting: str = ""
    header: str = "auto"
    missing: bool = False
    columns: Mapping[str, Sequence[str]] | None = None

    def picks(self, label: str, names: Sequence[str]) -> list[int]:
        """Where the wanted columns stand among `names`, one setting after the other.

        Raises
        ------
        Refused
            If one has no such name, or several columns have it.
        """
        found = []
        for setting, columns in (self.columns or {}).items():
            for column in columns:
                if names.count(column) != 1:
                    raise Refused(_no_column(setting, column, label, names))
                found.append(names.index(column))
        return found


def _no_column(setting: str, column: str, label: str, names: Sequence[str]) -> str:
    if column in names:
        return f"{setting}: {names.count(column)} columns of {label} are called {column!r}; rename all but one"
    return (
        f"{setting}: {column!r} is no column of {label}{did_you_mean(column, names)} ({listed(names, 'its columns')})"
    )


def listed(names: Sequence[str], what: str = "found") -> str:
    """The names in one line, the first of many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what}: {', '.join(names[:_SHOWN]) or 'none'}{more}"


def chosen_name(label: str, names: Sequence[str], wanted: Wanted, what: str) -> str:
    """The name of the one array or variable that is meant; Refused where that is open."""
    if len(names) == 1 and not wanted.chosen:
        return names[0]
    if wanted.key not in names:
        raise Refused(
            f"{label} holds {counted(len(names), what)} and none is called '{wanted.key}' ({listed(names)}); "
            f"set {wanted.setting}=NAME to one of them"
        )
    return wanted.key


def beside(label: str, names: Sequence[str], read: Callable[[str], np.ndarray], wanted: Wanted) -> np.ndarray:
    """The wanted columns `(n, k)`, each read by its name as an array of one axis."""
    picked = [names[i] for i in wanted.picks(label, names)]
    columns = [read(name) for name in picked]
    for name, column in zip(picked, columns, strict=True):
        if column.dtype.kind not in "fiub":
            raise TypeError(f"{label}: {name!r} must hold real numbers, got dtype {column.dtype}; convert it to floats")
        if column.ndim != 1 or len(column) != len(columns[0]):
            raise Refused(
                f"{label}: {name!r} has shape {column.shape}, but a column has one axis, as long as the others; "
                f"{picked[0]!r} has shape {columns[0].shape}"
            )
    return np.stack([column.astype(np.float64) for column in columns], axis=1)
