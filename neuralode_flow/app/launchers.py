"""Launchers of other packages, made to keep a sweep going when one of their workers is killed.

They let the whole sweep end there; what is replaced are functions of their modules, which the tests run.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import time
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from .errors import BadInput, complain, first_line
from .runfolder import record_failure

_JOBLIB, _SUBMITIT, _RAY = (f"hydra_plugins.hydra_{name}_launcher" for name in ("joblib", "submitit", "ray"))

# The extra that brings each.
_EXTRAS = {_JOBLIB: "local", _SUBMITIT: "slurm", _RAY: "ray"}
_MOST_RESTARTS = 5
_POLL = 30.0  # seconds between two looks at the states of jobs, at most; submitit's own are ten minutes


def prepare(target: str) -> None:
    """Raises BadInput where the launcher that was chosen, by its class, is not installed; else prepares it."""
    package = ".".join(target.split(".")[:2])
    if package in _EXTRAS and importlib.util.find_spec(package) is None:
        raise BadInput(
            f"the launcher {target.rpartition('.')[2]} is not installed; run pip install "
            f"'neuralode_flow[{_EXTRAS[package]}]', or choose hydra/launcher=basic"
        )
    if package == _JOBLIB:
        _prepare_joblib()
    elif package == _SUBMITIT:
        _prepare_submitit()
    elif package == _RAY:
        _prepare_ray()


def _prepare_joblib() -> None:
    """joblib gives up when a worker is killed: the members that are missing are started again."""
    from hydra_plugins.hydra_joblib_launcher import _core
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    launch = _core.launch

    def launch_again(**arguments: Any) -> Any:
        for _ in range(_MOST_RESTARTS):
            try:
                return launch(**arguments)
            except TerminatedWorkerError:
                complain("a worker of the sweep was killed; the members that are missing are started again")
        return launch(**arguments)

    _core.launch = launch_again


def _prepare_submitit() -> None:
    """A job that ends without a result leaves the others alone, and is noticed also where Slurm keeps no accounts."""
    from submitit.core import core
    from submitit.core.utils import FailedJobError, UncompletedJobError
    from submitit.slurm import slurm

    any_job: Any = core.Job
    watcher: Any = slurm.SlurmJob.watcher
    results = getattr(any_job.results, "__wrapped__", any_job.results)

    @functools.wraps(results)
    def outcome(job: Any) -> list[Any]:
        try:
            return results(job)
        except UncompletedJobError:
            why = f"its job {job.job_id} ended ({job.state})"
        except FailedJobError as error:
            trace = str(error).partition("with trace:")[2].rpartition("You can check")[0]
            lines = [line.strip() for line in trace.splitlines() if line.strip(" -")]
            why = f"its job {job.job_id} ended: {lines[-1].rpartition('Error: ')[2] if lines else job.state}"
        return [JobReturn(_return_value=f"{why}, see {job.paths.stderr}", status=JobStatus.COMPLETED)]

    any_job.results = outcome
    watcher.update = functools.partial(_ask_slurm, watcher)
    watcher._delay_s = _POLL


def _ask_slurm(watcher: Any) -> None:
    """Fills in the states of the jobs that submitit waits for."""
    jobs = watcher._registered - watcher._finished
    numbers = {job.partition("_")[0] for job in jobs}
    if jobs:
        watcher._num_calls += 1
        watcher._last_status_check = time.time()
        table = _accounts(numbers)
        if table is None:
            table = _queue(numbers)
            gone = "GONE" if table is not None else "UNKNOWN"  # a queue forgets a job some minutes after its end
            watcher._info_dict.update(dict.fromkeys(jobs, {"State": gone}))
        watcher._info_dict.update(watcher.read_info("JobID|State|NodeList\n" + (table or "")))
        watcher._finished |= {job for job in jobs if watcher.is_done(job, mode="cache")}


def _accounts(numbers: Collection[str]) -> str | None:
    """A line for each job in Slurm's accounts; None where it keeps none."""
    command = ["sacct", "--noheader", "--parsable2", "--format=JobID,State,NodeList", f"--jobs={','.join(numbers)}"]
    return _said(command)


def _queue(numbers: Collection[str]) -> str | None:
    """A line for each job in Slurm's queue; None where that cannot be asked."""
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%N", f"--jobs={','.join(numbers)}"]
    return _said(command, unless="Invalid job id")


def _said(command: list[str], unless: str = "\n") -> str | None:
    """What a command prints, or "" if it fails saying `unless`; None if it fails otherwise."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if ended.returncode:
        return "" if unless in ended.stderr.strip() else None
    return ended.stdout


def _prepare_ray() -> None:
    """Ray tries a member again whose worker is killed; one that it has given up leaves the others alone.

    Members run in the folder of this process: the workers of a cluster start in that of `ray start`.
    """
    import ray
    from hydra_plugins.hydra_ray_launcher import _core, _launcher_util

    here, submit = os.getcwd(), _core.launch_job_on_ray
    configs: dict[Any, DictConfig] = {}

    def member(**arguments: Any) -> Any:
        from hydra_plugins.hydra_ray_launcher._launcher_util import _run_job  # in the worker: that of the launcher

        os.chdir(here)
        return _run_job(**arguments)

    def submitted(hydra_context: Any, remote: Any, config: DictConfig, *rest: Any) -> Any:
        task = submit(hydra_context, remote, config, *rest)
        configs[task] = config
        return task

    def result(task: Any) -> Any:
        try:
            return ray.get(task)
        except ray.exceptions.RayError as error:
            hydra = configs[task].hydra
            folder = Path(hydra.sweep.dir, str(hydra.sweep.subdir))
            record_failure(folder, list(map(str, hydra.overrides.task)), f"Ray gave it up: {first_line(error)}")
            return JobReturn(status=JobStatus.COMPLETED)  # as of every member that has failed

    _launcher_util._run_job = member
    _core.launch_job_on_ray = submitted
    _core.ray = SimpleNamespace(get=result)
