"""Whole explicit steps in the compiled engine are what they are by their stages: of every flow, loss, rule, formula."""

from functools import cache
from unittest import mock

import numpy as np
import pytest
import torch
from cases import ByVelocities, Passing, Rated, Weighted, formula, positive_matrix, randn, restricted, slow
from torch.testing import assert_close

import neuralode_flow as nf
from neuralode_flow.depth.engine import compiled, explicit, squares
from neuralode_flow.losses import Squares
from neuralode_flow.time.methods.scipy import RUNGE_KUTTA
from neuralode_flow.time.methods.torchdiffeq import ADAPTIVE

if compiled.library() is None:
    pytest.skip("the compiled engine is not there", allow_module_level=True)

GRID = nf.DepthGrid.gauss(panels=4, order=5)
RULES = ("euler", "rk2", "cayley", "exp")


def losses(d, n):
    """Of one matrix each: all members have the same, or each its own."""
    x, y, two = randn(7, d, seed=1), randn(7, d, seed=2), randn(7, 2, seed=2)
    yield "quadratic", nf.Quadratic(randn(d, d, seed=3))
    yield "targets", nf.Quadratic(randn(n, d, d, seed=3))
    yield "regression", nf.Regression(x, y)
    yield "readout", nf.Regression(x, two, readout=randn(2, d, seed=4) / 2)
    yield "rated", Rated(randn(n, d, d, seed=3), torch.logspace(-1, 1, n))
    yield "weighted", Weighted(nf.Quadratic(randn(n, d, d, seed=3)), torch.logspace(-1, 1, n))
    yield "weighted regression", Weighted(nf.Regression(x, y), torch.linspace(0.5, 2, n))


def flows(loss):
    yield "continuous", nf.ContinuousFlow(GRID, loss), len(GRID)
    for rule in RULES:
        yield rule, nf.FiniteFlow(6, loss, rule), 6


@pytest.mark.parametrize("d", [1, 3, 4, 9])
@pytest.mark.parametrize("method", [*RUNGE_KUTTA, *ADAPTIVE])
def test_a_whole_step_is_the_one_by_its_stages(method, d):
    n, made = 3, formula(method)
    for loss_name, loss in losses(d, n):
        for name, flow, nodes in flows(loss):
            W, h = 0.3 * randn(n, nodes, d, d, seed=5), np.array([0.01, 0.1, 0.04])
            f = flow.velocity(W)
            whole = flow.explicit_steps(W, f, h, made.tableau)
            known = made.by_stages(ByVelocities(flow, W.shape), np.arange(n), W.flatten(1), f.flatten(1), h)
            said = f"{loss_name}, {name}: {{}}".format
            size = float(f.abs().max())
            assert_close(whole.ahead.flatten(1), known.y, rtol=1e-13, atol=1e-14 * size, msg=said)
            assert_close(whole.slope.flatten(1), known.f, rtol=1e-12, atol=1e-13 * size, msg=said)
            # Of an error that cancels, in tolerances of 1e-8.
            error = torch.as_tensor(known.error)
            assert_close(torch.from_numpy(whole.error), error, rtol=1e-6, atol=1e-6 * size, msg=said)


@pytest.mark.parametrize("method", ["DOP853", "dopri5"])
def test_a_step_does_not_depend_on_the_others_nor_on_threads(method):
    d, n, tableau = 4, 70, formula(method).tableau  # more than are taken together where the loss is asked in between
    h = np.linspace(0.001, 0.05, n)
    for _, loss in losses(d, n):
        for _, flow, nodes in flows(loss):
            W = 0.3 * randn(n, nodes, d, d, seed=5)
            f = flow.velocity(W)
            whole = flow.explicit_steps(W, f, h, tableau)
            assert not np.isnan(whole.error).any()
            for i in (0, 41, n - 1):
                own = restricted(flow, n, np.array([i])) if hasattr(loss, "select") else flow
                alone = own.explicit_steps(W[i : i + 1], f[i : i + 1], h[i : i + 1], tableau)
                assert torch.equal(alone.ahead[0], whole.ahead[i])
                assert torch.equal(alone.slope[0], whole.slope[i])
                assert alone.error[0] == whole.error[i]
            threads = torch.get_num_threads()
            torch.set_num_threads(3 - min(threads, 2))
            other = flow.explicit_steps(W, f, h, tableau)
            torch.set_num_threads(threads)
            assert torch.equal(other.ahead, whole.ahead)
            assert np.array_equal(other.error, whole.error)


