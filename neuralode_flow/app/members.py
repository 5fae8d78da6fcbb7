"""The members of a sweep: which folder belongs to which settings, however a command names and orders them.

members.json in the folder of a sweep is a mapping of number to the overrides of a member, its folder and two digests:
of its whole config, and of what it computes (the config without the settings that are free to change).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import atomic_write, locked
from ..untrusted import read_json
from .errors import BadInput
from .runfolder import FREE, MULTIRUN, computing, flat, saved_config
from .schema import Job

LEDGER = "members.json"
_LOCK = ".members.lock"
_MOST_BYTES = 100_000_000  # for 10⁵ members
_PATIENCE = 60.0  # seconds to wait for another command that names its members


@dataclass
class Member:
    """One point of a sweep.

    Attributes
    ----------
    overrides : tuple of str
        What tells it from the others on the command line, and what all have in common.
    job : Job or None
        Its checked config; None for a point that turned out to be bad.
    number : int
        Under which the ledger knows it.
    name : str
        That of its folder in the sweep, which may have parts.
    folder : Path
        Where its results go.
    lost : str
        Why the launcher has lost it, if it has.
    refused : str
        Why it was not run, if its folder belongs to another run.
    launched : bool
        Whether this command has run it.
    """

    overrides: tuple[str, ...]
    job: Job | None
    number: int = -1
    name: str = ""
    folder: Path = Path()
    lost: str = ""
    refused: str = ""
    launched: bool = False

    @property
    def settings(self) -> str:
        """Its overrides as the user has written them."""
        return " ".join(line.removeprefix("++") for line in self.overrides)


def find_folders(sweep: Path, members: Sequence[Member], name: Callable[[Member], str]) -> None:
    """Gives each member the number and the folder that it has in the ledger of a sweep, or new ones.

    A member is known by its whole config, else by what it computes, else by its overrides (so that a changed config
    file is noticed in the folder that it has); of several that are alike each gets one of its own.

    Parameters
    ----------
    sweep : Path
        The folder of the sweep.
    members : sequence of Member
        Their numbers, names and folders are set.
    name : callable
        The name of the folder of a new member, whose number is known; it may have parts.

    Raises
    ------
    BadInput
        If a folder would not lie in that of the sweep.
    OSError
        If the ledger cannot be written, or another process holds it for a minute.
    """
    with locked(sweep / _LOCK, _PATIENCE):
        ledger = _read(sweep)
        free = dict(sorted(ledger.items()))
        waiting = [(member, _entry(member)) for member in members]
        for key in ("config", "computes", "overrides"):
            known: dict[str, list[int]] = {}
            for n in reversed(free):  # the least is taken first
                known.setdefault(str(free[n].get(key)), []).append(n)
            left = []
            for member, entry in waiting:
                alike = known.get(str(entry[key])) if entry[key] else None
                if alike:
                    member.number = alike.pop()
                    del free[member.number]
                else:
                    left.append((member, entry))
            waiting = left
        numbers = (n for n in range(len(ledger) + len(waiting)) if n not in ledger)
        for member, entry in waiting:
            member.number = next(numbers)
            ledger[member.number] = entry | {"folder": name(member)}
        for member in members:
            member.name = str(ledger[member.number].get("folder", member.number))
            member.folder = _within(sweep, member.name)
        if waiting or not (sweep / LEDGER).exists():
            text = json.dumps(dict(sorted(ledger.items())), indent=1, ensure_ascii=False)
            atomic_write(sweep / LEDGER, (text + "\n").encode())
        (sweep / _LOCK).unlink(missing_ok=True)


def is_sweep(folder: Path) -> bool:
    """Whether a sweep has been started in a folder."""
    return any((folder / name).exists() for name in (LEDGER, MULTIRUN, _LOCK))


def _entry(member: Member) -> dict[str, Any]:
    lines = (line.removeprefix("++") for line in member.overrides)
    overrides = sorted(line for line in lines if line.partition("=")[0] not in FREE)
    return {"overrides": overrides, **_digests(None if member.job is None else member.job.plain)}


def _digests(config: Mapping[str, Any] | None) -> dict[str, str]:
    if config is None:
        return {"config": "", "computes": ""}
    whole = flat(config)
    return {"config": digest(whole), "computes": digest(computing(whole))}


def digest(settings: Mapping[str, Any]) -> str:
    """A name for settings, in whatever order they are."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _read(sweep: Path) -> dict[int, dict[str, Any]]:
    """The ledger; where there is none, or it is damaged, what the folders with a number for a name say."""
    with suppress(OSError, ValueError, AttributeError, TypeError):
        return {int(key): {**entry} for key, entry in read_json(sweep / LEDGER, _MOST_BYTES).items()}
    return {int(path.name): _digests(_saved(path)) for path in _numbered(sweep)}


def _numbered(sweep: Path) -> Iterable[Path]:
    return (path for path in sweep.iterdir() if path.name.isdecimal() and path.is_dir() and any(path.iterdir()))


def _saved(folder: Path) -> dict[str, Any] | None:
    with suppress(BadInput):
        return saved_config(folder)
    return None


def expected(sweep: Path) -> dict[str, list[str]]:
    """The overrides of all members that commands have asked for, by the names of their folders.

    There are none of a member that was there before the ledger.
    """
    with suppress(OSError, ValueError, AttributeError, TypeError):
        entries = read_json(sweep / LEDGER, _MOST_BYTES).items()
        return {str(entry.get("folder", key)): list(map(str, entry.get("overrides", ()))) for key, entry in entries}
    return {}


def _within(sweep: Path, subdir: str) -> Path:
    name = os.path.normpath(subdir)
    if os.path.isabs(name) or name.split(os.sep)[0] in ("..", "."):
        raise BadInput(f"hydra.sweep.subdir must name a folder inside the sweep, got {subdir!r}")
    try:
        with suppress(FileNotFoundError):
            (sweep / name).stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(
            f"hydra.sweep.subdir cannot be {name[:60]!r}...: {reason}; use ${{hydra.job.num}}, or leave out settings "
            f"by hydra.job.config.override_dirname.exclude_keys"
        ) from error
    return sweep / name
