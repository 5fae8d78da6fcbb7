"""`neuralode_flow.run`: what the command does, called from Python, with its results in memory."""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import hydra
import numpy as np
import torch
import xarray as xr
from threadpoolctl import threadpool_limits

from .. import results
from ..compat import hydra_alone
from ..display import html_table
from ..files import as_path
from ..finding import Finding, plain
from ..registry import nearest
from ..studies import STUDIES
from ..untrusted import parse_yaml
from . import job as jobs
from .errors import HYDRA_ERRORS, BadInput, StudyFailed, sentence
from .groups import offer, plugins_of
from .helppage import names_of
from .main import GROUPS, PROGRAM, check_arguments, forced
from .plugins import load
from .runfolder import discard_unused, flat, make, quoted
from .schema import Job, checked

if TYPE_CHECKING:
    from ..figures import Figures

# Settings of the command that say where results go.
_PLACES = ("out", "resume")
_WORDS = ("true", "false", "null", "none", "inf", "nan", "yes", "no", "on", "off")


@dataclass(frozen=True, eq=False)
class StudyRun:
    """A study that was run.

    Attributes
    ----------
    dataset : xarray.Dataset
        As in results.nc.
    finding : Finding
        What was found, with its checks; `finding.passed` says whether all of them hold.
    config : dict
        Every setting, as in config.yaml.
    command : str
        The command line that does the same.
    folder : Path or None
        Where it lies on disk, if it does.

    Examples
    --------
    >>> found = nf.run("quick", {"study.depths": [4, 8, 16]})
    >>> found.dataset.sizes["depth"], found.config["problem"]["name"], sorted(found.figures)[0]
    (3, 'linnerud', 'loss')
    """

    dataset: xr.Dataset
    finding: Finding
    config: dict[str, Any]
    command: str
    folder: Path | None = None

    @property
    def figures(self) -> Figures:
        """The figures of the study by name, drawn anew."""
        from ..figures import FIGURES, figure_set  # with Matplotlib, which a study without figures has no use for

        name = figure_set(self.config["study"]["name"], self.dataset)
        return FIGURES[name](self.dataset) if name in FIGURES else {}

    def __repr__(self) -> str:
        chosen = [f"{group}={self.config[group]['name']}" for group in ("problem", "system") if group in self.config]
        return f"StudyRun({', '.join([*self.finding.in_short, *chosen])})"

    def _repr_html_(self) -> str:
        rows = [("command", self.command)] + ([("folder", str(self.folder))] if self.folder else [])
        return f"{self.finding._repr_html_()}{html_table('run', rows)}"


