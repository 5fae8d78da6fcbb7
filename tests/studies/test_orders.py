import numpy as np
import pytest

from neuralode_flow.orders import extrapolated, local_orders, observed_order, said, said_each, said_one

DEPTHS = np.array([4, 8, 16, 32, 64, 128, 256])


def test_a_power_law_gives_its_exponent():
    order = observed_order(DEPTHS, 3.0 * DEPTHS**-2.0, floor=0.0)
    assert order.value == pytest.approx(2)
    assert order.spread == pytest.approx(0, abs=1e-12)
    assert order.points == 7


@pytest.mark.parametrize("order", [1, 2])
def test_a_limit_is_that_of_as_many_powers_as_there_are_values(order):
    h = 1.0 / DEPTHS[:4] ** order
    values = np.stack((2 + h - 3 * h**2 + 5 * h**3, -1 + 7 * h), axis=-1)
    np.testing.assert_allclose(extrapolated(DEPTHS[:4], values, order), [2, -1], rtol=1e-13)
    assert abs(extrapolated(DEPTHS[:3], values[:3], order)[0] - 2) > 1e-6
    assert extrapolated(DEPTHS[:1], values[:1], order) == pytest.approx(values[0])


def test_points_near_the_floor_are_dropped():
    errors = 3.0 * DEPTHS**-2.0 + 1e-4
    assert observed_order(DEPTHS, errors, floor=1e-4).value == pytest.approx(2, abs=0.03)
    assert np.isnan(observed_order(DEPTHS, errors, floor=0.0).value)  # a floor that nobody told of


def test_bent_coarse_depths_are_dropped():
    errors = 1.0 / DEPTHS + 20.0 / DEPTHS**3.0
    order = observed_order(DEPTHS, errors, floor=0.0)
    assert order.value == pytest.approx(1, abs=0.05)
    assert order.points < 7


def test_too_few_errors_leave_the_order_undecided():
    assert np.isnan(observed_order(DEPTHS[:1], np.array([0.1]), 0.0).value)
    assert np.isnan(observed_order(DEPTHS, np.full(7, np.nan), 0.0).value)
    pair = observed_order(DEPTHS[:2], np.array([0.1, 0.05]), 0.0)
    assert np.isnan(pair.value)
    assert str(pair) == "undecided (2 of 2 errors are above 30 times the floor 0, and it takes 3)"
    assert local_orders(DEPTHS[:2], np.array([0.1, 0.05])) == pytest.approx([1])


@pytest.mark.parametrize("factor", [10, 0.1, np.inf, np.nan])
@pytest.mark.parametrize("spoilt", range(7))
def test_one_error_that_is_spoilt_does_not_decide(spoilt, factor):
    errors = DEPTHS**-2.0
    errors[spoilt] *= factor
    order = observed_order(DEPTHS, errors, floor=0.0)
    assert order.value == pytest.approx(2, abs=1e-9)
    assert order.points == 6


@pytest.mark.parametrize("factor", [10, 0.1, np.inf, np.nan])
@pytest.mark.parametrize("number", [3, 4])
def test_of_few_errors_with_one_spoilt_at_the_end_nothing_is_said(number, factor):
    errors = DEPTHS[:number] ** -2.0
    errors[-1] *= factor
    assert np.isnan(observed_order(DEPTHS[:number], errors, floor=0.0).value)


@pytest.mark.parametrize("lost", [(5, 6), (0, 6), (2, 3)])
def test_of_several_errors_that_are_no_numbers_nothing_is_said(lost):
    errors = DEPTHS**-2.0
    errors[list(lost)] = np.inf, np.nan
    assert observed_order(DEPTHS, errors, floor=0.0).reason == "2 of 7 errors are no numbers"


def test_beside_one_that_is_no_number_no_other_is_left_out():
    errors = DEPTHS[:5] ** -2.0
    errors[3] = np.nan
    assert observed_order(DEPTHS[:5], errors, floor=0.0).value == pytest.approx(2, abs=1e-9)
    errors[1] *= 10
    assert "no four errors" in observed_order(DEPTHS[:5], errors, floor=0.0).reason


