"""The config as checked values: every key, type and range is looked at before any work starts.

The fields of a section are the keyword parameters of what it configures: of the dataclasses below, and of the builder
that is registered under the section's name. A signature is thus the only place that lists names, types and defaults.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..files import digest
from ..registry import Registry, unknown_name
from .errors import BadInput, first_line

# Sizes far beyond what can be run: they are refused by name before anything is made.
MOST_NODES, MOST_ORDER, MOST_DIMENSION, MOST_THREADS, MOST_LAYERS = 65_536, 512, 4096, 4096, 10**6


@dataclass(frozen=True)
class Depth:
    """The inner solve: `panels` equal panels of `order` Gauss–Legendre nodes on [0, 1]."""

    name: str = "collocation"
    panels: int = 4
    order: int = 12

    def __post_init__(self) -> None:
        at_least(1, "depth.panels", self.panels)
        at_least(1, "depth.order", self.order)
        at_most(MOST_ORDER, "depth.order", self.order)
        if self.panels * self.order > MOST_NODES:
            most = MOST_NODES // self.order
            raise BadInput(f"depth.panels must be at most {most} with depth.order={self.order}, got {self.panels}")


@dataclass(frozen=True)
class Time:
    """The outer solve: `samples` equally spaced times in [0, horizon], a method, its tolerances, or its fixed step.

    `max_evaluations` is a budget of each integration, `max_seconds` one of the whole run, in seconds of wall time.
    """

    horizon: float = 2.0
    samples: int = 21
    method: str = "DOP853"
    rtol: float = 1e-10
    atol: float = 1e-12
    step: float | None = None
    max_evaluations: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("horizon", "rtol", "atol", "step", "max_seconds"):
            if getattr(self, name) is not None:
                above_zero(f"time.{name}", getattr(self, name))
        at_least(2, "time.samples", self.samples)
        at_most(10**6, "time.samples", self.samples)
        if self.max_evaluations is not None:
            at_least(1, "time.max_evaluations", self.max_evaluations)


@dataclass(frozen=True)
class Machine:
    """Where results go and what computes them; these fields lie at the top of the config.

    `resume` is the folder of a run to go on with (or an empty one to start), true for the newest unfinished run of the
    same config, or false; `save_every` the seconds of wall time between two savings. `plugins` are modules that
    register rules, losses, systems, … of the user's own; they are looked for in the current folder too.
    """

    out: str = "runs"
    device: str = "cpu"
    threads: int | None = 1
    resume: bool | str = False
    save_every: float = 60.0
    plugins: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "plugins", tuple(self.plugins))
        if not self.out:
            raise BadInput("out must be the folder for results, got ''; set out=FOLDER")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise BadInput(f"unknown device {self.device!r} (valid: cpu, cuda, cuda:N); set device=cpu")
        if self.threads is not None:
            at_least(1, "threads", self.threads)
            at_most(MOST_THREADS, "threads", self.threads)
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
class Job:
    """The checked config of one run; the study decides which of the first four it has."""

    problem: Choice | None
    initial: Choice | None
    system: Choice | None
    depth: Depth | None
    time: Time
    study: Choice
    machine: Machine

    def to_yaml(self) -> str:
        """The resolved config, every field written out but where it was resumed."""
        parts = {name: getattr(self, name) for name in SECTIONS}
        sections = {
            name: part.flat() if isinstance(part, Choice) else asdict(part) for name, part in parts.items() if part
        }
        machine = {name: value for name, value in asdict(self.machine).items() if name != "resume"}
        return OmegaConf.to_yaml(OmegaConf.create(sections | machine))

    def inputs(self) -> dict[str, str]:
        """The SHA-256 of each file that the problem is read from, by the setting that names it."""
        if self.problem is None:
            return {}
        from ..problems import PROBLEMS, InputFile

        fields = fields_of(PROBLEMS[self.problem.name], extras=True)
        given = {key: value for key, value in self.problem.parameters.items() if fields[key].annotation == InputFile}
        paths = {f"problem.{key}": Path(value).expanduser() for key, value in given.items()}
        return {key: digest(path) for key, path in paths.items() if path.is_file()}


SECTIONS = ("problem", "initial", "system", "depth", "time", "study")


def checked(config: DictConfig) -> Job:
    """The config of one run, checked; what needs torch is imported after the rest has passed.

    Raises
    ------
    BadInput
        At the first key that is unknown or missing, or value that is of the wrong type, out of range or not a valid
        name. The message has the key, the value that came, and what is valid.
    """
    top = _plain(config)
    loose = {key: value for key, value in top.items() if key not in SECTIONS}
    machine = Machine(**_arguments("", loose, Machine))
    sections = {name: _section(name, top.get(name)) for name in SECTIONS}
    depth = Depth(**_arguments("depth", sections["depth"], Depth)) if sections["depth"] else None
    time = Time(**_arguments("time", _needed("time", sections), Time))

    # The registries import torch (2 s), so that they come last; then what adds to them.
    from ..depth import DEPTH_SOLVERS
    from ..initial import INITIALS
    from ..intrinsic.systems import SYSTEMS
    from ..problems import PROBLEMS
    from ..studies import STUDIES
    from ..time import METHODS
    from .plugins import load

    load(machine.plugins)
    if depth is not None:
        _known(DEPTH_SOLVERS, "depth.name", depth.name)
    _known(METHODS, "time.method", time.method)
    study = _choice("study", _needed("study", sections), STUDIES, maker="run")
    needed = (*STUDIES[study.name].setup.sections, "time", "study")
    registries: dict[str, Registry[Any]] = {"problem": PROBLEMS, "initial": INITIALS, "system": SYSTEMS}
    for name in SECTIONS:
        if name in needed:
            _needed(name, sections)
        elif sections[name] and "name" not in sections[name]:
            # A group that was chosen by name may come from the defaults; a lone field was set on purpose.
            key, value = next(iter(sections[name].items()))
            raise BadInput(f"{name}.{key}={value} has no effect: study={study.name} uses no {name}; leave it out")
    chosen = {
        name: _choice(name, sections[name], registry) if name in needed else None
        for name, registry in registries.items()
    }
    return Job(
        **chosen,
        depth=depth if "depth" in needed else None,
        time=time,
        study=study,
        machine=machine,
    )


def _needed(name: str, sections: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    if not sections[name]:
        raise BadInput(f"{name} must be a group of fields, got None; choose one with {name}=NAME")
    return sections[name]


def fields_of(maker: Callable[..., Any], extras: bool = False) -> dict[str, inspect.Parameter]:
    """The parameters of a dataclass or function that a config can set, with their annotations resolved.

    With `extras` the annotations have what Annotated adds.
    """
    parameters = {name: p for name, p in inspect.signature(maker).parameters.items() if name not in _NOT_CONFIG}
    # Only these annotations are resolved: the others may name what is imported for type checkers alone.
    wanted = types.SimpleNamespace(__annotations__={name: p.annotation for name, p in parameters.items()})
    hints = typing.get_type_hints(wanted, globalns=vars(sys.modules[maker.__module__]), include_extras=extras)
    return {name: p.replace(annotation=hints[name]) for name, p in parameters.items()}


_NOT_CONFIG = {"z0", "setup", "progress"}  # given by the program, not by the user


def _plain(config: DictConfig) -> dict[str, Any]:
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
    _known(registry, f"{section}.name", name)
    entry = registry[name]
    builder = getattr(entry, maker) if maker else entry
    parameters = {key: value for key, value in node.items() if key != "name"}
    return Choice(name, _arguments(section, parameters, builder, chosen=name))


def _arguments(
    section: str, node: Mapping[str, Any], maker: Callable[..., Any], chosen: str | None = None
) -> dict[str, Any]:
    """Keyword arguments for `maker`, of the types that its signature names; `chosen` is the name it is filed under."""
    fields = fields_of(maker)
    prefix = f"{section}." if section else ""
    for key, value in node.items():
        if key not in fields:
            valid = ["name", *fields] if chosen else [*fields] if section else [*SECTIONS, *fields]
            where = f" with {section}.name={chosen}" if chosen else ""
            raise BadInput(_unknown_key(prefix, key, value, valid, where))
    arguments = {}
    for name, parameter in fields.items():
        value = node.get(name, parameter.default)
        if value is inspect.Parameter.empty or value == "???":
            raise BadInput(f"{prefix}{name} is missing; set {prefix}{name}=VALUE")
        arguments[name] = typed(prefix + name, value, parameter.annotation)
        if name in _RULES:
            _RULES[name](prefix + name, arguments[name])
    return arguments


# Keys of before, and what they are called now.
_MOVED = {f"study.{name}": f"time.{name}" for name in ("max_evaluations", "max_seconds")}


def _unknown_key(prefix: str, key: str, value: Any, valid: list[str], where: str) -> str:
    now = _MOVED.get(prefix + key)
    if now is not None:
        return f"unknown key {prefix}{key}={value}: it is called {now} now; write {now}={value}"
    near = difflib.get_close_matches(key, valid, n=1)
    hint = f"; did you mean {prefix}{near[0]}?" if near else ""
    return f"unknown key {prefix}{key}={value}{hint} (valid{where}: {', '.join(prefix + name for name in valid)})"


def _known(registry: Registry[Any], key: str, name: Any) -> None:
    try:
        registry[name]
    except ValueError as error:
        raise BadInput(f"{key}: {error}") from error


_KINDS = {bool: "true or false", int: "an integer", float: "a finite number", str: "text"}


def typed(key: str, value: Any, kind: Any) -> Any:
    """`value` as the annotation `kind` says: bool, int, float, str, a sequence of these, or one of them or None.

    Raises
    ------
    BadInput
        If it is of another type; a float must also be finite.
    """
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        if bool in options and isinstance(value, bool):
            return value
        return typed(key, value, next(option for option in options if option not in (type(None), bool)))
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


def above_zero(key: str, value: float) -> None:
    """Raises BadInput unless value > 0."""
    if not value > 0:
        raise BadInput(f"{key} must be above 0, got {value!r}")


def at_least(least: int, key: str, value: int) -> None:
    """Raises BadInput unless value >= least."""
    if value < least:
        raise BadInput(f"{key} must be at least {least}, got {value}")


def at_most(most: int, key: str, value: int) -> None:
    """Raises BadInput unless value <= most."""
    if value > most:
        raise BadInput(f"{key} must be at most {most}, got {value}")


def _distinct(key: str, values: list[Any]) -> None:
    if not values:
        raise BadInput(f"{key} must not be empty, got []")
    repeated = {value for value in values if values.count(value) > 1}
    if repeated:
        raise BadInput(f"{key} must not repeat a value, got {values}; remove one {', '.join(map(str, repeated))}")


def _depths(key: str, values: list[int]) -> None:
    _distinct(key, values)
    for i, value in enumerate(values):
        at_least(1, f"{key}[{i}]", value)
        at_most(MOST_LAYERS, f"{key}[{i}]", value)
    if values != sorted(values):
        raise BadInput(f"{key} must increase, got {values}; write {key}={sorted(values)}")


def _layers(key: str, values: list[str]) -> None:
    from ..depth.rules import LAYERS

    _distinct(key, values)
    for i, value in enumerate(values):
        _known(LAYERS, f"{key}[{i}]", value)


def _sampling(key: str, value: str) -> None:
    from ..flows.finite import SAMPLINGS

    if value not in SAMPLINGS:
        raise BadInput(f"{key}: {unknown_name('sampling', value, list(SAMPLINGS))}")


def _seed(key: str, value: int) -> None:
    if not 0 <= value < 2**63:
        raise BadInput(f"{key} must be at least 0 and below 2**63, got {value}")


def _workers(key: str, value: int | None) -> None:
    if value is not None:
        at_least(1, key, value)
        at_most(MOST_THREADS, key, value)


def _dimension(key: str, value: int | None) -> None:
    if value is not None:
        at_most(MOST_DIMENSION, key, value)


def _layer_number(key: str, value: int) -> None:
    at_least(1, key, value)
    at_most(MOST_LAYERS, key, value)


def _loss(key: str, value: str) -> None:
    from ..losses import LOSSES

    _known(LOSSES, key, value)


def _model(key: str, value: str) -> None:
    from ..studies.trajectory import MODELS

    _known(MODELS, key, value)


def _positive_or_none(key: str, value: float | None) -> None:
    if value is not None:
        above_zero(key, value)


# A parameter of one of these names means the same wherever it occurs.
_RULES: dict[str, Callable[[str, Any], None]] = {
    "depths": _depths,
    "layers": _layers,
    "sampling": _sampling,
    "seed": _seed,
    "workers": _workers,
    "dimension": _dimension,
    "members": lambda key, value: at_most(MOST_DIMENSION, key, value),
    "draws": lambda key, value: at_least(2, key, value),
    "networks": lambda key, value: at_least(1, key, value),
    "network_depth": _layer_number,
    "loss": _loss,
    "model": _model,
    "rule": lambda key, value: _layers(key, [value]),
}
_RULES |= dict.fromkeys(("stop_loss", "stop_gradient", "stop_steady", "stop_sigma_min", "stop_norm"), _positive_or_none)
