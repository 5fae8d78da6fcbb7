"""Losses that are no square maps' own: linear observations and separable residuals."""

import copy
import warnings

import numpy as np
import pytest
import torch
from cases import randn

import neuralode_flow as nf
from neuralode_flow import losses


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


@pytest.mark.parametrize("size", [3, 12])
@pytest.mark.parametrize("samples", [5, 40, 30_000])  # of the last a product is large
def test_a_z_has_the_same_numbers_whichever_others_there_are(samples, size):
    x, y, readin, readout = (
        randn(*shape, seed=k) for k, shape in enumerate([(samples, 4), (samples, 2), (size, 4), (2, size)])
    )
    square = randn(samples, size, seed=5), randn(samples, size, seed=6)
    few = min(samples, 400)
    table = [
        nf.Regression(x, y, readin, readout),
        nf.Regression(*square),
        nf.Separable(lambda r: r**4 / 4, x, y, readin, readout),  # torch's cosh, say, rounds by where a number lies
        nf.Separable(lambda r: r**4 / 4, *square),
        nf.LeastSquares(randn(few, size**2, seed=4), randn(few, seed=5), shape=(size, size)),
    ]
    z = randn(9, size, size, seed=6)
    for loss in table:
        hessian = loss.hessian(z, z.flip(0))
        for many in (2, 9):
            values, gradients = loss(z[:many]), loss.gradient(z[:many])
            for k in (0, many - 1):
                assert torch.equal(gradients[k], loss.gradient(z[k])), type(loss)
                assert torch.equal(hessian[k], loss.hessian(z[k], z[8 - k])), type(loss)
                assert torch.equal(values[k], loss(z[k])), type(loss)


def test_a_separable_loss_of_half_squares_is_the_regression():
    x, y = randn(12, 3, seed=0), randn(12, 3, seed=1)
    half, whole, z = nf.Separable(lambda r: r.square() / 2, x, y), nf.Regression(x, y), randn(3, 3, seed=2)
    torch.testing.assert_close(half(z), whole(z))
    torch.testing.assert_close(half.gradient(z), whole.gradient(z))


def test_log_cosh_does_not_overflow():
    x, y = torch.eye(2), torch.zeros(2, 2)
    assert float(nf.LOSSES["log_cosh"](x, y)(1e6 * torch.eye(2))) == pytest.approx(1e6, rel=1e-5)


@pytest.mark.parametrize("size", [(2, 2), (3, 2, 2)])
@pytest.mark.parametrize("entry", [torch.inf, 1.7e308])
def test_what_is_not_finite_is_not_spoken_of(size, entry):
    """NumPy, which multiplies small matrices, warned of it, or raised where it had been told to."""
    z = torch.eye(2).expand(size).clone()
    z[..., 0, 1] = entry
    loss, grid = nf.Regression(randn(5, 2, seed=1), randn(5, 2, seed=2)), nf.DepthGrid.gauss(4, 10)
    W = z.unsqueeze(-3).expand(*z.shape[:-2], 40, 2, 2)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        assert not torch.isfinite(loss(z)).any()
        assert loss.gradient(z).shape == z.shape
        for flow in (nf.ContinuousFlow(grid, loss), nf.FiniteFlow(40, loss)):
            assert flow.product(W).shape == z.shape
            assert flow.velocity(W).shape == W.shape
        limit = nf.IntrinsicFlow(loss, kernel=nf.DividedDifference(shifts=torch.zeros(3)))
        assert limit.velocity(z).shape == z.shape


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


class Wrong(nf.Quadratic):
    """½‖z − T‖² with one of its parts spoilt."""

    def __init__(self, target, spoilt, by):
        super().__init__(target)
        self.spoilt, self.by = spoilt, by

    def gradient(self, z):
        return self.by(super().gradient(z)) if self.spoilt == "gradient" else super().gradient(z)

    def hessian(self, z, direction):
        return self.by(direction) if self.spoilt == "hessian" else direction

    def boundary(self):
        return 1.5 * super().boundary() if self.spoilt == "boundary" else super().boundary()


SPOILERS = {
    "transposed": lambda G: G.mT,
    "twice": lambda G: 2 * G,
    "a little": lambda G: 1.01 * G,
}


