"""What a run says of how it ended, summary.json and failed.json, whoever has written them."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import Any

from ..untrusted import printable, read_json

SUMMARY = "summary.json"
FAILED = "failed.json"  # why a member of a sweep has failed
UNDRAWN = "a figure could not be drawn: "  # begins the warning of a run that is whole but for it
MOST_ENTRIES = 1000  # in a config or a record; ours have 40


def read_summary(path: Path) -> dict[str, Any]:
    """The summary of a run that has ended.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is none, or none of ours; the message says why.
    """
    summary = read_json(path)
    if not isinstance(summary, dict) or not isinstance(summary.get("status"), str):
        raise ValueError(f"{path} is damaged: it has no status")
    for key, kind, what in (("verdict", str, "text"), ("study", str, "text"), ("seconds", (int, float), "number")):
        value = summary.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise ValueError(f"{path} is damaged: {key} must be a {what}, got {printable(repr(value), 60)}")
    check_entries(path, summary)
    return summary


def read_failure(path: Path) -> dict[str, Any]:
    """The `reason` why a member of a sweep has failed, and its `overrides`; raises as `read_summary`."""
    failure = read_json(path)
    reason = failure.get("reason") if isinstance(failure, dict) else None
    if not isinstance(reason, str) or reason in ("", "ok"):
        raise ValueError(f"{path} is damaged: it has no reason")
    lines = failure.get("overrides")
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"{path} is damaged: it has no overrides")
    check_entries(path, lines)
    return failure


def check_entries(path: Path, entries: Sized) -> None:
    """Raises ValueError if there are more than a run writes."""
    if len(entries) > MOST_ENTRIES:
        raise ValueError(
            f"{path} is damaged: it has {len(entries)} entries, more than the {MOST_ENTRIES} that are read"
        )


def status(folder: Path) -> str:
    """The status of a run that has ended; of one whose summary cannot be read, why."""
    try:
        return str(read_summary(folder / SUMMARY)["status"])
    except (OSError, ValueError) as error:
        return str(error)


def failure(folder: Path) -> str | None:
    """Why the run in a folder has failed, if it has."""
    if (folder / SUMMARY).exists():
        how = status(folder)
        return None if how == "ok" else f"the study did not run whole: {how}"
    if not (folder / FAILED).exists():
        return None
    try:
        return str(read_failure(folder / FAILED)["reason"])
    except (OSError, ValueError) as error:
        return str(error)


def undrawn(folder: Path) -> str | None:
    """What a run that is whole says of a figure that could not be drawn, if there was one."""
    try:
        said = read_summary(folder / SUMMARY).get("warnings")
    except (OSError, ValueError):
        return None
    texts = said if isinstance(said, list) else []
    return next((text for text in texts if isinstance(text, str) and text.startswith(UNDRAWN)), None)
