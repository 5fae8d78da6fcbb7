"""The command `neuralode-flow-collect SWEEP`: the members of a sweep as one dataset, one table and one page."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import suppress
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import xarray as xr
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import results
from ..figures.overlay import by_setting, overlay, points
from ..files import CONFIG, atomic_write
from ..untrusted import check_kind, parse_yaml, printable, read_json, read_text, read_yaml
from . import report
from .errors import BadInput, complain
from .joined import joined
from .report import REPORT
from .runfolder import CHECKPOINTS, FAILED, FREE, MULTIRUN, SUMMARY, flat

RECORDS = "collected.json"
DAMAGED, UNFINISHED = "damaged: ", "unfinished: "  # how the status of such a member begins

MOST_CURVES = 24  # members whose curves are laid over one another
MOST_POINTS = 200_000  # of all these curves
MOST_SHOWN = 12  # settings that are shown beside a member; the others are in the records
MOST_ENTRIES = 1000  # in a config or a summary; ours have 40
MOST_VISITED = 100_000  # files and folders that are looked at in search of members
DEEPEST = 64  # folders inside one another


class Collected(NamedTuple):
    """A sweep.

    Attributes
    ----------
    records : list of dict
        Of each member: its name, the settings in which members differ, its status, and the numbers of its summary. The
        status is "ok", the reason of a failure, or begins with `DAMAGED` or `UNFINISHED`.
    settings : list of str
        The names of those settings.
    datasets : dict of str to xarray.Dataset
        The results, by member, of those that have any.
    joined : xarray.Dataset or None
        The same along a new axis `member`; members of different studies have no common dataset.
    apart : mapping of str to str
        Why a member that has results is not among the joined ones, by member.
    """

    records: list[dict[str, Any]]
    settings: list[str]
    datasets: dict[str, xr.Dataset]
    joined: xr.Dataset | None
    apart: Mapping[str, str] = {}

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The records of the members that did not end well."""
        return [record for record in self.records if record["status"] != "ok"]

    @property
    def damaged(self) -> list[dict[str, Any]]:
        """The records of the members whose files cannot be read."""
        return [record for record in self.records if record["status"].startswith(DAMAGED)]

    def told(self) -> str:
        """How many members have finished, and what became of the others."""
        unfinished = sum(record["status"].startswith(UNFINISHED) for record in self.records)
        others = {"failed": len(self.failed) - len(self.damaged) - unfinished}
        others |= {"unfinished": unfinished, "damaged": len(self.damaged)}
        parts = [f"{len(self.records) - len(self.failed)} of {len(self.records)} members have finished"]
        return ", ".join(parts + [f"{count} {what}" for what, count in others.items() if count])


