"""A run that has ended is made longer: the same call, with more output times after the same ones, goes on from it."""

import pytest
import torch
from torch.testing import assert_close

import neuralode_flow as nf

TARGET = torch.tensor([[1.4, 0.3], [-0.4, 0.7]], dtype=torch.float64)
FLOW = nf.ContinuousFlow(nf.DepthGrid.gauss(2, 8), nf.Quadratic(TARGET))
LIMIT = nf.IntrinsicFlow(nf.Quadratic(TARGET), nf.LogMean())
START = nf.INITIALS["relaxed_balanced"](torch.eye(2, dtype=torch.float64))
SHORT, LONG = [0.0, 0.5, 1.0, 1.5, 2.0], [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0]
TENSORS = ("times", "z", "loss", "drift", "depth_error", "state")


def run(times, method="DOP853", flow=FLOW, start=START, **options):
    return nf.integrate(flow, start, times, method, **{"rtol": 1e-9, "atol": 1e-10, **options})


ONE_STEP = [("DOP853", {}), ("dopri5", {}), ("rk4", {"step": 0.1}), ("implicit_midpoint", {"step": 0.1}), ("RK23", {})]


@pytest.mark.parametrize(("method", "options"), ONE_STEP)
def test_it_is_the_run_that_was_long_from_the_start_to_the_bit(tmp_path, method, options):
    options = options | {"rtol": 1e-6, "observe": lambda i, state: state.mean(-3) + i, "dense": True}
    whole = run(LONG, method, **options)
    short = run(SHORT, method, checkpoint=tmp_path / "run.npz", **options)
    path = run(LONG, method, checkpoint=tmp_path / "run.npz", **options)
    assert len(short.times) < len(path.times) == len(LONG)
    for name in (*TENSORS, "observed", "dense_times", "dense_z"):
        assert torch.equal(getattr(path, name), getattr(whole, name)), name
    assert path.stats["steps"] == whole.stats["steps"] > short.stats["steps"]
    assert whole.stats["evaluations"] <= path.stats["evaluations"] <= whole.stats["evaluations"] + 2
    assert path.stats["seconds"] > short.stats["seconds"]
    assert torch.equal(nf.load(tmp_path / "run.npz").z, whole.z)


@pytest.mark.parametrize("method", ["LSODA", "BDF", "CVODE_BDF", "auto", "explicit_adams"])
def test_multistep_methods_keep_what_was_there_and_begin_anew_after_it(tmp_path, method):
    options = {"step": 0.01} if method == "explicit_adams" else {}
    short = run(SHORT, method, checkpoint=tmp_path / "run.npz", **options)
    path = run(LONG, method, checkpoint=tmp_path / "run.npz", **options)
    kept = len(SHORT)
    for name in TENSORS[:-1]:
        assert torch.equal(getattr(path, name)[:kept], getattr(short, name)), name
    exact = run(LONG, rtol=1e-13, atol=1e-14)
    assert_close(path.z, exact.z, rtol=0, atol=2e-7)
    assert path.status == "ok"
    assert path.stats["steps"] > short.stats["steps"]


def test_the_drift_is_that_from_the_first_start(tmp_path):
    run(SHORT, "RK23", rtol=1e-4, checkpoint=tmp_path / "run.npz")
    path = run(LONG, "RK23", rtol=1e-4, checkpoint=tmp_path / "run.npz")
    from_the_end = run(LONG[len(SHORT) - 1 :], "RK23", rtol=1e-4, start=path.state)
    assert float(path.drift[-1]) > 1e-8
    assert float(path.drift[len(SHORT)]) >= float(path.drift[len(SHORT) - 1]) / 2
    assert float(from_the_end.drift[0]) == 0


