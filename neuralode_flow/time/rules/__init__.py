"""Step rules, one file for each. A file that is put here and registers in `STEP_RULES` is found by its name."""

import sys

from ...registry import import_modules

import_modules(sys.modules[__name__])
