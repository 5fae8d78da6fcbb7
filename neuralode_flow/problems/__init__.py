"""Problems by name: a loss on the end-to-end map z and the map that training starts from."""

import sys

from ..registry import import_modules
from .base import PROBLEMS, InputFile, Problem

__all__ = ["PROBLEMS", "InputFile", "Problem"]

import_modules(sys.modules[__name__])
