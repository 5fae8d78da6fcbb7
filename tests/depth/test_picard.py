"""The fast solver of the collocation equations against the general one, which solves them as they are written."""

import threading

import pytest
import torch
from cases import all_losses, distance, randn, smooth_profile

import neuralode_flow as nf
from neuralode_flow.depth import picard
from neuralode_flow.depth.chain import outside
from neuralode_flow.depth.panels import stages

GRIDS = [(1, 1), (1, 13), (2, 9), (3, 4), (4, 6), (5, 2)]


def general_gradient(grid, W, outer):
    solved = stages(grid, W)
    before, after, z = outside(solved.across)
    inner = after.mT @ outer(z).unsqueeze(-3) @ before.mT
    return (solved.backward @ inner.unsqueeze(-3) @ solved.forward.mT).flatten(-4, -3), z


@pytest.fixture
def general_route(monkeypatch):
    """Counts how often the fast solver gives up."""
    given_up = []
    fast = picard.solve

    def watched(*arguments):
        try:
            return fast(*arguments)
        except picard.Unsolved:
            given_up.append(arguments)
            raise

    monkeypatch.setattr(picard, "solve", watched)
    return given_up


@pytest.mark.parametrize("d", [1, 3, picard.MIXED_FROM - 1, picard.MIXED_FROM, 24])
@pytest.mark.parametrize(("panels", "order"), GRIDS)
def test_fast_gradient_and_product_solve_the_same_equations(panels, order, d, general_route):
    grid = nf.DepthGrid.gauss(panels, order)
    for W in (smooth_profile(d, seed=1, scale=2.0).at(grid.nodes), randn(len(grid), d, d, seed=2) / d):
        outer = nf.Quadratic(randn(d, d, seed=3)).gradient
        expected, z = general_gradient(grid, W, outer)
        solver = nf.Collocation(grid)
        assert float((solver.gradient(W, outer) - expected).abs().max()) <= 1e-13 * float(expected.abs().max()) * d
        assert float((solver.product(W) - z).abs().max()) <= 1e-13 * float(z.abs().max()) * d
    assert not general_route


@pytest.mark.parametrize("d", [3, 20])
def test_what_the_fast_solver_gives_up_goes_the_general_route(d, general_route):
    grid = nf.DepthGrid.gauss(2, 6)
    W, outer = 40 * randn(12, d, d, seed=4) / d**0.5, nf.Quadratic(torch.eye(d)).gradient
    expected, z = general_gradient(grid, W, outer)
    solver = nf.Collocation(grid)
    assert torch.equal(solver.gradient(W, outer), expected)
    assert torch.equal(solver.product(W), z)
    assert len(general_route) == 2


def test_a_rough_model_whose_panels_it_does_not_resolve_is_solved_to_round_off():
    # v u is far from I there: nothing may rest on it.
    grid = nf.DepthGrid.gauss(3, 4)
    for size in (0.5, 2.0, 6.0):
        W, outer = size * randn(2, 12, 3, 3, seed=5), nf.Quadratic(randn(3, 3, seed=6)).gradient
        expected, _ = general_gradient(grid, W, outer)
        assert float((nf.Collocation(grid).gradient(W, outer) - expected).abs().max()) <= 1e-12 * float(
            expected.abs().max()
        )


@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize(("panels", "order"), [(1, 8), (2, 8)])
def test_a_result_is_not_in_memory_that_the_next_call_uses(panels, order, d):
    grid = nf.DepthGrid.gauss(panels, order)
    flow = nf.ContinuousFlow(grid, nf.Quadratic(torch.eye(d)))
    net = nf.FiniteFlow(len(grid), flow.loss)
    one, other = (smooth_profile(d, seed).at(grid.nodes) for seed in (7, 8))
    for call in (flow.velocity, flow.product, net.velocity, net.product):
        first = call(one)
        kept = first.clone()
        call(other)
        assert torch.equal(first, kept)


def test_a_gradient_inside_a_gradient_has_memory_of_its_own():
    grid = nf.DepthGrid.gauss(2, 5)
    W, loss = smooth_profile(3, seed=9).at(grid.nodes), nf.Quadratic(torch.eye(3))
    for flow in (nf.ContinuousFlow(grid, loss), nf.FiniteFlow(10, loss)):

        class Nested(nf.Quadratic):
            def gradient(self, z, inside=flow):
                inside.velocity(2 * W)
                return super().gradient(z)

        outside_flow = type(flow)(grid if flow.__class__ is nf.ContinuousFlow else 10, Nested(torch.eye(3)))
        assert torch.equal(outside_flow.velocity(W), flow.velocity(W))


def test_two_threads_do_not_share_memory():
    grid = nf.DepthGrid.gauss(2, 6)
    flow = nf.ContinuousFlow(grid, nf.Quadratic(torch.eye(20)))
    states = [smooth_profile(20, seed).at(grid.nodes) for seed in (10, 11)]
    expected, results = [flow.velocity(state) for state in states], [[], []]

    def work(i):
        results[i] = [flow.velocity(states[i]) for _ in range(30)]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i in range(2):
        assert all(torch.equal(result, expected[i]) for result in results[i])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch imports for it
@pytest.mark.parametrize(
    "make", [lambda loss: nf.ContinuousFlow(nf.DepthGrid.gauss(2, 4), loss), lambda loss: nf.FiniteFlow(8, loss, "exp")]
)
def test_derivatives_can_be_taken_through_a_velocity(make):
    flow = make(all_losses(3, seed=12)["regression"])
    state, direction, h = randn(8, 3, 3, seed=13), randn(8, 3, 3, seed=14), 1e-5
    value, derivative = torch.func.jvp(flow.velocity, (state,), (direction,))
    quotient = (flow.velocity(state + h * direction) - flow.velocity(state - h * direction)) / (2 * h)
    assert torch.allclose(value, flow.velocity(state), atol=1e-13)
    assert distance(derivative, quotient) < 1e-7 * float(derivative.abs().max())
    leaf = state.clone().requires_grad_()
    (pulled,) = torch.autograd.grad((flow.velocity(leaf) * direction).sum(), leaf)
    assert float((pulled * direction).sum()) == pytest.approx(float((derivative * direction).sum()), rel=1e-9)


def test_single_precision_and_numbers_that_are_not_finite():
    grid = nf.DepthGrid.gauss(2, 6)
    flow = nf.ContinuousFlow(grid, nf.Quadratic(torch.eye(20, dtype=torch.float32)))
    W = smooth_profile(20, seed=15).at(grid.nodes)
    exact = nf.ContinuousFlow(grid, nf.Quadratic(torch.eye(20))).velocity(W)
    single = flow.velocity(W.float())
    assert single.dtype == torch.float32
    assert float((single - exact).abs().max()) < 1e-5 * float(exact.abs().max())
    for d in (3, 20):
        W = torch.full((12, d, d), torch.nan)
        assert not torch.isfinite(nf.ContinuousFlow(grid, nf.Quadratic(torch.eye(d))).velocity(W)).any()
