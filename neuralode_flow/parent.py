"""What becomes of a process whose parent has ended."""

from __future__ import annotations

import ctypes
import sys

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def end_with_parent(number: int) -> None:
    """Linux: this process gets a signal when the one that forked it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
