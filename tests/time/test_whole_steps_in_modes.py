"""Whole steps of the compiled engine beside what else torch and Python may be doing, with nothing replaced.

The truth is the same run without the engine, or, where the engine has to serve as ever, the same run in eager mode.
"""

import itertools
import subprocess
import sys
import textwrap
import threading
import warnings
from contextlib import contextmanager

import pytest
import torch
from cases import Rated, randn
from torch.func import grad, jvp, vmap
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import neuralode_flow as nf
from neuralode_flow.depth.engine import compiled

if compiled.library() is None:
    pytest.skip("the compiled engine is not there", allow_module_level=True)

GRID = nf.DepthGrid.gauss(panels=4, order=5)
TARGETS, RATES = randn(3, 3, 3, seed=8) / 2 + 1.5 * torch.eye(3), torch.logspace(0, 1, 3)
LAYERS = nf.DividedDifference(torch.tensor([0.0, 0.3, -0.2]), 1 / 3)
# Losses that the engine knows and one that it asks, depth and layers, shared steps and each member's own.
RUNS = {
    "square": (nf.ContinuousFlow(GRID, nf.Quadratic(TARGETS)), "DOP853", "shared"),
    "rows": (nf.FiniteFlow(6, nf.Regression(randn(7, 3, seed=1), randn(7, 3, seed=2)), "cayley"), "dopri5", "member"),
    "asked": (nf.ContinuousFlow(GRID, Rated(TARGETS, RATES)), "RK45", "member"),
    "asked of layers": (nf.FiniteFlow(6, Rated(TARGETS, RATES), "exp"), "DOP853", "shared"),
    "closed": (nf.IntrinsicFlow(nf.Quadratic(TARGETS), nf.LogMean()), "DOP853", "member"),
    "asked of the closed": (nf.IntrinsicFlow(Rated(TARGETS, RATES), nf.LogMean()), "dopri5", "shared"),
    "layers": (nf.IntrinsicFlow(nf.Quadratic(TARGETS), LAYERS), "DOP853", "member"),
    "asked of the closed layers": (nf.IntrinsicFlow(Rated(TARGETS, RATES), LAYERS), "dopri5", "shared"),
}


def start(flow):
    if isinstance(flow, nf.IntrinsicFlow):
        return torch.eye(3) + 0.2 * randn(3, 3, 3, seed=9)
    nodes = len(flow.grid) if isinstance(flow, nf.ContinuousFlow) else flow.depth
    return 0.2 * randn(3, 1, 3, 3, seed=9).expand(3, nodes, 3, 3)


def end(name, loss=None, **options):
    """Where a run ends, with another loss if one is given."""
    flow, method, control = RUNS[name]
    if loss is not None:
        flow = nf.ContinuousFlow(GRID, loss)
    return nf.integrate(flow, start(flow), [0.0, 0.1, 0.3], method, 1e-5, 1e-7, control=control, **options).z[-1]


_ASKED = itertools.count()


class Counted(TorchDispatchMode):
    """Sees what torch does, and counts products of matrices."""

    def __init__(self):
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.products += function in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)
        return function(*args, **(kwargs or {}))


class Passed(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@contextmanager
def defaults(change, other, usual):
    change(other)
    try:
        yield
    finally:
        change(usual)


@pytest.fixture(autouse=True)
def _no_word_of_torch():
    """torch's own forward mode and compiler warn of what they use themselves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\..*")
        yield


@pytest.fixture(scope="module")
def known():
    """The runs in eager mode."""
    return {name: end(name) for name in RUNS}


@pytest.fixture(scope="module")
def without():
    """The runs where there is no engine, and how many products of matrices a dispatch mode sees of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "library", lambda: None)
        found = {}
        for name in RUNS:
            with Counted() as counted:
                found[name] = end(name), counted.products
    return found


@pytest.mark.parametrize("name", RUNS)
def test_the_engine_takes_these_runs(name, known, without):
    assert_close(known[name], without[name][0], rtol=0, atol=1e-6)
    assert not torch.equal(known[name], without[name][0])  # other sums: else nothing here would be looked at
    flow = RUNS[name][0]
    state = start(flow)
    if isinstance(flow, nf.IntrinsicFlow) and flow.carrier() is not None:
        flow = flow.carrier()
        state = flow.enter(state)
    assert flow.knows_steps(state)


