"""Run folders that belong to one run alone, and how a run that was started is found again."""

from __future__ import annotations

import errno
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ..display import shortened
from ..files import CONFIG, RESULTS, InUse, atomic_write, expanded, locked, remove_remains
from ..untrusted import LONGEST_CONFIG, parse_yaml, read_json, read_yaml
from .errors import BadInput
from .records import FAILED, SUMMARY, read_summary, status
from .schema import PLUGIN, Job

CHECKPOINTS = "checkpoints"
MULTIRUN = "multirun.yaml"  # what Hydra writes into the folder of a sweep
_HYDRAS = {"config.yaml", "hydra.yaml", "overrides.yaml"}  # what it writes into hydra.output_subdir
_LOCK = ".lock"
_BUDGETS = ("evaluations", "seconds", "checkpoint")  # endings of a run that can go on

# Settings that may differ when a run goes on: they change where and how fast it runs, not what it computes.
# The last two are those of runs from before, which were called so.
FREE = (
    "out", "device", "threads", "resume", "save_every", "keep_checkpoints", "figures", "verbosity", "study.workers",
    "plugins", "at_once", "time.max_evaluations", "time.max_seconds", "study.max_evaluations", "study.max_seconds",
)  # fmt: skip

# Settings that runs from before do not have, with the value that stands for what they did.
ADDED: tuple[tuple[str, Any], ...] = (("study.kernel", "logmean"), ("time.extends", []))
_HORIZONS = ("time.extends", "time.horizon")  # what tells a run from one that makes it longer


def claim(parent: Path) -> Path:
    """A new folder in `parent` that no other run has.

    It is called after the time of the call, with -2, -3, … appended where that is taken. Making a folder is exclusive,
    so that of several programs that try one name only one gets it.

    Raises
    ------
    OSError
        If `parent` cannot be made or written to.
    """
    make(parent)
    stem = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    folder, number = parent / stem, 1
    while not _made(folder):
        number += 1
        folder = parent / f"{stem}-{number}"
    return folder


def make(folder: Path) -> None:
    """Makes a folder and those that it lies in, if they are not there."""
    if not folder.is_dir():
        if folder.parent != folder:
            make(folder.parent)
        if not _made(folder) and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file", str(folder))


def _made(folder: Path) -> bool:
    """Whether this call made the folder."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    _MADE.append(folder.absolute())
    return True


class InUseElsewhere(BadInput):
    """Another run holds the folder, and goes on with it."""


@contextmanager
def held(folder: Path, config: str, keep: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Holds a folder for one run with this config (YAML): an empty one is started, a started one goes on.

    What a run leaves that ends before it has saved anything is removed again. So are the checkpoints of one that has
    ended, unless `keep`, which is asked then, says that they are kept. One that has ended and is made longer keeps all
    of its results until the longer one has them.

    Raises
    ------
    InUseElsewhere
        If another run holds the folder.
    BadInput
        If it belongs to a run with another config, or cannot be written to.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / _LOCK))
            stack.callback(_discard_unless_saved, folder, config, keep)
            _take_up(folder, config)
        except InUse as error:
            raise InUseElsewhere(f"{folder} is in use by another run; wait for it, or choose another folder") from error
        except OSError as error:
            raise BadInput(f"{folder} cannot hold results: {error.strerror or error}; set out=FOLDER") from error
        yield


def _take_up(folder: Path, config: str) -> None:
    saved, size = folder / CONFIG, len(config.encode())
    if size > LONGEST_CONFIG:
        raise BadInput(
            f"the config of this run has {size} bytes, more than the {LONGEST_CONFIG} that are read again; give "
            f"shorter lists, of seeds as members.problem.seed=range(0,1000)"
        )
    for file in (saved, folder / RESULTS):
        remove_remains(file)  # of a run that was killed while it wrote it
    if saved.exists():
        refuse_another(folder, config)
    elif [path for path in folder.iterdir() if path.name not in (_LOCK, FAILED) and not _hydras(path)]:
        raise BadInput(f"{folder} is not the folder of a run: it holds files but no {CONFIG}; choose an empty one")
    else:
        atomic_write(saved, config.encode())
    if ended(folder) is None:
        (folder / SUMMARY).unlink(missing_ok=True)  # of the part before a budget was used up
    if ended(folder, config) is None:
        (folder / CHECKPOINTS).mkdir(exist_ok=True)


def _hydras(path: Path) -> bool:
    """Whether this is what Hydra itself writes into the folder of a run: hydra.output_subdir, and its log."""
    if not path.is_dir():
        return path.suffix == ".log"
    found = False
    for below in path.rglob("*"):
        if not below.is_dir():
            if below.name not in _HYDRAS:
                return False
            found |= below.name == "overrides.yaml"
    return found


def refuse_another(folder: Path, config: str) -> None:
    """Raises BadInput if a folder belongs to a run with another config than this (YAML)."""
    changed = differences(saved_config(folder), parse_yaml(config))
    if changed:
        raise BadInput(
            f"{folder} was started with another config: {'; '.join(changed)}. Use the former values, or start a "
            f"new run without resume"
        )


def saved_config(folder: Path) -> dict[str, Any]:
    """The config of the run in a folder, whoever has written it; raises BadInput if it cannot be read."""
    path = folder / CONFIG
    try:
        config = read_yaml(path, LONGEST_CONFIG)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as the config of a run: {error}") from error
    if not isinstance(config, dict):
        raise BadInput(f"{path} cannot be read as the config of a run: it holds no settings")
    return config


def ended(folder: Path, config: str | None = None, inputs: Callable[[], Mapping[str, str]] = dict) -> str | None:
    """How the run in a folder has ended, "ok" or a sentence; None if it has not.

    One that has only used up a budget can go on.

    Parameters
    ----------
    folder : Path
    config : str, optional
        That of the run which asks (YAML).
    inputs : callable
        Gives the digests of its input files.

    Raises
    ------
    BadInput
        If a config is given, and the folder is that of a run with another one, or with other inputs, or is damaged.
    """
    known = (folder / CONFIG).exists()
    if config is not None and known:
        refuse_another(folder, config)
    if not (folder / SUMMARY).exists() or _can_go_on(folder):
        return None
    if config is None:
        return status(folder)
    summary = _whole_summary(folder)
    _refuse_other_inputs(folder, summary.get("inputs"), inputs)
    return None if makes_longer(folder, config) else str(summary["status"])


def made_longer(folder: Path, job: Job) -> Job:
    """The job, told the horizons of the run in a folder that it is the same as but for a longer one, or none."""
    if job.time.extends or not (folder / CONFIG).exists():
        return job
    ends = _horizons(flat(saved_config(folder)))
    if not all(isinstance(end, (int, float)) and end <= job.time.horizon for end in ends):
        return job
    if ends[-1] == job.time.horizon:  # it is that longer run, again
        ends.pop()
    if not ends:
        return job
    return replace(job, time=replace(job.time, extends=ends))


def makes_longer(folder: Path, config: str) -> bool:
    """Whether a run with this config (YAML) goes beyond the end of the one in a folder."""
    return (folder / CONFIG).exists() and _goes_beyond(flat(saved_config(folder)), flat(parse_yaml(config)))


def _goes_beyond(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether the output times of one flat config are the first of those of another, which has more."""
    ends, longer = _horizons(before), _horizons(after)
    return longer[: len(ends)] == ends and len(longer) > len(ends)


