"""A real Slurm with one node, this machine, for the tests of sweeps: its daemons live in a folder of their own.

`with slurm(folder) as environment` starts it, and gives the variables with which its commands find it. It needs
root and the Debian packages slurm-wlm and munge.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
MISSING = [name for name in NEEDED if shutil.which(name, path=PATH) is None] or (["root"] if os.geteuid() else [])

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SlurmUser=root
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
KillWait=5
MinJobAge=600
ReturnToService=2
PluginDir={plugins}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
"""


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Starts the daemons in a folder, waits until the node takes jobs, and ends them with all jobs."""
    folder.mkdir(parents=True)
    for name in ("spool", "state"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    plugins = next(Path("/usr/lib").glob("*/slurm-wlm"))
    config = folder / "slurm.conf"
    config.write_text(
        CONFIG.format(
            folder=folder, host=host, ports=_free_ports(2), cpus=len(os.sched_getaffinity(0)), plugins=plugins
        )
    )
    environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(config)}
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("log", "pid", "seed")]
    with ExitStack() as stack:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            log = stack.enter_context((folder / f"{command[0]}.out").open("wb"))
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            stack.callback(_end, daemon)
            if command is munge:
                _until(lambda: (folder / "munge.socket").exists(), folder)
        _until(lambda: "idle" in _run(environment, "sinfo", "--noheader", "--format=%T"), folder)
        stack.callback(_cancel_all, environment)
        yield environment


def _run(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout


def _cancel_all(environment: dict[str, str]) -> None:
    _run(environment, "scancel", "--signal=KILL", "--full", "--user=root")
    _run(environment, "scancel", "--user=root")
    last = time.monotonic() + 30
    while _run(environment, "squeue", "--noheader").strip() and time.monotonic() < last:
        time.sleep(0.2)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _until(ready: Callable[[], bool], folder: Path) -> None:
    last = time.monotonic() + 60
    while not ready():
        if time.monotonic() > last:
            logs = "\n".join(f"{p.name}: {p.read_text(errors='replace')[-2000:]}" for p in folder.glob("*.out"))
            raise RuntimeError(f"Slurm did not start in {folder}:\n{logs}")
        time.sleep(0.1)
