"""Processes that tests fork."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


def end_after(work: Callable[[], None]) -> NoReturn:
    """Ends this process, which has just been forked, as Python ends a program that does that work, and at once."""
    status = 1
    try:
        work()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
