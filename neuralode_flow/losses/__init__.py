"""Losses f(z) of the end-to-end map and their gradients G = ∇f(z), a file for each kind.

A file that is put here and registers a loss of a regression in `LOSSES` is found by its name.
"""

import sys

from ..registry import import_modules
from .base import LOSSES, Loss, LossName, Squares, check_loss, check_square_loss, loss_said, squares_of
from .completion import Completion
from .cross_entropy import CrossEntropy
from .custom import Custom
from .least_squares import LeastSquares
from .logistic import Logistic
from .promises import check_derivatives, compare_derivatives
from .quadratic import Quadratic
from .regression import Regression
from .separable import Separable, log_cosh

import_modules(sys.modules[__name__])

__all__ = [
    "LOSSES",
    "Completion",
    "CrossEntropy",
    "Custom",
    "LeastSquares",
    "Logistic",
    "Loss",
    "LossName",
    "Quadratic",
    "Regression",
    "Separable",
    "Squares",
    "check_derivatives",
    "check_loss",
    "check_square_loss",
    "compare_derivatives",
    "log_cosh",
    "loss_said",
    "squares_of",
]
