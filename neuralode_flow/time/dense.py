"""Dense output: z at all times of a run, by a polynomial for each step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..flows.base import Flow
from .base import FAILURES, Stepper
from .endings import Stopped
from .trajectory import NODES, Trajectory


class Dense:
    """z at the nodes of each step, on which `Trajectory.__call__` interpolates.

    The polynomial has the order of the most accurate method there is, DOP853, and its values at the nodes have the
    error of the run: a one-step method repeats the step so far, and the polynomial of a multistep method is its own.

    Parameters
    ----------
    start : float
        Where the run begins.
    """

    def __init__(self, start: float) -> None:
        self.ends = [start]
        self.values: list[Tensor] = []

    def keep(self, flow: Flow, stepper: Stepper, end: float) -> None:
        """Takes note of the last step of a method, as far as `end`."""
        before = self.ends[-1]
        times = [before, *(before + (end - before) * NODES[1:-1]).tolist(), end]
        try:
            values = torch.stack([flow.product(stepper.at(t)).clone() for t in times])
        except FAILURES as error:
            raise Stopped(
                "velocity", f"the end-to-end map could not be computed inside the step to t = {end:.6g}: {error}"
            ) from error
        self.ends.append(end)
        self.values.append(values)

    def drop(self, steps: int) -> None:
        """Goes back to when there were fewer steps."""
        del self.ends[steps + 1 :], self.values[steps:]

    def take_up(self, reached: Trajectory, steps: int) -> None:
        """Begins with the first steps of a trajectory that was saved."""
        assert reached.dense_times is not None
        assert reached.dense_z is not None
        self.ends = reached.dense_times.tolist()
        self.values = list(reached.dense_z)
        self.drop(steps)

    def tensors(self, z: Tensor) -> dict[str, Any]:
        """The two fields of the trajectory with these z at its outputs."""
        values = torch.stack(self.values).to(z) if self.values else z.new_empty(0, len(NODES), *z.shape[1:])
        return {"dense_times": torch.tensor(self.ends, dtype=torch.float64, device=z.device), "dense_z": values}
