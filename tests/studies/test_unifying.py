"""Linear networks of three kinds: formulas by second routes, and planted faults that the checks see."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.optimize import brentq
from small import SMALL, dataset, failing

from neuralode_flow.finding import Finding
from neuralode_flow.losses import LeastSquares
from neuralode_flow.matrices import normal
from neuralode_flow.studies import STUDIES, bias, tensorlimits, tensors, tensortraining, unifying
from neuralode_flow.studies.margin import largest_margin
from neuralode_flow.studies.tensors import KINDS, Convolution, Diagonal, FullyConnected, network

STUDY = STUDIES["unifying"]
D = 6
CLOSED = "the closed flow against that of the layers"
CLOSED_CONTROL = "closed flow of a diagonal network against convolutional layers, a control"
FORMULA = "the trained b against the formula of the interpolant"
DRAWN = "the same of a convolutional network on samples of drawn phases, a control"
L1 = "order to least weighted ℓ₁ norm, off the expected one"
L2 = "order to least weighted ℓ₂ norm, off the expected one"
EQUAL = "order in 1/margin at which the active margins become equal, off 1"
GROWTH = "growth of what vanishes in the direction, off its power"
DIRECTION = "order of the direction, short of the expected one"
SHARE = "the same order over the expected one"
LAYERS = "order of the layers to singular vectors, short of the expected one"
LAYERS_SHARE = "that order of the layers over the expected one"
CONDITIONS = "conditions of Karush, Kuhn and Tucker at the stationary direction"
POINT = "margin of the stationary direction, and its pulls by the size of each group, from what they must be"
GAP = "duality gap of the ℓ₁ margin, two layers"
WIDEST_L2 = "distance from the widest ℓ₂ margin, diagonal and convolutional, a control"
BASIS = "distance from the direction of the diagonal formula, convolutional, a control"
EXCESS = "ℓ₁ norm of the direction of more layers over the least one, less 1, a control"


def run(**changes):
    return STUDY.run(**SMALL["unifying"]()[1] | changes)


def again(**changes):
    """What is found of the small dataset with other numbers in it."""
    changed = dataset("unifying").assign(changes)
    return failing(unifying._finding(changed, "").attached(changed))


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_products_are_those_written_out(depth):
    theta = normal(drawn(), depth * D)
    layers = theta.numpy().reshape(depth, D)
    np.testing.assert_allclose(Diagonal(depth, D).product(theta).numpy(), np.prod(layers, 0), rtol=1e-14)
    by_fft = np.fft.ifft(np.prod(np.fft.fft(layers), 0)).real
    np.testing.assert_allclose(Convolution(depth, D).product(theta).numpy(), by_fft, rtol=1e-12, atol=1e-14)
    full = network("fully_connected", depth, D)
    theta = full.start(drawn(), 1.0)
    matrices = [layer.numpy() for layer in full.layers(theta)]
    np.testing.assert_allclose(full.product(theta).numpy(), np.linalg.multi_dot(matrices)[:, 0], rtol=1e-12)


@pytest.mark.parametrize("d", [5, 6])
def test_the_data_tensor_of_a_convolution_is_orthogonally_decomposable(d):
    """All of its entries, from filters that are unit vectors, against Σ_j (Sx)_j u_j ⊗ u_j ⊗ u_j of Fourier's u_j."""
    one, eye = Convolution(3, d), torch.eye(d, dtype=torch.float64)
    entries = [[[one.product(torch.cat([a, b, c])).numpy() for c in eye] for b in eye] for a in eye]
    F = np.exp(-2j * np.pi * np.outer(np.arange(d), np.arange(d)) / d) / d**0.5
    np.testing.assert_allclose(F @ F.conj().T, np.eye(d), atol=1e-14)
    decomposed = d * np.einsum("ji,ja,jb,jc->abci", F.conj(), F, F, F)
    np.testing.assert_allclose(entries, decomposed, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("depth", "d"), [(2, 5), (3, 6), (4, 6)])
