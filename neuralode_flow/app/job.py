"""One run: from a checked config to a folder of results."""

from __future__ import annotations

import json
import math
import platform
import shlex
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .. import results
from ..checks import is_memory
from ..depth import DEPTH_SOLVERS
from ..depth.grid import DepthGrid, Profile
from ..files import CONFIG, atomic_write
from ..finding import Finding, finite, is_of_members, plain
from ..flows.base import Flow
from ..initial import INITIALS
from ..intrinsic.systems import SYSTEMS, System
from ..problems import PROBLEMS, Problem
from ..signatures import parameters
from ..storable import REWRITTEN, storable
from ..studies import STUDIES
from ..studies.base import AnyClock, Clock, Schedule, Steps, Study, summarise
from ..studies.heldout import told
from ..threads import libraries
from ..untrusted import MOST_BYTES
from . import terminal
from .drawing import Drawing, begun
from .errors import BadInput, StudyFailed, complain, first_line
from .records import SUMMARY, UNDRAWN
from .report import Shown, write_report
from .runfolder import CHECKPOINTS, ended, going_on, has_saved, held, made_longer, makes_longer
from .schema import DRAWN, Depth, Descent, Job, Machine, Outputs

_MOST_SENT = 10**8  # bytes of a dataset that is copied to the process that draws
_LONG = 60.0  # seconds after which a run keeps its checkpoints
PACKAGES = ("torch", "torchdiffeq", "scipy", "numpy", "xarray", "hydra-core", "neuralode_flow")


def run(job: Job, command: str, folder: Path, resume: Path | None = None, member: str = "") -> Path:
    """Runs the study of a checked config, prints its results and writes its folder.

    Parameters
    ----------
    job : Job
    command : str
        The command line that repeats the run, for the report.
    folder : Path
        An existing folder for the results, empty or that of a started run.
    resume : Path, optional
        What is given as `resume` to go on with it; that of its sweep for a member of one, by default the folder.
    member : str, optional
        What tells a member of a sweep from the others: its results are printed in one line that begins with it.

    Returns
    -------
    Path of the folder, which has summary.json only if everything else was written.

    Raises
    ------
    BadInput
        If the problem, the initialisation or the folder cannot be made, or the folder belongs to another run.
    StudyFailed
        If the study raises, or returns, or has returned before, with another status than "ok", or a figure cannot be
        drawn (the results are written then).
    """
    started = time.perf_counter()
    said: list[str] = []
    prepare(job.machine)
    job, command = told_horizons(folder, job, command)
    if finished(folder, job):
        return folder
    inputs = job.inputs()
    with _warned(said):
        taken = build(job if job.ensemble is None else job.member(0))
    study = STUDIES[job.study.name]
    with held(folder, job.to_yaml(), lambda: _keeps(job, bool(member), time.perf_counter() - started)):
        if finished(folder, job):  # while this process was waiting for the folder
            return folder
        if makes_longer(folder, job.to_yaml()) and not has_saved(folder) and job.machine.verbosity != "quiet":
            complain(f"{folder} has kept no checkpoints: it is computed from the start again, with the old times")
        taken = _saved(taken, folder / CHECKPOINTS, job.machine.save_every)
        with _resumable(folder, resume or folder):
            with _warned(said), _failing("the study stopped"), terminal.progress(job.machine.verbosity) as report:
                dataset = found(job, taken, folder / CHECKPOINTS, report)
            with _failing(f"study={job.study.name} has ended, but cannot be summed up"):
                summary, finding = _summed_up(study, dataset, started, folder)
                dataset = _as_stored(dataset, said)
            with _failing(f"the results could not be written to {folder}"):
                summary |= {"warnings": said, "device": device_name(job.machine)}
                if inputs:
                    summary["inputs"] = inputs
                undrawn = write(folder, job, dataset, summary, command, bool(member))
    verbosity = job.machine.verbosity
    if member and verbosity == "normal":
        terminal.show_member(member, finding, folder, time.perf_counter() - started)
    else:
        terminal.show(finding.problem or _title(taken), finding, folder, verbosity, _more(summary))
    if finding.status != "ok":
        if ended(folder) is None:  # a budget was used up
            _say_saved(folder, resume or folder)
        raise StudyFailed(f"the study did not run whole: {finding.status}")
    if undrawn:
        raise StudyFailed(f"the results are whole, in {folder}, but {undrawn}")
    return folder


