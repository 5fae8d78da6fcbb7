"""The central flow: at the edge of stability of gradient descent, of one direction and of several."""

import math

import numpy as np
import pytest
import torch
from cases import randn, smooth_profile

import neuralode_flow as nf
from neuralode_flow.curvature import central_velocity, complementarity, hessian, sharpness

ACCURACY = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-12}
SCALAR = nf.FiniteFlow(3, nf.Quadratic(torch.tensor([[3.0]])))
START = 3 * (torch.tensor([2.5, 0.5, 0.7]) - 1).reshape(3, 1, 1)
LOSS = nf.Quadratic(torch.tensor([[3.0, 0.5], [-0.2, 2.0]]))
RATE = 0.4  # the edge is at 5, and the flow ends at 5.76


def beside(theta):
    """Two scalar problems side by side."""
    return theta[..., :2] * theta[..., 2:]


def coupled(theta):
    """The same, each with a little of the other."""
    return beside(theta) + 0.1 * theta[..., [1, 0]] * theta[..., 2:]


ALONE = nf.FactorizationFlow(lambda theta: theta[..., 0] * theta[..., 1], nf.Quadratic(torch.tensor(1.0)))
BESIDE, COUPLED = (nf.FactorizationFlow(phi, nf.Quadratic(torch.ones(2), axes=1)) for phi in (beside, coupled))


def rates_of_change(flow, state, direction, vectors):
    """⟨u_i, H'u_j⟩ along a direction by differences of products."""
    h = 1e-5
    ends = [hessian(flow, state + step * direction) for step in (h, -h)]
    ahead, behind = ([H.product(u) for u in vectors] for H in ends)
    change = torch.stack(ahead) - torch.stack(behind)
    return torch.einsum("i...,j...->ij", vectors * hessian(flow, state).weights, change) / (2 * h)


def weights(values, edge):
    """What the rates of change off the diagonal count."""
    x = ((values[:, None] - values).abs() / (0.05 * edge)).clamp(max=1)
    return (1 - x) ** 3 * (1 + 3 * x)


# The complementarity problem.


