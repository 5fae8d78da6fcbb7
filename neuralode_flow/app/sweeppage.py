"""The page about a sweep: what failed first, then the numbers and curves of all members, and how it goes on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import xarray as xr
from matplotlib.figure import Figure

from ..figures.overlay import by_setting, overlay, points
from ..files import CONFIG, check_regular
from ..untrusted import printable, read_text, read_yaml
from . import report
from .collected import Collected
from .report import REPORT
from .runfolder import MULTIRUN

MOST_CURVES = 24  # members whose curves are laid over one another
MOST_POINTS = 200_000  # of all these curves
MOST_SHOWN = 8  # settings that are shown beside a member; the others are in the records
_CAPTION = "Numbers of the summaries of all finished members against a setting of the sweep."


def sweep_page(folder: Path, sweep: Collected) -> bytes:
    """One page about a sweep: what failed first, then the numbers of all members and their curves in common axes."""
    verdict = f"{sweep.told()}."
    if sweep.failed:
        verdict += " See why below, and run what is missing by the command at the end."
    if sweep.damaged:
        verdict += " It runs damaged members again once their folders are removed."
    studies = sorted({str(record["study"]) for record in sweep.records if record.get("study")})
    sections = {
        "Members that have not finished": _outcomes(folder, sweep.failed, sweep.settings),
        "Left out of the joined dataset": report.table([[line] for line in sweep.left_out()]),
        "Counted twice": report.table([[printable(line)] for line in sweep.doubled()]),
        "Figures": _figures(sweep),
        "Members": _outcomes(folder, sweep.records, sweep.settings),
        "Run what is missing": _again(folder),
        "Config": _config(folder, sweep),
    }
    title = f"Sweep: {printable(', '.join(studies), 200) or 'no member has finished'}"
    return report.page(title, verdict, not sweep.failed, " ".join(map(report.question, studies)), sections)


def _figures(sweep: Collected) -> str:
    """The charts, or why there are none."""
    try:
        return "".join(report.figure(report.Drawn(figure), caption) for figure, caption in _charts(sweep))
    except Exception as error:  # whatever forged data make NumPy and Matplotlib raise
        return f"<p>The figures cannot be drawn: {escape(printable(f'{type(error).__name__}: {error}', 300))}</p>"


def _charts(sweep: Collected) -> Iterator[tuple[Figure, str]]:
    """Figures with their captions."""
    good = [record for record in sweep.records if record["status"] == "ok"]
    for figure in by_setting(good, sweep.settings[:MOST_SHOWN]).values():
        yield figure, _CAPTION
    alike = [record for record in good if record["member"] in {*sweep.datasets} - {*sweep.apart}]
    shown: dict[str, xr.Dataset] = {}
    room = MOST_POINTS
    for record in alike[:MOST_CURVES]:
        dataset = sweep.datasets[record["member"]]
        room -= points(dataset)
        if room >= 0:
            shown[_label(record, sweep.settings)] = dataset
    left_out = "" if len(shown) == len(good) else f" ({len(shown)} of {len(good)} members)"
    with suppress(ValueError):  # they have no curve in common
        for figure in overlay(shown).values():
            yield figure, f"Each member in its own colour{left_out}."


def _label(record: Mapping[str, Any], settings: Sequence[str]) -> str:
    """The settings of a member, as short as they tell it from the others."""
    own = [(name, record[key]) for key, name in _short_names(settings[:MOST_SHOWN]).items() if key in record]
    values = ", ".join(f"{name} = {value}" for name, value in own)
    return printable(f"{record['member']}: {values}" if values else record["member"], 100)


def _outcomes(folder: Path, records: Sequence[Mapping[str, Any]], settings: Sequence[str]) -> str:
    """A row for each member, with a link to its own page."""
    rows = []
    for record in records:
        name = str(record["member"])
        link = f'<a href="{escape(quote(f"{name}/{REPORT}"))}">{escape(name)}</a>'
        seconds = record.get("seconds")
        rows.append(
            [
                report.Html(link) if _is_own(folder / name, REPORT) else name,
                *cells(record, settings),
                "" if seconds is None else printable(f"{seconds:.1f}", 30),
                outcome(record),
            ]
        )
    head = ["member", *_short_names(settings[:MOST_SHOWN]).values(), "seconds", "outcome"]
    return report.table(rows, head, numeric=range(1, len(head) - 1)) if rows else ""


def _is_own(member: Path, name: str) -> bool:
    """Whether a file is there, and in the sweep: neither it nor its folder is a link."""
    try:
        check_regular(name, member / name, follow=False)
    except (OSError, ValueError):
        return False
    return not member.is_symlink()


def _short_names(settings: Sequence[str]) -> dict[str, str]:
    """The last part of each name, where that tells it from the others."""
    ends = [name.rpartition(".")[2] for name in settings]
    return {name: printable(end if ends.count(end) == 1 else name, 100) for name, end in zip(settings, ends)}


def cells(record: Mapping[str, Any], settings: Sequence[str]) -> list[str]:
    """The values of the settings that are shown."""
    return [printable(record.get(key, ""), 200) for key in settings[:MOST_SHOWN]]


def outcome(record: Mapping[str, Any], most: int = 4000) -> str:
    """The verdict of a member, or why it has none; a longer one is cut."""
    status = record["status"]
    return printable(record.get("verdict") or status if status == "ok" else status, most, lines=True)


def _config(folder: Path, sweep: Collected) -> str:
    """The config of one member, and what the others have of their own."""
    for record in sweep.records:
        path = folder / record["member"]
        with suppress(OSError, ValueError):
            if not _is_own(path, CONFIG):
                continue
            text = read_text(path / CONFIG)
            differing = printable(", ".join(sweep.settings)) or "nothing"
            note = f"<p>That of member {escape(record['member'])}; the others differ in {escape(differing)}.</p>"
            return f"{note}<pre>{escape(text)}</pre>"
    return ""


def _again(folder: Path) -> str:
    """The command line that has made the sweep, so that it runs what is missing."""
    note, words = "", ["..."]
    try:
        lines = read_yaml(folder / MULTIRUN)["hydra"]["overrides"]["task"]
        # A word that begins with a dash would be an option, and not a setting.
        if not isinstance(lines, list) or not all(isinstance(line, str) and line[:1] != "-" for line in lines):
            raise TypeError("its overrides are no settings")
        words = [line.removeprefix("++") for line in lines]
    except (OSError, ValueError, TypeError, KeyError):
        note = f"<p>{MULTIRUN} is missing or damaged: put the settings of the sweep in place of the dots.</p>"
    words = [word for word in words if not word.startswith("resume=")]
    command = shlex.join(["neuralode-flow", "-m", *words, f"resume={folder}"])
    return f"{note}<pre>{escape(printable(command, 100_000, lines=True))}</pre>"
