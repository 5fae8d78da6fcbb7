"""A run of many members, which differ in their seeds: computed in parts that are saved whole, joined along `seed`."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .. import results
from ..finding import MEMBERS, STATUS, Finding
from ..parallel import processors, side_by_side
from ..problems import PROBLEMS, Problem
from ..storable import storable
from ..studies import STUDIES
from ..studies.clock import Clock, Schedule
from ..studies.together import together as gathered
from ..time.trajectory import SAME_TIME, common_times
from .errors import Stop, first_line
from .joined import of_one_kind
from .plugins import sources
from .runfolder import computing, flat
from .schema import Job
from .statistics import (
    NUMBER,
    NUMBERS,
    PASSED,
    PROBLEM,
    RAN,
    agreed,
    by_name,
    leaves,
    listed,
    renamed,
    summed_up,
)

DIMENSION = "seed"
_FORMAT = 6  # of parts: those of another are computed again
_BEYOND = "beyond"  # whether a part was written after the budget of wall time, which may have ended members of it
_ATTRIBUTE = "attribute."  # begins the name of a variable that was one
_OF_ALL = ("of", "budgets", _BEYOND, "left_out", MEMBERS)  # attributes that are said of all

_PART = "members-{:06}-{:06}.nc"
_NAMED = re.compile(r"members-(\d{6,})-(\d{6,})\.nc")

# Members that one process has in memory at most, and bytes that these may take, as far as is known before.
_MOST_AT_ONCE, _MOST_BYTES = 256, 2**28

# Bytes of the joined dataset; the largest variables are left out where it would have more.
_MOST_JOINED = 2**30

One = Callable[[Job, Callable[[Any], Any]], xr.Dataset]
Report = Callable[[float, str], None]


def solved(job: Job, one: One, times: Tensor, folder: Path, report: Report) -> xr.Dataset:
    """What all members find, along the dimension `seed`, with what it comes to together.

    Parameters
    ----------
    job : Job
    one : callable
        one(job, changed) is what the study of a member finds, with what it takes in changed.
    times : Tensor (T,)
        Output times.
    folder : Path
        Where parts are saved; those that are there already are not computed again.
    report : callable
        report(fraction, what).

    Raises
    ------
    ValueError
        If members have several shapes.
    RuntimeError
        If no member could be computed, the budget of wall time is used up, or a folder lies where a part is to.
    """
    assert job.ensemble is not None
    number, started = len(job.ensemble), time.monotonic()
    given = job.study.parameters.get("workers")
    workers = given if isinstance(given, int) else processors()
    size = at_once(job, workers)
    wanted = _digest(job)
    parts = {name: own for name in _names(folder) if (own := _saved(folder, name, job, wanted)) is not None}
    cut = [name for name, own in parts.items() if _cut(own)]
    seconds = math.inf if job.time.max_seconds is None else job.time.max_seconds

    def used_up() -> bool:
        return time.monotonic() - started >= seconds

    def part(members: range) -> None:
        if used_up():
            raise RuntimeError(f"the budget of wall time was used up: time.max_seconds={seconds:g}")
        path = folder / _PART.format(*_ends(members))
        computed = _computed(job, one, members, times, started)
        if _digest(job) != wanted:  # each member has read it for itself: these may have read another one
            raise RuntimeError(
                "a file that its problem is read from has changed since; the same command computes all again"
            )
        told = {"of": _of_members(wanted, _ends(members)), "budgets": _budgets(job), _BEYOND: int(used_up())}
        results.write(path, computed.assign_attrs(told))

    for name in [*cut, *_twice({*parts} - {*cut})]:
        del parts[name]
    missing = [*_missing(number, size, {*parts})]
    finished = number - sum(map(len, missing))
    for members, _ in side_by_side(part, missing, workers):
        own = _saved(folder, _ends(members), job, wanted)  # while the next ones are computed
        if own is not None:
            parts[_ends(members)] = own
        finished += len(members)
        report(finished / number, f"{finished} of {number} members")
    for first, stop in {*cut} - {*parts}:
        _remove(folder / _PART.format(first, stop))  # its members are in other parts now
    datasets = [parts.pop(name) for name in sorted(parts)]
    if sum(part.sizes[DIMENSION] for part in datasets) != number:
        raise RuntimeError(f"parts of it were lost in {folder}, or damaged; the same command computes them again")
    ending = "seconds" if any(map(_cut, datasets)) else None
    return summed_up(_joined(job, datasets), job.ensemble, size, ending)


def at_once(job: Job, workers: int) -> int:
    """How many members one process has in memory: as many as take little of it, and as many as in each other one."""
    if job.machine.at_once is not None:
        return job.machine.at_once
    nodes = 1 if job.depth is None else (job.depth.panels or 1) * (job.depth.order or 1)
    entries = 1
    if (problem := job.member(0).problem) is not None:
        entries = PROBLEMS[problem.name](**problem.parameters).z0.numel()
    most = max(1, min(_MOST_AT_ONCE, _MOST_BYTES // (64 * job.time.samples * nodes * entries)))
    share = max(1, -(-len(job.ensemble or ()) // workers))
    return -(-share // -(-share // most))


def _digest(job: Job) -> str:
    """What tells the parts of a run from those of another: a shorter one, of a changed table, or any plugin."""
    what = [_FORMAT, computing(flat(job.plain)), job.inputs(), sources(())]
    said = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()


def _of_members(digest: str, name: tuple[int, int]) -> str:
    """What tells a part from the others of its run, also where it lies under the name of one of them."""
    return f"{digest} {name[0]} {name[1]}"


def _budgets(job: Job) -> str:
    """What a member may spend, which is no part of what makes a run another run."""
    return json.dumps([job.time.max_evaluations, job.time.max_seconds])


def _may_go_on(job: Job, part: xr.Dataset) -> bool:
    """Whether some of its members did not run whole, and there is another budget now."""
    return bool((part[STATUS] != "ok").any()) and part.attrs.get("budgets") != _budgets(job)


def _cut(part: xr.Dataset) -> bool:
    """Whether some of its members did not run whole, and the budget of wall time was used up by then."""
    return bool(part.attrs.get(_BEYOND)) and bool((part[STATUS] != "ok").any())


def _missing(number: int, size: int, done: set[tuple[int, int]]) -> Iterator[range]:
    """The members that are in no part, in new parts."""
    known = {i for first, stop in done for i in range(first, stop)}
    part: list[int] = []
    for i in range(number + 1):
        if part and (i == number or i in known or len(part) == size):
            yield range(part[0], part[-1] + 1)
            part = []
        if i < number and i not in known:
            part.append(i)


def _twice(names: set[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts that share members with one before, such as those of a run that took another number of them at once."""
    stop = 0
    for name in sorted(names):
        if name[0] < stop:
            yield name
        else:
            stop = name[1]


