"""Sweeps (-m): every point is checked before the first one runs, each runs in a process of its own, and what fails
says why and does not stop the others. The same command with resume=FOLDER runs what is missing."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from . import launchers
from .errors import HYDRA_ERRORS, BadInput, Stop, StudyFailed, complain
from .runfolder import FAILED, MULTIRUN, SUMMARY, record_failure
from .schema import checked

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


class Killed(str):
    """Why a member ended that was killed."""


class CheckSweep(Callback):
    """Hydra calls it before a sweep, when nothing has been written yet, and after it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Ends the program with status 2 at the first bad point; else claims the sweep's folder."""
        try:
            launchers.prepare(str(config.hydra.launcher._target_))
            resumed = False
            for overrides in points(config):
                job = checked(compose(config.hydra.job.config_name, overrides))
                if job.machine.resume is True:
                    raise BadInput("resume=true finds single runs; with -m give the folder of the sweep, resume=FOLDER")
                resumed = job.machine.resume is not False
            _claim(Path(config.hydra.sweep.dir), resumed)
        except (BadInput, *HYDRA_ERRORS) as error:
            complain(error)
            # Hydra turns the exceptions of a callback into warnings, but not this one.
            sys.exit(BadInput.status)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Says how many members have finished and why the others have not; the status is 1 if one has not."""
        folder = Path(config.hydra.sweep.dir)
        failed = failures(folder)
        finished = sum(1 for path in folder.glob(f"*/{SUMMARY}") if not path.with_name(FAILED).exists())
        for name, reason in failed.items():
            complain(f"member {name} failed: {reason}")
        if failed:
            complain(
                f"{finished} of {finished + len(failed)} members have finished in {folder}; the same command with "
                f"resume={folder} runs the others"
            )
            sys.exit(StudyFailed.status)


def run_member(work: Callable[[], None], folder: Path, overrides: Sequence[str]) -> None:
    """Runs one member of a sweep; whatever ends it early is recorded in its folder and does not end the sweep.

    It gets a process of its own, so that even one that is killed leaves the others alone (but not where processes
    cannot be forked), and is tried once more.
    """
    if (folder / SUMMARY).exists():  # of an earlier start; what it says of a failure stays
        from .terminal import finished  # which imports torch: --help stays fast

        finished(folder)
        return
    (folder / FAILED).unlink(missing_ok=True)
    run = _in_a_child if hasattr(os, "fork") else _in_this_process
    reason = run(work)
    if isinstance(reason, Killed):  # from outside, such as for want of memory: it goes on from what it has saved
        complain(f"member {folder.name} is started again: {reason}")
        reason = run(work)
    if reason is not None:
        record_failure(folder, overrides, reason)


def failures(folder: Path) -> dict[str, str]:
    """Why members of a sweep have failed, by the name of their folder and their settings."""
    found = {}
    for path in sorted(folder.glob(f"*/{FAILED}"), key=lambda path: (len(path.parent.name), path.parent.name)):
        record = json.loads(path.read_text(encoding="utf-8"))
        settings = " ".join(line.removeprefix("++") for line in record["overrides"])
        found[f"{path.parent.name} ({settings})"] = record["reason"]
    return found


def _in_this_process(work: Callable[[], None]) -> str | None:
    """None, or why the work ended early."""
    try:
        work()
    except Stop as stop:
        return str(stop)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


def _in_a_child(work: Callable[[], None]) -> str | None:
    """The same in a process of its own, which may be killed."""
    importlib.import_module(".job", __package__)  # torch: once here, and not in each child
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: the child uses none of them
        child = os.fork()
    if child == 0:
        os.close(reader)
        _end_with_parent()
        status = 1
        try:
            reason = _in_this_process(work)
            os.write(writer, (reason or "").encode()[:4000])
            status = 0 if reason is None else 1
        except KeyboardInterrupt:
            status = 130
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            reason = pipe.read().decode(errors="replace")
        _, status = os.waitpid(child, 0)
    except BaseException:  # the user's Ctrl-C, or a signal: the member saves itself first
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    if os.WIFSIGNALED(status):
        return Killed(f"its process was killed by signal {os.WTERMSIG(status)} ({_signal_name(os.WTERMSIG(status))})")
    code = os.waitstatus_to_exitcode(status)
    if code in (130, 143):
        sys.exit(code)
    return None if code == 0 else reason or f"its process ended with status {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return "no name"


def _end_with_parent() -> None:
    """Linux: this process gets SIGTERM when its parent is killed, so that it saves itself and lets its folder go."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def points(config: DictConfig) -> list[list[str]]:
    """The overrides of every run of a sweep; other sweepers than Hydra's own choose their points as they go."""
    sweeper = config.hydra.sweeper
    if not sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
        return []
    lines = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    lines += list(config.hydra.overrides.task)
    batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(lines), None)
    result = [list(point) for batch in batches for point in batch]
    if not result:
        ranges = ", ".join(line.removeprefix("++") for line in lines)
        raise BadInput(f"the sweep has no point: a range in {ranges} is empty; give it at least one value")
    return result


def _claim(folder: Path, resumed: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=resumed)
        if resumed and any(folder.iterdir()) and not (folder / MULTIRUN).exists():
            raise BadInput(f"{folder} is not the folder of a sweep: it has no {MULTIRUN}; choose an empty one")
    except FileExistsError as error:
        raise BadInput(
            f"the sweep's folder {folder} exists already; choose another hydra.sweep.dir, or go on with resume={folder}"
        ) from error
    except OSError as error:
        raise BadInput(f"the sweep's folder {folder} cannot be made: {error.strerror}; set out=FOLDER") from error
