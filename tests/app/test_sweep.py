"""Sweeps go on when members fail, say why, and run what is missing when they are repeated."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import yaml

import neuralode_flow as nf
from neuralode_flow.app import child, collect
from neuralode_flow.app.runfolder import record_failure
from neuralode_flow.files import locked

FAKE = ("-m", "study=fake", "problem=teacher", "problem.dimension=2")


def names(folder, file):
    return {path.parent.name for path in Path(folder).glob(f"*/{file}")}


def test_members_that_fail_or_are_killed_leave_the_others_alone(command):
    ended = command(*FAKE, "resume=sweep", "study.end=ok,raise,kill,warn")
    assert ended.status == 1
    assert names("sweep", "summary.json") == {"0", "3"}
    assert names("sweep", "failed.json") == {"1", "2"}
    assert ended.err.count("the sky fell") == 1
    assert ended.err.count("failed: its process was killed by signal 9 (SIGKILL)") == 1
    assert ended.err.count("started again") == 1
    assert "2 of 4 members have finished in sweep; the same command with resume=sweep runs the others" in ended.err
    record = json.loads(Path("sweep/1/failed.json").read_text())
    assert "RuntimeError: the sky fell" in record["reason"]
    assert "++study.end=raise" in record["overrides"]


@pytest.mark.parametrize("launcher", [(), ("+hydra.job.env_set.SOME=thing",)])  # the second: Hydra's own
def test_the_command_of_a_member_repeats_it_alone(command, launcher):
    """It had the folder of the sweep, which a run by itself refuses as none of its own."""
    line = (*FAKE, "resume=sweep", "problem.seed=3,4", "figures=png", *launcher)
    assert command(*line).status == 0
    page = unescape(Path("sweep/1/report.html").read_text())
    (said,) = {found for found in re.findall(r"neuralode-flow [^<\n]*", page) if "study=fake" in found}
    _, *settings = shlex.split(said)
    assert not [setting for setting in settings if "resume" in setting]
    assert command(*settings, "out=alone").status == 0
    (alone,) = Path("alone").glob("*/*/config.yaml")
    before = [yaml.safe_load(path.read_text()) for path in (alone, Path("sweep/1/config.yaml"))]
    assert before[0] == before[1] | {"out": "alone"}


@pytest.mark.parametrize("launcher", [(), ("+hydra.job.env_set.SOME=thing",)])  # the second: Hydra's own
def test_a_member_is_told_from_the_others_by_what_is_its_own(command, launcher):
    """What Hydra writes in other words, such as `True` for `true`, was said of each as its own."""
    line = (*FAKE, "keep_checkpoints=true", "time.rtol=1e-7", "study.depths=[4, 8]", "resume=sweep", *launcher)
    said = command(*line, "problem.seed=0,1").out
    assert re.findall(r"^\d \(.*?\): ok", said, re.MULTILINE) == ["0 (problem.seed=0): ok", "1 (problem.seed=1): ok"]
    said = command(*line, "time.rtol=1e-7,1e-8", "resume=other").out
    assert re.findall(r"^\d \((.*?)\): ok", said, re.MULTILINE) == ["time.rtol=1e-07", "time.rtol=1e-08"]


def test_a_member_whose_place_is_taken_leaves_the_others_alone(command):
    assert command(*FAKE, "resume=sweep", "problem.seed=0").status == 0
    Path("sweep/1").touch()
    Path("sweep/3").symlink_to("nowhere")
    ended = command(*FAKE, "resume=sweep", "problem.seed=0,1,2,3")
    assert ended.status == 1
    assert names("sweep", "summary.json") == {"0", "2"}
    assert ended.err.count("was not run: sweep/") == 2
    assert "sweep/1 is no folder, which a member needs there; move it away" in ended.err
    Path("sweep/1").unlink()
    Path("sweep/3").unlink()
    assert command(*FAKE, "resume=sweep", "problem.seed=0,1,2,3").status == 0


@pytest.mark.parametrize("launcher", [(), ("+hydra.job.env_set.SOME=thing",)])  # the second: Hydra's own
def test_a_failure_that_a_full_disk_keeps_from_being_recorded_leaves_the_others_alone(command, monkeypatch, launcher):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(child, "record_failure", full)
    ended = command(*FAKE, "resume=sweep", "study.end=raise,ok", *launcher)
    assert ended.status == 1
    assert "was lost: the study stopped: RuntimeError: the sky fell" in ended.err
    assert "; nor could that be recorded: No space left on device; it had saved nothing" in ended.err
    assert "1 of 2 members have finished in sweep; the same command with resume=sweep runs the others" in ended.err
    assert names("sweep", "summary.json") == {"1"}


def test_a_member_that_is_told_to_end_leaves_the_others_alone(command):
    """It ended the whole sweep, with the status of one that was told to end, and was recorded nowhere."""
    ended = command(*FAKE, "resume=sweep", "study.end=ok,terminate,warn")
    assert ended.status == 1
    assert names("sweep", "summary.json") == {"0", "2"}
    assert names("sweep", "failed.json") == {"1"}
    said = "its process was told to end by signal 15 (SIGTERM)"
    assert f"member 1 is started again: {said}" in ended.err
    assert f"failed: {said}" in ended.err
    ended = command(*FAKE, "resume=other", "study.end=ok,terminate_once,warn")
    assert ended.status == 0
    assert f"member 1 is started again: {said}" in ended.err
    assert names("other", "summary.json") == {"0", "1", "2"}


def test_a_sweep_that_is_told_to_end_ends_with_its_member(command):
    ended = command(*FAKE, "resume=sweep", "study.end=ok,terminate_all,warn")
    assert ended.status == 143
    assert "started again" not in ended.err
    assert names("sweep", "summary.json") == {"0"}
    assert names("sweep", "failed.json") == set()


def test_a_member_that_is_killed_is_tried_once_more(command):
    ended = command(*FAKE, "resume=sweep", "study.end=ok,kill_once")
    assert ended.status == 0, ended.err
    assert "member 1 is started again: its process was killed by signal 9 (SIGKILL)" in ended.err
    assert names("sweep", "summary.json") == {"0", "1"}
    assert names("sweep", "failed.json") == set()


def test_a_member_computes_in_threads_where_those_of_the_command_have_worked(tmp_path):
    """As with threads=2 and a plugin that computes at its import: members waited for threads that they do not have."""
    program = (
        "import signal, sys, torch\n"
        "from pathlib import Path\n"
        "from neuralode_flow.app.child import run_member\n"
        "def work():\n"
        "    signal.alarm(10)\n"
        "    torch.ones(10**6).sin().sum()\n"
        "    print(torch.get_num_threads())\n"
        "torch.set_num_threads(2)\n"
        "torch.ones(10**6).sin().sum()\n"
        "run_member(work, Path(sys.argv[1]), [])\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("2\n", "")
    assert not (tmp_path / "failed.json").exists()


@pytest.mark.parametrize("limited", ["fork", "pipe"])
def test_a_member_for_which_no_process_can_be_made_has_failed(command, monkeypatch, limited):
    right, calls = getattr(os, limited), []

    def no_second():
        if sys._getframe(1).f_code.co_name != "_in_a_child":
            return right()
        calls.append(1)
        if len(calls) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return right()

    monkeypatch.setattr(os, limited, no_second)
    ended = command(*FAKE, "resume=sweep", "study.end=ok,raise,warn")
    assert ended.status == 1
    assert names("sweep", "summary.json") == {"0", "2"}
    assert names("sweep", "failed.json") == {"1"}
    assert "failed: no process could be made for it: Resource temporarily unavailable" in ended.err


def test_the_same_command_runs_only_what_is_missing(command):
    line = (*FAKE, "resume=sweep", "study.end=ok,once,warn")
    assert command(*line).status == 1
    done = {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/summary.json")}
    assert len(done) == 2
    Path("mended").touch()
    again = command(*line)
    assert again.status == 0, again.err
    assert names("sweep", "summary.json") == {"0", "1", "2"}
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


def seeds(folder):
    return {
        name: yaml.safe_load((Path(folder) / name / "config.yaml").read_text())["problem"]["seed"]
        for name in names(folder, "summary.json")
    }


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where the sweep of `finished` lies, once it has run."""
    return tmp_path_factory.mktemp("kept") / "sweep"