@pytest.mark.parametrize("method", ["DOP853", "dopri5", "LSODA"])
def test_the_error_in_time_is_measured_of_the_whole_run(tmp_path, method):
    short = run(SHORT, method, rtol=1e-6, estimate=True, checkpoint=tmp_path / "run.npz")
    path = run(LONG, method, rtol=1e-6, estimate=True, checkpoint=tmp_path / "run.npz")
    exact = run(LONG, rtol=1e-13, atol=1e-14)
    true = (path.z - exact.z).norm(dim=(-2, -1))
    assert bool((true <= 1.5 * path.time_error + 1e-12).all())
    assert float(path.time_error[-1]) < 1e3 * float(true[-1]) + 1e-12
    if method != "LSODA":
        assert torch.equal(path.time_error[: len(SHORT)], short.time_error)
        assert torch.equal(path.time_error, run(LONG, method, rtol=1e-6, estimate=True).time_error)


def test_it_can_be_made_longer_again_also_where_it_was_carried_in_logarithms(tmp_path):
    start = 0.1 * torch.eye(2, dtype=torch.float64)
    for times in (SHORT[:2], SHORT, LONG[:6], LONG):
        path = run(times, flow=LIMIT, start=start, checkpoint=tmp_path / "run.npz")
        assert len(path.times) == len(times)
    whole = run(LONG, flow=LIMIT, start=start)
    assert torch.equal(path.z, whole.z)
    assert torch.equal(path.log_sigma, whole.log_sigma)


def test_one_that_a_budget_ended_can_be_longer_too_and_budgets_are_of_the_whole(tmp_path):
    first = run(SHORT, checkpoint=tmp_path / "run.npz", max_evaluations=60)
    assert first.ending == "evaluations"
    second = run(LONG, checkpoint=tmp_path / "run.npz", max_evaluations=first.stats["evaluations"])
    assert second.ending == "evaluations"
    assert torch.equal(run(LONG, checkpoint=tmp_path / "run.npz").z, run(LONG).z)


def test_a_grid_that_follows_goes_on(tmp_path):
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 4), nf.Quadratic(TARGET))
    run(SHORT, flow=flow, adapt=True, checkpoint=tmp_path / "run.npz")
    path = run(LONG, flow=flow, adapt=True, checkpoint=tmp_path / "run.npz")
    exact = run(LONG, flow=nf.ContinuousFlow(nf.DepthGrid.gauss(4, 12), FLOW.loss), rtol=1e-13, atol=1e-14)
    assert_close(path.z, exact.z, rtol=0, atol=1e-7)
    assert path.status == "ok"


def test_one_that_an_event_ended_has_ended(tmp_path):
    first = run(SHORT, stop={"loss": 0.2}, checkpoint=tmp_path / "run.npz")
    assert first.ending == "loss"
    again = run(LONG, stop={"loss": 0.2}, checkpoint=tmp_path / "run.npz")
    assert torch.equal(again.z, first.z)
    assert again.ending == "loss"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"times": SHORT[:3]}, "times = '5 from 0 to 2 .*', now it is '3 from 0 to 1"),
        ({"times": [0.0, 0.5, 1.0, 1.6, 2.0, 3.0]}, "times = '5 from 0 to 2 .*', now it is '6 from 0 to 3"),
        ({"times": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]}, "times = '5 from 0 to 2 .*', now it is '6 from 0 to 5"),
        ({"times": LONG, "rtol": 1e-8}, "rtol = 1e-09, now it is 1e-08"),
        ({"times": LONG, "method": "dopri5"}, "method = 'DOP853', now it is 'dopri5'"),
        ({"times": LONG, "start": torch.zeros(16, 2, 2, dtype=torch.float64)}, "state = .*, now it is"),
    ],
)
def test_all_else_that_differs_is_refused(tmp_path, change, said):
    before = run(SHORT, checkpoint=tmp_path / "run.npz")
    with pytest.raises(ValueError, match=f"belongs to a run with {said}"):
        run(**{"times": SHORT, "checkpoint": tmp_path / "run.npz", **change})
    assert torch.equal(nf.load(tmp_path / "run.npz").z, before.z)
