"""Studies in steps: the numbers are those of `descend`, their round-off is measured, and z₀ decides what it should."""

import fcntl
import os
import struct
import sys
import termios

import numpy as np
import pytest
import torch
from small import network

import neuralode_flow as nf
from neuralode_flow.depth import DepthSolver
from neuralode_flow.depth.grid import Profile
from neuralode_flow.finding import Finding
from neuralode_flow.problems import Problem
from neuralode_flow.studies import STUDIES
from neuralode_flow.studies.base import AnyClock, Clock, Steps, Study
from neuralode_flow.time.steprule import STEP_RULES

LIMIT = 1e-12


def inputs(rule="gd", rate=0.05, horizon=2.0, samples=5, initial="relaxed_balanced", dimension=3, **more):
    """Those of a study of a teacher in steps; more are fields of `Steps` and options of the rule."""
    fields = {name: more.pop(name) for name in ("max_evaluations", "max_seconds", "checkpoints") if name in more}
    clock = Steps(times=torch.linspace(0, horizon, samples), rule=rule, rate=rate, settings=more, **fields)
    return network(dimension, initial) | {"clock": clock}


def trajectory(model="continuous", **made):
    dataset = STUDIES["trajectory"].run(**inputs(**made), model=model, network_depth=8)
    return dataset, Finding.of(dataset)


@pytest.mark.parametrize("model", ["continuous", "finite"])
def test_gd_is_eulers_method(model):
    steps, _ = trajectory(model)
    along = inputs() | {"clock": Clock(times=torch.linspace(0, 2, 5), method="euler", rtol=1e-8, atol=1e-8, step=0.05)}
    euler = STUDIES["trajectory"].run(**along, model=model, network_depth=8, adapt=False)
    assert np.abs(steps.z.values - euler.z.values).max() < 1e-14
    assert float(abs(steps.z[-1] - steps.z[0]).max()) > 0.1


def test_the_numbers_are_those_of_descend():
    given = inputs("heavy_ball", momentum=0.5)
    dataset, finding = trajectory(rule="heavy_ball", momentum=0.5)
    flow = nf.ContinuousFlow(given["solver"].grid, given["problem"].loss, given["solver"])
    path = nf.descend(flow, given["initial"], 40, "heavy_ball", 0.05, record=10, momentum=0.5)
    assert np.array_equal(dataset.z.values, path.z.numpy())
    assert np.array_equal(dataset.time.values, path.times.numpy())
    assert dataset.attrs["options"] == "momentum = 0.5"
    numbers = finding.record()
    assert {name: numbers[name] for name in ("method", "rate", "record", "steps", "evaluations")} == {
        "method": "heavy_ball", "rate": 0.05, "record": 10, "steps": 40, "evaluations": 40,
    }  # fmt: skip
    assert "rtol" not in numbers


def test_z0_decides_the_steps_of_rules_that_turn_and_of_no_others():
    for rule in ("gd", "nesterov", "muon"):
        dataset, finding = trajectory(rule=rule)
        assert float(dataset.distance_from_limit.max()) < LIMIT
        assert "of infinite depth in the same steps" in finding.verdict
    assert float(trajectory(initial="control")[0].distance_from_limit.max()) > 1e-3  # not relaxed balanced
    adam, finding = trajectory(rule="adam")
    assert np.isnan(adam.distance_from_limit).all()
    assert "nothing that z₀ alone decides is beside them" in finding.verdict
    assert finding.passed


def test_steps_of_the_closed_flow_are_not_those_of_the_weights():
    """They miss them by the order of the rate, and the verdict says what they are."""
    far = [float(trajectory("intrinsic", rate=rate)[0].distance_from_limit.max()) for rate in (0.05, 0.025)]
    assert 1.8 < far[0] / far[1] < 2.2
    assert far[0] > 1e-3
    assert "of z along its closed flow, which are not the steps that W takes" in trajectory("intrinsic")[1].verdict


def test_a_network_is_near_infinite_depth_in_the_same_steps():
    gaps = []
    for L in (8, 16):
        dataset = STUDIES["trajectory"].run(**inputs(), model="finite", network_depth=L, rule="exp")
        gaps.append(float(dataset.distance_from_limit.max()))
    assert 3.5 < gaps[0] / gaps[1] < 4.5