@pytest.fixture
def finished(command, kept):
    """A finished sweep over problem.seed=0,1 in the folder `sweep`: it runs once for all tests, each has a copy."""
    if kept.exists():
        shutil.copytree(kept, "sweep")
    else:
        assert command(*FAKE, "resume=sweep", "problem.seed=0,1").status == 0
        shutil.copytree("sweep", kept)


@pytest.mark.usefixtures("finished")
def test_members_are_known_by_their_settings_and_not_by_their_place_in_the_command(command):
    done = {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/summary.json")}
    ended = command(*FAKE, "resume=sweep", "problem.seed=5,0,1")  # one more, before the others
    assert ended.status == 0, ended.err
    assert seeds("sweep") == {"0": 0, "1": 1, "2": 5}
    assert {path: path.stat().st_mtime_ns for path in done} == done
    turned = [*FAKE[:1], *reversed(FAKE[1:])]  # the same settings in another order, and one that is the default
    ended = command(*turned, "problem.seed=1,7", "resume=sweep", "study.depths=[4,8]", "threads=2")
    assert ended.status == 0, ended.err
    assert seeds("sweep") == {"0": 0, "1": 1, "2": 5, "3": 7}


def test_what_one_of_the_members_uses_may_be_common_to_all(command, workplace):
    line = ["-m", "study=trajectory", "study.model=continuous,finite", "study.network_depth=3", "study.estimate=false"]
    line += ["problem=teacher", "problem.dimension=2", "time.samples=3"]
    assert command(*line, "resume=sweep").status == 0
    assert [nf.open(f"sweep/{name}").sizes["s"] == 3 for name in "01"] == [False, True]


def test_alike_members_have_a_folder_each(command):
    for _ in range(2):
        assert command(*FAKE, "resume=sweep", "threads=1,2", "problem.seed=0").status == 0
        assert seeds("sweep") == {"0": 0, "1": 0}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["problem.seed=0,1,0"], "two points, both problem.seed=0, are one run"),
        (["time.horizon=1,2,1.0"], "the points time.horizon=1 and time.horizon=1.0 are one run"),
        (["problem.seed=4,4"], "problem.seed=4, are one run"),
    ],
)
def test_points_that_are_one_run_are_refused(command, settings, words):
    """They were two members, in statistics as well."""
    ended = command(*FAKE, "resume=sweep", *settings)
    assert ended.status == 2
    assert words in ended.err
    assert not Path("sweep").exists()


