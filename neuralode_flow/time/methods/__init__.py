"""Time methods, one file for each kind. A file that is put here and registers in `METHODS` is found by its name."""

import sys

from ...registry import import_modules

import_modules(sys.modules[__name__])
