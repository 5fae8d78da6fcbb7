"""Gradient descent beside gradient flow and the modified flow: orders 1 and 2, their constants, and what fails."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import distance, relaxed_profile, slow
from small import SMALL, clock, dataset
from test_examples import run as run_examples

import neuralode_flow as nf
from neuralode_flow import results
from neuralode_flow.figures import FIGURES, save
from neuralode_flow.finding import Finding
from neuralode_flow.studies import STUDIES, learning_rate
from neuralode_flow.studies.base import Clock

STUDY = STUDIES["learning_rate"]


def checks(found):
    return {check.name: check for check in Finding.of(found).checks}


def failing(found):
    return [name for name, check in checks(found).items() if not check.holds]


def again(changes):
    """The finding of the small dataset with other numbers in it."""
    title = dataset("learning_rate").attrs["problem"]
    changed = dataset("learning_rate").assign(changes)
    return learning_rate._finding(changed, title, "euler", True).attached(changed)


def run(problem, initial="relaxed_balanced", **changes):
    """The study on a random teacher, in little time."""
    settings = {"depths": [4], "steps": [4, 8, 16], "workers": 1} | changes
    solver = nf.Collocation(nf.DepthGrid.gauss(2, 10))
    return STUDY.run(problem, nf.INITIALS[initial](problem.z0), solver, clock(1.0, 5), **settings)


def test_gradient_descent_is_of_order_one_to_the_flow_and_two_to_the_modified_flow():
    found = dataset("learning_rate")
    assert found.order_flow.values == pytest.approx([1, 1, 1], abs=0.05)
    assert found.order_modified.values == pytest.approx([2, 2, 2], abs=0.05)
    assert Finding.of(found).passed
    assert float(found.error_time.max()) < 1e-9
    errors = found.error_modified.values / found.error_flow.values
    assert (errors[:, -1] < 0.25 * errors[:, 0] * 1.1).all()
    assert found.depth.values.tolist() == [4, 16, 0]


def test_the_constants_are_those_of_the_errors_and_tend_to_infinite_depth():
    found = dataset("learning_rate")
    rate = float(found.rate[-1])
    assert found.rate.values.tolist() == [0.0625, 0.03125, 0.015625]
    for power, name in enumerate(("flow", "modified"), start=1):
        expected = found[f"gap_{name}"].max("time").isel(rate=-1).values / rate**power
        np.testing.assert_allclose(found[f"constant_{name}"].values, expected, rtol=1e-13)
        first, second = np.abs(expected[:-1] - expected[-1])
        assert 3 < first / second < 5  # L = 4 and 16, at order 1


def test_distances_are_those_of_trajectories_made_by_hand():
    inputs, _ = SMALL["learning_rate"]()
    problem, times = inputs["problem"], inputs["clock"].times
    accuracy = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-13}
    flow = nf.FiniteFlow(16, problem.loss)
    W = flow.sample(inputs["initial"])
    descent = nf.descend(flow, W, steps=32, rate=0.03125, record=8)
    assert descent.times.tolist() == times.tolist()
    found = dataset("learning_rate").sel(depth=16, rate=0.03125)
    for name, other in (("flow", flow), ("modified", nf.ModifiedFlow(flow, 0.03125))):
        z = nf.integrate(other, W, times, **accuracy).z
        expected = torch.linalg.matrix_norm(descent.z - z).numpy()
        np.testing.assert_allclose(found[f"gap_{name}"].values, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("factor", [-1.0, *slow(0.0, 0.5, 2.0)])
def test_a_wrong_sign_or_factor_of_the_modified_term_fails(monkeypatch, factor):
    class Wrong(nf.ModifiedFlow):
        def velocity(self, state):
            v = self.flow.velocity(state)
            return v + factor * (super().velocity(state) - v)

    monkeypatch.setattr(learning_rate, "ModifiedFlow", Wrong)
    found = run(nf.PROBLEMS["teacher"](dimension=2))
    assert "the order of |GD − modified flow| from 2" in failing(found)
    assert found.order_flow.values == pytest.approx([1, 1], abs=0.1)
    assert not Finding.of(found).passed


@pytest.mark.parametrize("z", [2, 3])
@pytest.mark.parametrize("rate", [0.0, 0.7])
def test_the_flow_closed_on_z_is_how_the_modified_flow_moves_z_on_relaxed_balance(z, rate):
    z0, profile = relaxed_profile(z, seed=1)
    loss = nf.Quadratic(torch.diag(torch.arange(1.0, z + 1)) + 0.3 * torch.ones(z, z).triu(1))
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 12), loss)
    W = flow.sample(profile)
    moved = nf.ModifiedFlow(flow, rate).velocity(W) if rate else flow.velocity(W)
    step = 1e-4
    pushed = (8 * (flow.product(W + step * moved) - flow.product(W - step * moved))
              - (flow.product(W + 2 * step * moved) - flow.product(W - 2 * step * moved))) / (12 * step)  # fmt: skip
    closed = learning_rate.closed_on_z(loss, rate).velocity(z0)
    assert distance(closed, pushed) < 1e-8 * float(pushed.norm())
    if rate:
        assert distance(closed, nf.IntrinsicFlow(loss, nf.LogMean()).velocity(z0)) > 0.05 * float(pushed.norm())


def test_the_flow_closed_on_z_holds_where_singular_values_meet_and_without_a_hessian():
    target = torch.tensor([[1.5, 0.4], [-0.2, 0.7]])
    plain = nf.Quadratic(target)

    class Bare:
        dimension = None

        def __call__(self, z):
            return plain(z)

        def gradient(self, z):
            return plain.gradient(z)

    at = [learning_rate.closed_on_z(plain, 0.5).velocity(torch.diag(torch.tensor([1.0, 1.0 + e]))) for e in (0, 1e-7)]
    assert distance(*at) < 1e-5
    z = relaxed_profile(2, seed=3)[0]
    with_own, without = (learning_rate.closed_on_z(loss, 0.5).velocity(z) for loss in (plain, Bare()))
    assert distance(with_own, without) < 1e-12


def test_every_check_can_fail():
    found = dataset("learning_rate")
    rates, errors = found.rate.values, found.error_flow.values
    slow = ("depth", "rate"), np.stack((errors[0], errors[1] * rates**-0.3, errors[2]))
    assert failing(again({"error_flow": slow})) == ["the order of |GD − flow| from 1"]
    control = "the order of |modified flow − closed on z|, a control"
    assert failing(again({"error_closed": ("rate", rates**2)})) == [control]
    assert failing(again({"error_closed": ("rate", rates * np.nan)})) == [control]
    apart = ("depth", found.constant_modified.values * np.array([1.0, 0.7, 1.0]))
    tend = "the order at which both constants tend to those of infinite depth"
    assert failing(again({"constant_modified": apart})) == [tend]
    assert failing(again({})) == []


def test_a_floor_that_is_too_high_leaves_the_orders_undecided():
    found = again({"error_time": ("depth", np.full(3, 1e-4))})
    assert "the order of |GD − modified flow| from 2" in failing(found)
    said = next(order for order in Finding.of(found).orders if "modified" in order.rule)
    assert "above 30 times the floor" in said.reason


def test_a_start_that_is_not_relaxed_balanced_has_no_flow_of_z_beside_it():
    found = run(nf.PROBLEMS["teacher"](dimension=2), "control")
    assert bool(found.gap_closed.isnull().all())
    assert not any("closed" in name for name in checks(found))
    assert found.order_modified.values == pytest.approx([2, 2], abs=0.1)
    assert Finding.of(found).passed


def test_members_of_a_start_and_other_layers_are_taken():
    z0 = torch.stack((torch.eye(2), 1.3 * torch.eye(2)))
    problem = nf.PROBLEMS["teacher"](dimension=2)
    found = STUDY.run(
        problem, nf.balanced(z0), nf.Collocation(nf.DepthGrid.gauss(1, 8)), clock(0.5, 3), depths=[2, 4], layer="exp",
        steps=[4, 8, 16], workers=1,
    )  # fmt: skip
    assert found.order_modified.values == pytest.approx([2, 2, 2], abs=0.1)
    assert json.loads(json.dumps(STUDY.summarise(found)))["layer"] == "exp"


def test_times_that_steps_do_not_come_to_and_rates_at_which_training_diverges_are_named():
    inputs, settings = SMALL["learning_rate"]()
    uneven = Clock(times=torch.tensor([0.0, 0.25, 0.6]), method="DOP853", rtol=1e-8, atol=1e-10)
    with pytest.raises(ValueError, match="not evenly spaced"):
        STUDY.run(**inputs | {"clock": uneven}, **settings)
    far = Clock(times=torch.tensor([0.0, 40.0, 80.0, 120.0]), method="DOP853", rtol=1e-6, atol=1e-8)
    with pytest.raises(RuntimeError, match=r"descent of infinite depth with η = 40 \(study.steps = 1\).*diverged"):
        STUDY.run(**inputs | {"clock": far}, depths=[4], steps=[1], workers=1)


def test_the_figure_is_drawn_from_a_file_of_its_dataset(tmp_path):
    results.write(tmp_path / "results.nc", dataset("learning_rate"))
    kept = nf.open(tmp_path)
    assert json.dumps(STUDY.summarise(kept)) == json.dumps(STUDY.summarise(dataset("learning_rate")))
    (figure,) = FIGURES["learning_rate"](kept).values()
    assert all(path.stat().st_size > 1000 for path in save(figure, tmp_path / "rates"))
    left = figure.axes[0]
    drawn = next(line for line in left.lines if line.get_label() == r"|GD $-$ flow|")
    np.testing.assert_array_equal(drawn.get_ydata(), kept.error_flow.values[-1])


def test_the_examples_of_the_page_on_steps_hold():
    page = Path(__file__).parents[2] / "docs" / "steps.md"
    assert run_examples(page.read_text(encoding="utf-8"), "steps") >= 7