def run(
    name: str, overrides: Mapping[str, Any] | None = None, /, *, folder: str | Path | None = None, **groups: Any
) -> StudyRun:
    """Runs a study or an experiment by its name, as the command does, in this process.

    Parameters
    ----------
    name : str
        A study (a name in `STUDIES`, or of a plugin), or an experiment (a file of conf/experiment). Of a name that both
        have, such as "momentum", it is the study, with the defaults of the command; ``experiment="momentum"`` among the
        settings makes it the experiment, with its problem and tolerances.
    overrides : mapping, optional
        Settings by their dotted names, ``{"study.depths": [4, 8], "problem": "digits"}``.
    folder : path, optional
        A folder for results, new or empty, which gets all that the command writes; one that holds a part of the same
        run goes on, and of a whole one the results are read. A whole one goes on, too, to a longer ``time.horizon``:
        its times stay, and others at the same distances follow. Without a folder nothing is written.
    **groups
        A group by name, ``problem="digits"``, or its fields, ``time={"horizon": 1.0}``, with the name among them if it
        is another one, ``problem={"name": "teacher", "dimension": 3}``; also fields of no group, ``threads=2``.

    Returns
    -------
    StudyRun
        Also where the study did not run whole: `finding.status` then says why.

    Raises
    ------
    ValueError
        If a name or a setting is not valid, with the sentence that the command prints; nothing is written then.
    RuntimeError
        If the results cannot be written; also if the study raises with a folder. Without one its own error comes.

    Notes
    -----
    Torch's default dtype and device and the numbers of threads are those of the config while the study runs (float64,
    ``device="cpu"``, ``threads=1``), and after it what they were. They are those of the whole process: runs that are
    called from several threads wait for one another, and processes run side by side. What NumPy says of errors is its
    default, whatever `numpy.seterr` was given.

    Examples
    --------
    >>> nf.run("quick", {"study.depths": [4, 8, 16]}, time={"horizon": 0.5, "samples": 3}).finding.study
    'convergence'
    >>> found = nf.run("convergence", problem="linnerud", study={"depths": [4, 8, 16, 32], "layers": ["cayley"]})
    >>> found.finding.status, round(float(found.dataset.order.sel(rule="cayley")), 1)
    ('ok', 2.0)
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be that of an experiment or a study, got {name!r}")
    with _alone():
        return _run(name, {**_mapping(overrides), **groups}, folder)


def _run(name: str, settings: Mapping[str, Any], folder: str | Path | None) -> StudyRun:
    for key in _PLACES:
        if key in settings:
            raise ValueError(f"{key}={settings[key]} is for the command line; give folder=FOLDER, which also goes on")
    try:
        lines = [line for key, value in settings.items() for line in _lines(key, value)]
        load(plugins_of(lines))  # a study may be theirs
        lines.insert(0, f"{_group(name, settings)}={_text('name', name)}")
        check_arguments(lines)
        job = _composed(lines)
        command = shlex.join([PROGRAM, *lines])
        with _restored(job.machine.device), _plainly():
            return _in_memory(job, command) if folder is None else _on_disk(job, command, as_path("folder", folder))
    except (BadInput, *_HYDRAS) as error:
        raise ValueError(sentence(error)) from error


def _group(name: str, settings: Mapping[str, Any]) -> str:
    """What a name chooses: a study, else an experiment; of a name that is neither, the group with the nearest one."""
    near = nearest(name, [*STUDIES, *names_of("experiment")])
    return "study" if near in STUDIES and "experiment" not in settings else "experiment"


_HYDRAS = tuple(kind for kind in HYDRA_ERRORS if kind is not ValueError)


def _mapping(overrides: Any) -> Mapping[str, Any]:
    if overrides is not None and not isinstance(overrides, Mapping):
        raise TypeError(f'overrides must be a mapping such as {{"study.depths": [4, 8]}}, got {overrides!r}')
    return overrides or {}


def _lines(key: str, value: Any) -> Iterator[str]:
    """A setting as overrides of the command line."""
    if not isinstance(key, str) or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise BadInput(f"a setting must have a name such as study.depths, got {key!r}")
    if not isinstance(value, Mapping):
        yield f"{key}={_text(key, value)}"
        return
    fields = dict(value)
    if key in GROUPS and "name" in fields:
        yield f"{key}={_text(key, fields.pop('name'))}"
    yield from (f"{name}={_text(name, item)}" for name, item in flat(fields, f"{key}.").items() if fields)


def _text(key: str, value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, range):
        return quoted(f"range({value.start},{value.stop},{value.step})")
    value = plain(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list):
        return f"[{','.join(_text(key, item) for item in value)}]"
    if isinstance(value, (str, Path)):
        text = str(value)
        bare = re.fullmatch(r"[A-Za-z_]\w*", text, re.ASCII) and text.lower() not in _WORDS
        return text if bare else quoted(text)
    raise BadInput(f"{key} must be a number, text, a list of these or None, got {type(value).__name__}")


def _composed(lines: list[str]) -> Job:
    """The checked config of a command line."""
    with hydra_alone():
        offer(lines)
        with hydra.initialize_config_module("neuralode_flow.conf", version_base="1.3"):
            return checked(hydra.compose("config", overrides=[forced(line) for line in lines]), lines)


_turn = threading.Lock()
_has_turn: ContextVar[bool] = ContextVar("_has_turn", default=False)  # also in threads that the run itself starts


def _forget_turns() -> None:
    """In a process that is forked while another thread runs, that thread is not there to end its turn."""
    global _turn
    _turn = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_turns)


@contextmanager
def _alone() -> Iterator[None]:
    """Runs of several threads one after the other: Hydra, torch and the standard streams are those of the process.

    A study may call `run` itself.
    """
    if _has_turn.get():
        yield
        return
    with _turn:
        token = _has_turn.set(True)
        try:
            yield
        finally:
            _has_turn.reset(token)


class _Hushed:
    """A stream that takes what a run prints; what other threads print meanwhile goes where it would."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """The number of characters that were taken."""
        return len(text) if _has_turn.get() else int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _restored(wanted: str) -> Iterator[None]:
    """Puts back what a run on that device sets in torch, in NumPy and in the libraries of threads."""
    dtype, device, threads = torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()
    ours = torch.device("cpu") if wanted == "cpu" != device.type else nullcontext()
    with threadpool_limits(), np.errstate():
        try:
            with ours:
                yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)
            if torch.get_default_device() != device:
                torch.set_default_device(device if device.type != "cpu" else None)


@contextmanager
def _plainly() -> Iterator[None]:
    """What cannot go on, though the input was accepted, is a RuntimeError."""
    try:
        yield
    except StudyFailed as stop:
        raise RuntimeError(str(stop)) from stop


def _in_memory(job: Job, command: str) -> StudyRun:
    jobs.prepare(job.machine)
    with TemporaryDirectory() as parts:  # of many members
        taken = jobs.build(job) if job.ensemble is None else {}
        dataset = jobs.found(job, taken, Path(parts), lambda fraction, what: None)
    return _found(job, command, dataset.assign_attrs(config=job.to_yaml()), None)


def _on_disk(job: Job, command: str, folder: Path) -> StudyRun:
    try:
        make(folder)
        job, command = jobs.told_horizons(folder, job, command)
        with redirect_stdout(_Hushed(sys.stdout or io.StringIO())):
            jobs.run(job, command, folder)
    except StudyFailed:
        if not (folder / results.FILE).exists():
            raise
    except OSError as error:
        raise BadInput(f"folder={folder} cannot hold results: {error.strerror}") from error
    finally:
        discard_unused()
    return _found(job, command, results.open(folder), folder)


def _found(job: Job, command: str, dataset: xr.Dataset, folder: Path | None) -> StudyRun:
    finding = Finding.of(dataset, jobs.summary_of(STUDIES[job.study.name], dataset))
    return StudyRun(dataset, finding, parse_yaml(job.to_yaml()), command, folder)
