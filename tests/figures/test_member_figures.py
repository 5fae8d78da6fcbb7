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


@pytest.mark.parametrize("zeros", [0, 2, 4, 5, 8])
def test_quantiles_are_of_all_members_also_of_those_that_an_axis_of_powers_has_no_place_for(zeros):
    losses = np.array([[1.0 + i, 0.0 if i < zeros else 10.0**-i] for i in range(9)])
    dataset = xr.Dataset({"loss": (("seed", "time"), losses)}, {"time": [0.0, 1.0]}, {MEMBERS: 9, "problem": "one"})
    (axes,) = FIGURES[MEMBERS](dataset)["losses"].axes
    _, first, median, third, high = np.quantile(losses[:, 1], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [5.0, median if median > 0 else np.nan])
    for band, least, most in zip(axes.collections, (losses[:, 1].min(), first), (high, third), strict=True):
        (path,) = band.get_paths()
        at_the_end = path.vertices[path.vertices[:, 0] == 1.0, 1]
        shown = least if least > 0 else min(value for value in (first, median, third, high) if value > 0)
        assert ([*at_the_end] == []) == (most == 0)
        assert most == 0 or (at_the_end.min(), at_the_end.max()) == (shown, most)


def test_members_that_ended_early_are_not_among_those_that_are_drawn():
    errors = np.array([[1.0, 0.5], [2.0, 0.6], [50.0, np.nan]])
    values = {"error": (("seed", "depth"), errors), "member_status": ("seed", ["ok", "ok", "the budget was used up"])}
    figure = FIGURES[MEMBERS](xr.Dataset(values, {"depth": [4, 16]}, {MEMBERS: 3, "problem": "one"}))["bands"]
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [1.5, 0.55])
    assert figure.get_suptitle() == "2 of 3 members: one"