@pytest.mark.usefixtures("finished")
@pytest.mark.slow
def test_a_finished_sweep_of_before_is_taken_up_without_a_ledger(command):
    Path("sweep/members.json").unlink()
    assert command(*FAKE, "resume=sweep", "problem.seed=3,1").status == 0
    assert seeds("sweep") == {"0": 0, "1": 1, "2": 3}
    Path("sweep/members.json").write_text("{")
    assert command(*FAKE, "resume=sweep", "problem.seed=3,4").status == 0
    assert seeds("sweep") == {"0": 0, "1": 1, "2": 3, "3": 4}
    collect.main(["sweep"])


@pytest.mark.slow
def test_a_changed_config_file_is_noticed_in_the_folder_of_its_member(command, config_dir):
    (config_dir / "problem").mkdir()
    own = config_dir / "problem" / "own.yaml"
    own.write_text("name: teacher\ndimension: 2\n")
    line = ("-m", "study=fake", "problem=own", "resume=sweep", "problem.seed=0,1", "time.samples=5")
    assert command(*line).status == 0
    own.write_text("name: teacher\ndimension: 3\n")
    for finished in (True, False):  # and one that was started
        if not finished:
            Path("sweep/0/summary.json").unlink()
        ended = command(*line)
        assert ended.status == 1
        assert "member 0 (study=fake problem=own" in ended.err
        assert "was not run: sweep/0 was started with another config: problem.dimension was 2 and is 3" in ended.err
        assert "0 of 2 members have finished in sweep" in ended.err
        assert names("sweep", "failed.json") == set()


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


