"""The same sweep through all launchers gives equal arrays; Slurm is a stand-in that runs job arrays on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import neuralode_flow as nf

SWEEP = [
    "-m", "problem=teacher", "problem.dimension=2", "problem.seed=0,1", "study.depths=[4]", "study.layers=[euler]",
    "study.workers=1", "time.samples=3",
]  # fmt: skip

SBATCH = """
import os, re, subprocess, sys
home, script = os.environ["STAND_IN"], sys.argv[-1]
first, last = map(int, re.search(r"#SBATCH --array=(\\d+)-(\\d+)", open(script).read()).groups())
job = str(os.getpid())
one = {"SLURM_JOB_ID": job, "SLURM_ARRAY_JOB_ID": job, "SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
one |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "localhost"}
for task in range(first, last + 1):
    log = open(f"{home}/{job}_{task}", "w")
    environment = {**os.environ, **one, "SLURM_ARRAY_TASK_ID": str(task)}
    subprocess.Popen(["bash", script], env=environment, stdout=log, stderr=log, start_new_session=True)
print(f"Submitted batch job {job}")
"""

# Slurm calls a job completed whatever became of it: what counts is the run folder.
SACCT = """
import os
print("JobID|State|NodeList")
for name in os.listdir(os.environ["STAND_IN"]):
    print(f"{name}|RUNNING|localhost")
"""

SRUN = """
import os, sys
rest = sys.argv[1:]
while rest[0].startswith("-"):
    rest = rest[2:] if rest[0] in ("--output", "--error") else rest[1:]
os.execvp(rest[0], rest)
"""


@pytest.fixture
def slurm(tmp_path):
    """An environment in which sbatch, sacct and srun are those above."""
    tools, state = tmp_path / "tools", tmp_path / "state"
    tools.mkdir()
    state.mkdir()
    for name, body in (("sbatch", SBATCH), ("sacct", SACCT), ("srun", SRUN)):
        path = tools / name
        path.write_text(f"#!{sys.executable}\n{body}")
        path.chmod(0o755)
    return {"PATH": f"{tools}:{os.environ['PATH']}", "STAND_IN": str(state)}


def test_every_launcher_gives_the_same_arrays(tmp_path, slurm):
    for name in ("basic", "local", "slurm"):
        line = [sys.executable, "-m", "neuralode_flow", *SWEEP, f"hydra/launcher={name}", f"resume={name}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(slurm if name == "slurm" else {})}
        ended = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=150)
        assert ended.returncode == 0, ended.stderr
    for seed in "01":
        first = nf.open(tmp_path / "basic" / seed)
        for name in ("local", "slurm"):
            other = nf.open(Path(tmp_path, name, seed))
            np.testing.assert_array_equal(first.z_finite, other.z_finite)
            np.testing.assert_array_equal(first.z_continuous, other.z_continuous)
