"""Private parts of other libraries: all that a new version of theirs may move or change without a word.

Each function gives or uses one of them, and nothing is imported before it is called. tests/test_compat.py tries every
part for what is expected of it here, and names the one that is no longer as it was.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from concurrent.futures import ProcessPoolExecutor

    import numpy as np
    import torch
    from hydra.core.utils import JobReturn
    from matplotlib.lines import Line2D
    from omegaconf import DictConfig
    from scipy.integrate import DenseOutput
    from torch import Tensor

# --- Python ---------------------------------------------------------------------------------------------------------


def end_at_once(status: int) -> NoReturn:
    """Ends this process as `sys.exit` does, but does not take down what was imported, which takes 0.3 s after torch.

    Under a debugger or profiler, or where other threads are at work, it is `sys.exit` itself.
    """
    if threading.active_count() == 1 and sys.getprofile() is None and sys.gettrace() is None:
        atexit._run_exitfuncs()
        with suppress(OSError, ValueError):  # such a stream Python itself complains about
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    sys.exit(status)


def end_pool(pool: ProcessPoolExecutor, patience: float) -> None:
    """Ends the workers of a pool by SIGTERM, and waits for them and its thread, seconds of patience at most.

    The thread alone joins them: of two that wait for one process, the one that comes second takes it for running.
    """
    workers = list((pool._processes or {}).values())  # forgotten when it is shut down, as the thread is
    thread: threading.Thread | None = vars(pool)["_executor_manager_thread"]
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.terminate()
    if thread and thread.ident:
        thread.join(patience)
        return
    for worker in workers:  # a fork has failed, or the start of the thread: nobody else waits for those that there are
        worker.join(patience)


# --- torch ----------------------------------------------------------------------------------------------------------


class TorchModes(NamedTuple):
    """What torch itself asks about its modes; each is called without an argument or with a tensor.

    Attributes
    ----------
    transform : callable
        The innermost transform of torch.func at work, or None.
    dispatch_modes : callable
        How many dispatch modes are at work.
    tracing : callable
        The state of torch.jit.trace, or None.
    forward_level : callable
        The level of forward-mode derivatives; -1 outside.
    is_wrapped, is_batched : callable
        Whether a tensor is that of a transform, and that of `vmap`.
    unwrapped : callable
        The tensor inside that of a transform.
    autocast : callable
        Whether autocast is at work on any device.
    """

    transform: Callable[[], object]
    dispatch_modes: Callable[[], int]
    tracing: Callable[[], object]
    forward_level: Callable[[], int]
    is_wrapped: Callable[[Tensor], bool]
    is_batched: Callable[[Tensor], bool]
    unwrapped: Callable[[Tensor], Tensor]
    autocast: Callable[[], bool]


def torch_modes() -> TorchModes:
    """The questions about modes."""
    import torch
    from torch.autograd import forward_ad

    functorch = torch._C._functorch
    return TorchModes(
        functorch.peek_interpreter_stack,
        torch._C._len_torch_dispatch_stack,
        torch._C._get_tracing_state,
        lambda: forward_ad._current_level,
        functorch.is_functorch_wrapped_tensor,
        functorch.is_batchedtensor,
        functorch.get_unwrapped,
        torch._C._is_any_autocast_enabled,
    )


def pulled_back(value: Tensor, start: Tensor, dual: Tensor | None, create_graph: bool = False) -> Tensor | None:
    """∂valueᵀ dual in start, as torch.autograd.grad has it, which imports sympy to compare the shapes of the two."""
    import torch
    from torch.autograd.graph import _engine_run_backward

    if dual is None or dual.shape != value.shape:  # whose error is a sentence
        return torch.autograd.grad(value, start, dual, create_graph=create_graph, allow_unused=True)[0]
    flags = {"allow_unreachable": True, "accumulate_grad": False}
    return _engine_run_backward((value,), (dual,), create_graph, create_graph, (start,), **flags)[0]


def standard_gamma(shape: Tensor, generator: torch.Generator) -> Tensor:
    """Gamma variables of unit scale; torch.distributions draws them from the global generator only."""
    import torch

    return torch._standard_gamma(shape, generator=generator)


# --- torchdiffeq: its solver classes, driven step by step -----------------------------------------------------------


def torchdiffeq_solver(name: str, field: Callable[..., Tensor], start: Tensor, **options: Any) -> Any:
    """A solver; an adaptive one measures errors by their root mean square."""
    from torchdiffeq._impl.misc import _rms_norm
    from torchdiffeq._impl.odeint import SOLVERS
    from torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver

    solver = SOLVERS[name]
    if issubclass(solver, RKAdaptiveStepsizeODESolver):
        options["norm"] = _rms_norm
    return solver(func=field, y0=start, **options)


def adaptive_start(solver: Any, t: Tensor, state: Tensor, slope: Tensor | None, step: Tensor | None) -> Any:
    """Where an adaptive solver starts (fields y1, f1, t1, dt); a slope and a step that are known are not computed."""
    from torchdiffeq._impl.rk_common import _RungeKuttaState

    if slope is None:
        solver._before_integrate(t[None])
        return solver.rk_state
    solver.step_t = solver.jump_t = ()
    return _RungeKuttaState(state, slope, t, t, step, [])


def adaptive_step(solver: Any, start: Any) -> Any:
    """One attempt of a step of `start.dt`; t1 stays what it was where it is refused."""
    return solver._adaptive_step(start)


def fixed_step(solver: Any, start: Tensor, end: Tensor, state: Tensor) -> Tensor:
    """The change of the state in one step of a method of fixed steps."""
    return solver._step_func(solver.func, start, end - start, end, state)[0]


def forget_steps(solver: Any) -> None:
    """Makes a multistep method start anew."""
    solver.prev_f.clear()
    solver.prev_t = None


# --- SciPy ----------------------------------------------------------------------------------------------------------


def radau_polynomial(t_old: float, t: float, y_old: np.ndarray, Q: np.ndarray) -> DenseOutput:
    """The polynomial of Radau's last step, with its attributes t_old, y_old and Q, from which the next one starts."""
    from scipy.integrate._ivp.radau import RadauDenseOutput

    return RadauDenseOutput(t_old, t, y_old, Q)


