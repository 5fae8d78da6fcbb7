"""Private parts of other libraries are as `compat` expects them; each test names its part and fails when it moves."""

from __future__ import annotations

import ast
import inspect
import math
import multiprocessing
import re
import subprocess
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import numpy as np
import pytest
import scipy.integrate
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import RunMode
from matplotlib.lines import Line2D
from omegaconf import OmegaConf
from torch.autograd import forward_ad

import neuralode_flow as nf
from neuralode_flow import compat
from neuralode_flow.compat import torch_modes
from neuralode_flow.time.methods import torchdiffeq as methods

PACKAGE = Path(nf.__file__).parent

# Underscores that are no private parts: of documented functions, of named tuples, and of keys in configs of Hydra.
PUBLIC = {"_exit", "_replace", "_asdict", "_fields", "_make", "_target_"}


def names_of(tree: ast.AST) -> set[str]:
    """What a module of ours defines itself: functions, classes, variables, attributes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            own = isinstance(node, ast.Name) or (isinstance(node.value, ast.Name) and node.value.id in ("self", "new"))
            found |= {node.id if isinstance(node, ast.Name) else node.attr} if own else set()
    return found


def borrowed(tree: ast.AST, own: set[str]) -> set[str]:
    """Private parts of other libraries that a module names."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and node.attr not in own:
            found |= {f".{node.attr}"}
    return {name for name in found if re.search(r"(^|\.)_(?!_)", name) and name.rpartition(".")[2] not in PUBLIC}


def test_tables_of_scikit_learn() -> None:
    """The files have the numbers that its own functions return, to the bit."""
    from sklearn.datasets import load_breast_cancer, load_digits, load_linnerud

    tumours = compat.sklearn_table("breast_cancer.csv", skip=1)
    assert np.array_equal(tumours[:, :-1], load_breast_cancer().data)
    assert np.array_equal(compat.sklearn_table("digits.csv.gz")[:, :-1], load_digits().data)
    for part, expected in (("exercise", load_linnerud().data), ("physiological", load_linnerud().target)):
        assert np.array_equal(compat.sklearn_table(f"linnerud_{part}.csv", delimiter=None, skip=1), expected)


def test_no_other_module_names_a_private_part() -> None:
    trees = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
    own = set().union(*map(names_of, trees.values()))
    parts = {name: parts for name, tree in trees.items() if (parts := borrowed(tree, own))}
    assert set(parts) == {"compat.py"}
    assert len(parts["compat.py"]) > 15


