"""Independent computations, side by side on the processors of this machine."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from .caution import warn
from .compat import end_pool
from .parent import end_with_parent, forking
from .threads import libraries

Key = TypeVar("Key")
Result = TypeVar("Result")

_PATIENCE = 10.0  # seconds that a worker has for its last step
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Python does not notice a signal that comes between its last look and a wait before that ends: nobody waits longer.
LONGEST_WAIT = 1.0  # seconds

_task: Callable[[Any], Any] | None = None  # of a worker


def side_by_side(
    task: Callable[[Key], Result], keys: Sequence[Key], workers: int | None = None
) -> Iterator[tuple[Key, Result]]:
    """task(key) for every key, in any order, as pairs (key, result) as they come.

    Parameters
    ----------
    task : callable
        Its results are pickled.
    keys : sequence
        Those that take longest first. Every second worker begins at the other end: two large tasks side by side would
        wait for the same memory, and those of the middle come last, so that no processor is idle for long.
    workers : int, optional
        Processes of one thread each; by default one per processor. With one, or where processes cannot be forked
        (outside Linux, with a GPU in use, or in a worker of `multiprocessing.Pool`, which may have no children), the
        tasks run one after the other in this process; also, with a warning, where a limit of processes or of threads,
        or no shared memory, leaves none to be had.

    Raises
    ------
    RuntimeError
        If a process has ended before its task; beside that whatever a task raises, by its name and words where it
        cannot be taken from one process to another.
    """
    torch = sys.modules.get("torch")  # what draws figures need not import it
    if not hasattr(os, "sched_getaffinity") or (torch and torch.cuda.is_initialized()):
        workers = 1
    if multiprocessing.current_process().daemon:
        workers = 1
    workers = min(workers or processors(), len(keys))
    if workers <= 1:
        yield from ((key, task(key)) for key in keys)
        return
    pool: ProcessPoolExecutor | None = None
    running, waiting = dict[Future[tuple[Key, Result]], bool](), deque(keys)

    def submit(front: bool) -> None:
        assert pool is not None
        running[pool.submit(_call, waiting.popleft() if front else waiting.pop())] = front

    try:
        # The workers inherit the task when they are forked: it may hold what cannot be pickled, such as a user's loss.
        fork = multiprocessing.get_context("fork")
        try:
            pool = ProcessPoolExecutor(workers, fork, _start_worker, (task, os.getpid()))
            with forking(_SIGNALS):
                for worker in range(workers):
                    submit(worker % 2 == 0)
        except BrokenProcessPool:
            raise
        except (OSError, ImportError, RuntimeError) as error:  # the second where there are no semaphores at all
            if pool is not None:
                end_pool(pool, _PATIENCE)
                pool = None
            reason = getattr(error, "strerror", None) or error
            warn(f"the {workers} processes that are to compute cannot be had ({reason}): all is computed in this one")
        if pool is None:
            yield from ((key, task(key)) for key in keys)
            return
        while running:
            for future in wait(running, LONGEST_WAIT, FIRST_COMPLETED).done:
                front = running.pop(future)
                if waiting:
                    submit(front)
                yield future.result()
        pool.shutdown()
    except BaseException as error:  # also the user's Ctrl-C: nobody waits for the rest
        if pool is None:
            raise
        end_pool(pool, _PATIENCE)  # an integration with a checkpoint saves itself first
        if isinstance(error, BrokenProcessPool) and error.__cause__ is None:
            # Where it comes as a task is handed in, those at work know more: it may be of a result.
            known = [future.exception() for future in running if future.done() and not future.cancelled()]
            if of_result := next((one for one in known if one is not None and one.__cause__ is not None), None):
                raise of_result from of_result.__cause__
            raise RuntimeError(
                f"one of the {workers} processes that compute was ended from outside, as Linux does where memory is "
                "short, or by a fault in compiled code; fewer of them take less memory (study.workers=1)"
            ) from error
        raise


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker(task: Callable[[Any], Any], parent: int) -> None:
    global _task
    _task = task
    gc.freeze()  # nobody need look through what the parent has
    end_with_parent(signal.SIGKILL)  # one that is killed leaves no workers behind
    if os.getppid() != parent:  # which has ended already: nobody else would end this one
        os._exit(1)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    libraries().limit(limits=1)  # BLAS below NumPy and SciPy too: idle threads of two workers would be in the way
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _call(key: Any) -> tuple[Any, Any]:
    if _task is None:
        raise RuntimeError("the worker was not forked from the study")
    try:
        return key, _task(key)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # the pool would take the worker for ended
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise
