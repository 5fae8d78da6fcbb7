"""The ten handwritten digits that come with scikit-learn, and two of them as two classes."""

from __future__ import annotations

import numpy as np

from ..compat import sklearn_table

_INK = 16.0  # of a black pixel


def ten_digits() -> tuple[np.ndarray, np.ndarray]:
    """All images (n, 64), pixels in [0, 1], and their digits (n,)."""
    table = sklearn_table("digits.csv.gz")
    return table[:, :-1] / _INK, table[:, -1].astype(int)


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
    images, digits = ten_digits()
    kept = np.isin(digits, (first, second))
    return np.column_stack((images[kept], np.ones(kept.sum()))), np.where(digits[kept] == first, 1.0, -1.0)