def test_members_that_have_no_step_are_told_and_the_others_have_theirs():
    tableau = formula("DOP853").tableau
    for loss in (nf.Quadratic(torch.eye(3)), Rated(torch.eye(3).expand(3, 3, 3), torch.ones(3))):
        flow = nf.ContinuousFlow(GRID, loss)
        W = 0.3 * randn(3, len(GRID), 3, 3, seed=5)
        f, h = flow.velocity(W), np.full(3, 0.1)
        known = flow.explicit_steps(W, f, h, tableau)
        for bad in (float("nan"), 1e3):  # not finite, and not resolved by the grid
            spoiled = W.clone()
            spoiled[1] *= bad
            found = flow.explicit_steps(spoiled, f, h, tableau)
            assert np.isnan(found.error).tolist() == [False, True, False]
            assert torch.equal(found.ahead[::2], known.ahead[::2])


def test_what_the_engine_is_not_for_is_left_to_the_stages():
    tableau = formula("RK45").tableau
    W = 0.3 * randn(2, 6, 3, 3, seed=5)

    class Own(nf.FiniteFlow):
        def velocity(self, state):
            return 2 * super().velocity(state)

    class Other(nf.Quadratic):
        def gradient(self, z):
            return 3 * super().gradient(z)

    loss = nf.Quadratic(torch.eye(3))
    flow, own = nf.FiniteFlow(6, loss), Own(6, loss)
    assert flow.knows_steps(W)
    assert not own.knows_steps(W)
    assert not flow.knows_steps(W.float())
    assert not flow.knows_steps(torch.zeros(600, 30, 30))  # more numbers than are kept for all stages
    own = nf.FiniteFlow(6, loss)
    own.velocity = lambda state: 2 * flow.velocity(state)
    assert not own.knows_steps(W)
    # A loss with another gradient is asked for it.
    f, h = flow.velocity(W), np.full(2, 0.1)
    replaced = nf.Quadratic(torch.eye(3))
    replaced.gradient = lambda z: 3 * (z - torch.eye(3))
    for loss in (Other(torch.eye(3)), replaced):
        changed = nf.FiniteFlow(6, loss)
        one, two = changed.explicit_steps(W, f, h, tableau), flow.explicit_steps(W, f, h, tableau)
        assert_close(one.slope, changed.velocity(one.ahead), rtol=1e-13, atol=1e-13)
        assert not torch.allclose(one.slope, two.slope)


class Told:
    """½‖z − 1‖², which says anything of what it is half the square of."""

    def __init__(self, d, *square, **weight):
        self.dimension, self.told = d, Squares(*square, **weight)

    def __call__(self, z):
        return self.gradient(z).square().sum((-2, -1)) / 2

    def gradient(self, z):
        return z - torch.eye(self.dimension)

    def squares(self):
        return self.told


@pytest.mark.parametrize("kind", ["finite", "logarithms", "layers"])
def test_what_a_loss_says_of_its_squares_is_read_by_its_shapes(kind):
    """Of more or fewer numbers than there must be the gradient is asked for; nothing beyond them is read."""
    n, d, rows = 2, 3, 5
    x, y, T = torch.ones(rows, d), torch.ones(rows, d), torch.eye(d)
    wrong = [
        Told(d, None, T, T), Told(d, None, T[:2]), Told(d, None, T.expand(n + 1, d, d)), Told(d, None, T[0]),
        Told(d, x, y[:4]), Told(d, x[:, :2], y), Told(d, x[0], y), Told(d, x, y[:, :2]), Told(d, x, y[0]),
        Told(d, x, y.expand(n, rows, d)), Told(d, x, y, T[:, :2]), Told(d, x, y[:, :2], T), Told(d, x, y, T[0]),
        Told(d, None, T, weight=torch.ones(n + 1)), Told(d, None, T, weight=torch.ones(n, 1)),
    ]  # fmt: skip
    right, tableau, found = Rated(T.expand(n, d, d), torch.ones(n)), formula("DOP853").tableau, []
    for loss in (Told(d, None, T), Told(d, None, T, weight=torch.ones(n)), *wrong, right):
        if kind == "finite":
            flow, state = nf.FiniteFlow(4, loss), 0.3 * randn(n, 4, d, d, seed=5)
        else:
            kernel = nf.LogMean() if kind == "logarithms" else nf.DividedDifference(0.1 * randn(4, seed=3))
            flow, state = nf.IntrinsicFlow(loss, kernel), torch.stack([positive_matrix(d, seed=k) for k in range(n)])
        if kind == "logarithms":
            flow = flow.carrier()
            state = flow.enter(state)
        f = flow.velocity(state)
        found.append((f, flow.explicit_steps(state, f, np.full(n, 0.1), tableau).ahead))
        assert (squares.given(loss, (n,), d) is None) == (loss in [*wrong, right])
    for velocity, ahead in found:
        assert_close(velocity, found[-1][0], rtol=1e-12, atol=1e-13)
        assert_close(ahead, found[-1][1], rtol=1e-12, atol=1e-13)


