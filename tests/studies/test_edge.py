"""Gradient descent at the edge of stability: its final sharpness by depth, the central flow, and what shows nothing."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from cases import slow
from small import SMALL, dataset

import neuralode_flow as nf
from neuralode_flow import results
from neuralode_flow.figures import FIGURES, save
from neuralode_flow.finding import Finding
from neuralode_flow.studies import STUDIES, edge, settling

STUDY = STUDIES["edge"]
ORDERS = "the last two local orders from 2"
TIMES = "times of the flows off those of gradient descent"
MEANS = "mean of the first two iterates, by a velocity and by a step"
RATIO = "distance of the central flow from gradient descent over that of gradient flow"


def failing(found):
    return [check.name for check in Finding.of(found).checks if not check.holds]


@cache
def plan():
    inputs, settings = SMALL["edge"]()
    named = {name: settings[name] for name in ("between", "settled")}
    return edge._Plan(**inputs, layer="exp", steps=10_000, **named)


def again(**changes):
    """The finding of the small dataset with other numbers in it."""
    changed = dataset("edge").assign(changes)
    return edge._finding(changed, plan()).attached(changed)


def run(**changes):
    """The study in its small form, with other inputs or settings."""
    inputs, settings = SMALL["edge"]()
    inputs |= {name: changes.pop(name) for name in list(changes) if name in inputs}
    return STUDY.run(**inputs, **settings | changes)


def test_the_final_sharpness_tends_to_that_of_infinite_depth_at_order_two():
    found = dataset("edge")
    assert Finding.of(found).passed
    summary = STUDY.summarise(found)
    assert summary["last_orders"] == pytest.approx([2, 2], abs=0.15)
    final, at = found.final_sharpness.values, float(found.edge)
    assert float(found.least_sharpness) < final.min() <= final.max() < at < float(found.end_sharpness)
    assert at == pytest.approx(2 / float(found.rate), rel=1e-14)
    assert summary["reference_error"] < 1e-2 * float(found.error[-2])


@pytest.mark.parametrize(
    ("name", "sees"),
    [
        ("flow", "sharpness in which gradient flow ends − that by Lanczos' method"),
        ("least", "least sharpness − that of balanced weights by Lanczos' method"),
    ],
)
@pytest.mark.parametrize("factor", [0.999, 1.01])
def test_an_end_of_the_range_of_the_edge_that_is_off_is_seen(name, sees, factor):
    inputs, settings = SMALL["edge"]()
    flow = plan().flow(0)
    at = settling.edge(inputs["clock"], flow, flow.sample(inputs["initial"]), 0.4, settings["settled"], "here")
    assert failing(again(**edge._ends(plan(), at))) == []
    off = replace(at, **{name: factor * getattr(at, name)})
    assert failing(again(**edge._ends(plan(), off))) == [sees]


def test_the_least_sharpness_has_no_error_of_a_coarse_grid():
    inputs, settings = SMALL["edge"]()
    coarse = replace(plan(), solver=nf.Collocation(nf.DepthGrid.gauss(1, 6)))
    flow = coarse.flow(0)
    at = settling.edge(inputs["clock"], flow, flow.sample(inputs["initial"]), 0.4, settings["settled"], "here")
    assert failing(again(**edge._ends(coarse, at))) == []


def test_it_is_where_descent_by_hand_comes_to_rest_by_a_spectrum_of_the_whole_hessian():
    inputs, settings = SMALL["edge"]()
    found = dataset("edge")
    L = settings["depths"][0]
    flow = nf.FiniteFlow(L, inputs["problem"].loss, "exp")
    W, rate = flow.sample(inputs["initial"]), float(found.rate)
    for _ in range(int(found.settled_after[0])):
        W = W + rate * flow.velocity(W)
    assert float(torch.linalg.matrix_norm(flow.loss.gradient(flow.product(W)))) <= settings["settled"]
    whole = float(nf.curvature.hessian(flow, W).spectrum().values[0])
    assert float(found.final_sharpness[0]) == pytest.approx(whole, abs=20 * settings["settled"])
    # Further on it moves by what is said to be left.
    on = W.clone()
    for _ in range(2000):
        on = on + rate * flow.velocity(on)
    moved = abs(float(nf.curvature.minimiser_spectrum(flow, on)[0]) - float(found.final_sharpness[0]))
    assert moved == pytest.approx(float(found.left[0]), rel=0.2)


def test_curves_are_those_of_the_library_and_distances_those_of_the_weights():
    inputs, _ = SMALL["edge"]()
    found = dataset("edge")
    flow, rate = nf.ContinuousFlow(inputs["solver"].grid, inputs["problem"].loss), float(found.rate)
    W = flow.sample(inputs["initial"])
    steps = round(float(found.time[-1]) / rate)
    assert float(found.time[-1]) == pytest.approx(steps * rate, rel=1e-13)
    descent = nf.descend(flow, W, steps, "gd", rate).state
    network = found.sel(depth=0).isel(time=-1)
    assert float(network.sharpness_descent) == pytest.approx(float(nf.curvature.sharpness(flow, descent).value))
    gradient = nf.integrate(flow, W, [0.0, (steps + 0.5) * rate], "DOP853", rtol=1e-10, atol=1e-12).state
    mean = descent + rate / 2 * flow.velocity(descent)
    apart = flow.grid.integrate((gradient - mean) ** 2).sum().sqrt()
    assert float(network.apart_flow) == pytest.approx(float(apart), rel=1e-6)
    z = torch.linalg.matrix_norm(flow.product(gradient) - flow.product(mean))
    assert float(network.apart_z_flow) == pytest.approx(float(z), rel=1e-4, abs=1e-8)
    assert float(network.apart_central) < 0.5 * float(network.apart_flow)
    late = len(found.time) // 2
    assert (found.sharpness_central.values[late:] < 1.01 * float(found.edge)).all()
    assert (found.sharpness_flow.values[late:] > 1.05 * float(found.edge)).all()


def test_hessians_made_at_once_are_those_of_the_flow():
    inputs, _ = SMALL["edge"]()
    flow = nf.ContinuousFlow(inputs["solver"].grid, inputs["problem"].loss)
    W = flow.sample(inputs["initial"])
    fast = settling.gathered(flow, W)
    assert type(fast) is settling.Gathered
    assert settling.gathered(fast, W) is fast
    direction = torch.randn(W.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(fast.linearised(W)(direction), flow.linearised(W)(direction), rtol=0, atol=1e-12)
    network = nf.FiniteFlow(4, flow.loss)
    assert settling.gathered(network, torch.zeros(4, 2, 2)) is network


@pytest.mark.parametrize("power", [1, 3])
def test_errors_of_another_order_than_that_of_the_layers_fail(power):
    found = dataset("edge")
    L = found.depth.values[:-1].astype(float)
    wrong = np.append(float(found.error[0]) * (L[0] / L) ** power, 0.0)
    assert failing(again(error=("depth", wrong))) == [ORDERS]


def test_every_check_can_fail():
    found = dataset("edge")
    assert failing(again()) == []
    assert failing(again(case_ratio=("case", found.case_ratio.values + 0.9))) == [RATIO]
    assert failing(again(case_ratio=("case", found.case_ratio.values * np.nan))) == [RATIO]
    beyond = ("depth", found.final_sharpness.values + 0.5)
    assert failing(again(final_sharpness=beyond)) == ["final sharpness over 2/η"]
    assert failing(again(routes=1e-3)) == ["final sharpness − that by Lanczos' method"]
    assert failing(again(times_off=1e-3)) == [TIMES]
    assert failing(again(case_times_off=("case", [np.nan]))) == [TIMES]
    assert failing(again(means_off=1e-3)) == [MEANS]
    # Errors that the grid, or training that is not at its end, may have made decide nothing.
    assert failing(again(error_grid=1e-3)) == [ORDERS]
    assert failing(again(left=("depth", [1e-3, *found.left.values[1:]]))) == [ORDERS]


@pytest.mark.parametrize(
    ("where", "name", "fault", "sees"),
    [
        (edge, "_times", lambda right, plan, rate: 1.01 * right(plan, rate), TIMES),
        *slow((settling, "halves", lambda right, times, rate: right(times, 1.01 * rate), TIMES)),
        (settling, "means", lambda right, flow, W, rate: right(flow, W, 1.01 * rate), MEANS),
    ],
    ids=["times", "halves", "means"],
)
def test_what_is_compared_one_percent_beside_its_time_is_seen(monkeypatch, where, name, fault, sees):
    """The central flow is nearer to gradient descent than gradient flow all the same."""
    right = getattr(where, name)
    monkeypatch.setattr(where, name, lambda *given: fault(right, *given))
    assert failing(run(depths=[2, 4, 8])) in ([sees], [ORDERS, sees])


@pytest.mark.parametrize("fault", ["the flow", pytest.param("half the rate", marks=pytest.mark.slow)])
def test_another_flow_in_the_place_of_the_central_one_fails(monkeypatch, fault):
    dataset("edge")  # is made, and kept, without the fault
    flow = {"the flow": lambda flow, rate: flow, "half the rate": lambda flow, rate: nf.CentralFlow(flow, rate / 2)}
    monkeypatch.setattr(settling, "CentralFlow", flow[fault])
    inputs, settings = SMALL["edge"]()
    model = plan().flow(0)
    starts = [model.sample(inputs["initial"])]
    found = settling.case(inputs["clock"], model, starts, settings["between"], settings["settled"], 10_000, "case")
    ratio = found["central"] / found["flow"]
    assert ratio > edge._NEARER
    assert RATIO in failing(again(case_ratio=("case", [ratio])))


def test_starts_that_show_no_edge_are_named():
    inputs, _ = SMALL["edge"]()
    z0 = inputs["problem"].z0
    balanced = nf.INITIALS["relaxed_balanced"](z0)
    with pytest.raises(ValueError, match=r"initial: .* no edge lies between them; take a start that is not relaxed"):
        run(initial=balanced)
    with pytest.raises(ValueError, match=r"ends at sharpness .*, below the .* at its start: nothing rises"):
        run(initial=nf.INITIALS["smooth"](z0, scale=2.0))
    with pytest.raises(ValueError, match=r"above 2/η = .*: it is beyond the edge .*raise study.between, 0.01"):
        run(between=0.01, initial=nf.INITIALS["detour"](z0, detour=1.0))


def test_training_that_does_not_settle_is_named(monkeypatch):
    dataset("edge")
    monkeypatch.setattr(settling, "_FAR", 100.0)
    with pytest.raises(
        RuntimeError, match=r"did not settle: after 30 steps .* raise study.steps, 30, or study.between"
    ):
        run(steps=30)
    with pytest.raises(RuntimeError, match=r"gradient flow did not come to an end: at t = .* det z > 0"):
        run(problem=nf.PROBLEMS["reflection"](dimension=2))
    inputs, settings = SMALL["edge"]()
    flow, rate = plan().flow(0), 2 / 30.0
    far = settling.settle(inputs["clock"], flow, flow.sample(inputs["initial"]), rate, 1e-3, 10_000, "far")
    assert far.sharpness == pytest.approx(float(dataset("edge").end_sharpness), rel=0.02)  # below the edge: the flow's
    with pytest.raises(settling.NotSettled, match="raise study.steps, 200"):  # a rate above 2/least
        settling.settle(inputs["clock"], flow, flow.sample(inputs["initial"]), 2 / 4.0, 1e-3, 200, "beyond")


def test_drawn_starts_that_show_nothing_are_drawn_again_and_counted(monkeypatch):
    dataset("edge")
    monkeypatch.setattr(settling, "CentralFlow", lambda flow, rate: flow)  # which takes less time, and is not looked at
    inputs, settings = SMALL["edge"]()
    flow, z0 = plan().flow(0), inputs["problem"].z0
    balanced = flow.sample(nf.INITIALS["relaxed_balanced"](z0))
    options = (settings["between"], settings["settled"], 10_000, "drawn")
    found = settling.case(inputs["clock"], flow, [balanced, balanced, flow.sample(inputs["initial"])], *options)
    assert found["drawn"] == 2
    assert found["end"] == pytest.approx(float(dataset("edge").end_sharpness), rel=1e-9)
    with pytest.raises(settling.NotSettled, match=r"none of 1 drawn starts shows an edge.*no edge lies between"):
        settling.case(inputs["clock"], flow, [balanced], *options)
    assert "5 more were drawn" in Finding.of(again(case_drawn=("case", [5]))).verdict


def test_few_depths_and_several_members_are_named():
    with pytest.raises(ValueError, match=r"study.depths must be three or more, .* got \[8, 16\]"):
        run(depths=[8, 16])
    with pytest.raises(ValueError, match="initial has several members"):
        run(initial=nf.balanced(torch.stack((torch.eye(2), 2 * torch.eye(2)))))


def test_the_figure_is_drawn_from_a_file_of_its_dataset(tmp_path):
    results.write(tmp_path / "results.nc", dataset("edge"))
    kept = nf.open(tmp_path)
    assert json.dumps(STUDY.summarise(kept)) == json.dumps(STUDY.summarise(dataset("edge")))
    (figure,) = FIGURES["edge"](kept).values()
    assert all(path.stat().st_size > 1000 for path in save(figure, tmp_path / "edge"))
    drawn = next(line for line in figure.axes[0].lines if line.get_label() == "central flow")
    np.testing.assert_array_equal(drawn.get_ydata(), kept.sharpness_central.values)


@pytest.mark.slow
def test_two_workers_find_what_one_does():
    found = dataset("edge")
    side = run(workers=2)
    for name in ("final_sharpness", "case_ratio", "sharpness_central", "apart_flow"):
        np.testing.assert_allclose(side[name].values, found[name].values, rtol=1e-12)


@pytest.mark.slow
def test_the_error_in_time_is_measured_where_outputs_are_as_near_as_steps():
    """Steps end at outputs: twice as long would be the same steps."""
    inputs, settings = SMALL["edge"]()
    clock = inputs["clock"]
    times = torch.linspace(0.0, float(clock.times[-1]) / 2, 2 * len(clock.times))
    near = replace(clock, times=times)
    found = STUDY.run(**(inputs | {"clock": near}), **settings)
    assert settling.between_records(near, float(found.rate)) == 1
    assert float(found.error_central) > 1e-9
