import numpy as np
import pytest

from neuralode_flow.studies.orders import local_orders, observed_order

DEPTHS = np.array([4, 8, 16, 32, 64, 128, 256])


def test_a_power_law_gives_its_exponent():
    order = observed_order(DEPTHS, 3.0 * DEPTHS**-2.0, floor=0.0)
    assert order.value == pytest.approx(2)
    assert order.spread == pytest.approx(0, abs=1e-12)
    assert order.points == 7


def test_points_near_the_floor_are_dropped():
    errors = 3.0 * DEPTHS**-2.0 + 1e-4
    assert observed_order(DEPTHS, errors, floor=1e-4).value == pytest.approx(2, abs=0.03)
    assert abs(observed_order(DEPTHS, errors, floor=0.0).value - 2) > 0.3


def test_bent_coarse_depths_are_dropped():
    errors = 1.0 / DEPTHS + 20.0 / DEPTHS**3.0
    order = observed_order(DEPTHS, errors, floor=0.0)
    assert order.value == pytest.approx(1, abs=0.05)
    assert order.points < 7


def test_too_few_errors_leave_the_order_undecided():
    assert np.isnan(observed_order(DEPTHS[:1], np.array([0.1]), 0.0).value)
    assert np.isnan(observed_order(DEPTHS, np.full(7, np.nan), 0.0).value)
    pair = observed_order(DEPTHS[:2], np.array([0.1, 0.05]), 0.0)
    assert pair.value == pytest.approx(1)
    assert np.isnan(pair.spread)
    assert local_orders(DEPTHS[:2], np.array([0.1, 0.05])) == pytest.approx([1])
