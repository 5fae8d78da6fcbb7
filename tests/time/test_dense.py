"""Dense output: z at any time of a run, as accurate as the run."""

import math
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import neuralode_flow as nf
from neuralode_flow.time.base import METHODS, FixedStepper

TARGET = torch.tensor([[1.4, 0.3], [-0.4, 0.7]], dtype=torch.float64)
GRID = nf.DepthGrid.gauss(1, 8)
FLOW = nf.ContinuousFlow(GRID, nf.Quadratic(TARGET))
START = nf.INITIALS["relaxed_balanced"](torch.eye(2, dtype=torch.float64))
FINE = torch.linspace(0, 4, 161, dtype=torch.float64)


def dense(method="DOP853", rtol=1e-10, times=(0.0, 4.0), flow=FLOW, start=START, **options):
    return nf.integrate(flow, start, list(times), method, rtol, rtol / 10, dense=True, **options)


@pytest.fixture(scope="module")
def exact():
    """A refined run, at the very times that are asked for."""
    return nf.integrate(FLOW, START, FINE, "DOP853", 1e-13, 1e-14).z


TOLERANCES = [
    ("DOP853", 1e-10),
    ("DOP853", 1e-5),
    ("dopri5", 1e-8),
    ("dopri8", 1e-9),
    ("RK45", 1e-6),
    ("bosh3", 1e-4),
    ("LSODA", 1e-9),
    ("BDF", 1e-5),
    ("CVODE_BDF", 1e-8),
    ("CVODE_Adams", 1e-8),
    ("auto", 1e-9),
]


@pytest.mark.parametrize(("method", "rtol"), TOLERANCES)
def test_between_two_outputs_it_is_as_accurate_as_the_steps(exact, method, rtol):
    path = dense(method, rtol)
    ends = nf.integrate(FLOW, START, path.dense_times, "DOP853", 1e-13, 1e-14).z[1:]
    of_steps = float((path.dense_z[:, -1] - ends).norm(dim=(-2, -1)).max())
    between = float((path(FINE) - exact).norm(dim=(-2, -1)).max())
    assert len(path.times) == 2
    assert between <= 2 * of_steps + 1e-14
    assert between <= 20 * rtol


@pytest.mark.parametrize("method", ["rk4", "implicit_midpoint", "Radau"])
def test_fixed_and_implicit_steps_too(exact, method):
    options = {} if method == "Radau" else {"step": 0.1}
    path = dense(method, 1e-6, **options)
    least = float((path.dense_z[:, -1] - path(path.dense_times[1:])).abs().max())
    assert least == 0.0
    between = float((path(FINE) - exact).norm(dim=(-2, -1)).max())
    ends = nf.integrate(FLOW, START, path.dense_times, "DOP853", 1e-13, 1e-14).z[1:]
    assert between <= 2 * float((path.dense_z[:, -1] - ends).norm(dim=(-2, -1)).max())


class Exact(FixedStepper):
    """The solution of θ' = T − θ, so that all error is that of the polynomial between the ends of steps."""

    def _fixed_step(self, start, end):
        return 2.0 + (self.state - 2.0) * math.exp(start - end)


def test_the_polynomial_is_of_order_eight(monkeypatch):
    monkeypatch.setitem(METHODS._entries, "exact", Exact)
    flow = nf.FactorizationFlow(lambda theta: 1.0 * theta, nf.Quadratic(torch.tensor([2.0]).double(), axes=1))
    t = torch.linspace(0, 4, 1001, dtype=torch.float64)
    errors = []
    for step in (2.0, 1.0, 0.5):
        path = dense("exact", times=(0.0, 4.0), flow=flow, start=torch.zeros(1).double(), step=step)
        errors.append(float((path(t)[:, 0] - 2 * (1 - torch.exp(-t))).abs().max()))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert errors[-1] > 1e-13
    assert np.all(abs(orders - 8) < 1)
    assert 0 < 8 - orders[-1] < 0.4 < 8 - orders[0]  # still rising


def test_the_run_itself_stays_as_it_was_to_the_bit():
    times = torch.linspace(0, 4, 5)
    for method in ("DOP853", "LSODA"):
        plain = nf.integrate(FLOW, START, times, method, 1e-8, 1e-9)
        path = dense(method, 1e-8, times)
        assert torch.equal(plain.z, path.z)
        assert torch.equal(plain.state, path.state)
        assert plain.stats["steps"] == path.stats["steps"]
        ratio = path.stats["evaluations"] / plain.stats["evaluations"]
        assert (ratio == 1) if method == "LSODA" else (4 < ratio < 8)
        assert plain.dense_z is None


