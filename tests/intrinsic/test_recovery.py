"""The flow in z without a formula."""

import pytest
import torch
from cases import randn

import neuralode_flow as nf
from neuralode_flow.intrinsic import RecoveredFlow, recover
from neuralode_flow.intrinsic.systems import diagonal

TIMES = torch.linspace(0, 3, 31)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_recovered_flow_is_the_closed_flow(seed):
    system = diagonal.diagonal(dimension=3, seed=seed)
    flow = RecoveredFlow(system.phi, system.laws, system.theta, system.loss)
    options = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-12}
    path = nf.integrate(flow, flow.start, TIMES, **options)
    closed = nf.integrate(system.closed, flow.start, TIMES, **options)
    assert path.status == "ok"
    assert float((path.z - closed.z).abs().max()) < 1e-9


def test_theta_comes_back_from_z_and_the_laws():
    system = diagonal.diagonal(dimension=4)
    theta = system.theta + 0.1 * randn(8, seed=1)
    found = recover(system.phi, system.laws, system.phi(theta), system.laws(theta), near=system.theta)
    torch.testing.assert_close(found, theta, atol=1e-13, rtol=0)


def test_a_z_off_the_image_gives_the_nearest_theta():
    def phi(theta):  # a curve in the plane
        return torch.stack((theta[0].cos(), theta[0].sin()))

    found = recover(phi, lambda theta: theta[:0], torch.tensor([1.1, 0.0]), torch.zeros(0), near=torch.tensor([0.2]))
    assert abs(float(found)) < 1e-8


def test_a_search_that_fails_ends_the_run_with_a_sentence():
    def phi(theta):
        return theta.square()

    flow = RecoveredFlow(phi, lambda theta: theta[:0], torch.ones(1), nf.Quadratic(-torch.ones(1)))
    path = nf.integrate(flow, flow.start, [0, 5.0], method="rk4", step=0.5)
    assert path.ending == "velocity"
    assert "θ could not be recovered" in path.status


def test_theta_that_is_not_recoverable_is_refused():
    def phi(theta):
        return theta[0] * theta[1] * theta[2]

    with pytest.raises(ValueError, match="theta must be determined by z and the laws, but the rank"):
        RecoveredFlow(phi, lambda theta: theta[:1] ** 2 - theta[1:2] ** 2, torch.ones(3), nf.Quadratic(torch.ones(())))
    with pytest.raises(ValueError, match=r"theta must have shape \(n,\)"):
        RecoveredFlow(phi, phi, torch.ones(3, 1), nf.Quadratic(torch.ones(())))
    flow = RecoveredFlow(torch.sin, lambda theta: theta[:0], torch.ones(2), nf.Quadratic(torch.ones(2)))
    with pytest.raises(ValueError, match=r"state must have the shape \(2,\) of phi\(theta\), got \(3,\)"):
        nf.integrate(flow, torch.ones(3), TIMES)
