"""Gradient descent: W_{n+1} = W_n − η g_n, the explicit Euler steps of the flow."""

from __future__ import annotations

from ..steprule import STEP_RULES, AlongVelocity


@STEP_RULES.register("gd")
class GradientDescent(AlongVelocity):
    """Gradient descent, W_{n+1} = W_n − η g_n."""
