"""Runge–Kutta in two registers: the order conditions of its coefficients, and what it may and may not write into."""

import numpy as np
import pytest
import torch
from cases import distance, randn

import neuralode_flow as nf
from neuralode_flow.time.methods import low_storage


def tableau(A, B):
    """The Butcher tableau of δ ← A_i δ + h k_i, y ← y + B_i δ: what of each slope has come into y before a stage."""
    s = len(A)
    increment, state, rows = np.zeros(s), np.zeros(s), []
    for i, (a, b) in enumerate(zip(A, B, strict=True)):
        rows.append(state.copy())
        increment = a * increment + np.eye(s)[i]
        state = state + b * increment
    return np.array(rows), state


def missed(A, B):
    """By how much the tableau misses the conditions of order 4 (Hairer, Nørsett and Wanner, table II.2.2)."""
    a, b = tableau(A, B)
    c = a.sum(1)
    trees = [(1, 1), (c, 2), (c**2, 3), (a @ c, 6), (c**3, 4), (c * (a @ c), 8), (a @ c**2, 12), (a @ a @ c, 24)]
    return max(abs(float((b * tree).sum()) - 1 / number) for tree, number in trees)


def test_the_coefficients_meet_the_conditions_of_order_4():
    assert missed(low_storage._A, low_storage._B) < 1e-13
    assert np.abs(tableau(low_storage._A, low_storage._B)[0].sum(1) - low_storage._C).max() < 1e-14
    for k in range(1, 5):  # a digit that is wrong is seen
        wrong = [value * (1 + 1e-6 * (i == k)) for i, value in enumerate(low_storage._A)]
        assert missed(wrong, low_storage._B) > 1e-9


def test_a_step_is_that_of_the_tableau():
    a, b = tableau(low_storage._A, low_storage._B)
    flow, h = nf.FiniteFlow(6, nf.Quadratic(randn(3, 3, seed=1))), 0.3
    W = 0.3 * randn(6, 3, 3, seed=2)
    slopes = []
    for row in a:
        slopes.append(flow.velocity(W + h * sum(x * k for x, k in zip(row, slopes, strict=False))))
    expected = W + h * sum(x * k for x, k in zip(b, slopes, strict=True))
    assert distance(nf.integrate(flow, W, [0.0, h], "carpenter_kennedy").state, expected) < 1e-14


@pytest.mark.parametrize("batch", [(), (2,)])
def test_what_it_is_given_stays_as_it_is(batch):
    class Kept(nf.FiniteFlow):
        """Its velocity is a tensor that it keeps."""

        given = []

        def velocity(self, state):
            found = super().velocity(state)
            self.given.append((found, found.clone()))
            return found

    flow, start = Kept(4, nf.Quadratic(torch.eye(2))), 0.3 * randn(*batch, 4, 2, 2, seed=1)
    before = start.clone()
    path = nf.integrate(flow, start, [0.0, 0.5, 1.0], "carpenter_kennedy", step=0.25)
    assert torch.equal(start, before)
    assert path.stats["evaluations"] == 20
    assert all(torch.equal(found, kept) for found, kept in flow.given)
    exact = nf.integrate(flow, start, [0.0, 1.0], "DOP853", rtol=1e-11, atol=1e-13)
    assert distance(path.z[-1], exact.z[-1]) < 1e-5
