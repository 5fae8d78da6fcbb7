"""Hessians of flows: exact products, spectra at minimisers, the least sharpness, and gradient descent there."""

import copy
import math
import pickle

import pytest
import torch
from cases import Weighted, all_losses, generator, positive_matrix, randn, relaxed_profile, slow, smooth_profile

import neuralode_flow as nf
from neuralode_flow.curvature import (
    balanced_spectrum,
    central_velocity,
    hessian,
    least_sharpness,
    minimiser_spectrum,
    sharpness,
    sharpness_gradient,
)
from neuralode_flow.curvature.hessian import by_autograd, derivative, inner_weights

GRID = nf.DepthGrid.gauss(4, 8)


def chain(W, layer):
    """z of layers, one after the other."""
    A, z = W / len(W), torch.eye(W.shape[-1])
    for U in torch.linalg.matrix_exp(A) if layer == "exp" else z + A:
        z = U @ z
    return z


def dense_hessian(flow, layer, state):
    """L ∂²f/∂W², by autograd through the loss and a chain of its own."""
    one = torch.autograd.functional.hessian(lambda W: flow.loss(chain(W, layer)), state)
    return flow.depth * one.reshape(state.numel(), state.numel())


def at_minimum(W0, grid=GRID):
    """The flow whose target is the end-to-end map of a profile, and the profile's state."""
    state = W0.at(grid.nodes)
    return nf.ContinuousFlow(grid, nf.Quadratic(nf.Collocation(grid).product(state))), state


def factorised():
    def phi(theta):
        return torch.tanh(theta[..., :3, :]) @ theta[..., 3:, :].mT

    return nf.FactorizationFlow(phi, nf.Quadratic(randn(3, 3, seed=0))), randn(6, 4, seed=1)


# Spectra at minimisers.


@pytest.mark.parametrize("d", [2, 3, *(pytest.param(d, marks=pytest.mark.slow) for d in (4, 5, 6))])
def test_the_spectrum_at_relaxed_balanced_minimisers_is_the_logarithmic_mean(d):
    grid = GRID if d < 5 else nf.DepthGrid.gauss(3, 8)
    for seed in range(4):
        target, W0 = relaxed_profile(d, seed=10 * d + seed)
        flow = nf.ContinuousFlow(grid, nf.Quadratic(target))
        found = hessian(flow, flow.sample(W0)).spectrum()
        K = nf.LogMean()(torch.linalg.svdvals(target)).flatten().sort(descending=True).values
        assert float((found.values[: d * d] - K).abs().max()) < 1e-9
        assert float(found.values[d * d :].abs().max()) < 1e-12 * float(K[0])
        assert float(found.residuals.max()) < 1e-12 * float(K[0])
        assert torch.allclose(balanced_spectrum(flow.loss, target), K, rtol=1e-13, atol=0)


@pytest.mark.parametrize("relaxed", [True, False])
def test_a_flow_that_started_relaxed_balanced_ends_there_and_no_other_does(relaxed):
    target = positive_matrix(3, seed=0)
    flow = nf.ContinuousFlow(GRID, nf.Quadratic(target))
    W0 = relaxed_profile(3, seed=1)[1] if relaxed else smooth_profile(3, seed=1)
    path = nf.integrate(flow, flow.sample(W0), [0.0, 60.0], "DOP853", rtol=1e-11, atol=1e-13)
    assert float(path.loss[-1]) < 1e-20
    off = hessian(flow, path.state).top(9).values - balanced_spectrum(flow.loss, target)
    assert float(off.abs().max()) < 1e-9 if relaxed else float(off[0]) > 1e-2


@pytest.mark.parametrize("name", ["regression", "custom"])
def test_a_loss_of_another_hessian_joins_in_at_its_minimiser(name):
    target, W0 = relaxed_profile(3, seed=2)
    x = randn(20, 3, seed=3)
    loss = nf.Regression(x, x @ target.mT)
    if name == "custom":
        loss = nf.Custom(lambda z: torch.log(torch.cosh(2 * (z - target) @ x.mT)).mean())
    flow = nf.ContinuousFlow(GRID, loss)
    state = flow.sample(W0)
    found = hessian(flow, state).spectrum().values
    closed = balanced_spectrum(loss, target)
    assert float((found[:9] - closed).abs().max()) < 1e-9 * float(closed[0])
    assert float(found[9:].abs().max()) < 1e-12 * float(closed[0])
    assert float((minimiser_spectrum(flow, state) - closed).abs().max()) < 1e-9 * float(closed[0])
    plain = balanced_spectrum(nf.Quadratic(target), target)
    assert float((closed - plain).abs().max()) > 0.1  # A matters


