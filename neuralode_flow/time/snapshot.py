"""A run between two steps: what it is taken back to when the next one does not end, and what a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..flows.capabilities import Leaves, OnGrid, offers
from .barrier import written
from .base import Memory
from .checkpoint import Saved
from .records import given
from .trajectory import Trajectory
from .watch import Watch

# Where a checkpoint has the state in the coordinates of the method, and that of the last row, if it is another.
_CARRIED, _LAST = "carried", "_last_state"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Where a run stands.

    Attributes
    ----------
    t : float
    state : Tensor
        In the coordinates of the method.
    memory : Memory
        That of the method at this very time and state.
    outputs, steps : int
    last : float and Tensor
        Time and state where z was computed last.
    depth : list of float
        What the control of the depth grid knows.
    barrier : dict or None
        What the barrier knows.
    history : list of str
        What the methods and the depth grid did on their own.
    """

    t: float
    state: Tensor
    memory: Memory
    outputs: int
    steps: int
    last: tuple[float, Tensor]
    depth: list[float]
    barrier: dict[str, Tensor] | None
    history: list[str]

    def saved(self, reached: Trajectory, watch: Watch, ends: list[float], *, finished: bool) -> Saved:
        """What a checkpoint is to hold; `reached` may have one more row than there are outputs."""
        flow = watch.grid.flow
        if not finished:
            reached = replace(reached, state=given(flow, self.state))
        position = {
            "finished": finished,
            "t": self.t,
            "outputs": self.outputs,
            "steps": self.steps,
            "last": self.last[0],
            "evaluations": watch.evaluations,
            "products": watch.products,
            "seconds": watch.seconds,
            "grid": panels_and_order(flow),
            "depth": self.depth,
            "barrier": None if self.barrier is None else written(self.barrier),
        }
        carried = {_CARRIED: self.state} if offers(flow, Leaves) else {}
        last = {} if torch.equal(self.last[1], self.state) else {_LAST: self.last[1]}
        return Saved(reached, position, {**self.memory, **carried, **last}, ends)


class Beginning(NamedTuple):
    """Where a run begins: a time, a state in the coordinates of the method, its memory; and what lies behind it.

    `last` is when and where z was computed last.
    """

    t: float
    state: Tensor
    memory: Memory
    ends: list[float]
    history: list[str]
    last: tuple[float, Tensor]


def taken_up(saved: Saved, start: Tensor) -> Beginning:
    """Where a checkpoint has left the run from `start`."""
    memory = dict(saved.memory)
    state = torch.as_tensor(memory.pop(_CARRIED, saved.reached.state), device=start.device).to(start)
    t, device = saved.position["t"], start.device
    last = saved.position.get("last", t), torch.as_tensor(memory.pop(_LAST, state), device=device).to(start)
    return Beginning(t, state, memory, saved.ends, list(saved.reached.stats["history"]), last)


def panels_and_order(flow: object) -> list[int] | None:
    """The depth grid that a flow stands on, if it does."""
    return [flow.grid.panels, flow.grid.order] if offers(flow, OnGrid) else None
