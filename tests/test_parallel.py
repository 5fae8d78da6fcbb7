"""Tasks in processes beside each other."""

import multiprocessing
import signal
import threading
import time

import pytest

from neuralode_flow.parallel import side_by_side


def test_an_interruption_that_wakes_nobody_is_noticed():
    """As one that comes where the main thread is just about to wait; the workers end with it."""
    timer = threading.Timer(0.5, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))
    started = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(side_by_side(time.sleep, [60.0, 60.0], workers=2))
    timer.join()
    assert time.monotonic() < started + 30
    assert multiprocessing.active_children() == []