def main(arguments: Sequence[str] | None = None) -> None:
    """Collects the sweep that the command line names; status 2 if it is none, 1 if a member is damaged."""
    parser = argparse.ArgumentParser(prog="neuralode-flow-collect", description=__doc__)
    parser.add_argument("sweep", type=Path, help="folder of a sweep, runs/sweeps/<time>")
    folder = parser.parse_args(arguments).sweep
    try:
        sweep = _with_results(folder, collected(folder))
        text = json.dumps(sweep.records, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        atomic_write(folder / RECORDS, text.encode())
        atomic_write(folder / REPORT, sweep_page(folder, sweep))
    except BadInput as error:
        complain(error)
        raise SystemExit(error.status) from None
    except OSError as error:
        complain(f"{printable(folder)} cannot be written to: {error.strerror or error}")
        raise SystemExit(1) from None
    show(folder, sweep)
    if sweep.damaged:
        names = ", ".join(record["member"] for record in sweep.damaged)
        complain(printable(f"damaged members are left out: {names}; remove their folders and run the sweep again"))
        raise SystemExit(1)


def collected(folder: Path) -> Collected:
    """What the members of a sweep have left.

    Raises
    ------
    BadInput
        If the folder holds no member of a sweep, or too many files to look for them.
    """
    found = {_name(path, folder): _found(path) for path in members(folder)}
    if not found:
        raise BadInput(f"{printable(folder)} holds no member of a sweep; give the folder that a run with -m has made")
    names = _differing([own.settings for own in found.values()])
    settings = {
        member: {key: own.settings[key] for key in names if key in own.settings} for member, own in found.items()
    }
    records = [
        {"member": member} | settings[member] | own.numbers | {"member": member, "status": own.status}
        for member, own in found.items()
    ]
    datasets = {member: own.dataset for member, own in found.items() if own.dataset is not None}
    return Collected(records, names, datasets, *joined(datasets, settings))


def members(folder: Path) -> list[Path]:
    """The folders of members below a folder, in natural order of their names.

    A member has a summary, a failure, or a config beside checkpoints or results. Its own folders are not looked into,
    nor those whose names begin with a dot. A link is not followed; it counts as a member, which is said to be damaged,
    where it leads nowhere or to a member elsewhere, and is nothing where it leads to a place in `folder`.

    Raises
    ------
    BadInput
        If `folder` cannot be read or is a member itself, or if too much lies below it.
    """
    found, waiting, visited = [], [(folder, 0)], 0
    while waiting:
        place, depth = waiting.pop()
        try:
            entries = [entry for entry in _listed(place) if not entry.name.startswith(".")]
        except OSError as error:
            if place == folder:
                raise BadInput(
                    f"{printable(folder)} cannot be read: {error.strerror}; give a sweep's folder"
                ) from error
            found.append(place)
            continue
        visited += len(entries)
        if visited > MOST_VISITED or depth > DEEPEST:
            raise BadInput(f"{printable(folder)} holds too much to be a sweep; give the folder of one sweep")
        if _is_member({entry.name for entry in entries}):
            found.append(place)
            continue
        found += [Path(entry) for entry in entries if entry.is_symlink() and _leads_astray(Path(entry), folder)]
        waiting += [(Path(entry), depth + 1) for entry in entries if entry.is_dir(follow_symlinks=False)]
    if folder in found:
        raise BadInput(f"{printable(folder)} is a run, not a sweep; give the folder that a run with -m has made")
    names = {path: path.relative_to(folder).as_posix() for path in found}
    return sorted(found, key=lambda path: (len(names[path]), names[path]))


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(islice(entries, MOST_VISITED + 1))


def _is_member(names: set[str]) -> bool:
    return bool({SUMMARY, FAILED} & names) or (CONFIG in names and bool({CHECKPOINTS, results.FILE} & names))


def _leads_astray(link: Path, folder: Path) -> bool:
    """Whether a link leads nowhere, or to a run outside of the folder, of which only the names are looked at."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # the latter, up to Python 3.12, where links lead to one another
        return True
    if target.is_relative_to(folder.resolve()) or not target.is_dir():
        return False
    return any((target / name).exists() for name in (SUMMARY, FAILED, CONFIG))


def _name(path: Path, folder: Path) -> str:
    """The name of a member; different folders have different names, also where signs are written out."""
    name = path.relative_to(folder).as_posix()
    return name if name.isprintable() else printable(name.replace("\\", r"\\"))


class _Found(NamedTuple):
    """What one member has left."""

    status: str
    settings: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    dataset: xr.Dataset | None = None


def _found(path: Path) -> _Found:
    """Reads a member; one that cannot be read is damaged."""
    settings: dict[str, Any] = {}
    try:
        if path.is_symlink():
            raise ValueError("it is a link, which is not followed; put the folder itself there")
        settings = _settings(path)
        if os.path.lexists(path / SUMMARY):
            summary = _summary(path / SUMMARY)
            status = summary["status"]
            if status != "ok" and os.path.lexists(path / FAILED):
                status = _failure(path / FAILED)["reason"]
            return _Found(status, settings, {k: v for k, v in summary.items() if _short(v)}, _dataset(path))
        if os.path.lexists(path / FAILED):
            return _Found(_failure(path / FAILED)["reason"], settings)
    except (OSError, ValueError) as error:
        return _Found(DAMAGED + str(error).replace(f"{path}{os.sep}", ""), settings)
    return _Found(f"{UNFINISHED}it has not ended; the command of the sweep goes on with it", settings)


def _settings(path: Path) -> dict[str, Any]:
    """The settings of a member: its config, or the overrides of one that failed before it had any."""
    if not os.path.lexists(path / CONFIG) and os.path.lexists(path / FAILED):
        lines = _failure(path / FAILED)["overrides"]
        return {key: _value(text) for key, _, text in (line.removeprefix("++").partition("=") for line in lines)}
    config = read_yaml(path / CONFIG)
    if not isinstance(config, dict):
        raise ValueError(f"{path / CONFIG} is damaged: it is no config")
    settings = {key: _storable(value) for key, value in flat(config).items()}
    _check_entries(path / CONFIG, settings)
    return settings


def _value(text: str) -> Any:
    """A value of an override as the config would have it; what is no YAML stays a text."""
    try:
        return _storable(parse_yaml(text))
    except ValueError:
        return text


def _storable(value: Any) -> Any:
    """A value as JSON can hold it: of numbers that are not finite, their names."""
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _storable(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _summary(path: Path) -> dict[str, Any]:
    summary = read_json(path)
    if not isinstance(summary, dict) or not isinstance(summary.get("status"), str):
        raise ValueError(f"{path} is damaged: it has no status")
    for key, kind, what in (("verdict", str, "text"), ("study", str, "text"), ("seconds", (int, float), "number")):
        value = summary.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise ValueError(f"{path} is damaged: {key} must be a {what}, got {printable(repr(value), 60)}")
    _check_entries(path, summary)
    return summary


def _failure(path: Path) -> dict[str, Any]:
    failure = read_json(path)
    if not isinstance(failure, dict) or not isinstance(failure.get("reason"), str):
        raise ValueError(f"{path} is damaged: it has no reason")
    lines = failure.get("overrides")
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"{path} is damaged: it has no overrides")
    _check_entries(path, lines)
    return failure


def _check_entries(path: Path, entries: Sized) -> None:
    if len(entries) > MOST_ENTRIES:
        raise ValueError(
            f"{path} is damaged: it has {len(entries)} entries, more than the {MOST_ENTRIES} that are read"
        )


def _dataset(path: Path) -> xr.Dataset:
    check_kind(path / results.FILE)
    try:
        return results.open(path)
    except (OSError, ValueError):
        raise
    except Exception as error:  # whatever else a forged file makes its readers raise
        raise ValueError(f"{path / results.FILE} cannot be read: {type(error).__name__}") from error


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that are not the same in all members that have them."""
    names = dict.fromkeys(key for own in settings for key in own if key not in FREE)
    first = {key: value for own in reversed(settings) for key, value in own.items()}
    return [name for name in names if any(own.get(name, first[name]) != first[name] for own in settings)]


def _short(value: Any) -> bool:
    return value is None or isinstance(value, (str, bool, int, float))


def _with_results(folder: Path, sweep: Collected) -> Collected:
    """Writes the joined dataset, or removes the one of an earlier call, and says where it cannot be written."""
    if sweep.joined is not None:
        try:
            results.write(folder / results.FILE, sweep.joined)
            return sweep
        except OSError:
            raise
        except Exception as error:  # what netCDF cannot hold, such as names that are no Unicode
            reason = f"the joined dataset cannot be written: {error}"
            sweep = sweep._replace(joined=None, apart=dict.fromkeys(sweep.datasets, reason) | dict(sweep.apart))
    (folder / results.FILE).unlink(missing_ok=True)
    return sweep


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
        "Left out of the joined dataset": report.table([[line] for line in _left_out(sweep)]),
        "Figures": _figures(sweep),
        "Members": _outcomes(folder, sweep.records, sweep.settings),
        "Run what is missing": _again(folder),
        "Config": _config(folder, sweep),
    }
    title = f"Sweep: {printable(', '.join(studies), 200) or 'no member has finished'}"
    return report.page(title, verdict, not sweep.failed, " ".join(map(report.question, studies)), sections)