@pytest.mark.slow
def test_a_member_that_another_run_holds_has_not_failed(command):
    command(*FAKE, "resume=sweep", "problem.seed=0", "study.end=raise")
    assert names("sweep", "failed.json") == {"0"}
    with locked(Path("sweep/0/.lock")):
        ended = command(*FAKE, "resume=sweep", "problem.seed=0,1", "study.end=raise", "time.samples=21")
        assert ended.status == 1
    assert "member 0 is left alone: " in ended.err
    assert "/sweep/0 is in use by another run" in ended.err
    assert names("sweep", "failed.json") == {"1"}


def test_a_member_that_succeeds_leaves_no_failure_behind(command):
    line = (*FAKE, "resume=sweep", "study.end=once")
    command(*line)
    assert names("sweep", "failed.json") == {"0"}
    Path("mended").touch()
    assert command(*line).status == 0
    record_failure(Path("sweep/0"), [], "of another command, too late")
    assert names("sweep", "failed.json") == set()
    assert sorted(path.name for path in Path("sweep/0").iterdir() if path.name.startswith(".")) == []


SPELLINGS = ("resume=sweep", "++resume=sweep", "resume='sweep'")


@pytest.mark.parametrize(
    ("mode", "first"),
    [
        (("-m",), SPELLINGS[0]),
        pytest.param(("hydra.mode=MULTIRUN",), SPELLINGS[1], marks=pytest.mark.slow),
        pytest.param(("own=sweep",), SPELLINGS[2], marks=pytest.mark.slow),
    ],
)
def test_a_sweep_goes_on_however_it_is_asked_for(command, config_dir, mode, first):
    (config_dir / "own").mkdir()
    (config_dir / "own" / "sweep.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      problem.seed: 0,1\n"
    )
    own = mode == ("own=sweep",)
    line = ("+own=sweep",) if own else (*mode, "problem.seed=0,1")
    for spelling in (first, *SPELLINGS):
        again = Path("sweep").exists()
        ended = command(*line, *FAKE[1:], spelling)
        assert ended.status == 0, ended.err
        assert names("sweep", "summary.json") == {"0", "1"}
        assert not Path("runs").exists()
        assert ended.out.count("this run is finished") == (2 if again else 0)


def test_folders_of_members_may_have_parts(command, workplace):
    np.savetxt("x.csv", np.eye(3), delimiter=",")
    data = workplace / "x.csv"
    line = (
        "-m", "study=fake", "problem=file", f"problem.x={data}", f"problem.y={data}", "problem.standardise=false",
        "study.end=ok,raise", "hydra.sweep.subdir=${hydra.job.override_dirname}", "resume=sweep",
    )  # fmt: skip
    for again in (False, True):
        ended = command(*line)
        assert ended.status == 1
        assert ended.err.count("failed: the study stopped: RuntimeError: the sky fell") == 1
        assert "1 of 2 members have finished" in ended.err
        assert ended.out.count("this run is finished") == (1 if again else 0)
    found = [path.relative_to("sweep") for path in Path("sweep").rglob("summary.json")]
    assert len(found) == 1
    assert all(path.parts[0].startswith("problem.standardise=") for path in found)
    assert "++" not in str(found)


def test_a_name_that_no_folder_can_have_is_refused_and_not_kept(command):
    line = (*FAKE, "problem.seed=0,1", "resume=sweep")
    ended = command(*line, f"hydra.sweep.subdir={'long' * 64}_${{hydra.job.num}}")
    assert ended.status == 2
    assert "hydra.sweep.subdir cannot be 'longlong" in ended.err
    assert "File name too long; use ${hydra.job.num}, or leave out settings by" in ended.err
    assert command(*line).status == 0
    assert names("sweep", "summary.json") == {"0", "1"}


def test_what_hydra_itself_cannot_write_is_said_in_a_sentence(command):
    Path("sweep/multirun.yaml").mkdir(parents=True)
    ended = command(*FAKE, "problem.seed=0,1", "resume=sweep")
    assert ended.status == 1
    assert "sweep/multirun.yaml cannot be written: Is a directory; free the folder, or choose another one" in ended.err
    assert "Traceback" not in ended.err


