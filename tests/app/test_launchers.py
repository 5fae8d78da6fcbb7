"""The same sweep through all launchers gives equal arrays; for Slurm see test_slurm.py."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import neuralode_flow as nf

SWEEP = [
    "-m", "problem=teacher", "problem.dimension=2", "problem.seed=0,1", "study.depths=[4]", "study.layers=[euler]",
    "study.workers=1", "time.samples=3", "figures=none",
]  # fmt: skip

PLUGIN = """
import os, signal
from pathlib import Path
from neuralode_flow.losses import LOSSES, Quadratic

@LOSSES.register("kills_once")
def kills_once(*arguments):
    if not Path("killed").exists():
        Path("killed").touch()
        os.kill(os.getppid(), signal.SIGKILL)  # the worker, of which this is the child
    return LOSSES["quadratic"](*arguments)
"""


TOLD_PLUGIN = """
import os, signal
from neuralode_flow.losses import LOSSES

@LOSSES.register("told_always")
def told_always(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
"""


RAY_PLUGIN = """
import os, signal, time
from neuralode_flow.losses import LOSSES

@LOSSES.register("kills_always")
def kills_always(*arguments):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(5)
"""


def sweep(folder, name, *settings, status=0):
    line = [sys.executable, "-m", "neuralode_flow", *(settings or SWEEP), f"hydra/launcher={name}", f"resume={name}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == status, ended.stderr
    return ended.stderr


def assert_equal(first, other):
    for seed in "01":
        one, two = nf.open(Path(first, seed)), nf.open(Path(other, seed))
        np.testing.assert_array_equal(one.z_finite, two.z_finite)
        np.testing.assert_array_equal(one.z_continuous, two.z_continuous)


@pytest.mark.slow
def test_joblib_gives_the_same_arrays(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the launchers of the test extra")
    for name in ("basic", "local"):
        sweep(tmp_path, name)
    assert_equal(tmp_path / "basic", tmp_path / "local")


@pytest.mark.slow
def test_a_worker_outlives_a_member_that_is_told_to_end(tmp_path):
    """It ended with it, and the sweep said that it was lost."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the launchers of the test extra")
    (tmp_path / "teller.py").write_text(TOLD_PLUGIN)
    settings = ("-m", "problem=linnerud", "problem.loss=quadratic,told_always", "study=trajectory")
    common = ("study.estimate=false", "time.horizon=0.1", "time.samples=3", "plugins=[teller]")
    said = sweep(tmp_path, "local", *settings, *common, status=1)
    assert "failed: its process was told to end by signal 15 (SIGTERM)" in said
    assert len(list(tmp_path.glob("local/0/summary.json"))) == 1
    assert len(list(tmp_path.glob("local/1/failed.json"))) == 1


def test_ray_gives_the_same_arrays(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="Ray needs an environment of its own")
    for name in ("basic", "ray"):
        assert "deprecated" not in sweep(tmp_path, name)
    assert_equal(tmp_path / "basic", tmp_path / "ray")


@pytest.mark.slow
def test_a_sweep_outlives_its_workers(tmp_path):
    (tmp_path / "killer.py").write_text(PLUGIN)
    settings = ("-m", "problem=linnerud", "problem.loss=kills_once", "study=trajectory", "study.estimate=false")
    said = sweep(tmp_path, "local", *settings, "time.horizon=0.1,0.2,0.3", "time.samples=3", "plugins=[killer]")
    assert "a worker of the sweep was killed" in said
    assert len(list(tmp_path.glob("local/*/summary.json"))) == 3
    assert not list(tmp_path.glob("local/*/failed.json"))


def test_ray_goes_on_without_a_member_that_it_has_given_up(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="Ray needs an environment of its own")
    (tmp_path / "killer.py").write_text(RAY_PLUGIN)
    settings = ("-m", "problem=linnerud", "problem.loss=quadratic,kills_always", "study=trajectory")
    rest = ("study.estimate=false", "time.horizon=0.1", "time.samples=3", "plugins=[killer]")
    assert "1 of 2 members have finished" in sweep(tmp_path, "ray", *settings, *rest, status=1)
    assert (tmp_path / "ray/0/summary.json").exists()
    assert "Ray gave it up" in (tmp_path / "ray/1/failed.json").read_text()