@pytest.mark.parametrize("units", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("size", [0.0, 1e-8, 1.0, 1e8])
@pytest.mark.parametrize("spoilt", ["gradient", "hessian"])
@pytest.mark.parametrize("by", SPOILERS)
def test_a_wrong_derivative_is_refused_at_the_start_of_a_run(by, spoilt, size, units):
    symmetric = units * torch.diag(torch.tensor([2.0, 1.0, 0.5]))  # the gradient at I is its own transpose
    loss = Wrong(symmetric, spoilt, SPOILERS[by])
    flow = nf.FactorizationFlow(lambda theta: theta + 0, loss)
    with pytest.raises(ValueError, match=f"the loss Wrong has a {spoilt} that is not"):
        nf.integrate(flow, size * units * torch.eye(3), [0.0, 1.0])


def test_a_wrong_gradient_of_one_member_is_found_and_named():
    target = randn(4, 3, 3, seed=0)
    factor = torch.tensor([1.0, 1.0, 1.5, 1.0])[:, None, None]
    loss = Wrong(target, "gradient", lambda G: factor * G)
    with pytest.raises(ValueError, match="derivative of member 2 is"):
        nf.integrate(nf.IntrinsicFlow(loss, nf.LogMean()), torch.eye(3).expand(4, 3, 3), [0.0, 1.0])


def test_a_boundary_above_the_loss_of_a_singular_matrix_is_refused():
    target = torch.diag(torch.tensor([1.0, 2.0, -3.0]))
    with pytest.raises(ValueError, match=r"says by boundary\(\) that it is at least 0.75 on singular matrices"):
        nf.integrate(nf.IntrinsicFlow(Wrong(target, "boundary", None), nf.LogMean()), torch.eye(3), [0.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@pytest.mark.parametrize("kernel", [nf.LogMean(), nf.DividedDifference(torch.tensor([0.0, 1.0]))])
def test_a_gradient_of_another_dtype_is_refused(dtype, kernel):
    """Half of its digits are lost, or a part of it."""
    loss = Wrong(torch.eye(3), "gradient", lambda G: G.to(dtype))
    with pytest.raises(ValueError, match="must have gradients of the dtype of z, torch.float64, got"):
        nf.integrate(nf.IntrinsicFlow(loss, kernel), 2 * torch.eye(3), [0.0, 1.0])


class HalfSquare:
    """½‖z xᵀ − yᵀ‖², of a stranger who says it in his own way."""

    dimension = 3

    def __init__(self, x, y, said):
        self.x, self.y, self.said = x, y, said

    def __call__(self, z):
        return (z @ self.x.mT - self.y.mT).square().sum((-2, -1)) / 2

    def gradient(self, z):
        return (z @ self.x.mT - self.y.mT) @ self.x

    def squares(self):
        return self.said(self.x, self.y)


SAID = {
    "twice": lambda x, y: losses.Squares(x, y, weight=torch.tensor(2.0)),
    "mean": lambda x, y: losses.Squares(x, y, weight=torch.tensor(1 / len(x))),
    "one member": lambda x, y: losses.Squares(x, y, weight=torch.tensor([1.0, 1.0, 1.5, 1.0])),
    "turned": lambda x, y: losses.Squares(x.mT, y.mT),
    "a number": lambda x, y: losses.Squares(x, y, weight=1.0),
}


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_a_square_that_is_not_that_of_the_gradient_is_refused(said, size):
    """Engines take whole steps along the one, and the loss is told of the other."""
    x, target = size * randn(9, 3, seed=0), torch.eye(3)  # at a start where both gradients are 0
    z, layers = target.expand(4, 3, 3), torch.zeros(4, 5, 3, 3)
    right = HalfSquare(x, x @ target.mT, losses.Squares)
    for flow, start in ((nf.IntrinsicFlow(right, nf.LogMean()), z), (nf.FiniteFlow(5, right), layers)):
        assert nf.integrate(flow, start, [0.0, 1e-20]).status == "ok"
        flow.loss = HalfSquare(right.x, right.y, SAID[said])
        with pytest.raises(ValueError, match="the loss HalfSquare says by squares"):
            nf.integrate(flow, start, [0.0, 1e-20])


def test_a_function_that_hides_a_part_from_autograd_is_refused():
    hidden = nf.Custom(lambda z: (z.detach() * z).sum())
    with pytest.raises(ValueError, match="the loss Custom has a gradient that is not its own"):
        nf.integrate(nf.IntrinsicFlow(hidden, nf.LogMean()), torch.eye(2), [0.0, 1.0])


def right_losses(units, dtype):
    x, y, T = (
        randn(20, 3, seed=1).to(dtype),
        units * randn(20, 3, seed=2).to(dtype),
        units * randn(3, 3, seed=3).to(dtype),
    )
    return [
        nf.Quadratic(T),
        nf.Completion(T, torch.eye(3, dtype=torch.bool)),
        nf.Regression(x, y),
        nf.LOSSES["log_cosh"](x, y),
        nf.Separable(torch.abs, x, y),
        nf.Separable(torch.relu, x, y),
        nf.LeastSquares(units * randn(5, 9, seed=4).to(dtype), y[:5, 0], shape=(3, 3)),
        nf.Custom(lambda z: z.pow(4).sum()),
        nf.Custom(lambda z: z.abs().sum()),
        nf.Custom(lambda z: z.max()),
        nf.Custom(lambda z: torch.relu(z).sum()),  # flat on one side of its kink
        nf.Custom(lambda z: 1e8 * units + units * z.sum()),
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("units", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("size", [0.0, 1e-8, 1.0, 1e8])
def test_no_right_loss_is_refused_at_kinks_flat_spots_and_in_any_units(size, units, dtype):
    for loss in right_losses(units, dtype):
        for z in (torch.eye(3), -torch.ones(3, 3)):
            losses.compare_derivatives(loss, size * units * z.to(dtype))


@pytest.mark.parametrize("kind", [float, lambda value: value.numpy()])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_value_that_is_no_tensor_is_refused_in_words(kind, recorded):
    class Own:
        dimension = 2

        def __call__(self, z):
            return kind(z.square().sum() / 2)

        def gradient(self, z):
            return z

    with torch.set_grad_enabled(recorded), pytest.raises(TypeError, match="the loss Own must give a torch tensor, got"):
        nf.integrate(nf.FiniteFlow(4, Own()), nf.identity(2), [0.0, 1.0])


def test_a_readout_that_is_trained_stays_the_tensor_that_was_given():
    x, readout = randn(5, 3, seed=1), torch.nn.Parameter(randn(2, 3, seed=2))
    for loss in (
        nf.Regression(x, randn(5, 2, seed=3), readout=readout),
        nf.LOSSES["log_cosh"](x, randn(5, 2, seed=3), readout=readout),
    ):
        assert loss.readout is readout
        assert torch.equal(copy.deepcopy(loss).readout, readout)
