"""Problems by name: a loss on the end-to-end map z and the map that training starts from."""

import sys

from ..registry import import_modules
from .base import PROBLEMS, Problem

__all__ = ["PROBLEMS", "Problem"]

import_modules(sys.modules[__name__])
