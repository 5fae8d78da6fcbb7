"""Sweeps on a real Slurm whose jobs are told to end: nothing is lost, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import slurm as real
import xarray as xr

import neuralode_flow as nf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(real.MISSING), reason=f"no Slurm can be started here: {', '.join(real.MISSING)} is missing"
    ),
]
MEMBERS = int(os.environ.get("NEURALODE_FLOW_MEMBERS", "4"))
PLUGIN = """
import os, time
from pathlib import Path
from neuralode_flow.losses import LOSSES, Quadratic

class Waits(Quadratic):
    calls = 0
    def gradient(self, z):
        self.calls += 1
        if self.calls == 60:
            Path(f"waiting.{os.getpid()}").touch()
        while self.calls == 60 and not Path("go").exists():
            time.sleep(0.02)
        return super().gradient(z)

@LOSSES.register("waits")
def waits(inputs, outputs, readin=None, readout=None):
    target = outputs.T @ inputs / len(inputs)
    return Waits(target)
"""
SWEEP = [
    "-m", "problem=linnerud", "problem.loss=waits", "study=trajectory", "study.model=finite", "study.network_depth=3",
    "study.estimate=false", "time.method=dopri5", "time.samples=3", "time.rtol=1e-9", "save_every=0", "plugins=[waits]",
    "figures=none",
    "time.horizon=" + ",".join(f"{1 + i / 8}" for i in range(MEMBERS)),
]  # fmt: skip
ON_SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null", "resume=sweep"]


@pytest.fixture
def cluster(tmp_path):
    """The variables of a running Slurm."""
    with real.slurm(tmp_path / "slurm") as environment:
        yield {**environment, "OMP_NUM_THREADS": "1", "TERM": "dumb"}


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "waits.py").write_text(PLUGIN)
    return folder


def start(place, environment, *settings):
    line = [sys.executable, "-m", "neuralode_flow", *SWEEP, *settings]
    return subprocess.Popen(line, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(child):
    out, err = child.communicate(timeout=400)
    return child.returncode, out, err


def until(condition, seconds=120.0):
    last = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.1)


def ask(environment, *command):
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout


def jobs(environment):
    """The state of each job, by its number in the array."""
    lines = ask(environment, "squeue", "--noheader", "--array", "--states=all", "--format=%K|%T").splitlines()
    return dict(line.split("|") for line in lines)


def waiting(place):
    return len(list(place.glob("waiting.*")))


def test_members_that_are_told_to_end_in_three_ways_go_on_to_the_same_bits(cluster, place):
    first = start(place, cluster, *ON_SLURM)
    until(lambda: waiting(place) == MEMBERS)
    array = ask(cluster, "squeue", "--noheader", "--format=%F").split()[0]
    ask(cluster, "scancel", f"{array}_1")
    ask(cluster, "scancel", "--signal=TERM", f"{array}_2")
    ask(cluster, "scancel", "--signal=USR2", f"{array}_3")  # what Slurm sends before the time limit
    until(lambda: jobs(cluster)["1"] == "CANCELLED" and jobs(cluster)["3"] == "PENDING")
    ask(cluster, "scontrol", "update", f"JobId={array}_3", "StartTime=now")  # Slurm itself waits two minutes
    (place / "go").touch()
    other = start(place, cluster, "resume=undisturbed")
    assert finish(other)[0] == 0
    status, _, err = finish(first)
    assert status == 1
    told = [line for line in err.splitlines() if line.startswith("neuralode-flow: ")]
    assert len(told) == 3, err
    assert f"lost: its job {array}_1 ended (CANCELLED), see " in told[0]
    assert f"lost: its job {array}_2 ended (FAILED), see " in told[1]
    assert all("what it had reached is saved" in line for line in told[:2])
    assert told[2].startswith(f"neuralode-flow: {MEMBERS - 2} of {MEMBERS} members have finished in sweep; ")
    ended = {path.parent.name for path in place.glob("sweep/*/summary.json")}
    assert ended == {str(i) for i in range(MEMBERS)} - {"1", "2"}
    assert not list(place.glob("sweep/*/failed.json"))

    done = {path: path.stat().st_mtime_ns for path in place.glob("sweep/*/summary.json")}
    status, out, err = finish(start(place, cluster, *ON_SLURM))
    assert status == 0, err
    assert out.count("this run is finished") == MEMBERS - 2
    assert {path: path.stat().st_mtime_ns for path in done} == done
    for i in range(MEMBERS):
        xr.testing.assert_equal(nf.open(place / f"sweep/{i}"), nf.open(place / f"undisturbed/{i}"))


def started(pid):
    """When a process was started, in ticks: the numbers of processes begin anew at some time."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_a_drained_node_a_requeue_and_a_process_that_is_killed(cluster, place):
    settings = [*ON_SLURM, "time.horizon=1,2,3"]
    first = start(place, cluster, *settings)
    until(lambda: waiting(place) == 3)
    array, node = ask(cluster, "squeue", "--noheader", "--format=%F %N").split()[:2]
    ask(cluster, "scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    ask(cluster, "scontrol", "requeue", f"{array}_1")
    found = [pid for pid in os.listdir("/proc") if pid.isdecimal() and f"{array}_2" == task_of(pid)]
    parents = [pid for pid in found if b"submitit.core" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(min(parents, key=started)), signal.SIGKILL)
    until(lambda: not any(task_of(pid) == f"{array}_2" for pid in os.listdir("/proc") if pid.isdecimal()))
    (place / "go").touch()
    until(lambda: jobs(cluster)["1"] == "PENDING")
    until(lambda: jobs(cluster)["0"] == "COMPLETED")
    assert sorted(path.parent.name for path in place.glob("sweep/*/summary.json")) == ["0"]
    ask(cluster, "scontrol", "update", f"NodeName={node}", "State=RESUME")
    ask(cluster, "scontrol", "update", f"JobId={array}_1", "StartTime=now")
    status, _, err = finish(first)
    assert status == 1
    assert f"was lost: its job {array}_2 ended (FAILED)" in err
    assert "2 of 3 members have finished" in err
    assert finish(start(place, cluster, *settings))[0] == 0
    assert len(list(place.glob("sweep/*/summary.json"))) == 3


def task_of(pid):
    """The job of a process, as ARRAY_TASK."""
    with suppress(OSError):
        pairs = (line.partition(b"=") for line in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
        variables = {name.decode(): value.decode(errors="replace") for name, _, value in pairs}
        return f"{variables.get('SLURM_ARRAY_JOB_ID')}_{variables.get('SLURM_ARRAY_TASK_ID')}"
    return None