def test_at_outputs_it_is_what_was_recorded():
    path = dense(times=(0.0, 0.5, 4.0))
    assert torch.equal(path(path.times), path.z)  # steps end there
    path = dense("LSODA", times=(0.0, 0.5, 4.0))
    assert_close(path(path.times), path.z, rtol=0, atol=1e-12)


def test_the_axes_of_the_times_come_first():
    path = dense()
    assert path(0.3).shape == (2, 2)
    assert path(3).shape == (2, 2)
    assert path([0.1, 0.2, 0.3]).shape == (3, 2, 2)
    assert path(np.array([0.3])).shape == (1, 2, 2)
    grid = torch.rand(2, 0, 3)
    assert path(grid).shape == (2, 0, 3, 2, 2)
    t = torch.tensor([[3.1, 0.2], [4.0, 0.0]], dtype=torch.float64)
    assert torch.equal(path(t)[0, 1], path(0.2))
    assert torch.equal(path(t)[1, 1], path.z[0])


def test_members_and_numbers():
    def product(theta):
        return theta[..., 0] * theta[..., 1]

    theta = torch.tensor([[0.5, 0.1], [0.2, 0.4], [0.3, 0.3]], dtype=torch.float64)
    flow = nf.FactorizationFlow(product, nf.Quadratic(torch.tensor(2.0).double(), axes=0))
    path = dense("dopri5", 1e-9, (0.0, 1.0), flow, theta)
    assert path([0.2, 0.4]).shape == (2, 3)
    refined = nf.integrate(flow, theta, [0.0, 0.2, 0.4], "DOP853", 1e-13, 1e-14).z[1:]
    assert_close(path([0.2, 0.4]), refined, rtol=0, atol=1e-7)
    assert float((path(0.2) - path(0.4)).abs().min()) > 1e-3


def test_a_flow_that_is_carried_in_logarithms_and_a_grid_that_follows():
    limit = nf.IntrinsicFlow(nf.Quadratic(TARGET), nf.LogMean())
    start = 0.1 * torch.eye(2, dtype=torch.float64)
    exact = nf.integrate(limit, start, FINE, "DOP853", 1e-13, 1e-14).z
    assert float((dense(flow=limit, start=start)(FINE) - exact).norm(dim=(-2, -1)).max()) < 1e-8
    path = dense(flow=nf.ContinuousFlow(nf.DepthGrid.gauss(1, 4), nf.Quadratic(TARGET)), adapt=True)
    assert path.stats["grid"] != [1, 4]
    finest = nf.integrate(nf.ContinuousFlow(nf.DepthGrid.gauss(4, 12), FLOW.loss), START, FINE, "DOP853", 1e-13, 1e-14)
    assert float((path(FINE) - finest.z).norm(dim=(-2, -1)).max()) < 1e-8


def test_a_time_outside_is_refused_with_the_range():
    path = dense()
    for t in (4.5, -1e-9, [0.1, 4.0000001], float("nan"), float("inf")):
        with pytest.raises(ValueError, match="t must be between 0 and 4, the times of this run, got"):
            path(t)
    for t in ("now", None, [True], 1j):
        with pytest.raises(TypeError, match="t must be a time, a sequence of times or a tensor"):
            path(t)
    with pytest.raises(TypeError, match="dense must be True or False, got 1"):
        nf.integrate(FLOW, START, [0.0, 1.0], dense=1)


def test_without_it_z_is_interpolated_between_outputs_and_the_error_is_told():
    true = dense()
    seen = []
    for count in (9, 17, 33):
        times = torch.linspace(0, 4, count, dtype=torch.float64)
        path = nf.integrate(FLOW, START, times, "DOP853", rtol=1e-10, atol=1e-12)
        between = (times[1:] + times[:-1]) / 2
        with pytest.warns(RuntimeWarning, match=r"an error of up to about \S+: integrate\(…, dense=True\)") as told:
            z = path(between)
        error = float((z - true(between)).abs().max())
        said = float(re.search(r"about (\S+):", str(told[0].message))[1])
        assert error < 1.5 * said
        seen.append(error)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(path(times), path.z)
    assert seen[0] > 4 * seen[1] > 16 * seen[2]
    two = nf.integrate(FLOW, START, [0.0, 1.0])
    with pytest.warns(RuntimeWarning, match="up to about"):
        assert torch.allclose(two(0.5), two.z.mean(dim=0))


