"""Training time: `integrate`, the methods behind it, and what it gives back."""

from . import auto, midpoint, scipy, sundials, torchdiffeq
from .base import METHODS
from .endings import ENDINGS
from .integrate import integrate
from .trajectory import Trajectory

__all__ = ["ENDINGS", "METHODS", "Trajectory", "auto", "integrate", "midpoint", "scipy", "sundials", "torchdiffeq"]
