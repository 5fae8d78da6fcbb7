"""Looks at numbers on an accelerator, which make the processor wait for it: those of a step are taken as one.

Inside `postponed` nothing is decided by numbers: what would be in doubt is noted on the device, and whoever began looks
at all of it once. Where something was, the work is done again, with a look wherever one is due.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .caution import warn
from .garbage import uncollected

R = TypeVar("R")


class Looks:
    """What a run on an accelerator has not looked at yet, and what it learned when it last did.

    Attributes
    ----------
    doubts : list of Tensor
        Booleans of no axes: whether something is not as it was taken to be.
    known : dict
        What those who looked have found, for those who do not.
    steady : bool
        Whether the same operations are done each time; someone who cannot do without a look says that they are not.
    """

    def __init__(self) -> None:
        self.doubts: list[Tensor] = []
        self.known: dict[Hashable, int] = {}
        self.steady = self._records = True
        self._replays: dict[Hashable, Replay | None] = {}

    def doubt(self) -> Tensor:
        """Whether there was a doubt since this was asked for last, without looking."""
        doubts, self.doubts = self.doubts, []
        return torch.stack(doubts).any()

    def doubted(self) -> bool:
        """The same, looked at."""
        return bool(self.doubts) and bool(self.doubt())

    def forget(self) -> None:
        """Goes back to the beginning, after a doubt."""
        self.doubts, self.known, self.steady, self._replays = [], {}, True, {}

    def replayed(self, key: Hashable, function: Callable[[Tensor], Tensor], argument: Tensor) -> Tensor:
        """function(argument) of one that decides nothing by numbers and is told from others by the key.

        From its second call on with arguments of one shape the device has it as one graph of operations.
        """
        key = key, argument.shape, argument.dtype
        if not (key in self._replays and self.steady and self._records and argument.is_cuda):
            self._replays[key] = None
            return function(argument)
        replay = self._replays[key]
        if replay is None:
            try:
                replay = self._replays[key] = self._recorded(function, argument)
            except RuntimeError as error:
                warn(f"the operations of a velocity could not be recorded, and will be named each time: {error}")
                self._records = False
                return function(argument)
        replay.argument.copy_(argument)
        replay.graph.replay()
        if replay.doubt is not None:
            self.doubts.append(replay.doubt.clone())
        return replay.result.clone()

    def _recorded(self, function: Callable[[Tensor], Tensor], argument: Tensor) -> Replay:
        """What a device is to repeat; doubts in it are its own."""
        argument, device = argument.clone(), argument.device
        others, self.doubts = self.doubts, []
        beside = torch.cuda.Stream(device)
        beside.wait_stream(torch.cuda.current_stream(device))
        try:
            with uncollected():  # what garbage collection lets go of may be memory of the device: that ends a recording
                with torch.cuda.stream(beside):  # libraries take their memory in a first call, which is not recorded
                    function(argument)
                torch.cuda.current_stream(device).wait_stream(beside)
                self.doubts, graph = [], torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    result = function(argument)
                    doubt = self.doubt() if self.doubts else None
        finally:
            self.doubts = others
        return Replay(graph, argument, result, doubt)


class Replay(NamedTuple):
    """The operations of a function that a device has been taught, and where in its memory they work."""

    graph: torch.cuda.CUDAGraph
    argument: Tensor
    result: Tensor
    doubt: Tensor | None


class _Current(threading.local):
    looks: Looks | None = None


_CURRENT = _Current()


def current() -> Looks | None:
    """Where doubts are noted; None where one looks at once."""
    return _CURRENT.looks


def as_one(looks: Looks | None, work: Callable[[], R], doubted: Callable[[R], bool] | None = None) -> R:
    """work() with its looks taken as one, which `doubted` may take together with one at the result.

    Where there was a doubt it is done again with nothing known, so that what is needed is looked at once more; where
    that did not help, with each look where it is due.
    """
    if looks is not None:
        for _ in range(2):
            with postponed(looks):
                result = work()
            if not (looks.doubted() if doubted is None else doubted(result)):
                return result
            looks.forget()
    return work()


@contextmanager
def postponed(looks: Looks | None) -> Iterator[None]:
    """Until the block ends, doubts are noted in `looks`; with None one looks at once."""
    before, _CURRENT.looks = _CURRENT.looks, looks
    try:
        yield
    finally:
        _CURRENT.looks = before