def _left_out(sweep: Collected) -> list[str]:
    """Why members that have results are not among the joined ones, a sentence for each reason."""
    by_reason: dict[str, list[str]] = {}
    for member, reason in sweep.apart.items():
        by_reason.setdefault(printable(reason, 300), []).append(member)
    return [f"{printable(', '.join(names), 200)}: {reason}" for reason, names in by_reason.items()]


_CAPTION = "Numbers of the summaries of all finished members against a setting of the sweep."


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
    own = [(name, record[key]) for key, name in _short_names(settings).items() if key in record]
    values = ", ".join(f"{name} = {value}" for name, value in own)
    label = printable(f"{record['member']}: {values}" if values else record["member"], 100)
    return label.replace("$", r"\$")  # which would begin a formula


def _outcomes(folder: Path, records: Sequence[Mapping[str, Any]], settings: Sequence[str]) -> str:
    """A row for each member, with a link to its own page."""
    rows = []
    for record in records:
        name = str(record["member"])
        link = f'<a href="{escape(quote(f"{name}/{REPORT}"))}">{escape(name)}</a>'
        seconds = record.get("seconds")
        rows.append(
            [
                report.Html(link) if _is_file(folder / name / REPORT) else name,
                *_cells(record, settings),
                "" if seconds is None else f"{seconds:.1f}",
                _outcome(record),
            ]
        )
    head = ["member", *_short_names(settings[:MOST_SHOWN]).values(), "seconds", "outcome"]
    return report.table(rows, head, numeric=range(1, len(head) - 1)) if rows else ""


