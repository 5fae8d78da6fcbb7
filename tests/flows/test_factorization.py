"""θ' = −∇(f∘φ): any function of torch is a factorisation."""

import pytest
import torch
from cases import randn

import neuralode_flow as nf
from neuralode_flow.intrinsic.systems.linear_network import laws_of, phi_of

TIMES = torch.linspace(0, 1, 6)


def normal(*shape, seed=0):
    return randn(*shape, seed=seed)


def cubic(theta):
    return torch.stack((theta[..., 0] * theta[..., 1] * theta[..., 2], theta[..., 0].sin() + theta[..., 2] ** 3), -1)


LOSSES = {
    "quadratic": nf.Quadratic(normal(2, seed=1)),
    "least squares": nf.LeastSquares(normal(5, 2, seed=2), normal(5, seed=3)),
    "custom": nf.Custom(lambda z: (z**4).sum() + z[0] * z[1], axes=1),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_velocity_is_minus_the_gradient_of_the_loss_of_phi(loss):
    theta, flow = normal(3), nf.FactorizationFlow(cubic, loss)
    h = 1e-6
    for i in range(3):
        e = torch.zeros(3)
        e[i] = h
        slope = (loss(cubic(theta + e)) - loss(cubic(theta - e))) / (2 * h)
        assert float(abs(flow.velocity(theta)[i] + slope)) < 1e-7 * (1 + float(abs(slope)))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_linearisation_is_the_derivative_of_the_velocity(loss):
    theta, direction, flow = normal(3), normal(3, seed=4), nf.FactorizationFlow(cubic, loss)
    h = 1e-6
    difference = (flow.velocity(theta + h * direction) - flow.velocity(theta - h * direction)) / (2 * h)
    torch.testing.assert_close(flow.linearised(theta)(direction), difference, atol=1e-7, rtol=1e-7)


def test_the_linearisation_of_a_linear_map_is_that_of_the_loss():
    A, loss = normal(4, 3), nf.Quadratic(normal(4, seed=1))
    flow = nf.FactorizationFlow(lambda theta: theta @ A.mT, loss)
    direction = normal(3, seed=2)
    torch.testing.assert_close(flow.linearised(normal(3))(direction), -A.mT @ A @ direction)


def test_a_product_of_layers_is_the_finite_flow():
    L, d = 3, 3
    target = torch.eye(d) + 0.3 * normal(d, d)
    loss = nf.Quadratic(target)
    net = nf.FiniteFlow(L, loss)
    W = 0.5 * normal(L, d, d, seed=1)
    identity = torch.eye(d)

    def phi(W):
        return torch.linalg.multi_dot([identity + W[k] / L for k in range(L - 1, -1, -1)])

    options = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-13}
    # The finite flow is L times faster than the Euclidean one.
    a = nf.integrate(net, W, TIMES, **options)
    b = nf.integrate(nf.FactorizationFlow(phi, loss), W, L * TIMES, **options)
    torch.testing.assert_close(a.z, b.z, atol=1e-9, rtol=0)