def test_a_wrapper_with_another_velocity_does_not_take_the_steps_of_what_it_wraps():
    flow, start = nf.FiniteFlow(6, nf.Quadratic(2 * torch.eye(2))), torch.zeros(6, 2, 2)
    fast = nf.integrate(flow, start, [0.0, 0.5], "DOP853", 1e-10, 1e-12)
    slow = nf.integrate(Passing(flow), start, [0.0, 1.0], "DOP853", 1e-10, 1e-12)
    assert_close(slow.z[-1], fast.z[-1], rtol=0, atol=1e-9)


class OfOne:
    """Right for one z alone, which it remembers together with what it has computed of it."""

    dimension, last = 2, (None, None)

    def gradient(self, z):
        if self.last[0] is not z:
            G = z / 10
            G[0, 0] += z[0, 0] - 3
            self.last = z, G
        return self.last[1]

    def __call__(self, z):
        return (z[0, 0] - 3) ** 2 / 2 + z.square().sum() / 20


@pytest.mark.parametrize("method", ["DOP853", "dopri5", "RK23"])
def test_a_loss_sees_the_z_of_a_velocity_each_a_tensor_of_its_own(method, monkeypatch):
    run = torch.zeros(4, 2, 2), [0.0, 1.0, 4.0], method, 1e-7, 1e-9
    path = nf.integrate(nf.FiniteFlow(4, OfOne()), *run)
    monkeypatch.setattr(explicit, "takes", lambda *_: False)
    known = nf.integrate(nf.FiniteFlow(4, OfOne()), *run)
    assert_close(path.z, known.z, rtol=0, atol=1e-8)
    assert abs(path.stats["evaluations"] - known.stats["evaluations"]) <= 0.05 * known.stats["evaluations"]