def test_the_map_on_the_space_of_z_is_the_integral_over_depth():
    flow, state = at_minimum(smooth_profile(3, seed=4))
    before, after, _ = nf.Collocation(GRID).propagators(state)
    left, right = after @ after.mT, before.mT @ before
    M = sum(w * torch.kron(B, A) for w, B, A in zip(GRID.weights, left, right))
    wanted = torch.linalg.eigvalsh(M).flip(-1)
    assert torch.allclose(minimiser_spectrum(flow, state), wanted, rtol=1e-11)
    found = hessian(flow, state).spectrum().values
    assert torch.allclose(found[:9], wanted, rtol=1e-9)
    assert float(found[9:].abs().max()) < 1e-12 * float(wanted[0])


# The least sharpness.


@pytest.mark.slow
def test_no_minimiser_is_flatter_than_the_square_of_the_largest_singular_value():
    excess = []
    for seed in range(100):
        flow, state = at_minimum(smooth_profile(2 + seed % 4, seed, scale=(0.1, 0.5, 2.5)[seed % 3]))
        excess.append(float(sharpness(flow, state).value / least_sharpness(flow.product(state))) - 1)
    assert min(excess) > -1e-9
    assert max(excess) > 1  # and most are sharper
    assert sum(value > 1e-3 for value in excess) > 60


class Diagonal:
    """W(s) = diag(a(s), b(s))."""

    def __init__(self, a, b):
        self.parts = (a, b)

    def at(self, nodes):
        return torch.diag_embed(torch.stack([part(nodes) for part in self.parts], dim=-1))


def constant(value):
    return lambda s: torch.full_like(s, value)


def test_the_least_sharpness_is_attained_on_relaxed_balance_and_not_only_there():
    target, W0 = relaxed_profile(3, seed=5)
    wave = Diagonal(lambda s: 1 + 0.6 * torch.cos(2 * math.pi * s), constant(-0.5))
    flow = nf.ContinuousFlow(GRID, nf.Quadratic(target))
    assert nf.laws.relaxed_balance_defect(GRID, flow.sample(W0)) < 1e-4
    value, error = sharpness(flow, flow.sample(W0))
    assert abs(float(value - least_sharpness(target))) < 1e-9
    assert float(error) < 1e-12
    flow, state = at_minimum(wave)
    assert nf.laws.relaxed_balance_defect(GRID, state) > 1
    assert abs(float(sharpness(flow, state).value) - math.e**2) < 1e-9


def test_where_the_case_of_equality_fails_a_minimiser_is_sharper():
    # P(1,s)ᵀu₁ is parallel to P(s,0)v₁, but the second direction grows in between and another eigenvalue is larger.
    flow, state = at_minimum(Diagonal(constant(1.0), lambda s: 6 * torch.cos(math.pi * s)))
    assert float(torch.linalg.svdvals(flow.product(state))[0]) == pytest.approx(math.e, abs=1e-9)
    assert float(sharpness(flow, state).value) > 2 * math.e**2
    # They are not parallel.
    flow, state = at_minimum(smooth_profile(2, seed=6))
    assert float(sharpness(flow, state).value / least_sharpness(flow.product(state))) > 1.01
    # A detour between the same ends of depth, from a relaxed balanced one.
    target, W0 = relaxed_profile(3, seed=7)
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 12), nf.Quadratic(target))
    led_astray = flow.sample(nf.Detour(W0, randn(3, 3, seed=8) / 3))
    assert float((flow.product(led_astray) - target).abs().max()) < 1e-9
    assert float(sharpness(flow, led_astray).value / least_sharpness(target)) > 1.01


