"""One registry per kind of thing that is chosen by name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any, Generic, TypeVar

from .display import html_table
from .garbage import uncollected

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Names of one kind (layer rules, problems, …) and what they stand for.

    Parameters
    ----------
    kind : str
        What the names stand for, in the singular; it opens every error message.
    home : str, optional
        A package whose modules register entries. That of an entry's name is imported when the entry is asked for; all
        of them are, where the names are listed, or a name has no module of its own.
    of : type, optional
        The class of all entries, where they have one.

    Examples
    --------
    >>> SHAPES = Registry("shape")
    >>> @SHAPES.register("square")
    ... def square(): ...
    """

    def __init__(self, kind: str, home: str | None = None, of: type = object) -> None:
        self.kind = kind
        self._home = home
        self._of = of
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files an entry under `name`.

        A name can be taken once, or again by the function or class of the same module and name: a cell of a notebook
        that is run again, a module that is imported again.

        Raises
        ------
        TypeError
            If the entry is of another class.
        ValueError
            If the name is taken.
        """

        def file_entry(entry: T) -> T:
            if not isinstance(entry, self._of):
                got = f"the class {entry.__name__}" if isinstance(entry, type) else type(entry).__name__
                raise TypeError(f"{self.kind} '{name}' must be a {self._of.__name__}(...), got {got}")
            self._import_own(name)
            if name in self._entries and (_origin(entry) is None or _origin(entry) != _origin(self._entries[name])):
                raise ValueError(f"{self.kind} '{name}' is registered already; choose another name")
            self._entries[name] = entry
            return entry

        return file_entry

    def check(self, name: str) -> None:
        """Raises ValueError with the valid names, and the nearest of them, if `name` is none."""
        self[name]

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise ValueError(unknown_name(self.kind, name, self._all()))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        if name not in self._entries:
            self._import_own(name)
        return name in self._entries or name in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return f"Registry({self.kind}: {', '.join(self)})"

    def _repr_html_(self) -> str:
        rows = [(name, _first_line(entry)) for name, entry in self.items()]
        return html_table(f"{self.kind}: {len(rows)} names", rows)

    def _import_own(self, name: str) -> None:
        """Imports the module of that name, if home has one; one that is being imported is left to go on."""
        if self._home is None or f"{self._home}.{name}" in sys.modules:
            return
        if name in _modules(sys.modules[self._home]):
            with uncollected():
                importlib.import_module(f"{self._home}.{name}")

    def _all(self) -> dict[str, T]:
        """All entries; those of a home in the order of their names, whichever was imported first."""
        if self._home is None:
            return self._entries
        import_modules(sys.modules[self._home])
        return dict(sorted(self._entries.items()))


def _first_line(entry: Any) -> str:
    """What an entry is: the question of a study, else the first line of its docstring; empty without one."""
    made = entry.func if isinstance(entry, partial) else entry
    return str(getattr(made, "question", "")) or (inspect.getdoc(made) or "").partition("\n")[0]


def _origin(entry: Any) -> tuple[str, str] | None:
    """Module and name of the function or class that an entry is, or holds; None of a lambda, or of what has neither."""
    if not inspect.isroutine(entry) and not isinstance(entry, type):
        entry = next((getattr(entry, part) for part in ("func", "run", "draw") if hasattr(entry, part)), None)
    name = getattr(entry, "__qualname__", "<lambda>")
    return None if name.endswith("<lambda>") else (entry.__module__, name)


def import_modules(package: ModuleType) -> None:
    """Imports all modules of a package, so that each files what it registers: a new file needs no other change."""
    with uncollected():
        for name in _modules(package):
            importlib.import_module(f"{package.__name__}.{name}")


def _modules(package: ModuleType) -> list[str]:
    """The names of the modules of a package."""
    return [module.name for module in pkgutil.iter_modules(package.__path__)]


def unknown_name(kind: str, name: object, valid: Mapping[str, object] | list[str]) -> str:
    """The sentence for a name that does not exist: what came, the nearest valid name, all valid names."""
    return f"unknown {kind} {name!r}{did_you_mean(str(name), valid)} (valid: {', '.join(valid)})"


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that is nearest to one; None where none is near."""
    return next(iter(difflib.get_close_matches(name, list(valid), n=1)), None)


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """The question whether the nearest of the valid names is meant; nothing where none is near."""
    near = nearest(name, valid)
    return "" if near is None else f"; did you mean {near!r}?"
