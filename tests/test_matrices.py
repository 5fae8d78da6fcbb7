"""Batches of large matrices on several threads, where torch's own factorisation fails."""

import numpy as np
import pytest
import torch
from cases import randn

from neuralode_flow import matrices
from neuralode_flow.depth.products import multiply
from neuralode_flow.matrices import Turning


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(5, 5), (3, 5, 5), (3, 256, 256), (2, 1, 200, 200)])
def test_batches_of_matrices_are_solved_inverted_and_measured(shape, threads):
    identity = torch.eye(shape[-1])
    A, B = identity + 0.3 * randn(*shape, seed=1) / shape[-1] ** 0.5, randn(*shape, seed=2)
    assert torch.allclose(A @ matrices.solve(A, B), B)
    assert torch.allclose(matrices.solve(A, B, left=False) @ A, B)
    assert torch.allclose(A @ matrices.inverse(A), identity.expand(shape))
    sign, logarithm = matrices.slogdet(A)
    eigenvalues = torch.linalg.eigvals(A)
    assert torch.allclose(logarithm, eigenvalues.abs().log().sum(-1))
    assert torch.equal(sign, torch.ones(shape[:-2]))
    one = A.reshape(-1, *shape[-2:])[0]  # for all members
    assert torch.allclose(one @ matrices.solve(one, B), B)
    assert torch.allclose(A @ torch.linalg.lu_solve(*matrices.lu_factors(A), B), B)


def alone(f):
    return f


def mapped(f):
    return lambda A: torch.func.vmap(f)(A[None])[0]


def exact_exponential(A):
    """By mpmath to 30 digits."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(30):
        return torch.tensor(mpmath.expm(mpmath.matrix(A.tolist()), method="taylor").tolist(), dtype=torch.float64)


@pytest.mark.parametrize("how", [alone, mapped])
@pytest.mark.parametrize("d", [1, 2, 3, 8])
def test_the_exponential_of_one_matrix_is_that_of_many(d, how):
    """torch's own is 1e-10 off for one matrix of the size 0.05, and 1e-5 in float32 at 0.5."""
    for size in (1e-9, 1e-4, 3e-3, 0.01, 0.03, 0.049, 0.2, 0.5, 1.0, 5.0):
        A = randn(d, d, seed=d)
        A *= size / torch.linalg.matrix_norm(A, 1)
        expected = exact_exponential(A)
        for kind, allowed in ((torch.float64, 1e-15), (torch.float32, 6e-7)):
            found = how(matrices.matrix_exp)(A.to(kind))
            gap = torch.linalg.matrix_norm(found.double() - expected, 1)
            assert float(gap) <= 5 * (1 + size) * allowed * float(torch.linalg.matrix_norm(expected, 1))
        many = matrices.matrix_exp(A.expand(1, 3, d, d))
        assert torch.allclose(many, expected.expand(1, 3, d, d), rtol=1e-14, atol=1e-14)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, of forward mode
def test_derivatives_of_the_exponential_of_one_matrix():
    A = 0.03 * randn(2, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(matrices.matrix_exp, A, fast_mode=False, atol=1e-9)
    M, other = randn(2, 2, seed=2), randn(2, 2, seed=3)
    (slope,) = torch.autograd.grad((matrices.matrix_exp(A) * M).sum(), A)
    block = torch.zeros(4, 4)
    block[:2, :2] = block[2:, 2:] = A.detach().mT
    block[:2, 2:] = M
    assert torch.allclose(slope, exact_exponential(block)[:2, 2:], rtol=0, atol=1e-14)
    pushed = torch.func.jvp(matrices.matrix_exp, (A.detach(),), (other,))[1]
    assert float((pushed * M).sum()) == pytest.approx(float((slope * other).sum()), rel=1e-14)


@pytest.mark.parametrize("d", [1, 2, 3, 4, 7])
def test_turns_by_planes_are_matrix_exponentials(d):
    raw, s = randn(2, d, d, seed=3), torch.tensor([0.0, 0.3, 1.0, -2.0])
    turn = raw - raw.mT
    turn[1] = 0.0  # all angles are equal
    found = Turning(turn)(s)
    expected = torch.linalg.matrix_exp(s[:, None, None] * turn.unsqueeze(-3))
    assert found.shape == (2, 4, d, d)
    assert float((found - expected).abs().max()) < 1e-14 * d
    assert float((found @ found.mT - torch.eye(d)).abs().max()) < 1e-14 * d
    assert np.abs(Turning(turn)(s.numpy()) - found.numpy()).max() < 1e-15 * d


@pytest.mark.parametrize("number", [3, 4096], ids=["by torch", "by NumPy"])
def test_a_matrix_times_its_own_transpose_is_one_product_of_many(number):
    A = randn(number, 4, 4, seed=4)
    for one, other in ((A.mT, A), (A, A.mT), (A, A)):
        found = multiply(one, other)
        assert torch.allclose(found, torch.einsum("nab,nbc->nac", one, other), rtol=0, atol=1e-13)
        assert found.data_ptr() != A.data_ptr()
