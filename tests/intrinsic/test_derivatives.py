"""Derivatives of φ against torch.func, which goes another way: forward mode inside of reverse mode, point by point."""

import pytest
import torch
from cases import randn

from neuralode_flow.intrinsic.derivatives import brackets, gradients, hessians, jacobian

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.func, of torch.jit

N = 5


def smooth(theta):
    return torch.outer(theta[:2].sin(), theta[2:] * theta[0]) + theta.square().sum()


def constant_beside(theta):
    return torch.stack((theta[0] * theta[1], torch.ones((), dtype=theta.dtype)))


def one_by_one(theta):
    """Python decides by the numbers, which vmap refuses."""
    return theta[:3] * theta[2:] if theta.sum() > -1e9 else theta


def constant(theta):
    return torch.ones(3, dtype=theta.dtype)


MAPS = [smooth, constant_beside, one_by_one, constant]


def flat(function):
    return lambda theta: function(theta).reshape(-1)


def slope(function):
    return torch.func.jacrev(flat(function))


@pytest.mark.parametrize("function", MAPS)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_derivatives_are_those_of_torch_func_in_every_mode(function, mode):
    theta, directions = randn(N, seed=1), randn(3, N, seed=2)
    m = function(theta).numel()
    J = slope(function)(theta)
    if function is one_by_one:  # whose Hessian torch.func cannot take
        H = torch.func.jacfwd(slope(lambda theta: theta[:3] * theta[2:]))(theta)
    else:
        H = torch.func.jacfwd(slope(function))(theta)
    points, combinations = randn(4, N, seed=3), randn(4, m, seed=4)
    wanted = torch.stack([a @ slope(function)(point) for point, a in zip(points, combinations, strict=True)])
    with mode():
        found = (
            jacobian(function, theta),
            hessians(function, theta, directions),
            gradients(function, points, combinations),
        )
    assert torch.allclose(found[0], J, atol=1e-14)
    assert torch.allclose(found[1], torch.einsum("ijk,lk->lij", H, directions), atol=1e-13)
    assert torch.allclose(found[2], wanted, atol=1e-13)
    assert not any(part.requires_grad for part in found)


def field(function, a):
    return lambda theta: a @ slope(function)(theta)


def bracket(X, Y):
    def difference(theta):
        return torch.func.jacfwd(Y)(theta) @ X(theta) - torch.func.jacfwd(X)(theta) @ Y(theta)

    return difference


@pytest.mark.parametrize("function", [smooth, constant_beside, constant])
def test_nested_brackets_are_those_of_forward_mode(function):
    points = randn(2, N, seed=5)
    combinations = randn(2, 3, function(points[0]).numel(), seed=6)
    found = brackets(function, points, combinations)
    assert found.shape == (2, 4, N)
    for point, rows, terms in zip(points, combinations, found, strict=True):
        X, Y, Z = (field(function, a) for a in rows)
        assert torch.allclose(terms.sum(0), bracket(X, bracket(Y, Z))(point), rtol=1e-11, atol=1e-12)


def test_brackets_of_a_map_that_cannot_be_vectorised_are_those_of_one_that_can():
    points, combinations = randn(3, N, seed=7), randn(3, 2, 3, seed=8)
    found, wanted = (
        brackets(function, points, combinations) for function in (one_by_one, lambda theta: theta[:3] * theta[2:])
    )
    assert torch.allclose(found, wanted, atol=1e-14)
    assert float(found.sum(1).abs().max()) > 0.1


def test_of_no_values_and_along_no_directions_there_is_nothing():
    theta = randn(N, seed=9)
    assert jacobian(lambda theta: theta[:0], theta).shape == (0, N)
    assert hessians(lambda theta: theta[:0], theta, torch.eye(N)).shape == (N, 0, N)
    assert hessians(smooth, theta, theta.new_zeros(0, N)).shape == (0, 6, N)