def _horizons(settings: Mapping[str, Any]) -> list[Any]:
    """Where the parts of a run have ended."""
    extends = settings.get("time.extends")
    return [*(extends if isinstance(extends, list) else []), settings.get("time.horizon")]


def _whole_summary(folder: Path) -> dict[str, Any]:
    """The summary of a run that has ended; raises BadInput if it cannot be read, or if other files are lost."""
    try:
        summary = read_summary(folder / SUMMARY)
        for name in (CONFIG, RESULTS):
            if not (folder / name).exists():
                raise ValueError(f"{folder} holds a {SUMMARY} but no {name}: it is damaged")
    except (OSError, ValueError) as error:
        raise BadInput(f"{error}; remove {folder} to run it again, or choose another folder") from error
    return summary


def _refuse_other_inputs(folder: Path, before: Any, inputs: Callable[[], Mapping[str, str]]) -> None:
    """Raises BadInput if the files that a run has read hold something else now; those that are gone do not."""
    if not isinstance(before, dict):  # it has read none, or is of a version that kept no digests
        return
    changed = [key for key, digest in inputs().items() if before.get(key, digest) != digest]
    tables = [key for key in changed if not key.startswith(PLUGIN)]
    if tables:
        raise BadInput(
            f"{folder} holds a run with other data: the contents of {', '.join(tables)} have changed since; choose "
            f"another folder"
        )
    if changed:
        named = "the " + ", the ".join(changed)
        raise BadInput(
            f"{folder} holds a run of other code: {named} or modules imported there have changed since; choose another "
            f"folder, or remove this one to run it again (neuralode-flow-plot draws its results anew)"
        )


def _can_go_on(folder: Path) -> bool:
    """Whether a run that has written its results was stopped by a budget, and has saved where it was."""
    with suppress(OSError, ValueError, AttributeError):
        return has_saved(folder) and read_json(folder / SUMMARY).get("ending") in _BUDGETS
    return False