def test_the_closed_flow_is_that_of_the_layers_at_a_point(kind, depth, d):
    """b' by the chain rule of autograd, beside the formula; and what the basis promises."""
    one, random = network(kind, depth, d), drawn(depth)
    theta, loss = one.other(random), LeastSquares(normal(random, 3, d), normal(random, 3))
    b, basis = one.product(theta), one.basis
    (slope,) = torch.autograd.functional.vjp(one.product, theta, -loss.gradient(b))[1:]
    moved = torch.autograd.functional.jvp(one.product, theta, slope)[1]
    assert torch.allclose(one.closed(loss, theta).velocity(b), moved, rtol=1e-9, atol=1e-9)
    c = basis.of(b.numpy())
    np.testing.assert_allclose(basis.back(c), b.numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(c, axis=-1), one.sizes(theta).prod(-1).numpy(), rtol=1e-12)
    products = np.einsum("g,gsn,gs->n", basis.counts, basis.dual(loss.A.numpy()), c)
    np.testing.assert_allclose(products, loss.A.numpy() @ b.numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_the_hyperbola_solves_its_equation(depth):
    end = {2: 3.0, 3: 1.5, 4: 0.99, 5: 0.77}[depth]
    times = np.linspace(0, end, 7)
    path = solve_ivp(
        lambda t, s: (1 + s**2) ** ((depth - 1) / 2), (0, end), [0.0], "DOP853", times, rtol=1e-12, atol=1e-13
    )
    np.testing.assert_allclose(tensorlimits.hyperbola(times, depth), path.y[0], rtol=1e-8)
    if depth > 2:
        blown = quad(lambda s: (1 + s**2) ** ((1 - depth) / 2), 0, np.inf)[0]
        assert tensorlimits.hyperbola(np.array([blown * 1.001]), depth)[0] == np.inf


def test_two_diagonal_layers_reach_the_interpolant_of_another_formula():
    x, y = normal(drawn(1), 3, D).numpy(), normal(drawn(2), 3).numpy()
    scales = [1.0, 0.1, 1e-3]
    found = tensorlimits.reached(Diagonal(2, D).basis, 2, x, y, np.ones(D), scales)[0]
    np.testing.assert_allclose(found, bias.reached(x, y, [scale**2 / 2 for scale in scales]), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("depth", [3, 4])
def test_the_interpolant_is_stationary_for_the_potential_by_quadrature(depth):
    """T_g(c_g) = ∫ (1 + ς²)^{−(L−1)/2} dς / a^{L−2} must be a combination of the samples."""
    x, y = normal(drawn(1), 3, D).numpy(), normal(drawn(2), 3).numpy()
    shape, scale = np.exp(np.linspace(-0.4, 0.4, D)), 0.4
    (b,) = tensorlimits.reached(Diagonal(depth, D).basis, depth, x, y, shape, [scale])[0]
    np.testing.assert_allclose(x @ b, y, rtol=1e-10)
    T = []
    for value, size in zip(b, scale * shape, strict=True):
        goal = abs(value) / size**depth
        bend = brentq(lambda s, goal=goal: s * (1 + s**2) ** ((depth - 1) / 2) - goal, 0, 1 + goal, xtol=1e-14)
        T.append(np.sign(value) * quad(lambda s: (1 + s**2) ** ((1 - depth) / 2), 0, bend)[0] / size ** (depth - 2))
    assert np.linalg.norm(T - x.T @ np.linalg.lstsq(x.T, T, rcond=None)[0]) < 1e-9 * np.linalg.norm(T)


def test_ends_are_those_of_the_library_where_it_has_them():
    x, y = normal(drawn(1), 3, D).numpy(), normal(drawn(2), 3).numpy()
    end = tensorlimits.ends(Diagonal(2, D).basis, 2, x, y, np.ones(D))
    sparse = bias.least_l1(x, y)
    np.testing.assert_allclose(end.sparse, sparse.b, atol=1e-12)
    assert abs(end.certificate - sparse.certificate) < 1e-12
    np.testing.assert_allclose(end.short, np.linalg.pinv(x) @ y, atol=1e-12)
    z = normal(drawn(3), 4, D).numpy()
    np.testing.assert_allclose(tensorlimits.stationary(Diagonal(2, D).basis, 2, z).b, bias.widest_l1(z).b, atol=1e-9)
    widest = largest_margin(z)
    for depth in (2, 3):
        found = tensorlimits.stationary(network("fully_connected", depth, D).basis, depth, z).b
        np.testing.assert_allclose(found * widest.lower, widest.direction, atol=1e-12)


@pytest.mark.parametrize("depth", [2, 3])
def test_the_slowest_rate_is_that_of_differences(depth):
    """Of c/margin in log margin on the groups that are left, linearised by differences of the field itself."""
    basis, z = Convolution(depth, 8).basis, normal(drawn(3), 4, 8).numpy()
    near = normal(drawn(4), 8).numpy()
    found = tensorlimits.stationary(basis, depth, z, None if depth == 2 else near)
    c, duals = basis.of(found.b)[found.on], (basis.counts[:, None, None] * basis.dual(z))[found.on][..., found.active]
    keep = np.abs(duals).max(-1) > 1e-9
    A, counts = duals[keep].T, np.broadcast_to(basis.counts[found.on][:, None], keep.shape)[keep]

    def field(flat):
        at = np.zeros_like(c)
        at[keep] = flat
        speed = np.broadcast_to(np.linalg.norm(at, axis=-1)[:, None] ** (2 - 2 / depth), keep.shape)[keep] / counts
        return speed * (A.T @ np.linalg.solve((A * speed) @ A.T, np.ones(len(A)))) - flat

    here = c[keep]
    assert np.abs(field(here)).max() < 1e-9
    differences = [(field(here + 1e-6 * e) - field(here - 1e-6 * e)) / 2e-6 for e in np.eye(len(here))]
    free = np.linalg.svd(A)[2][len(A) :].T
    assert free.size
    rates = np.linalg.eigvals(np.linalg.lstsq(free, np.array(differences).T @ free, rcond=None)[0])
    assert abs(-rates.real.max() - found.slowest) < 1e-6


def test_samples_in_phase_have_parallel_pulls():
    x = tensors.in_phase(drawn(), normal(drawn(1), 3, 5), 8).numpy()
    duals = Convolution(2, 8).basis.dual(x)
    assert max(np.linalg.svd(one, compute_uv=False)[1] for one in duals) < 1e-14
    np.testing.assert_allclose(np.abs(np.fft.rfft(x, norm="ortho")), normal(drawn(1), 3, 5).abs().numpy(), atol=1e-14)


def test_the_loss_has_the_gradient_of_autograd():
    loss, at = tensortraining.Margins(normal(drawn(), 3, 4)), normal(drawn(1), 2, 4).requires_grad_()
    (slope,) = torch.autograd.grad(loss(at).sum(), at)
    assert torch.allclose(loss.gradient(at.detach()), slope, rtol=1e-13)


def uncounted(self):
    right = BASES[Convolution].fget(self)
    return right._replace(counts=np.ones_like(right.counts))


BASES = {Convolution: Convolution.basis}
HYPERBOLA, ENDS, STATIONARY = tensorlimits.hyperbola, unifying.ends, tensortraining.stationary


def wrong_depth(basis, depth, z, near=None):
    """The stationary point of one layer more."""
    return STATIONARY(basis, depth + 1, z, z.mean(0) if near is None else near)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "name", "fault", "sees"),
    [
        (Convolution, "basis", property(uncounted), {CLOSED, FORMULA}),
        (tensors, "FullyConnected", lambda depth, d, share: FullyConnected(depth, d, 1.0), {CLOSED}),
        (tensorlimits, "hyperbola", lambda tau, depth: 1.01 * HYPERBOLA(tau, depth), {FORMULA}),
        (unifying, "ends", lambda *a: ENDS(*a[:4], np.ones_like(a[4])), {L1, L2}),
        (tensortraining, "stationary", wrong_depth, {DIRECTION}),
    ],
    ids=["counts", "share", "hyperbola", "weights", "depth"],
)
def test_a_planted_fault_is_seen(monkeypatch, where, name, fault, sees):
    monkeypatch.setattr(where, name, fault)
    found = run()
    assert sees <= failing(found)
    assert not Finding.of(found).passed


