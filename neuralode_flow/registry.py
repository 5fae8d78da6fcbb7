"""One registry per kind of thing that is chosen by name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any, Generic, TypeVar

from .display import html_table

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Names of one kind (layer rules, problems, …) and what they stand for.

    Parameters
    ----------
    kind : str
        What the names stand for, in the singular; it opens every error message.

    Examples
    --------
    >>> SHAPES = Registry("shape")
    >>> @SHAPES.register("square")
    ... def square(): ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files an entry under `name`; a name can be taken once."""

        def file_entry(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered already; choose another name")
            self._entries[name] = entry
            return entry

        return file_entry

    def check(self, name: str) -> None:
        """Raises ValueError with the valid names, and the nearest of them, if `name` is none."""
        self[name]

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise ValueError(unknown_name(self.kind, name, self._entries))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.kind}: {', '.join(self._entries)})"

    def _repr_html_(self) -> str:
        rows = [(name, _first_line(entry)) for name, entry in self._entries.items()]
        return html_table(f"{self.kind}: {len(rows)} names", rows)


def _first_line(entry: Any) -> str:
    """What an entry is: the question of a study, else the first line of its docstring; empty without one."""
    made = entry.func if isinstance(entry, partial) else entry
    return str(getattr(made, "question", "")) or (inspect.getdoc(made) or "").partition("\n")[0]


def import_modules(package: ModuleType) -> None:
    """Imports all modules of a package, so that each files what it registers: a new file needs no other change."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def unknown_name(kind: str, name: object, valid: Mapping[str, object] | list[str]) -> str:
    """The sentence for a name that does not exist: what came, the nearest valid name, all valid names."""
    return f"unknown {kind} {name!r}{did_you_mean(str(name), valid)} (valid: {', '.join(valid)})"


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """The question whether the nearest of the valid names is meant; nothing where none is near."""
    near = difflib.get_close_matches(name, list(valid), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
