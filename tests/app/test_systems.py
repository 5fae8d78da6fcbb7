"""Factorisations at the command line."""

import json

import pytest


def test_the_command_writes_the_check_its_error_and_its_bound(workplace, command):
    ended = command("experiment=single_neuron", "system.delta=-0.5", "time.horizon=1", "time.samples=4")
    assert ended.status == 0, ended.err
    (path,) = workplace.glob("runs/closure/*/summary.json")
    summary = json.loads(path.read_text())
    assert summary["passed"] is True
    assert summary["recoverable"] is True
    assert summary["laws"] == summary["expected_laws_generic"] == 1
    assert 0 <= summary["error"] <= summary["bound"] == 1e-8
    page = (path.parent / "report.html").read_text()
    assert "Criteria" in page
    assert "bound 1e-08" in page


def test_the_laws_of_random_networks_are_the_known_numbers(workplace, command):
    ended = command("experiment=t1_marcotte2023", "study.networks=5", "study.seed=3")
    assert ended.status == 0, ended.err
    (path,) = workplace.glob("runs/conservation_laws/*/summary.json")
    summary = json.loads(path.read_text())
    assert summary["linear_agree"] == summary["relu_agree"] == 5
    assert summary["undecided"] == 0
    assert "problem" not in (path.parent / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study=closure"], "system must be a group of fields, got None; choose one with system=NAME"),
        (["study=closure", "system=neuron"], "unknown system 'neuron'; did you mean 'single_neuron'?"),
        (["experiment=diagonal", "system.dimension=0"], "system.dimension must be at least 1, got 0"),
        (["experiment=diagonal", "system.size=3"], "unknown key system.size=3"),
        (["experiment=diagonal", "problem.seed=3"], "problem.seed=3 has no effect: study=closure uses no problem"),
        (["experiment=diagonal", "depth.panels=3"], "depth.panels=3 has no effect: study=closure uses no depth"),
        (["experiment=minimax", "time.horizon=1e-9"], "time.horizon=1e-9 has no effect: study=minimax uses no time"),
        (["experiment=minimax", "time.max_seconds=9"], "time.max_seconds=9 has no effect: study=minimax uses no time"),
        (["experiment=width", "problem=teacher"], "problem=teacher has no effect: study=width uses no problem"),
        (["experiment=t1_marcotte2023", "time.horizon=3"], "conservation_laws uses of time only time.max_seconds;"),
        (["study=depth_heatmap", "time.rtol=1"], "uses of time only time.max_evaluations, time.max_seconds;"),
        (["experiment=delta_rewrite", "time.samples=9"], "study=delta_rewrite uses of time only time.horizon"),
        (["study=trajectory", "time.step=0.1"], "time.step=0.1 is for methods of fixed steps, and time.method=DOP853"),
        (["-m", "study=trajectory", "time.method=rk4,BDF", "time.step=0.1"], "and time.method=BDF chooses its own;"),
        (["study=trajectory", "study.rule=exp"], "study.rule=exp has no effect with study.model=continuous;"),
        (["study=trajectory", "study.model=finite", "study.adapt=false"], "study.adapt=false has no effect with"),
        (["-m", "study=trajectory", "study.kernel=logmean,two_layer"], "study.kernel=logmean has no effect with"),
        (["study=trajectory", "study.model=intrinsic", "study.network_depth=8"], "has no effect with study.model=in"),
        (
            ["initial.twist=0", "initial.shift=0", "initial.seed=1"],
            "initial.seed=1 has no effect with initial.twist=0.0 and initial.shift=0.0; change that, or leave it out",
        ),
        (["-m", "experiment=diagonal", "problem=digits,teacher"], "problem=digits has no effect: study=closure"),
        (["-m", "experiment=diagonal", "problem=digits", "system.seed=0,1"], "problem=digits has no effect: study="),
        (["-m", "experiment=minimax,quick", "time.samples=3,4"], "time.samples=3 has no effect: study=minimax"),
        (["experiment=diagonal", "system.seed=-1"], "system.seed must be at least 0 and below 2**32, got -1"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(arguments, message, command, left_behind):
    ended = command(*arguments)
    assert ended.status == 2
    assert message in ended.err
    assert left_behind() == []


def test_a_group_of_the_defaults_that_a_study_does_not_use_is_left_out_of_its_config(workplace, command):
    ended = command("study=closure", "system=scalar_in_out", "time.rtol=1e-11", "time.atol=1e-13", "time.samples=3")
    assert ended.status == 0, ended.err
    (path,) = workplace.glob("runs/closure/*/config.yaml")
    assert "problem" not in path.read_text()