def test_the_names_of_a_group_may_be_given_by_a_pattern(command):
    ended = command("-m", "study=fake", "problem=glob(tea*)", "problem.dimension=2", "resume=sweep")
    assert ended.status == 0, ended.err
    assert names("sweep", "summary.json") == {"0"}


@pytest.mark.parametrize(
    ("subdir", "message"),
    [
        ("same", "hydra.sweep.subdir=same gives several members the folder same"),
        ("../${hydra.job.num}", "must name a folder inside the sweep, got '../0'"),
        ("/tmp/${hydra.job.num}", "must name a folder inside the sweep, got '/tmp/0'"),
    ],
)
def test_folders_of_members_lie_in_that_of_the_sweep_and_are_different(command, subdir, message):
    ended = command(*FAKE, "problem.seed=0,1", f"hydra.sweep.subdir={subdir}", "resume=sweep")
    assert ended.status == 2
    assert message in ended.err


def test_a_number_in_the_name_of_a_folder_is_that_of_the_member(command):
    line = (*FAKE, "resume=sweep", "hydra.sweep.subdir=run_${hydra.job.num}")
    assert command(*line, "problem.seed=0").status == 0
    assert command(*line, "problem.seed=5,0").status == 0
    assert seeds("sweep") == {"run_0": 0, "run_1": 5}


@pytest.mark.parametrize("subdir", [".hydra", "hydra/of_run"])
def test_what_hydra_writes_into_the_folder_of_a_member_is_left_there(command, subdir):
    line = (*FAKE, "resume=sweep", f"hydra.output_subdir={subdir}", "study.end=once")
    assert command(*line).status == 1
    Path("mended").touch()
    assert command(*line).status == 0
    assert yaml.safe_load(Path(f"sweep/0/{subdir}/overrides.yaml").read_text())
    assert names("sweep", "summary.json") == {"0"}


def test_one_folder_is_enough_for_a_sweep(command):
    ended = command(*FAKE, "problem.seed=0,1", "resume=one", "hydra.sweep.dir=two")
    assert ended.status == 2
    assert "hydra.sweep.dir=two and resume=one are two folders for one sweep" in ended.err
    ended = command(*FAKE, "resume=one,two")
    assert ended.status == 2
    assert "cannot vary in a sweep" in ended.err


def test_members_that_have_not_run_are_told_of(command, capfd):
    command(*FAKE, "resume=sweep", "study.end=ok,interrupt,warn")  # Ctrl-C in the second of three
    assert names("sweep", "summary.json") == {"0"}
    collect.main(["sweep"])
    out = capfd.readouterr().out
    assert "1 of 3 members have finished, 2 unfinished" in out
    assert "it has not run" in Path("sweep/collected.json").read_text()


def test_what_hydra_would_warn_of_ends_a_sweep(command, monkeypatch, left_behind):
    """It took what a callback raises for a warning, and went on in another folder, without a check."""
    monkeypatch.setattr("neuralode_flow.app.sweep._claim", lambda *given: {}["lost"])
    ended = command(*FAKE, "resume=S")
    assert ended.status == 1
    assert ended.err.endswith("KeyError: 'lost'\n")
    assert left_behind() == []


def test_members_that_cannot_be_looked_at_are_no_success(command, monkeypatch):
    def lost(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("neuralode_flow.app.sweep.failure", lost)
    ended = command(*FAKE, "resume=S")
    assert ended.status == 1
    assert "Permission denied" in ended.err


def test_the_home_of_nobody_is_a_name(command, workplace):
    assert command(*FAKE, "resume=~no_such_user").status == 0
    assert (workplace / "~no_such_user" / "0" / "summary.json").exists()
    assert command("study=fake", "resume=~no_such_user/one").status == 0
    assert (workplace / "~no_such_user" / "one" / "summary.json").exists()
    ended = command("study=fake", "problem=file", "problem.x=~no_such_user/x.csv", "problem.y=y.csv")
    assert ended.status == 2
    assert "problem.x=~no_such_user/x.csv does not exist" in ended.err