def test_the_small_one_passes_and_every_check_of_numbers_can_fail():
    found = dataset("unifying")
    assert again() == set()
    assert again(closed=found.closed + 1e-6) == {CLOSED}
    assert again(closed_control=found.closed_control * 0) == {CLOSED_CONTROL}
    assert again(missed=found.missed + 1e-5) == {FORMULA}
    assert again(missed=found.missed * 1e-6) == {DRAWN}
    assert again(to_l1=found.to_l1**1.2) == {L1}
    assert again(to_l2=found.to_l2**1.2) == {L2}
    assert again(spread=found.spread**0.8) == {EQUAL}
    assert again(growth_missed=found.growth_missed + 0.2) == {GROWTH}
    assert again(deviation=found.deviation**0.0) == {DIRECTION, SHARE}
    assert again(singular=found.singular**0.0) == {LAYERS, LAYERS_SHARE}
    assert again(residual=found.residual + 1e-3) == {CONDITIONS}
    assert again(least_margin=found.least_margin * 1.01) == {POINT}
    assert again(pulls_off=found.pulls_off * np.nan) == {POINT}
    assert again(gap=found.gap + 1e-3) == {GAP}
    assert again(to_widest_l2=found.to_widest_l2 * 0) == {WIDEST_L2}
    assert again(to_diagonal=found.to_diagonal * 0) == {BASIS}
    assert again(excess=found.excess * 0) == {EXCESS}


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match=r"study\.samples must be at most 4 with study\.dimension=8, got 5"):
        STUDY.run(samples=5)
    with pytest.raises(ValueError, match=r"study\.points must be at most 7 with study\.dimension=8, got 8"):
        STUDY.run(points=8)


@pytest.mark.slow
def test_more_layers_and_another_size_pass():
    assert failing(STUDY.run(dimension=7, depths=(2, 4), seed=3)) == set()


@pytest.mark.parametrize("part", ["b", "pulls"])
def test_a_stationary_direction_of_another_size_is_seen(monkeypatch, part):
    """Neither the conditions that it states itself nor an order feels it."""
    stationary = tensortraining.stationary

    def off(*given):
        found = stationary(*given)
        return found._replace(**{part: 1.01 * getattr(found, part)})

    one, z, random = network("diagonal", 2, D), normal(drawn(), 3, D), drawn(1)

    def point():
        found = tensortraining.classified(one, z, one.start(random, 1.0), 1e3)
        return abs(found["least_margin"] - 1), found["pulls_off"]

    assert max(point()) < 1e-10
    monkeypatch.setattr(tensortraining, "stationary", off)
    assert max(point()) > 5e-3