def test_with_another_hessian_of_the_loss_the_bound_is_divided_by_its_inverse():
    for seed in range(20):
        state = smooth_profile(3, seed).at(GRID.nodes)
        z = nf.Collocation(GRID).product(state)
        x = randn(8, 3, seed=seed)
        loss = nf.Regression(x, x @ z.mT)
        U, sigma, Vh = torch.linalg.svd(z)
        inverse = torch.linalg.inv(x.mT @ x / 8)  # A[G] = G xᵀx/8
        bound = sigma[0] ** 2 / (Vh[0] @ inverse @ Vh[0])
        assert float(sharpness(nf.ContinuousFlow(GRID, loss), state).value) > float(bound) * (1 - 1e-9)
    flow, state = at_minimum(relaxed_profile(3, seed=5)[1])  # attained, where A is a multiple of I
    x = math.sqrt(24) * torch.linalg.qr(randn(8, 3, seed=0))[0]
    loss = nf.Regression(x, x @ flow.loss.target.mT)
    value = float(sharpness(nf.ContinuousFlow(GRID, loss), state).value)
    assert value == pytest.approx(3 * float(least_sharpness(flow.loss.target)), rel=1e-9)


@pytest.mark.parametrize("L", [1, 2, 3, 8])
def test_the_least_sharpness_of_euler_networks_is_that_of_balanced_ones(L):
    z = positive_matrix(3, seed=9)
    U, sigma, Vh = torch.linalg.svd(z)
    layers = [torch.diag(sigma ** (1 / L))] * L
    layers[0], layers[-1] = layers[0] @ Vh, U @ (layers[-1] if L > 1 else layers[0] @ Vh)
    W = L * (torch.stack(layers) - torch.eye(3))
    flow = nf.FiniteFlow(L, nf.Quadratic(z))
    assert float((flow.product(W) - z).abs().max()) < 1e-13
    wanted = balanced_spectrum(flow.loss, z, nf.DividedDifference(torch.zeros(L), time_scale=1 / L))
    assert torch.allclose(hessian(flow, W).spectrum().values[:9], wanted, atol=1e-11)
    assert float(wanted[0]) == pytest.approx(float(least_sharpness(z, L)), rel=1e-12)
    for seed in range(20):
        W = randn(L, 3, 3, seed=seed)
        z = flow.product(W)
        value = float(sharpness(nf.FiniteFlow(L, nf.Quadratic(z)), W).value)
        assert value > float(least_sharpness(z, L)) * (1 + (1e-4 if L > 1 else -1e-12))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("factor", "settles"), [(0.98, True), (1.02, False)])