# --- scikit-learn ----------------------------------------------------------------------------------------------------


def sklearn_table(name: str, *, delimiter: str | None = ",", skip: int = 0) -> np.ndarray:
    """The numbers of a file among its data sets; importing it takes longer than a short study.

    Parameters
    ----------
    name : str
        Of the file, such as "breast_cancer.csv".
    delimiter : str or None
        Between two numbers; None is white space.
    skip : int
        Lines before the first row.
    """
    from importlib.util import find_spec

    import numpy as np

    found = find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("the bundled problems need the data sets of scikit-learn: pip install scikit-learn")
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / name
    return np.loadtxt(path, delimiter=delimiter, skiprows=skip, ndmin=2)


# --- Matplotlib -----------------------------------------------------------------------------------------------------


def dash_pattern(line: Line2D) -> Sequence[float]:
    """On and off lengths in units of the width of a line; empty for a solid one."""
    return line._unscaled_dash_pattern[1] or ()  # type: ignore[attr-defined]


# --- Hydra ----------------------------------------------------------------------------------------------------------


@contextmanager
def hydra_alone() -> Iterator[None]:
    """Hydra as it is at the start of a process, whoever uses it around this; afterwards it is as it was before."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.singleton import Singleton
    from omegaconf.basecontainer import BaseContainer

    before, resolvers = Singleton._instances, dict(BaseContainer._resolvers)
    store = ConfigStore.instance()  # Hydra's own configs are put there when it is imported, once
    Singleton._instances = {ConfigStore: store}  # type: ignore[dict-item]
    try:
        yield
    finally:
        Singleton._instances = before
        BaseContainer._resolvers = resolvers


@contextmanager
def composed_for_mode(look: Callable[[str, DictConfig], None] | None = None) -> Iterator[None]:
    """Lets Hydra run the config that it has composed to find hydra.mode, which it would compose again for a command.

    Where no mode was found, none but that one is set in between. Sweeps among the overrides of a single run, and groups
    without a choice, are for Hydra to refuse: that the command line has none of the former is not looked at again.

    Parameters
    ----------
    look : callable, optional
        Is shown the name of the config and that config before anything is run.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.hydra import Hydra
    from omegaconf import OmegaConf

    find, load = Hydra.get_mode, ConfigLoaderImpl.load_configuration
    kept: list[tuple[Any, list[str], DictConfig]] = []
    finding = False

    def get_mode(self: Any, config_name: str | None, overrides: list[str]) -> Any:
        nonlocal finding
        finding = True
        try:
            mode = find(self, config_name, overrides)
        finally:
            finding = False
        if look is not None and kept:
            look(str(config_name), kept[-1][2])
        if mode is not None:
            kept.clear()
        return mode

    def load_configuration(
        self: Any, config_name: str | None, overrides: list[str], run_mode: Any, *others: Any, **options: Any
    ) -> DictConfig:
        if kept:
            loader, before, config = kept.pop()
            whole = not OmegaConf.missing_keys(config.hydra.runtime.choices)
            *own, last = overrides or [""]
            if whole and loader is self and own == before and last == f"hydra.mode={run_mode.name}":
                config.hydra.mode = run_mode
                config.hydra.overrides.hydra.append(last)
                return config
        config = load(self, config_name, overrides, run_mode, *others, **options)
        if finding:
            kept.append((self, list(overrides), config))
        return config

    Hydra.get_mode, ConfigLoaderImpl.load_configuration = get_mode, load_configuration  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode, ConfigLoaderImpl.load_configuration = find, load  # type: ignore[method-assign]


def hydra_arguments() -> ArgumentParser:
    """The parser of Hydra's command line."""
    from hydra._internal.utils import get_args_parser

    return get_args_parser()


