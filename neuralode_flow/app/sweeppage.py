"""The page about a sweep: what failed first, then the numbers and curves of all members, and how it goes on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ..display import counted
from ..figures.overlay import overlay, points
from ..figures.swept import MOST_CURVES as MOST_QUANTITIES
from ..figures.swept import MOST_PANELS, Quantity, against, by_axis, differing, is_number
from ..files import CONFIG, check_regular
from ..untrusted import LONGEST_CONFIG, printable, read_text, read_yaml
from . import report, swept
from .collected import Collected
from .report import REPORT
from .runfolder import MULTIRUN

MOST_CURVES = 24  # members whose curves are laid over one another
MOST_POINTS = 200_000  # of all these curves
MOST_SHOWN = 8  # settings that are shown beside a member; the others are in the records
MOST_ROWS = 200  # of a table of what was found


def sweep_page(folder: Path, sweep: Collected) -> bytes:
    """One page about a sweep: what failed first, then the numbers of all members and their curves in common axes."""
    verdict = f"{sweep.told()}."
    if sweep.failed:
        verdict += " See why below, and run what is missing by the command at the end."
    if sweep.damaged:
        verdict += " It runs damaged members again once their folders are removed."
    studies = sorted({str(record["study"]) for record in sweep.records if record.get("study")})
    found = swept.findings({record["member"]: sweep.datasets[record["member"]] for record in _good(sweep)})
    groups = swept.groups(found)
    shown, undrawn = _figures(sweep, groups)
    own = {record["member"]: cells(record, sweep.settings) for record in sweep.records}
    broken = [[member, *own[member], *texts] for member, texts in swept.failing(found)]
    if broken:
        checks, members = counted(len(broken), "check"), counted(len({row[0] for row in broken}), "member")
        verdict += f" {checks} of {members} {'does' if len(broken) == 1 else 'do'} not hold: see below."
    damaged, command = _again(folder)
    return report.page(
        "sweep.html",
        title=f"Sweep: {printable(', '.join(studies), 200) or 'no member has finished'}",
        verdict=verdict,
        good=not sweep.failed,
        question=" ".join(map(report.question, studies)),
        settings=[*short_names(sweep.settings[:MOST_SHOWN]).values()],
        failed=[_outcome(folder, record, sweep.settings) for record in sweep.failed],
        broken=broken[:MOST_ROWS],
        groups=[(group.title, group.head(), _rows(own, group), group.left_out) for group in groups],
        left_out=[[line] for line in sweep.left_out()],
        doubled=[[printable(line)] for line in sweep.doubled()],
        shown=shown,
        undrawn=undrawn,
        all=[_outcome(folder, record, sweep.settings) for record in sweep.records],
        damaged=damaged,
        command=command,
        config=_config(folder, sweep),
    )


def _good(sweep: Collected) -> list[dict[str, Any]]:
    """The records of the members that ended well and have results."""
    return [record for record in sweep.records if record["status"] == "ok" and record["member"] in sweep.datasets]


def _rows(own: Mapping[str, list[str]], group: swept.Group) -> list[list[str]]:
    """Each member with its own settings, and what it has found."""
    rows = [[member, *own[member], *group.row(member)] for member in [*group.values][:MOST_ROWS]]
    more = len(group.values) - len(rows)
    return [*rows, [f"{more} more members in results.nc"]] if more else rows


def _figures(sweep: Collected, groups: Sequence[swept.Group]) -> tuple[list[report.Shown], str]:
    """The charts, or why there are none."""
    try:
        charts = [(report.Drawn(figure).described(), caption) for figure, caption in _charts(sweep, groups)]
        return report.all_shown(charts), ""
    except Exception as error:  # whatever forged data make NumPy and Matplotlib raise
        return [], printable(f"{type(error).__name__}: {error}", 300)


def _charts(sweep: Collected, groups: Sequence[swept.Group]) -> Iterator[tuple[Figure, str]]:
    """Figures with their captions: what was found against the settings, then the curves of all."""
    good = [record for record in sweep.records if record["status"] == "ok"]
    by_name = {record["member"]: record for record in good}
    for group in groups:
        runs = [_own(by_name[member], sweep.settings) for member in group.values]
        for logarithmic, some in by_axis(group.quantities(), group.logarithmic):
            figure = against(group.title, group.label, runs, some, logarithmic)
            if figure is not None:
                bars = "" if group.logarithmic else " Bars: spreads; dotted: what is expected."
                deepest = " Each error is that at the largest depth where it is known." if group.by_depth else ""
                more = f" Not drawn: {group.left_out}" if group.left_out else ""
                yield figure, f"{_caption(runs)}{bars}{deepest}{more}"
    if not groups:
        runs = [_own(record, sweep.settings) for record in good]
        for logarithmic, some in by_axis([*_numbers(good, sweep.settings)], True):
            figure = against("Numbers of the summaries", "number", runs, some, logarithmic)
            if figure is not None:
                beyond = len(some) - MOST_QUANTITIES
                yield figure, _caption(runs) + (f" {beyond} more numbers are not drawn." if beyond > 0 else "")
    alike = [record for record in good if record["member"] in {*sweep.datasets} - {*sweep.apart}]
    shown: dict[str, xr.Dataset] = {}
    room = MOST_POINTS
    for record in alike[:MOST_CURVES]:
        dataset = sweep.datasets[record["member"]]
        room -= points(dataset)
        if room >= 0:
            label = _label(record, sweep.settings)
            shown[label if label not in shown else f"{record['member']}: {label}"] = dataset
    left_out = "" if len(shown) == len(good) else f" ({len(shown)} of {len(good)} members)"
    with suppress(ValueError):  # they have no curve in common
        for figure in overlay(shown).values():
            yield figure, f"Each member in its own colour{left_out}."


def _caption(runs: Sequence[Mapping[str, Any]]) -> str:
    """What a figure against the settings of some members shows."""
    number, most = len(differing(runs)), MOST_PANELS
    settings = "each of the settings" if number <= most else f"each of the first {most} of {number} settings"
    return f"Each point is a member, against {settings}; lines join members that differ in this setting alone."


def _own(record: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """All settings of a member, whole, by their short names; what is no number, as a text."""
    named = {name: record[key] for key, name in short_names(settings).items() if key in record}
    return {name: value if is_number(value) else printable(value, LONGEST_CONFIG) for name, value in named.items()}


def _numbers(records: Sequence[Mapping[str, Any]], settings: Sequence[str]) -> Iterator[Quantity]:
    """The numbers of the summaries that are not the same in all members."""
    names = dict.fromkeys(key for record in records for key in record if key not in {"member", *settings})
    for name in names:
        values = np.array([record[name] if is_number(record.get(name)) else np.nan for record in records], dtype=float)
        if len(np.unique(values[np.isfinite(values)])) > 1:
            yield Quantity(printable(name.replace("_", " "), 100), values)


def _label(record: Mapping[str, Any], settings: Sequence[str]) -> str:
    """The settings of a member, with its name before them where that is more than a number."""
    values = ", ".join(f"{name} = {value}" for name, value in told(record, settings).items())
    member = "" if values and str(record["member"]).isdecimal() else str(record["member"])
    return printable(": ".join(filter(None, (member, values))), 100)


def told(record: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """The settings of a member that are shown, by their short names."""
    return {name: record[key] for key, name in short_names(settings[:MOST_SHOWN]).items() if key in record}


class _Outcome(NamedTuple):
    """A row for a member: its name, its own page, its settings and seconds, and what came of it."""

    name: str
    page: str
    values: list[str]
    outcome: str


def _outcome(folder: Path, record: Mapping[str, Any], settings: Sequence[str]) -> _Outcome:
    name, seconds = str(record["member"]), record.get("seconds")
    page = quote(f"{name}/{REPORT}") if _is_own(folder / name, REPORT) else ""
    took = "" if seconds is None else printable(f"{seconds:.1f}", 30)
    return _Outcome(name, page, [*cells(record, settings), took], outcome(record))


def _is_own(member: Path, name: str) -> bool:
    """Whether a file is there, and in the sweep: neither it nor its folder is a link."""
    try:
        check_regular(name, member / name, follow=False)
    except (OSError, ValueError):
        return False
    return not member.is_symlink()


def short_names(settings: Sequence[str]) -> dict[str, str]:
    """The last part of each name, where that tells it from the others; of what is chosen by name, its group."""
    ends = [name.removesuffix(".name").rpartition(".")[2] for name in settings]
    return {name: printable(end if ends.count(end) == 1 else name, 100) for name, end in zip(settings, ends)}


def cells(record: Mapping[str, Any], settings: Sequence[str]) -> list[str]:
    """The values of the settings that are shown."""
    return [printable(record.get(key, ""), 200) for key in settings[:MOST_SHOWN]]


def outcome(record: Mapping[str, Any], most: int = 4000) -> str:
    """The verdict of a member, or why it has none; a longer one is cut."""
    status = record["status"]
    return printable(record.get("verdict") or status if status == "ok" else status, most, lines=True)


def _config(folder: Path, sweep: Collected) -> dict[str, str] | None:
    """The config of one member, and what the others have of their own."""
    for record in sweep.records:
        path = folder / record["member"]
        with suppress(OSError, ValueError):
            if _is_own(path, CONFIG):
                differing = printable(", ".join(sweep.settings)) or "nothing"
                text = read_text(path / CONFIG, LONGEST_CONFIG)
                return {"member": record["member"], "differing": differing, "text": text}
    return None


def _again(folder: Path) -> tuple[str, str]:
    """What is damaged, and the command line that has made the sweep, so that it runs what is missing."""
    damaged, words = "", ["..."]
    try:
        lines = read_yaml(folder / MULTIRUN)["hydra"]["overrides"]["task"]
        # A word that begins with a dash would be an option, and not a setting.
        if not isinstance(lines, list) or not all(isinstance(line, str) and line[:1] != "-" for line in lines):
            raise TypeError("its overrides are no settings")
        words = [line.removeprefix("++") for line in lines]
    except (OSError, ValueError, TypeError, KeyError):
        damaged = MULTIRUN
    words = [word for word in words if not word.startswith("resume=")]
    command = shlex.join(["neuralode-flow", "-m", *words, f"resume={folder}"])
    return damaged, printable(command, 100_000, lines=True)