def test_gradient_descent_settles_only_below_two_over_the_least_sharpness(factor, settles, seed):
    target = positive_matrix(2 + seed, seed=30 + seed)
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(2, 8), nf.Quadratic(target))
    near = target + 1e-3 * randn(2 + seed, 2 + seed, seed=seed)
    draws = generator(seed)
    state = flow.sample(nf.relaxed_balanced(near, lambda s: 0.5 * s, nf.initial.random_twist(2 + seed, 1.0, draws)))
    rate = factor * 2 / float(least_sharpness(target))
    losses = []
    for _ in range(1500):
        state = state + rate * flow.velocity(state)
        losses.append(float(flow.loss(flow.product(state))))
        if not losses[-1] < 1e6:
            break
    assert losses[-1] < 1e-24 if settles else min(losses[len(losses) // 2 :]) > 1e-6


# Products and their routes.


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.func, of torch.jit
@pytest.mark.parametrize("loss", ["quadratic", "regression", "completion", "custom"])
@pytest.mark.parametrize("make", ["continuous", "euler", "exp", "cayley", "rk2"])
def test_products_of_all_routes_agree_with_each_other_and_with_differences(make, loss):
    f = all_losses(3, seed=11)[loss]
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(2, 4), f) if make == "continuous" else nf.FiniteFlow(8, f, make)
    state, v = randn(8, 3, 3, seed=12), randn(8, 3, 3, seed=13)
    given = hessian(flow, state).product(v)
    h = 1e-5
    differences = (flow.velocity(state - h * v) - flow.velocity(state + h * v)) / (2 * h)
    forward = -torch.func.jvp(flow.velocity, (state,), (v,))[1]
    backward = by_autograd(flow, state, inner_weights(flow))(v)
    size = float(given.abs().max())
    assert float((given - differences).abs().max()) < 1e-7 * size
    assert float((given - forward).abs().max()) < 1e-12 * size
    assert float((given - backward).abs().max()) < 1e-12 * size


def tanh_product(theta):
    return torch.tanh(theta[..., :3, :]) @ theta[..., 3:, :].mT


def test_a_hessian_can_be_pickled():
    networks = nf.FiniteFlow(3, nf.Quadratic(positive_matrix(2, seed=1)))
    limit = nf.ContinuousFlow(GRID, nf.Quadratic(positive_matrix(2, seed=1)))
    products = nf.FactorizationFlow(tanh_product, nf.Quadratic(randn(3, 3, seed=0)))
    starts = randn(2, 3, 2, 2, seed=1), limit.sample(nf.balanced(torch.eye(2))), randn(6, 4, seed=1)
    for flow, state in zip((networks, limit, products), starts, strict=True):
        H, direction = hessian(flow, state), torch.ones_like(state)
        again = pickle.loads(pickle.dumps(H))
        assert torch.equal(again.product(direction), H.product(direction))
        assert repr(again) == repr(H)
        assert torch.equal(copy.deepcopy(H).product(direction), H.product(direction))


def test_the_hessian_of_a_factorisation_is_that_of_autograd():
    flow, theta = factorised()
    wanted = torch.autograd.functional.hessian(lambda x: flow.loss(flow.phi(x)), theta).reshape(24, 24)
    found = hessian(flow, theta).spectrum()
    values = torch.linalg.eigvalsh(wanted).flip(-1)
    assert torch.allclose(found.values, values, atol=1e-12)
    assert float(values[-1]) < -0.1  # it is no minimiser
    assert torch.allclose(hessian(flow, theta).top(1).values, values[:1], atol=1e-12)


@pytest.mark.slow
def test_the_adaptive_depth_solver_has_the_same_sharpness():
    grid, loss = nf.DepthGrid.gauss(1, 10), nf.Quadratic(randn(2, 2, seed=14))
    state = smooth_profile(2, seed=15).at(grid.nodes)
    flows = [nf.ContinuousFlow(grid, loss, depth) for depth in ("collocation", "torchdiffeq")]
    (one, _), (other, error) = (sharpness(flow, state) for flow in flows)
    assert float((one - other).abs()) < 1e-5
    assert float(error) < 1e-4  # its velocity is a gradient up to the grid alone


@pytest.mark.parametrize("layer", ["euler", "exp"])
@pytest.mark.parametrize("L", [2, 4, *(pytest.param(L, marks=pytest.mark.slow) for L in (16, 64))])
def test_spectra_of_networks_are_those_of_the_dense_hessian(layer, L):
    d = 3 if L < 64 else 2
    flow = nf.FiniteFlow(L, nf.Quadratic(positive_matrix(d, seed=16)), layer)
    state = randn(L, d, d, seed=17)
    for at in (flow, nf.FiniteFlow(L, nf.Quadratic(flow.product(state)), layer)):  # no minimiser, and one
        wanted = torch.linalg.eigvalsh(dense_hessian(at, layer, state)).flip(-1)
        found = hessian(at, state)
        assert float((found.spectrum().values - wanted).abs().max()) < 1e-9
        k = min(8, len(wanted))
        top = found.top(k)
        assert float((top.values - wanted[:k]).abs().max()) < 1e-9
        assert float(top.residuals.max()) < 1e-9


@pytest.mark.parametrize(("layer", "order"), [("euler", 1), ("exp", 2)])
def test_spectra_of_networks_tend_to_that_of_infinite_depth(layer, order):
    loss, W0 = nf.Quadratic(positive_matrix(2, seed=18)), smooth_profile(2, seed=19)
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 12), loss)
    limit = hessian(flow, flow.sample(W0)).top(5).values
    errors = []
    for L in (32, 64, 128):
        network = nf.FiniteFlow(L, loss, layer)
        errors.append(float((hessian(network, network.sample(W0)).top(5).values - limit).abs().max()))
    local = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert local == pytest.approx([order, order], abs=0.1)


# Eigenpairs.


