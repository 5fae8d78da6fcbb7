"""The command `neuralode-flow-collect SWEEP`: the members of a sweep as one dataset, one table and one page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from .. import results
from ..files import CONFIG, atomic_write
from .errors import BadInput, complain
from .runfolder import FAILED, FREE, SUMMARY, flat

RECORDS = "collected.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Collects the sweep that the command line names; status 2 if it is none."""
    parser = argparse.ArgumentParser(prog="neuralode-flow-collect", description=__doc__)
    parser.add_argument("sweep", type=Path, help="folder of a sweep, runs/sweeps/<time>")
    folder = parser.parse_args(arguments).sweep
    try:
        records, dataset = collected(folder)
        if dataset is not None:
            results.write(folder / results.FILE, dataset)
        text = json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        atomic_write(folder / RECORDS, text.encode())
    except BadInput as error:
        complain(error)
        raise SystemExit(error.status) from None
    except OSError as error:
        complain(f"{folder} cannot be written to: {error.strerror or error}")
        raise SystemExit(1) from None
    show(folder, records, dataset)


def collected(folder: Path) -> tuple[list[dict[str, Any]], xr.Dataset | None]:
    """The records of all members, and the datasets of those that have results along a new axis `member`.

    A record has the member's name, the settings in which members differ, its status or the reason of its failure, and
    the numbers of its summary. Members of different studies have no common dataset: None.

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
    return records, _joined(datasets, settings)


def _is_member(path: Path) -> bool:
    return path.is_dir() and ((path / SUMMARY).exists() or (path / FAILED).exists())


def _settings(path: Path) -> dict[str, Any]:
    """The settings of a member: its config, or the overrides of one that failed before it had any."""
    if (path / CONFIG).exists():
        return flat(OmegaConf.to_container(OmegaConf.load(path / CONFIG)))
    lines = json.loads((path / FAILED).read_text(encoding="utf-8"))["overrides"]
    pairs = (line.removeprefix("++").partition("=") for line in lines)
    return {key: value for key, _, value in pairs}


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
        [dataset.drop_attrs() for dataset in datasets.values()],
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


def show(folder: Path, records: Sequence[Mapping[str, Any]], dataset: xr.Dataset | None) -> None:
    """Prints one line for each member."""
    console = Console(highlight=False)
    keys = [key for key in records[0] if key == "member" or "." in key]
    table = Table()
    for key in (*keys, "outcome"):
        table.add_column(key, overflow="fold")
    for record in records:
        outcome = record["verdict"] if record["status"] == "ok" else record["status"]
        table.add_row(*(str(record.get(key, "")) for key in keys), str(outcome))
    console.print(table)
    finished = sum(record["status"] == "ok" for record in records)
    console.print(f"{finished} of {len(records)} members have finished")
    written = [RECORDS, *([results.FILE] if dataset is not None else [])]
    console.print(f"{folder}: {', '.join(written)}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
