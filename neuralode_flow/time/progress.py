"""How far a run is, for people who wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

INTERVAL = 0.2  # seconds between two reports


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes
    ----------
    t, end : float
        Training time, and the last time of the run.
    fraction : float
        Part of the training time that is done, in [0, 1].
    loss : float
        Largest loss over members.
    step : float
        Size of the last step.
    evaluations : int
        Velocity evaluations so far.
    seconds : float
        Wall time so far.
    """

    t: float
    end: float
    fraction: float
    loss: float
    step: float
    evaluations: int
    seconds: float

    def __str__(self) -> str:
        return f"t = {self.t:.4g}, loss {self.loss:.3e}, step {self.step:.1e}, {self.evaluations} evaluations"


Report = Callable[[Progress], None]


class Throttled:
    """Asks for a report at most every INTERVAL seconds, and at the end."""

    def __init__(self, report: Report | None) -> None:
        self._report = report
        self._next = 0.0

    def __call__(self, make: Callable[[], Progress], *, last: bool = False) -> None:
        if self._report is not None and (last or time.perf_counter() >= self._next):
            self._report(make())
            self._next = time.perf_counter() + INTERVAL


@contextmanager
def bar() -> Iterator[Callable[[float, str], None] | None]:
    """A function of (fraction done in [0, 1], what is being done) that shows it on stderr; None without a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Bar(*columns, console=console, transient=True) as drawn:
        task = drawn.add_task("starting", total=1.0)
        yield lambda fraction, what: drawn.update(task, completed=fraction, description=what)


@contextmanager
def shown(wanted: bool | Report | None) -> Iterator[Report | None]:
    """The function that reports go to: the given one, a bar on a terminal (True), or none."""
    if not wanted or callable(wanted):
        yield wanted or None
        return
    with bar() as show:
        yield show and (lambda where: show(where.fraction, str(where)))
