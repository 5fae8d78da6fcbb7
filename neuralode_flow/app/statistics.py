"""What many members have found together: statistics of every number of their findings, and one finding of all."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..display import counted, first_of, number_said
from ..finding import MEMBERS, STATUS, Check, ErrorTable, Finding
from ..orders import Order
from .schema import Ensemble

# Variables along `seed`, beside how a member ended: whether it is verified, whether its results are there; of what it
# has found its problem and its numbers, which have a dimension of their own.
PASSED, RAN, PROBLEM = "member_passed", "member_ran", "member_problem"
NUMBER, NUMBERS = "member_number", "member_numbers"

NOTE = "Members"  # the title of the table of statistics
_NAMED = 5  # members in a sentence


class Statistic(NamedTuple):
    """A number over the members that have it.

    mean, deviation : its mean and its standard deviation (n − 1).
    error : the standard error of the mean.
    least, most : its range.
    members : how many have it.
    hold : how many of them pass, where it is held to a bound.
    """

    mean: float
    deviation: float
    error: float
    least: float
    most: float
    members: int
    hold: int | None = None

    @classmethod
    def of(cls, values: np.ndarray, hold: int | None = None) -> Statistic:
        """That of values `(n,)`, of which those that are not finite are left out: `members` counts the others."""
        known = values[np.isfinite(values)]
        if not len(known):
            return cls(math.nan, math.nan, math.nan, math.nan, math.nan, 0, hold)
        deviation = float(known.std(ddof=1)) if len(known) > 1 else math.nan
        least, most = float(known.min()), float(known.max())
        mean = least if least == most else float(known.mean())
        return cls(mean, deviation, deviation / math.sqrt(len(known)), least, most, len(known), hold)


def renamed(name: Any, taken: Collection[Any]) -> str:
    """What a member has by a name that is said of all: another name that is not taken."""
    name = f"own_{name}"
    return renamed(name, taken) if name in taken else name


def path_of(*names: Any) -> str:
    """The names of an entry and of all that it is in as one: a dot in a name is none between names."""
    return ".".join(str(name).replace("\\", r"\\").replace(".", r"\.") for name in names)


def leaves(node: Any, path: str = "") -> dict[str, float]:
    """The numbers of nested mappings and lists by their paths, as "numbers.rates.0"; None counts as NaN."""
    if node is None or isinstance(node, (bool, int, float)):
        return {path: math.nan if node is None else float(node)}
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, (list, tuple)):
        items = enumerate(node)
    elif isinstance(node, Mapping):
        items = node.items()
    found: dict[str, float] = {}
    for key, item in items:
        if not isinstance(item, str):
            found |= leaves(item, _within(path, key))
    return found


def _within(path: str, name: Any) -> str:
    return f"{path}.{path_of(name)}" if path else path_of(name)


def _rebuilt(node: Any, numbers: Mapping[str, float], path: str = "") -> Any:
    """The same with other numbers; one that is the same keeps its type."""
    if isinstance(node, Mapping):
        return {key: _rebuilt(item, numbers, _within(path, key)) for key, item in node.items()}
    if isinstance(node, (list, tuple)):
        return [_rebuilt(item, numbers, _within(path, i)) for i, item in enumerate(node)]
    number = numbers.get(path, math.nan)
    if node is None:
        return None if math.isnan(number) else number
    if isinstance(node, (bool, int, float)):
        return node if number == node else number
    return node


# What checks, orders and tables are known by in the findings of several members, some of which may lack one.
_NAMED_BY = {"checks": ("name",), "orders": ("rule",), "tables": ("title", "depths")}


def by_name(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a finding with its checks, orders and tables by their names; of one name, in their order."""
    named: dict[str, dict[str, Any]] = {part: {} for part in _NAMED_BY}
    for part, known_by in _NAMED_BY.items():
        before = Counter[str]()
        for item in parts.get(part, ()):
            name = " ".join(str(item[key]) for key in known_by)
            named[part][f"{name}\n{before[name]}"] = item
            before[name] += 1
    return {**parts, **named}


