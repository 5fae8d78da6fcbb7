"""What users add from packages of their own: modules that register layer rules, losses, systems, or studies.

A package that is installed announces such a module as an entry point of the group "neuralode_flow"; one that is not is
named by `plugins=[MODULE]`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from .errors import BadInput, told_to_end

GROUP = "neuralode_flow"


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


@cache
def installed() -> list[tuple[str, str]]:
    """The modules that installed packages announce, each with the name of its package."""
    found = entry_points(group=GROUP)
    return [(entry.value.partition(":")[0], entry.dist.name if entry.dist else "?") for entry in found]


def _imported(module: str, where: str) -> None:
    if module in sys.modules:
        return
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a user's module raises is the user's to mend
        raise BadInput(f"the plugin {module} {where} cannot be imported: {type(error).__name__}: {error}") from error
    except SystemExit as stop:
        if told_to_end(stop):
            raise
        raise BadInput(f"the plugin {module} {where} asked Python to end ({stop}) when it was imported") from stop
