"""Training time: `integrate`, the methods behind it, and what it gives back."""

from . import midpoint, scipy, torchdiffeq
from .base import METHODS
from .integrate import integrate
from .trajectory import Trajectory

__all__ = ["METHODS", "Trajectory", "integrate", "midpoint", "scipy", "torchdiffeq"]