def test_the_leading_pairs_are_those_of_the_whole_spectrum_with_all_copies():
    target, W0 = relaxed_profile(4, seed=20)
    flow = nf.ContinuousFlow(GRID, nf.Quadratic(target))
    H = hessian(flow, flow.sample(W0))
    whole, top = H.spectrum(), H.top(20)  # six of the sixteen come twice, and four zeros
    assert float((top.values - whole.values[:20]).abs().max()) < 1e-12
    gram = torch.einsum("iabc,jabc,a->ij", top.vectors, top.vectors, GRID.weights)
    assert torch.allclose(gram, torch.eye(20), atol=1e-11)
    for value, vector, residual in zip(*top):
        left = H.product(vector) - value * vector
        assert abs(float((left.square().sum((-2, -1)) * GRID.weights).sum().sqrt() - residual)) < 1e-13
    again = H.top(20)
    assert all(torch.equal(one, other) for one, other in zip(top, again))


def test_the_sharpness_is_the_algebraically_largest_eigenvalue():
    theta = 1 + 0.3 * randn(9, 9, seed=21).square()
    concave = nf.FactorizationFlow(lambda theta: theta, nf.Custom(lambda z: -(z**4).sum()))
    value, error = sharpness(concave, theta)
    assert float(value) == pytest.approx(-12 * float(theta.min()) ** 2, rel=1e-12)
    assert float(error) < 1e-12 * 12 * float(theta.max()) ** 2
    values = hessian(concave, theta).top(5).values
    assert torch.allclose(values, -12 * theta.flatten().sort().values[:5] ** 2, rtol=1e-11)


@pytest.mark.parametrize("side", [1, 12])
def test_a_hessian_of_zero_has_the_sharpness_zero(side):
    flow = nf.FactorizationFlow(lambda theta: theta, nf.Custom(lambda z: z.sum()))
    H = hessian(flow, randn(side, side, seed=22))
    assert float(H.top(1).values[0]) == 0
    assert torch.equal(H.spectrum().values, torch.zeros(side**2))


def test_one_dimension():
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(2, 4), nf.Quadratic(torch.tensor([[2.0]])))
    assert float(sharpness(flow, flow.sample(lambda s: torch.tensor([[math.log(2)]]))).value) == pytest.approx(4)
    assert float(sharpness(flow, torch.zeros(8, 1, 1)).value) == pytest.approx(0, abs=1e-14)  # e²ʷ + (eʷ − 2) eʷ


def test_members_have_hessians_of_their_own():
    states = 0.5 * randn(2, 3, 32, 3, 3, seed=23)
    one = nf.ContinuousFlow(GRID, nf.Quadratic(positive_matrix(3, seed=24)))
    targets = torch.eye(3) + 0.3 * randn(2, 3, 3, 3, seed=25)
    many = nf.ContinuousFlow(GRID, nf.Quadratic(targets))
    for flow in (one, many):
        value, error = sharpness(flow, states)
        assert value.shape == error.shape == (2, 3)
        for i, j in ((0, 2), (1, 0)):
            alone = one if flow is one else nf.ContinuousFlow(GRID, nf.Quadratic(targets[i, j]))
            assert float(value[i, j]) == pytest.approx(float(sharpness(alone, states[i, j]).value), rel=1e-12)
        pairs = hessian(flow, states).top(2)
        assert pairs.vectors.shape == (2, 3, 2, 32, 3, 3)
        assert torch.allclose(pairs.values[..., 0], value, rtol=1e-12)
    fixed, theta = factorised()
    assert sharpness(fixed, theta.expand(4, 6, 4)).value.shape == (4,)
    network = nf.FiniteFlow(4, nf.Quadratic(targets))
    found = minimiser_spectrum(network, states[..., :4, :, :])
    single = minimiser_spectrum(nf.FiniteFlow(4, nf.Quadratic(targets[1, 2])), states[1, 2, :4])
    assert torch.allclose(found[1, 2], single, rtol=1e-10)
    closed = balanced_spectrum(nf.Quadratic(targets), targets)
    assert torch.allclose(closed[0, 1], balanced_spectrum(nf.Quadratic(targets[0, 1]), targets[0, 1]), rtol=1e-10)


