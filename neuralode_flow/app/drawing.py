"""The figures of a run: drawn by a process beside this one that imports Matplotlib while this one imports torch.

That process is forked where a command begins, on Linux with two processors or more: else one of them has nothing to do
until the study runs. It knows the figures of this package and no torch. Whatever it cannot do, this process does in
its place: also where it was ended, where a figure raises, or where a run takes so long that half a second is nothing.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

import xarray as xr

from ..garbage import uncollected
from ..parallel import processors, side_by_side
from ..parent import end_with_parent, forking
from .report import Described, Drawn, Shown, all_drawn

_PATIENCE = 60.0  # seconds that the process waits: a longer run would keep its memory for nothing


@dataclass(frozen=True, eq=False)
class Drawing:
    """All figures of a study, to be saved side by side and shown on the page of a run.

    Attributes
    ----------
    folder : Path
        The run folder.
    study : str
    formats : sequence of str
        What each figure is saved as; without any, none is drawn.
    workers : int or None
        How many are drawn at once.
    dataset : xarray.Dataset
    said : str
        What the page has said before.
    """

    folder: Path
    study: str
    formats: Sequence[str]
    workers: int | None
    dataset: xr.Dataset
    said: str

    def __call__(self) -> list[Shown]:
        """Draws them in this process; a study without figures has none."""
        if not self.formats:
            return []
        with uncollected():
            # With Matplotlib, which a run without figures has no use for.
            from ..figures import FIGURES, figure_set, ready, save

        own = figure_set(self.study, self.dataset)
        if own not in FIGURES:
            return []
        with uncollected():
            ready(self.formats)
        folder = self.folder / "figures"
        folder.mkdir(exist_ok=True)
        figures = FIGURES[own](self.dataset)

        def saved(name: str) -> Described:
            picture = save(figures[name], folder / name, self.formats)[0]
            return Drawn(figures[name], picture).described()

        described = dict(side_by_side(saved, list(figures), self.workers))
        in_order = {name: described[name] for name in figures}
        return all_drawn(self.folder, self.said, FIGURES[own].captions, in_order)


_other: tuple[BaseProcess, Connection] | None = None


def prepare(study: str, formats: Sequence[str], configure: Callable[[], None]) -> None:
    """Forks the process that is to draw, before torch is imported; it ends with this one."""
    global _other
    if not formats or sys.platform != "linux" or "torch" in sys.modules or processors() < 2:
        return
    with uncollected():
        import scipy.integrate  # noqa: F401  # what both need, once

    fork = multiprocessing.get_context("fork")
    try:
        ours, theirs = fork.Pipe()
        process = fork.Process(target=_wait, args=(os.getpid(), ours, theirs, study, formats, configure))
        with theirs, forking([signal.SIGINT]):  # Ctrl-C reaches both: this one ends the other
            process.start()
    except OSError:  # a limit of open files, of processes or of memory: this one draws
        return
    _other = process, ours
    atexit.register(dismiss)


def _wait(
    parent: int, theirs: Connection, ours: Connection, study: str, formats: Sequence[str], configure: Callable[[], None]
) -> None:
    """What the process does that draws: it draws what it is sent, once."""
    theirs.close()
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # which has ended already
        return
    with suppress(Exception):
        configure()
        with uncollected():
            import scipy.interpolate  # noqa: F401  # for smooth curves

            from ..figures import FIGURES, ready

            FIGURES.check(study)
            ready(formats)
        gc.freeze()
        if not ours.poll(_PATIENCE):
            return
        shown = ours.recv()()
        sys.stdout.flush()  # before it is ended
        if "torch" not in sys.modules:  # whose settings only the other process knows
            ours.send(shown)


def begun(drawing: Callable[[], list[Shown]]) -> Callable[[], list[Shown]]:
    """The same, where the other process has begun with it by now, if there is one."""
    if _other is not None:
        try:
            _other[1].send(drawing)
        except Exception:  # it has gone, or what is to be drawn cannot be pickled
            dismiss()
    return partial(_answer, drawing)


def _answer(drawing: Callable[[], list[Shown]]) -> list[Shown]:
    """What the other process has drawn, or this one draws now."""
    try:
        if _other is not None:
            return cast("list[Shown]", _other[1].recv())
    except (EOFError, OSError):  # it has gone
        pass
    finally:
        dismiss()
    return drawing()


def dismiss() -> None:
    """Ends the process that draws, if there is one."""
    global _other
    if _other is not None:
        process, pipe = _other
        _other = None
        process.kill()
        process.join()
        pipe.close()
