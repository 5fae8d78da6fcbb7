"""Runs of this process: a single one, and the members of a sweep, each forked from it with what it has imported.

Hydra's own launcher composes every member once more, which takes as long as a small one runs. The members are taken
from it where nothing in the config asks for what it does besides.
"""

from __future__ import annotations

import gc
import io
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import configure_log
from hydra.errors import HydraException
from omegaconf import DictConfig

from ..compat import is_basic_launcher, said_by_launcher
from .child import Unrecorded, run_member
from .errors import StudyFailed, told_to_end
from .members import Member
from .runfolder import discard_if_empty
from .schema import Job

PROGRAM = "neuralode-flow"
OURS = ["folders"]  # hydra.callbacks
CONFIG = "config"  # the name of the config that a command composes, unless --config-name says another one


def run(job: Job, command: str, folder: Path, resume: Path, member: str = "") -> None:
    """A run in a folder; a member of a sweep has a name."""
    from .job import run as carry_out  # it imports torch

    if not gc.get_freeze_count():
        gc.freeze()  # what is there now stays: nobody need look through it again
    quiet = member and job.machine.verbosity == "quiet"
    with redirect_stdout(io.StringIO()) if quiet else nullcontext():  # thousands of folders are no news
        try:
            carry_out(job, command, folder, resume, member)
        except SystemExit as stop:
            if told_to_end(stop):
                raise
            raise StudyFailed(f"the study did not run whole: it asked Python to end ({stop})") from stop


def member_name(folder: Path, sweep: Path, overrides: Sequence[str]) -> str:
    """The name of a member of a sweep, and its settings without those that the command line has for all."""
    name = os.path.relpath(folder, sweep)
    own = [line for line in overrides if line not in sys.argv and _key(line) not in _for_all(*sys.argv[1:])]
    return f"{name} ({' '.join(line.removeprefix('++') for line in own)})"


@cache
def _for_all(*arguments: str) -> frozenset[str]:
    """What a command line sets for all members, in whatever words: Hydra writes `false` as `False`."""
    found: dict[str, bool] = {}
    for argument in arguments:
        with suppress(HydraException):  # of what is no setting
            override = OverridesParser.create().parse_override(argument)
            found[_key(argument)] = found.get(_key(argument), True) and not override.is_sweep_override()
    return frozenset(key for key, for_all in found.items() if for_all)


def _key(line: str) -> str:
    return line.lstrip("+~").partition("=")[0]


def command_line(hydra: Any, overrides: Sequence[str], *, member: bool) -> str:
    """The command line that repeats a run, or a point of a sweep alone, with the sources of configs that Hydra has.

    What `resume` says in a sweep is the folder of that, which is none of a run.
    """
    own = [
        f"--config-dir={source.path}" for source in hydra.runtime.config_sources if source.provider == "command-line"
    ]
    if hydra.job.config_name != CONFIG:
        own.append(f"--config-name={hydra.job.config_name}")
    lines = [line.removeprefix("++") for line in overrides]
    return shlex.join([PROGRAM, *own, *(line for line in lines if not (member and line.startswith("resume=")))])


def takes(config: DictConfig, launcher: Any) -> bool:
    """Whether the members of a sweep need nothing of its launcher but to be run one after the other."""
    return is_basic_launcher(launcher) and is_plain(config)


def is_plain(config: DictConfig) -> bool:
    """Whether Hydra only calls a run: neither an environment, a folder, a log nor callbacks of others are asked for."""
    hydra = config.hydra
    asked = hydra.job.env_set, hydra.job.env_copy, hydra.job.chdir, hydra.output_subdir
    silent = hydra.runtime.choices.get("hydra/job_logging") == "none"
    return not any(asked) and silent and list(hydra.callbacks) == OURS


def run_members(config: DictConfig, sweep: Path, members: Sequence[Member]) -> None:
    """Runs members of a sweep one after the other; the same as Hydra's own launcher does, and says."""
    said_by_launcher(f"Launching {len(members)} jobs locally")
    configure_log(config.hydra.job_logging, config.hydra.verbose)
    for member in members:
        assert member.job is not None
        lines = [line for line in member.overrides if not line.lstrip("+~").startswith("hydra.")]
        folder = member.folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        command = command_line(config.hydra, lines, member=True)
        work = partial(run, member.job, command, folder, sweep, member_name(folder, sweep, lines))
        try:
            run_member(work, folder, lines)
        except Unrecorded as error:
            member.lost = str(error)
        discard_if_empty(folder)
