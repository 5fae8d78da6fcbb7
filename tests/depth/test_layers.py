import pytest
import scipy.linalg
import torch
from cases import distance, randn

import neuralode_flow as nf
from neuralode_flow.depth.layers import LAYERS, Euler


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