def computing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that what is computed depends on, and those added since only where they change it."""
    return {key: value for key, value in settings.items() if key not in FREE and (key, value) not in ADDED}


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a saved config and the present one differ in, as "problem.seed was 0 and is 1".

    That the present one goes on where the saved one has ended is no difference.
    """
    before, after = computing(flat(saved)), computing(flat(now))
    same: tuple[str, ...] = _HORIZONS if _goes_beyond(before, after) else ()
    if "time.extends" not in after and before.get("time.horizon") != after.get("time.horizon"):
        same = ("time.extends",)  # which nobody has asked for
    return [
        f"{key} was {shortened(str(before.get(key)), 200)} and is {shortened(str(after.get(key)), 200)}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key) and key not in same
    ]


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping with keys such as "problem.seed"."""
    if not isinstance(node, Mapping):
        return {prefix.removesuffix("."): node}
    return {key: value for name, item in node.items() for key, value in flat(item, f"{prefix}{name}.").items()}


def unfinished(parent: Path, config: str) -> Path | None:
    """The newest folder in `parent` that a run with this config has started and not finished."""
    now = parse_yaml(config)
    for saved in sorted(parent.glob(f"*/{CONFIG}"), key=lambda path: path.stat().st_mtime, reverse=True):
        if not (saved.parent / SUMMARY).exists() and saved.parent.joinpath(CHECKPOINTS).is_dir():
            with suppress(BadInput):
                if not differences(saved_config(saved.parent), now):
                    return saved.parent
    return None


def record_failure(folder: Path, overrides: Sequence[str], reason: str) -> None:
    """Writes why a member of a sweep has failed into its folder, unless another run has it now or has finished it."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"overrides": list(overrides), "reason": reason}
    with suppress(InUse), locked(folder / _LOCK, patience=0.0):
        if not (folder / SUMMARY).exists():
            atomic_write(folder / FAILED, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
        if not has_saved(folder):
            (folder / _LOCK).unlink(missing_ok=True)


def in_use(folder: Path) -> bool:
    """Whether a run holds the folder."""
    if not (folder / _LOCK).exists():
        return False
    try:
        with locked(folder / _LOCK, patience=0.0):
            return False
    except InUse:
        return True


def has_saved(folder: Path) -> bool:
    """Whether a run in this folder has saved something that it can go on from."""
    saved = folder / CHECKPOINTS  # not what was being written when a run was killed
    return any(saved.glob("[!.]*.npz")) or any(saved.glob("[!.]*.nc"))


def _discard_unless_saved(folder: Path, config: str, keep: Callable[[], bool]) -> None:
    """Removes what a run wrote before it had anything to save; whoever has removed the folder has done that."""
    finished = (folder / SUMMARY).exists()
    if _can_go_on(folder):
        return
    if finished:
        (folder / FAILED).unlink(missing_ok=True)  # of an earlier start
    if finished or not has_saved(folder):
        # One that was to be longer has saved where it was.
        if not (has_saved(folder) and (makes_longer(folder, config) or keep())):
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        (folder / _LOCK).unlink(missing_ok=True)
        if not finished and folder.exists() and {path.name for path in folder.iterdir()} <= {CONFIG, FAILED}:
            (folder / CONFIG).unlink(missing_ok=True)


def quoted(text: str) -> str:
    """A value of an override that Hydra takes as it is."""
    inner = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + found[2].replace("'", "\\'"), text)
    return "'" + inner.replace("${", "\\${") + "'"


def going_on(folder: Path, does: str = "goes on") -> str:
    """What is to be done for a run to go on, or a sweep; it can be copied into a shell."""
    plain = re.fullmatch(r"[\w./+-]+", str(folder), re.ASCII)
    setting = f"resume={folder}" if plain else shlex.quote(f"resume={quoted(str(folder))}")
    return f"the same command with {setting} {does}"


def place(job: Job, wanted: str | None = None) -> Path:
    """The folder for a single run: the one that is `wanted` or resumed, else a new one, `<out>/<study>/<time>`.

    Raises
    ------
    BadInput
        If it cannot be made.
    """
    parent, resume = Path(job.machine.out) / job.study.name, job.machine.resume
    if wanted is not None and isinstance(resume, str) and Path(wanted).absolute() != Path(resume).absolute():
        raise BadInput(f"hydra.run.dir={wanted} and resume={resume} are two folders for one run; leave one of them out")
    given = resume if isinstance(resume, str) else wanted
    try:
        if given is not None:
            folder = expanded(given)
            make(folder)
            return folder
        return (unfinished(parent, job.to_yaml()) if resume else None) or claim(parent)
    except OSError as error:
        raise BadInput(f"{given or parent} cannot hold results: {error.strerror}; set out=FOLDER") from error


_MADE: list[Path] = []  # by this process


def discard_unused() -> None:
    """Removes the folders that this process has made, and in which nothing was written."""
    while _MADE:
        discard_if_empty(_MADE.pop())


def discard_if_empty(folder: Path) -> None:
    """Removes a folder in which nothing was written but what Hydra writes; one that holds something stays."""
    with suppress(OSError):
        if all(_hydras(path) for path in folder.iterdir()):
            for path in folder.iterdir():
                path.unlink() if path.is_file() else shutil.rmtree(path)
            folder.rmdir()
