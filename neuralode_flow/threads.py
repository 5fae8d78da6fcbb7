"""The threads of BLAS below NumPy and SciPy, which are not those of torch."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache

from threadpoolctl import ThreadpoolController

_HARD = 2  # omp_pause_hard of <omp.h>

_lock = threading.Lock()
_inside = 0
_restores = ExitStack()  # the number of threads, after the last has left


@lru_cache(maxsize=1)
def _controller(modules: int) -> ThreadpoolController:
    """The libraries that are loaded, looked for again, which takes milliseconds, once more modules are."""
    return ThreadpoolController()


def libraries() -> ThreadpoolController:
    """The libraries with threads of their own that are loaded now; a forked process need not look for them again."""
    return _controller(len(sys.modules))


def end_openmp() -> None:
    """Ends the idle threads of OpenMP, which torch makes anew when it next needs them: before a fork.

    GNU's library takes them for alive in the new process, where none of them is, and waits for them without end.
    """
    for library in libraries().info():
        if library["user_api"] == "openmp":
            with suppress(OSError, AttributeError):  # of a library from before OpenMP 5.0
                ctypes.CDLL(library["filepath"]).omp_pause_resource_all(_HARD)


def _limit() -> None:
    _restores.enter_context(libraries().limit(limits=1, user_api="blas"))


@contextmanager
def late_blas() -> Iterator[None]:
    """Around an import: a BLAS that it loads has one thread too, while `one_blas_thread` lasts."""
    before = len(sys.modules)
    yield
    with _lock:
        if _inside and len(sys.modules) > before:
            _limit()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """While it lasts, BLAS below NumPy and SciPy runs on one thread.

    Solvers over time combine states by NumPy between two velocities of torch. The threads of both wait for more work
    by spinning, each in the other's way: with two of each on two processors a velocity then takes up to ten times as
    long, and all that NumPy has to do here is bound by memory.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _limit()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _restores.close()
