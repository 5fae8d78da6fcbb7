"""What a function takes in, read off its signature: names, types, ranges and defaults, stated once.

A range is part of the annotation: ``Annotated[int, at_least(1)]`` is an integer that ``at_least(1)(key, value)`` does
not refuse. The config is checked by it; the commonest have names here.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from .registry import unknown_name

# Sizes far beyond what can be run: they are refused by name before anything is made.
MOST_LAYERS, MOST_DIMENSION, MOST_THREADS = 10**6, 4096, 4096

Range = Callable[[str, Any], None]


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function or dataclass by name; their annotations keep what Annotated adds.

    Raises
    ------
    TypeError
        If one has no annotation.
    """
    return dict(_parameters(function))


@cache
def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(function).parameters)
    bare = [name for name, parameter in found.items() if parameter.annotation is inspect.Parameter.empty]
    if bare:
        where = f"{function.__module__}.{getattr(function, '__qualname__', function)}"
        name = bare[0]
        example = f"{name}: int of a setting or {name}: Tensor, {name}: Problem of what the program gives"
        if name == "progress":
            example = "progress: Callable[[float, str], None] | None = None"
        raise TypeError(f"{where} does not say what its parameter {name} is; write an annotation, {example}")
    # Not of the function itself: what it returns may be named after what is imported for type checkers alone.
    wanted = types.SimpleNamespace(__annotations__={name: p.annotation for name, p in found.items()})
    # A class may have inherited what makes it.
    kinds = function.__mro__ if isinstance(function, type) else (function,)
    home = next((kind for kind in kinds if "__init__" in vars(kind)), function)
    names = vars(sys.modules[home.__module__])
    hints = typing.get_type_hints(wanted, globalns=names, include_extras=True)
    return {name: p.replace(annotation=hints[name]) for name, p in found.items()}


def settings(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that a config can set: those of plain types. The program gives the others, such as z₀."""
    return dict(_settings(function))


@cache
def _settings(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {name: p for name, p in _parameters(function).items() if _plain(p.annotation)}


def _plain(kind: Any) -> bool:
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _plain(options[0])
    if origin in (typing.Union, types.UnionType, list, Sequence):
        return all(map(_plain, options))
    return kind in (bool, int, float, str, type(None))


def check_range(key: str, value: Any, kind: Any) -> None:
    """Raises ValueError where a range of the annotation `kind` refuses a value that has not come by a config."""
    for within in filter(callable, typing.get_args(kind)[1:]):
        within(key, value)


@dataclass(frozen=True)
class CountsWith:
    """In an annotation: the setting has an effect only with another one, or with any of several.

    Attributes
    ----------
    names : tuple of str
        The others.
    value : optional
        What one of them must be; by default anything but 0.
    """

    names: tuple[str, ...]
    value: Any = None

    def holds(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the setting has an effect beside these values of all."""
        values = [arguments[name] for name in self.names]
        return any(values) if self.value is None else self.value in values


def idle(function: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Those settings of a function beside whose values another one has no effect; none where it has one."""
    fields = settings(function)
    told = typing.get_args(fields[name].annotation) if name in fields else ()
    conditions = [it for it in told if isinstance(it, CountsWith)]
    values = {key: parameter.default for key, parameter in fields.items()} | dict(arguments) if conditions else {}
    return next((it.names for it in conditions if not it.holds(values)), ())


def at_least(least: float) -> Range:
    """Numbers >= least."""
    return _must(f"at least {least}", lambda value: value >= least)


def at_most(most: float) -> Range:
    """Numbers <= most."""
    return _must(f"at most {most}", lambda value: value <= most)


def below(bound: float) -> Range:
    """Numbers < bound."""
    return _must(f"below {bound}", lambda value: value < bound)


def above(bound: float) -> Range:
    """Numbers > bound."""
    return _must(f"above {bound}", lambda value: value > bound)


def _must(be: str, holds: Callable[[Any], bool]) -> Range:
    def check(key: str, value: Any) -> None:
        if not holds(value):
            raise ValueError(f"{key} must be {be}, got {value!r}")

    return check


def each(*ranges: Range) -> Range:
    """Lists whose items keep to all `ranges`."""

    def check(key: str, values: Sequence[Any]) -> None:
        for i, value in enumerate(values):
            for one in ranges:
                one(f"{key}[{i}]", value)

    return check


def known(names: Mapping[str, Any], kind: str | None = None) -> Range:
    """Names in a registry, or in another mapping with names of a `kind`."""

    def check(key: str, value: str) -> None:
        if value not in names:
            what = str(kind or getattr(names, "kind", "name"))
            raise ValueError(f"{key}: {unknown_name(what, value, names)}")

    return check


def distinct(key: str, values: Sequence[Any]) -> None:
    """Lists that have items, and none twice."""
    if not values:
        raise ValueError(f"{key} must not be empty, got []")
    repeated = {value for value in values if values.count(value) > 1}
    if repeated:
        raise ValueError(f"{key} must not repeat a value, got {values}; remove one {', '.join(map(str, repeated))}")


def increasing(key: str, values: Sequence[Any]) -> None:
    """Lists in increasing order."""
    if list(values) != sorted(values):
        raise ValueError(f"{key} must increase, got {values}; write {key}={sorted(values)}")


Seed = Annotated[int, _must("at least 0 and below 2**32", lambda value: 0 <= value < 2**32)]  # as checks.seeded has it
MixedSeed = Annotated[int, _must("at least 0 and below 2**63", lambda value: 0 <= value < 2**63)]  # all of it counts
Positive = Annotated[float, above(0)]
Count = Annotated[int, at_least(1)]
Layers = Annotated[int, at_least(1), at_most(MOST_LAYERS)]  # a number of layers L
Depths = Annotated[Sequence[int], distinct, each(at_least(1), at_most(MOST_LAYERS)), increasing]  # several of them
Dimension = Annotated[int, at_most(MOST_DIMENSION)]
Members = Annotated[int, at_most(MOST_DIMENSION)]  # of a batch that is held at once
Workers = Annotated[int, at_least(1), at_most(MOST_THREADS)]
