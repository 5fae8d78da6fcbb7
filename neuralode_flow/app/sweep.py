"""Runs and sweeps (-m) as Hydra starts them: folders are chosen and points are checked before anything is written.

The members of a sweep that have ended are left alone, the others go to Hydra's launcher. What fails, or is lost, says
why and does not stop the others. The same command with resume=FOLDER runs what is missing.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, configure_log
from hydra.experimental.callback import Callback
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ..compat import completed, compose_once, is_basic_sweeper, overrides_name, returned, sweep_points
from ..files import expanded
from ..garbage import uncollected
from . import launchers, local
from .errors import HYDRA_ERRORS, BadInput, Stop, StudyFailed, complain
from .members import Member, digest, find_folders, is_sweep
from .points import Points, composed, experiments_of, own, set_by
from .records import failure, undrawn
from .runfolder import FREE, ended, flat, going_on, has_saved, in_use, make, place, quoted
from .schema import DRAWN, Job, Machine, checked, idle_setting

_NUMBERED = "${hydra.job.num}"  # hydra.sweep.subdir, unless the user has another
_OWN_SWEEPS = "${out}/sweeps/"  # where hydra.sweep.dir is, unless the user has another

# Of the sweep of this process. Not of the callback: launchers pickle that.
_members: list[Member] = []


class Folders(Callback):
    """Hydra calls it before a run or a sweep, when nothing has been written yet, and after a sweep.

    Hydra turns the exceptions of a callback into warnings, but not SystemExit.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Gives a single run its folder, hydra.run.dir; ends the program if it has run, or another one has it."""
        with _refused():
            lines = config.hydra.overrides.task
            job = checked(own(config), lines, partial(_before_torch, config))
            _check_experiment(config, lines, job)
            wanted = config.hydra.run.dir
            folder = place(job, wanted if wanted != "." or _overridden(config, "hydra.run.dir") else None)
            with uncollected():
                from .job import finished  # it imports torch: --help stays fast

            if finished(folder, job):
                sys.exit(0)
        with read_write(config.hydra):
            config.hydra.run.dir = str(folder)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Ends the program with status 2 at the first bad point; else claims the sweep's folder."""
        _members.clear()
        with _refused():
            launchers.prepare(str(config.hydra.launcher._target_))
            own_part = Points(config)
            lines = [tuple(overrides) for overrides in points(config)]
            common = frozenset.intersection(*map(frozenset, lines))
            checked_points = {own: _job(config, own_part, own, common) for own in lines}
            _check_effects(checked_points, common)
            for overrides, job in checked_points.items():
                _check_experiment(config, overrides, job)
            _check_twice(lines, checked_points, common)
            sweep = _sweep_folder(config)
            _claim(sweep, config.resume is not False)
        compose_once(checked_points)
        _take_launcher(config, sweep, checked_points)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Says how many members have finished and why the others have not; the status is 1 if one has not."""
        folder = Path(config.hydra.sweep.dir)
        with _refused():
            found = [(member, _missing(member)) for member in _members]
        missing = [(member, why) for member, why in found if why is not None]
        for member, why in missing:
            complain(f"member {member.name} ({member.settings}) {why}")
        without = [said for member, why in found if why is None and (said := _undrawn(member))]
        for said in without:
            complain(said)
        if missing:
            # A run that has ended is not computed again, though it did not run whole.
            again = any(not member.refused and ended(member.folder) is None for member, _ in missing)
            others = "; " + going_on(folder, "runs the others") if again else ""
            complain(f"{len(_members) - len(missing)} of {len(_members)} members have finished in {folder}{others}")
        if missing or without:
            sys.exit(StudyFailed.status)


def _undrawn(member: Member) -> str | None:
    """What there is to say of a member that this command has run whole, but for a figure."""
    if not member.launched or (member.job is not None and member.job.machine.figures not in ("all", "png")):
        return None
    if (said := undrawn(member.folder)) is None:
        return None
    return f"member {member.name} ({member.settings}): the results are whole, in {member.folder}, but {said}"


def _before_torch(config: DictConfig, study: str, machine: Machine) -> None:
    """Has figures that are of this package alone drawn by another process."""
    with uncollected():
        from . import drawing, plugins  # --help stays fast

    if local.is_plain(config) and not plugins.installed() and not machine.plugins:
        log = partial(configure_log, config.hydra.job_logging, config.hydra.verbose)
        drawing.prepare(study, DRAWN[machine.figures], log)


def _missing(member: Member) -> str | None:
    """What there is to say of a member that has not finished."""
    if member.refused:
        return f"was not run: {member.refused}"
    reason = failure(member.folder)
    if reason is not None:
        return f"failed: {reason}"
    if ended(member.folder) is not None:
        return None
    if in_use(member.folder):
        return "is in use by another run, which goes on with it"
    why = member.lost or "it was ended from outside"
    return f"was lost: {why}; {'what it had reached is saved' if has_saved(member.folder) else 'it had saved nothing'}"


@contextmanager
def _refused() -> Iterator[None]:
    """What is bad ends the program with status 2; so does what is our own mistake, with status 1.

    Hydra would warn of it, and go on in another folder and without a check.
    """
    try:
        yield
    except (Stop, *HYDRA_ERRORS) as error:
        complain(error)
        sys.exit(error.status if isinstance(error, Stop) else BadInput.status)
    except Exception:
        traceback.print_exc()
        sys.exit(StudyFailed.status)


def _overridden(config: DictConfig, key: str) -> bool:
    return any(line.lstrip("+").partition("=")[0] == key for line in config.hydra.overrides.hydra)


def _unresolved(config: DictConfig, name: str) -> str:
    """hydra.sweep.NAME as it was written."""
    return str(OmegaConf.to_container(config.hydra.sweep, resolve=False)[name])  # type: ignore[index, call-overload]


def _check_effects(jobs: Mapping[tuple[str, ...], Job], common: Collection[str]) -> None:
    """Raises BadInput where what all points have in common changes none of them."""
    for line in next(iter(jobs), ()):
        whys = (idle_setting(job, line) for job in jobs.values()) if line in common else iter((None,))
        if (first := next(whys)) is not None and None not in whys:
            raise BadInput(first)


def _check_twice(
    lines: Sequence[tuple[str, ...]], jobs: Mapping[tuple[str, ...], Job], common: Collection[str]
) -> None:
    """Raises BadInput where two points have the same whole config: they would be taken for draws of their own."""
    seen: dict[str, str] = {}
    for overrides in lines:
        own = [line for line in overrides if line not in common] or overrides
        said = " ".join(line.removeprefix("++") for line in own)
        run = digest(flat(jobs[overrides].plain))
        if (before := seen.get(run)) is not None:
            both = f"two points, both {said}," if before == said else f"the points {before} and {said}"
            raise BadInput(f"{both} are one run, which the sweep would count twice; leave one of them out")
        seen[run] = said


def _check_experiment(config: DictConfig, lines: Iterable[str], job: Job) -> None:
    """Raises BadInput where an experiment file of the user's sets what changes nothing, here and by itself.

    What else the command line chooses may well make it idle.
    """
    for chosen, file in experiments_of(config, lines).items():
        idle = [line for line in set_by(file) if idle_setting(job, line) is not None]
        if not idle:
            continue
        try:
            alone = checked(own(composed(config, [chosen])))
        except BadInput:  # the command line completes it
            continue
        for line in idle:
            if (why := idle_setting(alone, line)) is not None:
                raise BadInput(f"{file}: {why}")


def _job(config: DictConfig, own_part: Points, overrides: Sequence[str], common: Collection[str]) -> Job:
    """The checked config of one point, which what is its own changes."""
    job = checked(own_part(overrides), [line for line in overrides if line not in common])
    if job.machine.resume is True:
        raise BadInput("resume=true finds single runs; with -m give the folder of the sweep, resume=FOLDER")
    if job.machine.resume != config.resume:
        raise BadInput(f"resume={job.machine.resume} cannot vary in a sweep; give one folder for all of its members")
    if config.resume is False:  # else a member may make one longer, and has its times
        job.time.check_times()
    return job


def _sweep_folder(config: DictConfig) -> Path:
    """The folder of the sweep, which is that of `resume` if there is one; Hydra is told then."""
    if config.resume is False:
        return Path(config.hydra.sweep.dir)
    folder, given = str(expanded(config.resume)), _unresolved(config, "dir")
    if not given.startswith(_OWN_SWEEPS) and Path(config.hydra.sweep.dir).absolute() != Path(folder).absolute():
        raise BadInput(
            f"hydra.sweep.dir={given} and resume={folder} are two folders for one sweep; leave one of them out"
        )
    with read_write(config.hydra):
        config.hydra.sweep.dir = folder
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(folder)}")
    return Path(folder)


def _claim(folder: Path, resumed: bool) -> None:
    if folder.exists() and not resumed:
        raise BadInput(
            f"the sweep's folder {folder} exists already; choose another hydra.sweep.dir, or go on with resume={folder}"
        )
    try:
        make(folder)
        used = any(folder.iterdir())
    except OSError as error:
        raise BadInput(f"the sweep's folder {folder} cannot be made: {error.strerror}; set out=FOLDER") from error
    if used and not is_sweep(folder):
        raise BadInput(f"{folder} is not the folder of a sweep: it has no multirun.yaml; choose an empty one")


def points(config: DictConfig) -> list[list[str]]:
    """The overrides of every run of a sweep; other sweepers than Hydra's own choose their points as they go."""
    sweeper = config.hydra.sweeper
    if not is_basic_sweeper(sweeper._target_):
        return []
    lines = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    lines += list(config.hydra.overrides.task)
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # which knows the names that glob() means
    result = sweep_points(parser.parse_overrides(lines))
    if not result:
        ranges = ", ".join(line.removeprefix("++") for line in lines)
        raise BadInput(f"the sweep has no point: a range in {ranges} is empty; give it at least one value")
    return result