EAGER = {
    "inference mode": torch.inference_mode,
    "a function mode": Passed,
    "deterministic algorithms": lambda: defaults(torch.use_deterministic_algorithms, True, False),
    "another default dtype": lambda: defaults(torch.set_default_dtype, torch.float32, torch.float64),
    "gradients recorded": torch.enable_grad,
}


@pytest.mark.parametrize("mode", EAGER)
@pytest.mark.parametrize("name", RUNS)
def test_what_leaves_torch_eager_leaves_whole_steps_as_they_are(name, mode, known):
    with EAGER[mode]():
        found = end(name)
    assert torch.equal(found, known[name])
    assert torch.equal(end(name), known[name])  # memory that was lent in that mode is used after it


def test_a_start_and_a_loss_that_were_made_in_inference_mode_are_taken_after_it(known):
    with torch.inference_mode():
        flow = nf.ContinuousFlow(GRID, nf.Quadratic(TARGETS.clone()))
        W = start(flow).clone()
    path = nf.integrate(flow, W, [0.0, 0.1, 0.3], "DOP853", 1e-5, 1e-7)
    assert torch.equal(path.z[-1], known["square"])


@pytest.mark.parametrize("name", RUNS)
def test_a_dispatch_mode_sees_every_product(name, without):
    with Counted() as counted:
        found = end(name)
    assert_close(found, without[name][0], rtol=1e-9, atol=1e-9)
    assert counted.products == without[name][1] > 50


@pytest.mark.parametrize("name", RUNS)
def test_transforms_around_a_run_are_refused_whatever_takes_its_steps(name):
    flow, method, control = RUNS[name]
    W = start(flow).contiguous()

    def run(state):
        return nf.integrate(flow, state, [0.0, 0.1], method, control=control).z[-1].sum()

    for transformed in (
        lambda: grad(run)(W),
        lambda: jvp(run, (W,), (W,)),
        lambda: vmap(run)(W[None]),
        lambda: grad(lambda c: c * run(W))(torch.tensor(1.0)),  # of another argument
    ):
        with pytest.raises(TypeError, match="a run takes no part in transforms"):
            transformed()


@pytest.mark.parametrize("name", RUNS)
def test_a_run_inside_a_compiled_function_is_that_run(name, known):
    torch._dynamo.reset()
    flow, method, control = RUNS[name]

    def compiles(W):
        return 2 * nf.integrate(flow, W + 0, [0.0, 0.1, 0.3], method, 1e-5, 1e-7, control=control).z[-1]

    assert torch.equal(torch.compile(compiles, backend="aot_eager")(start(flow)), 2 * known[name])
    assert torch.equal(end(name), known[name])


class Own:
    """½‖z − T‖² of a stranger, whose gradient a function finds."""

    dimension = 3

    def __init__(self, found):
        self.found = found

    def __call__(self, z):
        return (z - TARGETS).square().sum((-2, -1)) / 2

    def gradient(self, z):
        return self.found(z, TARGETS)


def apart(z, target):
    return (z - target).square().sum() / 2


def in_inference_mode(z, target):
    with torch.inference_mode():
        return z - target


def in_a_dispatch_mode(z, target):
    with Counted():
        return z - target


def beside_another_run(z, target):
    if next(_ASKED) % 10 == 0:  # it is asked for its loss as well, and wants as much memory
        flow = nf.ContinuousFlow(GRID, Rated(target, 1 + RATES))
        nf.integrate(flow, start(flow), [0.0, 0.01], "DOP853", 1e-3, 1e-5)
    return z - target


def in_another_thread(z, target):
    found = []
    thread = threading.Thread(target=lambda: found.append(beside_another_run(z, target)))
    thread.start()
    thread.join()
    return found[0]