def _summed_up(study: Study, dataset: xr.Dataset, started: float, folder: Path) -> tuple[dict[str, Any], Finding]:
    """The summary of what a study returned, and its finding; where it has none its numbers are saved all the same."""
    try:
        summary = record(study, dataset, started)
        if (size := len(_json(summary))) > MOST_BYTES // 2:
            raise ValueError(
                f"its summary would have {size} bytes, of at most {MOST_BYTES // 2}; long lists are variables"
            )
        return summary, Finding.of(dataset, summary)
    except Exception as error:
        path = folder / results.FILE
        if path.exists():  # that of the run which this one makes longer
            raise
        try:
            results.write(path, dataset.assign_attrs(config=(folder / CONFIG).read_text(encoding="utf-8")))
        except Exception:  # the first of the two is to be mended first
            raise error from None
        raise ValueError(f"{error}; its dataset is in {path}") from error


def _as_stored(dataset: xr.Dataset, said: list[str]) -> xr.Dataset:
    """The dataset as results.nc holds it, and figures draw it now and later; what differs is said."""
    dataset = storable(dataset)
    told = dataset.attrs.get(REWRITTEN)
    if told is None and REWRITTEN in dataset.variables:
        told = f"members differ in what it is ({REWRITTEN} in it says so)"
    if told is not None:
        said.append(f"{results.FILE} holds the dataset otherwise than the study gave it, as netCDF cannot: {told}")
        complain(f"warning: {said[-1]}")
    return dataset


def _keeps(job: Job, member: bool, seconds: float) -> bool:
    """Whether an ended run keeps its checkpoints; a short one is as quickly repeated, members are in the results."""
    given = job.machine.keep_checkpoints
    if job.ensemble is not None:
        return False
    return not member and seconds >= _LONG if given is None else given


def told_horizons(folder: Path, job: Job, command: str) -> tuple[Job, str]:
    """The job and its command, with the horizons of the run in the folder which it makes longer, if there is one."""
    longer = made_longer(folder, job)
    if longer is not job and longer.time.extends:
        command = f"{command} {shlex.quote(f'time.extends={list(longer.time.extends)}'.replace(' ', ''))}"
    return longer, command


def found(job: Job, taken: dict[str, Any], checkpoints: Path, report: terminal.Report) -> xr.Dataset:
    """What the study finds, or all members of an ensemble of it."""
    if job.ensemble is None:
        return solved(job, taken, report)
    from .ensemble import solved as solved_together

    def one(member: Job, changed: Callable[[Any], Any]) -> xr.Dataset:
        parts = {name: changed(part) for name, part in build(member).items()}
        return solved(member, parts, lambda fraction, what: None)

    return solved_together(job, one, output_times(job.time), checkpoints, report)


def solved(job: Job, taken: dict[str, Any], report: terminal.Report) -> xr.Dataset:
    """What the study finds, with what was done to the data and the depth grid that was chosen."""
    study = STUDIES[job.study.name]
    hears = {"progress": report} if "progress" in parameters(study.run) else {}
    dataset = study.run(**taken, **job.study.parameters, **hears)
    if not isinstance(dataset, xr.Dataset):
        raise TypeError(
            f"study={job.study.name} gave {type(dataset).__name__} in place of an xarray.Dataset; its run must return "
            "`Finding(…).attached(dataset)`"
        )
    for problem in (part for part in taken.values() if isinstance(part, Problem)):
        dataset = told(dataset, problem)
    for solver in (taken[name] for name, group in study.inputs.items() if group == "depth"):
        dataset = _with_chosen(dataset, solver.grid, job.depth)
    return dataset


