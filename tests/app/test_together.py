"""Sweeps that are killed at random instants, and two commands on one folder at once, all by processes of their own."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import slurm as real
import xarray as xr
import yaml

import neuralode_flow as nf

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("NEURALODE_FLOW_KILLS", "1"))  # of each launcher
INTERLEAVINGS = int(os.environ.get("NEURALODE_FLOW_INTERLEAVINGS", "2"))

SETTINGS = [
    "problem=teacher", "problem.dimension=3", "study=trajectory", "study.model=finite", "study.network_depth=24",
    "study.estimate=false", "time.method=dopri5", "time.horizon=12", "time.samples=7", "time.rtol=1e-9",
    "save_every=0.01", "figures=none",
]  # fmt: skip
LAUNCHERS = {
    "basic": [],
    "local": ["hydra/launcher=local"],
    "slurm": ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null"],
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2)


def start(place, environment, *settings):
    """A command, and the file with what it says: a pipe would stay open as long as workers that outlive it."""
    said = place / f"said{len(list(place.glob('said*')))}"
    line = [sys.executable, "-m", "neuralode_flow", "-m", *SETTINGS, *settings]
    environment = {**environment, "OMP_NUM_THREADS": "1"}
    with said.open("w") as stream:
        child = subprocess.Popen(
            line,
            cwd=place,
            env=environment,
            stdout=stream,
            stderr=stream,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return child, said


def finish(child, said):
    status = child.wait(timeout=300)
    return status, said.read_text()


def processes(place):
    """All processes that work in this folder: commands, workers, members."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if (
                entry.name.isdecimal()
                and (entry / "cwd").resolve() == place
                and b"python" in (entry / "cmdline").read_bytes()
            ):
                found.append(int(entry.name))
    return sorted(found)


def members(sweep):
    """The seed of each finished member, by the name of its folder."""
    found = {}
    for path in sweep.glob("*/summary.json"):
        found[path.parent.name] = yaml.safe_load((path.parent / "config.yaml").read_text())["problem"]["seed"]
    return found


def assert_same(sweep, undisturbed):
    truth = {seed: nf.open(undisturbed / name) for name, seed in members(undisturbed).items()}
    found = members(sweep)
    assert len(set(found.values())) == len(found)  # no member twice
    for name, seed in found.items():
        xr.testing.assert_equal(nf.open(sweep / name), truth[seed])
    return sorted(found.values())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    place = tmp_path_factory.mktemp("undisturbed")
    status, out = finish(*start(place, os.environ, "problem.seed=0,1,2,3", "resume=sweep"))
    assert status == 0, out
    return place / "sweep"


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_nothing_is_lost_whoever_is_killed(launcher, undisturbed, tmp_path):
    if launcher != "basic" and "NEURALODE_FLOW_KILLS" not in os.environ:
        pytest.skip("takes minutes; NEURALODE_FLOW_KILLS=14 kills so many of each launcher")
    if launcher == "slurm" and real.MISSING:
        pytest.skip(f"no Slurm can be started here: {', '.join(real.MISSING)} is missing")
    draws, place, kills = random.Random(launcher), tmp_path / "here", 0
    place.mkdir()
    with ExitStack() as stack:
        environment = stack.enter_context(real.slurm(tmp_path / "slurm")) if launcher == "slurm" else os.environ
        for attempt in range(4 * KILLS + 20):
            child, said = start(place, environment, *LAUNCHERS[launcher], "problem.seed=0,1,2,3", "resume=sweep")
            while child.poll() is None and not any(place.glob("sweep/*/checkpoints/[!.]*.npz")):
                time.sleep(0.02)
            while kills < KILLS * (attempt + 1) / 2 and kills < KILLS and child.poll() is None:
                time.sleep(draws.uniform(0.0, 1.0))
                running = processes(place)
                if child.poll() is None and running:
                    with suppress(ProcessLookupError):
                        os.kill(draws.choice([child.pid, *running]), draws.choice(SIGNALS))
                        kills += 1
            status, out = finish(child, said)
            assert "Traceback" not in out or launcher == "local", out  # joblib tells of its workers
            if status == 0:
                break
        assert status == 0, out
        for left in processes(place):  # workers of joblib that wait for a command that was killed
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
    assert assert_same(place / "sweep", undisturbed) == [0, 1, 2, 3]
    assert not list(place.rglob("failed.json"))
    assert not list(place.glob("sweep/*/checkpoints"))


def test_two_commands_on_one_folder(undisturbed, tmp_path):
    draws = random.Random(0)
    for round in range(INTERLEAVINGS):
        place = tmp_path / str(round)
        place.mkdir()
        seeds = [draws.sample(range(4), draws.randint(1, 3)) for _ in range(2)]
        if draws.random() < 0.5:
            seeds[1] = seeds[0]
        children = []
        for own in seeds:
            launcher = LAUNCHERS[draws.choice(["basic", "basic", "local"])]
            line = f"problem.seed={','.join(map(str, own))}"
            children.append(start(place, os.environ, *launcher, line, "resume=sweep"))
            time.sleep(draws.uniform(0.0, 8.0))
        ends = [finish(child, said) for child, said in children]
        wanted = sorted({seed for own in seeds for seed in own})
        assert assert_same(place / "sweep", undisturbed) == wanted, ends
        assert not list(place.rglob("failed.json"))
        for status, out in ends:
            assert status == 0 or "is in use by another run" in out, out
            assert "Traceback" not in out
