"""The closed flow in logarithms in the compiled engine: velocities and whole implicit steps are as without it."""

import ctypes
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cases import ByVelocities, Passing, Seen, Weighted, carried, distance, formula, positive_matrix, randn
from scipy.linalg import cython_lapack
from torch.testing import assert_close

import neuralode_flow as nf
from neuralode_flow.depth.engine import compiled, explicit, polar
from neuralode_flow.flows.polar import LogPolarFlow
from neuralode_flow.time.base import Control, Start
from neuralode_flow.time.endings import Stopped
from neuralode_flow.time.methods.ndf import NdfStepper, whole_steps
from neuralode_flow.time.resolution import FixedGrid
from neuralode_flow.time.watch import Budget, Spent, Watch

if compiled.library() is None:
    pytest.skip("the compiled engine is not there", allow_module_level=True)

TIMES = [0.0, 3.0, 10.0, 100.0, 300.0]


def losses(d, n=3):
    x, y, two = randn(3 * d, d, seed=1), randn(3 * d, d, seed=2), randn(3 * d, 2, seed=2)
    return {
        "quadratic": nf.Quadratic(positive_matrix(d, seed=3)),
        "targets": nf.Quadratic(torch.stack([positive_matrix(d, seed=k) for k in range(n)])),
        "regression": nf.Regression(x, y),
        "weighted": Weighted(nf.Regression(x, y), torch.linspace(0.3, 2, n)),
        "readout": nf.Regression(x, two, readout=randn(2, d, seed=4)),
        "custom": nf.Custom(lambda z: torch.sqrt(1 + (z - positive_matrix(d, seed=5)).square()).sum((-2, -1)).sum()),
    }


class Kept:
    """A loss whose gradient carries derivatives."""

    dimension = None

    def __init__(self, loss):
        self.loss, self.scale = loss, torch.ones((), requires_grad=True)

    def __call__(self, z):
        return self.scale * self.loss(z)

    def gradient(self, z):
        return self.scale * self.loss.gradient(z)


def stiff(d=3, condition=1e4):
    x = randn(50, d, seed=1) * torch.logspace(0, -0.5, d, base=condition)
    return nf.Regression(x, x @ (torch.eye(d) + 0.3 * randn(d, d, seed=2)).mT)


def of_one(loss, k):
    """That of one of three members."""
    return loss.select((3,), torch.tensor([k])) if hasattr(loss, "select") else loss


def carrier(loss):
    return nf.IntrinsicFlow(loss, nf.LogMean()).carrier()


def without(monkeypatch):
    """Leaves the engine's part in this aside."""
    monkeypatch.setattr(polar, "takes", lambda state: False)


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 8, 9, 12, 13, 16, 20])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_its_velocity_is_that_of_numpy(d, level):
    compiled.set_level(level)
    try:
        for name, loss in losses(d).items():
            flow = carrier(loss)
            z = torch.stack([positive_matrix(d, seed=k, scale=2.0) for k in range(3)])
            states = flow.enter(z)
            states[:, 1] += 30 * torch.diag(torch.linspace(-1, 0, d))  # singular values that no z could hold
            states[2, 1] = torch.eye(d)  # all of them equal
            states[:, 0] += 1e-3 * randn(3, d, d, seed=7)  # Q is only near the orthogonal matrices
            found, lost = polar.velocity(loss, states)
            assert lost is None
            assert torch.equal(flow.velocity(states), found)
            assert_close(found, flow._velocity(states), rtol=1e-12, atol=1e-13, msg=f"{name}: {{}}".format)
            for k in range(3):
                assert torch.equal(carrier(of_one(loss, k)).velocity(states[k : k + 1])[0], found[k])
    finally:
        compiled.set_level(2)


