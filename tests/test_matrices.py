"""Batches of large matrices on several threads, where torch's own factorisation fails."""

import pytest
import torch
from cases import randn

from neuralode_flow import matrices


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
