"""The standard streams of a command: fit to be written to, whatever they are and whether or not somebody reads them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import complain

READER_GONE = 141  # as of a program that SIGPIPE ends: 128 + 13


class Output:
    """A stream that is silent from the first failure on, and keeps it: whoever writes has other things to end."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.failure: OSError | None = None
        self.told = False  # where the results are instead

    def write(self, text: str) -> int:
        """The number of characters that were taken."""
        try:
            self.stream.write(text)
        except OSError as error:
            self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Writes what is held back."""
        try:
            self.stream.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.failure = self.failure or error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.stream.fileno())
        os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def reader_gone() -> bool:
    """Whether the reader of the output has gone away."""
    return isinstance(sys.stdout, Output) and isinstance(sys.stdout.failure, BrokenPipeError)


def lose_reader() -> None:
    """Takes note that a process which prints to the same place has found its reader gone."""
    if isinstance(sys.stdout, Output):
        sys.stdout.failure = sys.stdout.failure or BrokenPipeError()


@contextmanager
def standard_streams() -> Iterator[None]:
    """Everything that a command does, which ends here.

    Where the current folder is gone the status is 2, and nothing is done. Signs that the encoding of a stream lacks are
    replaced. A stderr that cannot be written to any more, such as a terminal that was closed, ends nothing. A reader
    that has gone away, such as `head`, makes the status 141, and what cannot be printed because stdout is full or
    closed makes it 1, unless `results_told` stands around it. Another status than 0 stays.
    """
    _open_closed()
    try:
        os.getcwd()
    except OSError:
        complain("the current folder has been removed; change into another one")
        sys.exit(2)
    for name, fd in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:  # it was closed
            setattr(sys, name, open(fd, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # and not what a program that calls this has put there
            stream.reconfigure(errors="replace")
    before, ended = (sys.stdout, sys.stderr), None
    sys.stdout, sys.stderr = output, said = Output(sys.stdout), Output(sys.stderr)
    try:
        yield
    except SystemExit as stop:
        ended = stop
    finally:
        output.flush()
        said.flush()
        sys.stdout, sys.stderr = before
    if ended is not None and ended.code:
        raise ended
    if isinstance(output.failure, BrokenPipeError):
        sys.exit(READER_GONE)
    if output.failure is not None and not output.told:
        complain(f"stdout cannot be written to: {output.failure.strerror}")
        sys.exit(1)
    if ended is not None:
        raise ended


@contextmanager
def results_told(where: object) -> Iterator[None]:
    """Around what tells of results that lie in a folder: that it cannot be printed makes the run no failure."""
    yield
    output = sys.stdout
    output.flush()
    if isinstance(output, Output) and output.failure is not None and not output.told:
        output.told = True
        if not isinstance(output.failure, BrokenPipeError):
            complain(f"stdout cannot be written to: {output.failure.strerror}; the results are in {where}")


def _open_closed() -> None:
    """Opens the null device for each stream that is closed: else the first file of the run would take its place.

    Standard output is opened for reading, so that what is written to it fails.
    """
    for fd, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)