@pytest.mark.parametrize("d", range(2, 10))
def test_its_eigenvectors_are_those_of_lapack_for_matrices_that_are_hard_to_rotate(d):
    flow, Q = carrier(nf.Quadratic(positive_matrix(d, seed=3))), torch.linalg.qr(randn(d, d, seed=4)).Q
    one, rising = torch.ones(d), torch.linspace(-1, 1, d)
    off = torch.diag(one[1:], 1)
    spectra = [1e-12 * rising, one + 1e-14 * rising, 40 * rising, 1e-8 * one + (rising == 1), torch.sign(rising)]
    known = [Q @ torch.diag(spectrum) @ Q.mT for spectrum in spectra]
    known += [off + off.mT, torch.ones(d, d), torch.diag(rising.flip(0)), 1e-170 * (off + off.mT), torch.zeros(d, d)]
    states = torch.stack([torch.stack((torch.linalg.qr(randn(d, d, seed=5)).Q, S)) for S in known])
    found, lost = polar.velocity(flow.loss, states)
    assert lost is None
    for state, value in zip(states, found):
        right = flow._velocity(state)
        assert_close(value, right, rtol=0, atol=1e-14 * d * float(1 + right.abs().max()) * float(1 + state[1].norm()))
    states[:, 1] *= 1e170
    lost = polar.velocity(flow.loss, states)[1]  # what is too large to be squared is not for it
    assert d > 8 or lost.tolist() == [True] * 8 + [False] * 2


def test_many_states_do_not_depend_on_threads():
    loss, d = losses(6)["regression"], 6
    states = carrier(loss).enter(torch.stack([positive_matrix(d, seed=k) for k in range(400)]))
    threads, found = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(carrier(loss).velocity(states.reshape(20, 20, 2, d, d)))
    torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_a_state_without_a_velocity_there_has_that_of_numpy_and_others_their_own():
    flow = carrier(losses(3)["regression"])
    states = flow.enter(torch.stack([positive_matrix(3, seed=k) for k in range(3)]))
    states[1, 0] *= 3  # far from the orthogonal matrices
    found, lost = polar.velocity(flow.loss, states)
    assert lost.tolist() == [False, True, False]
    value = flow.velocity(states)
    assert torch.equal(value[::2], found[::2])
    assert_close(value[1], flow._velocity(states)[1], rtol=1e-12, atol=1e-12)
    states[1] = torch.nan
    assert polar.velocity(flow.loss, states)[1].tolist() == [False, True, False]


