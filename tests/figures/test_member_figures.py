"""Histograms of numbers that members have found."""

import numpy as np
import pytest
import xarray as xr

from neuralode_flow.figures import FIGURES
from neuralode_flow.finding import MEMBERS


@pytest.mark.parametrize("number", [1.0129, 1e-7, 2.99e-15, 1.0, -3.0])
def test_numbers_that_differ_in_their_last_digits_are_drawn(number):
    """As of members that all find the same, up to rounding."""
    for steps in (1, 2, 3, 7, 40):
        spacing = np.spacing(number)
        values = number + spacing * np.arange(steps + 1)
        dataset = xr.Dataset({"error": ("seed", values)}, attrs={MEMBERS: steps + 1, "problem": "one"})
        (axes,) = FIGURES[MEMBERS](dataset)["histograms"].axes
        assert axes.lines[0].get_ydata().sum() == 2 * (steps + 1)


def test_the_limit_of_infinite_depth_is_not_among_the_depths():
    errors = np.array([[1.0, 0.5, 0.1], [2.0, 0.6, 0.2]])
    dataset = xr.Dataset({"error": (("seed", "depth"), errors)}, {"depth": [4, 16, 0]}, {MEMBERS: 2, "problem": "one"})
    (axes,) = FIGURES[MEMBERS](dataset)["bands"].axes
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [4, 16])
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1.5, 0.55])
    assert "bands" not in FIGURES[MEMBERS](dataset.isel(depth=[2]))
