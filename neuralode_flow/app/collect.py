"""The command `neuralode-flow-collect SWEEP`: the members of a sweep as one dataset, one table and one page."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import xarray as xr
import yaml
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__, results
from ..figures.overlay import by_setting, overlay
from ..files import CONFIG, atomic_write
from . import report
from .errors import BadInput, complain
from .report import REPORT
from .runfolder import FAILED, FREE, MULTIRUN, SUMMARY, flat
from .streams import results_told, standard_streams

RECORDS = "collected.json"
MOST_CURVES = 24  # members whose curves are laid over one another


class Collected(NamedTuple):
    """A sweep.

    Attributes
    ----------
    records : list of dict
        Of each member: its name, the settings in which members differ, its status or the reason of its failure, and the
        numbers of its summary.
    settings : list of str
        The names of those settings.
    datasets : dict of str to xarray.Dataset
        The results, by member, of those that have any.
    joined : xarray.Dataset or None
        The same along a new axis `member`; members of different studies have no common dataset.
    """

    records: list[dict[str, Any]]
    settings: list[str]
    datasets: dict[str, xr.Dataset]
    joined: xr.Dataset | None

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The records of the members that did not end well."""
        return [record for record in self.records if record["status"] != "ok"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Collects the sweep that the command line names; status 2 if it is none."""
    with standard_streams():
        _main(arguments)


def _main(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="neuralode-flow-collect", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("sweep", type=Path, help="folder of a sweep, runs/sweeps/<time>")
    folder = parser.parse_args(arguments).sweep
    try:
        sweep = collected(folder)
        if sweep.joined is not None:
            results.write(folder / results.FILE, sweep.joined)
        text = json.dumps(sweep.records, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        atomic_write(folder / RECORDS, text.encode())
        atomic_write(folder / REPORT, sweep_page(folder, sweep))
    except BadInput as error:
        complain(error)
        raise SystemExit(error.status) from None
    except OSError as error:
        complain(f"{folder} cannot be written to: {error.strerror or error}")
        raise SystemExit(1) from None
    with results_told(folder):
        show(folder, sweep)


def collected(folder: Path) -> Collected:
    """What the members of a sweep have left.

    Raises
    ------
    BadInput
        If the folder holds no member of a sweep.
    """
    members = sorted((p for p in folder.glob("*") if _is_member(p)), key=lambda p: (len(p.name), p.name))
    if not members:
        raise BadInput(f"{folder} holds no member of a sweep; give the folder that a run with -m has made")
    settings = _differing({path.name: _settings(path) for path in members})
    records, datasets = [], {}
    for path in members:
        record: dict[str, Any] = {"member": path.name, **settings[path.name]}
        if (path / SUMMARY).exists():
            summary = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
            datasets[path.name] = results.open(path)
            record |= {key: value for key, value in summary.items() if _short(value)}
        if (path / FAILED).exists():
            record["status"] = json.loads((path / FAILED).read_text(encoding="utf-8"))["reason"]
        records.append(record)
    names = list(next(iter(settings.values())))
    return Collected(records, names, datasets, _joined(datasets, settings))


def _is_member(path: Path) -> bool:
    return path.is_dir() and ((path / SUMMARY).exists() or (path / FAILED).exists())


def _settings(path: Path) -> dict[str, Any]:
    """The settings of a member: its config, or the overrides of one that failed before it had any."""
    if (path / CONFIG).exists():
        return flat(OmegaConf.to_container(OmegaConf.load(path / CONFIG)))
    lines = json.loads((path / FAILED).read_text(encoding="utf-8"))["overrides"]
    return {key: _value(text) for key, _, text in (line.removeprefix("++").partition("=") for line in lines)}


def _value(text: str) -> Any:
    """A value of an override as the config would have it; what is no YAML stays a text."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _differing(settings: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each member, the settings that are not the same in all members that have them."""
    names = dict.fromkeys(key for own in settings.values() for key in own if key not in FREE)
    chosen = []
    for name in names:
        values = [own[name] for own in settings.values() if name in own]
        if any(value != values[0] for value in values):
            chosen.append(name)
    return {member: {name: own.get(name) for name in chosen} for member, own in settings.items()}


def _short(value: Any) -> bool:
    return value is None or isinstance(value, (str, bool, int, float))


def _joined(datasets: Mapping[str, xr.Dataset], settings: Mapping[str, dict[str, Any]]) -> xr.Dataset | None:
    studies = {str(dataset.attrs.get("study", "")) for dataset in datasets.values()}
    if len(studies) != 1:
        return None
    names = list(datasets)
    joined = xr.concat(
        [dataset.drop_attrs() for dataset in _numbered(list(datasets.values()))],
        dim=xr.DataArray(names, dims="member", name="member"),
        data_vars="all",
        coords="minimal",
        compat="override",
        join="outer",
    )
    for key in next(iter(settings.values()), {}):
        values = [settings[name][key] for name in names]
        numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        joined = joined.assign_coords({key: ("member", np.array(values if numeric else list(map(str, values))))})
    first = next(iter(datasets.values()))
    for name in joined.variables:
        if name in first.variables:
            joined[name].attrs = dict(first[name].attrs)
    joined.attrs = {"study": studies.pop(), "sweep": 1, "problem": first.attrs.get("problem", "")}
    return joined


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


def sweep_page(folder: Path, sweep: Collected) -> bytes:
    """One page about a sweep: what failed first, then the numbers of all members and their curves in common axes."""
    count, failed = len(sweep.records), len(sweep.failed)
    verdict = f"{count - failed} of {count} members have finished."
    if failed:
        verdict += f" {failed} failed: see why below, and run them again by the command at the end."
    studies = sorted({str(record["study"]) for record in sweep.records if "study" in record})
    good = [record for record in sweep.records if record["status"] == "ok"]
    charts = [(figure, _CAPTION) for figure in by_setting(good, sweep.settings).values()]
    if len(studies) == 1:
        shown = {_label(r, sweep.settings): sweep.datasets[r["member"]] for r in good[:MOST_CURVES]}
        left_out = "" if len(shown) == len(good) else f" (the first {len(shown)} members)"
        with suppress(ValueError):  # they have no curve in common
            charts += [(figure, f"Each member in its own colour{left_out}.") for figure in overlay(shown).values()]
    sections = {
        "Failed members": _outcomes(folder, sweep.failed, sweep.settings),
        "Figures": "".join(report.figure(report.Drawn(figure), caption) for figure, caption in charts),
        "Members": _outcomes(folder, sweep.records, sweep.settings),
        "Run what is missing": f"<pre>{escape(_command(folder))}</pre>",
        "Config": _config(folder, sweep),
    }
    title = f"Sweep: {', '.join(studies) or 'no member has finished'}"
    return report.page(title, verdict, not failed, " ".join(map(report.question, studies)), sections)


_CAPTION = "Numbers of the summaries of all finished members against a setting of the sweep."


def _label(record: Mapping[str, Any], settings: Sequence[str]) -> str:
    """The settings of a member, as short as they tell it from the others."""
    values = ", ".join(f"{name} = {record.get(key)}" for key, name in _short_names(settings).items())
    return f"{record['member']}: {values}" if values else str(record["member"])


def _outcomes(folder: Path, records: Sequence[Mapping[str, Any]], settings: Sequence[str]) -> str:
    """A row for each member, with a link to its own page."""
    rows = []
    for record in records:
        name = str(record["member"])
        own = folder / name / REPORT
        link = f'<a href="{escape(quote(f"{name}/{REPORT}"))}">{escape(name)}</a>'
        seconds = record.get("seconds")
        rows.append(
            [
                report.Html(link) if own.exists() else name,
                *(str(record.get(key, "")) for key in settings),
                "" if seconds is None else f"{seconds:.1f}",
                _outcome(record),
            ]
        )
    head = ["member", *_short_names(settings).values(), "seconds", "outcome"]
    return report.table(rows, head, numeric=range(1, len(head) - 1)) if rows else ""


def _short_names(settings: Sequence[str]) -> dict[str, str]:
    """The last part of each name, where that tells it from the others."""
    ends = [name.rpartition(".")[2] for name in settings]
    return {name: end if ends.count(end) == 1 else name for name, end in zip(settings, ends)}


def _outcome(record: Mapping[str, Any]) -> str:
    return str(record["verdict"] if record["status"] == "ok" else record["status"])


def _config(folder: Path, sweep: Collected) -> str:
    """The config of one member, and what the others have of their own."""
    for record in sweep.records:
        path = folder / str(record["member"]) / CONFIG
        if path.exists():
            differing = ", ".join(sweep.settings) or "nothing"
            note = f"<p>That of member {escape(str(record['member']))}; the others differ in {escape(differing)}.</p>"
            return f"{note}<pre>{escape(path.read_text(encoding='utf-8'))}</pre>"
    return ""


def _command(folder: Path) -> str:
    """The command line that has made the sweep, so that it runs what is missing."""
    path = folder / MULTIRUN
    lines = OmegaConf.load(path).hydra.overrides.task if path.exists() else ["..."]
    words = [line.removeprefix("++") for line in lines]
    words = [word for word in words if not word.startswith("resume=")]
    return shlex.join(["neuralode-flow", "-m", *words, f"resume={folder}"])


def show(folder: Path, sweep: Collected) -> None:
    """Prints one line for each member."""
    console = Console(highlight=False)
    table = Table()
    for key in ("member", *sweep.settings, "outcome"):
        table.add_column(Text(key), overflow="fold")
    for record in sweep.records:
        cells = [*(str(record.get(key, "")) for key in ("member", *sweep.settings)), _outcome(record)]
        table.add_row(*map(Text, cells))
    console.print(table)
    console.print(f"{len(sweep.records) - len(sweep.failed)} of {len(sweep.records)} members have finished")
    written = [RECORDS, REPORT, *([results.FILE] if sweep.joined is not None else [])]
    console.print(Text(f"{folder}: {', '.join(written)}"), soft_wrap=True)


if __name__ == "__main__":
    main()
