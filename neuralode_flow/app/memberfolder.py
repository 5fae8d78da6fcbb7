"""What the members of a sweep have left in their folders, which may be damaged or of someone else."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr

from .. import results
from ..files import CONFIG, check_regular
from ..untrusted import LONGEST_CONFIG, parse_yaml, printable, read_text, read_yaml
from .errors import BadInput
from .records import FAILED, SUMMARY, check_entries, read_failure, read_summary
from .runfolder import CHECKPOINTS, flat

DAMAGED, UNFINISHED = "damaged: ", "unfinished: "  # how the status of such a member begins
MOST_VISITED = 100_000  # files and folders that are looked at in search of members
DEEPEST = 64  # folders inside one another


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
    return sorted(found, key=lambda path: natural(path.relative_to(folder).as_posix()))


def natural(name: str) -> tuple[int, str]:
    """What to sort names by, so that 10 comes after 9."""
    return len(name), name


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(islice(entries, MOST_VISITED + 1))


def _is_member(names: set[str]) -> bool:
    return bool({SUMMARY, FAILED} & names) or (CONFIG in names and bool({CHECKPOINTS, results.FILE} & names))


def _leads_astray(link: Path, folder: Path) -> bool:
    """Whether a link leads nowhere, or to a run outside of the folder, of which only the names are looked at."""
    try:
        target = link.resolve(strict=True)
        inside = target.is_relative_to(folder.resolve())
        return not inside and any((target / name).exists() for name in (SUMMARY, FAILED, CONFIG))
    except (OSError, RuntimeError):  # the latter, up to Python 3.12, where links lead to one another
        return True


class Left(NamedTuple):
    """What one member has left."""

    status: str
    settings: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    dataset: xr.Dataset | None = None


def left_by(path: Path) -> Left:
    """Reads a member; one that cannot be read is damaged."""
    settings: dict[str, Any] = {}
    try:
        if path.is_symlink():
            raise ValueError("it is a link, which is not followed; put the folder itself there")
        settings = _settings(path)
        if os.path.lexists(path / SUMMARY):
            summary = read_summary(path / SUMMARY)
            status = summary["status"]
            if status != "ok" and os.path.lexists(path / FAILED):
                status = read_failure(path / FAILED)["reason"]
            return Left(status, settings, {k: v for k, v in summary.items() if _short(v)}, dataset(path))
        if os.path.lexists(path / FAILED):
            return Left(read_failure(path / FAILED)["reason"], settings)
    except (OSError, ValueError) as error:
        return Left(DAMAGED + str(error).replace(f"{path}{os.sep}", ""), settings)
    return Left(f"{UNFINISHED}it has not ended; the command of the sweep goes on with it", settings)


def not_run(overrides: Iterable[str]) -> Left:
    """What a member has left that a command has asked for, and that has not come to anything."""
    return Left(f"{UNFINISHED}it has not run; the command of the sweep runs it", _overridden(overrides))


def _overridden(lines: Iterable[str]) -> dict[str, Any]:
    return {key: _value(text) for key, _, text in (line.removeprefix("++").partition("=") for line in lines)}


def _settings(path: Path) -> dict[str, Any]:
    """The settings of a member: its config, or the overrides of one that failed before it had any."""
    if not os.path.lexists(path / CONFIG) and os.path.lexists(path / FAILED):
        return _overridden(read_failure(path / FAILED)["overrides"])
    config = read_yaml(path / CONFIG, LONGEST_CONFIG)
    if not isinstance(config, dict):
        raise ValueError(f"{path / CONFIG} is damaged: it is no config")
    settings = {key: _storable(value) for key, value in flat(config).items()}
    check_entries(path / CONFIG, settings)
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


def _short(value: Any) -> bool:
    return value is None or isinstance(value, (str, bool, int, float))


def dataset(run: Path) -> xr.Dataset:
    """The dataset of a run that someone else may have written.

    Parameters
    ----------
    run : Path
        Its folder, or its results.nc.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it cannot be read, or the config beside it; the message says why.
    """
    folder, file = (run, run / results.FILE) if run.is_dir() else (run.parent, run)
    if os.path.lexists(file):
        check_regular(str(file), file, follow=False)
    if os.path.lexists(folder / CONFIG):
        read_text(folder / CONFIG, LONGEST_CONFIG)
    try:
        return results.open(run)
    except (FileNotFoundError, ValueError):
        raise
    except Exception as error:  # whatever else a forged file makes its readers raise
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ValueError(f"{file} cannot be read: {reason}") from error