def test_single_precision_keeps_its_own_digits_and_says_so():
    target, W0 = relaxed_profile(3, seed=26)
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 8, dtype=torch.float32), nf.Quadratic(target.float()))
    pairs = hessian(flow, flow.sample(lambda s: W0(s).float())).top(9)
    assert pairs.values.dtype == torch.float32
    off = pairs.values.double() - balanced_spectrum(nf.Quadratic(target), target)
    assert float(off.abs().max()) < 1e-5
    assert 1e-9 < float(pairs.residuals.max()) < 1e-5


@pytest.mark.parametrize("mode", ["no_grad", "inference"])
def test_modes_of_torch_change_nothing(mode):
    flow = nf.FiniteFlow(6, all_losses(3, seed=27)["regression"], "exp")
    state = randn(6, 3, 3, seed=28)
    wanted = sharpness(flow, state).value
    with torch.no_grad() if mode == "no_grad" else torch.inference_mode():
        assert torch.equal(sharpness(flow, state).value, wanted)
        assert torch.isfinite(minimiser_spectrum(flow, state)).all()


def test_it_stands_beside_torch_compile():
    """Compiled code that asks for curvatures has those of code that is not, and its own part is compiled."""
    loss, graphs = all_losses(3, seed=29)["quadratic"], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    for flow in (nf.ContinuousFlow(nf.DepthGrid.gauss(1, 8), loss), nf.FiniteFlow(8, loss, "exp")):
        state = randn(8, 3, 3, seed=30)

        def call(W, flow=flow):
            V = torch.sin(W)
            found = sharpness(flow, V).value, minimiser_spectrum(flow, V), central_velocity(flow, V, 0.5).velocity
            return [2 * part for part in found]

        for one, two in zip(torch.compile(call, backend=backend)(state), call(state), strict=True):
            assert torch.equal(one, two)
    assert graphs
    assert not any("linalg" in str(node.target) for graph in graphs for node in graph.graph.nodes)


@pytest.mark.parametrize("default", [torch.set_default_dtype, torch.set_default_device])
def test_defaults_of_torch_change_nothing(default):
    loss, state = all_losses(3, seed=31)["custom"], randn(8, 3, 3, seed=32)
    flows = [nf.ContinuousFlow(nf.DepthGrid.gauss(1, 8), loss), nf.FiniteFlow(8, loss, "rk2")]
    flows.append(nf.FactorizationFlow(lambda theta: theta[..., 0, :, :] @ theta[..., 1, :, :], loss))
    z = flows[0].product(state)
    calls = [lambda flow=flow: (sharpness(flow, state).value, minimiser_spectrum(flow, state)) for flow in flows]
    calls.append(lambda: (balanced_spectrum(loss, z), least_sharpness(z, 3)))
    expected = [call() for call in calls]
    other, usual = (torch.float32, torch.float64) if default is torch.set_default_dtype else ("meta", None)
    default(other)
    try:
        found = [call() for call in calls]
    finally:
        default(usual)
    for one, two in zip(found, expected):
        assert all(torch.equal(a, b) for a, b in zip(one, two))


# The edge of stability.


@pytest.mark.parametrize("make", ["continuous", "exp", "factorisation"])
def test_the_slope_of_the_sharpness_is_that_of_differences(make):
    if make == "factorisation":
        flow, state = factorised()
    elif make == "exp":
        flow, state = nf.FiniteFlow(6, all_losses(3, seed=33)["regression"], "exp"), randn(6, 3, 3, seed=34)
    else:
        flow = nf.ContinuousFlow(nf.DepthGrid.gauss(2, 4), all_losses(3, seed=33)["custom"])
        state = randn(8, 3, 3, seed=34)
    v, h = randn(*state.shape, seed=35), 1e-5
    ahead, behind = (sharpness(flow, state + step * v).value for step in (h, -h))
    slope = (inner_weights(flow) * sharpness_gradient(flow, state) * v).sum()
    assert float(slope) == pytest.approx(float(ahead - behind) / (2 * h), rel=1e-6)


