"""The study of momentum: what it finds, and that each of its checks fails where what it is about is wrong."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import SMALL, dataset

import neuralode_flow as nf
from neuralode_flow.figures import FIGURES, save
from neuralode_flow.finding import Finding
from neuralode_flow.flows.momentum import MomentumFlow
from neuralode_flow.studies import STUDIES, heavyball, momentum
from neuralode_flow.time.rules.gd import GradientDescent
from neuralode_flow.time.rules.heavy_ball import HeavyBall
from neuralode_flow.time.steprule import STEP_RULES

# The checks by what they are about.
FLOW, DRIVE, SKEW, LAW, EULER, GD, MOVES, TURNS, NESTEROV, ORDERS, APART = range(11)


def failing(finding):
    return {i for i, check in enumerate(finding.checks) if not check.holds}


def found(**changes):
    """The small study, with other settings; what is planted is seen by none but it."""
    inputs, options = SMALL["momentum"]()
    return Finding.of(STUDIES["momentum"].run(**inputs, **(options | changes)))


def test_every_check_holds_with_room_to_spare():
    finding = Finding.of(dataset("momentum"))
    assert finding.passed
    assert [check.error < check.bound / 10 for check in finding.checks[:6]] == [True] * 6
    assert [check.error > 10 * check.bound for check in finding.checks[6:9]] == [True] * 3
    assert finding.checks[EULER].error < 1e-14
    assert len(finding.orders) == 12
    assert finding.numbers["reference_error"] < 1e-12


def test_the_dataset_says_what_momentum_does():
    data = dataset("momentum")
    fading = data.flow_skew.sel(start="moving") / data.flow_skew.sel(start="moving").isel(time=0)
    np.testing.assert_allclose(fading, np.broadcast_to(np.exp(-data.time), fading.shape), rtol=1e-8)
    assert float(data.flow_skew.sel(start="at rest").max()) < 1e-11
    ball = data.skew_size.sel(rule="heavy_ball", start="moving")
    np.testing.assert_allclose(ball.isel(step=20) / ball.isel(step=0), 0.9**20, rtol=1e-8)
    assert bool(data.skew_error.sel(rule="gd").isnull().all())
    assert bool(data.law_error.sel(rule="gd", start="moving").isnull().all())
    assert float((data.loss.isel(time=-1) - data.loss.isel(time=0)).sel(start="at rest").max()) < 0


def test_the_figure_is_drawn_from_the_dataset_alone(tmp_path):
    figures = FIGURES["momentum"](dataset("momentum"))
    assert set(figures) == {"laws"}
    assert all(path.stat().st_size > 1000 for path in save(figures["laws"], tmp_path / "laws"))


class Heavier(HeavyBall):
    """A momentum that is 1 % less than what is said of it."""

    def __init__(self, ground, rate, *, momentum=0.9):
        super().__init__(ground, rate, momentum=0.99 * momentum)


def test_a_momentum_that_is_wrong_by_one_percent_shows(monkeypatch):
    monkeypatch.setattr(heavyball, "STEP_RULES", dict(STEP_RULES.items()) | {"heavy_ball": Heavier})
    assert failing(found()) >= {SKEW, LAW, EULER, ORDERS}


@pytest.mark.parametrize(("kind", "wrong"), [(nf.ContinuousFlow, {DRIVE, LAW}), (nf.FiniteFlow, {DRIVE, LAW, EULER})])
def test_a_symmetric_part_that_is_dropped_shows(monkeypatch, kind, wrong):
    whole = kind.momentum_law
    monkeypatch.setattr(kind, "momentum_law", lambda *arguments: heavyball.skew(whole(*arguments)))
    assert failing(found()) >= wrong


def test_friction_that_is_wrong_by_one_percent_shows(monkeypatch):
    def velocity(self, state):
        W, V = self.position(state), self.momentum(state)
        return torch.stack((V, self.flow.velocity(W) - 1.01 * self.friction * V), dim=-1 - self.axes)

    monkeypatch.setattr(MomentumFlow, "velocity", velocity)
    assert failing(found()) == {FLOW, DRIVE, ORDERS, APART}


def test_a_control_that_is_heavy_ball_itself_shows(monkeypatch):
    monkeypatch.setattr(heavyball, "STEP_RULES", dict(STEP_RULES.items()) | {"nesterov": HeavyBall})
    assert failing(found()) == {NESTEROV}


def test_descent_that_is_not_along_the_gradient_shows(monkeypatch):
    step = GradientDescent.step
    monkeypatch.setattr(GradientDescent, "step", lambda self, n, state: step(self, n, state) - 1e-6 * state)
    assert failing(found()) == {GD}


KNOWN = {}


def once(right, plan, flow, *given):
    """The distances of a plan, which are computed once for all that is put off in them."""
    key = plan.friction, plan.span, *plan.refinements, *(part.numpy().tobytes() for part in given)
    if key not in KNOWN:
        KNOWN[key] = right(plan, flow, *given)
    return copy.deepcopy(KNOWN[key])


@pytest.mark.parametrize("scheme", [0, 1, slice(None)])
@pytest.mark.parametrize("steps", [0, -1, slice(None)])
@pytest.mark.parametrize("size", [0.99, 1.01])
def test_a_distance_from_the_flow_that_is_off_shows(monkeypatch, scheme, steps, size):
    """Of one scheme or both, at the largest or the smallest step or all: the orders hold to 0.1 only."""
    right = momentum._distances

    def off(*given):
        found = once(right, *given)
        found["distance"][scheme, :, steps] *= size
        return found

    monkeypatch.setattr(momentum, "_distances", off)
    assert failing(found(refinements=[1, 2, 4, 8, 16])) == {APART}


FEW = pytest.mark.parametrize(
    ("friction", "refinements"), [(0.4, [2, 3, 4]), (0.4, [2, 4, 6]), (0.2, [1, 2, 3, 4]), (0.2, [1, 2, 4, 6])]
)


def large_steps(friction, refinements):
    inputs, options = SMALL["momentum"]()
    clock = replace(inputs["clock"], times=torch.linspace(0, 2.0, 5, dtype=torch.float64))
    changes = {"depths": [2], "friction": friction, "refinements": refinements}
    return Finding.of(STUDIES["momentum"].run(**inputs | {"clock": clock}, **(options | changes)))


@FEW
def test_a_limit_that_few_and_large_steps_do_not_tell_is_no_fault(friction, refinements):
    assert not failing(large_steps(friction, refinements))


@FEW
@pytest.mark.parametrize("size", [0.99, 1.01])
def test_a_distance_that_is_off_shows_by_a_limit_of_smaller_steps_where_few_are_large(
    monkeypatch, friction, refinements, size
):
    """Their own limit is known to 5 to 20 % of the least distance."""
    right = momentum._distances

    def off(*given):
        found = once(right, *given)
        found["distance"][0] *= size  # with β = 1 − αh
        return found

    monkeypatch.setattr(momentum, "_distances", off)
    assert failing(large_steps(friction, refinements)) == {APART}


def test_two_steps_have_no_limit_that_is_known():
    assert {ORDERS, APART} <= failing(found(refinements=[2, 4]))


def test_what_hardly_moves_is_told():
    assert TURNS in failing(found(speed=1e-6))
    assert failing(found(rate=1e-6)) >= {MOVES}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": [1, 4]}, "study.depths must be at least 2, where layers have neighbours, got 1"),
        ({"friction": 100.0}, "study.refinements must begin above friction times the output interval, 25"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        found(**options)
    with pytest.raises(ValueError, match="z of one number, and what momentum keeps is the skew part of matrices; take"):
        nf.run("momentum", {"problem": "teacher", "problem.dimension": 1, "time.samples": 5})


def test_runs_that_cannot_end_say_why():
    with pytest.raises(
        RuntimeError, match=r"(heavy_ball|nesterov) diverged at step \d+ of rate 50; choose a smaller study.rate"
    ):
        found(rate=50.0)
    inputs, options = SMALL["momentum"]()
    uneven = replace(inputs["clock"], times=torch.tensor([0.0, 1.0, 3.0]))
    with pytest.raises(ValueError, match="must be equally far apart"):
        STUDIES["momentum"].run(**inputs | {"clock": uneven}, **options)


@pytest.mark.slow
def test_the_command_leaves_a_run_that_passes(tmp_path):
    small = ["problem=teacher", "problem.dimension=2", "study.depths=[2]", "study.steps=30", "time.samples=6"]
    command = [sys.executable, "-m", "neuralode_flow", "experiment=momentum", *small, "figures=png", "-q"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    folder = tmp_path / Path(run.stdout.strip())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "ok"
    assert summary["error"] <= summary["bound"]
    assert (folder / "figures" / "laws.png").stat().st_size > 1000
    assert nf.open(folder).law_error.sel(rule="heavy_ball", model=2).max() < 1e-13
    refused = subprocess.run([*command, "study.momentum=1.5"], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "study.momentum must be below 1, got 1.5" in refused.stderr
