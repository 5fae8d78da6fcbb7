"""What users add from packages of their own: modules that register layer rules, losses, systems, or studies.

A package that is installed announces such a module as an entry point of the group "neuralode_flow"; one that is not is
named by `plugins=[MODULE]`.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Sequence
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
    """The SHA-256 of the files of all plugins that are loaded, and were named so, as they were when imported."""
    names = dict.fromkeys([*(module for module, _ in installed()), *modules])
    return {name: _SOURCES[name][1] for name in names if name in _SOURCES}


def _note(module: str) -> None:
    """Keeps what the files of a plugin hold, where it was imported anew: all of its package, if it is in one."""
    own = sys.modules[module]
    if module in _SOURCES and _SOURCES[module][0] is own.__spec__:
        return
    whole = sys.modules.get(module.partition(".")[0], own)
    home = getattr(whole, "__file__", None) if hasattr(whole, "__path__") else None
    file = getattr(own, "__file__", None)
    paths = sorted(Path(home).parent.rglob("*.py")) if home else [Path(file)] if file else []
    found = hashlib.sha256()
    for path in paths:
        with suppress(OSError):
            found.update(path.read_bytes())
    _SOURCES[module] = own.__spec__, found.hexdigest()


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