def drawn(kind, draws):
    """B of full rank or less, and A whose solution is known: on a kink where an eigenvalue is zero in both cones."""
    r = int(draws.integers(2, 6))
    p = r * (r + 1) // 2
    gradients = draws.standard_normal((p, p + 2))
    if kind == "singular":
        gradients = draws.standard_normal((p, (p + 1) // 2)) @ gradients[: (p + 1) // 2]
    if kind == "scales":
        size = 10 ** draws.uniform(-2, 0, r)
        rows, columns = np.triu_indices(r)
        gradients *= (size[rows] * size[columns])[:, None]
    Q = np.linalg.qr(draws.standard_normal((r, r)))[0]
    rank, gap = int(draws.integers(1, r + 1)), int(kind == "kink")
    y = np.where(np.arange(r) < rank, draws.uniform(0.1, 2, r), 0)
    s = np.where(np.arange(r) >= rank + gap, draws.uniform(0.1, 2, r), 0)
    B, Y = gradients @ gradients.T, Q * y @ Q.T
    return B, times(B, Y) - Q * s @ Q.T, Y


def times(B, Y):
    E = complementarity.coordinates(len(Y))
    return np.einsum("aij,ab,bkl,kl->ij", E, B, E, Y)


@pytest.mark.parametrize("kind", ["regular", "singular", "scales", "kink"])
def test_the_complementarity_problem_is_solved_to_round_off(kind):
    draws = np.random.default_rng(0)
    for _ in range(30):
        B, A, wanted = drawn(kind, draws)
        Y = complementarity.solve(B, A)
        S = times(B, Y) - A
        size, other = np.linalg.norm(Y), np.linalg.norm(A)
        assert np.linalg.eigvalsh(Y)[0] >= -1e-14 * size
        assert np.linalg.eigvalsh(S)[0] >= -1e-10 * other
        assert abs(np.sum(S * Y)) <= 1e-10 * size * other
        if kind == "singular":  # Y is not the only one
            assert np.linalg.norm(times(B, Y - wanted)) < 1e-9 * np.linalg.norm(B) * np.linalg.norm(wanted)
        else:
            assert np.linalg.norm(Y - wanted) < 1e-7 * np.linalg.norm(wanted)


def test_what_has_no_solution_has_none_and_what_needs_nothing_is_zero():
    B, draws = np.diag([1.0, 1.0, 0.0]), np.random.default_rng(1)  # nothing moves the second diagonal entry
    for _ in range(10):
        assert complementarity.solve(B, np.diag([draws.uniform(-1, 1), draws.uniform(0.1, 1)])) is None
    assert complementarity.solve(np.zeros((1, 1)), np.ones((1, 1))) is None
    assert not complementarity.solve(B, np.diag([-1.0, 0.0])).any()


# Several directions.


@pytest.mark.parametrize(
    "theta", [[3.0, 3.0, 0.3, 0.31], [3.0, 3.0, 0.3, 0.3], [3.0, 3.1, 0.3, 0.2], [3.0, 2.9, 0.3, 0.3]]
)
def test_of_two_problems_side_by_side_it_is_both_central_flows(theta):
    theta, rate = torch.tensor(theta), 2 / 9
    both, each = central_velocity(BESIDE, theta, rate), [central_velocity(ALONE, theta[i::2], rate) for i in (0, 1)]
    expected = torch.stack([one.velocity for one in each], dim=1).flatten()
    assert float((both.velocity - expected).abs().max()) < 1e-13
    variances = sorted(float(one.variance) for one in each)
    assert torch.linalg.eigvalsh(both.covariance).tolist() == pytest.approx(variances, abs=1e-14)
    assert variances[1] > 0
    leading = max(each, key=lambda one: float(one.sharpness))
    if each[0].sharpness != each[1].sharpness:
        assert float(both.variance) == pytest.approx(float(leading.variance), abs=1e-14)


def test_the_eigenvalues_at_the_edge_are_held_by_their_rates_of_change():
    network = nf.FiniteFlow(2, nf.Quadratic(torch.tensor([[1.8, 0.02], [-0.01, 1.75]])))
    layers = torch.stack((2.4 * torch.eye(2), 0.7 * torch.eye(2))) + 0.02 * randn(2, 2, 2, seed=3)
    cases = ((COUPLED, torch.tensor([3.0, 3.02, 0.3, 0.25])), (network, 2 * (layers - torch.eye(2))))
    for flow, state in cases:
        pairs = hessian(flow, state).top(2)
        edge = float(pairs.values[1])  # the second is at it, the first beyond
        assert 1e-3 < 1 - edge / float(pairs.values[0]) < 0.04
        rate = 2 / edge
        central = central_velocity(flow, state, rate)
        k = len(central.covariance)
        values, vectors, _ = hessian(flow, state).top(k)
        R = rates_of_change(flow, state, central.velocity, vectors) * weights(values, edge)
        D = torch.diag(edge - values) / rate - R
        Y = central.covariance / weights(values, edge)
        for positive in (central.covariance, Y):
            assert float(torch.linalg.eigvalsh(positive)[0]) > -1e-14
        assert float(Y[1, 1]) > 0
        size = float(D.abs().max())
        assert float(torch.linalg.eigvalsh(D)[0]) > -1e-6 * size
        assert abs(float((D * Y).sum())) < 1e-6 * size * float(Y.trace())
        one = nf.curvature.sharpness_gradient(flow, state)
        alone = flow.velocity(state) - float(central.variance) / 2 * one
        assert float((central.velocity - alone).abs().max()) > 1e-3  # one direction is not enough


def rotation(scale):
    """A relaxed balanced minimiser all of whose eigenvalues are equal."""
    target = scale * torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(2, 6), nf.Quadratic(target))
    return flow, flow.sample(nf.balanced(target))


def test_four_equal_eigenvalues_are_led_back_together_and_continuously():
    flow, state = rotation(2.0)
    values, vectors, _ = hessian(flow, state).top(4)
    assert torch.allclose(values, torch.full((4,), 4.0))
    rate = 2 / 3.9
    central = central_velocity(flow, state, rate)
    R = rates_of_change(flow, state, central.velocity, vectors)
    D = -0.1 / rate * torch.eye(4) - R
    assert float(torch.linalg.eigvalsh(D)[0]) > -1e-6
    assert abs(float((D * central.covariance).sum())) < 1e-6 * float(central.covariance.trace())
    assert float(central.covariance.trace()) > 1e-3
    for seed in range(3):  # eigenvectors of the four are others at each state near by
        direction = randn(*state.shape, seed=seed)
        for size in (1e-3, 1e-5, 1e-7):
            moved = central_velocity(flow, state + size * direction, rate).velocity
            assert float((moved - central.velocity).abs().max()) < 20 * size


@pytest.mark.parametrize(("first", "edge"), [(2.4, 9.0), (2.8, 7.5)])
def test_the_velocity_has_no_jump_where_a_second_eigenvalue_comes_to_the_edge_or_near_the_first(first, edge):
    start, end = torch.tensor([3.0, first, 0.3, 0.3]), torch.tensor([3.0, 3.2, 0.3, 0.1])
    jumps = []
    for pieces in (20, 80):
        states = start + torch.linspace(0, 1, pieces + 1)[:, None] * (end - start)
        found = central_velocity(COUPLED, states, 2 / edge)
        jumps.append(float(found.velocity.diff(dim=0).abs().max()))
    ranks = (torch.linalg.eigvalsh(found.covariance) > 1e-9).sum(-1)
    assert int(ranks[-1]) == 2
    assert jumps[1] < jumps[0] / 3


@pytest.mark.slow
def test_lanczos_and_float32_give_the_same(monkeypatch):
    target = 2 * torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    tilted = target + 0.02 * torch.tensor([[1.0, 0.3], [-0.2, 0.5]])
    grid = nf.DepthGrid.gauss(4, 6)
    flow, rate = nf.ContinuousFlow(grid, nf.Quadratic(tilted)), 2 / 3.98
    state = flow.sample(nf.balanced(target)) + 0.01 * randn(24, 2, 2, seed=0)
    lanczos = central_velocity(flow, state, rate)
    single = central_velocity(nf.ContinuousFlow(grid, nf.Quadratic(tilted.float())), state.float(), rate)
    for module in ("lanczos", "edge"):
        monkeypatch.setattr(f"neuralode_flow.curvature.{module}.SMALL", 1000)
    dense = central_velocity(flow, state, rate)
    assert len(dense.covariance) == 4
    assert torch.allclose(
        torch.linalg.eigvalsh(lanczos.covariance), torch.linalg.eigvalsh(dense.covariance), atol=1e-13
    )
    assert float((lanczos.velocity - dense.velocity).abs().max()) < 1e-13
    assert single.velocity.dtype == torch.float32
    assert float((single.velocity - dense.velocity).abs().max()) < 1e-5


def test_members_have_as_many_directions_as_they_need():
    states = torch.tensor([[3.0, 3.0, 0.3, 0.31], [3.0, 1.0, 0.3, 0.3], [1.0, 1.0, 0.3, 0.3]])
    found = central_velocity(COUPLED, states, 2 / 9)
    for i, state in enumerate(states):
        alone = central_velocity(COUPLED, state, 2 / 9)
        k = len(alone.covariance)
        assert torch.allclose(found.velocity[i], alone.velocity, rtol=1e-12, atol=1e-13)
        assert torch.allclose(found.covariance[i, :k, :k], alone.covariance, atol=1e-12)
        assert not found.covariance[i, k:].any()
    assert (torch.linalg.eigvalsh(found.covariance) > 1e-3).sum(-1).tolist() == [2, 1, 0]


@pytest.mark.slow
def test_two_eigenvalues_stay_at_the_edge_and_gradient_descent_goes_to_and_fro_about_it():
    flow = nf.FiniteFlow(3, nf.Quadratic(torch.diag(torch.tensor([3.0, 2.9]))))
    factors = torch.diag_embed(torch.tensor([[2.5, 2.4], [0.5, 0.55], [0.7, 0.65]]))
    start = 3 * (factors - torch.eye(2) + 0.05 * randn(3, 2, 2, seed=0))
    edge, steps = 5.2, 100
    rate = 2 / edge
    central, times = nf.CentralFlow(flow, rate), [0.0, steps * rate]
    path = nf.integrate(central, start, times, "RK45", rtol=1e-6, atol=1e-8)
    plain = nf.integrate(flow, start, times, **ACCURACY).state
    assert float(hessian(flow, plain).top(2).values[1]) > 1.05 * edge
    values = hessian(flow, path.state).top(2).values
    assert values.tolist() == pytest.approx([edge, edge], rel=1e-6)
    assert float(torch.linalg.eigvalsh(central_velocity(flow, path.state, rate).covariance)[-2]) > 1e-6
    descent = [start]
    for _ in range(steps + 1):
        descent.append(descent[-1] + rate * flow.velocity(descent[-1]))
    middle = (descent[steps] + descent[steps + 1]) / 2
    far, near = (float(torch.linalg.vector_norm(x - middle)) for x in (plain, path.state))
    assert far > 3 * near


def test_where_no_velocity_leads_back_it_is_said():
    flow = nf.FactorizationFlow(lambda theta: theta, nf.Quadratic(torch.ones(2), axes=1))
    with pytest.raises(ValueError, match="eigenvalues up to 1, beyond 2/rate = 0.8, which no velocity brings down"):
        central_velocity(flow, torch.zeros(2), 2.5)
    path = nf.integrate(nf.CentralFlow(flow, 2.5), torch.zeros(2), [0.0, 1.0])
    assert path.ending == "velocity"
    assert "no velocity brings down" in path.status


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


# Sharpness along training.


def test_the_sharpness_along_training_is_that_of_each_state(tmp_path):
    seen = []
    eigenvalues = nf.curvature.along(SCALAR, 2)

    def both(i, state):
        seen.append(state)
        return eigenvalues(i, state)

    descent = nf.descend(SCALAR, START, steps=40, rate=RATE, record=10, observe=both)
    assert descent.observed.shape == (5, 2, 2)
    for state, found in zip(seen, descent.observed):
        values, _, residuals = hessian(SCALAR, state).top(2)
        assert torch.equal(found, torch.stack((values, residuals), dim=-1))
    assert float(descent.observed[0, 0, 0]) < 2 < 2 / RATE - 0.1 < float(descent.observed[-1, 0, 0])
    file = tmp_path / "run.npz"
    options = {"method": "RK45", "rtol": 1e-4, "observe": eigenvalues, "checkpoint": file}
    nf.integrate(nf.CentralFlow(SCALAR, RATE), START, [0.0, 0.5, 1.0], max_evaluations=30, **options)
    path = nf.integrate(nf.CentralFlow(SCALAR, RATE), START, [0.0, 0.5, 1.0], **options)
    assert float(path.observed[0, 0, 0]) == float(descent.observed[0, 0, 0])
    assert float(path.observed[-1, 0, 0]) == float(sharpness(SCALAR, path.state).value)
    many = nf.descend(SCALAR, torch.stack((START, START / 2)), steps=1, rate=0.1, observe=eigenvalues)
    assert many.observed.shape == (2, 2, 2, 2)


def test_an_observer_needs_a_flow_with_a_hessian_and_as_many_eigenvalues():
    with pytest.raises(TypeError, match="flow must be a ContinuousFlow"):
        nf.curvature.along(nf.CentralFlow(SCALAR, RATE))
    with pytest.raises(ValueError, match="k must be at least 1"):
        nf.curvature.along(SCALAR, 0)
    with pytest.raises(ValueError, match="k must be at most 3"):
        nf.descend(SCALAR, START, steps=1, rate=0.1, observe=nf.curvature.along(SCALAR, 4))
