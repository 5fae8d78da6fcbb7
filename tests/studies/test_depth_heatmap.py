"""The heat map of figure 1 of Marion et al.: what is measured is that of steps written out, and planted faults show."""

import numpy as np
import pytest
from small import SMALL, failing

import neuralode_flow as nf
from neuralode_flow.studies import STUDIES, depth_heatmap

ORDERS = "the order at each iteration from 1"


def written(L):
    return f"distances at L = {L} off those of steps written out"


def run(**changes):
    inputs, settings = SMALL["depth_heatmap"]()
    inputs |= {name: changes.pop(name) for name in list(changes) if name in inputs}
    return STUDIES["depth_heatmap"].run(**inputs, **settings | changes)


def of_integrate(change):
    right = depth_heatmap.integrate
    return "integrate", lambda flow, state, times, **options: change(right, flow, state, times, options)


FAULTS = {
    "a distance": ("_apart", lambda *given, right=depth_heatmap._apart: 1.01 * right(*given)),
    "the rate of all": of_integrate(lambda right, flow, state, times, options: right(
        flow, state, 1.01 * times, **options | {"step": 1.01 * options["step"]})),
    "the start of all": of_integrate(lambda right, flow, state, times, options: right(
        flow, 1.01 * state, times, **options)),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_off_by_one_percent_and_falls_at_the_same_order_is_seen(fault, monkeypatch):
    monkeypatch.setattr(depth_heatmap, *FAULTS[fault])
    assert failing(run()) == {written(2)}


@pytest.mark.parametrize("kind", [depth_heatmap.FiniteFlow, depth_heatmap.ContinuousFlow])
def test_a_model_whose_velocity_is_off_does_not_tend_to_the_other(kind, monkeypatch):
    class Faster(kind):
        def velocity(self, state):
            return 1.01 * super().velocity(state)

        def on(self, grid):
            return Faster(grid, self.loss, self.depth.on(grid))

    monkeypatch.setattr(depth_heatmap, kind.__name__, Faster)
    assert ORDERS in failing(run())


@pytest.mark.parametrize("depths", [[3, 9, 27], [1, 2, 4], [5, 10, 20]])
@pytest.mark.parametrize("grid", [(1, 24), (2, 12), (3, 8)])
def test_steps_written_out_are_those_of_the_study(depths, grid):
    """Also where a layer lies on the edge of two panels."""
    solver = nf.Collocation(nf.DepthGrid.gauss(*grid))
    found = run(solver=solver, depths=depths, iterations=3, rate=0.1, seed=depths[0])
    assert float(found.written_off) < 1e-10
    assert written(depths[0]) not in failing(found)


def test_the_polynomials_of_nodes_are_one_at_their_own_node_and_give_back_polynomials():
    nodes = nf.DepthGrid.gauss(1, 6).nodes.numpy()
    at_nodes = np.stack([depth_heatmap._lagrange(nodes, x) for x in nodes])
    np.testing.assert_allclose(at_nodes, np.eye(6), atol=1e-14)
    assert depth_heatmap._lagrange(nodes, 0.3) @ nodes**5 == pytest.approx(0.3**5, rel=1e-12)


def test_a_distance_that_is_not_known_holds_nothing(monkeypatch):
    monkeypatch.setattr(depth_heatmap, "_written", lambda *given: (np.full(6, np.nan), np.ones(6)))
    assert failing(run()) == {written(2)}
