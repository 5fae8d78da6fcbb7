"""Runs that a budget ends between two output times: what stands at a time is the number of that time, or NaN."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import positive_matrix, randn
from small import clock

import neuralode_flow as nf
from neuralode_flow.problems import PROBLEMS
from neuralode_flow.studies.convergence import run
from neuralode_flow.time.trajectory import at_times, common_times

# Of each study: settings, and budgets that end some of what it integrates, between two output times.
CASES = {
    "initialisations": (
        {"problem": "teacher", "problem.dimension": 2, "debug": "quick", "study.depths": [2], "study.draws": 2},
        [60, 100],
    ),
    "lazy_to_rich": ({"time.samples": 9, "study.width": 3, "study.balances": [0.5]}, [60, 100]),
    "trajectory": ({"time.samples": 9}, [220]),
    "closure": ({"time.samples": 9, "system": "balanced_two_layer"}, [60, 200]),
}


@pytest.mark.parametrize("study", CASES)
def test_what_stands_at_a_time_is_of_that_time(study):
    settings, budgets = CASES[study]
    whole = nf.run(study, settings).dataset
    assert whole.status == "ok"
    for budget in budgets:
        found = nf.run(study, settings | {"time.max_evaluations": budget}).dataset
        assert "budget" in found.status
        there = found.isel(time=np.isin(found.time, whole.time))
        unknown = len(there.time) < len(whole.time)
        for name, own in there.data_vars.items():
            if "time" in own.dims and own.dtype.kind == "f":
                other = whole[name].sel(time=own.time)
                off = (np.abs(own - other) / (1e-6 + np.abs(other).max())).values
                assert np.nanmax(off, initial=0) < 1e-5, name
                unknown |= bool(np.isnan(off).any())
        assert unknown


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        (
            {"study.estimate": False, "time.max_evaluations": 120},
            "the intrinsic limit is known up to t = 0.5 only: the",
        ),
        ({"problem.scale": 8, "time": "descent", "time.rate": 1, "time.horizon": 40}, "infinite depth: the depth grid"),
    ],
    ids=["flow", "steps"],
)
def test_a_limit_that_does_not_come_as_far_is_said(settings, known):
    network = {"problem": "teacher", "problem.dimension": 2, "study.model": "finite", "study.network_depth": 1}
    found = nf.run("trajectory", network | {"time.samples": 5} | settings).finding
    assert found.status.startswith(known)
    assert known[1:] in found.verdict
    assert not found.passed


def test_side_edges_that_end_early_are_said():
    def stopping(flow, *args, **kwargs):
        kernel = getattr(flow, "kernel", None)
        budget = {"max_evaluations": 30} if isinstance(kernel, nf.DividedDifference) and len(kernel.shifts) == 4 else {}
        return nf.integrate(flow, *args, **kwargs, **budget)

    problem = PROBLEMS["teacher"](dimension=2)
    given = {"problem": problem, "initial": nf.balanced(problem.z0), "solver": nf.Collocation(nf.DepthGrid.gauss(2, 8))}
    dataset = run(**given, clock=replace(clock(1.0, 3), carried_out=stopping), depths=[2, 4], layers=["euler"])
    said = "1 of 2 exactly relaxed balanced networks, or their intrinsic flows, stopped early; L = 4: the budget of 30"
    assert dataset.status.startswith(said)
    assert np.isnan(dataset.error_finite_square.sel(depth=4))
    assert np.isfinite(dataset.error_finite_square.sel(depth=2))


def test_comparisons_of_starts_that_end_early_do_not_hold():
    settings, _ = CASES["initialisations"]
    found = nf.run("initialisations", settings | {"time.max_evaluations": 150}).finding
    assert found.verdict.startswith("The budget of 150 velocity evaluations was used up at t = ")
    assert [check.holds for check in found.checks[:3]] == [False] * 3
    assert np.isnan([check.error for check in found.checks[:3]]).all()


def test_a_closed_flow_that_ends_early_is_said_and_contradicts_nothing():
    found = nf.run("single_neuron", {"time.max_evaluations": 300}).finding
    assert found.verdict.startswith("The budget of 300 velocity evaluations was used up")
    assert "NOT as theory says" not in found.verdict
    cut = nf.run("single_neuron", {"time.max_evaluations": 750})
    known = np.isfinite(cut.dataset.distance_closed)
    assert not known.all()
    assert cut.finding.status.startswith("z of the closed flow: the budget of 750")
    assert np.isnan(cut.finding.checks[0].error)
    assert cut.finding.numbers["compared_time"] == float(cut.dataset.time[known.values][-1])
    assert f"over t in [0, {cut.finding.numbers['compared_time']:.3g}]" in cut.finding.verdict


@pytest.mark.parametrize("rate", [0.03333333333, 0.01428571429])
def test_rates_of_ten_digits_leave_no_gaps(rate):
    """They divide the distance of output times to ten digits, and steps end as near to these."""
    settings = {"problem": "teacher", "problem.dimension": 2, "debug": "quick", "time": "descent", "time.rate": rate}
    small = {"study.depths": [2], "study.draws": 2, "time.horizon": 1, "time.samples": 11}
    whole = nf.run("initialisations", settings | small).dataset
    assert np.isfinite(whole.spread).all()
    square = nf.run("convergence", settings | {"study.depths": [4, 8, 16], "time.samples": 11, "time.horizon": 1})
    for name in ("z_finite", "error_z", "error_grid", "error_time", "error_finite_square", "order"):
        assert np.isfinite(square.dataset[name]).all(), name


def test_a_column_at_the_times_asked_for_has_no_end_between_them():
    flow, times = nf.FiniteFlow(3, nf.Quadratic(positive_matrix(2, 1))), torch.linspace(0.0, 2.0, 5)
    start, options = 0.3 * randn(3, 2, 2, seed=2), {"observe": lambda i, state: state.sum(), "rtol": 1e-8}
    whole = nf.integrate(flow, start, times, **options)
    early = nf.integrate(flow, start, times, stop={"time": 1.2}, **options)
    assert early.times.tolist() == [0.0, 0.5, 1.0, 1.2]
    assert common_times(early.times, times) == common_times(times, early.times) == 3
    assert common_times(times * (1 + 1e-15), times) == 5
    for name in ("z", "loss", "observed"):
        column = at_times(early, times, name)
        assert torch.equal(column[:3], getattr(early, name)[:3])
        assert bool(column[3:].isnan().all())
        assert at_times(whole, times, name) is getattr(whole, name)
        assert column.shape == getattr(whole, name).shape


def test_weights_at_an_event_are_on_the_grid_of_the_others_and_kept_as_they_are():
    """The depth grid has become coarser by the event, and its last profile has the map of that time."""
    settings = {"problem": "teacher", "problem.dimension": 3, "time.samples": 9, "time.horizon": 2.0}
    settings |= {"time.rtol": 1e-6, "time.atol": 1e-8}
    found = nf.run("trajectory", settings | {"study.stop_loss": 0.3})
    dataset, grid = found.dataset, nf.DepthGrid.gauss(*(found.config["depth"][name] for name in ("panels", "order")))
    assert dataset.history.startswith("depth grid at t = 0.")
    assert torch.tensor(dataset.s.values) == pytest.approx(grid.nodes, abs=1e-15)
    z = nf.Collocation(grid).product(torch.tensor(dataset.W.values))
    assert np.abs(z.numpy() - dataset.z.values).max() < 1e-9
    movie = found.figures["weights"]
    shown = {line.get_label().split("$")[1] for line in movie.figure.axes[0].lines}
    spread = np.ptp(dataset.W.values, axis=(0, 1))
    most = np.argsort(-spread, axis=None)[:6]
    assert shown == {f"W_{{{k // 3 + 1}{k % 3 + 1}}}" for k in most}


def test_weights_at_an_event_are_singular_values_where_the_others_are(monkeypatch):
    settings = {"problem": "teacher", "problem.dimension": 3, "time.samples": 9, "time.horizon": 2.0}
    # As many numbers as five of the nine times would have, before the event at the fourth.
    monkeypatch.setattr("neuralode_flow.studies.weights.MOST_NUMBERS", 5 * 8 * 3 * 3)
    network = {"study.model": "finite", "study.network_depth": 8, "study.stop_loss": 0.3}
    dataset = nf.run("trajectory", settings | network).dataset
    assert dataset.sizes["time"] == 4
    assert np.isfinite(dataset.W_singular_values.values).all()