def listed(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a finding as they were before `by_name`."""
    return {**parts, **{part: [*parts[part].values()] for part in _NAMED_BY}}


# The parts of a finding in which a study says what it likes: an entry may be missing there.
_FREE = ("numbers", "notes", "measured", "published")
_DIFFERENT = object()
_SUMMED_UP = ("members", "verified", "not_verified", "statistics")  # numbers of the finding of all
_OF_ALL = ("problem", "status", "verdict")  # what a flat record of a member says of it, and is said of all


def agreed(nodes: Sequence[Any], free: bool = False) -> Any:
    """What findings of several members, as their parts, have in common: any of their numbers, and texts that are alike.

    A text that differs is left out where it may be missing, and has "…" between what all of them begin and end with
    elsewhere. What is agreed of some of them and of the others agrees to the same.
    """
    known = [node for node in nodes if node is not None]
    first = next(iter(known), None)
    if isinstance(first, Mapping):
        entries: list[Mapping[Any, Any]] = [node if isinstance(node, Mapping) else {} for node in nodes]
        found = {
            key: agreed([node.get(key) for node in entries], free or key in _FREE)
            for key in dict.fromkeys(key for node in entries for key in node)
        }
        return {
            key: None if part is _DIFFERENT else part
            for key, part in found.items()
            if part is not _DIFFERENT or not free
        }
    if isinstance(first, (list, tuple)):
        lists: list[Sequence[Any]] = [node if isinstance(node, (list, tuple)) else () for node in nodes]
        most = max(map(len, lists))
        items = [agreed([node[i] if i < len(node) else None for node in lists], free) for i in range(most)]
        return _DIFFERENT if _DIFFERENT in items else items
    if not isinstance(first, str) or all(node == first for node in (nodes if free else known)):
        return first
    return _DIFFERENT if free else "…".join(_around([*map(str, known)]))


def summed_up(dataset: xr.Dataset, ensemble: Ensemble, size: int, ending: str | None = None) -> xr.Dataset:
    """The dataset of all members with the finding of all; the numbers of one that did not run whole are not in it.

    An `ending` is that of the run, which can go on then, whatever it was that ended each member.
    """
    ran, passed, status = dataset[RAN].values, dataset[PASSED].values, dataset[STATUS].values.tolist()
    whole = ran & (dataset[STATUS].values == "ok")
    columns = dict(zip(dataset[NUMBER].values.tolist(), dataset[NUMBERS].values[whole].T, strict=True))
    means = {name: Statistic.of(values).mean for name, values in columns.items()}
    common = Finding.of(dataset)
    rebuilt = Finding.of_parts(listed(_rebuilt(by_name(common.parts()), means)))
    tables = (replace(table, depths=own.depths) for table, own in zip(rebuilt.tables, common.tables, strict=True))
    mean = replace(rebuilt, checks=common.checks, tables=tuple(tables))
    statistics = _statistics(mean, columns)
    number, bounded = len(passed), any(check.bound is not None for check in mean.checks)
    verified = {
        "verified": int(passed.sum()), "not_verified": [ensemble.name(i) for i in np.flatnonzero(~passed)[:100]]
    }  # fmt: skip
    finding = replace(
        mean,
        problem=_common(dataset[PROBLEM].values[ran].tolist()),
        status=_status(status, ensemble),
        verdict=_verdict(mean, statistics, passed if bounded else whole, bounded, ensemble),
        checks=tuple(_checks(mean, columns)),
        orders=tuple(_orders(mean, columns, number)),
        tables=tuple(
            replace(table, what=f"{table.what or 'errors'}, mean over {_members_of(table, key, columns)}")
            for key, table in _keyed(mean, "tables")
        ),
        notes={
            NOTE: _note(statistics, dataset, whole, size),
            **{renamed(title, mean.notes) if title == NOTE else title: text for title, text in mean.notes.items()},
        },
        numbers={
            **{
                renamed(name, mean.numbers) if name in _SUMMED_UP else name: value
                for name, value in mean.numbers.items()
                if name not in _OF_ALL
            },
            **({} if ending is None else {"ending": ending}),
            "members": number,
            **(verified if bounded else {}),
            "statistics": {name: statistic._asdict() for name, statistic in statistics.items()},
        },
    )
    unused = [RAN, PROBLEM] if bounded else [RAN, PROBLEM, PASSED]
    return finding.attached(dataset.drop_dims(NUMBER).drop_vars(unused).assign_attrs({MEMBERS: number}))


def _orders(mean: Finding, columns: Mapping[str, np.ndarray], number: int) -> Iterator[Order]:
    """The mean of each order, with its standard deviation as its spread; it rests on the fewest errors of a member."""
    for key, order in _keyed(mean, "orders"):
        values, points, falls = (columns[path_of("orders", key, name)] for name in ("value", "points", "falls"))
        own, decided = Statistic.of(values), points[np.isfinite(values)]
        some = f" in {own.members} of {counted(number, 'member')}" if own.members < number else ""
        yield order._replace(
            spread=own.deviation,
            points=int(decided.min()) if own.members else 0,
            reason="" if own.members else order.reason or "no member has one",
            falls=bool(falls.all()),
            over=f"{order.over}{some}",
            spread_of=f"{counted(own.members, 'member')}, standard deviation",
        )


def _members_of(table: ErrorTable, key: str, columns: Mapping[str, np.ndarray]) -> str:
    """How many members the entries of a table are means over; some may have fewer than others."""
    own = (
        columns[path_of("tables", key, "errors", label, j)] for label in table.errors for j in range(len(table.depths))
    )
    counts = sorted({int(np.isfinite(values).sum()) for values in own} - {0}) or [0]
    return counted(counts[0], "member") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} members"


def _of_order(rule: str) -> str:
    return f"observed order of {rule}".removesuffix(" of ")


def _statistics(mean: Finding, columns: Mapping[str, np.ndarray]) -> dict[str, Statistic]:
    """Of orders, checks, and the entries of tables, in this order, by their names; each has one of its own."""
    found: dict[str, Statistic] = {}
    for key, order in _keyed(mean, "orders"):
        found[_untaken(_of_order(order.rule), found)] = Statistic.of(columns[path_of("orders", key, "value")])
    for key, check in _keyed(mean, "checks"):
        errors, bounds = _of_check(columns, key)
        found[_untaken(check.name, found)] = Statistic.of(errors, _holding(errors, bounds, check))
    entries: dict[str, list[np.ndarray]] = {}
    for key, table in _keyed(mean, "tables"):
        for label in table.errors:
            for j, depth in enumerate(table.depths):
                name = f"{table.title}: {label}, L = {depth}"
                own = columns[path_of("tables", key, "errors", label, j)]
                alone = next((others for others in entries.setdefault(name, []) if not _both(others, own)), None)
                # Where depths differ between members, each is in one of the tables of a title.
                if alone is None:
                    entries[name].append(own.copy())
                else:
                    alone[:] = np.where(np.isfinite(own), own, alone)
    for name, several in entries.items():
        for values in several:
            found[_untaken(name, found)] = Statistic.of(values)
    return found


def _both(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether a member has a number in both."""
    return bool((np.isfinite(one) & np.isfinite(other)).any())


def _untaken(name: str, taken: Collection[str]) -> str:
    """The name, with a number after it where another one has it already."""
    others = (f"{name} ({number})" for number in count(2))
    return next(each for each in chain([name], others) if each not in taken)


def _keyed(mean: Finding, part: str) -> Iterator[tuple[str, Any]]:
    """The checks, orders or tables of a finding, each with the name that it has among the numbers of members."""
    return zip(by_name(mean.parts())[part], getattr(mean, part), strict=True)


def _of_check(columns: Mapping[str, np.ndarray], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Errors and bounds of a check, of those members that have it."""
    errors, bounds, least = (columns[path_of("checks", key, name)] for name in ("error", "bound", "least"))
    having = ~np.isnan(least)
    return errors[having], bounds[having]


def _holding(errors: np.ndarray, bounds: np.ndarray, check: Check) -> int | None:
    """How many members pass a check; None where it has no bound."""
    bounded = np.isfinite(bounds)
    if not bounded.any():
        return None
    within = errors >= bounds if check.least else errors <= bounds
    return int((within | ~bounded).sum())


def _checks(mean: Finding, columns: Mapping[str, np.ndarray]) -> Iterator[Check]:
    """Each check at its worst member; one whose bound differs says how many members fail."""
    for key, check in _keyed(mean, "checks"):
        errors, bounds = _of_check(columns, key)
        own, holding = np.unique(bounds), _holding(errors, bounds, check)
        if len(own) > 1 and holding is not None:
            yield Check(f"members that fail: {check.name}", float(len(errors) - holding), 0.0, check.norm)
            continue
        worst = float(errors.min() if check.least else errors.max()) if len(errors) else math.nan
        worst_of = f"{'least' if check.least else 'largest'} of {counted(len(errors), 'member')}"
        norm = ", ".join(filter(None, (check.norm, worst_of)))
        yield replace(check, error=worst, norm=norm)


def _named(which: Iterable[int], ensemble: Ensemble) -> str:
    """Some members by their seeds."""
    return first_of([ensemble.name(i) for i in which], _NAMED)


def _status(status: Sequence[str], ensemble: Ensemble) -> str:
    ended = [i for i, text in enumerate(status) if text != "ok"]
    if not ended:
        return "ok"
    return (
        f"{len(ended)} of {counted(len(status), 'member')} did not run whole ({_named(ended, ensemble)}); "
        f"{ensemble.name(ended[0])}: {status[ended[0]]}"
    )


def _verdict(
    mean: Finding, statistics: Mapping[str, Statistic], passed: np.ndarray, bounded: bool, ensemble: Ensemble
) -> str:
    """How many members are verified, which are not, and the numbers that the study is about with standard errors.

    Where no check has a bound, there is nothing to verify, and it says how many ran whole.
    """
    others = np.flatnonzero(~passed)
    names = f" (not {_named(others, ensemble)})" if len(others) else ""
    members = f"{passed.sum()} of {counted(len(passed), 'member')}"
    said = [
        f"{members} verified{names}." if bounded else f"{members} ran whole{names}; none of their checks has a bound."
    ]
    known = [*statistics]
    orders, checks = known[: len(mean.orders)], known[len(mean.orders) :]
    bounds = (check.bound for check in mean.checks)
    for name in orders or [name for name, bound in zip(checks, bounds, strict=False) if bound is not None][:1]:
        own, form = statistics[name], ".4f" if orders else ".2e"
        if not own.members:
            said.append(f"{name}: undecided.")
            continue
        some = f" over {own.members} of {counted(len(passed), 'member')}" if own.members < len(passed) else ""
        text = f"{name}: {number_said(own.mean, form)} ± {number_said(own.error, '.1e')}{some}"
        said.append(f"{text} ({number_said(own.least, form)} to {number_said(own.most, form)}).")
    return " ".join([said[0], "Mean with its standard error, and range:", *said[1:]]) if len(said) > 1 else said[0]


def _note(statistics: Mapping[str, Statistic], dataset: xr.Dataset, whole: np.ndarray, size: int) -> str:
    """The statistics as a table of text, and how they were computed."""
    width = max(map(len, statistics), default=0)
    columns = ("mean", "st. error", "deviation", "least", "largest")
    lines = [f"{'':{width}}  {' '.join(f'{name:>10}' for name in columns)}  {'members':>8}"]
    for name, own in statistics.items():
        numbers = (own.mean, own.error, own.deviation, own.least, own.most)
        cells = " ".join(f"{number_said(number, '.3e'):>10}" for number in numbers)
        holds = "" if own.hold is None else f"  {own.hold} hold"
        lines.append(f"{name:{width}}  {cells}  {own.members:>8}{holds}")
    if not whole.all():
        lines.append(f"over the {whole.sum()} of {counted(len(whole), 'member')} that ran whole")
    lines.append(f"computed {size} at once in each process")
    if dataset.attrs.get("left_out"):
        lines.append(
            f"left out, since they would fill the memory: {dataset.attrs['left_out']}; a run of one seed has them"
        )
    return "\n".join(lines)


def _common(problems: Sequence[str]) -> str:
    """The problem of all members in one sentence, with "…" between whole words and numbers where they differ."""
    if len({*problems}) == 1:
        return problems[0]
    first, last = _around(problems)
    between = [text[len(first) : len(text) - len(last)] for text in problems]
    return f"{first}{between[0]} … {between[-1]}{last}"


def _around(texts: Sequence[str]) -> tuple[str, str]:
    """What all texts begin with, and end with after that, in whole words and numbers."""
    first = re.sub(r"[\w.]*\Z", "", os.path.commonprefix(texts))
    last = re.sub(r"[\w.]*\Z", "", os.path.commonprefix([text[len(first) :][::-1] for text in texts]))[::-1]
    return first, last
