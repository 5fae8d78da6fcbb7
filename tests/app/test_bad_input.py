"""Bad input ends at once with status 2, one sentence that helps, and nothing written."""

import subprocess
import sys
from pathlib import Path

import pytest

BAD = [
    ("time.rtoll=1", "unknown key time.rtoll=1; did you mean time.rtol? (valid: time.horizon,"),
    ("devise=cpu", "unknown key devise=cpu; did you mean device?"),
    ("+bogus=1", "unknown key bogus=1 (valid: problem, initial, system, depth, time, study, out,"),
    ("+time.bogus=1", "unknown key time.bogus=1 (valid: time.horizon,"),
    (
        "problem.seed=1",
        "unknown key problem.seed=1 (valid with problem.name=breast_cancer_white: problem.name, problem.loss)",
    ),
    ("study.bogus=1", "unknown key study.bogus=1 (valid with study.name=convergence: study.name, study.depths,"),
    ("problm=teacher", "unknown key problm=teacher; did you mean problem?"),
    ("time.rtol=abc", "time.rtol must be a finite number, got 'abc'"),
    ("time.rtol=null", "time.rtol must be a finite number, got None"),
    ("time.rtol=0", "time.rtol must be above 0, got 0.0"),
    ("time.atol=-1e-9", "time.atol must be above 0, got -1e-09"),
    ("time.rtol=nan", "time.rtol must be a finite number, got nan"),
    ("time.horizon=inf", "time.horizon must be a finite number, got inf"),
    ("time.samples=1", "time.samples must be at least 2, got 1"),
    ("time.samples=2.5", "time.samples must be an integer, got 2.5"),
    ("time.method=dopri55", "time.method: unknown time method 'dopri55'; did you mean 'dopri5'?"),
    ("time.rtol=${bogus}", "Interpolation key 'bogus' not found"),
    ("depth.panels=0", "depth.panels must be at least 1, got 0"),
    ("depth.order=true", "depth.order must be an integer, got True"),
    ("depth.name=colocation", "did you mean 'collocation'?"),
    ("depth=colocation", "unknown depth 'colocation'; did you mean 'collocation'? (valid: collocation, torchdiffeq)"),
    ("problem=techer", "unknown problem 'techer'; did you mean 'teacher'?"),
    ("problem.name=techer", "problem.name: unknown problem 'techer'; did you mean 'teacher'?"),
    ("initial=contrl", "unknown initial 'contrl'; did you mean 'control'?"),
    ("initial.seed=-1", "initial.seed must be at least 0"),
    ("study=convergense", "unknown study 'convergense'; did you mean 'convergence'?"),
    ("experiment=quik", "unknown experiment 'quik'; did you mean 'quick'?"),
    ("study.depths=[]", "study.depths must not be empty"),
    ("study.depths=[4,0]", "study.depths[1] must be at least 1, got 0"),
    ("study.depths=[4,4]", "study.depths must not repeat a value, got [4, 4]"),
    ("study.depths=[8,4]", "study.depths must increase, got [8, 4]; write study.depths=[4, 8]"),
    ("study.depths=[4.5]", "study.depths[0] must be an integer, got 4.5"),
    ("study.depths=4", "study.depths must be a list, got 4; write study.depths=[4]"),
    ("study.depths=4,8", "Ambiguous value for argument 'study.depths=4,8'"),
    ("study.layers=[eulr]", "study.layers[0]: unknown layer rule 'eulr'; did you mean 'euler'?"),
    ("study.sampling=centre", "study.sampling: unknown sampling 'centre'"),
    ("problem=file", "problem.x is missing; set problem.x=VALUE"),
    ("problem=file problem.x=a.csv problem.y=b.csv", "problem.x=a.csv does not exist"),
    ("problem=teacher problem.scale=-1", "problem.scale must be above 0, got -1.0"),
    ("~problem", "problem must be a group of fields, got None; choose one with problem=NAME"),
    ("problem=null", "must be a string or a list"),
    ("device=gpu", "unknown device 'gpu' (valid: cpu, cuda, cuda:N)"),
    ("threads=0", "threads must be at least 1, got 0"),
    ("out=", "out must be the folder for results"),
    ("out=/proc/none", "/proc/none/convergence cannot hold results"),
    ("hydra.bogus=1", "Could not override 'hydra.bogus'"),
    ("words", "Error parsing override 'words'"),
    ("-m time.rtol=1e-8,-1", "time.rtol must be above 0, got -1.0"),
    ("-m problem=teacher,techer", "unknown problem 'techer'; did you mean 'teacher'?"),
    ("-m problem=teacher problem.seed=0,1 problem.sed=2", "unknown key problem.sed=2; did you mean problem.seed?"),
]


@pytest.mark.parametrize(("line", "words"), BAD, ids=[line for line, _ in BAD])
def test_bad_input_is_refused_at_once(command, left_behind, line, words):
    ended = command(*line.split())
    assert words in ended.err
    assert ended.err.startswith("neuralode-flow: ")
    assert "Traceback" not in ended.err
    assert ended.status == 2
    assert left_behind() == []


@pytest.mark.parametrize("mode", [[], ["-m"]])
@pytest.mark.parametrize("key", ["problem.table", "out"])
def test_a_name_that_is_no_utf_8_is_refused_at_once(command, left_behind, mode, key):
    """config.yaml was written, and called damaged from then on; a sweep ended in an error of a codec."""
    own = ["problem.x=[a]", "problem.y=[b]"]
    settings = ["problem=file", "problem.table=t.csv", *own, f"{key}='t\udcff.csv'"]
    ended = command(*mode, "study=fake", *settings, "resume=S")
    assert ended.status == 2
    assert f"{key}=t\\udcff.csv is no text in UTF-8" in ended.err
    assert left_behind() == []


@pytest.mark.slow
def test_bad_input_is_refused_under_python_without_assertions(workplace, left_behind):
    line = [sys.executable, "-O", "-m", "neuralode_flow", "problem=teacher", "problem.dimension=0"]
    ended = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "problem.dimension must be at least 1, got 0" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert left_behind() == []


def test_a_config_without_what_gives_runs_their_folders_is_refused(command, tmp_path):
    """The settings of a run, as its folder has them: `resume` and `out` were not heeded, in silence."""
    assert command("study=fake", "resume=first").status == 0
    (tmp_path / "again.yaml").write_text(Path("first/config.yaml").read_text())
    before = {*Path.cwd().rglob("*")}
    for mode in ([], ["-m"]):
        ended = command(f"--config-dir={tmp_path}", "--config-name=again", *mode, "resume=second")
        assert (ended.status, ended.err.count("\n")) == (2, 1)
        assert "--config-name=again has not what a command needs of Hydra" in ended.err
    assert {*Path.cwd().rglob("*")} == before


def test_a_missing_config_dir_is_named(command):
    ended = command("--config-dir=nowhere")
    assert ended.status == 2
    assert "nowhere' not found" in ended.err