def _is_file(path: Path) -> bool:
    try:
        check_kind(path)
    except (OSError, ValueError):
        return False
    return True


def _short_names(settings: Sequence[str]) -> dict[str, str]:
    """The last part of each name, where that tells it from the others."""
    ends = [name.rpartition(".")[2] for name in settings]
    return {name: printable(end if ends.count(end) == 1 else name, 100) for name, end in zip(settings, ends)}


def _cells(record: Mapping[str, Any], settings: Sequence[str]) -> list[str]:
    """The values of the settings that are shown."""
    return [printable(record.get(key, ""), 200) for key in settings[:MOST_SHOWN]]


def _outcome(record: Mapping[str, Any]) -> str:
    status = record["status"]
    return printable(record.get("verdict") or status if status == "ok" else status, lines=True)


def _config(folder: Path, sweep: Collected) -> str:
    """The config of one member, and what the others have of their own."""
    for record in sweep.records:
        with suppress(OSError, ValueError):
            text = read_text(folder / record["member"] / CONFIG)
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


def show(folder: Path, sweep: Collected) -> None:
    """Prints one line for each member."""
    console = Console(highlight=False)
    table = Table()
    for key in ("member", *sweep.settings[:MOST_SHOWN], "outcome"):
        table.add_column(Text(printable(key)), overflow="fold")
    for record in sweep.records:
        cells = [record["member"], *_cells(record, sweep.settings), _outcome(record)]
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    if len(sweep.settings) > MOST_SHOWN:
        console.print(f"{len(sweep.settings) - MOST_SHOWN} more settings in which they differ are in {RECORDS}")
    console.print(sweep.told())
    for line in _left_out(sweep):
        console.print(f"not in {results.FILE}: {line}", soft_wrap=True, markup=False)
    written = [RECORDS, REPORT, *([results.FILE] if sweep.joined is not None else [])]
    console.print(f"{printable(folder)}: {', '.join(written)}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