def is_basic_sweeper(target: str) -> bool:
    """Whether a sweeper, by its class, is Hydra's own."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return target.endswith(f".{BasicSweeper.__name__}")


def sweep_points(overrides: Sequence[Any]) -> list[list[str]]:
    """The points that Hydra's own sweeper makes of parsed overrides."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return [list(point) for batch in BasicSweeper.split_arguments(list(overrides), None) for point in batch]


def compose_once(checked: Collection[tuple[str, ...]]) -> None:
    """Keeps Hydra's own sweeper from composing once more, to see whether it can be, each point that is `checked`."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    sweeper: Any = BasicSweeper
    validate = getattr(sweeper.validate_batch_is_legal, "__wrapped__", sweeper.validate_batch_is_legal)

    @functools.wraps(validate)
    def validate_others(self: Any, batch: Sequence[Sequence[str]]) -> None:
        validate(self, [point for point in batch if tuple(point) not in checked])

    sweeper.validate_batch_is_legal = validate_others


def overrides_name(overrides: Sequence[Any], **how: Any) -> str:
    """What hydra.job.override_dirname is for parsed overrides and the settings hydra.job.config.override_dirname."""
    from hydra._internal.config_loader_impl import get_overrides_dirname

    return get_overrides_dirname(list(overrides), **how)


def completed(value: Any = None) -> JobReturn:
    """What a launcher gives Hydra for a job that has ended well."""
    from hydra.core.utils import JobReturn, JobStatus

    return JobReturn(_return_value=value, status=JobStatus.COMPLETED)


def is_basic_launcher(launcher: Any) -> bool:
    """Whether members are launched by Hydra itself, one after the other."""
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    return type(launcher) is BasicLauncher


def said_by_launcher(message: str) -> None:
    """Says something where Hydra's own launcher does."""
    from hydra._internal.core_plugins import basic_launcher

    basic_launcher.log.info(message)


def returned(job: JobReturn) -> Any:
    """What a job has returned, or the exception that has ended it."""
    return job._return_value


# --- launchers ------------------------------------------------------------------------------------------------------

Launch = Callable[..., Any]


def wrap_joblib(wrapper: Callable[[Launch], Launch]) -> None:
    """Puts a function around the launch of joblib's launcher."""
    from hydra_plugins.hydra_joblib_launcher import _core

    _core.launch = wrapper(_core.launch)


def joblib_killed() -> type[Exception]:
    """What joblib raises when one of its workers is killed."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    return TerminatedWorkerError


def replace_submitit_failures(told: Callable[[Any, str | None], Any]) -> None:
    """Gives `told(job, trace)` for the result of a job of submitit that has none.

    The trace is that of the exception which has ended it, or None where the job ended without a word.
    """
    from submitit.core.core import Job
    from submitit.core.utils import FailedJobError, UncompletedJobError

    job_class: Any = Job
    results = getattr(job_class.results, "__wrapped__", job_class.results)

    @functools.wraps(results)
    def outcome(job: Any) -> list[Any]:
        try:
            return results(job)
        except FailedJobError as error:  # one of the others too, so that it stands first
            return [told(job, str(error).partition("with trace:")[2].rpartition("You can check")[0])]
        except UncompletedJobError:
            return [told(job, None)]

    job_class.results = outcome


def watch_slurm(ask: Callable[[Collection[str]], tuple[str, str]], pause: float) -> None:
    """Makes submitit learn the states of its jobs by `ask`, at least every `pause` seconds.

    Parameters
    ----------
    ask : callable
        From numbers of jobs to a line "JobID|State|NodeList" for each that is known, and the state of the others
        ("" where that stays what it was).
    pause : float
    """
    from submitit.slurm.slurm import SlurmJob

    watcher: Any = SlurmJob.watcher

    def update() -> None:
        jobs = watcher._registered - watcher._finished
        if jobs:
            watcher._num_calls += 1
            watcher._last_status_check = time.time()
            table, others = ask({job.partition("_")[0] for job in jobs})
            if others:
                watcher._info_dict.update(dict.fromkeys(jobs, {"State": others}))
            watcher._info_dict.update(watcher.read_info(f"JobID|State|NodeList\n{table}"))
            watcher._finished |= {job for job in jobs if watcher.is_done(job, mode="cache")}

    watcher.update, watcher._delay_s = update, pause


def wrap_ray(member: Launch, submitted: Callable[[Launch], Launch], result: Callable[[Any], Any]) -> None:
    """Makes Ray's launcher run `member` in its workers, submit jobs by `submitted(its own)`, and fetch by `result`."""
    from hydra_plugins.hydra_ray_launcher import _core, _launcher_util

    _launcher_util._run_job = member
    _core.launch_job_on_ray = submitted(_core.launch_job_on_ray)
    _core.ray = SimpleNamespace(get=result)


def run_ray_job(**arguments: Any) -> Any:
    """What Ray's launcher runs in a worker, where nothing is replaced."""
    from hydra_plugins.hydra_ray_launcher._launcher_util import _run_job

    return _run_job(**arguments)
