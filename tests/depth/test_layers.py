import pytest
import scipy.linalg
import torch
from cases import distance, randn

import neuralode_flow as nf
from neuralode_flow.depth import promises
from neuralode_flow.depth.rules import LAYERS
from neuralode_flow.depth.rules.euler import Euler


def test_layers_are_their_formulas():
    A, I = randn(5, 3, 3, seed=0) / 3, torch.eye(3)
    assert torch.allclose(LAYERS["euler"].layer(A)[0], I + A)
    assert torch.allclose(LAYERS["rk2"].layer(A)[0], I + A + A @ A / 2)
    assert torch.allclose(LAYERS["cayley"].layer(A)[0], torch.linalg.inv(I - A / 2) @ (I + A / 2))
    assert torch.allclose(LAYERS["exp"].layer(A)[0], torch.linalg.matrix_exp(A))


@pytest.mark.parametrize("size", [1e-3, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("name", list(LAYERS))
def test_adjoint_equals_autograd(name, size):
    rule = LAYERS[name]
    A = (size * randn(2, 6, 4, 4, seed=1) / 4).requires_grad_()
    M = randn(2, 6, 4, 4, seed=2)
    U, saved = rule.layer(A)
    (expected,) = torch.autograd.grad((M * U).sum(), A)
    with torch.no_grad():
        found = rule.adjoint(A, saved, M)
    assert float((found - expected).abs().max()) <= 1e-12 * float(expected.abs().max())


@pytest.mark.parametrize("size", [1.0, 1e8, 1e16])
def test_the_adjoint_of_a_large_exponential_is_linear_in_what_comes_from_above(size):
    A, M = 3 * randn(2, 4, 4, seed=3), randn(2, 4, 4, seed=4)
    _, saved = LAYERS["exp"].layer(A)
    found = LAYERS["exp"].adjoint(A, saved, size * M) / size
    for k in range(2):
        exact = scipy.linalg.expm_frechet(A[k].T.numpy(), M[k].numpy(), compute_expm=False)
        assert float((found[k] - torch.as_tensor(exact)).abs().max()) < 1e-12 * float(found[k].abs().max())


def test_unknown_rule_lists_the_known_ones():
    with pytest.raises(ValueError, match="did you mean 'cayley'.*euler, rk2, cayley, exp"):
        LAYERS["caley"]


def test_a_subclass_of_a_rule_is_a_rule_of_its_own():
    class Twice(Euler):
        def layer(self, A):
            return super().layer(2 * A)

        def adjoint(self, A, saved, M):
            return 2 * M

    W, loss = randn(5, 3, 3, seed=0), nf.Quadratic(torch.eye(3))
    flow, plain = nf.FiniteFlow(5, loss, Twice()), nf.FiniteFlow(5, loss)
    assert distance(flow.product(W), plain.product(2 * W)) < 1e-13
    assert distance(flow.velocity(W), 2 * plain.velocity(2 * W)) < 1e-13


class Formula:
    """A rule by its formula alone."""

    order, quadratic_law = 2, False

    def __init__(self, formula, adjoint=None, **declared):
        self.formula = formula
        if adjoint is not None:
            self.adjoint = adjoint
        for name, value in declared.items():
            setattr(self, name, value)

    def layer(self, A):
        return self.formula(A), None


def one(A):
    return torch.eye(A.shape[-1]).to(A)


LOSS = nf.Quadratic(torch.eye(3))


@pytest.mark.parametrize("name", list(LAYERS))
def test_the_rules_of_the_library_keep_what_rules_promise(name):
    promises.check_promises(name, type(LAYERS[name])())


@pytest.mark.parametrize(
    ("rule", "adjoint"),
    [
        ("rk2", lambda A, saved, M: M + (A @ M + M @ A.mT) / 2),
        ("rk2", lambda A, saved, M: M + (A.mT @ M + M @ A.mT) / 3),
        ("rk2", lambda A, saved, M: M),
        ("cayley", lambda A, saved, M: saved @ M @ saved.mT),
        ("cayley", lambda A, saved, M: saved.mT @ M.mT @ saved.mT),
        ("exp", lambda A, saved, M: saved[0].mT @ M @ saved[0].mT @ saved[0].mT),
        ("euler", lambda A, saved, M: M.mT),
        ("euler", lambda A, saved, M: -M),
    ],
)
def test_an_adjoint_that_is_not_the_gradient_is_refused(rule, adjoint):
    wrong = type("Wrong", (type(LAYERS[rule]),), {"adjoint": lambda self, A, saved, M: adjoint(A, saved, M)})()
    with pytest.raises(
        ValueError, match="layer Wrong has an adjoint that is not the gradient of its layer: .* leave it out"
    ):
        nf.FiniteFlow(4, LOSS, wrong)


def test_a_rule_without_an_adjoint_has_that_of_autograd_in_every_mode():
    by_autograd, written = nf.FiniteFlow(5, LOSS, Formula(torch.linalg.matrix_exp)), nf.FiniteFlow(5, LOSS, "exp")
    W = randn(2, 5, 3, 3, seed=0)
    expected = written.velocity(W)
    assert distance(by_autograd.velocity(W), expected) < 1e-13
    with torch.no_grad():
        assert distance(by_autograd.velocity(W), expected) < 1e-13
    with torch.inference_mode():
        assert distance(by_autograd.velocity(W.clone()), expected) < 1e-13
    assert distance(torch.func.vmap(by_autograd.velocity)(W), expected) < 1e-13
    jacobians = [torch.autograd.functional.jacobian(flow.velocity, W[0]) for flow in (by_autograd, written)]
    assert distance(*jacobians) < 1e-12
    assert distance(torch.func.jacrev(by_autograd.velocity)(W[0]), jacobians[1]) < 1e-12
    paths = [nf.integrate(flow, W, [0.0, 0.5], "DOP853", rtol=1e-10) for flow in (by_autograd, written)]
    assert distance(paths[0].z, paths[1].z) < 1e-12


@pytest.mark.parametrize(
    ("rule", "error", "words"),
    [
        (Formula(lambda A: one(A) + A, order=3), ValueError, "order above 0 and at most 2, got 3: a rule sees W"),
        (Formula(lambda A: one(A) + A, order=0), ValueError, "order above 0"),
        (Formula(lambda A: one(A) + A, order="2"), TypeError, "order that is a number, got '2'"),
        (Formula(lambda A: one(A) + A, quadratic_law=1), TypeError, "quadratic_law that is True or False, got 1"),
        (Formula(lambda A: one(A) + A + A @ A / 2, quadratic_law=True), ValueError, "declare quadratic_law = False"),
        (Formula(lambda A: (one(A) + A)[..., :1]), ValueError, "layers of the shape, dtype and device of A"),
        (Formula(lambda A: (one(A) + A).float()), ValueError, "in torch.float32"),
        (Formula(lambda A: one(A) + A / A.norm()), ValueError, "must give each layer from its own A"),
        (Formula(lambda A: one(A) + A.detach()), TypeError, "written in torch, or an adjoint"),
        (Formula(lambda A: one(A) + A, lambda A, saved, M: M[..., :1]), ValueError, "an adjoint of the shape of A"),
    ],
)
def test_a_rule_that_breaks_a_promise_is_refused_by_what_it_breaks(rule, error, words):
    with pytest.raises(error, match=f"layer Formula .*{words}"):
        nf.FiniteFlow(4, LOSS, rule)


def test_a_rule_that_autograd_cannot_follow_is_compared_with_differences():
    def layer(A):
        A = A.detach()
        return one(A) + A + A @ A / 2

    right = Formula(layer, lambda A, saved, M: M + (A.mT @ M + M @ A.mT) / 2)
    W = randn(4, 3, 3, seed=0)
    assert distance(nf.FiniteFlow(4, LOSS, right).velocity(W), nf.FiniteFlow(4, LOSS, "rk2").velocity(W)) < 1e-13
    with pytest.raises(ValueError, match="along one direction the derivative is"):
        nf.FiniteFlow(4, LOSS, Formula(layer, lambda A, saved, M: M + (A @ M + M @ A.mT) / 2))


def test_the_law_of_a_rule_that_keeps_the_quadratic_one_is_that_of_its_layers():
    flow = nf.FiniteFlow(4, nf.Quadratic(2 * torch.eye(3)), Formula(lambda A: one(A) + 2 * A, quadratic_law=True))
    path = nf.integrate(flow, randn(4, 3, 3, seed=0) / 3, [0.0, 1.0], "DOP853", rtol=1e-10, atol=1e-12)
    assert float(path.drift.max()) < 1e-8


def test_a_rule_is_looked_at_once_and_the_random_numbers_of_torch_stay():
    seen = []
    rule = Formula(lambda A: (seen.append(1), one(A) + A)[1])
    state = torch.get_rng_state()
    nf.FiniteFlow(4, LOSS, rule)
    number = len(seen)
    nf.FiniteFlow(4, LOSS, rule)
    assert len(seen) == number > 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", range(4))
def test_one_exponential_layer_has_the_same_velocity_under_vmap(seed):
    """There it is by torch's exponential, of one matrix."""
    W = randn(1, 2, 2, seed=seed)
    W *= 0.0975 / torch.linalg.matrix_norm(W, 1)
    flow = nf.FiniteFlow(1, nf.Quadratic(2 * torch.eye(2)), "exp")
    assert torch.allclose(torch.func.vmap(flow.velocity)(W[None])[0], flow.velocity(W), rtol=0, atol=1e-14)
