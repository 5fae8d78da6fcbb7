"""Four routes to the same gradient: the formula, autograd, the adjoint ODE, finite differences."""

import pytest
import torch
import torchdiffeq
from cases import all_losses, randn, smooth_profile

import neuralode_flow as nf

LOSSES = ("quadratic", "regression", "completion", "custom")


def l2_gradient(flow, state, weights):
    """Autograd through the depth product, in the inner product Σ wᵢ tr(AᵢᵀBᵢ)."""
    leaf = state.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(flow.loss(flow.product(leaf)), leaf)
    return gradient / weights[:, None, None]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_continuous_velocity_is_the_exact_gradient_of_the_discretised_loss(loss, size):
    grid = nf.DepthGrid.gauss(3, 4)
    flow = nf.ContinuousFlow(grid, all_losses(3, seed=0)[loss])
    state = size * randn(12, 3, 3, seed=1) / 3
    expected = -l2_gradient(flow, state, grid.weights)
    assert float((flow.velocity(state) - expected).abs().max()) <= 1e-11 * float(expected.abs().max())


def test_continuous_velocity_equals_the_adjoint_ode():
    grid = nf.DepthGrid.gauss(4, 10)
    flow = nf.ContinuousFlow(grid, all_losses(3, seed=2)["quadratic"])
    state = smooth_profile(3, seed=3).at(grid.nodes)

    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.W = torch.nn.Parameter(state.clone())

        def forward(self, s, X):
            return grid.interpolate(self.W, float(s.detach().clamp(0, 1))) @ X  # steps may look past the end

    field = Field()
    ends = torch.tensor([0.0, 1.0])
    z = torchdiffeq.odeint_adjoint(field, torch.eye(3), ends, rtol=1e-11, atol=1e-13, method="dopri5")[-1]
    flow.loss(z).backward()
    expected = -field.W.grad / grid.weights[:, None, None]
    # The adjoint route moves the values of W on the nodes, which is the L² gradient tested with Lagrange polynomials.
    moments = grid.legendre(flow.velocity(state))[:, :5] - grid.legendre(expected)[:, :5]
    assert float(moments.abs().max()) < 1e-8


@pytest.mark.parametrize("layer", list(nf.LAYERS))
@pytest.mark.parametrize("loss", LOSSES)
def test_finite_velocity_equals_autograd_to_round_off(layer, loss):
    for L in (1, 2, 7, 16):
        flow = nf.FiniteFlow(L, all_losses(3, seed=4)[loss], layer)
        state = randn(L, 3, 3, seed=5)
        expected = -l2_gradient(flow, state, torch.full((L,), 1 / L))
        assert float((flow.velocity(state) - expected).abs().max()) <= 1e-12 * float(expected.abs().max())


@pytest.mark.parametrize(
    "make",
    [lambda loss: nf.ContinuousFlow(nf.DepthGrid.gauss(2, 3), loss), lambda loss: nf.FiniteFlow(6, loss, "cayley")],
)
def test_velocity_agrees_with_finite_differences(make):
    flow = make(all_losses(3, seed=6)["regression"])
    state, direction = randn(6, 3, 3, seed=7), randn(6, 3, 3, seed=8)
    weights = flow.grid.weights if isinstance(flow, nf.ContinuousFlow) else torch.full((6,), 1 / 6)
    slope = -float((weights[:, None, None] * flow.velocity(state) * direction).sum())
    quotients = []
    for h in (1e-2, 1e-3):
        ahead, behind = (flow.loss(flow.product(state + k * h * direction)) for k in (1, -1))
        quotients.append(float((ahead - behind) / (2 * h)))
    errors = [abs(q - slope) for q in quotients]
    assert errors[1] < 1e-4 * abs(slope)
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("depth", ["collocation", "torchdiffeq"])
def test_both_depth_solvers_give_one_velocity(depth):
    grid = nf.DepthGrid.gauss(4, 12)
    loss = all_losses(3, seed=9)["quadratic"]
    state = smooth_profile(3, seed=10).at(grid.nodes)
    reference = nf.ContinuousFlow(grid, loss).velocity(state)
    assert float((nf.ContinuousFlow(grid, loss, depth).velocity(state) - reference).abs().max()) < 1e-9


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_gradients_equal_autograd_and_accept_batches(loss):
    f = all_losses(4, seed=11)[loss]
    z = randn(2, 3, 4, 4, seed=12)
    leaf = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(f(leaf).sum(), leaf)
    assert f(z).shape == (2, 3)
    assert torch.allclose(f.gradient(z), expected, atol=1e-13)


def test_regression_is_half_the_mean_square_residual():
    x, y = randn(20, 5, seed=13), randn(20, 2, seed=14)
    readin, readout, z = randn(3, 5, seed=15), randn(2, 3, seed=16), randn(3, 3, seed=17)
    residual = x @ readin.mT @ z.mT @ readout.mT - y
    loss = nf.Regression(x, y, readin, readout)
    assert float(loss(z)) == pytest.approx(float(residual.square().sum()) / 40, rel=1e-13)
    square = nf.Regression(x[:, :2], y)
    assert float(square(torch.zeros(2, 2))) == pytest.approx(float(y.square().sum()) / 40, rel=1e-13)


def test_members_of_a_batch_do_not_see_each_other():
    loss = all_losses(3, seed=18)["quadratic"]
    for flow, n in ((nf.ContinuousFlow(nf.DepthGrid.gauss(2, 4), loss), 8), (nf.FiniteFlow(8, loss, "exp"), 8)):
        states = randn(2, 2, n, 3, 3, seed=19)
        for call in (flow.velocity, flow.product, flow.law):
            together = call(states)
            assert torch.allclose(together[1, 0], call(states[1, 0]), atol=1e-13)


@pytest.mark.parametrize("layer", list(nf.LAYERS))
@pytest.mark.parametrize("L", [13, 40])
def test_a_long_network_taken_in_segments_has_the_same_velocity(layer, L, monkeypatch):
    flow = nf.FiniteFlow(L, all_losses(3, seed=20)["regression"], layer)
    state = randn(2, L, 3, 3, seed=21)
    whole, z = flow.velocity(state), flow.product(state)
    monkeypatch.setattr("neuralode_flow.depth.engine.by_torch.SEGMENT", state.nbytes // 17)
    assert torch.allclose(flow.velocity(state), whole, atol=1e-13 * float(whole.abs().max()))
    monkeypatch.setattr("neuralode_flow.depth.engine.by_torch.SEGMENT", 1)  # one layer each
    assert torch.allclose(flow.velocity(state), whole, atol=1e-13 * float(whole.abs().max()))
    assert torch.equal(flow.product(state), z)
