"""One member of a sweep in a process of its own, so that even one that is killed leaves the others alone."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ..parent import end, end_with_parent, forking
from ..threads import end_openmp
from .errors import Stop, complain
from .records import FAILED
from .runfolder import InUseElsewhere, record_failure
from .streams import READER_GONE, lose_reader, reader_gone

Work = Callable[[], None]

# What the last child has imported, so that the next ones need not.
_wanted: list[str] = []

_FAILED, _BUSY = 1, 75  # exit statuses; the second is EX_TEMPFAIL of <sysexits.h>
_INTERRUPTED = (130, 143)

# Seconds that a member of a Slurm job which was told to end waits for Slurm, once it has saved itself: it is ended
# after 30 (KillWait), or queued again by Slurm or submitit. Slurm does not queue a job again that ends by itself.
_GRACE = 45.0


class Killed(Exception):
    """The process was ended by a signal, which was for it alone where it could answer it."""


class Unrecorded(Exception):
    """Why a member has failed could not be written into its folder; the text has both reasons."""


def run_member(work: Work, folder: Path, overrides: Sequence[str]) -> None:
    """Runs one member of a sweep; whatever ends it early is recorded in its folder and does not end the sweep.

    One that is killed, or told to end by itself, is tried once more (but not where processes cannot be forked); one
    that another run holds is left to that. Raises Unrecorded where the folder takes no record, as on a disk that is
    full.
    """
    (folder / FAILED).unlink(missing_ok=True)
    run = _in_a_child if hasattr(os, "fork") else _outcome
    try:
        try:
            status, reason = run(work)
        except Killed as killed:  # from outside, such as for want of memory: it goes on from what it has saved
            complain(f"member {folder.name} is started again: {killed}")
            status, reason = run(work)
    except Killed as killed:
        status, reason = _FAILED, str(killed)
    if status == _BUSY:
        complain(f"member {folder.name} is left alone: {reason}")
    elif status:
        try:
            record_failure(folder, overrides, reason)
        except OSError as error:
            raise Unrecorded(f"{reason}; nor could that be recorded: {error.strerror or error}") from error


def _outcome(work: Work) -> tuple[int, str]:
    """An exit status, and why the work ended early."""
    try:
        work()
    except InUseElsewhere as error:
        return _BUSY, str(error)
    except Stop as stop:
        return _FAILED, str(stop)
    except Exception as error:
        traceback.print_exc()
        return _FAILED, f"{type(error).__name__}: {error}"
    return 0, ""


def _in_a_child(work: Work) -> tuple[int, str]:
    """The same in a process of its own; raises Killed, and SystemExit where it was told to end."""
    from . import job  # with torch: once here, and not in each child

    for name in _wanted:
        with suppress(Exception):  # a child imports it where it needs it, and says what is wrong then
            importlib.import_module(name)
    _wanted.clear()
    job.foreseen()
    end_openmp()  # a plugin, or a launcher, may have used them
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        reader, writer = os.pipe()
        try:
            with forking(signal.valid_signals()) as mask:
                parent, child = os.getpid(), os.fork()
                if child == 0:
                    _be_child(work, writer, parent, mask)
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
    except OSError as error:  # a limit of open files, of processes or of memory
        return _FAILED, f"no process could be made for it: {error.strerror or error}"
    try:
        with os.fdopen(reader, "rb") as pipe:
            reason, *imported = pipe.read().decode(errors="replace").split("\0")
        _, status = os.waitpid(child, 0)
    except BaseException:  # the user's Ctrl-C, or a signal: the member saves itself first
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        raise Killed(f"its process was killed by signal {number} ({_signal_name(number)})")
    _wanted.extend(name for name in imported if name not in sys.modules)
    code = os.waitstatus_to_exitcode(status)
    if code == READER_GONE:
        lose_reader()
        return 0, ""
    # One that was for both would have ended this process; what others do on it is not known.
    if code == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) in (end, signal.SIG_DFL):
        raise Killed(f"its process was told to end by signal {int(signal.SIGTERM)} (SIGTERM)")
    if code in _INTERRUPTED:
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            time.sleep(_GRACE)  # the signal that makes submitit queue the job again ends this
        sys.exit(code)
    return code, reason or f"its process ended with status {code}"


def _be_child(work: Work, writer: int, parent: int, mask: set[int | signal.Signals]) -> None:
    """What the child does; it does not return."""
    status, before = _FAILED, {*sys.modules}
    try:
        _set_signals(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        status, reason = _outcome(work)
        if status == 0 and reader_gone():  # which is no failure of the member
            status = READER_GONE
        imported = [name for name in sys.modules if name not in before] if status == 0 else []
        said = "\0".join([reason.replace("\0", "")[:4000], *imported])
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(said.encode(errors="replace"))
    except KeyboardInterrupt:
        status = 130
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else _FAILED
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def _set_signals(parent: int) -> None:
    """A child ends on SIGTERM, Ctrl-C and the death of its parent; what else its parent answers is not its concern.

    The handlers of the parent are those of a launcher: that of submitit does not end the process on SIGTERM, and on
    another signal queues the job again.
    """
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)) and number not in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    end_with_parent(signal.SIGTERM)  # so that it saves itself and lets its folder go
    if os.getppid() != parent:  # which has ended already
        sys.exit(143)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return "no name"
