"""The central flow as a flow, which `integrate` moves through time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import all_finite, positive
from ..flows.base import Flow
from ..flows.modified import FollowsSteps
from ..modes import undisturbed
from .edge import central
from .hessian import Hessian, fixed_weights, plain_numbers


class CentralFlow(FollowsSteps):
    """The central flow of gradient descent of a rate, around the flow whose steps those are: see `central_velocity`.

    Where the sharpness is well below 2/rate it is the flow itself; at the edge of stability it goes through the middle
    of the oscillation of gradient descent.

    Parameters
    ----------
    flow : ContinuousFlow, FiniteFlow or FactorizationFlow
        Its states are those of this one.
    rate : float
        The step size η > 0, in flow time.

    Attributes
    ----------
    learning_rate : float
        η.

    Raises
    ------
    TypeError, ValueError
        If flow is none of those or rate is not a positive number; at the start of a run as `hessian` does.

    Notes
    -----
    Each velocity finds eigenpairs of the Hessian anew, from the same start: nothing is remembered from one to the next,
    so that a run which is resumed gives the same numbers to the bit. The velocity is continuous and has kinks where a
    variance becomes zero, across which steps in time are of lower order: methods with error control take small ones
    there.

    Examples
    --------
    >>> flow = nf.FactorizationFlow(lambda theta: theta[..., 0] * theta[..., 1], nf.Quadratic(torch.tensor(1.0)))
    >>> theta, rate = torch.tensor([3.0, 0.1]), 0.25
    >>> path = nf.integrate(nf.CentralFlow(flow, rate), theta, [0.0, 4.0], rtol=1e-4, atol=1e-6)
    >>> sharpness = nf.curvature.sharpness(flow, path.state).value
    >>> abs(float(sharpness) - 2 / rate) < 1e-3, float(path.loss[-1]) < 1e-6
    (True, True)
    """

    def __init__(self, flow: Flow, rate: float) -> None:
        fixed_weights(flow)
        self.flow = flow
        self.learning_rate = positive("rate", rate)

    def check(self, state: Tensor) -> None:
        """Raises TypeError or ValueError unless the flow has a Hessian at the state."""
        Hessian(self.flow, state)

    @undisturbed
    def velocity(self, state: Tensor) -> Tensor:
        """That of `central_velocity`, of the shape of the state."""
        state = plain_numbers("state", state)
        with torch.no_grad():
            velocity = self.flow.velocity(state)
        if not all_finite(velocity):
            return velocity
        try:
            return central(Hessian.unchecked(self.flow, state), velocity, self.learning_rate).velocity
        except (RuntimeError, ValueError) as error:
            raise FloatingPointError(str(error)) from error