def test_a_trajectory_is_no_function_of_depth():
    with pytest.raises(TypeError, match="state must be a tensor .* got a Trajectory: give its `state`"):
        nf.integrate(FLOW, dense(), [4.0, 5.0])


def test_after_an_event_the_range_ends_there():
    path = dense(stop={"loss": 0.05})
    end = float(path.times[-1])
    assert path.ending == "loss"
    assert 0 < end < 4
    assert_close(path(end), path.z[-1], rtol=0, atol=0)
    assert_close(
        path(end / 2), nf.integrate(FLOW, START, [0.0, end / 2], "DOP853", 1e-13, 1e-14).z[1], rtol=0, atol=1e-9
    )
    with pytest.raises(ValueError, match=f"between 0 and {end:.6g}"):
        path(end + 1e-9)


def test_a_run_of_no_steps_is_known_at_its_start():
    path = dense(times=(1.0,))
    assert torch.equal(path([1.0, 1.0]), path.z[[0, 0]])
    with pytest.raises(ValueError, match="between 1 and 1"):
        path(1.1)


def test_a_budget_ends_it_at_a_whole_step():
    path = dense(max_evaluations=400)
    assert path.ending == "evaluations"
    end = float(path.times[-1])
    assert path.dense_times[-1] == end
    assert len(path.dense_z) == path.stats["steps"] == len(path.dense_times) - 1
    assert_close(path(end), path.z[-1], rtol=0, atol=0)


def test_files_keep_it(tmp_path):
    path = dense(estimate=True)
    path.save(tmp_path / "path.npz")
    again = nf.load(tmp_path / "path.npz")
    assert torch.equal(again(FINE), path(FINE))
    assert path.time_error is not None
    nf.integrate(FLOW, START, [0.0, 1.0]).save(tmp_path / "plain.npz")
    assert nf.load(tmp_path / "plain.npz").dense_z is None
    assert repr(again) == repr(path)


@pytest.mark.parametrize("method", ["DOP853", "dopri5"])
def test_a_run_that_goes_on_has_the_same_to_the_bit(tmp_path, method):
    whole = dense(method, 1e-8)
    first = dense(method, 1e-8, max_evaluations=whole.stats["evaluations"] // 2, checkpoint=tmp_path / "run.npz")
    assert first.ending == "evaluations"
    assert torch.equal(nf.load(tmp_path / "run.npz").dense_times, first.dense_times)
    then = dense(method, 1e-8, checkpoint=tmp_path / "run.npz")
    assert len(first.dense_z) < len(then.dense_z)
    assert torch.equal(then.dense_times, whole.dense_times)
    assert torch.equal(then(FINE), whole(FINE))


def test_a_checkpoint_without_it_is_refused_and_the_other_way_round(tmp_path):
    plain = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-10 / 10}
    nf.integrate(FLOW, START, [0.0, 4.0], checkpoint=tmp_path / "plain.npz", max_evaluations=100, **plain)
    with pytest.raises(ValueError, match="belongs to a run with dense = None, now it is True"):
        dense(checkpoint=tmp_path / "plain.npz")
    dense(checkpoint=tmp_path / "dense.npz", max_evaluations=400)
    with pytest.raises(ValueError, match="belongs to a run with dense = True, now it is None"):
        nf.integrate(FLOW, START, [0.0, 4.0], checkpoint=tmp_path / "dense.npz", **plain)


def test_single_precision_and_another_start_of_time():
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 8, dtype=torch.float32), nf.Quadratic(TARGET.float()))
    path = dense("dopri5", 1e-4, (5.0, 9.0), flow, torch.zeros(8, 2, 2, dtype=torch.float32))
    assert path(6.5).dtype == torch.float32
    exact = nf.integrate(FLOW, torch.zeros(8, 2, 2).double(), [0.0, 1.5], "DOP853", 1e-12).z[1]
    assert_close(path(6.5).double(), exact, rtol=0, atol=3e-4)
    assert replace(path, dense_z=path.dense_z * 2)(6.5).allclose(2 * path(6.5))
