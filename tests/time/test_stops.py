"""A run that is stopped anywhere goes on to the bit: every evaluation of small runs is the last one once."""

import pytest
import torch
from cases import carried, randn, relaxed_profile

import neuralode_flow as nf
from neuralode_flow.time.base import fixed_steps

TARGET = torch.diag(torch.tensor([2.0, 0.5]))
LIMIT = nf.IntrinsicFlow(nf.Quadratic(TARGET), nf.LogMean())
START = torch.eye(2) + 0.1 * randn(2, 2, seed=1)
TIMES = [0.0, 0.31, 0.32, 0.9, 2.0]

# A fall that is located inside a step, and one that needs the velocity itself.
EVENTS = {"norm": 1.9, "steady": 1e-3, "mine": lambda t, z, state: float(z.trace()) - 0.3}
NAMES = ("times", "z", "loss", "drift", "state", "depth_error", "observed")


class Once(nf.IntrinsicFlow):
    """A flow whose velocity fails at one evaluation, in the coordinates of the run, and never again."""

    def __init__(self, loss, kernel, at, error):
        super().__init__(loss, kernel)
        left = [at]

        def before():
            left[0] -= 1
            if left[0] == 0:
                raise error

        self.carrier = carried(loss, kernel, before)


def budgets(method, every=1):
    """Every budget that ends a run early; a step is refused with fewer evaluations than it takes steps."""
    least = 14 if fixed_steps(nf.METHODS[method]) else 1
    return range(least, solve(method).stats["evaluations"], every)


def solve(method, flow=LIMIT, start=START, rtol=1e-3, **options):
    step = {"step": 0.15} if fixed_steps(nf.METHODS[method]) else {}
    observe = options.pop("observe", lambda i, state: state.flatten()[:2])
    return nf.integrate(flow, start, TIMES, method, rtol, rtol / 100, stop=EVENTS, observe=observe, **step, **options)


def same(path, whole):
    assert path.status == whole.status
    assert path.stats["steps"] == whole.stats["steps"]
    assert path.stats["history"] == whole.stats["history"]
    for name in NAMES:
        assert torch.equal(getattr(path, name), getattr(whole, name)), name


SLOW = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("dopri5", "DOP853", "RK23", "implicit_midpoint", "Radau")
]


@pytest.mark.parametrize("method", ["euler", "rk4", *SLOW])
def test_every_budget_leaves_a_checkpoint_that_goes_on_to_the_bit(method, tmp_path):
    whole = solve(method)
    assert whole.ending == "norm"
    for n in budgets(method):
        file = tmp_path / f"{n}.npz"
        short = solve(method, checkpoint=file, max_evaluations=n)
        assert short.ending == "evaluations"
        # What it returns is one moment of the run, and so is what it saved.
        assert torch.equal(short.z[-1], LIMIT.product(short.state))
        kept = nf.load(file)
        assert torch.equal(kept.state, short.state)
        assert torch.equal(kept.times, short.times)
        same(solve(method, checkpoint=file), whole)


@pytest.mark.parametrize("method", ["dopri5", "DOP853", "implicit_midpoint", "Radau"])
def test_some_budgets_leave_a_checkpoint_that_goes_on_to_the_bit(method, tmp_path):
    whole = solve(method)
    for n in budgets(method, every=5 if method == "dopri5" else 17):
        assert solve(method, checkpoint=tmp_path / f"{n}.npz", max_evaluations=n).ending == "evaluations"
        same(solve(method, checkpoint=tmp_path / f"{n}.npz"), whole)


@pytest.mark.parametrize(
    ("method", "error"),
    [("dopri5", torch.linalg.LinAlgError("no convergence")), ("rk4", FloatingPointError("once"))],
)
def test_a_velocity_that_fails_once_leaves_a_checkpoint_that_goes_on_to_the_bit(method, error, tmp_path):
    whole = solve(method, Once(LIMIT.loss, LIMIT.kernel, 0, error))
    for n in range(1, whole.stats["evaluations"] + 1, 3):
        file = tmp_path / f"{n}.npz"
        failed = solve(method, Once(LIMIT.loss, LIMIT.kernel, n, error), checkpoint=file)
        assert failed.ending == "velocity"
        same(solve(method, Once(LIMIT.loss, LIMIT.kernel, 0, error), checkpoint=file), whole)


def test_a_budget_of_seconds_leaves_a_checkpoint_that_goes_on_to_the_bit(tmp_path):
    whole, file = solve("dopri5"), tmp_path / "run.npz"
    seconds, endings = 1e-4, []
    while not endings or endings[-1] == "seconds":
        endings.append(solve("dopri5", checkpoint=file, max_seconds=seconds).ending)
        seconds *= 1.5
    assert len(endings) > 2
    same(nf.load(file), whole)


