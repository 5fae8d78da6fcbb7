"""Along which flows the loss falls all the way."""

from __future__ import annotations

from typing import Any

from .base import lends_velocity
from .continuous import ContinuousFlow
from .factorization import FactorizationFlow
from .finite import FiniteFlow
from .intrinsic import IntrinsicFlow
from .polar import LogPolarFlow

_GRADIENT_FLOWS = (ContinuousFlow, FactorizationFlow, FiniteFlow, IntrinsicFlow, LogPolarFlow)


def loss_falls(flow: Any) -> bool:
    """Whether a flow is a gradient flow of its loss, which never rises along it.

    That is known of the library's own: not with inertia, nor of flows that follow large steps, nor of a velocity of
    one's own.
    """
    return isinstance(flow, _GRADIENT_FLOWS) and not lends_velocity(flow)
