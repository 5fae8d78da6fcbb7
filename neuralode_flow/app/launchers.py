"""Launchers of other packages, made to keep a sweep going when one of their workers is killed.

They let the whole sweep end there; what of them is replaced is in neuralode_flow/compat.py.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from .. import compat
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
    killed = compat.joblib_killed()

    def again(launch: compat.Launch) -> compat.Launch:
        def launch_again(**arguments: Any) -> Any:
            for _ in range(_MOST_RESTARTS):
                try:
                    return launch(**arguments)
                except killed:
                    complain("a worker of the sweep was killed; the members that are missing are started again")
            return launch(**arguments)

        return launch_again

    compat.wrap_joblib(again)


def _prepare_submitit() -> None:
    """A job that ends without a result leaves the others alone, and is noticed also where Slurm keeps no accounts."""

    def told(job: Any, trace: str | None) -> Any:
        why = f" ({job.state})"
        if trace is not None:
            lines = [line.strip() for line in trace.splitlines() if line.strip(" -")]
            why = f": {lines[-1].rpartition('Error: ')[2] if lines else job.state}"
        return compat.completed(f"its job {job.job_id} ended{why}, see {job.paths.stderr}")

    compat.replace_submitit_failures(told)
    compat.watch_slurm(_ask_slurm, _POLL)


def _ask_slurm(jobs: Collection[str]) -> tuple[str, str]:
    """A line for each job that Slurm knows, and the state of those that it does not."""
    table = _accounts(jobs)
    if table is not None:
        return table, ""
    table = _queue(jobs)
    return table or "", "GONE" if table is not None else "UNKNOWN"  # a queue forgets a job some minutes after its end


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

    here = os.getcwd()
    configs: dict[Any, DictConfig] = {}

    def member(**arguments: Any) -> Any:
        os.chdir(here)
        return compat.run_ray_job(**arguments)

    def noted(submit: compat.Launch) -> compat.Launch:
        def submitted(hydra_context: Any, remote: Any, config: DictConfig, *rest: Any) -> Any:
            task = submit(hydra_context, remote, config, *rest)
            configs[task] = config
            return task

        return submitted

    def result(task: Any) -> Any:
        try:
            return ray.get(task)
        except ray.exceptions.RayError as error:
            hydra = configs[task].hydra
            folder = Path(hydra.sweep.dir, str(hydra.sweep.subdir))
            record_failure(folder, list(map(str, hydra.overrides.task)), f"Ray gave it up: {first_line(error)}")
            return compat.completed()  # as of every member that has failed

    compat.wrap_ray(member, noted, result)
