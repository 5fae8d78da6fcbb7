"""The central flow: at the edge of stability of gradient descent, of one direction and of several."""

import math

import pytest
import torch
from cases import randn, smooth_profile

import neuralode_flow as nf
from neuralode_flow.curvature import central_velocity, sharpness

ACCURACY = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-12}
SCALAR = nf.FiniteFlow(3, nf.Quadratic(torch.tensor([[3.0]])))
START = 3 * (torch.tensor([2.5, 0.5, 0.7]) - 1).reshape(3, 1, 1)
LOSS = nf.Quadratic(torch.tensor([[3.0, 0.5], [-0.2, 2.0]]))
RATE = 0.4  # the edge is at 5, and the flow ends at 5.76


def products(theta):
    """Two scalar problems side by side."""
    return theta[..., :2] * theta[..., 2:]


# As a flow.


@pytest.mark.parametrize("make", ["continuous", "exp", "factorisation"])
def test_the_flow_has_the_central_velocity_and_that_of_members_alone(make):
    state = 0.1 * randn(8, 2, 2, seed=2)
    if make == "factorisation":
        flow = nf.FactorizationFlow(lambda theta: theta[..., 0, :, :] @ theta[..., 1, :, :], LOSS)
        state = torch.eye(2) + state[:2]
    elif make == "exp":
        flow = nf.FiniteFlow(8, LOSS, "exp")
    else:
        flow = nf.ContinuousFlow(nf.DepthGrid.gauss(2, 4), LOSS)
    rate = 2 / float(sharpness(flow, state).value)
    moved, many = nf.CentralFlow(flow, rate), torch.stack((state, state / 2))
    moved.check(many)
    central = central_velocity(flow, state, rate)
    assert float(central.variance) > 0
    assert torch.equal(moved.velocity(state), central.velocity)
    assert torch.equal(moved.product(state), flow.product(state))
    alone = torch.stack([moved.velocity(one) for one in many])
    assert float((moved.velocity(many) - alone).abs().max()) < 1e-10 * float(alone.abs().max())
    assert moved.law(many).shape[:2] == (2, 0)


@pytest.mark.parametrize(("method", "bound"), [("DOP853", 1e-7), ("RK45", 1e-6), ("LSODA", 1e-6)])
@pytest.mark.slow
def test_it_is_integrated_across_its_kink_within_the_tolerance(method, bound):
    central, times = nf.CentralFlow(SCALAR, RATE), [0.0, 1.0, 5.0]
    best = nf.integrate(central, START, times, **ACCURACY)
    variances = [float(central_velocity(SCALAR, state, RATE).variance) for state in (START, best.state)]
    assert variances[0] == 0 < variances[1]  # there is one
    assert float(sharpness(SCALAR, best.state).value) == pytest.approx(5, abs=1e-4)
    path = nf.integrate(central, START, times, method, rtol=1e-7, atol=1e-9)
    assert float((path.z - best.z).abs().max()) < bound
    assert path.status == best.status == "ok"


@pytest.mark.slow
def test_fixed_steps_are_of_order_two_across_the_kink():
    central, times = nf.CentralFlow(SCALAR, RATE), [0.0, 3.0]
    best = nf.integrate(central, START, times, **ACCURACY).state
    off = [float((nf.integrate(central, START, times, "rk4", step=h).state - best).abs().max()) for h in (0.1, 0.0125)]
    assert off[0] < 1e-3
    assert 8 < off[0] / off[1] < 8**3  # not 8⁴


def test_a_run_that_is_resumed_gives_the_same_numbers_to_the_bit(tmp_path):
    central, times = nf.CentralFlow(SCALAR, RATE), torch.linspace(0, 2, 5)
    options = {"method": "dopri5", "rtol": 1e-4, "atol": 1e-6}
    whole = nf.integrate(central, START, times, **options)
    file = tmp_path / "run.npz"
    part = nf.integrate(central, START, times, checkpoint=file, max_evaluations=40, **options)
    assert part.ending == "evaluations"
    again = nf.integrate(nf.CentralFlow(SCALAR, RATE), START, times, checkpoint=file, **options)
    assert torch.equal(again.z, whole.z)
    assert torch.equal(again.state, whole.state)
    with pytest.raises(ValueError, match="learning_rate"):
        nf.integrate(nf.CentralFlow(SCALAR, 0.3), START, times, checkpoint=file, **options)


@pytest.mark.slow
def test_it_starts_from_a_profile_on_a_grid_that_adapts():
    W0 = smooth_profile(2, seed=11, scale=0.2)
    fine = nf.ContinuousFlow(nf.DepthGrid.gauss(3, 8), LOSS)
    coarse = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 4), LOSS)
    rate = 2 / float(sharpness(fine, fine.sample(W0)).value)
    options = {"method": "RK45", "rtol": 1e-4, "atol": 1e-6}
    path = nf.integrate(nf.CentralFlow(coarse, rate), W0, [0.0, 0.1], adapt=True, **options)
    expected = nf.integrate(nf.CentralFlow(fine, rate), W0, [0.0, 0.1], **options)
    plain = nf.integrate(fine, W0, [0.0, 0.1], **options)
    assert path.stats["grid"] != [1, 4]
    assert float((path.z - expected.z).abs().max()) < 1e-3
    assert float((plain.z - expected.z).abs().max()) > 1e-2


def test_what_has_no_central_flow_is_refused():
    limit = nf.IntrinsicFlow(SCALAR.loss, nf.LogMean())
    for flow in (limit, nf.ModifiedFlow(SCALAR, 0.1), nf.FiniteFlow, None):
        with pytest.raises(TypeError, match="flow must be a ContinuousFlow, FiniteFlow or FactorizationFlow"):
            nf.CentralFlow(flow, 0.1)
    for rate in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="rate"):
            nf.CentralFlow(SCALAR, rate)
    with pytest.raises(ValueError, match="no finite velocity"):
        nf.integrate(nf.CentralFlow(SCALAR, 0.1), 1e200 * START, [0.0, 1.0])
    assert repr(nf.CentralFlow(SCALAR, 0.1)) == "CentralFlow(FiniteFlow(d=1, 3 euler layers, Quadratic), rate=0.1)"
