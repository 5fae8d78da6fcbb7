"""A run that a budget has ended goes on with another one, by the same command."""

import time

import numpy as np
import pytest

import neuralode_flow as nf

SMALL = {
    "closure": (["system=balanced_two_layer", "time.samples=9"], 60),
    "initialisations": (
        ["problem=teacher", "problem.dimension=2", "debug=quick", "study.depths=[2]", "study.draws=2"],
        100,
    ),
    "lazy_to_rich": (["time.samples=9", "study.width=3", "study.balances=[0.5]"], 100),
    "trajectory": (["problem=teacher", "problem.dimension=2", "time.samples=5"], 60),
    "trajectory, limit": (
        [
            "problem=teacher", "problem.dimension=2", "time.samples=5", "study.estimate=false", "study.model=finite",
            "study.network_depth=1",
        ],
        120,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SMALL)
def test_the_same_command_with_another_budget_goes_on(case, command):
    settings, budget = SMALL[case]
    line = [f"study={case.split(',')[0]}", *settings, "figures=none"]
    assert command(*line, "resume=r", f"time.max_evaluations={budget}").status == 1
    assert "budget" in nf.open("r").status
    assert command(*line, "resume=r").status == 0
    assert command(*line, "resume=whole").status == 0
    found, whole = nf.open("r"), nf.open("whole")
    assert found.status == "ok"
    column = "loss" if "loss" in whole else "z"
    np.testing.assert_allclose(found[column], whole[column], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "line",
    [
        ["study=trajectory", "time.samples=5", "members=3", "time.max_evaluations=60"],
        ["study=convergence", "time.samples=3", "study.depths=[2,4]", "members=3", "time.max_evaluations=60"],
    ],
    ids=["all ended early", "none could be computed"],
)
def test_members_that_a_budget_has_ended_go_on_with_another(line, command):
    line = [*line[:-1], "problem=teacher", "problem.dimension=2", "figures=none", "resume=r"], line[-1]
    first = command(*line[0], line[1])
    assert first.status == 1
    assert "the same command with resume=r goes on" in first.err
    assert command(*line[0]).status == 0
    found = nf.open("r")
    assert found.member_status.values.tolist() == ["ok"] * 3
    assert found.status == "ok"


def test_members_that_wall_time_has_cut_are_computed_by_the_same_command(command):
    """A part that was in work when the time was up had stayed as it was, beside others that ran whole."""
    line = [
        "problem=teacher", "problem.dimension=2", "study.depths=[2,4,8]", "members=8", "at_once=1", "study.workers=1",
        "figures=none",
    ]  # fmt: skip
    assert command(*line, "resume=warm").status in (0, 1)  # what the first run waits for
    began = time.monotonic()
    command(*line, "resume=whole")
    seconds = time.monotonic() - began
    ended = [command(*line, "resume=r", f"time.max_seconds={seconds / 2}")]
    while "goes on" in ended[-1].err and len(ended) < 40:
        ended.append(command(*line, "resume=r", f"time.max_seconds={seconds / 2}"))
    assert len(ended) > 1
    found, whole = nf.open("r"), nf.open("whole")
    assert found.member_status.values.tolist() == ["ok"] * 8
    for name in whole.data_vars:
        if whole[name].dtype.kind == "f" and not name.startswith("seconds"):
            np.testing.assert_array_equal(found[name], whole[name], name)