def test_what_is_not_for_it_is_left_to_numpy_and_torch(monkeypatch):
    loss, state = stiff(), carrier(stiff()).enter(positive_matrix(3, seed=1))
    assert polar.velocity(loss, state) is not None
    assert polar.velocity(loss, state.float()) is None
    assert polar.velocity(loss, state.clone().requires_grad_()) is None
    assert polar.velocity(nf.Custom(loss), state) is not None
    assert polar.velocity(Kept(loss), state) is None
    assert polar.velocity(loss, carrier(stiff(33)).enter(torch.eye(33))) is None
    control = Control(1e-14, 1e-7, None)

    def taken(flow, state=state):
        watch = Watch(FixedGrid(flow, 0.0, 0.0), state.shape[:-3], state, Budget(1000), Spent())
        return whole_steps(Start(watch, 0.0, state, 1.0, control, {})) is not None

    assert taken(carrier(loss))
    assert not taken(carrier(loss), torch.stack((state, state)))
    assert not taken(Passing(carrier(loss)))
    assert not taken(nf.IntrinsicFlow(loss, nf.TwoLayer(0.0)).carrier())
    assert not taken(nf.IntrinsicFlow(loss, nf.LogMean()), state[0])
    assert not taken(carried(loss, nf.LogMean(), lambda: None)())
    assert not taken(carrier(nf.Custom(loss)))

    class Own(LogPolarFlow):
        def velocity(self, state):
            return 2 * super().velocity(state)

    assert not taken(Own(loss, nf.LogMean(), carrier(loss).rate_of))
    monkeypatch.setattr(nf.LogMean, "log_rate", lambda self, ell: torch.zeros(*ell.shape, ell.shape[-1]))
    assert not taken(carrier(loss))
    other = carrier(loss).velocity(state)
    monkeypatch.undo()
    assert_close(other, 2 * carrier(loss).velocity(state), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", ["DOP853", "dopri5"])
@pytest.mark.parametrize("d", [1, 3, 4, 9])
def test_a_whole_explicit_step_is_the_one_by_its_stages(method, d, monkeypatch):
    """Each state by itself, with its own step."""
    tableau = formula(method).tableau
    h = np.array([0.001, 0.01, 0.003])
    for loss in losses(d).values():
        flow = carrier(loss)
        states = flow.enter(torch.stack([positive_matrix(d, seed=k) for k in range(3)]))
        slopes = flow.velocity(states)
        whole = flow.explicit_steps(states, slopes, h, tableau)
        with monkeypatch.context() as patch:
            without(patch)
            known = formula(method).by_stages(
                ByVelocities(flow, states.shape), np.arange(3), states.flatten(1), slopes.flatten(1), h
            )
        assert_close(whole.ahead.flatten(1), known.y, rtol=1e-12, atol=1e-13)
        assert_close(whole.slope.flatten(1), known.f, rtol=1e-11, atol=1e-12)
        assert_close(torch.from_numpy(whole.error), torch.as_tensor(known.error), rtol=1e-5, atol=1e-5)
        for k in range(3):
            own = carrier(of_one(loss, k))
            alone = own.explicit_steps(states[k : k + 1], slopes[k : k + 1], h[k : k + 1], tableau)
            assert torch.equal(alone.ahead[0], whole.ahead[k])
        states[1, 0] *= 3
        found = flow.explicit_steps(states, slopes, h, tableau)
        assert np.isnan(found.error).tolist() == [False, True, False]
        assert torch.equal(found.ahead[::2], whole.ahead[::2])


def test_a_step_whose_error_is_too_small_for_a_square_has_the_error_zero():
    """Near e^-380 its two parts vanish one after the other, and what the error is divided by with them."""
    tableau, flow = formula("DOP853").tableau, carrier(nf.Quadratic(-torch.eye(2)))
    states = flow.enter(torch.eye(2).expand(2000, 2, 2).clone())
    states[:, 1] = -torch.linspace(300, 400, 2000)[:, None, None] * torch.eye(2)
    slopes, h = flow.velocity(states), np.full(2000, 1e-3)
    assert not np.isnan(flow.explicit_steps(states, slopes, h, tableau).error).any()
    known = formula("DOP853").by_stages(
        ByVelocities(flow, states.shape), np.arange(2000), states.flatten(1), slopes.flatten(1), h
    )
    assert not np.isnan(known.error).any()


@pytest.mark.parametrize("method", ["DOP853", "dopri5", "RK23", "bosh3"])
def test_whole_explicit_runs_are_those_by_velocities(method, monkeypatch):
    for name in ("regression", "targets", "weighted"):
        loss, batch = losses(4)[name], name != "regression"
        start = torch.stack([torch.eye(4)] * 3) if batch else torch.eye(4)
        rtol = 1e-7 if method in ("DOP853", "dopri5") else 1e-5
        run = (nf.IntrinsicFlow(loss, nf.LogMean()), start, [0.0, 0.5, 2.0], method, rtol, rtol / 100)
        for control in ("shared", "member") if batch else ("shared",):
            whole = nf.integrate(*run, control=control)
            with monkeypatch.context() as patch:
                without(patch)
                plain = nf.integrate(*run, control=control)
            assert whole.stats["evaluations"] == plain.stats["evaluations"]
            assert distance(whole.z.flatten(0, -3), plain.z.flatten(0, -3)) < 1e-10


def test_it_is_left_aside_where_lapack_counts_otherwise():
    offered = cython_lapack.__pyx_capi__["dgetrf"]
    assert polar._address(offered, polar._ROUTINES["dgetrf"])
    assert polar._address(offered, "long *, long *, d *, long *, long *, long *") is None
    assert polar._address(None, polar._ROUTINES["dgetrf"]) is None


def stepper(loss, rtol, end=300.0, most=10**6, scale=1.0):
    """A run by NDF in logarithms, as `integrate` sets it up."""
    flow = carrier(loss)
    state = flow.enter(scale * torch.eye(loss.dimension))
    control = Control(*flow.tolerances(state, rtol, rtol / 100), None)
    watch = Watch(FixedGrid(flow, 0.0, 0.0), torch.Size(), state, Budget(most), Spent())
    return NdfStepper(Start(watch, 0.0, state, end, control, {})), watch


@pytest.mark.parametrize("d", [1, 2, 4, 7])
@pytest.mark.parametrize("rtol", [1e-4, 1e-7])
def test_a_whole_step_is_the_one_by_velocities(d, rtol, monkeypatch):
    weighted = Weighted(stiff(d), torch.tensor(3.0))
    for loss in (stiff(d), weighted, *(losses(d)[name] for name in ("quadratic", "readout"))):
        whole, counted = stepper(loss, rtol)
        with monkeypatch.context() as patch:
            without(patch)
            plain, asked = stepper(loss, rtol)
            assert plain._whole is None
        for _ in range(40):
            whole.advance(300.0)
            with monkeypatch.context() as patch:
                without(patch)
                plain.advance(300.0)
            # Errors over tolerances decide on the next step: round-off of the states is seen there.
            assert whole.t == pytest.approx(plain.t, rel=1e-6)
            assert (whole._order, whole._equal) == (plain._order, plain._equal)
            assert (counted.evaluations, counted.products) == (asked.evaluations, asked.products)
            assert_close(whole.state, plain.state, rtol=1e-6, atol=0.01 * rtol)
            middle = whole.t - whole.h / 3
            assert_close(whole.at(middle), plain.at(middle), rtol=1e-6, atol=0.01 * rtol)


def test_a_step_that_is_not_taken_leaves_all_as_it_was_and_is_taken_by_velocities():
    loss = stiff()
    method, watch = stepper(loss, 1e-6)
    while method.t < 300.0:
        if len(method.history) % 3 == 0:
            before = method._differences.copy()
            here = polar.Place(method.t, method._size, method._order, method._equal)
            assert method._whole.step(here, 300.0, 0) is None
            assert np.array_equal(method._differences, before)
            method._by_velocities()
        else:
            method.advance(300.0)
        method.history.append("a step")
    known = nf.integrate(nf.IntrinsicFlow(loss, nf.LogMean()), torch.eye(3), [0.0, 300.0], "auto", 1e-9, 1e-11).z[-1]
    assert distance(watch.grid.flow.product(method.state), known) < 1e-6
    assert watch.products > len(method.history) / 4  # systems from before are not known to the other way


def ended(method):
    """What is said where a run is stopped."""
    try:
        while True:
            method.advance(300.0)
    except Stopped as stop:
        return str(stop)


def test_a_run_ends_at_its_budget_as_by_velocities(monkeypatch):
    flow = nf.IntrinsicFlow(stiff(), nf.LogMean())
    for most in (1, 2, 3, 17, 18, 19, 60):
        path = nf.integrate(flow, torch.eye(3), TIMES, "auto", 1e-6, 1e-8, max_evaluations=most)
        assert path.ending == "evaluations"
        assert path.stats["evaluations"] == most
        plain, watch = stepper(flow.loss, 1e-6, most=most)
        with monkeypatch.context() as patch:
            patch.setattr(plain, "_whole", None)
            stop = ended(plain)
        assert watch.evaluations == most
        assert stop[:-3] in path.status  # to the last digits of t
    late = nf.integrate(flow, torch.eye(3), TIMES, "auto", 1e-6, 1e-8, max_seconds=1e-9)
    assert late.ending == "seconds"


@pytest.mark.parametrize("d", [2, 5, 12])
def test_whole_runs_meet_their_tolerances_from_loose_to_tight(d):
    loss = stiff(d)
    flow = nf.IntrinsicFlow(loss, nf.LogMean())
    known = nf.integrate(flow, torch.eye(d), TIMES, "DOP853", 1e-12, 1e-14).z
    for rtol in (1e-4, 1e-6, 1e-8, 1e-10, 1e-12):
        path = nf.integrate(flow, torch.eye(d), TIMES, "auto", rtol, rtol / 100)
        assert path.status == "ok"
        assert path.stats["history"] == ["stiff from t = 0 on: whole steps of NDF"]
        assert distance(path.z, known) < 3 * rtol * float(torch.linalg.matrix_norm(known).max())
        assert path.stats["evaluations"] < 3000


def test_singular_values_that_no_square_could_hold_are_followed():
    flow = nf.IntrinsicFlow(nf.Quadratic(torch.diag(torch.tensor([2.0, -0.5]))), nf.LogMean())
    start, times = torch.diag(torch.tensor([1.0, 1e-170])), [0.0, 5.0, 300.0]
    auto, explicit = (nf.integrate(flow, start, times, m, 1e-8, 1e-10) for m in ("auto", "DOP853"))
    assert auto.stats["history"] == ["stiff from t = 0 on: whole steps of NDF"]
    assert distance(auto.z, explicit.z) < 1e-7
    assert_close(auto.log_sigma, explicit.log_sigma, rtol=1e-8, atol=1e-7)
    assert float(auto.log_sigma[-1, -1]) < -390


def test_two_threads_run_at_once_as_one_after_the_other():
    def run(k):
        flow = nf.IntrinsicFlow(stiff(3, 10.0**k), nf.LogMean())
        return nf.integrate(flow, torch.eye(3), TIMES, "auto", 1e-7, 1e-9).z

    alone = [run(k) for k in (2, 3, 4, 5)]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(run, (2, 3, 4, 5)), alone))