def test_every_part_is_tried() -> None:
    tests = Path(__file__).read_text("utf-8")
    for name, part in vars(compat).items():
        if inspect.isfunction(part) and part.__module__ == compat.__name__:
            assert f"{name}(" in tests, name


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, neuralode_flow.compat; print(*{'torch', 'scipy', 'hydra', 'matplotlib'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ""


# --- Python ---------------------------------------------------------------------------------------------------------

ENDING = """
import atexit, sys, threading, time
from neuralode_flow.compat import end_at_once

class Kept:
    def __del__(self):
        print("taken down")

kept = Kept()
atexit.register(print, "at exit")
print("said", end=" ")
if sys.argv[1] == "profiled":
    sys.setprofile(eval("lambda *event: None", {}))  # with names of its own, so that those here are taken down
elif sys.argv[1] == "threaded":
    threading.Thread(target=time.sleep, args=[0.3]).start()
end_at_once(7)
"""


@pytest.mark.parametrize("how", ["alone", "profiled", "threaded"])
def test_python_ends_at_once_with_all_that_was_said(how: str) -> None:
    ended = subprocess.run([sys.executable, "-c", ENDING, how], capture_output=True, text=True)
    said = "said at exit\n" + ("" if how == "alone" else "taken down\n")
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, said, "")


def test_python_ends_the_workers_of_a_pool() -> None:
    context = multiprocessing.get_context("fork")
    own = context.Process(target=time.sleep, args=(60,))
    own.start()
    pool = ProcessPoolExecutor(2, context)
    started = time.monotonic()
    compat.end_pool(pool, 30.0)  # it has no workers yet
    pool = ProcessPoolExecutor(2, context)
    for _ in range(2):
        pool.submit(time.sleep, 60.0)
    compat.end_pool(pool, 30.0)
    assert time.monotonic() < started + 20
    assert multiprocessing.active_children() == [own]
    own.kill()
    own.join()


# --- torch ----------------------------------------------------------------------------------------------------------


def seen(ask: str) -> dict[str, object]:
    """What a question about modes answers in each of them."""
    question, answers, x = getattr(torch_modes(), ask), {}, torch.ones(2)

    def note(mode: str, tensor: torch.Tensor) -> torch.Tensor:
        answers[mode] = question()
        return tensor * 2

    note("eager", x)
    torch.func.vmap(lambda t: note("vmap", t))(x)
    torch.func.grad(lambda t: note("grad", t).sum())(x)
    with torch.utils._python_dispatch.TorchDispatchMode():
        answers["dispatch"] = question()
    torch.jit.trace(lambda t: note("trace", t), x, check_trace=False)
    with forward_ad.dual_level():
        note("forward", x)
    return answers


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
@pytest.mark.parametrize(
    ("ask", "rest", "modes"),
    [("transform", None, {"vmap", "grad"}), ("dispatch_modes", 0, {"dispatch"}), ("tracing", None, {"trace"}),
     ("forward_level", -1, {"forward"})],
)  # fmt: skip
def test_torch_tells_its_modes(ask: str, rest: object, modes: set[str]) -> None:
    answers = seen(ask)
    assert {mode for mode, answer in answers.items() if answer != rest} == modes, (ask, answers)


def test_torch_tells_wrapped_tensors() -> None:
    modes, found = torch_modes(), []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        found.append((modes.is_wrapped(tensor), modes.is_batched(tensor)))
        return tensor.sum()

    x = torch.ones(3, 2)
    look(x)
    torch.func.grad(look)(x)
    torch.func.vmap(look)(x)
    torch.func.vmap(lambda t: look(t) if modes.unwrapped(t).shape == (3, 2) else None)(x)
    assert found == [(False, False), (True, False), (True, True), (True, True)]


def test_torch_tells_whether_autocast_is_at_work() -> None:
    at_work = torch_modes().autocast
    assert not at_work()
    with torch.autocast("cpu", torch.bfloat16):
        assert at_work()
        with torch.autocast("cpu", enabled=False):
            assert not at_work()


def test_torch_draws_gamma_variables_from_a_generator() -> None:
    shape = torch.full((20_000,), 2.5, dtype=torch.float64)
    one, other = (compat.standard_gamma(shape, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, other)
    assert abs(one.mean() - 2.5) < 0.05
    assert abs(one.var() - 2.5) < 0.15


def test_torch_pulls_back_to_the_bit_as_its_documented_function_does() -> None:
    start = torch.linspace(-1, 2, 6, requires_grad=True)
    value = torch.outer(start.sin(), start).mT
    dual = torch.linspace(-2, 1, 36).reshape(6, 6)
    for graph in (True, False):
        (wanted,) = torch.autograd.grad(value, start, dual, retain_graph=True, create_graph=graph)
        found = compat.pulled_back(value, start, dual, create_graph=graph)
        assert found is not None
        assert torch.equal(found, wanted)
        assert found.requires_grad == graph
    apart = torch.ones(2, requires_grad=True)
    assert compat.pulled_back(2 * start, apart, torch.ones(6)) is None
    with pytest.raises(RuntimeError, match="shape"):
        compat.pulled_back(start.cos(), start, dual)


# --- torchdiffeq ----------------------------------------------------------------------------------------------------


class Decay:
    """y′ = −y, as torchdiffeq calls it."""

    def __call__(self, t: torch.Tensor, y: torch.Tensor, *, perturb: object = None) -> torch.Tensor:
        return -y

    def callback_step(self, *_: object) -> None: ...

    callback_accept_step = callback_reject_step = callback_step


def solver(name: str, **options: object) -> object:
    return compat.torchdiffeq_solver(name, Decay(), torch.ones(3).double(), rtol=1e-3, atol=1e-3, **options)


@pytest.mark.parametrize("name", methods.ADAPTIVE)
def test_torchdiffeq_takes_adaptive_steps(name: str) -> None:
    t, step, y = (torch.tensor(v).double() for v in (0.0, 0.01, [1.0, 1.0, 1.0]))
    first = compat.adaptive_start(solver(name, first_step=0.01), t, y, None, None)
    again = solver(name)
    known = compat.adaptive_start(again, t, y, -y, step)
    for start in (first, known):
        ended = compat.adaptive_step(again, start)
        assert float(ended.t1) == 0.01
        assert float(ended.dt) > 0
        assert (ended.f1 + ended.y1).abs().max() < 1e-3
        assert (ended.y1 - math.exp(-0.01)).abs().max() < 1e-6
    assert {"y1", "f1", "t1", "dt"} <= set(first._fields)


def test_torchdiffeq_measures_errors_by_their_root_mean_square() -> None:
    assert abs(float(solver("dopri5").norm(torch.tensor([3.0, 4.0]))) - math.sqrt(12.5)) < 1e-6


@pytest.mark.parametrize("name", [*methods.ONE_STEP, *methods.MULTISTEP])
def test_torchdiffeq_takes_fixed_steps(name: str) -> None:
    stepping, y, t = solver(name), torch.ones(3).double(), torch.linspace(0, 0.05, 6).double()
    for start, end in zip(t[:-1], t[1:], strict=True):
        change = compat.fixed_step(stepping, start, end, y)
        y = y + change
    assert (y - math.exp(-0.05)).abs().max() < 1e-3
    if name in methods.MULTISTEP:
        assert len(stepping.prev_f) > 1
        compat.forget_steps(stepping)
        assert len(stepping.prev_f) == 0
        assert stepping.prev_t is None


# --- SciPy ----------------------------------------------------------------------------------------------------------

RADAU = {"J", "current_jac", "jac_factor", "h_abs_old", "error_norm_old", "LU_real", "LU_complex", "sol"}


@pytest.mark.parametrize("name", ["RK23", "RK45", "DOP853", "Radau"])
def test_scipy_keeps_what_a_resumed_run_puts_back(name: str) -> None:
    stepping = getattr(scipy.integrate, name)(lambda t, y: -y, 0.0, np.ones(2), 1.0)
    stepping.step()
    assert {"f", "h_abs", *(RADAU if name == "Radau" else ())} <= set(vars(stepping))
    np.testing.assert_allclose(stepping.f, -stepping.y, rtol=1e-12)
    assert stepping.h_abs > 0


def test_scipy_has_the_polynomial_of_radau() -> None:
    stepping = scipy.integrate.Radau(lambda t, y: -y, 0.0, np.ones(2), 1.0)
    stepping.step()
    known = stepping.sol
    again = compat.radau_polynomial(known.t_old, stepping.t, known.y_old, known.Q)
    t = np.linspace(0, stepping.t, 5)
    np.testing.assert_array_equal(again(t), stepping.dense_output()(t))


# --- Matplotlib -----------------------------------------------------------------------------------------------------


def test_matplotlib_keeps_dashes_in_units_of_the_width() -> None:
    assert compat.dash_pattern(Line2D([], [], ls="-")) == ()
    dashes = [list(compat.dash_pattern(Line2D([], [], ls="--", lw=width))) for width in (1, 5)]
    assert dashes[0] == dashes[1]
    assert len(dashes[0]) == 2


# --- Hydra ----------------------------------------------------------------------------------------------------------


def test_hydra_parses_its_command_line() -> None:
    parser, said = compat.hydra_arguments(), []
    options, rest = parser.parse_known_args(["-m", "a=1", "b=2", "--what"])
    assert (options.multirun, options.overrides, options.shell_completion) == (True, ["a=1", "b=2"], False)
    assert rest == ["--what"]
    parser.error = said.append
    parser.parse_known_args(["--cfg", "nonsense"])
    assert said


@pytest.mark.parametrize(
    ("words", "times"),
    [
        (("problem=linnerud",), 1),
        (("experiment=quick", "++time.rtol=1e-8", "hydra.job.chdir=true"), 1),
        (("-m", "problem=linnerud,reflection", "time.samples=3"), 1),
        (("hydra.mode=RUN", "problem=linnerud"), 2),
        (("hydra.mode=MULTIRUN", "time.samples=3,4"), 2),
        (("+other=swept", "time.samples=3"), 2),
        (("-m", "+other=single", "time.samples=3"), 2),
        (("+other=open",), 2),
        (("+other=unknown",), 1),
    ],
)
def test_hydra_runs_the_config_that_it_has_composed_to_find_the_mode(
    words: tuple[str, ...], times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is what Hydra composes twice, also where a file sets a mode, or a group has no choice."""
    from hydra._internal import hydra as internal
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    (tmp_path / "other").mkdir()
    (tmp_path / "third").mkdir()
    for name, mode in (("swept", "MULTIRUN"), ("single", "RUN"), ("unknown", "${oc.env:NO_SUCH_MODE}")):
        (tmp_path / "other" / f"{name}.yaml").write_text(f"# @package _global_\nhydra:\n  mode: {mode}\n")
    (tmp_path / "other" / "open.yaml").write_text("# @package _global_\ndefaults:\n  - /third: ???\n")
    monkeypatch.chdir(tmp_path)
    composed, seen = [], []
    whole = ConfigLoaderImpl._load_configuration_impl
    monkeypatch.setattr(
        ConfigLoaderImpl, "_load_configuration_impl", lambda *a, **k: composed.append(1) or whole(*a, **k)
    )
    for name in ("run", "multirun"):
        monkeypatch.setattr(internal.Hydra, name, lambda self, **given: seen.append(config(self, given)))

    def config(self: Any, given: dict[str, Any]) -> str:
        mode = RunMode.RUN if "hydra.mode=RUN" in given["overrides"] else RunMode.MULTIRUN
        try:
            return OmegaConf.to_yaml(self.compose_config(given["config_name"], given["overrides"], mode))
        except HydraException as error:
            return str(error)

    def start() -> None:
        monkeypatch.setattr(sys, "argv", ["neuralode-flow", f"--config-dir={tmp_path}", *words])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Hydra's own of -m beside a mode
            hydra.main(version_base="1.3", config_path="pkg://neuralode_flow.conf", config_name="config")(print)()

    with compat.composed_for_mode():
        start()
    assert len(composed) == times
    start()
    assert len(composed) == times + 2
    assert seen[0] == seen[1]
    assert "mode: null" not in seen[0]


def test_hydra_can_be_used_beside_a_use_of_it(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("answer: 42\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.2"):
        with compat.hydra_alone(), hydra.initialize_config_module("neuralode_flow.conf", version_base="1.3"):
            assert "study" in hydra.compose("config")
        assert hydra.compose("own").answer == 42
        with pytest.raises(ValueError, match="x"), compat.hydra_alone():
            raise ValueError("x")
        assert hydra.compose("own").answer == 42
    assert not GlobalHydra.instance().is_initialized()


def test_hydra_names_its_sweeper_and_makes_points() -> None:
    from hydra._internal.core_plugins import basic_sweeper
    from hydra.conf import HydraConf

    target = f"{basic_sweeper.__name__}.BasicSweeper"
    assert compat.is_basic_sweeper(target)
    assert {"sweeper": "basic"} in HydraConf().defaults
    assert basic_sweeper.BasicSweeperConf._target_ == target
    assert not compat.is_basic_sweeper("elsewhere.Sweeper")
    parsed = OverridesParser.create().parse_overrides(["a=1,2", "b=3"])
    assert compat.sweep_points(parsed) == [["a=1", "b=3"], ["a=2", "b=3"]]


def test_hydras_own_launcher_is_known_and_says_what_it_starts(caplog: pytest.LogCaptureFixture) -> None:
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    class Other(BasicLauncher):
        pass

    assert compat.is_basic_launcher(BasicLauncher())
    assert not compat.is_basic_launcher(Other())
    with caplog.at_level("INFO"):
        compat.said_by_launcher("Launching 2 jobs locally")
    assert [(record.name, record.message) for record in caplog.records] == [
        (BasicLauncher.__module__, "Launching 2 jobs locally")
    ]


def test_hydra_composes_only_points_that_are_not_checked_before_it_launches() -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    before, seen = BasicSweeper.validate_batch_is_legal, []
    sweeper = BasicSweeper(None)
    loader = SimpleNamespace(load_sweep_config=lambda master_config, sweep_overrides: seen.append(sweep_overrides))
    sweeper.config, sweeper.hydra_context = SimpleNamespace(), SimpleNamespace(config_loader=loader)
    batch = [["a=1", "b=3"], ["a=2", "b=3"]]
    try:
        for checked, composed in (((), batch), ([("a=1", "b=3")], batch[1:]), ([*map(tuple, batch)], [])):
            compat.compose_once({*checked})
            seen.clear()
            sweeper.validate_batch_is_legal(batch)
            assert seen == composed
    finally:
        BasicSweeper.validate_batch_is_legal = before


def test_hydra_names_overrides() -> None:
    parsed = OverridesParser.create().parse_overrides(["b=2", "a=1", "c=3"])
    assert compat.overrides_name(parsed, kv_sep="-", item_sep="+", exclude_keys=["c"]) == "a-1+b-2"


def test_hydra_passes_on_what_jobs_return() -> None:
    assert compat.completed("a").return_value == "a"
    assert compat.returned(compat.completed("a")) == "a"
    assert compat.returned(compat.completed()) is None
    failure = ValueError("no")
    assert compat.returned(JobReturn(_return_value=failure, status=JobStatus.FAILED)) is failure


# --- launchers ------------------------------------------------------------------------------------------------------


def test_joblib_launches_by_a_function_that_can_be_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the launchers of the test extra")
    from hydra_plugins.hydra_joblib_launcher import _core, joblib_launcher

    monkeypatch.setattr(_core, "launch", _core.launch)
    wrapped = []
    compat.wrap_joblib(lambda launch: wrapped.append(launch) or (lambda **arguments: arguments))
    launched = joblib_launcher.JoblibLauncher().launch([["a=1"]], 4)
    assert launched["job_overrides"] == [["a=1"]]
    assert launched["initial_job_idx"] == 4
    assert set(inspect.signature(wrapped[0]).parameters) == set(launched), package.__name__


def test_joblib_says_that_a_worker_was_killed() -> None:
    joblib = pytest.importorskip("joblib")
    killed, code = compat.joblib_killed(), "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(killed):
        joblib.Parallel(n_jobs=2)(joblib.delayed(exec)(code) for _ in range(2))


def test_submitit_has_results_and_their_failures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    core = pytest.importorskip("submitit.core.core")
    from submitit.core.utils import cloudpickle_dump

    class Ended(core.Job):
        state, _results_timeout_s = "GONE", 0

        def done(self, force_check: bool = False) -> bool:
            return True

    monkeypatch.setattr(core.Job, "results", core.Job.results)
    compat.replace_submitit_failures(lambda job, trace: (job.job_id, trace))
    good, bad, gone = (Ended(tmp_path, name) for name in ("good", "bad", "gone"))
    cloudpickle_dump(("success", 2), good.paths.result_pickle)
    cloudpickle_dump(("error", "Traceback …\nZeroDivisionError: division by zero"), bad.paths.result_pickle)
    assert good.results() == [2]
    ((name, trace),) = bad.results()
    assert name == "bad"
    lines = [line for line in trace.splitlines() if line.strip(" -")]
    assert lines == ["Traceback …", "ZeroDivisionError: division by zero"]
    assert gone.results() == [("gone", None)]


def test_submitit_learns_states_by_another_question(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = pytest.importorskip("submitit.slurm.slurm")
    watcher = slurm.SlurmInfoWatcher(delay_s=600)
    monkeypatch.setattr(slurm.SlurmJob, "watcher", watcher)
    asked, others = [], "GONE"
    compat.watch_slurm(lambda jobs: asked.append(set(jobs)) or ("12_0|RUNNING|node\n13|COMPLETED|node", others), 7.0)
    for job in ("12_0", "12_1", "13"):
        watcher.register_job(job)
    assert [watcher.get_state(job) for job in ("12_0", "12_1", "13")] == ["RUNNING", "GONE", "COMPLETED"]
    assert asked == [{"12", "13"}]
    assert [watcher.is_done(job, mode="cache") for job in ("12_0", "12_1", "13")] == [False, True, True]
    others = ""
    monkeypatch.setattr(watcher, "_start_time", 0.0)
    for ago, calls in ((5.0, 1), (8.0, 2)):  # after the pause of seven seconds, and not of ten minutes
        monkeypatch.setattr(watcher, "_last_status_check", time.time() - ago)
        assert watcher.get_state("12_0") == "RUNNING"
        assert watcher.num_calls == calls
    assert asked[1:] == [{"12"}]  # what has ended is not asked for again


def test_ray_has_the_functions_that_are_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="Ray needs an environment of its own")
    from hydra_plugins.hydra_ray_launcher import _core, _launcher_util

    job = _launcher_util._run_job
    launched, names = inspect.getsource(_core.launch), list(inspect.signature(_core.launch_job_on_ray).parameters)
    assert (names[0], names[2]) == ("hydra_context", "sweep_config")
    assert "launch_job_on_ray(" in launched
    assert "ray.get(" in launched
    for place, name in ((_launcher_util, "_run_job"), (_core, "launch_job_on_ray"), (_core, "ray")):
        monkeypatch.setattr(place, name, getattr(place, name))
    compat.wrap_ray(lambda: "member", lambda submit: SimpleNamespace(submit=submit), lambda task: task)
    assert _launcher_util._run_job() == "member"
    assert _core.launch_job_on_ray.submit.__name__ == "launch_job_on_ray"
    assert _core.ray.get(3) == 3
    monkeypatch.setattr(_launcher_util, "_run_job", lambda **arguments: arguments)
    assert compat.run_ray_job(a=1) == {"a": 1}
    assert callable(job)
