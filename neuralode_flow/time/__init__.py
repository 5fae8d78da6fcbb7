"""Training time: `integrate`, the methods behind it, and what it gives back."""

from . import methods
from .base import METHODS
from .endings import ENDINGS
from .integrate import integrate
from .trajectory import Trajectory

__all__ = ["ENDINGS", "METHODS", "Trajectory", "integrate", "methods"]
