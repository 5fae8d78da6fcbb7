"""Run folders that belong to one run alone, and how a run that was started is found again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..files import CONFIG, InUse, atomic_write, locked, remove_remains
from .errors import BadInput

SUMMARY = "summary.json"
CHECKPOINTS = "checkpoints"
FAILED = "failed.json"  # why a member of a sweep has failed
MULTIRUN = "multirun.yaml"  # what Hydra writes into the folder of a sweep
_LOCK = ".lock"

# Settings that may differ when a run goes on: they change where and how fast it runs, not what it computes.
# The last two are those of runs from before, which were called so.
FREE = (
    "out", "device", "threads", "resume", "save_every", "study.workers", "plugins", "time.max_evaluations",
    "time.max_seconds", "study.max_evaluations", "study.max_seconds",
)  # fmt: skip


def claim(parent: Path) -> Path:
    """A new folder in `parent` that no other run has.

    It is called after the time of the call, with -2, -3, … appended where that is taken. Making a folder is exclusive,
    so that of several programs that try one name only one gets it.

    Raises
    ------
    OSError
        If `parent` cannot be made or written to.
    """
    parent.mkdir(parents=True, exist_ok=True)
    stem = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    folder, number = parent / stem, 1
    while not _made(folder):
        number += 1
        folder = parent / f"{stem}-{number}"
    return folder


def _made(folder: Path) -> bool:
    """Whether this call made the folder."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


@contextmanager
def held(folder: Path, config: str) -> Iterator[None]:
    """Holds a folder for one run with this config (YAML): an empty one is started, a started one goes on.

    What a run leaves that ends before it has saved anything is removed again.

    Raises
    ------
    BadInput
        If another run holds the folder, it belongs to a run with another config, or it cannot be written to.
    """
    try:
        with locked(folder / _LOCK):
            try:
                _take_up(folder, config)
                yield
            finally:
                _discard_unless_saved(folder)
    except InUse as error:
        raise BadInput(f"{folder} is in use by another run; wait for it, or choose another folder") from error
    except OSError as error:
        raise BadInput(f"{folder} cannot hold results: {error.strerror or error}; set out=FOLDER") from error


def _take_up(folder: Path, config: str) -> None:
    saved = folder / CONFIG
    remove_remains(saved)  # of a run that was killed while it wrote its first file
    if saved.exists():
        changed = differences(_read(saved), OmegaConf.create(config))
        if changed:
            raise BadInput(
                f"{folder} was started with another config: {'; '.join(changed)}. Use the former values, or start a "
                f"new run without resume"
            )
    elif [path for path in folder.iterdir() if path.name not in (_LOCK, FAILED)]:
        raise BadInput(f"{folder} is not the folder of a run: it holds files but no {CONFIG}; choose an empty one")
    else:
        atomic_write(saved, config.encode())
    (folder / CHECKPOINTS).mkdir(exist_ok=True)


def _read(path: Path) -> Any:
    try:
        return OmegaConf.load(path)
    except (OSError, YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read as the config of a run: {str(error).splitlines()[0]}") from error


def differences(saved: Any, now: Any) -> list[str]:
    """What a saved config and the present one differ in, as "problem.seed was 0 and is 1"."""
    before, after = (flat(OmegaConf.to_container(config)) for config in (saved, now))
    return [
        f"{key} was {before.get(key)} and is {after.get(key)}"
        for key in dict.fromkeys([*before, *after])
        if key not in FREE and before.get(key) != after.get(key)
    ]


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping with keys such as "problem.seed"."""
    if not isinstance(node, Mapping):
        return {prefix.removesuffix("."): node}
    return {key: value for name, item in node.items() for key, value in flat(item, f"{prefix}{name}.").items()}


def unfinished(parent: Path, config: str) -> Path | None:
    """The newest folder in `parent` that a run with this config has started and not finished."""
    now = OmegaConf.create(config)
    for saved in sorted(parent.glob(f"*/{CONFIG}"), key=lambda path: path.stat().st_mtime, reverse=True):
        if not (saved.parent / SUMMARY).exists() and saved.parent.joinpath(CHECKPOINTS).is_dir():
            with suppress(BadInput):
                if not differences(_read(saved), now):
                    return saved.parent
    return None


def record_failure(folder: Path, overrides: Sequence[str], reason: str) -> None:
    """Writes why a member of a sweep has failed into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"overrides": list(overrides), "reason": reason}
    atomic_write(folder / FAILED, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def has_saved(folder: Path) -> bool:
    """Whether a run in this folder has saved something that it can go on from."""
    return any((folder / CHECKPOINTS).glob("[!.]*.npz"))  # not what was being written when a run was killed


def _discard_unless_saved(folder: Path) -> None:
    """Removes what a run wrote before it had anything to save."""
    finished = (folder / SUMMARY).exists()
    if finished:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        (folder / _LOCK).unlink(missing_ok=True)
    elif not has_saved(folder):
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        (folder / _LOCK).unlink(missing_ok=True)
        if {path.name for path in folder.iterdir()} <= {CONFIG}:
            (folder / CONFIG).unlink(missing_ok=True)


def discard_if_empty(folder: Path) -> None:
    """Removes a folder in which nothing was written; one that holds something stays."""
    with suppress(OSError):
        folder.rmdir()
