"""The systems of the literature, one file each."""

from __future__ import annotations

import importlib
import pkgutil

from .base import SYSTEMS, ClosedFlow, System

__all__ = ["SYSTEMS", "ClosedFlow", "System"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f".{_module.name}", __name__)
