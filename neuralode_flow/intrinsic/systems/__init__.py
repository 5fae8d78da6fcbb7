"""The systems of the literature, one file each."""

import sys

from ...registry import import_modules
from .base import SYSTEMS, ClosedFlow, System

__all__ = ["SYSTEMS", "ClosedFlow", "System"]

import_modules(sys.modules[__name__])
