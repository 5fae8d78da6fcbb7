"""The config as checked values: every key, type and range is looked at before any work starts.

The fields of a section are the keyword parameters of what it configures: of the dataclasses below, and of the builder
that is registered under the section's name. A signature is thus the only place that lists names, types, ranges and
defaults.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..files import digest, expanded
from ..garbage import uncollected
from ..registry import Registry, nearest
from ..signatures import Count, Positive, Range, Seed, Workers, at_least, at_most, idle, known, settings
from ..untrusted import printable
from .errors import BadInput, first_line

# Sizes far beyond what can be run: they are refused by name before anything is made.
MOST_NODES, MOST_ORDER, MOST_TIMES = 65_536, 512, 10**6


@dataclass(frozen=True)
class Depth:
    """The inner solve: `panels` equal panels of `order` Gauss–Legendre nodes on [0, 1], or those that `tol` chooses."""

    name: str = "collocation"
    panels: Count | None = 4
    order: Annotated[int, at_least(1), at_most(MOST_ORDER)] | None = 12
    tol: Positive | None = None

    def __post_init__(self) -> None:
        if self.tol is not None:
            for name in ("panels", "order"):
                object.__setattr__(self, name, None)
        elif self.panels is None or self.order is None:
            name = "panels" if self.panels is None else "order"
            raise BadInput(f"depth.{name} must be an integer, got None; or set depth.tol, which chooses both")
        elif self.panels * self.order > MOST_NODES:
            most = MOST_NODES // self.order
            raise BadInput(f"depth.panels must be at most {most} with depth.order={self.order}, got {self.panels}")


@dataclass(frozen=True)
class Outputs:
    """The outer solve, of whatever kind: `samples` equally spaced times in [0, horizon].

    `max_evaluations` is a budget of each integration, `max_seconds` one of the whole run, in seconds of wall time.
    Where the run makes others longer, `extends` has their horizons: the samples lie in the first of them, and times at
    the same distances follow, of which one is the end of each.
    """

    horizon: Positive = 2.0
    samples: Annotated[int, at_least(2), at_most(MOST_TIMES)] = 21
    max_evaluations: Count | None = None
    max_seconds: Positive | None = None
    extends: Sequence[float] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "extends", tuple(self.extends))
        ends = (0.0, *self.extends, self.horizon)
        if any(end <= start for start, end in pairwise(ends)):
            raise BadInput(
                f"time.extends must be horizons that grow, from above 0 to below time.horizon={self.horizon}, got "
                f"{list(self.extends)}; leave it out, resume=FOLDER with a longer time.horizon sets it"
            )
        if self.horizon / ends[1] * (self.samples - 1) >= MOST_TIMES:
            raise BadInput(
                f"time.horizon={self.horizon} is too far beyond {ends[1]} for samples at the same distances, of which "
                f"there can be {MOST_TIMES}; choose a nearer one, or start a new run"
            )

    @property
    def spacing(self) -> float:
        """The distance of two output times."""
        return (self.extends or (self.horizon,))[0] / (self.samples - 1)

    def check_times(self) -> None:
        """Raises BadInput unless a run can come to all output times; one that is made longer has them from before."""

    def flat(self) -> dict[str, Any]:
        """All fields in one mapping, as in the config."""
        return asdict(self)

    def how(self) -> dict[str, Any]:
        """The fields that do not say where the output times lie."""
        return {name: value for name, value in asdict(self).items() if name not in ("horizon", "samples", "extends")}


@dataclass(frozen=True)
class Time(Outputs):
    """The outer solve along a flow: a method, its tolerances, or its fixed step."""

    method: str = "DOP853"
    rtol: Positive = 1e-10
    atol: Positive = 1e-12
    step: Positive | None = None


@dataclass(frozen=True)
class Descent(Outputs):
    """The outer solve in steps: a step rule, its rate, and its options, which stand beside them in the config."""

    rule: str = "gd"
    rate: Positive = 0.01
    options: Mapping[str, Any] = field(default_factory=dict)

    def check_times(self) -> None:
        """Raises BadInput unless steps end at all output times."""
        if not _divides(self.rate, self.spacing):
            fewer = max(1, math.floor(self.spacing / self.rate))
            near = " and ".join(_dividing(self.spacing, number) for number in (fewer, fewer + 1))
            raise BadInput(
                f"time.rate={self.rate} does not divide the distance {self.spacing:.6g} of two output times "
                f"(time.horizon over time.samples - 1), at which steps must end; the nearest that do are {near}"
            )
        for end in (*self.extends, self.horizon):
            if not _divides(self.spacing, end):
                before = math.floor(end / self.spacing)
                near = " and ".join(f"{self.spacing * number:.6g}" for number in (before, before + 1))
                raise BadInput(
                    f"time.horizon={end} is no multiple of the distance {self.spacing:.6g} of two output times, at "
                    f"which training in steps is recorded; the nearest that are {near}"
                )

    def flat(self) -> dict[str, Any]:
        fields = asdict(self)
        return fields | fields.pop("options")


def _divides(part: float, whole: float) -> bool:
    """Whether a number is a whole multiple of another, up to what is lost where both are written down."""
    return round(whole / part) >= 1 and abs(round(whole / part) * part - whole) <= 1e-9 * whole


def _dividing(whole: float, number: int) -> str:
    """The part of a number that goes into it so many times, in as few digits as `_divides` takes."""
    texts = (f"{whole / number:.{digits}g}" for digits in range(2, 18))
    return next(text for text in texts if round(whole / float(text)) == number and _divides(float(text), whole))


# The files that are drawn of each figure.
DRAWN: dict[str, tuple[str, ...]] = {"auto": ("png", "pdf"), "all": ("png", "pdf"), "png": ("png",), "none": ()}

VERBOSITY = ("quiet", "normal", "verbose")


@dataclass(frozen=True)
class Machine:
    """Where results go and what computes them; these fields lie at the top of the config.

    `resume` is the folder of a run to go on with (or an empty one to start), true for the newest unfinished run of the
    same config, or false; `save_every` the seconds of wall time between two savings. What was saved last is kept when a
    run has ended, so that a longer one goes on there, or is not (`keep_checkpoints`); null keeps that of single runs
    which took longer than a minute. Figures are drawn as PNG and PDF (`figures` all), as PNG alone (png), or not at all
    (none); auto draws all of a run, and nothing of a member of a sweep, which has no page then either. What is printed
    is the folder alone (`verbosity` quiet), the verdict with its numbers (normal), or all that is known (verbose).
    `plugins` are modules that register rules, losses, systems, … of the user's own; they are looked for in the current
    folder too. `at_once` is how many members of an ensemble one process has in memory; null chooses it by their size.
    """

    out: str = "runs"
    device: str = "cpu"
    threads: Workers | None = 1
    resume: bool | str = False
    save_every: float = 60.0
    keep_checkpoints: bool | None = None
    figures: Annotated[str, known(DRAWN, "choice of figures")] = "auto"
    verbosity: Annotated[str, known(VERBOSITY, "verbosity")] = "normal"
    plugins: Sequence[str] = ()
    at_once: Count | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "plugins", tuple(self.plugins))
        if not self.out:
            raise BadInput("out must be the folder for results, got ''; set out=FOLDER")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise BadInput(f"unknown device {self.device!r} (valid: cpu, cuda, cuda:N); set device=cpu")
        if self.resume == "":
            raise BadInput("resume must be true, false or the folder of a run, got ''; set resume=FOLDER")
        if self.save_every < 0:
            raise BadInput(f"save_every must be at least 0 seconds, got {self.save_every!r}")


@dataclass(frozen=True)
class Choice:
    """An entry of a registry by its name, and the keyword arguments for it."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """Name and arguments in one mapping, as in the config."""
        return {"name": self.name, **self.parameters}


@dataclass(frozen=True)
class Ensemble:
    """The members of one run, which differ in their seeds alone.

    Attributes
    ----------
    given : int or mapping
        As the config has it.
    seeds : dict of str to sequence of int
        Of each section of the config the seeds of its members, as many as there are.
    """

    given: Any
    seeds: Mapping[str, Sequence[int]]

    def __len__(self) -> int:
        return len(next(iter(self.seeds.values())))

    @property
    def settings(self) -> dict[str, Sequence[int]]:
        """The same, by the names of the settings."""
        return {f"{section}.seed": seeds for section, seeds in self.seeds.items()}

    @property
    def swept(self) -> str:
        """The overrides of a sweep of them, in words."""
        return "-m " + " ".join(
            f"{name}={','.join(map(str, seeds[:3]))}{',…' if len(seeds) > 3 else ''}"
            for name, seeds in self.settings.items()
        )

    def name(self, i: int) -> str:
        """The seeds of a member in words."""
        own = {seeds[i] for seeds in self.seeds.values()}
        if len(own) == 1:
            return f"seed {own.pop()}"
        return " ".join(f"{name}={seeds[i]}" for name, seeds in self.settings.items())


@dataclass(frozen=True)
class Job:
    """The checked config of one run; the study decides which of the first four it has."""

    problem: Choice | None
    initial: Choice | None
    system: Choice | None
    depth: Depth | None
    time: Time | Descent
    study: Choice
    machine: Machine
    ensemble: Ensemble | None = None

    def member(self, i: int) -> Job:
        """The run of one member of the ensemble alone."""
        assert self.ensemble is not None
        own: dict[str, Any] = {}
        for section, seeds in self.ensemble.seeds.items():
            choice = getattr(self, section)
            own[section] = replace(choice, parameters=choice.parameters | {"seed": seeds[i]})
        return replace(self, ensemble=None, **own)

    @cached_property
    def plain(self) -> dict[str, Any]:
        """The resolved config as its YAML is read, every field written out but where it was resumed."""
        parts = {name: getattr(self, name) for name in SECTIONS}
        sections = {
            name: asdict(part) if isinstance(part, Depth) else part.flat() for name, part in parts.items() if part
        }
        machine = {name: value for name, value in asdict(self.machine).items() if name != "resume"}
        members = {} if self.ensemble is None else {"members": self.ensemble.given}
        return typing.cast("dict[str, Any]", _read_back(sections | machine | members))

    @cached_property
    def _yaml(self) -> str:
        return OmegaConf.to_yaml(OmegaConf.create(self.plain))

    def to_yaml(self) -> str:
        """The same as YAML."""
        return self._yaml

    def inputs(self) -> dict[str, str]:
        """The SHA-256 of each file that the problem is read from, by the setting that names it, and of plugins.

        Of those that are named, which are of one's own: that a package has another version, which may have no part in a
        run, is no reason to compute it again.
        """
        from .plugins import sources

        known = sources(self.machine.plugins)
        return self._tables() | {f"{PLUGIN}{name}": known[name] for name in self.machine.plugins if name in known}

    def _tables(self) -> dict[str, str]:
        if self.problem is None:
            return {}
        from ..problems import PROBLEMS, InputFile

        fields = settings(PROBLEMS[self.problem.name])
        given = {
            key: value
            for key, value in self.problem.parameters.items()
            if isinstance(value, str)
            and InputFile in (fields[key].annotation, *typing.get_args(fields[key].annotation))
        }
        paths = {f"problem.{key}": expanded(value) for key, value in given.items()}
        return {key: digest(path) for key, path in paths.items() if path.is_file()}


def _read_back(node: Any) -> Any:
    """What a reader of YAML makes of a config: it knows no tuples."""
    if isinstance(node, Mapping):
        return {key: _read_back(value) for key, value in node.items()}
    return [*map(_read_back, node)] if isinstance(node, (list, tuple)) else node


PLUGIN = "plugin "  # begins the name of an input that is a module of the user's own
SECTIONS = ("problem", "initial", "system", "depth", "time", "study")


def checked(
    config: DictConfig | Mapping[str, Any],
    lines: Iterable[str] = (),
    before: Callable[[str, Machine], object] | None = None,
) -> Job:
    """The config of one run, checked; what needs torch is imported after the rest has passed.

    Parameters
    ----------
    config : DictConfig or mapping
    lines : iterable of str, optional
        The overrides that it is made of: those of sections must have an effect.
    before : callable, optional
        What is done just before, with the name of the study and what is known of the machine.

    Raises
    ------
    BadInput
        At the first key that is unknown or missing, or value that is of the wrong type, out of range or not a valid
        name. The message has the key, the value that came, and what is valid.
    """
    top = _plain(config)
    _check_texts({key: value for key, value in top.items() if key != "resume"})
    loose = {key: value for key, value in top.items() if key not in (*SECTIONS, "members")}
    machine = Machine(**_arguments("", loose, Machine))
    sections = {name: _section(name, top.get(name)) for name in SECTIONS}
    depth = Depth(**_arguments("depth", sections["depth"], Depth)) if sections["depth"] else None
    time = _time(_needed("time", sections))

    if before is not None:
        before(str(sections["study"].get("name")), machine)
    # The registries import torch (2 s), so that they come last; then what adds to them.
    with uncollected():
        from ..depth import DEPTH_SOLVERS
        from .groups import registries
        from .plugins import load

        makers = registries()
    studies = makers["study"]
    load(machine.plugins)
    if depth is not None:
        _keeps_to([known(DEPTH_SOLVERS)], "depth.name", depth.name)
    time = _looked_up(time, sections["time"])
    study = _choice("study", _needed("study", sections), studies, maker="run")
    if isinstance(time, Descent) and not studies[study.name].takes_steps:
        raise BadInput(_no_steps(study.name, studies))
    needed = studies[study.name].groups | {"time", "study"}
    for name in SECTIONS:
        if name in needed:
            _needed(name, sections)
        elif sections[name] and "name" not in sections[name]:
            # A group that was chosen by name may come from the defaults; a lone field was set on purpose.
            key, value = next(iter(sections[name].items()))
            raise BadInput(_no_effect(f"{name}.{key}={value}", study.name, name))
    chosen = {
        name: _choice(name, sections[name], registry) if name in needed else None
        for name, registry in makers.items()
        if name != "study"
    }
    job = Job(
        **chosen,
        depth=depth if "depth" in needed else None,
        time=time,
        study=study,
        machine=machine,
        ensemble=None,
    )
    given = top.get("members")
    if given is not None:
        job = replace(job, ensemble=_ensemble(given, job))
        _check_axes(job)
    _check_chosen_grid(job)
    for line in lines:
        if (why := idle_setting(job, line)) is not None:
            raise BadInput(why)
    return job


def _check_texts(node: Any, key: str = "") -> None:
    """Raises BadInput at a text that is no Unicode, such as a name in another encoding: config.yaml cannot hold it."""
    if isinstance(node, Mapping):
        for name, item in node.items():
            _check_texts(item, f"{key}.{name}".removeprefix("."))
    elif isinstance(node, (list, tuple)):
        for item in node:
            _check_texts(item, key)
    elif isinstance(node, str) and not node.isascii():
        try:
            node.encode()
        except UnicodeEncodeError as error:
            raise BadInput(
                f"{key}={printable(node)} is no text in UTF-8, as config.yaml has to be, so that no run could be taken "
                f"up again; give the file or folder another name"
            ) from error


# What an override sets of a section: `time.horizon=2`, or `problem=digits`; with Hydra's signs or without.
_SETTING = re.compile(rf"\+*(?P<setting>(?P<key>(?P<section>{'|'.join(SECTIONS)})(\.[^=]*)?)=(?!null$).*)", re.DOTALL)


def idle_setting(job: Job, line: str) -> str | None:
    """Why an override changes nothing of a job, in words; None where it does."""
    from ..studies import STUDIES

    if (said := _SETTING.match(line)) is None:
        return None
    setting, section, name = said["setting"], said["section"], said["key"].partition(".")[2]
    study, choice = STUDIES[job.study.name], getattr(job, section)
    if section not in study.groups | {"study"}:
        # Members have a budget of wall time together, also where each takes none.
        shared = said["key"] == "time.max_seconds" and job.ensemble is not None
        return None if shared else _no_effect(setting, job.study.name, section)
    if name and name not in study.reads.get(section, (name,)):
        own = ", ".join(f"{section}.{field}" for field in study.reads[section])
        return f"{setting} has no effect: study={job.study.name} uses of {section} only {own}; leave it out"
    if section == "depth" and name in ("panels", "order") and choice.tol is not None:
        return f"{setting} has no effect with depth.tol={choice.tol}, which chooses the nodes; leave one of them out"
    if name == "seed" and job.ensemble is not None and section in job.ensemble.seeds:
        lists = " ".join(f"members.{other}=[...]" for other in job.ensemble.settings)
        return f"{setting} has no effect: members have seeds of their own; leave it out, or list them, {lists}"
    others = _idle(section, choice, name) if isinstance(choice, Choice) else ""
    return f"{setting} has no effect with {others}; change that, or leave it out" if others else None


def _no_effect(setting: str, study: str, section: str) -> str:
    return f"{setting} has no effect: study={study} uses no {section}; leave it out"


def _idle(section: str, choice: Choice, name: str) -> str:
    """The settings of a section, in words, with which another one of it has no effect."""
    from .groups import registries

    entry = registries()[section][choice.name]
    others = idle(entry.run if section == "study" else entry, name, choice.parameters)
    return " and ".join(f"{section}.{other}={choice.parameters[other]}" for other in others)


# Sections whose seeds members differ in: those of problem and start, and where these have none, of what else has one.
_SEEDED = (("problem", "initial"), ("system", "study"))
_MOST_MEMBERS = 10**6
_RANGE = re.compile(r"range\((\d+)(?:, *(\d+))?(?:, *(\d+))?\)")


def _ensemble(given: Any, job: Job) -> Ensemble:
    """The members that the config asks for by `members`: a number of them, or the seeds of each section."""
    chosen = {section: choice for kind in _SEEDED for section in kind if (choice := getattr(job, section)) is not None}
    seeded = [section for section, choice in chosen.items() if has_seed(section, choice)]
    if not seeded:
        idling = [said for section, choice in chosen.items() if (said := _idle(section, choice, "seed"))]
        has = ", ".join(f"{section}={choice.name}" for section, choice in chosen.items())
        that = f" that has an effect with {' and '.join(idling)}" if idling else ""
        raise BadInput(f"members={given} has nothing to vary: none of {has} has a seed{that}; leave it out")
    if isinstance(given, Mapping):
        seeds = {key: _seeds(key, value, seeded) for key, value in given.items()}
        lengths = {f"members.{key}.seed": len(values) for key, values in seeds.items()}
        if len(set(lengths.values())) > 1:
            said = " and ".join(f"{number} in {key}" for key, number in lengths.items())
            raise BadInput(f"members must have one seed each in every list, got {said}; make the lists equally long")
        if not seeds:
            raise BadInput("members must be a number, or seeds, got {}; set members=N")
        ensemble, seen = Ensemble(given, seeds), set[tuple[int, ...]]()
        for i, own in enumerate(zip(*seeds.values(), strict=True)):
            if own in seen:  # a mean would take it for another draw
                raise BadInput(f"members must differ, got {ensemble.name(i)} twice; give each of them once")
            seen.add(own)
        return ensemble
    number = typed("members", given, Annotated[int, at_least(1), at_most(_MOST_MEMBERS)])
    return Ensemble(number, dict.fromkeys(varied(seeded), range(number)))


def _check_axes(job: Job) -> None:
    """Raises BadInput if members of the study have axes of their own, so that no dataset can hold them."""
    from .groups import registries

    assert job.ensemble is not None
    for name, sections in registries()["study"][job.study.name].own_axes.items():
        of = [section for section, seeds in job.ensemble.seeds.items() if section in sections and len({*seeds}) > 1]
        if of:
            raise BadInput(
                f"members of study={job.study.name} have no one axis {name}, which follows from "
                f"{' and '.join(f'{section}.seed' for section in of)}; run them as a sweep, {job.ensemble.swept}"
            )


def _check_chosen_grid(job: Job) -> None:
    """Raises BadInput where the grid is to be chosen by a start, and there is none, or one of each member."""
    from .groups import registries

    if job.depth is None or job.depth.tol is None:
        return
    wanted = f"depth.tol={job.depth.tol} chooses the grid of one start"
    if "depth" not in registries()["study"][job.study.name].inputs.values():  # it takes the group, and reads nothing
        raise BadInput(_no_effect(f"depth.tol={job.depth.tol}", job.study.name, "depth"))
    if job.initial is None:
        raise BadInput(f"{wanted}, and study={job.study.name} has its own; set depth.panels and depth.order")
    if job.ensemble is not None:
        raise BadInput(
            f"{wanted}, and members have one grid together; set depth.panels and depth.order, or run them as a sweep, "
            f"{job.ensemble.swept}"
        )


def has_seed(section: str, choice: Choice) -> bool:
    """Whether a section has a seed, and one that has an effect beside its other settings."""
    return "seed" in choice.parameters and not _idle(section, choice, "seed")


def varied(seeded: Collection[str]) -> list[str]:
    """The sections whose seeds `members=N` makes differ, of those that have one."""
    return next((found for kind in _SEEDED if (found := [section for section in kind if section in seeded])), [])


def _seeds(section: str, node: Any, seeded: Sequence[str]) -> Sequence[int]:
    """The seeds of members in one section, of a list or the text "range(a,b)"."""
    can = ", ".join(f"members.{name}.seed" for name in seeded)
    if section in SECTIONS and section not in seeded:
        raise BadInput(
            f"members.{section} has no effect: this {section} has no seed that changes it; set {can}, or members=N"
        )
    if section not in seeded or not isinstance(node, Mapping) or [*node] != ["seed"]:
        raise BadInput(f"members differ in their seeds alone, got members.{section}={node!r}; set {can}, or members=N")
    key, value = f"members.{section}.seed", node["seed"]
    if isinstance(value, str):
        found = _RANGE.fullmatch(value)
        if found is None or found[3] == "0":
            raise BadInput(f"{key} must be a list of seeds or range(START,STOP), got {value!r}")
        value = range(*(int(number) for number in found.groups() if number is not None))
    if not isinstance(value, range):
        value = typed(key, value, Sequence[Seed])
    if not 1 <= len(value) <= _MOST_MEMBERS:
        raise BadInput(f"{key} must have from 1 to {_MOST_MEMBERS} seeds, got {len(value)}")
    return typing.cast("Sequence[int]", value)


def _time(section: Mapping[str, Any]) -> Time | Descent:
    """The outer solve, along a flow or in steps; of steps the options are not looked at yet."""
    common = settings(Outputs)
    of_flow, of_steps = ([key for key in settings(kind) if key not in common] for kind in (Time, Descent))
    flow, steps = ([key for key in keys if key in section] for keys in (of_flow, of_steps))
    if not steps:
        return Time(**_arguments("time", section, Time))
    if flow == of_flow:  # all of them, as a group has them
        raise BadInput(
            f"time.{steps[0]}={section[steps[0]]} is for training in steps; add time=descent, or leave it out"
        )
    if flow:
        out = " ".join(f"~time.{key}" for key in flow)
        raise BadInput(
            f"time.{flow[0]}={section[flow[0]]} has no effect with time=descent, whose steps have a rule and a rate; "
            f"leave it out, or write {out} where an experiment sets it"
        )
    own = {key: value for key, value in section.items() if key in {*common, *steps}}
    return Descent(**_arguments("time", own, Descent))


def _looked_up(time: Time | Descent, section: Mapping[str, Any]) -> Time | Descent:
    """The same, with its method, or its rule and the options of that, looked up among what is registered."""
    from ..time import METHODS
    from ..time.base import fixed_steps
    from ..time.steprule import STEP_RULES

    if isinstance(time, Time):
        _keeps_to([known(METHODS)], "time.method", time.method)
        if time.step is not None and not fixed_steps(METHODS[time.method]):
            raise BadInput(
                f"time.step={time.step} is for methods of fixed steps, and time.method={time.method} chooses its own; "
                f"set time.rtol and time.atol, or choose a method of fixed steps such as rk4"
            )
        return time
    _keeps_to([known(STEP_RULES)], "time.rule", time.rule)
    common = settings(Descent)
    fields = {key: parameter for key, parameter in settings(STEP_RULES[time.rule]).items() if key not in common}
    where = f" with time.rule={time.rule}"
    options = {key: value for key, value in section.items() if key not in common}
    return replace(time, options=_taken("time.", options, fields, [*common, *fields], where))


def _no_steps(study: str, studies: Registry[Any]) -> str:
    """The sentence for a study that is none of training in steps."""
    takes = ", ".join(f"study={name}" for name, entry in studies.items() if entry.takes_steps)
    own = studies[study].steps
    why = f"takes steps of its own ({own})" if own else "follows flows, and what it compares holds for these alone"
    return f"time=descent is for {takes}: study={study} {why}; leave time=descent out, or choose one of these"


def _needed(name: str, sections: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    if not sections[name]:
        raise BadInput(f"{name} must be a group of fields, got None; choose one with {name}=NAME")
    return sections[name]


def _plain(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(config, DictConfig):
        return dict(config)
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise BadInput(f"the config cannot be resolved: {first_line(error)}") from error
    return typing.cast("dict[str, Any]", plain)


def _section(name: str, node: Any) -> dict[str, Any]:
    if node is None:
        return {}
    if not isinstance(node, Mapping):
        raise BadInput(f"{name} must be a group of fields, got {node!r}; choose one with {name}=NAME")
    return dict(node)


def _choice(section: str, node: Mapping[str, Any], registry: Registry[Any], maker: str | None = None) -> Choice:
    """A registered name and the arguments for what is registered; `maker` is its attribute to call, if not itself."""
    name = node.get("name", "???")
    if name == "???":
        raise BadInput(f"{section}.name is missing; set {section}=NAME (valid: {', '.join(registry)})")
    _keeps_to([known(registry)], f"{section}.name", name)
    entry = registry[name]
    builder = getattr(entry, maker) if maker else entry
    parameters = {key: value for key, value in node.items() if key != "name"}
    return Choice(name, _arguments(section, parameters, builder, chosen=name))


def _arguments(
    section: str, node: Mapping[str, Any], maker: Callable[..., Any], chosen: str | None = None
) -> dict[str, Any]:
    """Keyword arguments for `maker`, of the types that its signature names; `chosen` is the name it is filed under."""
    try:
        fields = settings(maker)
    except (TypeError, NameError) as error:  # of a user's own
        raise BadInput(f"{section}.name={chosen} cannot be used: {error}") from error
    valid = ["name", *fields] if chosen else [*fields] if section else [*SECTIONS, *fields, "members"]
    where = f" with {section}.name={chosen}" if chosen else ""
    return _taken(f"{section}." if section else "", node, fields, valid, where)


def _taken(
    prefix: str, node: Mapping[str, Any], fields: Mapping[str, inspect.Parameter], valid: list[str], where: str
) -> dict[str, Any]:
    """Values for fields, of the types that these have; `valid` are the keys that may be written `where`."""
    for key, value in node.items():
        if key not in fields:
            raise BadInput(_unknown_key(prefix, key, value, valid, where))
    arguments = {}
    for name, parameter in fields.items():
        value = node.get(name, parameter.default)
        if value is inspect.Parameter.empty or value == "???":
            raise BadInput(f"{prefix}{name} is missing; set {prefix}{name}=VALUE")
        arguments[name] = typed(prefix + name, value, parameter.annotation)
    return arguments


# Keys of before, and what they are called now.
_MOVED = {f"study.{name}": f"time.{name}" for name in ("max_evaluations", "max_seconds")}


def _unknown_key(prefix: str, key: str, value: Any, valid: list[str], where: str) -> str:
    now = _MOVED.get(prefix + key)
    if now is not None:
        return f"unknown key {prefix}{key}={value}: it is called {now} now; write {now}={value}"
    near = nearest(key, valid)
    hint = "" if near is None else f"; did you mean {prefix}{near}?"
    return f"unknown key {prefix}{key}={value}{hint} (valid{where}: {', '.join(prefix + name for name in valid)})"


def _keeps_to(ranges: Iterable[Range], key: str, value: Any) -> None:
    """Raises BadInput where one of the ranges refuses a value."""
    try:
        for within in ranges:
            within(key, value)
    except ValueError as error:
        raise BadInput(str(error)) from error


_KINDS = {bool: "true or false", int: "an integer", float: "a finite number", str: "text"}


def typed(key: str, value: Any, kind: Any) -> Any:
    """`value` as the annotation `kind` says: bool, int, float, str, a sequence of these, or one of them or None.

    Raises
    ------
    BadInput
        If it is of another type, or out of the ranges that Annotated adds; a float must also be finite.
    """
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        value = typed(key, value, options[0])
        _keeps_to(filter(callable, options[1:]), key, value)
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        if bool in options and isinstance(value, bool):
            return value
        kinds = [option for option in options if option not in (type(None), bool)]
        lists = [option for option in kinds if typing.get_origin(option) in (list, Sequence)]
        return typed(key, value, lists[0] if lists and isinstance(value, (list, tuple)) else kinds[0])
    if origin in (list, Sequence):
        if not isinstance(value, (list, tuple)):
            raise BadInput(f"{key} must be a list, got {value!r}; write {key}=[{value}]")
        return [typed(f"{key}[{i}]", item, options[0]) for i, item in enumerate(value)]
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    if kind is str and type(value) is int:  # a folder called 2026
        value = str(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise BadInput(f"{key} must be {_KINDS[kind]}, got {value!r}")
    return value
