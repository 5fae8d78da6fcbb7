"""Warnings at the line of the user's that called, however deep in the package the reason is found."""

from __future__ import annotations

import inspect
import os
import warnings

_HERE = os.path.dirname(__file__) + os.sep


def warn(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """`warnings.warn` at the innermost line outside of the package, or at its outermost one."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