def test_members_along_leading_axes_are_the_runs_of_each():
    flow = nf.FactorizationFlow(phi_of([2, 3, 2]), nf.Quadratic(normal(2, 2, seed=1)), laws_of([2, 3, 2]))
    thetas = normal(3, 12)
    together = nf.integrate(flow, thetas, TIMES, method="DOP853", rtol=1e-11, atol=1e-13)
    assert together.z.shape == (6, 3, 2, 2)
    assert together.loss.shape == together.drift.shape == (6, 3)
    for i in range(3):
        alone = nf.integrate(flow, thetas[i], TIMES, method="DOP853", rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(alone.z, together.z[:, i], atol=1e-9, rtol=0)


def test_the_laws_of_a_linear_network_do_not_drift():
    flow = nf.FactorizationFlow(phi_of([2, 3, 4, 2]), nf.Quadratic(normal(2, 2, seed=1)), laws_of([2, 3, 4, 2]))
    path = nf.integrate(flow, normal(26), TIMES, method="DOP853", rtol=1e-11, atol=1e-13)
    assert float(path.drift.max()) < 1e-9
    wrong = nf.FactorizationFlow(flow.phi, flow.loss, lambda theta: theta.square())
    assert float(nf.integrate(wrong, normal(26), TIMES).drift.max()) > 1e-2


@pytest.mark.parametrize("method", ["auto", "CVODE_BDF", "Radau", "implicit_midpoint", "dopri8"])
def test_every_kind_of_time_method_takes_a_z_that_is_no_matrix(method):
    flow = nf.FactorizationFlow(cubic, LOSSES["least squares"])
    reference = nf.integrate(flow, normal(3), TIMES, method="DOP853", rtol=1e-12, atol=1e-14)
    options = {"step": 2e-3} if method == "implicit_midpoint" else {"rtol": 1e-8, "atol": 1e-10}
    path = nf.integrate(flow, normal(3), TIMES, method=method, **options)
    assert path.status == "ok"
    assert path.z.shape == (6, 2)
    assert float((path.z - reference.z).abs().max()) < (1e-3 if method == "implicit_midpoint" else 1e-6)


def test_events_and_the_measured_error_work_for_a_z_that_is_no_matrix():
    flow = nf.FactorizationFlow(cubic, LOSSES["quadratic"])
    path = nf.integrate(flow, normal(3), [0, 50.0], stop={"gradient": 1e-3}, estimate=True)
    assert path.ending == "gradient"
    assert abs(float(flow.loss.gradient(path.z[-1]).norm()) - 1e-3) < 1e-6
    assert path.time_error is not None
    with pytest.raises(ValueError, match=r"stop\['sigma_min'\] needs a flow whose z is a matrix"):
        nf.integrate(flow, normal(3), TIMES, stop={"sigma_min": 0.1})


def test_a_scalar_z_has_a_flow():
    flow = nf.FactorizationFlow(lambda theta: theta.prod(-1), nf.Quadratic(torch.tensor(2.0)))
    path = nf.integrate(flow, torch.tensor([1.0, 0.5]), [0, 20.0])
    assert path.z.shape == (2,)
    assert abs(float(path.z[-1]) - 2) < 1e-6


@pytest.mark.parametrize(
    ("phi", "loss", "state", "message"),
    [
        (3, LOSSES["custom"], normal(3), "phi must be a function"),
        (cubic, "quadratic", normal(3), "loss must be a loss"),
        (cubic, nf.Quadratic(normal(3)), normal(3), r"phi gives z of shape \(2,\) but the loss"),
        (lambda theta: 1.0, LOSSES["custom"], normal(3), "phi must return a tensor, got float"),
        (lambda theta: torch.zeros(2), LOSSES["quadratic"], normal(3), "phi must depend on theta"),
        (lambda theta: theta.log(), LOSSES["custom"], -torch.ones(3), r"phi\(theta\) must be finite"),
        (cubic, LOSSES["quadratic"], normal(3).float(), r"phi\(state\) is torch.float32 .* target of the loss"),
        (cubic, nf.Quadratic(normal(4, 2), axes=1), normal(3), "the loss has more members"),
        (cubic, LOSSES["quadratic"], torch.ones(3).int(), "state must hold floating-point numbers"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(phi, loss, state, message):
    with pytest.raises((TypeError, ValueError), match=message):
        nf.integrate(nf.FactorizationFlow(phi, loss), state, TIMES)


def test_square_flows_refuse_a_loss_for_another_shape():
    grid, loss = nf.DepthGrid.gauss(1, 4), nf.Quadratic(normal(2, 3))
    for make in (
        lambda: nf.ContinuousFlow(grid, loss),
        lambda: nf.FiniteFlow(2, loss),
        lambda: nf.IntrinsicFlow(loss, nf.LogMean()),
    ):
        with pytest.raises(ValueError, match=r"loss must be for square matrices, .* z of shape \(2, 3\)"):
            make()


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


def detached(theta):
    return torch.stack((theta[..., 0] * theta[..., 1].detach(), theta[..., 2]), -1)


def straight_through(theta):
    return torch.stack((StraightThrough.apply(theta[..., 0]), theta[..., 1] * theta[..., 2]), -1)


@pytest.mark.parametrize("phi", [detached, straight_through])
@pytest.mark.parametrize("state", [normal(3), normal(4, 3), 3 * normal(3), normal(3).float(), torch.zeros(3)])
@pytest.mark.parametrize("train", [lambda *args: nf.integrate(*args, [0.0, 0.1]), lambda *args: nf.descend(*args, 3)])
def test_a_derivative_of_phi_that_is_not_its_own_is_refused(phi, state, train):
    flow = nf.FactorizationFlow(phi, nf.Custom(lambda z: (z**2).sum(), axes=1))
    with pytest.raises(ValueError, match="phi has a derivative that is not that of its differences"):
        train(flow, state)


def test_phi_with_kinks_or_numbers_in_its_state_has_its_own_derivative():
    loss = nf.Custom(lambda z: (z**2).sum(), axes=1)
    for phi in (lambda theta: theta.relu(), lambda theta: theta.abs() * theta.sign(), cubic):
        for state in (normal(3), torch.zeros(3), normal(2, 3)):
            assert nf.descend(nf.FactorizationFlow(phi, loss), state, 2).ending == "ok"
    for size in (1, 30, 100):  # it oscillates between the points of large steps
        fast = nf.FactorizationFlow(lambda theta: (1e6 * theta).sin(), loss)
        assert nf.descend(fast, size * normal(3), 2, rate=1e-13).ending == "ok"
    one = torch.tensor(0.7, dtype=torch.float64)
    assert nf.descend(nf.FactorizationFlow(lambda theta: theta**3, nf.Quadratic(one)), one, 2).ending == "ok"


@pytest.mark.parametrize("refusal", [AssertionError, KeyError, type("Mine", (Exception,), {})])
def test_phi_may_refuse_what_is_not_on_its_way(refusal):
    """It is compared with differences at points beside the state, where a map of a smaller domain says no."""

    def logarithms(theta):
        if not bool((theta > 0).all()):
            raise refusal
        return theta.log()

    flow = nf.FactorizationFlow(logarithms, nf.Custom(lambda z: (z**2).sum(), axes=1))
    assert nf.integrate(flow, torch.tensor([0.5, 1e-3, 5.0, 3.0]), [0.0, 1e-9]).ending == "ok"