@pytest.mark.parametrize("where", [nf.ContinuousFlow, nf.Quadratic, nf.Collocation])
def test_what_is_replaced_in_a_class_is_seen(where, monkeypatch):
    flow = nf.ContinuousFlow(GRID, nf.Quadratic(2 * torch.eye(2)))
    name = "velocity" if where is nf.ContinuousFlow else "gradient"
    W, old = torch.zeros(len(GRID), 2, 2), getattr(where, name)
    slow = nf.integrate(flow, W, [0.0, 0.5], "DOP853", 1e-9, 1e-11)
    monkeypatch.setattr(where, name, lambda self, *given: 2 * old(self, *given))
    fast = nf.integrate(flow, W, [0.0, 0.25], "DOP853", 1e-9, 1e-11)
    assert_close(fast.z[-1], slow.z[-1], rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", ["dopri5", "DOP853"])
def test_members_whose_trial_steps_the_grid_does_not_resolve_are_what_they_are_alone(method):
    """To round-off: torch computes what the engine does not."""
    grid, sizes = nf.DepthGrid.gauss(1, 4), torch.linspace(6, 18, 4)
    targets, times = sizes[:, None, None] * torch.eye(2), [0.0, 0.3, 1.0]
    W = torch.zeros(4, 4, 2, 2)
    path = nf.integrate(nf.ContinuousFlow(grid, nf.Quadratic(targets)), W, times, method, 1e-3, 1e-5, control="member")
    for i in range(4):
        alone = nf.integrate(nf.ContinuousFlow(grid, nf.Quadratic(targets[i])), W[i], times, method, 1e-3, 1e-5)
        assert path.stats["members"]["endings"][i] == alone.ending
        assert path.stats["members"]["evaluations"][i] == alone.stats["evaluations"]
        assert_close(path.z[: len(alone.z), i], alone.z, rtol=0, atol=1e-10)
    one = nf.ContinuousFlow(grid, nf.Quadratic(targets[-1:]))
    assert nf.integrate(one, W[:1], times, method, 1e-3, 1e-5, control="member").times.tolist() == times


def test_steps_and_slopes_that_do_not_fit_the_states_are_refused():
    flow, tableau = nf.FiniteFlow(6, nf.Quadratic(torch.eye(3))), formula("RK45").tableau
    W = randn(3, 6, 3, 3, seed=5)
    for slopes, h in ((W[:2], np.full(3, 0.1)), (W, np.full(1, 0.1))):
        with pytest.raises(ValueError, match="slopes and h must be those of 3 states"):
            flow.explicit_steps(W, slopes, h, tableau)
    made, zero, h = formula("RK45"), np.zeros(3), np.full(3, 0.1)

    def legs(h, left=10):
        return explicit.Legs(zero, h, h, zero > 0, left, 1.0, made.pace, None)

    for slopes, given in ((W[:2], legs(h)), (W, legs(h[:1]))):
        with pytest.raises(ValueError, match="slopes and h must be those of 3 states"):
            flow.explicit_runs(W, slopes, given, tableau)
    with pytest.raises(ValueError, match="broadcast"):
        flow.explicit_runs(W, W, legs(h, [10, 10]), tableau)
    pair, loss = torch.eye(3).expand(3, 3, 3, 3), nf.Quadratic(torch.eye(3))
    for other, what in ((flow, "6 layers"), (nf.ContinuousFlow(GRID, loss), "20 depth nodes")):
        for run in (
            lambda flow: flow.explicit_runs(pair, pair, legs(h), tableau),
            lambda flow: flow.explicit_steps(pair, pair, h, tableau),
        ):
            with pytest.raises(ValueError, match=f"with {what}, got"):
                run(other)
    with pytest.raises(ValueError, match="states must be of 2 matrices, got shape"):
        explicit.steps(explicit.CLOSED, pair, pair, h, loss, tableau)
    f = flow.velocity(W)
    known = flow.explicit_steps(W, f, np.full(3, 0.5), tableau)
    assert torch.equal(flow.explicit_steps(W, f, np.full(3, 0.5, dtype=np.float32), tableau).ahead, known.ahead)
    shared = flow.explicit_steps(W, f, 0.5, tableau)
    assert torch.equal(shared.ahead, known.ahead)
    assert shared.error == pytest.approx(np.sqrt(np.mean(known.error**2)), rel=1e-12)


THIRDS = torch.linspace(0, 0.6, 4)


@cache
def accurate_runs():
    """Flows with their starts, and z of accurate runs by velocities, which are the same for all methods."""
    target = randn(3, 3, 3, seed=8) / 2 + 1.5 * torch.eye(3)
    runs = []
    for name, flow, nodes in flows(Rated(target, torch.logspace(0, 1, 3))):
        W = 0.2 * randn(3, 1, 3, 3, seed=9).expand(3, nodes, 3, 3)
        with mock.patch.object(explicit, "takes", return_value=False):
            runs.append((name, flow, W, nf.integrate(flow, W, THIRDS, "DOP853", 1e-12, 1e-14).z))
    return runs


@pytest.mark.parametrize("method", ["DOP853", "dopri5", *slow("RK45", "dopri8")])
def test_a_run_in_whole_steps_is_the_one_by_velocities(method, monkeypatch):
    for name, flow, W, known in accurate_runs():
        for control in ("shared", "member"):
            path = nf.integrate(flow, W, THIRDS, method, 1e-9, 1e-11, control=control)
            with monkeypatch.context() as patch:
                patch.setattr(explicit, "takes", lambda *_: False)
                by_velocities = nf.integrate(flow, W, THIRDS, method, 1e-9, 1e-11, control=control)
            assert path.status == by_velocities.status == "ok"
            # The error of DOP853, which cancels, is sensitive to round-off, and with it the next step.
            assert_close(path.z, known, rtol=0, atol=1e-8, msg=f"{name}, {control}: {{}}".format)
            spent, there = (run.stats["evaluations"] for run in (path, by_velocities))
            assert abs(spent - there) < 0.1 * there


def test_the_powers_of_many_errors_are_those_of_each():
    made, errors = formula("dopri5"), torch.rand(500, generator=torch.Generator().manual_seed(0)) * 2
    plan = made.plan(np.zeros(500), np.linspace(0.1, 1, 500), 2.0, np.linspace(0.1, 1, 500), np.zeros(500, dtype=bool))
    _, h = made.judged(errors, plan, np.zeros(500, dtype=bool), plan.end == 2.0)
    for i in range(500):
        one = np.array([i])
        _, alone = made.judged(errors[one], plan.of(one), np.zeros(1, dtype=bool), plan.end[one] == 2.0)
        assert alone[0] == h[i]


def test_a_loss_that_fails_at_one_member_ends_that_member_and_leaves_the_others_as_they_are_alone():
    rate, target = torch.tensor([1.0, 60.0, 2.0]), torch.stack([torch.eye(2), 90 * torch.eye(2), 2 * torch.eye(2)])
    flow = nf.FiniteFlow(5, Rated(target, rate))
    W, times = torch.zeros(3, 5, 2, 2), [0.0, 0.5, 1.0]
    path = nf.integrate(flow, W, times, "DOP853", control="member")
    assert path.stats["members"]["endings"] == ["ok", "velocity", "ok"]
    for i in (0, 2):
        alone = nf.integrate(nf.FiniteFlow(5, Rated(target[i], rate[i])), W[i], times, "DOP853")
        assert torch.equal(alone.z, path.z[:, i])


class OfNothing:
    """½‖R z xᵀ − yᵀ‖² of no samples, or of no outputs: 0."""

    dimension = 3

    def __init__(self, *parts):
        self.parts = parts

    def __call__(self, z):
        return torch.zeros(z.shape[:-2])

    def gradient(self, z):
        return torch.zeros_like(z)

    def squares(self):
        return Squares(*self.parts)


@pytest.mark.parametrize(("rows", "outputs"), [(5, 0), (0, 2), (0, 0)])
def test_a_square_of_nothing_moves_nothing(rows, outputs):
    """Its parts have no place in memory, where C would read them."""
    loss = OfNothing(randn(rows, 3, seed=1), randn(rows, outputs, seed=2), randn(outputs, 3, seed=3))
    for _, flow, nodes in flows(loss):
        W = 0.3 * randn(2, nodes, 3, 3, seed=5)
        for control in ("shared", "member"):
            assert torch.equal(nf.integrate(flow, W, [0.0, 1.0], control=control).state, W)
    for kernel in (nf.LogMean(), nf.DividedDifference(torch.zeros(6))):
        for method in ("dopri5", "auto"):
            path = nf.integrate(nf.IntrinsicFlow(loss, kernel), torch.eye(3), [0.0, 1.0], method)
            assert_close(path.z[-1], torch.eye(3), rtol=0, atol=1e-15)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_instruction_set_takes_the_same_steps(level):
    flow, tableau = nf.ContinuousFlow(GRID, nf.Quadratic(torch.eye(5))), formula("DOP853").tableau
    W = 0.3 * randn(2, len(GRID), 5, 5, seed=5)
    f, h = flow.velocity(W), np.full(2, 0.1)
    known = flow.explicit_steps(W, f, h, tableau)
    compiled.set_level(level)
    try:
        found = flow.explicit_steps(W, f, h, tableau)
    finally:
        compiled.set_level(2)
    assert_close(found.ahead, known.ahead, rtol=1e-14, atol=1e-14)


def test_a_step_is_exact_for_a_chain_of_numbers():
    """One layer of one number, W' = −(1 + W − T): each stage is known, and so is the solution."""
    flow, made = nf.FiniteFlow(1, nf.Quadratic(torch.tensor([[3.0]]))), formula("DOP853")
    W, h = torch.zeros(1, 1, 1, 1), np.array([0.1])
    found = flow.explicit_steps(W, flow.velocity(W), h, made.tableau)
    assert_close(found.ahead.reshape(()), torch.tensor(2 * (1 - np.exp(-0.1))), rtol=1e-13, atol=0)