def test_one_rounding_of_the_start_is_measured():
    """It stays one at a rate at which gradient descent settles, and grows at one at which it is chaotic."""
    quiet, _ = trajectory("finite")
    assert 0 < float(quiet.time_error.max()) < 1e-14
    loud, finding = trajectory("finite", rate=1.0, horizon=40.0)
    assert float(loud.time_error.max()) > 1e-9
    assert finding.record()["time_error"] == float(loud.time_error.max())
    assert "one rounding of the start grows to" in finding.verdict
    off = STUDIES["trajectory"].run(**inputs(), estimate=False)
    assert "time_error" not in off


def test_a_rounding_of_weights_that_are_zero_is_that_of_the_identity():
    settings = {
        "problem": "linnerud",
        "time": "descent",
        "time.rule": "normalised",
        "time.rate": 0.1,
        "time.samples": 5,
    }
    zero, other = (
        nf.run("trajectory", settings | {"time.horizon": 20, "initial": initial}).dataset.time_error.max()
        for initial in ("identity", "relaxed_balanced")
    )
    assert other / 30 < zero < 30 * other


def test_the_law_is_that_of_the_steps_where_it_is_known():
    for rule in ("gd", "heavy_ball", "weight_decay"):
        known = Finding.of(trajectory("finite", rule=rule)[0]).checks[-1]
        assert known.norm == "0 in exact arithmetic"
        assert known.error < 1e-12
    other = Finding.of(trajectory("finite", rule="nesterov")[0]).checks[-1]
    assert other.name.startswith("change of what gradient flow conserves")
    assert other.error > 1e-3
    assert "exact" not in other.norm


def test_divergence_is_a_status_with_its_step():
    dataset, finding = trajectory("finite", rate=40.0, horizon=8000.0)
    assert dataset.attrs["ending"] == "diverged"
    assert "the training diverged at step " in finding.status
    assert "of 200" in finding.status
    assert np.isfinite(dataset.z.values).all()
    with pytest.raises(RuntimeError, match="the continuous model could not be computed: "):
        STUDIES["convergence"].run(**inputs(rate=40.0, horizon=8000.0), depths=[4])


def test_a_budget_of_gradients_ends_it_and_it_goes_on(tmp_path):
    first, finding = trajectory(max_evaluations=7, checkpoints=tmp_path)
    assert finding.status == "the budget of 7 gradients was used up, at step 8 of 40"
    assert first.attrs["ending"] == "evaluations"
    whole, again = trajectory()[0], trajectory(max_evaluations=40, checkpoints=tmp_path)[0]
    assert again.attrs["ending"] == "ok"
    for name in ("z", "z_limit", "drift", "time_error"):
        assert np.array_equal(again[name].values, whole[name].values)


def test_a_measurement_that_ran_out_of_time_is_said_and_made_up_for(tmp_path):
    whole, _ = trajectory("finite", checkpoints=tmp_path)
    (tmp_path / "finite-rounding.npz").unlink()
    short, finding = trajectory("finite", checkpoints=tmp_path, max_seconds=1e-9)
    assert np.array_equal(short.z.values, whole.z.values)
    assert short.attrs["ending"] == "seconds"
    assert finding.status.startswith("the effect of round-off is known up to t = 0 only: the budget of wall time")
    assert np.isnan(short.time_error.values[1:]).all()
    again, finding = trajectory("finite", checkpoints=tmp_path)
    assert finding.status == "ok"
    assert np.array_equal(again.time_error.values, whole.time_error.values)
    with pytest.raises(ValueError, match="max_evaluations must be at least 1, got 0"):
        nf.descend(nf.FiniteFlow(2, nf.Quadratic(torch.eye(2))), torch.zeros(2, 2, 2), 5, max_evaluations=0)