def test_an_end_to_end_map_that_fails_once_at_an_output_goes_on_to_the_bit(tmp_path):
    class Fails(nf.IntrinsicFlow):
        at = 0

        def product(self, state):
            self.__class__.at -= 1
            if self.__class__.at == 0:
                raise torch.linalg.LinAlgError("once")
            return state

    flow = Fails(LIMIT.loss, LIMIT.kernel)
    Fails.at = 10**9
    whole = solve("DOP853", flow)
    asked = 10**9 - Fails.at
    stopped = 0
    for n in range(4, asked, 7):  # the first are those of the checks at the start
        file = tmp_path / f"{n}.npz"
        Fails.at = n
        try:
            failed = solve("DOP853", flow, checkpoint=file)
        except torch.linalg.LinAlgError:  # before the run
            continue
        stopped += failed.ending == "velocity"
        same(solve("DOP853", flow, checkpoint=file), whole)
    assert stopped > 3


@pytest.mark.parametrize("method", ["DOP853", "dopri5"])
def test_a_grid_that_follows_W_goes_on_to_the_bit(method, tmp_path):
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 4), nf.Quadratic(TARGET))
    start = flow.sample(relaxed_profile(2, seed=3, twist=4.0)[1])

    def run(**options):
        return nf.integrate(flow, start, [0.0, 0.1, 0.4], method, 1e-5, 1e-7, adapt=True, stop={"norm": 4.0}, **options)

    whole = run()
    assert whole.stats["history"]
    for n in range(1, whole.stats["evaluations"], 11):
        file = tmp_path / f"{n}.npz"
        assert run(checkpoint=file, max_evaluations=n).ending == "evaluations"
        again = run(checkpoint=file)
        assert again.stats["history"] == whole.stats["history"]
        for name in ("times", "z", "loss", "drift", "state", "depth_error"):
            assert torch.equal(getattr(again, name), getattr(whole, name)), name


@pytest.mark.parametrize("method", ["LSODA", "BDF", "CVODE_BDF", "auto"])
def test_a_multistep_method_locates_the_event_within_its_tolerance_from_many_budgets(method, tmp_path):
    whole = solve(method, rtol=1e-7)
    for n in range(1, whole.stats["evaluations"], 25):
        file = tmp_path / f"{n}.npz"
        assert solve(method, rtol=1e-7, checkpoint=file, max_evaluations=n).ending == "evaluations"
        again = solve(method, rtol=1e-7, checkpoint=file)
        assert again.ending == "norm"
        assert float(again.times[-1]) == pytest.approx(float(whole.times[-1]), abs=1e-5)
        assert float(torch.linalg.matrix_norm(again.z - whole.z).max()) < 1e-5


def test_outputs_of_a_step_that_did_not_end_are_observed_again_and_no_other(tmp_path):
    seen = []

    def observe(i, state):
        seen.append(i)
        return state.flatten()[:2]

    whole = solve("LSODA")
    n = whole.stats["evaluations"] // 2
    short = solve("LSODA", checkpoint=tmp_path / "run.npz", max_evaluations=n, observe=observe)
    outputs = len(short.observed)
    assert seen == list(range(outputs))
    solve("LSODA", checkpoint=tmp_path / "run.npz", observe=observe)
    assert seen == list(range(len(whole.observed)))


def test_an_exception_of_the_observer_leaves_the_last_checkpoint(tmp_path):
    def observe(i, state):
        if i == 2 and fails[0]:
            raise RuntimeError("the observer's own")
        return state.flatten()[:2]

    whole, fails = solve("dopri5"), [True]
    with pytest.raises(RuntimeError, match="own"):
        solve("dopri5", checkpoint=tmp_path / "run.npz", every=0, observe=observe)
    fails[0] = False
    same(solve("dopri5", checkpoint=tmp_path / "run.npz", observe=observe), whole)


@pytest.mark.parametrize("method", ["BDF", "DOP853"])
def test_a_run_that_stops_at_an_output_inside_a_step_ends_where_its_state_is(method):
    class Fails(nf.IntrinsicFlow):
        left = 0

        def product(self, state):
            self.__class__.left -= 1
            if self.__class__.left == 0:
                raise torch.linalg.LinAlgError("once")
            return state

    stopped = 0
    for n in range(4, 120, 8):
        Fails.left = n
        path = nf.integrate(Fails(LIMIT.loss, LIMIT.kernel), START, torch.linspace(0, 2, 81), method, 1e-4)
        stopped += path.ending == "velocity"
        assert torch.equal(path.z[-1], path.state)
        assert bool((path.times.diff() > 0).all())
    assert stopped > 5