@pytest.mark.parametrize(
    "change",
    ["another", "in place", "of another size", "of more samples", "without a weight", "by velocities for a while"],
)
def test_a_loss_that_is_changed_on_the_way_is_the_one_that_is_followed(change):
    """A run goes where the new target is, wherever that lies in memory."""
    if change == "of another size":
        loss, longer = stiff(), randn(90, 3, seed=5)
    else:
        loss = nf.Quadratic((positive_matrix(3, seed=1) + 2 * torch.eye(3)).mT)  # not contiguous
    aim = 2 * torch.eye(3)
    if change == "of more samples":  # of one table: its first samples are where they were
        loss, table = nf.Regression(torch.eye(3), torch.eye(3)), 3 * randn(90, 3, seed=5)
        targets = torch.cat((1.5 * table[:3], table[3:] @ aim))
    if change == "without a weight":
        loss = Weighted(nf.Quadratic(aim), torch.tensor(1.0))

    def observe(i, state):
        if change == "of another size" and i == 2:
            loss._x, loss._y = longer, longer @ aim
        elif change == "of more samples":
            known = slice(0, 3) if i < 2 else slice(0, 90)
            loss._x, loss._y = table[known], targets[known]
        elif change == "by velocities for a while" and i == 1:
            loss.target = loss.target.clone().requires_grad_()
        elif change == "without a weight" and i == 2:
            loss.weight = torch.tensor(0.0)
        elif change == "in place" and i == 2:
            loss.target.copy_(aim)
        elif i == 2:
            loss.target = aim

    path = nf.integrate(
        nf.IntrinsicFlow(loss, nf.LogMean()), torch.eye(3), [0.0, 0.3, 1.0, 300.0], "auto", 1e-8, 1e-10, observe=observe
    )
    assert path.stats["history"] == ["stiff from t = 0 on: whole steps of NDF"]
    if change == "without a weight":  # it rests at the end of the step in which it was observed
        assert distance(path.z[-1], path.z[2]) < 0.01 < 0.1 < distance(path.z[-1], aim)
    elif change == "of more samples":
        assert distance(path.z[-1], torch.linalg.lstsq(table, targets).solution.mT) < 1e-6
    else:
        assert distance(path.z[-1], aim) < 1e-6


