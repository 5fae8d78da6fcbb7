"""What sees numbers alone refuses derivatives: they would be zero. What is written in place later changes nothing."""

import pickle

import pytest
import torch
from cases import positive_matrix, randn

import neuralode_flow as nf

ALONE = "must be plain numbers: .* no derivatives in .* pass .*detach"
TIMES, SIGMA, TAU = torch.tensor([0.1, 0.5]), torch.tensor([0.5, 0.2]), torch.tensor([2.0, 1.0])
Z0 = positive_matrix(3, seed=1)
GRID = nf.DepthGrid.gauss(2, 6)
W = 0.3 * randn(12, 3, 3, seed=2)
LOSS = nf.Quadratic(positive_matrix(3, seed=3))
TURN = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
PATH = nf.integrate(nf.IntrinsicFlow(LOSS, nf.LogMean()), Z0, [0.0, 0.5, 1.0], dense=True)
ONE = torch.ones(1)


def entries(theta):
    return theta[:2] * theta[2:]


# name: a function of a tensor, and where a derivative is asked of it.
NUMBERS = {
    "limit in t": (lambda t: nf.exact.aligned_limit(t, SIGMA, TAU), TIMES),
    "limit in sigma": (lambda s: nf.exact.aligned_limit(TIMES, s, TAU), SIGMA),
    "limit in tau": (lambda tau: nf.exact.aligned_limit(TIMES, SIGMA, tau), TAU),
    "layers in sigma": (lambda s: nf.exact.aligned_layers(TIMES, s, TAU, 3), SIGMA),
    "two layers in t": (lambda t: nf.exact.two_layer(t, Z0.mT, Z0, LOSS.target), TIMES),
    "profile in z0": (lambda z: nf.relaxed_balanced(z)(0.3), Z0),
    "profile in twist": (lambda a: nf.relaxed_balanced(Z0, twist=lambda s: s * a * TURN)(0.3), ONE),
    "profile in shift": (lambda a: nf.relaxed_balanced(Z0, shift=lambda s: s * a)(0.3), ONE),
    "control in z0": (lambda z: nf.control(z)(0.3), Z0),
    "profile in depth": (nf.balanced(Z0).at, TIMES),
    "smooth in depth": (nf.smooth(2, 0.5, torch.Generator().manual_seed(0)).at, TIMES),
    "interpolation in depth": (lambda s: GRID.interpolate(W, s), TIMES),
    "trajectory in time": (PATH, TIMES),
}
ASKED = {
    "backward": lambda f, x: torch.autograd.functional.jacobian(f, x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack((x, x))),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, of forward mode
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("name", NUMBERS)
def test_a_derivative_of_what_sees_numbers_is_refused_and_not_zero(name, asked):
    function, at = NUMBERS[name]
    with pytest.raises(TypeError, match=ALONE):
        ASKED[asked](function, at)
    with torch.no_grad():
        assert torch.equal(function(at.clone().requires_grad_()), function(at))
    dual = torch.autograd.forward_ad
    with dual.dual_level(), pytest.raises(TypeError, match=ALONE):
        function(dual.make_dual(at, torch.ones_like(at)))


@pytest.mark.parametrize(
    ("function", "at"),
    [
        (lambda t: nf.exact.saxe(t, SIGMA, TAU), TIMES),
        (lambda s: nf.exact.saxe(TIMES, s, TAU), SIGMA),
        (lambda tau: nf.exact.saxe(TIMES, SIGMA, tau), TAU),
        (lambda s: nf.exact.aligned_layers(TIMES, s, TAU, 1), SIGMA),
        (lambda T: nf.exact.two_layer(TIMES, Z0.mT @ Z0, Z0.mT @ Z0, T), LOSS.target),
    ],
)
def test_solutions_that_are_formulas_have_derivatives(function, at):
    step, found = 1e-6, torch.func.jacrev(function)(at)
    for i, entry in enumerate(torch.eye(at.numel())):
        along = step * entry.reshape(at.shape)
        difference = (function(at + along) - function(at - along)) / (2 * step)
        assert torch.allclose(found.flatten(-at.ndim)[..., i], difference, rtol=1e-6, atol=1e-8)


def test_a_profile_is_asked_for_the_z0_that_it_was_made_of():
    """A run from it said that the depth grid did not resolve W, where z0 had been written over."""
    z0 = Z0.clone()
    profile, flow = nf.relaxed_balanced(z0), nf.ContinuousFlow(nf.DepthGrid.gauss(4, 8), LOSS)
    before = nf.integrate(flow, profile, [0.0, 0.1])
    z0.mul_(1.5)
    after = nf.integrate(flow, profile, [0.0, 0.1])
    assert before.status == after.status == "ok"
    assert torch.equal(profile.end_to_end, Z0)
    assert torch.equal(after.z, before.z)


@pytest.mark.parametrize(
    ("flow", "state"),
    [
        (nf.ContinuousFlow(GRID, LOSS), W),
        (nf.FiniteFlow(12, LOSS), W),
        (nf.FactorizationFlow(entries, nf.Quadratic(SIGMA)), randn(4, seed=4)),
    ],
)
def test_a_hessian_is_that_of_the_state_that_it_was_asked_for(flow, state):
    """It was of the old state in part, and of the new one in part, after a step in place."""
    written, direction = state.clone(), randn(*state.shape, seed=5)
    H = nf.curvature.hessian(flow, written)
    product, top = H.product(direction), H.top(1).values
    written.mul_(2)
    assert torch.equal(H.product(direction), product)
    assert torch.equal(H.top(1).values, top)
    assert torch.equal(pickle.loads(pickle.dumps(H)).product(direction), product)


def test_the_change_of_a_law_is_from_the_start_as_it_was():
    """Its bounds were zero after steps in place, and drift was what the grid accounts for as well."""
    start = torch.cos(7 * GRID.nodes)[:, None, None] * randn(3, 3, seed=6)
    end, written = start + 0.1 * W, start.clone()
    change = nf.laws.law_changes(GRID, written)
    written.copy_(end)
    for found, wanted in zip(change(written), nf.laws.law_change(GRID, start, end), strict=True):
        assert torch.equal(found, wanted)


def test_numbers_that_are_kept_up_to_a_sign_are_taken_by_kernels_and_logarithms():
    sigma = torch.tensor([2.0, 1.0, 0.5])
    assert torch.equal(nf.TwoLayer(0.5)(torch._neg_view(-sigma)), nf.TwoLayer(0.5)(sigma))
    assert torch.equal(nf.control(torch._neg_view(-Z0))(0.3), nf.control(Z0)(0.3))


@pytest.mark.parametrize("name", [*nf.LOSSES, "separable"])
def test_a_loss_is_that_of_the_samples_it_was_made_of(name):
    """With a readin it was of the old x and the new y where both were written over."""
    y = torch.eye(3)[torch.tensor([0, 1, 2, 1, 0])] if name in ("cross_entropy", "logistic") else randn(5, 3, seed=5)
    given = [randn(5, 3, seed=4), y, randn(3, 3, seed=6), randn(3, 3, seed=7)]
    loss = nf.Separable(torch.cosh, *given) if name == "separable" else nf.LOSSES[name](*given)
    known = [loss(Z0), loss.gradient(Z0), loss.hessian(Z0, W[0]), loss.part()(Z0)]
    for part in given:
        part.mul_(2)
    for found, wanted in zip(
        [loss(Z0), loss.gradient(Z0), loss.hessian(Z0, W[0]), loss.part()(Z0)], known, strict=True
    ):
        assert torch.equal(found, wanted)
