"""Training time: `integrate`, the methods behind it, and what it gives back."""

from . import methods, rules
from .base import METHODS
from .descend import descend
from .endings import ENDINGS
from .integrate import integrate
from .steprule import STEP_RULES
from .trajectory import Trajectory

__all__ = ["ENDINGS", "METHODS", "STEP_RULES", "Trajectory", "descend", "integrate", "methods", "rules"]
