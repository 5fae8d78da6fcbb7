"""Newton's systems that flows solve themselves, against their velocities under a loss whose gradient is zero."""

import pytest
import torch
from cases import NoHessian, all_losses, positive_matrix, randn

import neuralode_flow as nf


class Bowl:
    """½⟨z − z₀, H(z − z₀)⟩ with the Hessian H of a loss at z₀: what is left of the loss without its gradient."""

    def __init__(self, loss, z0):
        self.loss, self.z0, self.dimension = loss, z0, None

    def __call__(self, z):
        return (self.gradient(z) * (z - self.z0)).sum((-1, -2)) / 2

    def gradient(self, z):
        return self.loss.hessian(self.z0.expand_as(z), z - self.z0)


def difference(function, h=3e-4):
    """The derivative at 0, of order 6."""
    ends = [(function(k * h) - function(-k * h)) / (2 * k * h) for k in (1, 2, 3)]
    return (15 * ends[0] - 6 * ends[1] + ends[2]) / 10


def flow_and_state(kind, loss, z=None):
    """A flow as it is integrated, and a state of it at z; or of the same z as before under another loss."""
    grid = nf.DepthGrid.gauss(2, 5)
    if kind == "continuous":
        flow = nf.ContinuousFlow(grid, loss)
        return flow, flow.sample(nf.identity(3)) + randn(10, 3, 3, seed=8) / 2 if z is None else None
    kernel = {"z": nf.TwoLayer(0.7), "logarithms": nf.LogMean(), "deep": nf.DividedDifference(torch.zeros(3))}[kind]
    flow = nf.IntrinsicFlow(loss, kernel)
    z = positive_matrix(3, seed=5) if z is None else z
    moving = flow.carrier()
    return (flow, z) if moving is None else (moving, moving.enter(z))


@pytest.mark.filterwarnings("ignore::neuralode_flow.flows.continuous.Unresolved")
@pytest.mark.parametrize("kind", ["z", "logarithms", "deep", "continuous"])
@torch.no_grad()
def test_a_resolvent_inverts_the_derivative_without_what_is_linear_in_the_gradient(kind):
    for loss in all_losses(3, seed=1).values():
        flow, state = flow_and_state(kind, loss)
        still, _ = flow_and_state(kind, Bowl(loss, flow.product(state)), flow.product(state))
        assert flow.knows_resolvent(state)
        assert float(still.velocity(state).abs().max()) < 1e-12
        at = flow.resolvent(state)
        r = randn(*state.shape, seed=3)
        for gamma in (1e-3, 0.7, 40.0):
            x = at(gamma)(r)
            moved = (
                difference(lambda h, x=x, still=still, state=state: still.velocity(state + h * x / x.norm())) * x.norm()
            )
            assert float((x - gamma * moved - r).abs().max()) < 1e-9 * (1 + gamma) * (1 + float(x.abs().max()))


@torch.no_grad()
def test_a_resolvent_is_the_same_by_numpy_and_by_torch(monkeypatch):
    flow, state = flow_and_state("logarithms", all_losses(3, seed=1)["regression"])
    r = randn(2, 3, 3, seed=3)
    known = flow.resolvent(state)(0.7)(r)
    monkeypatch.setattr("neuralode_flow.flows.polar.array_of", lambda tensor: None)
    assert float((flow.resolvent(state)(0.7)(r) - known).abs().max()) < 1e-13


class Slower(nf.IntrinsicFlow):
    def velocity(self, state):
        return super().velocity(state) / 2


class Halved(nf.ContinuousFlow):
    def velocity(self, state):
        return super().velocity(state) / 2


def test_what_is_not_known_is_not_said():
    loss, z = nf.Quadratic(torch.eye(2)), 2 * torch.eye(2)
    grid, W = nf.DepthGrid.gauss(2, 3), torch.zeros(6, 2, 2)
    for flow, state in (
        (nf.IntrinsicFlow(NoHessian(), nf.TwoLayer(0.5)), z),
        (nf.IntrinsicFlow(NoHessian(), nf.LogMean()).carrier(), torch.stack((z, z))),
        (Slower(loss, nf.LogMean()), z),
        (nf.ContinuousFlow(grid, NoHessian()), W),
        (Halved(grid, loss), W),
        (nf.ContinuousFlow(grid, loss, "torchdiffeq"), W),
    ):
        assert not flow.knows_resolvent(state)
    for flow, state in (
        (nf.IntrinsicFlow(loss, nf.TwoLayer(0.5)), z),
        (nf.IntrinsicFlow(loss, nf.LogMean()).carrier(), torch.stack((z, z))),
        (nf.ContinuousFlow(grid, loss), W),
    ):
        assert flow.knows_resolvent(state)
        assert not flow.knows_resolvent(state.clone().requires_grad_())
        assert not flow.knows_resolvent(state.expand(4, *state.shape))
        assert not torch.func.vmap(lambda one, flow=flow: torch.tensor(flow.knows_resolvent(one)))(state.unsqueeze(0))[
            0
        ]
        large = state.new_zeros(*state.shape[:-2], 65, 65)
        assert not flow.knows_resolvent(large)
