"""The modified flow W' = −∇(f + η/4 ‖∇f‖²): its velocity, what it offers, and what it refuses."""

import copy
import math

import pytest
import torch
from cases import all_losses, randn, relaxed_profile, smooth_profile

import neuralode_flow as nf
from neuralode_flow.flows import capabilities
from neuralode_flow.flows.capabilities import offers

RATE = 0.3
ACCURACY = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-14}
GRID = nf.DepthGrid.gauss(3, 4)


def twolayer(theta):
    return theta[..., 0, :, :] @ theta[..., 1, :, :]


def flows(loss):
    """Gradient flows with the weights of their inner products, and a state of each."""
    return {
        "continuous": (nf.ContinuousFlow(GRID, loss), GRID.weights, randn(12, 3, 3, seed=1)),
        "factorization": (nf.FactorizationFlow(twolayer, loss), torch.ones(2), randn(2, 3, 3, seed=2)),
        **{
            layer: (nf.FiniteFlow(7, loss, layer), torch.full((7,), 1 / 7), randn(7, 3, 3, seed=3))
            for layer in nf.LAYERS
        },
    }


def modified_by_autograd(flow, state, weights, rate):
    """−∇(f + η/4 ‖∇f‖²) from the loss and the product alone, in the inner product Σ wᵢ tr(AᵢᵀBᵢ)."""
    w = weights[:, None, None]
    leaf = state.clone().requires_grad_()
    f = flow.loss(flow.product(leaf))
    (slope,) = torch.autograd.grad(f, leaf, create_graph=True)
    (gradient,) = torch.autograd.grad(f + rate / 4 * (slope.square() / w).sum(), leaf)
    return -gradient / w


@pytest.mark.parametrize("loss", ["quadratic", "regression", "completion", "custom"])
@pytest.mark.parametrize("name", ["continuous", "factorization", *nf.LAYERS])
def test_the_velocity_is_minus_the_gradient_of_the_modified_loss(name, loss):
    flow, weights, state = flows(all_losses(3, seed=4)[loss])[name]
    expected = modified_by_autograd(flow, state, weights, RATE)
    found = nf.ModifiedFlow(flow, RATE).velocity(state)
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) < 1e-11 * scale
    assert float((flow.velocity(state) - expected).abs().max()) > 1e-2 * scale  # the term is not small here


@pytest.mark.parametrize("name", ["continuous", "factorization", "euler", "exp"])
def test_one_step_of_gradient_descent_is_that_of_the_modified_flow_up_to_the_third_power_of_the_rate(name):
    flow, _, state = flows(all_losses(3, seed=5)["quadratic"])[name]
    state = state / 4
    gaps = []
    for rate in (0.02, 0.01, 0.005):
        path = nf.integrate(nf.ModifiedFlow(flow, rate), state, [0.0, rate], **ACCURACY)
        gaps.append(float((state + rate * flow.velocity(state) - path.state).norm()))
    orders = [math.log2(a / b) for a, b in zip(gaps, gaps[1:], strict=False)]
    assert orders == pytest.approx([3, 3], abs=0.15)


def test_of_the_flow_of_z_it_is_what_steps_in_z_follow():
    flow = nf.IntrinsicFlow(all_losses(3, seed=6)["quadratic"], nf.LogMean())
    z0 = relaxed_profile(3, seed=7)[0]
    gaps = []
    for rate in (0.02, 0.01, 0.005):
        path = nf.integrate(nf.ModifiedFlow(flow, rate), z0, [0.0, rate], **ACCURACY)
        gaps.append(float((z0 + rate * flow.velocity(z0) - path.z[-1]).norm()))
    assert [math.log2(a / b) for a, b in zip(gaps, gaps[1:], strict=False)] == pytest.approx([3, 3], abs=0.15)


@pytest.mark.parametrize("name", ["continuous", "factorization", "euler"])
def test_members_of_a_batch_move_as_they_would_alone(name):
    flow, _, state = flows(all_losses(3, seed=8)["quadratic"])[name]
    modified, many = nf.ModifiedFlow(flow, RATE), torch.stack((state, state / 2))
    alone = torch.stack([modified.velocity(one) for one in many])
    assert float((modified.velocity(many) - alone).abs().max()) < 1e-12
    assert modified.law(many).shape[:2] == (2, 0)


def test_what_is_about_the_way_that_a_flow_goes_is_not_passed_on():
    loss = all_losses(3, seed=9)["quadratic"]
    made = {name: nf.ModifiedFlow(flow, RATE) for name, (flow, *_) in flows(loss).items()}
    made["limit"] = nf.ModifiedFlow(nf.IntrinsicFlow(loss, nf.LogMean()), RATE)
    depth = {"Samples", "OnGrid", "ChangesGrid", "EstimatesDepth", "EstimatesSmooth", "KnowsMisfit", "Multiplies"}
    depth |= {"EstimatesCourse"}
    kinds = {name for name, kind in vars(capabilities).items() if getattr(kind, "_is_protocol", False)} - {"Protocol"}
    expected = {"continuous": depth, "euler": {"Samples", "AtDepths", "Multiplies"}, "limit": set()}
    for name, those in expected.items():
        found = {kind for kind in kinds if offers(made[name], getattr(capabilities, kind))}
        assert found - {"KeepsOrientation"} == those, name
    assert made["continuous"].keeps_orientation
    assert not made["limit"].keeps_orientation
    assert not made["euler"].keeps_orientation


