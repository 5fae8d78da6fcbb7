"""What `integrate` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Trajectory:
    """A training flow at its output times.

    Attributes
    ----------
    times : Tensor (T,)
        The output times that were reached, in flow time; float64 whatever the state is.
    z : Tensor (T, ..., d, d)
        End-to-end maps.
    loss : Tensor (T, ...)
    drift : Tensor (T, ...)
        Largest Frobenius distance over depth of the conserved quantity from its start; zero for flows without one.
    state : Tensor
        The last state.
    stats : dict
        "evaluations" of the velocity, "seconds", "method", "rtol", "atol".
    status : str
        "ok", or a sentence that says why the run ended before the last time.
    """

    times: Tensor
    z: Tensor
    loss: Tensor
    drift: Tensor
    state: Tensor
    stats: dict[str, Any]
    status: str