def _take_launcher(config: DictConfig, sweep: Path, jobs: dict[tuple[str, ...], Job]) -> None:
    """Makes the launcher that was chosen launch only what is missing, each member in its own folder."""
    launcher: Any = get_class(config.hydra.launcher._target_)
    launch = getattr(launcher.launch, "__wrapped__", launcher.launch)
    for name in (launcher.__module__, f"{launcher.__module__.rpartition('.')[0]}._core"):
        logging.getLogger(name).addFilter(_is_no_member)

    @functools.wraps(launch)
    def launch_missing(self: Any, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        members = [Member(tuple(line), jobs.get(tuple(line))) for line in job_overrides]
        with _refused():
            _find_folders(config, sweep, members)
        _members.extend(members)
        waiting = [member for member in members if not _has_ended(member)]
        for member in waiting:
            member.launched = True
        try:
            with _told(config.verbosity != "quiet"):
                results = _launched(self, launch, config, sweep, waiting, initial_job_idx) if waiting else ()
        except KeyboardInterrupt:
            if "submitit" in launcher.__module__:
                complain("the jobs that were submitted go on; scancel ends them")
            raise
        for member, result in zip(waiting, map(returned, results)):
            if result is not None:  # an exception, or why the launcher has lost it
                member.lost = str(result)
        return [completed() for _ in members]

    launcher.launch = launch_missing


def _launched(
    launcher: Any, launch: Callable[..., Any], config: DictConfig, sweep: Path, members: Sequence[Member], first: int
) -> Sequence[JobReturn]:
    """Runs members, by the launcher where that does more than to call them."""
    if local.takes(config, launcher) and all(member.job for member in members):
        local.run_members(config, sweep, members)
        return ()
    lines = [[*member.overrides, f"hydra.sweep.subdir={quoted(member.name)}"] for member in members]
    return launch(launcher, lines, first)


@contextmanager
def _told(everything: bool) -> Iterator[None]:
    """Launchers say how many members they start, and where, unless only warnings are wanted."""
    before = logging.root.manager.disable
    logging.disable(before if everything else max(before, logging.INFO))
    try:
        yield
    finally:
        logging.disable(before)


def _is_no_member(message: logging.LogRecord) -> bool:
    """Whether a launcher says something else than which member it starts: that is said when it has ended."""
    return not message.getMessage().startswith("\t#")


def _find_folders(config: DictConfig, sweep: Path, members: Sequence[Member]) -> None:
    pattern = _unresolved(config, "subdir")
    try:
        find_folders(sweep, members, lambda m: str(m.number) if pattern == _NUMBERED else _subdir(config, m))
    except OSError as error:
        raise BadInput(f"the sweep's folder {sweep} cannot be used: {error.strerror or error}") from error
    for twice in (name for name, count in Counter(member.name for member in members).items() if count > 1):
        raise BadInput(f"hydra.sweep.subdir={pattern} gives several members the folder {twice}; use {_NUMBERED} in it")


def _subdir(config: DictConfig, member: Member) -> str:
    """What hydra.sweep.subdir is for a member; its number in the sweep takes the place of that in the command."""
    whole = composed(config, member.overrides)
    hydra, names = whole.hydra, whole.hydra.job.config.override_dirname
    lines = [line.removeprefix("++") for line in member.overrides]
    parsed = [line for line in OverridesParser.create().parse_overrides(lines) if line.key_or_group not in FREE]
    with read_write(hydra), open_dict(hydra):
        hydra.job.num = hydra.job.id = member.number
        hydra.job.override_dirname = overrides_name(parsed, **names)
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(whole)
        return str(hydra.sweep.subdir)
    finally:
        HydraConfig.instance().cfg = before


def _has_ended(member: Member) -> bool:
    """Whether there is nothing to run: it has ended, or its folder belongs to another run."""
    from .terminal import finished  # it imports torch: --help stays fast

    try:
        if not member.folder.is_dir():
            _check_place(member.folder)
            return False
        config, inputs = (member.job.to_yaml(), member.job.inputs) if member.job else (None, dict)
        if ended(member.folder, config, inputs) is None:
            return False
        if member.job is None or member.job.machine.verbosity != "quiet":
            finished(member.folder)
    except BadInput as error:
        member.refused = str(error)
    return True


def _check_place(folder: Path) -> None:
    """Raises BadInput where Hydra could not make the folder of a member, and would end the whole sweep."""
    nearest = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not nearest.is_dir():
        raise BadInput(f"{nearest} is no folder, which a member needs there; move it away")