def test_networks_tend_to_infinite_depth_in_steps_at_the_orders_of_the_flow():
    made = inputs("heavy_ball", momentum=0.5)
    dataset = STUDIES["convergence"].run(**made, depths=[8, 16, 32, 64], layers=["euler", "exp"])
    finding = Finding.of(dataset)
    assert finding.status == "ok"
    assert finding.passed
    assert [round(order.value, 1) for order in finding.orders] == [1.0, 2.0]
    assert float(dataset.error_reference) < LIMIT
    assert float(dataset.error_finite_square.max()) < LIMIT
    assert 0 < float(dataset.error_time) < 1e-13
    assert "balanced start with the same z₀ in the same steps" in finding.verdict
    assert 3 < float(dataset.error_richardson[1] / dataset.error_richardson[2]) < 5


def test_the_square_does_not_close_where_the_rule_sees_coordinates():
    dataset = STUDIES["convergence"].run(**inputs("adam"), depths=[16, 32, 64], layers=["exp"])
    finding = Finding.of(dataset)
    assert float(dataset.error_reference) > 1e-2
    assert finding.status == "ok"
    assert "adam does not turn with the gradient" in finding.verdict
    assert [check.bound for check in finding.checks][:3] == [None] * 3
    control = STUDIES["convergence"].run(**inputs(initial="control"), depths=[4], layers=["exp"])
    assert float(control.error_reference) > 1e-3
    assert not Finding.of(control).passed
    assert "z₀ alone does not describe it" in Finding.of(control).verdict


@pytest.mark.slow
def test_starts_with_one_z0_fall_together_in_steps():
    made = {key: value for key, value in inputs("nesterov", dimension=2).items() if key != "initial"}
    dataset = STUDIES["initialisations"].run(**made, draws=2, depths=[2])
    finding = Finding.of(dataset)
    assert finding.passed
    assert float(dataset.distance_closed.max()) < LIMIT
    assert "each on what another start with its z₀ and λ does" in finding.verdict
    made["clock"] = inputs("sign", dimension=2)["clock"]
    sign = Finding.of(STUDIES["initialisations"].run(**made, draws=2, depths=[2]))
    assert "sign does not turn with the gradient, and z₀ decides nothing" in sign.verdict


def test_a_study_says_by_its_annotation_what_it_takes():
    def follows(problem: Problem, initial: Profile, solver: DepthSolver, clock: Clock): ...

    def moves(problem: Problem, initial: Profile, solver: DepthSolver, clock: AnyClock): ...

    assert (Study(follows).takes_steps, Study(moves).takes_steps) == (False, True)
    assert Study(follows).inputs == Study(moves).inputs
    assert {name for name, study in STUDIES.items() if study.takes_steps} >= {"trajectory", "convergence"}
    assert not STUDIES["closure"].takes_steps
    assert all(STUDIES[name].steps for name in ("learning_rate", "momentum", "universality", "depth_heatmap"))


@pytest.mark.parametrize("rule", [name for name in STEP_RULES if name not in ("sgd", "label_noise")])
def test_every_rule_trains_and_repeats_itself(rule):
    first, second = (trajectory("finite", rule=rule, rate=0.01, horizon=0.2, samples=3)[0] for _ in range(2))
    assert first.attrs["ending"] == "ok"
    assert np.array_equal(first.z.values, second.z.values)
    assert float(abs(first.z[-1] - first.z[0]).max()) > 1e-5


def test_progress_is_a_line_on_a_terminal_and_nothing_elsewhere(monkeypatch, capfd):
    flow, start = nf.FiniteFlow(4, nf.Quadratic(2 * torch.eye(2))), torch.zeros(4, 2, 2)
    lead, follow = os.openpty()
    fcntl.ioctl(follow, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    with monkeypatch.context() as there, os.fdopen(follow, "w") as terminal:
        there.setattr(sys, "stderr", terminal)
        nf.descend(flow, start, 200, progress=True)
        terminal.flush()
        shown = os.read(lead, 1 << 16).decode()
    os.close(lead)
    assert "t = 2, loss " in shown
    assert "200 evaluations" in shown
    assert "100%" in shown
    assert shown.count("\r") > 1  # the line is written over
    assert shown.rstrip("\r").rpartition("\n")[2].replace("\x1b[?25h", "").strip("\r") in ("", "\x1b[1A\x1b[2K")
    assert shown.count("\n") == 1
    nf.descend(flow, start, 200, progress=True)
    assert capfd.readouterr() == ("", "")