def test_the_central_flow_is_the_flow_below_the_edge_and_holds_the_sharpness_at_it():
    flow = nf.FiniteFlow(4, nf.Quadratic(torch.tensor([[4.0]])))
    states = 4 * (torch.tensor([[1.6, 1.2, 1.3, 1.4], [2.0, 1.2, 0.9, 1.5]]) - 1)[..., None, None]
    rising = 1 / 4 * (sharpness_gradient(flow, states) * flow.velocity(states)).sum((-3, -2, -1))
    S = sharpness(flow, states).value
    assert bool((rising > 0.1).all())
    below = central_velocity(flow, states, rate=0.01)
    assert torch.equal(below.velocity, flow.velocity(states))
    assert torch.equal(below.variance, torch.zeros(2))
    for factor in (1.0, 0.9):  # at the edge, and beyond it
        for state, value in zip(states, S):
            rate = 2 / (factor * float(value))
            central = central_velocity(flow, state, rate)
            change = 1 / 4 * float((sharpness_gradient(flow, state) * central.velocity).sum())
            assert change == pytest.approx((factor - 1) * float(value) / rate, abs=1e-10)
            assert float(central.variance) > 0
            assert float(central.sharpness) == float(value)
    together = central_velocity(flow, states, rate=2 / float(S.max()))
    for i, state in enumerate(states):
        alone = central_velocity(flow, state, rate=2 / float(S.max()))
        assert torch.allclose(together.velocity[i], alone.velocity, rtol=1e-12)
        assert float(together.variance[i]) == pytest.approx(float(alone.variance), rel=1e-10)


@pytest.mark.parametrize(("factors", "target"), [([2.5, 0.5, 0.7], 3.0), *slow(([2.0, 0.8, 0.7, 0.9], 4.0))])
def test_the_central_flow_is_nearer_to_gradient_descent_at_the_edge_than_the_flow(factors, target):
    L = len(factors)
    flow = nf.FiniteFlow(L, nf.Quadratic(torch.tensor([[target]])))
    start = L * (torch.tensor(factors) - 1).reshape(L, 1, 1)
    end = nf.integrate(flow, start, [0.0, 20.0], "DOP853", rtol=1e-9, atol=1e-11).state
    least, sharp = float(least_sharpness(torch.tensor([[target]]), L)), float(sharpness(flow, end).value)
    edge = (least + sharp) / 2
    assert sharp > 1.04 * edge  # the flow ends beyond it
    rate, steps = 2 / edge, 150
    descent, central, losses = [start], start, []
    for _ in range(steps + 1):
        descent.append(descent[-1] + rate * flow.velocity(descent[-1]))
        losses.append(float(flow.loss(flow.product(descent[-1]))))
    for _ in range(2 * steps):
        central = central + rate / 2 * central_velocity(flow, central, rate).velocity
    middle = (descent[steps] + descent[steps + 1]) / 2  # it goes to and fro
    assert any(later > 1.01 * earlier for earlier, later in zip(losses, losses[1:]))
    assert float(sharpness(flow, central).value) == pytest.approx(edge, rel=1e-3)
    plain = nf.integrate(flow, start, [0.0, steps * rate], "DOP853", rtol=1e-9, atol=1e-11).state
    far, near = (float(torch.linalg.vector_norm(x - middle)) for x in (plain, central))
    assert far > 3 * near


def test_a_second_eigenvalue_beyond_the_edge_is_not_refused():
    flow = nf.FactorizationFlow(lambda theta: theta[:2] * theta[2:], nf.Quadratic(torch.ones(2), axes=1))
    theta = torch.tensor([3.0, 3.1, 0.3, 0.3])
    assert float(central_velocity(flow, theta, rate=2 / 9.6).variance) > 0
    both = central_velocity(flow, theta, rate=2 / 8.9)
    assert bool((torch.linalg.eigvalsh(both.covariance) > 0).all())
    with pytest.raises(ValueError, match="rate must be above 0"):
        central_velocity(flow, theta, rate=0.0)


# What is refused.


class Lying(nf.Quadratic):
    """A loss with a wrong second derivative."""

    def hessian(self, z, direction):
        return 2 * direction


class Hidden:
    """A loss whose gradient autograd cannot follow."""

    dimension = None

    def __call__(self, z):
        return (z**4).sum((-2, -1))

    def gradient(self, z):
        return 4 * z.detach() ** 3


