"""The largest margin of two classes, with the gap that tells how exact it is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

_SEPARATE = 1e-9  # of the residual, which is 0 where no half-space holds all rows


class Margin(NamedTuple):
    """max_{‖w‖ = 1} min_i ⟨z_i, w⟩ between two numbers, and the w of the lower one.

    Attributes
    ----------
    lower : float
        The margin of `direction`.
    upper : float
        The norm of a point in the convex hull of the rows, which no margin exceeds.
    direction : array (d,)
    """

    lower: float
    upper: float
    direction: np.ndarray

    @property
    def gap(self) -> float:
        """How far apart both are, over the upper one."""
        return (self.upper - self.lower) / self.upper


def largest_margin(signed: np.ndarray) -> Margin:
    """The largest margin of rows z_i = y_i a_i, from the point of their convex hull that is nearest to 0.

    The quadratic program min ‖w‖ with ⟨z_i, w⟩ ≥ 1 is one of least distance, which non-negative least squares solve in
    finitely many steps (Lawson, Hanson 1974, chapter 23).

    Parameters
    ----------
    signed : array (n, d)

    Raises
    ------
    ValueError
        If no half-space holds all rows.
    """
    equations = np.vstack((signed.T, np.ones(len(signed))))
    wanted = np.append(np.zeros(signed.shape[1]), 1.0)
    weights, residual = nnls(equations, wanted, maxiter=100 * len(signed))
    if residual < _SEPARATE:
        raise ValueError("the two classes cannot be separated by a hyperplane through 0; choose others")
    error = equations @ weights - wanted
    direction = error[:-1] / np.linalg.norm(error[:-1])
    hull = signed.T @ weights / weights.sum()
    return Margin(float((signed @ direction).min()), float(np.linalg.norm(hull)), direction)
