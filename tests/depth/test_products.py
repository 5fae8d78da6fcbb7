import math

import pytest
import torch
from cases import randn, smooth_profile

import neuralode_flow as nf
from neuralode_flow.depth.panels import _direct, _picard, propagators


def test_a_constant_model_gives_the_matrix_exponential():
    W = randn(4, 4, seed=0)
    grid = nf.DepthGrid.gauss(4, 10)
    forward, backward, z = nf.Collocation(grid).propagators(W.expand(40, 4, 4))
    assert torch.allclose(z, torch.linalg.matrix_exp(W), atol=1e-12)
    s = grid.nodes[:, None, None]
    assert torch.allclose(forward, torch.linalg.matrix_exp(s * W), atol=1e-11)
    assert torch.allclose(backward, torch.linalg.matrix_exp((1 - s) * W), atol=1e-11)


def test_rotating_model_gives_its_closed_form():
    # W(s) = Ω + Q(s) S Q(s)ᵀ with Q = exp(sΩ) has P(s,0) = Q(s) exp(sS).
    omega, S = randn(3, 3, seed=1), randn(3, 3, seed=2)
    omega, S = omega - omega.mT, (S + S.mT) / 2
    grid = nf.DepthGrid.gauss(6, 10)
    Q = torch.linalg.matrix_exp(grid.nodes[:, None, None] * omega)
    forward, _, z = nf.Collocation(grid).propagators(omega + Q @ S @ Q.mT)
    assert torch.allclose(z, torch.linalg.matrix_exp(omega) @ torch.linalg.matrix_exp(S), atol=1e-12)
    assert torch.allclose(forward, Q @ torch.linalg.matrix_exp(grid.nodes[:, None, None] * S), atol=1e-11)


@pytest.mark.parametrize(("d", "scale"), [(1, 1.0), (2, 2.0), (3, 30.0), (5, 1.0), (8, 1.0), (9, 1.0)])
def test_the_propagators_of_the_engine_are_those_of_the_sweeps(d, scale):
    grid = nf.DepthGrid.gauss(3, 16)
    W = torch.stack([smooth_profile(d, seed=seed, scale=scale).at(grid.nodes) for seed in (0, 1)])
    for found, swept in zip(nf.Collocation(grid).propagators(W), propagators(grid, W), strict=True):
        assert found.shape == swept.shape
        assert float((found - swept).abs().max()) < 1e-13 * float(swept.abs().max()) * max(1, scale)


def test_propagators_can_be_differentiated():
    grid, V = nf.DepthGrid.gauss(2, 8), randn(16, 3, 3, seed=8)
    W = smooth_profile(3, seed=9, scale=1.0).at(grid.nodes).requires_grad_()
    for k in range(3):
        (slope,) = torch.autograd.grad(nf.Collocation(grid).propagators(W)[k].square().sum(), W)
        with torch.no_grad():
            ends = [nf.Collocation(grid).propagators(W + h * V)[k].square().sum() for h in (1e-5, -1e-5)]
        assert float((slope * V).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_is_2m_at_the_end(order):
    W = smooth_profile(3, seed=3, scale=2.0)
    fine = nf.DepthGrid.gauss(16, 16)
    exact = nf.Collocation(fine).product(W.at(fine.nodes))
    errors = []
    for panels in (4, 8, 16):
        grid = nf.DepthGrid.gauss(panels, order)
        errors.append(float(torch.linalg.matrix_norm(nf.Collocation(grid).product(W.at(grid.nodes)) - exact)))
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert slopes == pytest.approx([2 * order] * 2, abs=0.1 if order == 1 else 0.25)


def test_two_independent_routes_agree_to_their_tolerance():
    W = smooth_profile(4, seed=4, scale=2.0)
    grid = nf.DepthGrid.gauss(4, 12)
    values = W.at(grid.nodes)
    for one, other in zip(
        nf.Collocation(grid).propagators(values), nf.OdeintDepth(grid).propagators(values), strict=True
    ):
        assert float((one - other).abs().max()) < 1e-9


def test_direct_solver_agrees_with_the_fixed_point_and_takes_over_for_large_W():
    matrix = torch.as_tensor(nf.DepthGrid.gauss(1, 5).rule.integrate)
    W = randn(2, 3, 5, 4, 4, seed=5)
    assert torch.allclose(_direct(matrix, W / 4), _picard(matrix, W / 4), atol=1e-13)
    assert _picard(matrix, 40 * W) is None
    grid = nf.DepthGrid.gauss(2, 20)
    big = 12 * randn(3, 3, seed=6)
    z = nf.Collocation(grid).product(big.expand(40, 3, 3))
    exact = torch.linalg.matrix_exp(big)
    assert float((z - exact).abs().max() / exact.abs().max()) < 1e-8


@pytest.mark.parametrize("solver", [nf.Collocation, pytest.param(nf.OdeintDepth, marks=pytest.mark.slow)])
def test_leading_axes_are_independent_members(solver):
    grid = nf.DepthGrid.gauss(3, 5)
    W = randn(2, 3, 15, 3, 3, seed=7)
    together = solver(grid).propagators(W)
    for i in range(2):
        for j in range(3):
            for whole, alone in zip(together, solver(grid).propagators(W[i, j]), strict=True):
                assert float((whole[i, j] - alone).abs().max()) < (1e-13 if solver is nf.Collocation else 1e-8)


def test_a_failing_depth_solve_says_so():
    grid = nf.DepthGrid.gauss(2, 3)
    with pytest.raises(FloatingPointError, match="depth solve with dopri8 failed"):
        nf.OdeintDepth(grid).product(torch.full((6, 2, 2), math.nan))


def test_a_profile_on_other_nodes_is_refused():
    solver, good = nf.Collocation(nf.DepthGrid.gauss(panels=2, order=4)), torch.zeros(8, 3, 3)
    for W in (good[:4], good[:7], torch.cat((good, good)), good[..., :2], good[:, :2], good[0]):
        for call in (
            lambda W: solver.product(W),
            lambda W: solver.propagators(W),
            lambda W: solver.gradient(W, lambda z: z),
            lambda W: solver.linearised(W, lambda z: z, lambda z, dz: dz),
        ):
            with pytest.raises(ValueError, match=r"W must have shape \(\.\.\., N, d, d\) with N = 8 depth nodes, got"):
                call(W)