def test_wrong_second_derivatives_are_found():
    state = randn(4, 2, 2, seed=29)
    grid = nf.DepthGrid.gauss(1, 4)
    for flow in (
        nf.ContinuousFlow(grid, Lying(torch.eye(2))),
        nf.ContinuousFlow(grid, Hidden()),
        nf.FiniteFlow(4, Hidden()),
    ):
        with pytest.raises(ValueError, match="second derivatives that are off"):
            hessian(flow, state)
    with pytest.raises(ValueError, match="second derivatives that are off"):
        balanced_spectrum(Hidden(), torch.eye(2))


def test_what_does_not_fit_is_refused_in_a_sentence():
    flow = nf.FiniteFlow(4, nf.Quadratic(torch.eye(2)))
    state = randn(4, 2, 2, seed=30)
    H = hessian(flow, state)
    limit = nf.IntrinsicFlow(flow.loss, nf.LogMean())
    for call, error, words in (
        (lambda: hessian(limit, torch.eye(2)), TypeError, "balanced_spectrum"),
        (lambda: hessian(None, state), TypeError, "flow must be a ContinuousFlow"),
        (lambda: hessian(flow, state * math.nan), ValueError, "state must be finite"),
        (lambda: hessian(flow, 1e200 * state), ValueError, "no finite velocity"),
        (
            lambda: hessian(nf.ContinuousFlow(GRID, flow.loss), torch.full((32, 2, 2), 1e200)),
            ValueError,
            "no finite velocity",
        ),
        (lambda: hessian(flow, None), TypeError, "state must be a torch tensor"),
        (lambda: hessian(flow, state[:3]), ValueError, "4 layers"),
        (lambda: sharpness(flow, state.requires_grad_(True)), TypeError, "state must be plain numbers"),
        (lambda: H.top(0), ValueError, "k must be at least 1"),
        (lambda: H.top(17), ValueError, "k must be at most 16"),
        (lambda: H.top(1.5), TypeError, "k must be an integer"),
        (lambda: H.product(torch.eye(2)), ValueError, "direction must have the shape"),
        (lambda: H.product(state.detach().float()), TypeError, "direction is torch.float32"),
        (lambda: balanced_spectrum(flow.loss, torch.eye(3)), ValueError, "z has matrices of size 3"),
        (lambda: minimiser_spectrum(limit, torch.eye(2)), TypeError, "flow must be"),
        (lambda: least_sharpness(torch.ones(2, 3)), ValueError, "z must be square"),
        (lambda: least_sharpness(torch.eye(2), 0), ValueError, "depth must be at least 1"),
    ):
        with pytest.raises(error, match=words):
            call()
    state.requires_grad_(False)
    large = nf.FiniteFlow(1025, nf.Quadratic(torch.eye(2)))
    with pytest.raises(ValueError, match=r"4100 entries.*top\(k\)"):
        hessian(large, torch.zeros(1025, 2, 2)).spectrum()


def test_the_route_is_the_one_that_the_flow_knows():
    flow = nf.ContinuousFlow(GRID, nf.Quadratic(torch.eye(2)))
    asked = []
    exact = flow.linearised
    flow.linearised = lambda state: asked.append(state) or exact(state)
    derivative(flow, torch.zeros(32, 2, 2), inner_weights(flow))
    assert len(asked) == 1


@pytest.mark.parametrize("target", [torch.eye(2), torch.stack([k * torch.eye(2) for k in (1.0, 2.0, 3.0)])])
@pytest.mark.parametrize("kind", ["layers", "grid"])
def test_members_whose_loss_has_a_weight_for_each_have_the_spectra_that_they_have_alone(kind, target):
    loss, grid = Weighted(nf.Quadratic(target), torch.tensor([0.5, 1.0, 2.0])), nf.DepthGrid.gauss(1, 4)

    def flow(loss):
        return nf.FiniteFlow(4, loss) if kind == "layers" else nf.ContinuousFlow(grid, loss)

    states = 0.3 * randn(3, 4, 2, 2, seed=1)
    whole = nf.curvature.hessian(flow(loss), states)
    for k in range(3):
        alone = nf.curvature.hessian(flow(loss.select((3,), torch.tensor([k]))), states[k : k + 1])
        for values, known in ((whole.top(2).values, alone.top(2)), (whole.spectrum().values, alone.spectrum())):
            torch.testing.assert_close(values[k], known.values[0], rtol=1e-12, atol=1e-12)