def test_the_last_slopes_bound_an_order_that_is_undecided():
    bent = observed_order(DEPTHS[:3], np.array([1.0, 0.5, 0.28]), 0.0)
    assert np.isnan(bent.value)
    assert bent.last == pytest.approx(1)
    for spoilt in (-1, -2):
        errors = DEPTHS**-2.0
        errors[spoilt] *= 0.1 if spoilt == -2 else 10
        assert observed_order(DEPTHS[:4], errors[3:], 0.0).last > 1.9


def test_errors_that_do_not_fall_have_no_order():
    for errors in (np.full(7, 0.1), 0.3 + 1 / DEPTHS, DEPTHS / 100):
        order = observed_order(DEPTHS, errors, floor=1e-9)
        assert np.isnan(order.value)
        assert not order.falls
        assert "do not fall" in order.reason


def planted(rng):
    """Depths, errors of a known order, with a bend at coarse depths, a floor, and one error spoilt."""
    p, q = rng.choice([0.5, 1, 2, 3]), rng.choice([1, 2])
    L = rng.choice([2, 4, 8]) * 2.0 ** np.arange(rng.integers(4, 10))
    bend = rng.choice([0, 1, -0.9, 3, 5, 8]) * rng.random() * (L / L[0]) ** -q
    errors = L**-p * (1 + bend)
    floor = rng.choice([0, 1e-8, 1e-5, 1e-3]) * errors[0]
    errors = np.abs(errors + floor * rng.uniform(-1, 1))
    if rng.random() < 0.8:
        errors[rng.integers(len(L))] *= 10 ** (rng.choice([-1, 1]) * rng.uniform(0.3, 2))
    units = 10 ** rng.uniform(-12, 12)
    return p, L, errors * units, floor * units


def test_an_order_is_right_or_undecided():
    rng = np.random.default_rng(0)
    decided = 0
    for _ in range(3000):
        p, L, errors, floor = planted(rng)
        order = observed_order(L, errors, floor)
        decided += not order.reason
        assert order.reason or abs(order.value - p) <= 0.15, (p, L, errors, floor, order)
    assert decided > 1200


def test_noisy_errors_may_differ_by_their_noise():
    errors, noise = DEPTHS**-0.5 * np.array([1, 1.1, 0.93, 1.05, 0.94, 1.08, 1]), np.full(7, 0.1)
    assert np.isnan(observed_order(DEPTHS, errors, floor=0.0).value)
    assert observed_order(DEPTHS, errors, 0.0, noise).value == pytest.approx(0.5, abs=0.05)


def test_the_orders_of_several_curves_are_said_with_those_that_are_undecided():
    one, two = (observed_order(DEPTHS, DEPTHS**-p, 0.0) for p in (1.0, 2.0))
    none = observed_order(DEPTHS, np.full(7, np.nan), 0.0)
    assert said([one, two]) == "1.000 to 2.000"
    assert said([one, none]).startswith("1.000 to 1.000, undecided for 1 of 2 (7 of 7 errors are no numbers)")
    assert said([none]).startswith("undecided for 1 of 1")


def test_an_order_is_said_without_a_number_where_it_is_undecided():
    first, second = (observed_order(DEPTHS, 3.0 * DEPTHS**-order, floor=0.0) for order in (1.0, 2.0))
    none = observed_order(DEPTHS, 0 * DEPTHS, floor=0.0)
    assert said_each({"a": first, "b": second}) == "1.00, 2.00 (a, b)"
    assert said_each({"a": first, "c": none, "b": second}) == "1.00, 2.00 (a, b), undecided for c"
    assert said_each({"c": none}) == "undecided for c"
    assert (said_one(second), said_one(none)) == ("order 2.00", "an undecided order")