def _ends(members: range) -> tuple[int, int]:
    """The first member of a part, and the first after it."""
    return members.start, members.stop


def _names(folder: Path) -> Iterator[tuple[int, int]]:
    """The parts that lie in a folder, by first member and stop. What has no name of a part is removed.

    So is what a process that was killed had begun to write: on a disk that is full it would take the room of the next.
    """
    for path in folder.glob(".members-*.writing-*"):
        _remove(path)
    for path in sorted(folder.glob("members-*.nc")):
        if (name := _NAMED.fullmatch(path.name)) is None:
            _remove(path)
        else:
            yield int(name[1]), int(name[2])


def _saved(folder: Path, name: tuple[int, int], job: Job, wanted: str) -> xr.Dataset | None:
    """A part of this run; what is no whole part of it, or may go on, is removed."""
    path = folder / _PART.format(*name)
    try:
        dataset = results.open(path)
    except (OSError, ValueError):
        dataset = xr.Dataset()
    if dataset.attrs.get("of") == _of_members(wanted, name) and not _may_go_on(job, dataset):
        return dataset
    _remove(path)
    return None


def _remove(path: Path) -> None:
    """Removes what is no part, but for a folder, which no run has made.

    Raises
    ------
    RuntimeError
        If it is a folder.
    """
    if path.is_dir() and not path.is_symlink():
        raise RuntimeError(f"{path} is a folder, where a part of the members is to lie; move it away")
    path.unlink(missing_ok=True)


# --- the members of a part ------------------------------------------------------------------------------------------