def _with_chosen(dataset: xr.Dataset, grid: DepthGrid, depth: Depth | None) -> xr.Dataset:
    """The dataset, whose finding and attributes say which depth grid was chosen where the config has its tolerance."""
    if depth is None or depth.tol is None:
        return dataset
    size = [grid.panels, grid.order]
    said = f"{grid.panels} × {grid.order} nodes, chosen by depth.tol={depth.tol}"
    if Finding.stated(dataset):
        finding = Finding.of(dataset)
        notes, numbers = {**finding.notes, "Depth grid": said}, {**finding.numbers, "depth_grid": size}
        dataset = replace(finding, notes=notes, numbers=numbers).attached(dataset)
    return dataset.assign_attrs(depth_grid=size)


def _more(summary: dict[str, Any]) -> dict[str, str]:
    """What is known of a run beside what it found."""
    versions = ", ".join(f"{name} {number}" for name, number in summary["versions"].items())
    known = {"device": summary["device"], "seconds": f"{summary['seconds']:.1f}", "versions": versions}
    return known | {f"warning {i}": text for i, text in enumerate(summary["warnings"], 1)}


def finished(folder: Path, job: Job) -> bool:
    """Whether the run has ended before, which is said then.

    Raises
    ------
    BadInput
        If another run has ended in this folder.
    StudyFailed
        If it has not run whole.
    """
    how = ended(folder, made_longer(folder, job).to_yaml(), job.inputs)
    if how is None:
        return False
    terminal.finished(folder, job.machine.verbosity)
    if how != "ok":
        raise StudyFailed(f"the study did not run whole: {how}")
    return True


def foreseen() -> None:
    """Looks up what all members of a sweep are told, before they are forked."""
    versions()
    git_commit()
    libraries()


def prepare(machine: Machine) -> None:
    """Float64 everywhere, on the device and with the number of threads of the config.

    What NumPy does about errors is its default: a plugin may have asked for exceptions, and what underflows is none.
    """
    torch.set_default_dtype(torch.float64)
    np.seterr(divide="warn", over="warn", under="ignore", invalid="warn")
    try:
        one = torch.eye(2, device=machine.device)
        torch.linalg.svdvals(one @ one).tolist()  # it is there, and computes
    except (RuntimeError, AssertionError) as error:  # torch raises either where a device is missing
        raise BadInput(f"device={machine.device} cannot be used here: {error}; set device=cpu") from error
    if machine.device != "cpu":  # a default device makes every call of torch slower
        torch.set_default_device(machine.device)
    elif torch.get_default_device().type != "cpu":  # a plugin has chosen another one
        torch.set_default_device(None)
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
        libraries().limit(limits=machine.threads)  # and of BLAS below NumPy and SciPy


def device_name(machine: Machine) -> str:
    """The device of a run, with the name of its make where that is known."""
    if machine.device != "cpu":
        return f"{machine.device} ({torch.cuda.get_device_name(machine.device)})"
    return f"cpu (threads: {torch.get_num_threads()})"


def build(job: Job) -> dict[str, Any]:
    """What the study takes in, by its parameters; what a part refuses is the user's to mend, but no lack of memory."""
    study = STUDIES[job.study.name]
    try:
        parts = _parts(job)
        taken = {name: parts[group] for name, group in study.inputs.items()}
        if isinstance(parts["time"], Steps) and study.trained is not None:
            _try(parts["time"], *study.trained(**taken, **job.study.parameters))
    except Exception as error:
        if is_memory(error):
            raise StudyFailed(f"memory ran out while the problem was made: {first_line(error)}") from error
        if isinstance(error, (ValueError, TypeError, OSError, RuntimeError)):
            raise BadInput(str(error)) from error
        raise
    return taken


