"""`time=descent` on the command line: what it computes, how it goes on, what it refuses and says."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import neuralode_flow as nf
from neuralode_flow.app import collect
from neuralode_flow.untrusted import read_yaml

TEACHER = ["problem=teacher", "problem.dimension=2", "figures=none"]
SMALL = [*TEACHER, "study=trajectory", "study.model=finite", "study.network_depth=4", "time=descent", "time.samples=5"]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}


def program(*arguments, **options):
    """The command as a program of its own."""
    words = [sys.executable, "-m", "neuralode_flow", *arguments]
    done = subprocess.run(words, capture_output=True, text=True, env=QUIET, timeout=200, **options)
    return done.returncode, done.stdout, done.stderr


def summary(folder):
    return json.loads((Path(folder) / "summary.json").read_text())


def test_it_trains_in_steps_and_its_results_say_so(command):
    ended = command(*SMALL, "time.rule=heavy_ball", "time.momentum=0.5", "time.rate=0.05", "resume=run")
    assert (ended.status, ended.err) == (0, "")
    problem = nf.PROBLEMS["teacher"](dimension=2)
    flow = nf.FiniteFlow(4, problem.loss)
    start = flow.sample(nf.INITIALS["relaxed_balanced"](problem.z0, twist=1.0, shift=0.5))
    path = nf.descend(flow, start, 40, "heavy_ball", 0.05, record=10, momentum=0.5)
    assert np.array_equal(nf.open("run").z.values, path.z.numpy())
    found = summary("run")
    assert (found["method"], found["rate"], found["steps"], found["options"]) == (
        "heavy_ball",
        0.05,
        40,
        "momentum = 0.5",
    )
    config = read_yaml(Path("run/config.yaml"))["time"]
    assert config["momentum"] == 0.5
    assert "method" not in config
    assert "40 steps of heavy_ball (η = 0.05, momentum = 0.5)" in " ".join(ended.out.split())
    page = Path("run/report.html").read_text()
    assert "Momentum, V_{n+1} = β V_n − η g(W_n)" in page
    assert "momentum = 0.5" in page
    again = command(*SMALL, "time.rule=heavy_ball", "time.momentum=0.6", "time.rate=0.05", "resume=run")
    assert again.status == 2
    assert "time.momentum was 0.5 and is 0.6" in again.err


def test_experiments_and_python_take_it(command):
    ended = command("debug=quick", *TEACHER, "time=descent", "study.layers=[exp]", "time.horizon=0.4", "resume=run")
    assert ended.status == 0
    assert "balanced start with the same z₀ in the same steps" in " ".join(ended.out.split())
    run = nf.run("trajectory", problem={"name": "teacher", "dimension": 2}, time={"name": "descent", "rule": "sign"})
    assert run.dataset.attrs["method"] == "sign"
    assert "time=descent time.rule=sign" in run.command


REFUSED = [
    ("time.rule=gdd", "time.rule: unknown step rule 'gdd'; did you mean 'gd'?"),
    (
        "time.rule=heavy_ball time.momentun=0.3",
        "unknown key time.momentun=0.3; did you mean time.momentum? (valid with",
    ),
    ("time.momentum=0.3", "unknown key time.momentum=0.3 (valid with time.rule=gd: time.horizon,"),
    ("time.rule=heavy_ball time.momentum=1.0", "time.momentum must be below 1, got 1.0"),
    ("time.rule=adam time.beta1=x", "time.beta1 must be a finite number, got 'x'"),
    ("time.rule=muon time.polar=qr", "time.polar: unknown polar factor 'qr'"),
    ("time.rate=0", "time.rate must be above 0, got 0.0"),
    ("time.rate=nan", "time.rate must be a finite number, got nan"),
    ("time.rate=0.03", "the nearest that do are 0.03125 and 0.0294117647"),
    ("-m time.rate=0.05,0.03", "time.rate=0.03 does not divide the distance 0.5 of two output times"),
    ("time.rate=7", "the nearest that do are 0.5 and 0.25"),
    (
        "time.horizon=2.25 time.extends=[2.0]",
        "time.horizon=2.25 is no multiple of the distance 0.5 of two output times",
    ),
    ("time.rule=muon problem.dimension=1", "time: rule='muon' has nothing to turn in 1 × 1 matrices"),
    ("time.rule=sgd", "time: rule='sgd' needs a loss with samples"),
    (
        "time.rule=sgd problem=linnerud time.batch=1000",
        "time: batch must be at most the number of samples, 20, got 1000",
    ),
    ("time.rule=weight_decay time.of=layers study.rule=exp", "time: of='layers' decays the U_k = I + W_k/L"),
    (
        "time.rtol=1e-3",
        "time.rtol=0.001 has no effect with time=descent, whose steps have a rule and a rate; leave it out",
    ),
    ("time=default time.rate=0.1", "time.rate=0.1 is for training in steps; add time=descent, or leave it out"),
    ("experiment=overnight", "or write ~time.method ~time.rtol ~time.atol where an experiment sets it"),
    ("study=closure system=diagonal time=descent", "study=closure follows flows, and what it compares holds for these"),
    ("study=momentum", "study=momentum takes steps of its own (study.rate, study.momentum); leave time=descent out"),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_bad_input_is_refused_before_any_work(command, left_behind, settings, said):
    words = settings.split()
    small = [line for line in SMALL if not line.startswith("study.") or not words[0].startswith("study=")]
    small = [line for line in small if line != "problem.dimension=2" or "problem=linnerud" not in words]
    ended = command(*sorted([*small, *words], key=lambda word: word != "-m"))  # which comes first
    assert (ended.status, ended.out) == (2, "")
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert left_behind() == []


@pytest.mark.parametrize("rate", ["0.0294117647", "0.5"])
def test_the_nearest_rates_are_taken(command, rate):
    assert command(*SMALL, f"time.rate={rate}", "study.estimate=false").status == 0


def test_divergence_is_a_study_that_did_not_run_whole(command):
    ended = command(*SMALL, "time.rate=100", "time.horizon=10000", "resume=run")
    assert ended.status == 1
    assert "the study did not run whole: the training diverged at step " in ended.err
    assert "Traceback" not in ended.err
    assert summary("run")["ending"] == "diverged"
    assert np.isfinite(nf.open("run").z.values).all()


def test_it_goes_on_to_a_longer_horizon(command):
    sgd = [*SMALL[1:], "problem=linnerud", "time.rule=sgd", "time.rate=0.05", "keep_checkpoints=true"]
    sgd.remove("problem.dimension=2")
    assert command(*sgd, "resume=run").status == 0
    short = nf.open("run").load()
    ended = command(*sgd, "time.horizon=3.25", "resume=run")  # 0.05 does not divide 3.25/4, which nobody asks for
    assert ended.status == 2
    assert "time.horizon=3.25 is no multiple of the distance 0.5 of two output times" in ended.err
    assert "the nearest that are 3 and 3.5" in ended.err
    assert command(*sgd, "time.horizon=3.5", "resume=run").status == 0
    longer = nf.open("run").load()
    assert longer.sizes["time"] == 8
    assert longer.attrs["steps"] == 70
    assert command(*sgd, "time.horizon=3.5", "time.extends=[2.0]", "resume=whole").status == 0
    whole = nf.open("whole")
    for name in ("z", "z_limit", "loss", "drift", "W"):
        assert np.array_equal(longer[name].values[:5], short[name].values, equal_nan=True)
        assert np.array_equal(longer[name].values, whole[name].values, equal_nan=True)


@pytest.mark.slow
def test_killed_on_the_way_it_gives_the_same_numbers_to_the_bit(tmp_path):
    long = [*SMALL, "time.rule=muon", "time.momentum=0.5", "time.rate=0.001", "time.horizon=6", "save_every=0.02"]
    words = [sys.executable, "-m", "neuralode_flow", *long, "resume=run"]
    checkpoint = tmp_path / "run" / "checkpoints" / "finite.npz"
    reached = []
    for _ in range(3):
        was = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        with subprocess.Popen(words, env=QUIET, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            last = time.monotonic() + 60
            while child.poll() is None and time.monotonic() < last:
                if checkpoint.exists() and checkpoint.stat().st_mtime_ns != was:
                    break
                time.sleep(0.01)
            child.send_signal(signal.SIGKILL)
        assert child.returncode == -signal.SIGKILL
        reached.append(nf.load(checkpoint).stats["steps"])
    assert 0 < reached[0] < reached[-1] < 6_000
    assert program(*long, "resume=run", cwd=tmp_path)[0] == 0
    assert program(*long, "resume=whole", cwd=tmp_path)[0] == 0
    resumed, whole = nf.open(tmp_path / "run"), nf.open(tmp_path / "whole")
    for name in ("z", "z_limit", "loss", "drift", "W", "time_error"):
        assert np.array_equal(resumed[name].values, whole[name].values)
    assert summary(tmp_path / "run")["evaluations"] == 6_000


@pytest.mark.slow
def test_a_sweep_over_rules_tells_them_apart(tmp_path):
    settings = ["-m", *SMALL, "time.rate=0.05", "time.rule=gd,muon,adam", "hydra.sweep.dir=sweep"]
    status, out, _ = program(*settings, cwd=tmp_path)
    assert status == 0
    assert [f"(time.rule={rule}): ok" in out for rule in ("gd", "muon", "adam")] == [True] * 3
    collect.main([str(tmp_path / "sweep")])
    page = (tmp_path / "sweep" / "report.html").read_text(encoding="utf-8")
    assert "the others differ in time.rule" in page
    assert all(f"40 steps of {rule} (η = 0.05" in page for rule in ("gd", "muon", "adam"))
    found = [nf.open(tmp_path / "sweep" / str(i)).z.values for i in range(3)]
    assert not np.allclose(found[0], found[1])
    assert not np.allclose(found[1], found[2])
    status, _, err = program(*settings[:-1], "time.momentum=0.5", cwd=tmp_path)
    assert status == 2
    assert "unknown key time.momentum=0.5 (valid with time.rule=gd:" in err


@pytest.mark.slow
def test_a_sweep_over_the_rules_of_universality(tmp_path):
    """Lists of rules are values of a sweep: one of gd alone, one of Adam alone, one of both."""
    study = ["study=universality", "study.steps=10", "study.starts=2", "study.controls=2", "study.depths=[2]"]
    rules = "study.rules=[gd],[adam],[gd,adam]"
    status, out, err = program("-m", *TEACHER, *study, rules, "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert status == 0, err
    datasets = [nf.open(tmp_path / "sweep" / str(i)) for i in range(3)]
    names = [{str(rule).partition(",")[0] for rule in data.rule.values} for data in datasets]
    assert names == [{"gd"}, {"adam"}, {"gd", "adam"}]
    collect.main([str(tmp_path / "sweep")])
    page = (tmp_path / "sweep" / "report.html").read_text(encoding="utf-8")
    assert "the others differ in study.rules" in page
    status, _, err = program("-m", *TEACHER, *study, "study.rules=[gd],[adm]", "hydra.sweep.dir=bad", cwd=tmp_path)
    assert status == 2
    assert "unknown step rule 'adm'; did you mean 'adam'?" in err
