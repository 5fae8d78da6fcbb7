"""What the members of a sweep have found, quantity by quantity: orders, errors by layer rule, checks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..display import number_said
from ..figures.swept import Quantity
from ..finding import Finding
from ..untrusted import printable

MOST_NAMES = 12  # columns of a table
_DEPTH = " at L = "


class Value(NamedTuple):
    """A number that a member has found.

    Attributes
    ----------
    number : float
    spread : float
        NaN where nothing is known of it.
    aim : float
        What it should be, or may at most (or at least) be; NaN where nothing is known.
    holds : bool
    note : str
        What belongs to it in a table.
    """

    number: float
    spread: float = math.nan
    aim: float = math.nan
    holds: bool = True
    note: str = ""


class Group(NamedTuple):
    """Quantities of one kind.

    Attributes
    ----------
    title, label : str
        Of a table, and of an axis.
    values : dict of str to dict of str to Value
        By member, and by the name of the quantity.
    logarithmic : bool
        How they are drawn.
    aimed : str
        What stands before what they should be.
    """

    title: str
    label: str
    values: dict[str, dict[str, Value]]
    logarithmic: bool = True
    aimed: str = "bound"

    @property
    def everything(self) -> list[str]:
        """All quantities."""
        return [*dict.fromkeys(name for own in self.values.values() for name in own)]

    @property
    def names(self) -> list[str]:
        """The quantities, the first `MOST_NAMES`."""
        return self.everything[:MOST_NAMES]

    @property
    def by_depth(self) -> bool:
        """Whether its numbers are those at several depths, which a table has beside each of them."""
        return any(value.note.startswith(_DEPTH) for own in self.values.values() for value in own.values())

    @property
    def left_out(self) -> str:
        """How many quantities there are beside these, and where; empty if there are none."""
        more = len(self.everything) - MOST_NAMES
        return f"{more} more, in the results.nc of each member." if more > 0 else ""

    def quantities(self) -> list[Quantity]:
        """For a chart, over the members."""
        columns = {name: [own.get(name, Value(math.nan)) for own in self.values.values()] for name in self.names}
        return [
            Quantity(
                printable(name, 100),
                np.array([value.number for value in column]),
                np.array([value.spread for value in column]),
                math.nan if self.logarithmic else _common(value.aim for value in column),
            )
            for name, column in columns.items()
        ]

    def head(self) -> list[str]:
        """The names, each with what it should be where that is the same for all members."""
        return [printable(f"{name} {self._aim(name)}".strip(), 200) for name in self.names]

    def row(self, member: str) -> list[str]:
        """What a member has found, as texts."""
        return [self._cell(name, self.values[member].get(name)) for name in self.names]

    def _aim(self, name: str) -> str:
        aim = _common(own[name].aim for own in self.values.values() if name in own)
        return f"({self.aimed} {aim:.3g})" if math.isfinite(aim) else ""

    def _cell(self, name: str, value: Value | None) -> str:
        if value is None:
            return ""
        number = number_said(value.number, ".2e" if self.logarithmic else ".3f")
        spread = f" ± {value.spread:.3f}" if math.isfinite(value.spread) else ""
        aim = f" ({value.aim:.3g})" if math.isfinite(value.aim) and not self._aim(name) else ""
        return printable(f"{number}{spread}{aim}{value.note}{'' if value.holds else ' fails'}", 200)


def _common(values: Iterator[float]) -> float:
    """The value that all have that have any; NaN where they differ."""
    known = {value for value in values if math.isfinite(value)}
    return known.pop() if len(known) == 1 else math.nan


def findings(datasets: Mapping[str, xr.Dataset]) -> dict[str, Finding]:
    """What is stated by the results of members; of datasets that state nothing, or are forged, nothing."""
    found = {}
    for member, dataset in datasets.items():
        with suppress(Exception):  # whatever a forged statement makes its reader raise
            found[member] = Finding.of(dataset)
    return found


def groups(found: Mapping[str, Finding]) -> list[Group]:
    """Observed orders, errors at the largest depth by table, and checks; what no member has is left out."""
    made: dict[str, Group] = {}
    for member, finding in found.items():
        with suppress(TypeError, ValueError, AttributeError, IndexError):  # of forged numbers
            for own, name, value in _stated(finding):
                group = made.setdefault(own.title, own)
                group.values.setdefault(member, {})[str(name)] = value
    return [*map(_short, made.values())]


def _short(group: Group) -> Group:
    """A group whose title says what belongs to all of its numbers."""
    notes = {value.note for own in group.values.values() for value in own.values()}
    if len(notes) != 1 or not (note := notes.pop()):
        return group
    values = {member: {k: value._replace(note="") for k, value in own.items()} for member, own in group.values.items()}
    return group._replace(title=f"{group.title}{note}", values=values)


def _stated(finding: Finding) -> Iterator[tuple[Group, str, Value]]:
    """Each number of a finding, with its name and the group that it belongs to, which is empty."""
    smaller = "error (smaller is better)"
    for order in finding.orders:
        number, spread, aim = map(_number, (order.value, order.spread, order.expected))
        note = " undecided" if order.reason else ""
        group = Group("Observed orders", "observed order", {}, False, "expected")
        yield group, order.rule, Value(number, spread, aim, note=note)
    for table in finding.tables:
        for name, column in table.errors.items():
            last = max(range(len(column)), key=lambda i: (math.isfinite(_number(column[i])), table.depths[i]))
            value = Value(_number(column[last]), note=f"{_DEPTH}{table.depths[last]}")
            yield Group(table.title, smaller, {}), name, value
    for check in finding.checks:
        bound = math.nan if check.bound is None else _number(check.bound)
        value = Value(_number(check.error), aim=bound, holds=check.holds)
        group = (
            Group("Checks of what must be large", "value (larger is better)", {}, aimed="at least")
            if check.least
            else Group("Checks", smaller, {})
        )
        yield group, check.name, value


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def failing(found: Mapping[str, Finding]) -> Iterator[tuple[str, list[str]]]:
    """Each check that does not hold: the member, and the error, the bound and the name of the check."""
    for member, finding in found.items():
        with suppress(TypeError, ValueError):  # of forged numbers
            for check in finding.checks:
                if not check.holds:
                    yield member, [number_said(_number(check.error)), check.said_bound, printable(check.name, 200)]
