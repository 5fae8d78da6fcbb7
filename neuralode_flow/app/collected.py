"""A sweep as a whole: a record of each member, and the results of all as one dataset."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr

from ..untrusted import printable
from .errors import BadInput
from .joined import joined
from .memberfolder import DAMAGED, UNFINISHED, Left, left_by, members, natural, not_run
from .members import digest, expected
from .runfolder import FREE, computing

# What a record says of a run; no setting of ours has such a name.
_TAKEN = ("member", "status", "verdict", "study", "seconds")


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
    twice : mapping of str to str
        Members that no command has asked for, and the one whose settings they have: they may be copies.
    """

    records: list[dict[str, Any]]
    settings: list[str]
    datasets: dict[str, xr.Dataset]
    joined: xr.Dataset | None
    apart: Mapping[str, str] = {}
    twice: Mapping[str, str] = {}

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The records of the members that did not end well."""
        return [record for record in self.records if record["status"] != "ok"]

    @property
    def damaged(self) -> list[dict[str, Any]]:
        """The records of the members whose files cannot be read."""
        return [record for record in self.records if record["status"].startswith(DAMAGED)]

    def left_out(self) -> list[str]:
        """Why members that have results are not among the joined ones, a sentence for each reason."""
        by_reason: dict[str, list[str]] = {}
        for member, reason in self.apart.items():
            by_reason.setdefault(printable(reason, 300), []).append(member)
        return [f"{printable(', '.join(names), 200)}: {reason}" for reason, names in by_reason.items()]

    def doubled(self) -> list[str]:
        """Which members may be copies of others, and count twice."""
        return [
            f"{name} has the settings of {of}; remove its folder if it is a copy" for name, of in self.twice.items()
        ]

    def told(self) -> str:
        """How many members have finished, and what became of the others."""
        unfinished = sum(record["status"].startswith(UNFINISHED) for record in self.records)
        others = {"failed": len(self.failed) - len(self.damaged) - unfinished}
        others |= {"unfinished": unfinished, "damaged": len(self.damaged)}
        parts = [f"{len(self.records) - len(self.failed)} of {len(self.records)} members have finished"]
        return ", ".join(parts + [f"{count} {what}" for what, count in others.items() if count])


def collected(folder: Path) -> Collected:
    """What the members of a sweep have left.

    Raises
    ------
    BadInput
        If the folder holds no member of a sweep, or too many files to look for them.
    """
    found = {path.relative_to(folder).as_posix(): left_by(path) for path in members(folder)}
    known = expected(folder)
    twice = _copies(found, known)
    missing = {name: not_run(lines) for name, lines in known.items() if name not in found}
    found = {_shown(name): left for name, left in sorted((found | missing).items(), key=lambda item: natural(item[0]))}
    if not found:
        raise BadInput(f"{printable(folder)} holds no member of a sweep; give the folder that a run with -m has made")
    names = _differing([own.settings for own in found.values()])
    settings = {
        member: {key: own.settings[key] for key in names if key in own.settings} for member, own in found.items()
    }
    records = [
        {"member": member} | own.numbers | settings[member] | {"member": member, "status": own.status}
        for member, own in found.items()
    ]
    datasets = {member: own.dataset for member, own in found.items() if own.dataset is not None}
    statuses = {member: own.status for member, own in found.items()}
    return Collected(records, names, datasets, *joined(datasets, settings, statuses), twice)


def _copies(found: Mapping[str, Left], known: Collection[str]) -> dict[str, str]:
    """Folders that no command has asked for, with the settings of a member; and that member."""
    computes = {name: digest(computing(left.settings)) for name, left in found.items()}
    first = {computes[name]: name for name, left in found.items() if name in known and left.settings}
    twice = {name: first.get(computes[name]) for name in found if name not in known}
    return {_shown(name): _shown(of) for name, of in twice.items() if of is not None}


def _shown(name: str) -> str:
    """The name of a member; different folders have different names, also where signs are written out."""
    return name if name.isprintable() else printable(name.replace("\\", r"\\"))


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that are not the same in all members that have them."""
    names = dict.fromkeys(key for own in settings for key in own if key not in (*FREE, *_TAKEN))
    first = {key: value for own in reversed(settings) for key, value in own.items()}
    return [name for name in names if any(own.get(name, first[name]) != first[name] for own in settings)]
