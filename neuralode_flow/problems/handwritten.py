"""Two of the ten handwritten digits that come with scikit-learn, as two classes."""

from __future__ import annotations

import numpy as np

from ..compat import sklearn_table

_INK = 16.0  # of a black pixel


def digit_pair(first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of two digits.

    Parameters
    ----------
    first, second : int
        Digits from 0 to 9.

    Returns
    -------
    images : array (n, 65)
        Pixels in [0, 1] and, last, the constant 1.
    labels : array (n,)
        1 for `first`, −1 for `second`.
    """
    table = sklearn_table("digits.csv.gz")
    rows = table[np.isin(table[:, -1], (first, second))]
    images = np.column_stack((rows[:, :-1] / _INK, np.ones(len(rows))))
    return images, np.where(rows[:, -1] == first, 1.0, -1.0)
