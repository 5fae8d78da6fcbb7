"""What users add from packages of their own: modules that register layer rules, losses, systems, or studies.

A package that is installed announces such a module as an entry point of the group "neuralode_flow"; one that is not is
named by `plugins=[MODULE]`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import site
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from .errors import BadInput, told_to_end

GROUP = "neuralode_flow"

# Of each plugin the import that made it, and what its files held then: they may be edited while it runs.
_SOURCES: dict[str, tuple[Any, str]] = {}


def load(modules: Sequence[str]) -> None:
    """Imports the modules of all installed plugins, and those that are named; each only once.

    Raises
    ------
    BadInput
        If one cannot be imported; the message says which, and why.
    """
    for module, package in installed():
        _imported(module, f"of the installed package {package}")
    here = str(Path.cwd())
    if modules and here not in sys.path:
        sys.path.append(here)
    for module in modules:
        _imported(module, "named in plugins")


def sources(modules: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of the files of all plugins that are loaded, and were named so, as they were when imported.

    Modules in the same folder that a plugin imports are among its files.
    """
    names = dict.fromkeys([*(module for module, _ in installed()), *modules])
    return {name: _SOURCES[name][1] for name in names if name in _SOURCES}


def _note(module: str) -> None:
    """Keeps what the files of a plugin hold, where it was imported anew."""
    own = sys.modules[module]
    if module in _SOURCES and _SOURCES[module][0] is own.__spec__:
        return
    found = hashlib.sha256()
    for path in _files(module):
        with suppress(OSError):
            found.update(path.read_bytes())
    _SOURCES[module] = own.__spec__, found.hexdigest()


def _files(module: str) -> list[Path]:
    """The files of a plugin: all of its package, if it is in one, and those beside it that these import, in turn."""
    own = sys.modules[module]
    whole = sys.modules.get(module.partition(".")[0], own)
    home = getattr(whole, "__file__", None) if hasattr(whole, "__path__") else None
    file = getattr(own, "__file__", None)
    if home is None and file is None:
        return []
    own_files = sorted(Path(home).parent.rglob("*.py")) if home else [Path(str(file))]
    parts = module.split(".")
    above = len(parts) if Path(str(file)).name == "__init__.py" else len(parts) - 1
    place = Path(home).parents[1] if home else Path(str(file)).parents[above]
    if _is_installation(place):  # what lies beside it there is of others
        return own_files
    found = dict.fromkeys(own_files)
    looked_for = {module.partition(".")[0]} if home else set()
    waiting = [*own_files]
    while waiting:
        names = {_whole(name, place) for name in _imports(waiting.pop(), place)} - looked_for
        looked_for |= names
        beside = [other for name in sorted(names) for other in _beside(name, place) if other not in found]
        found |= dict.fromkeys(beside)
        waiting += beside
    return [*own_files, *sorted({*found} - {*own_files})]


def _is_installation(place: Path) -> bool:
    """Whether Python keeps what is installed, or itself, in this folder."""
    known = {Path(path) for path in (*sysconfig.get_paths().values(), site.getusersitepackages())}
    return place in known or place.name in ("site-packages", "dist-packages")


def _imports(path: Path, place: Path) -> Iterator[str]:
    """The names of modules that a file imports, wherever in it; what may be one in a package is among them."""
    try:
        with warnings.catch_warnings(action="ignore"):  # which its import has told
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # Python would not import it either
        return
    package = path.relative_to(place).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join([*above, *filter(None, [node.module])])
            yield from filter(None, [name, *(f"{name}.{alias.name}".removeprefix(".") for alias in node.names)])


def _whole(name: str, place: Path) -> str:
    """The name of a module, or of the package in this folder that has it."""
    top = name.partition(".")[0]
    return top if (place / top / "__init__.py").is_file() else name


def _beside(name: str, place: Path) -> list[Path]:
    """The files of a module, or of the whole package that has it, if it lies in this folder and is found there."""
    parts = name.split(".")
    if parts[0] == __package__.partition(".")[0] or not _is_found(parts[0], place):
        return []
    for part in parts:
        if (place / part / "__init__.py").is_file():
            return sorted((place / part).rglob("*.py"))
        if (place / f"{part}.py").is_file():
            return [place / f"{part}.py"]
        place /= part
    return []


def _is_found(top: str, place: Path) -> bool:
    """Whether Python has a module from this folder, or would; another one may have its name."""
    if not (place / top).is_dir() and not (place / f"{top}.py").is_file():
        return False
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or [])]
    return any(found is not None and Path(found).is_relative_to(place) for found in places)


@cache
def installed() -> list[tuple[str, str]]:
    """The modules that installed packages announce, each with the name of its package."""
    found = entry_points(group=GROUP)
    return [(entry.value.partition(":")[0], entry.dist.name if entry.dist else "?") for entry in found]


def _imported(module: str, where: str) -> None:
    try:
        if module not in sys.modules:
            importlib.import_module(module)
        _note(module)
    except Exception as error:  # whatever a user's module raises is the user's to mend
        raise BadInput(f"the plugin {module} {where} cannot be imported: {type(error).__name__}: {error}") from error
    except SystemExit as stop:
        if told_to_end(stop):
            raise
        raise BadInput(f"the plugin {module} {where} asked Python to end ({stop}) when it was imported") from stop