def _computed(job: Job, one: One, members: range, times: Tensor, started: float) -> xr.Dataset:
    """The datasets of some members along `seed`; one that could not be computed has NaN, and why."""
    # A problem that does not differ is one for all: then what trains on it is gathered, whatever its loss.
    shared: dict[str, Any] | None = None if "problem" in (job.ensemble.seeds if job.ensemble else ()) else {}
    found = gathered([_work(job.member(i), one, shared, started) for i in members])
    rows = [_stated(job, dataset) for dataset in found]
    ran = {place: dataset for place, dataset in enumerate(found) if isinstance(dataset, xr.Dataset)}
    datasets = [
        _at_output_times(_renamed(storable(dataset)), times, _ended_early(dataset, rows[place]))
        for place, dataset in ran.items()
    ]
    whole = [rows[place]["status"] == "ok" for place in ran]
    first = datasets[_first(whole)] if datasets else xr.Dataset()
    left_out = _left_out(first, len(job.ensemble or ()))
    dropped = [*left_out, *_unused(first, left_out)]
    first, own = first.drop_vars(dropped), [_variables_and_attributes(dataset, dropped) for dataset in datasets]
    places, told = [*ran], [dataset.attrs for dataset in datasets]
    del found, ran, datasets  # what is joined is let go
    alike = _alike(job, [members[place] for place in places], own, whole, first.coords)
    common = _common([rows[place]["parts"] for place in places], whole) if places else {}
    places, own = [places[i] for i in alike], [own[i] for i in alike]
    names = [*dict.fromkeys(name for row in rows for name in row["numbers"])]
    numbers = np.array([[row["numbers"].get(name, np.nan) for name in names] for row in rows]).reshape(len(rows), -1)
    stated = {
        STATUS: (DIMENSION, np.array([row["status"] for row in rows], dtype=object)),
        PASSED: (DIMENSION, np.array([row["passed"] for row in rows])),
        RAN: (DIMENSION, np.isin(range(len(rows)), places)),
        PROBLEM: (DIMENSION, np.array([row["problem"] for row in rows], dtype=object)),
        NUMBERS: ((DIMENSION, NUMBER), numbers),
    }
    dataset = xr.Dataset(stated, {NUMBER: np.array(names, dtype=str)})
    if not places:
        return dataset
    joined = {}
    for name in dict.fromkeys(name for variables in own for name in variables if name not in first.coords):
        having = [
            (place, variables.pop(name)) for place, variables in zip(places, own, strict=True) if name in variables
        ]
        values = _rows(of_one_kind([own.values for _, own in having]), [place for place, _ in having], len(rows))
        joined[name] = (DIMENSION, *having[0][1].dims), values, having[0][1].attrs
    shared_by_all = _shared(first.attrs, [told[i] for i in alike])
    attributes = {name: value for name, value in shared_by_all.items() if f"{_ATTRIBUTE}{name}" not in joined}
    attributes["left_out"] = ", ".join(left_out)
    return Finding.of_parts(listed(common)).attached(
        dataset.assign(joined).assign_coords(first.coords).assign_attrs(attributes)
    )


def _work(job: Job, one: One, shared: dict[str, Any] | None, started: float) -> Callable[[Any], xr.Dataset]:
    """The study of a member, given its company, in one process."""
    settings = job.study.parameters
    if isinstance(settings.get("workers", ""), (int, type(None))):
        job = replace(job, study=replace(job.study, parameters=settings | {"workers": 1}))
    return lambda company: one(job, lambda part: _changed(part, company, shared, started))


def _changed(part: Any, company: Any, shared: dict[str, Any] | None, started: float) -> Any:
    """A clock whose integrations are gathered; the budget of wall time is that of all members."""
    if isinstance(part, Problem) and shared is not None:
        return shared.setdefault("problem", part)
    if isinstance(part, Clock):
        return replace(part, carried_out=company, started=started)
    return replace(part, started=started) if isinstance(part, Schedule) else part


def _stated(job: Job, dataset: xr.Dataset | Exception) -> dict[str, Any]:
    """What a member has found: how it ended, and its numbers by their places in its finding."""
    if isinstance(dataset, Exception):
        kind = "" if isinstance(dataset, Stop) else f"{type(dataset).__name__}: "
        reason = f"it could not be computed: {kind}{first_line(dataset)}"
        return {"status": reason, "passed": False, "problem": "", "parts": {}, "numbers": {}}
    parts = Finding.parts_in(dataset)
    if parts is None:
        parts = Finding.from_record(STUDIES[job.study.name].summarise(dataset)).parts()
    finding, named = Finding.of_parts(parts), by_name(parts)
    passed = finding.passed and any(check.bound is not None for check in finding.checks)
    stated = {"status": finding.status, "passed": passed, "problem": finding.problem}
    return {**stated, "parts": named, "numbers": leaves(named)}