def test_it_is_integrated_from_a_profile_on_grids_that_adapt():
    loss = all_losses(3, seed=10)["quadratic"]
    W0 = smooth_profile(3, seed=11)
    fine = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 12), loss)
    coarse = nf.ModifiedFlow(nf.ContinuousFlow(nf.DepthGrid.gauss(1, 6), loss), 0.1)
    accuracy = {"method": "DOP853", "rtol": 1e-9, "atol": 1e-11}
    path = nf.integrate(coarse, W0, [0.0, 1.0], adapt=True, **accuracy)
    expected = nf.integrate(nf.ModifiedFlow(fine, 0.1), W0, [0.0, 1.0], **accuracy)
    assert path.stats["grid"] != [1, 6]
    assert float((path.z - expected.z).abs().max()) < 1e-7


def test_another_loss_is_that_of_its_own_flow_alone():
    loss, other = (all_losses(3, seed=seed)["quadratic"] for seed in (12, 13))
    flow, _, state = flows(loss)["euler"]
    modified = nf.ModifiedFlow(flow, RATE)
    changed = copy.copy(modified)
    changed.loss = other
    assert (flow.loss, modified.loss, changed.loss) == (loss, loss, other)
    expected = nf.ModifiedFlow(nf.FiniteFlow(7, other), RATE).velocity(state)
    assert torch.equal(changed.velocity(state), expected)


def test_it_says_what_it_is():
    flow = nf.FiniteFlow(2, nf.Quadratic(torch.eye(2)))
    assert repr(nf.ModifiedFlow(flow, 0.1)) == "ModifiedFlow(FiniteFlow(d=2, 2 euler layers, Quadratic), rate=0.1)"


class Bent:
    """θ' = −θ³ with a part that torch does not see, or with a derivative of its own."""

    loss = nf.Quadratic(torch.zeros(2, 2))

    def __init__(self, detached):
        self.detached = detached

    def check(self, state): ...

    def velocity(self, state):
        return -state * (state.detach() if self.detached else state) ** 2

    def product(self, state):
        return state

    def law(self, state):
        return state.new_empty(0, 2, 2)


class Claims(Bent):
    def linearised(self, state):
        return lambda direction: -2 * state**2 * direction


def test_a_derivative_that_is_not_that_of_the_velocity_is_refused():
    state = torch.tensor([[1.0, 0.5], [-0.5, 2.0]])
    v = -(state**3)
    assert torch.allclose(nf.ModifiedFlow(Bent(False), RATE).velocity(state), v + RATE / 2 * 3 * state**2 * v)
    nf.ModifiedFlow(Bent(False), RATE).check(state)
    for wrong in (Bent(True), Claims(False)):
        with pytest.raises(ValueError, match="not that of its differences.*without detach"):
            nf.integrate(nf.ModifiedFlow(wrong, RATE), state, [0.0, 1.0])


@pytest.mark.parametrize("rate", [0.0, -0.1, math.nan, math.inf])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="rate"):
        nf.ModifiedFlow(nf.FiniteFlow(2, nf.Quadratic(torch.eye(2))), rate)


@pytest.mark.parametrize(("flow", "said"), [(nf.FiniteFlow, "the class FiniteFlow"), (None, "NoneType")])
def test_what_is_no_flow_is_refused(flow, said):
    with pytest.raises(TypeError, match=f"flow must be a flow such as FiniteFlow.*{said}"):
        nf.ModifiedFlow(flow, 0.1)


@pytest.mark.parametrize("name", ["continuous", "euler"])
def test_the_law_moves_by_the_rate_times_what_a_step_adds_to_it(name):
    """C_t = η (gᵀg − ggᵀ), exactly: C is quadratic in W, so that its differences are."""
    loss = all_losses(3, seed=14)["quadratic"]
    if name == "continuous":
        flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 12), loss)
        state, bound = flow.sample(smooth_profile(3, seed=15)), 1e-9
    else:
        (flow, _, state), bound = flows(loss)["euler"], 1e-12
    v, moved = flow.velocity(state), nf.ModifiedFlow(flow, RATE).velocity(state)
    change = (flow.law(state + moved) - flow.law(state - moved)) / 2
    expected = RATE * flow.law_of_steps(flow.step_law(v, torch.eye(3)))
    assert float((change - expected).abs().max()) < bound * float(expected.abs().max())
    still = (flow.law(state + v) - flow.law(state - v)) / 2
    assert float(still.abs().max()) < bound * float(expected.abs().max())
