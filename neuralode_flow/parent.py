"""What ends a process from outside: signals, and the end of its parent."""

from __future__ import annotations

import ctypes
import signal
import sys

# Beside Ctrl-C. The last is that of a terminal which is closed; Windows has none.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def end_with_parent(number: int) -> None:
    """Linux: this process gets a signal when the one that forked it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