def _ended_early(dataset: xr.Dataset, row: Mapping[str, Any]) -> bool:
    """Whether a member says that it has not come to the last time, be it at an event that was asked for."""
    endings = (dataset.attrs.get("ending"), row["parts"]["numbers"].get("ending"))
    return row["status"] != "ok" or any(isinstance(ending, str) and ending != "ok" for ending in endings)


def _at_output_times(dataset: xr.Dataset, times: Tensor, early: bool) -> xr.Dataset:
    """A dataset of a run that has ended early with rows for all output times, of those that it has not come to NaN.

    What it has ended with between two of them belongs to neither. One with other times stays what it is, and so does
    one with the first of them that has not ended `early`: its study records no others.
    """
    axis = dataset.variables.get("time")
    if axis is None or axis.dims != ("time",) or axis.dtype.kind not in "iuf":
        return dataset
    own = torch.tensor(axis.values, dtype=times.dtype)
    reached = common_times(own, times)
    rest = own[reached:]
    if not 0 < reached < len(times) or len(rest) > 1 or bool((rest >= times[reached]).any()):
        return dataset
    if not early and not len(rest):
        return dataset
    variables = {name: _longer(variable, reached, len(times)) for name, variable in dataset.variables.items()}
    variables["time"] = xr.Variable("time", torch.cat((own[:reached], times[reached:])).numpy(), axis.attrs)
    return xr.Dataset(variables, attrs=dataset.attrs).set_coords([*dataset.coords])


def _longer(variable: xr.Variable, reached: int, number: int) -> xr.Variable:
    """A variable with as many rows along time, the first of them its own."""
    if "time" not in variable.dims:
        return variable
    place = variable.dims.index("time")
    rows = _rows([*np.moveaxis(variable.values, place, 0)[:reached]], [*range(reached)], number)
    return xr.Variable(variable.dims, np.moveaxis(rows, 0, place), variable.attrs)