GRADIENTS = {
    "torch.compile": torch.compile(lambda z, target: z - target, backend="aot_eager"),
    "torch.func": lambda z, target: vmap(grad(apart))(z, target),
    "autograd": lambda z, target: torch.func.vjp(lambda y: apart(y, target), z)[1](torch.ones(()))[0],
    "inference mode": in_inference_mode,
    "a dispatch mode": in_a_dispatch_mode,
    "a sign that waits": lambda z, target: torch._neg_view(target - z),
    "strides": lambda z, target: (z.mT - target.mT).contiguous().mT,
    "a run inside": beside_another_run,
    "a run in another thread": in_another_thread,
}


@pytest.mark.parametrize("how", GRADIENTS)
def test_a_loss_finds_its_gradient_in_any_mode(how, known):
    torch._dynamo.reset()
    assert_close(end("square", Own(GRADIENTS[how])), known["square"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("wrong", [torch.Tensor.float, torch.Tensor.tolist])
def test_a_gradient_that_is_none_ends_a_run_as_its_velocity_does(wrong, monkeypatch):
    asked = itertools.count()

    def spoilt(z, target):
        return wrong(z - target) if next(asked) > 20 else z - target

    found = []
    for library in (compiled.library, lambda: None):
        asked = itertools.count()
        monkeypatch.setattr(compiled, "library", library)
        with pytest.raises((RuntimeError, TypeError)) as error:
            end("square", Own(spoilt))
        found.append(str(error.value))
    assert found[0] == found[1]


def test_a_run_that_is_broken_off_inside_a_step_leaves_nothing_behind(known):
    asked = []

    def broken(z, target):
        asked.append(z)
        if len(asked) == 30:
            raise KeyboardInterrupt
        return z - target

    with pytest.raises(KeyboardInterrupt):
        end("square", Own(broken))
    assert torch.equal(end("asked"), known["asked"])


def test_two_threads_that_integrate_at_once_do_not_see_each_other(known):
    wrong, several = [], 3

    def work(name):
        wrong.extend(name for _ in range(several) if not torch.equal(end(name), known[name]))

    def counted():
        with Counted() as mode:
            end("rows")
        if not mode.products:
            wrong.append("a dispatch mode of one thread")

    threads = [threading.Thread(target=work, args=(name,)) for name in RUNS] + [threading.Thread(target=counted)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.slow
def test_forked_children_take_the_same_steps():
    """After steps in threads, of which a child has none: by os.fork and by multiprocessing, in the child and after."""
    program = textwrap.dedent("""
        import multiprocessing, os, signal
        import numpy as np
        import torch, neuralode_flow as nf
        from neuralode_flow.time.formulas import ScipyFormula
        from neuralode_flow.time.base import Control

        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        W = torch.randn(8, 12, 20, 20, generator=torch.Generator().manual_seed(0)) / 9
        made = ScipyFormula(Control(1e-6, 1e-8, None), name="DOP853")
        made.flat(torch.zeros(1, 1))

        class Asked(nf.Quadratic):
            def gradient(self, z):
                return z - self.target

        grid = nf.DepthGrid.gauss(2, 6)
        flows = [nf.ContinuousFlow(grid, loss(torch.eye(20))) for loss in (nf.Quadratic, Asked)]
        slopes = [flow.velocity(W) for flow in flows]

        def steps():
            return [flow.explicit_steps(W, f, np.full(8, 0.01), made.tableau).ahead for flow, f in zip(flows, slopes)]

        def runs():
            return [nf.integrate(flow, W[0], [0.0, 0.05], "RK23", 1e-2, 1e-3).z for flow in flows]

        known = steps(), runs()

        def child():
            signal.alarm(60)  # who waits for ever is ended
            stepped = steps()
            torch.set_num_threads(1)  # what torch computes in the threads of its parent waits for ever in a child
            same = [torch.equal(a, b) for a, b in zip([*stepped, *runs()], [*known[0], *known[1]])]
            os._exit(0 if all(same) else 7)

        pid = os.fork()
        if pid == 0:
            child()
        one = multiprocessing.get_context("fork").Process(target=child)
        one.start()
        one.join()
        after = all(torch.equal(a, b) for a, b in zip([*steps(), *runs()], [*known[0], *known[1]]))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), one.exitcode, after)
    """)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["0", "0", "True"], done.stderr
