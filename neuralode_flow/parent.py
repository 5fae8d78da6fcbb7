"""What ends a process from outside: signals, and the end of its parent; and how one is forked beside them."""

from __future__ import annotations

import ctypes
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

# Beside Ctrl-C. The last is that of a terminal which is closed; Windows has none.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def end_with_parent(number: int) -> None:
    """Linux: this process gets a signal when the one that forked it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def end(number: int, frame: object) -> NoReturn:
    """The handler of a command that ends on a signal, as SystemExit: what it has begun is cleaned up."""
    sys.exit(128 + number)


@contextmanager
def forking(numbers: Iterable[int]) -> Iterator[set[int | signal.Signals]]:
    """Around a fork: these signals wait, for the new process until it has handlers of its own and lets them through.

    Gives what was blocked before. Python's warning of forks beside threads is left out: those that are made so use none
    of the threads.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            # One that came just before acts here, after they are blocked: it must not leave them so.
            signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
            yield mask
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