def _renamed(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset of a member, in which no dimension, variable or attribute has a name of what is said of all."""
    of_all = {DIMENSION, STATUS, PASSED, RAN, PROBLEM, NUMBER, NUMBERS}
    present = dict.fromkeys([*dataset.dims, *dataset.variables])
    names = {name: renamed(name, present) for name in present if name in of_all or str(name).startswith(_ATTRIBUTE)}
    dataset = dataset.rename(names) if names else dataset
    if not dataset.attrs.keys().isdisjoint(_OF_ALL):
        told = dataset.attrs
        dataset = dataset.copy(deep=False)
        dataset.attrs = {renamed(name, told) if name in _OF_ALL else name: value for name, value in told.items()}
    return dataset


def _left_out(dataset: xr.Dataset, number: int) -> list[str]:
    """The largest variables, where those of all members would be too many numbers to be held."""
    # Texts differ in length: were they measured, parts could leave out other variables than others do.
    sizes = {
        str(name): number * variable.size * (variable.dtype.itemsize if variable.dtype.kind not in "UO" else 8)
        for name, variable in dataset.data_vars.items()
    }
    left_out: list[str] = []
    while sum(sizes.values()) > _MOST_JOINED:
        left_out.append(max(sizes, key=lambda name: sizes[name]))
        del sizes[left_out[-1]]
    return left_out


def _unused(dataset: xr.Dataset, left_out: Sequence[str]) -> list[Any]:
    """The axes that nothing has any longer."""
    used = {dim for name, variable in dataset.data_vars.items() if name not in left_out for dim in variable.dims}
    return [name for name, variable in dataset.coords.items() if variable.ndim and name not in used]


# What a member has found, by its names: a dataset for each takes longer to make than all that is done with it.
Variables = dict[Any, xr.Variable]


# Attributes that state what one member has found; that of all is stated by others.
_STATED = {*Finding(study="", problem="", status="", verdict="").attached(xr.Dataset()).attrs}


def _variables_and_attributes(dataset: xr.Dataset, dropped: Sequence[Any]) -> Variables:
    """The variables of a member but for those, and its attributes as more of them: members may differ."""
    kept = {name: variable for name, variable in dataset.variables.items() if name not in dropped}
    numbers: dict[Any, Any] = {
        name: value for name, value in dataset.attrs.items() if isinstance(value, (int, float, np.number))
    }
    # Texts as objects: a long one does not make those of all others as wide.
    texts = {
        name: np.array(value, dtype=object)
        for name, value in dataset.attrs.items()
        if isinstance(value, str) and name not in _STATED
    }
    return kept | {f"{_ATTRIBUTE}{name}": xr.Variable((), value) for name, value in (numbers | texts).items()}


def _shared(first: Mapping[Any, Any], others: Sequence[Mapping[Any, Any]]) -> dict[Any, Any]:
    """The attributes of the first, of lists those that all have alike: these are no variables where members differ."""
    return {
        name: value
        for name, value in first.items()
        if isinstance(value, (int, float, np.number, str))
        or all(name in other and _equal(np.asarray(value), np.asarray(other[name])) for other in others)
    }


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == other.dtype.kind == "f"))


def _common(found: Sequence[Mapping[str, Any]], whole: Sequence[bool]) -> dict[str, Any]:
    """What findings have in common: of those that ran whole, if any did; where a study says what it likes, of all."""
    best = [parts for parts, one in zip(found, whole, strict=True) if one or not any(whole)]
    of_all = agreed(found)
    return agreed(best) | {name: of_all[name] for name in ("numbers", "notes")}


def _first(whole: Sequence[bool]) -> int:
    """The place of the first that ran whole, of the first of all where none did."""
    return [*whole, True].index(True) % max(1, len(whole))


def _alike(
    job: Job, members: Sequence[int], datasets: Sequence[Variables], whole: Sequence[bool], axes: Any
) -> list[int]:
    """The places of those with the same variables, shapes and axes as the first that ran whole.

    Raises
    ------
    ValueError
        If one that ran whole has others.
    """
    alike, first = [], _first(whole)
    for place, (i, dataset) in enumerate(zip(members, datasets, strict=True)):
        others = _others(datasets[first], dataset, axes)
        if others and whole[place] and job.ensemble is not None:
            raise ValueError(
                f"members of one run must have one shape, but {', '.join(others)} at "
                f"{job.ensemble.name(members[first])} and {job.ensemble.name(i)}; run them as a sweep, "
                f"{job.ensemble.swept}"
            )
        if not others:
            alike.append(place)
    return alike


def _others(first: Variables, dataset: Variables, axes: Any) -> list[str]:
    """In what a dataset has another shape than the first; what were attributes may be missing."""
    found = []
    for name in dict.fromkeys([*first, *dataset]):
        one, other = first.get(name), dataset.get(name)
        if str(name).startswith(_ATTRIBUTE):
            continue
        if one is None or other is None:
            found.append(f"{name} is not in both")
        elif (one.dims, one.shape) != (other.dims, other.shape):
            found.append(f"{name} has shape {one.shape} and {other.shape}")
        elif name in axes and not _same(one.values, other.values):
            found.append(f"{name} has other values")
    return found


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether axes are the same, numbers to the digits in which times are."""
    if one.dtype.kind != "f" or other.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    return bool(np.allclose(one, other, rtol=SAME_TIME, atol=0, equal_nan=True))


def _rows(values: Sequence[np.ndarray], places: Sequence[int], number: int) -> np.ndarray:
    """Arrays of members one after the other; NaN (of dates NaT), False or nothing where a member has none.

    Integers that are no floats are texts beside NaN.
    """
    stacked = np.stack(values)
    if len(places) == number:
        return stacked
    if stacked.dtype.kind in "iu":
        stacked = of_one_kind([stacked, np.array(np.nan)])[0]
    kind = stacked.dtype if stacked.dtype.kind not in "iu" else np.dtype(float)
    nothing: Any = np.nan if kind.kind in "fc" else "" if kind.kind in "UO" else "NaT" if kind.kind in "mM" else 0
    filled = np.full((number, *stacked.shape[1:]), nothing, kind)
    filled[places] = stacked[: len(places)]
    return filled


# --- all of them ----------------------------------------------------------------------------------------------------


def _joined(job: Job, parts: list[xr.Dataset]) -> xr.Dataset:
    """All parts along `seed`, with the seeds as coordinates; a variable is dropped from the parts when it is joined."""
    assert job.ensemble is not None
    known = [k for k, part in enumerate(parts) if part[RAN].any()]
    if not known:
        raise RuntimeError(f"no member could be computed; {job.ensemble.name(0)}: {parts[0][STATUS].values[0]}")
    whole = [bool((parts[k][RAN] & (parts[k][STATUS] == "ok")).any()) for k in known]
    first = parts[known[_first(whole)]]
    starts = np.cumsum([0, *(part.sizes[DIMENSION] for part in parts)])
    shapes = [{**parts[k].isel({DIMENSION: 0}).drop_dims(NUMBER).variables} for k in known]
    alike = [known[i] for i in _alike(job, [int(starts[k]) for k in known], shapes, whole, first.coords)]
    for k in {*known} - {*alike}:  # none of them ran whole
        parts[k] = parts[k][[STATUS, PASSED, RAN, PROBLEM, NUMBERS]].assign({RAN: parts[k][RAN] & False})
    finding = Finding.of_parts(listed(_common([by_name(Finding.parts_in(parts[k]) or {}) for k in known], whole)))
    names = [*dict.fromkeys(name for k in known for name in parts[k][NUMBER].values.tolist())]
    joined: dict[str, Any] = {NUMBERS: ((DIMENSION, NUMBER), _numbers(parts, names))}
    axes = dict(first.coords)
    attributes = _shared(first.attrs, [parts[k].attrs for k in alike])
    attributes = {name: value for name, value in attributes.items() if name not in ("of", "budgets", _BEYOND)}
    kinds = {
        str(name): (own.dims, own.attrs, np.array(own.values[0], own.dtype))
        for part in [first, *(parts[k] for k in alike)]
        for name, own in part.data_vars.items()
    }
    del kinds[NUMBERS], first, shapes
    for name, (dims, told, one) in kinds.items():
        values = of_one_kind([_of(part, name, one) for part in parts])
        joined[name] = dims, np.concatenate(values) if len(values) > 1 else values[0], told
        parts[:] = [part.drop_vars(name, errors="ignore") for part in parts]
    seeds = job.ensemble.settings
    own = [*seeds.values()]
    along = own[0] if all([*other] == [*own[0]] for other in own) else range(len(job.ensemble))
    coordinates = {DIMENSION: (DIMENSION, [*along], {"long_name": "seed of the member"}), NUMBER: names}
    if along is not own[0]:
        coordinates |= {name: (DIMENSION, [*values], {}) for name, values in seeds.items()}
    return _as_attributes(finding.attached(xr.Dataset(joined, {**axes, **coordinates}, attributes)))


def _as_attributes(dataset: xr.Dataset) -> xr.Dataset:
    """What were attributes of members: attributes again where all that ran have the same, else variables."""
    ran = dataset[RAN].values
    for name in [str(name) for name in dataset.data_vars if str(name).startswith(_ATTRIBUTE)]:
        told, values = name.removeprefix(_ATTRIBUTE), np.unique(dataset[name].values[ran])
        if len(values) == 1:
            dataset = dataset.drop_vars(name).assign_attrs({told: values[:1].tolist()[0]})
        elif told == DIMENSION and np.array_equal(dataset[told].values[ran], dataset[name].values[ran]):
            dataset = dataset.drop_vars(name)
        else:
            taken = {*dataset.variables, *dataset.dims}
            dataset = dataset.rename({name: renamed(told, taken) if told in taken else told})
    return dataset


def _of(part: xr.Dataset, name: str, one: np.ndarray) -> np.ndarray:
    """The values of a variable in a part, which has none like `one` where no member of it could be computed."""
    return part[name].values if name in part else _rows([one], [], part.sizes[DIMENSION])


def _numbers(parts: Sequence[xr.Dataset], names: Sequence[str]) -> np.ndarray:
    """The numbers of all findings, `(seed, number)`."""
    rows = []
    for part in parts:
        own = {name: i for i, name in enumerate(part[NUMBER].values.tolist())}
        values = part[NUMBERS].values
        nothing = np.full(len(values), np.nan)
        rows.append(np.stack([values[:, own[name]] if name in own else nothing for name in names], axis=1))
    return np.concatenate(rows)
