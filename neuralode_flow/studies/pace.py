"""Says once when explicit steps would take far longer than anybody waits."""

from __future__ import annotations

import threading
from ctypes import c_bool
from functools import cache
from multiprocessing import RLock, Value
from multiprocessing.sharedctypes import synchronized
from typing import Any, cast

from ..caution import warn
from ..time.base import METHODS, fixed_steps
from ..time.progress import Progress, Report

PATIENCE = 5.0  # seconds before anything is said
LONG = 600.0  # seconds to come that are worth a word

# Methods that take long steps where a problem is stiff.
_STIFF = ("auto", "BDF", "CVODE_BDF", "LSODA", "Radau")


@cache
def _lock() -> Any:
    """One for all: each is a semaphore of the system, whose making takes as long as that of the rest of a clock."""
    return RLock()


class Pace:
    """The pace of all integrations of a study, also of those in processes forked from this one: told at most once."""

    def __init__(self) -> None:
        self._told: Any
        try:
            self._told = Value(c_bool, False, lock=_lock())  # in memory that forked processes share
        except (OSError, ImportError):  # without /dev/shm, or where that is full, no processes are side by side either
            self._told = synchronized(c_bool(False), cast("Any", threading.RLock()))

    def watch(self, method: str) -> Report | None:
        """What is to be told of the progress of one integration; None where other steps would be no longer.

        Its pace is that of the second half of the time that it has taken: first steps are short.
        """
        if method in _STIFF or fixed_steps(METHODS[method]):
            return None
        marks: list[Progress] = []

        def report(where: Progress) -> None:
            if not marks:
                marks.append(where)
            elif where.seconds >= 2 * marks[0].seconds and not self._told.value:
                if where.seconds >= PATIENCE and where.t > marks[0].t:  # else nothing is known
                    self._judge(method, marks[0], where)
                marks[0] = where

        return report

    def _judge(self, method: str, before: Progress, now: Progress) -> None:
        moved, took = now.t - before.t, now.seconds - before.seconds
        left = (now.end - now.t) * took / moved
        with self._told.get_lock():
            if left < LONG or self._told.value:
                return
            self._told.value = True
        warn(
            f"{method} has come to t = {now.t:.3g} of {now.end:g} in {now.seconds:.0f} s and needs {_about(left)} "
            "more at this pace. Where stability limits its steps, time.method=auto takes far longer ones; "
            "time.max_seconds=SECONDS ends the run in time"
        )


def _about(seconds: float) -> str:
    """A duration in the largest unit of which it is two or more."""
    for unit, size in (("years", 31_557_600), ("days", 86_400), ("hours", 3600)):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit}" if seconds < 1e4 * size else f"thousands of {unit}"
    return f"about {seconds / 60:.0f} minutes"