def test_stiff_runs_in_modes_of_torch_and_in_a_forked_child():
    """Where a mode sees what torch does, the run is by velocities; else it is the same to the bit."""
    run = (nf.IntrinsicFlow(stiff(), nf.LogMean()), torch.eye(3), TIMES, "auto", 1e-8, 1e-10)
    known = nf.integrate(*run)
    with torch.inference_mode():
        inference = nf.integrate(*run)
    with Seen() as seen:
        watched = nf.integrate(*run)
    assert torch.equal(inference.z, known.z)
    assert seen.operations > 1000
    assert watched.stats["history"][0].startswith("stiff at t = ")
    assert distance(watched.z, known.z) < 1e-7
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        assert torch.equal(pool.submit(forked).result(timeout=60), known.z)


def forked():
    torch.set_num_threads(1)
    return nf.integrate(nf.IntrinsicFlow(stiff(), nf.LogMean()), torch.eye(3), TIMES, "auto", 1e-8, 1e-10).z


def test_structures_are_as_long_as_those_in_c():
    """A field that one side has and the other has not would shift all after it."""
    assert ctypes.sizeof(polar._Ndf) == compiled.library().ndf_size()
    assert ctypes.sizeof(polar._Closed) == compiled.library().closed_size()
    assert ctypes.sizeof(explicit._Steps) == compiled.library().steps_size()
    assert ctypes.sizeof(explicit._Legs) == compiled.library().legs_size()