def _try(steps: Steps, flow: Flow, start: Tensor | Profile) -> None:
    """Raises BadInput where the step rule cannot train a flow from a start."""
    try:
        steps.check(flow, start)
    except (TypeError, ValueError) as error:
        raise BadInput(f"time: {error}") from error


def _parts(job: Job) -> dict[str, Any]:
    """What each group of the config describes."""
    parts: dict[str, Any] = {"time": clock(job.time)}
    if job.problem is not None:
        parts["problem"] = PROBLEMS[job.problem.name](**job.problem.parameters)
    if job.initial is not None:
        parts["initial"] = INITIALS[job.initial.name](parts["problem"].z0.clone(), **job.initial.parameters)
    if job.depth is not None:
        parts["depth"] = DEPTH_SOLVERS[job.depth.name](_grid(job.depth, parts, job.machine.device))
    if job.system is not None:
        parts["system"] = SYSTEMS[job.system.name](**job.system.parameters)
    return parts


def _grid(depth: Depth, parts: Mapping[str, Any], device: str) -> DepthGrid:
    """The depth grid of the config, or the one that the start among the parts needs."""
    if depth.tol is not None:
        try:
            chosen = DepthGrid.auto(parts["initial"], depth.tol)
        except Exception as error:  # of a start of the user's, too
            if is_memory(error):
                raise
            said = f"{error}" if isinstance(error, ValueError) else f"the start ends in {type(error).__name__}: {error}"
            raise ValueError(f"depth.tol: {said}") from error
        return replace(DepthGrid.gauss(chosen.panels, chosen.order, device=device), chosen_by="depth.tol")
    assert depth.panels is not None
    assert depth.order is not None
    return DepthGrid.gauss(depth.panels, depth.order, device=device)


def clock(time: Outputs) -> AnyClock:
    """How a study moves through training time."""
    how = time.how()
    time.check_times()
    if isinstance(time, Descent):
        return Steps(times=output_times(time), settings=how.pop("options"), **how)
    return Clock(times=output_times(time), **how)


def output_times(time: Outputs) -> Tensor:
    """The output times of a run `(T,)`; those of the runs that it makes longer are the first of them, to the bit."""
    horizons = (*time.extends, time.horizon)
    spacing = time.spacing
    parts = [torch.linspace(0.0, horizons[0], time.samples, dtype=torch.float64)]
    for start, end in pairwise(horizons):
        number = max(1, math.ceil((end - start) / spacing - 1e-9))  # the last step is shorter where it has to be
        parts += [
            start + spacing * torch.arange(1, number, dtype=torch.float64),
            torch.tensor([end], dtype=torch.float64),
        ]
    return torch.cat(parts)


def _title(inputs: dict[str, Any]) -> str:
    """What is studied, in one sentence, as a problem or a system says it."""
    return next((part.title for part in inputs.values() if isinstance(part, (Problem, System))), "")


def _saved(inputs: dict[str, Any], folder: Path, every: float) -> dict[str, Any]:
    """The same, where runs of the study are saved in a folder each so many seconds of wall time."""
    return {
        name: replace(part, checkpoints=folder, save_every=every) if isinstance(part, Schedule) else part
        for name, part in inputs.items()
    }


@cache
def versions() -> dict[str, str]:
    """Those of Python and of what computes."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def record(study: Study, dataset: xr.Dataset, started: float) -> dict[str, Any]:
    """The summary with the seconds since `started` and the versions."""
    return summary_of(study, dataset) | {"seconds": time.perf_counter() - started, "versions": versions()}


def summary_of(study: Study, dataset: xr.Dataset) -> dict[str, Any]:
    """The study's own summary, or that of many members; NaN and infinity become None."""
    own = summarise if is_of_members(dataset) else study.summarise
    return finite(plain(own(dataset)))


