"""Losses that are no square maps' own: linear observations and separable residuals."""

import pytest
import torch
from cases import randn

import neuralode_flow as nf


def regressions():
    x, y = randn(12, 4, seed=0), randn(12, 2, seed=1)
    readin, readout = randn(3, 4, seed=2), randn(2, 3, seed=3)
    return {
        "separable": nf.Separable(torch.cosh, x, y, readin, readout),
        "log_cosh": nf.LOSSES["log_cosh"](x, y, readin, readout),
        "least squares": nf.LeastSquares(randn(5, 9, seed=4), randn(5, seed=5), shape=(3, 3)),
    }


@pytest.mark.parametrize("name", ["separable", "log_cosh", "least squares"])
def test_gradient_and_hessian_are_the_derivatives_also_of_a_batch(name):
    loss = regressions()[name]
    z, v, h = randn(2, 3, 3, seed=6), randn(2, 3, 3, seed=7), 1e-6
    slope = (loss(z + h * v) - loss(z - h * v)) / (2 * h)
    torch.testing.assert_close((loss.gradient(z) * v).sum((-2, -1)), slope, atol=1e-6, rtol=1e-6)
    bend = (loss.gradient(z + h * v) - loss.gradient(z - h * v)) / (2 * h)
    torch.testing.assert_close(loss.hessian(z, v), bend, atol=1e-6, rtol=1e-6)


def test_a_separable_loss_of_half_squares_is_the_regression():
    x, y = randn(12, 3, seed=0), randn(12, 3, seed=1)
    half, whole, z = nf.Separable(lambda r: r.square() / 2, x, y), nf.Regression(x, y), randn(3, 3, seed=2)
    torch.testing.assert_close(half(z), whole(z))
    torch.testing.assert_close(half.gradient(z), whole.gradient(z))


def test_log_cosh_does_not_overflow():
    x, y = torch.eye(2), torch.zeros(2, 2)
    assert float(nf.LOSSES["log_cosh"](x, y)(1e6 * torch.eye(2))) == pytest.approx(1e6, rel=1e-5)


def test_quadratic_losses_of_any_shape_and_their_ensembles():
    assert float(nf.Quadratic(torch.tensor(1.0))(torch.tensor(3.0))) == 2.0
    assert nf.Quadratic(torch.zeros(3))(torch.ones(5, 3)).shape == (5,)
    assert nf.Quadratic(torch.zeros(5, 3), axes=1)(torch.ones(5, 3)).shape == (5,)
    assert nf.Quadratic(torch.zeros(2, 3, 4), axes=3)(torch.ones(2, 3, 4)).shape == ()
    assert nf.Quadratic(torch.zeros(2, 3))(torch.ones(4, 2, 3)).shape == (4,)
    rectangular = nf.Completion(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool))
    assert float(rectangular(torch.zeros(2, 3))) == 3.0


def test_any_function_takes_members_by_its_axes():
    total = nf.Custom(lambda z: z.square().sum() / 2, axes=1)
    z = randn(4, 3, seed=0)
    assert total(z).shape == (4,)
    torch.testing.assert_close(total.gradient(z), z)
    torch.testing.assert_close(total.hessian(z, z), z)
    assert total(z[0, 0]).shape == ()  # fewer axes: taken whole
