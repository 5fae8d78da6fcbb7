"""Problems by name: a loss on the end-to-end map z and the map that training starts from."""

from . import bundled, file, reflection, teacher  # noqa: F401  (each files its builders in PROBLEMS)
from .base import PROBLEMS, Problem

__all__ = ["PROBLEMS", "Problem"]
