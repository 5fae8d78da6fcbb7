"""A run that a budget has ended goes on with another one, by the same command."""

from pathlib import Path

import numpy as np
import pytest
from cases import slow

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
HEAVY = "initialisations", "lazy_to_rich"


@pytest.mark.parametrize("case", [*sorted(SMALL.keys() - HEAVY), *slow(*HEAVY)])
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
    texts = [Path(folder, "config.yaml").read_text() for folder in ("r", "whole")]  # without the first budget
    assert texts[0] == texts[1] == found.attrs["config"] == whole.attrs["config"]


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


@pytest.mark.slow
def test_members_that_wall_time_has_cut_are_computed_again_by_the_same_command(command):
    """A part that was in work when the time was up had stayed as it was, beside others that ran whole."""
    line = [
        "problem=teacher", "problem.dimension=4", "study.depths=[4,64,1024,2048]", "at_once=1", "study.workers=1",
        "figures=none",
    ]  # fmt: skip
    command(*line, "members=1", "resume=warm")  # what is imported and compiled once counts, too
    for _ in range(3):  # the first part takes longer than the time, is kept, and computed again by the next start
        assert (
            "the same command with resume=r goes on"
            in command(*line, "members=2", "resume=r", "time.max_seconds=0.4").err
        )
        assert [path.name for path in Path("r/checkpoints").iterdir()] == ["members-000000-000001.nc"]
    for _ in range(2):  # it is all of the run, which has results then, and goes on all the same
        ended = command(*line, "members=1", "resume=one", "time.max_seconds=0.4")
        assert ended.status == 1
        assert "the same command with resume=one goes on" in ended.err
    command(*line, "members=1", "resume=one")
    assert nf.open("one").status == "ok"
