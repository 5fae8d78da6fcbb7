"""Launchers of other packages, made to keep a sweep going when one of their workers is killed.

Both let the whole sweep end there; what is replaced are functions of their modules, which the tests run.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from .errors import BadInput, complain, first_line
from .runfolder import SUMMARY, record_failure

_JOBLIB, _SUBMITIT, _RAY = (f"hydra_plugins.hydra_{name}_launcher" for name in ("joblib", "submitit", "ray"))

# The extra that brings each.
_EXTRAS = {_JOBLIB: "local", _SUBMITIT: "slurm", _RAY: "ray"}
_MOST_RESTARTS = 5


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
            if not (folder / SUMMARY).exists():
                record_failure(folder, list(map(str, hydra.overrides.task)), f"Ray gave it up: {first_line(error)}")
            return JobReturn(status=JobStatus.COMPLETED)  # as of every member that has failed

    _launcher_util._run_job = member
    _core.launch_job_on_ray = submitted
    _core.ray = SimpleNamespace(get=result)
