"""Signals that end a run after its present step, so that it can be saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Request:
    """Whether a signal has come; the first one is kept, a second one acts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def postponed(active: bool) -> Iterator[Request]:
    """Keeps SIGINT and SIGTERM back for the block; what they would have done is done at its end.

    Only the main thread of a process can do that; elsewhere, or unless `active`, signals act as ever.
    """
    request = Request()
    if not active or threading.current_thread() is not threading.main_thread():
        yield request
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    kept = {number: handler for number, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}

    def restore() -> None:
        for number, handler in kept.items():
            signal.signal(number, handler)

    def keep(number: int, frame: Any) -> None:
        if request.signal is not None:
            restore()
            signal.raise_signal(number)
        request.signal = number

    for number in kept:
        signal.signal(number, keep)
    try:
        yield request
    finally:
        restore()
    if request.signal is not None:
        signal.raise_signal(request.signal)
