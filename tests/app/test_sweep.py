"""Sweeps go on when members fail, say why, and run what is missing when they are repeated."""

import json
from pathlib import Path

import pytest

FAKE = ("-m", "study=fake", "problem=teacher", "problem.dimension=2")


def names(folder, file):
    return {path.parent.name for path in Path(folder).glob(f"*/{file}")}


def test_members_that_fail_or_are_killed_leave_the_others_alone(command):
    ended = command(*FAKE, "resume=sweep", "study.end=ok,raise,kill", "problem.seed=0,1")
    assert ended.status == 1
    assert len(names("sweep", "summary.json")) == 2
    assert len(names("sweep", "failed.json")) == 4
    assert ended.err.count("the sky fell") == 2
    assert ended.err.count("failed: its process was killed by signal 9 (SIGKILL)") == 2
    assert ended.err.count("started again") == 2
    assert "2 of 6 members have finished in sweep; the same command with resume=sweep runs the others" in ended.err
    record = json.loads(Path("sweep/2/failed.json").read_text())
    assert "RuntimeError: the sky fell" in record["reason"]
    assert "++study.end=raise" in record["overrides"]


def test_a_member_that_is_killed_is_tried_once_more(command):
    ended = command(*FAKE, "resume=sweep", "study.end=ok,kill_once")
    assert ended.status == 0, ended.err
    assert "member 1 is started again: its process was killed by signal 9 (SIGKILL)" in ended.err
    assert names("sweep", "summary.json") == {"0", "1"}
    assert names("sweep", "failed.json") == set()


def test_the_same_command_runs_only_what_is_missing(command):
    line = (*FAKE, "resume=sweep", "study.end=ok,once", "problem.seed=0,1")
    assert command(*line).status == 1
    done = {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/summary.json")}
    assert len(done) == 2
    Path("mended").touch()
    again = command(*line)
    assert again.status == 0, again.err
    assert names("sweep", "summary.json") == {"0", "1", "2", "3"}
    assert names("sweep", "failed.json") == set()
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert again.out.count("this run is finished") == 2


def test_a_member_that_ran_with_a_bad_status_keeps_its_results_and_its_reason(command):
    line = (*FAKE, "resume=sweep", "study.end=ok,blown")
    for _ in range(2):
        ended = command(*line)
        assert ended.status == 1
        assert "failed: the study did not run whole: blown" in ended.err
        assert "1 of 2 members have finished" in ended.err
    assert names("sweep", "summary.json") == {"0", "1"}


def test_another_sweep_in_the_same_folder_is_refused_member_by_member(command):
    assert command(*FAKE, "resume=sweep", "problem.seed=0,1", "study.end=ok,raise").status == 1
    ended = command(*FAKE, "resume=sweep", "problem.seed=5,6", "study.end=ok,raise")
    assert ended.status == 1
    assert len(names("sweep", "summary.json")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resume=true", "problem.seed=0,1"), "with -m give the folder of the sweep, resume=FOLDER"),
        (("resume=letters", "problem.seed=0,1"), "letters is not the folder of a sweep: it has no multirun.yaml"),
    ],
)
def test_a_folder_that_is_no_sweep_is_refused(command, arguments, message):
    Path("letters").mkdir()
    Path("letters/letter.txt").write_text("mine")
    ended = command(*FAKE, *arguments)
    assert ended.status == 2
    assert message in ended.err
    assert [path.name for path in Path("letters").iterdir()] == ["letter.txt"]


def test_a_launcher_that_is_not_installed_says_how_to_install_it(command, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ended = command(*FAKE, "hydra/launcher=local", "problem.seed=0,1")
    assert ended.status == 2
    assert "JoblibLauncher is not installed; run pip install 'neuralode_flow[local]'" in ended.err
