"""Garbage collection, which looks through all that imports have made, over and over, and finds that it stays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """For imports, a sixth of whose time is garbage collection (`import torch`), and where it would do harm."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
