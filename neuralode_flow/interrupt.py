"""Signals that act a little later: after the present step of a run, so that it can be saved first, or a whole file."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .parent import ENDING

SIGNALS = (signal.SIGINT, *ENDING)


class Request:
    """The signal that has come and has not acted yet, if any.

    Attributes
    ----------
    signal : int or None
        The first one that came.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def hold(self) -> None:
        """From now on signals are kept, except those that would be ignored anyway."""
        found = {number: signal.getsignal(number) for number in SIGNALS}
        self._handlers = {number: handler for number, handler in found.items() if handler not in (None, signal.SIG_IGN)}
        for number in self._handlers:
            signal.signal(number, self._keep)

    def release(self) -> None:
        """From now on signals act as ever."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def act(self) -> None:
        """Does what the signal that was kept would have done; where that ends nothing, the next one is kept again."""
        number, self.signal = self.signal, None
        if number is None:
            return
        self.release()
        signal.raise_signal(number)
        self.hold()

    def _keep(self, number: int, frame: Any) -> None:
        # Somebody who presses Ctrl-C twice does not want to wait. Other signals come twice to one process for other
        # reasons: from a cluster, and from the process that has started it.
        twice = self.signal == number == signal.SIGINT
        self.signal = self.signal or number
        if twice:
            self.act()


@contextmanager
def postponed(active: bool) -> Iterator[Request]:
    """Keeps the signals that end a run for the block, which asks for them by `act`; one that is left acts at its end.

    Only the main thread of a process can do that; elsewhere, or unless `active`, signals act as ever.
    """
    request = Request()
    if not active or threading.current_thread() is not threading.main_thread():
        yield request
        return
    request.hold()
    try:
        yield request
    finally:
        request.release()
    if request.signal is not None:
        signal.raise_signal(request.signal)
