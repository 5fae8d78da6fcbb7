import pytest
import torch
from cases import randn

from neuralode_flow.depth import chain
from neuralode_flow.depth.products import multiply


@pytest.mark.parametrize("L", [1, 2, 3, 4, 5, 7, 16, 23, 64])
def test_product_and_gradient_equal_the_plain_loop(L):
    U = torch.eye(3) + randn(2, L, 3, 3, seed=L) / L
    G = randn(2, 3, 3, seed=100)
    before = [torch.eye(3).expand(2, 3, 3)]
    for k in range(L):
        before.append(U[:, k] @ before[-1])
    after = [torch.eye(3).expand(2, 3, 3)]
    for k in reversed(range(L)):
        after.append(after[-1] @ U[:, k])
    expected = torch.stack([after[L - 1 - k].mT @ G @ before[k].mT for k in range(L)], dim=1)
    assert torch.allclose(chain.product(U), before[-1], atol=1e-14)
    seen = []
    assert torch.allclose(chain.gradient(U, lambda z: seen.append(z) or G), expected, atol=1e-14)
    assert torch.allclose(seen[0], before[-1], atol=1e-14)
    first, last, whole = chain.outside(U)
    assert torch.allclose(last[:, 0] @ U[:, 0], whole, atol=1e-14)
    assert torch.allclose(U[:, -1] @ first[:, -1], whole, atol=1e-14)


@pytest.mark.parametrize("L", [15, 17, 255, 256, 257, 300])
def test_blocks_of_blocks_equal_the_pairs_before_and_after(L):
    U = torch.eye(4) + randn(L, 4, 4, seed=L) / L
    G = randn(4, 4, seed=101)
    before, after, z = chain.outside(U)
    assert torch.allclose(chain.gradient(U, lambda _: G), after.mT @ G @ before.mT, atol=1e-13)
    assert torch.allclose(chain.product(U), z, atol=1e-13)


@pytest.mark.parametrize("threads", [1, 2])
def test_both_libraries_give_the_same_products(threads):
    one, other = randn(3, 400, 6, 6, seed=102), randn(400, 6, 6, seed=103)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # with one thread small matrices may go through NumPy
    try:
        out = torch.empty(400, 6, 6)
        assert multiply(one[0], other.mT, out=out) is out
        assert torch.allclose(out, one[0] @ other.mT, atol=1e-14)
        assert torch.allclose(multiply(one, other), one @ other, atol=1e-14)
    finally:
        torch.set_num_threads(before)