def write(
    folder: Path, job: Job, dataset: xr.Dataset, summary: dict[str, Any], command: str, member: bool = False
) -> str:
    """Writes all files of a run; summary.json comes last, so that its presence marks a whole run.

    A member of a sweep has figures and a page where its config asks for figures. Where a figure raises, everything else
    is written; returns what is to be said of that.
    """
    undrawn = ""
    config = job.to_yaml()
    longer = makes_longer(folder, config)
    origin = {"config": config, "versions": json.dumps(summary["versions"]), "git_commit": git_commit()}
    dataset = dataset.assign_attrs(origin)
    draw = _drawing(folder, job, dataset, Finding.of(dataset, summary).problem)
    if not longer and dataset.nbytes < _MOST_SENT:
        draw = begun(draw)
    # Without the summary of the shorter one it is a run that has not ended, which the same command goes on with: at no
    # time does that stand beside the longer results.
    results.write(
        folder / results.FILE, dataset, (lambda: (folder / SUMMARY).unlink(missing_ok=True)) if longer else None
    )
    atomic_write(folder / CONFIG, config.encode())  # it may have begun with another budget
    if not member or job.machine.figures in ("all", "png"):
        try:
            shown = draw()
        except Exception as error:
            if isinstance(error, OSError) or is_memory(error):
                raise
            own = ["--plugins", ",".join(job.machine.plugins)] if job.machine.plugins else []
            again = f"mend it, and run neuralode-flow-plot {shlex.join([*own, str(folder)])}"
            shown, undrawn = [], f"{UNDRAWN}{type(error).__name__}: {error}; {again}"
            summary["warnings"] = [*summary["warnings"], undrawn]
        write_report(folder, summary, dataset, config, command, shown)
    atomic_write(folder / SUMMARY, _json(summary))
    return undrawn


def _json(summary: dict[str, Any]) -> bytes:
    return (json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


@cache
def git_commit() -> str:
    """The commit of the clone that this process was started from, with "+" if it was changed; empty outside a clone."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        answers = [
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True, timeout=10).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return ""
    return answers[0].strip() + ("+" if answers[1].strip() else "")


def _drawing(folder: Path, job: Job, dataset: xr.Dataset, said: str) -> Callable[[], list[Shown]]:
    """What draws the figures of a run."""
    workers = job.study.parameters.get("workers")  # a study of a user's own may call something else so
    return Drawing(
        folder.absolute(),
        job.study.name,
        DRAWN[job.machine.figures],
        workers if isinstance(workers, int) else None,
        dataset,
        said,
    )


@contextmanager
def _warned(said: list[str]) -> Iterator[None]:
    """Warnings about the computation as sentences on stderr, and in `said`: each once, also in a sweep."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, RuntimeWarning):
            return usual(message, category, *where, **more)
        if str(message) not in said:
            said.append(str(message))
            complain(f"warning: {message}")
        return None

    with warnings.catch_warnings():
        usual = warnings.showwarning
        warnings.simplefilter("always", RuntimeWarning)
        warnings.showwarning = show
        yield


@contextmanager
def _resumable(folder: Path, resume: Path) -> Iterator[None]:
    """Says how a run that is ended from outside, or that fails, goes on."""
    try:
        yield
    except BaseException:
        if has_saved(folder):
            _say_saved(folder, resume)
        raise


def _say_saved(folder: Path, resume: Path) -> None:
    complain(f"what was reached is saved in {folder}; {going_on(resume)}")


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Whatever is raised inside ends the run with status 1."""
    try:
        yield
    except OSError as error:
        raise StudyFailed(f"{what}: {error.strerror or error}") from error
    except Exception as error:
        if is_memory(error):
            raise StudyFailed(f"{what}: memory ran out: {first_line(error)}") from error
        raise StudyFailed(f"{what}: {type(error).__name__}: {error} (HYDRA_FULL_ERROR=1 shows where)") from error
