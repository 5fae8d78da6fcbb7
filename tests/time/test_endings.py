"""Every way to end has its code and a sentence, and the numbers that come with it are true."""

import math
import subprocess
import sys

import pytest
import torch
from cases import distance, positive_matrix, randn, relaxed_profile

import neuralode_flow as nf
from neuralode_flow import exact

TARGET = torch.diag(torch.tensor([2.0, 0.5]))
LIMIT = nf.IntrinsicFlow(nf.Quadratic(TARGET), nf.LogMean())
ACROSS = nf.IntrinsicFlow(nf.Quadratic(torch.diag(torch.tensor([1.0, -1.0]))), nf.LogMean())
GROWING = nf.IntrinsicFlow(nf.Custom(lambda z: -z.square().sum().square()), nf.LogMean())
STEEP = nf.IntrinsicFlow(nf.Quadratic(20 * torch.eye(2)), nf.LogMean())
METHODS = ["auto", "DOP853", "dopri5", "LSODA", "BDF", "Radau", "CVODE_BDF", "CVODE_Adams"]


class Failing(nf.Collocation):
    def gradient(self, W, outer):
        raise FloatingPointError("the depth solve failed at s = 0.5")


def failing():
    grid = nf.DepthGrid.gauss(1, 3)
    return nf.ContinuousFlow(grid, nf.Quadratic(torch.eye(2)), Failing(grid)), torch.zeros(3, 2, 2)


def balanced_network():
    """Two balanced layers that complete a matrix, for which z₁₁ must grow: σ_min falls until errors carry it across."""
    target, seen = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[False, True], [True, True]])
    layers = nf.relaxed_balanced_layers(torch.tensor([[0.1, 0.03], [-0.02, 0.12]]), torch.zeros(2))
    return nf.FiniteFlow(2, nf.Completion(target, seen)), layers


def coarse(**options):
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 3), nf.Quadratic(TARGET))
    return nf.integrate(flow, relaxed_profile(2, seed=0, twist=6.0)[1], [0.0, 0.5, 1.0], **options)


def rough(s):
    return torch.tensor([[0.0, math.sin(4000 * s)], [math.cos(3000 * s), 0.0]])


# Each code with a run that ends so; `{tmp}` is an empty folder.
ENDS = {
    "ok": lambda: nf.integrate(LIMIT, torch.eye(2), [0.0, 1.0]),
    "loss": lambda: nf.integrate(LIMIT, torch.eye(2), [0.0, 90.0], stop={"loss": 1e-4}),
    "gradient": lambda: nf.integrate(LIMIT, torch.eye(2), [0.0, 90.0], stop={"gradient": 1e-4}),
    "steady": lambda: nf.integrate(LIMIT, torch.eye(2), [0.0, 90.0], stop={"steady": 1e-4}),
    "sigma_min": lambda: nf.integrate(ACROSS, torch.eye(2), [0.0, 90.0], stop={"sigma_min": 0.1}),
    "norm": lambda: nf.integrate(GROWING, torch.eye(2), [0.0, 1.0], stop={"norm": 10.0}),
    "time": lambda: nf.integrate(LIMIT, torch.eye(2), [0.0, 90.0], stop={"time": 1.5}),
    "event": lambda: nf.integrate(LIMIT, torch.eye(2), [0.0, 9.0], stop={"det": lambda t, z, _: 0.9 - torch.det(z)}),
    "unreachable": lambda: nf.integrate(ACROSS, torch.eye(2), [0.0, 100.0]),
    "evaluations": lambda: nf.integrate(LIMIT, torch.eye(2), [0.0, 90.0], max_evaluations=40),
    "seconds": lambda: nf.integrate(
        LIMIT, torch.eye(2), [0.0, 1e8], "euler", step=0.1, max_evaluations=2 * 10**9, max_seconds=0.2
    ),
    "underflow": lambda: nf.integrate(GROWING, torch.eye(2), [0.0, 1.0], "dopri5", rtol=1e-6, atol=1e-8),
    "implicit": lambda: nf.integrate(LIMIT, torch.eye(2), [0.0, 30.0], "implicit_midpoint", step=0.5),
    "velocity": lambda: nf.integrate(*failing(), [0.0, 1.0]),
    "not_finite": lambda: nf.integrate(GROWING, torch.eye(2), [0.0, 5.0], "euler", step=0.5),
    "diverged": lambda: nf.descend(nf.FiniteFlow(8, nf.Quadratic(TARGET)), torch.zeros(8, 2, 2), 100, rate=9.0),
    "depth": coarse,
    "escaped": lambda: nf.integrate(*balanced_network(), [0.0, 300.0], "auto"),
    "accuracy": lambda: nf.integrate(
        STEEP, 0.01 * torch.eye(2), torch.linspace(0, 6, 25), "bosh3", rtol=1e-3, atol=1e-3, estimate=True
    ),
}  # fmt: skip


@pytest.mark.parametrize("code", ENDS)
def test_every_code_is_produced(code):
    path = ENDS[code]()
    assert path.ending == code
    assert (path.status == "ok") == (code == "ok")
    assert code == "ok" or len(path.status) > 20
    assert len(path.times) == len(path.z) == len(path.loss) == len(path.drift) == len(path.depth_error)
    assert bool(torch.isfinite(path.z).all() and torch.isfinite(path.state).all())


def test_the_list_of_codes_is_complete():
    # The last two are shown in test_checkpoint.py.
    assert set(ENDS) | {"checkpoint", "interrupted"} == set(nf.ENDINGS)


@pytest.mark.slow
def test_the_codes_are_the_same_without_assertions():
    code = "import torch\ntorch.set_default_dtype(torch.float64)\nimport test_endings\n" + (
        "for code, run in test_endings.ENDS.items():\n    path = run()\n    print(code, path.ending)\n"
    )
    folder = [str(__import__("pathlib").Path(__file__).parent), str(__import__("pathlib").Path(__file__).parents[1])]
    program = f"import sys\nsys.path[:0] = {folder}\n{code}"
    run = subprocess.run([sys.executable, "-O", "-c", program], capture_output=True, text=True, timeout=120)
    assert run.stderr == ""
    pairs = [line.split() for line in run.stdout.splitlines()]
    assert [a for a, _ in pairs] == list(ENDS)
    assert all(a == b for a, b in pairs)


@pytest.mark.parametrize("method", METHODS)
def test_an_event_is_located_as_accurately_as_the_steps(method):
    # One mode: σ' = σ²(τ − σ), so the time at which σ passes 1.7 is known.
    flow = nf.IntrinsicFlow(nf.Quadratic(torch.tensor([[2.0]])), nf.LogMean())
    path = nf.integrate(flow, torch.ones(1, 1), torch.linspace(0, 5, 6), method, 1e-8, 1e-10, stop={"loss": 0.3**2 / 2})
    sigma = exact.aligned_limit(path.times[-1:], torch.ones(1), torch.tensor([2.0]))
    assert path.ending == "loss"
    assert float(sigma) == pytest.approx(1.7, abs=1e-6)
    assert float(path.z[-1]) == pytest.approx(1.7, abs=1e-9)
    assert bool((torch.diff(path.times) > 0).all())


def test_outputs_before_an_event_are_kept_and_those_after_it_are_not():
    path = nf.integrate(LIMIT, torch.eye(2), torch.linspace(0, 9, 10), "LSODA", stop={"time": 2.5})
    assert path.times.tolist() == [0.0, 1.0, 2.0, 2.5]
    assert torch.equal(path.z[-1], path.state)


def test_an_event_that_has_happened_at_the_start_ends_the_run_there():
    path = nf.integrate(LIMIT, torch.eye(2), [0.0, 9.0], stop={"loss": 100.0})
    assert path.ending == "loss"
    assert path.times.tolist() == [0.0]


def test_the_first_of_several_events_counts():
    path = nf.integrate(LIMIT, torch.eye(2), [0.0, 90.0], stop={"loss": 1e-6, "gradient": 1e-1, "time": 80.0})
    assert path.ending == "gradient"


@pytest.mark.parametrize("method", METHODS)
def test_the_wall_budget_holds_in_total(method):
    flow = nf.FiniteFlow(64, nf.Quadratic(randn(4, 4, seed=0)), "exp")
    start, times = 0.1 * randn(64, 4, 4, seed=1), torch.linspace(0, 300, 3001)
    path = nf.integrate(flow, start, times, method, 1e-10, 1e-12, max_seconds=0.3)
    assert path.ending == "seconds"
    assert 0.3 < path.stats["seconds"] < 2.0


@pytest.mark.parametrize("method", METHODS)
def test_the_evaluation_budget_holds_in_total(method):
    path = nf.integrate(LIMIT, torch.eye(2), torch.linspace(0, 3, 31), method, rtol=1e-10, max_evaluations=57)
    assert path.stats["evaluations"] == 57
    assert path.ending == "evaluations"
    assert path.times[-1] > 0


def test_throw_raises_what_was_reached():
    with pytest.raises(nf.IntegrationError, match="budget of 57") as caught:
        nf.integrate(LIMIT, torch.eye(2), torch.linspace(0, 3, 31), max_evaluations=57, throw=True)
    assert caught.value.trajectory.ending == "evaluations"
    assert nf.integrate(LIMIT, torch.eye(2), [0.0, 9.0], stop={"time": 1.0}, throw=True).ending == "time"


def test_a_target_out_of_reach_is_said_with_the_loss_that_the_flow_tends_to():
    x = randn(30, 3, seed=1)
    regression = nf.Regression(x, x @ (positive_matrix(3, seed=2) @ torch.diag(torch.tensor([1.0, 1.0, -1.0]))).mT)
    for loss in (ACROSS.loss, regression):
        flow = nf.IntrinsicFlow(loss, nf.LogMean())
        d = loss.dimension
        path = nf.integrate(flow, torch.eye(d), [0.0, 1e4], "auto", 1e-8, 1e-10)
        assert path.ending == "unreachable"
        said = float(path.status.split("the loss tends to ")[1].split(",")[0])
        assert said == pytest.approx(float(loss.boundary()), rel=1e-5)
        assert float(path.loss[-1]) == pytest.approx(said, rel=1e-3)


def test_a_loss_that_cannot_be_reached_is_said_at_once_when_it_was_asked_for():
    path = nf.integrate(ACROSS, torch.eye(2), [0.0, 1.0], stop={"loss": 1e-3})
    assert path.ending == "unreachable"
    assert "the loss tends to 0.5" in path.status


def test_a_target_within_reach_is_no_matter():
    assert math.isnan(float(LIMIT.loss.boundary()))
    assert nf.integrate(LIMIT, torch.eye(2), [0.0, 100.0], "auto").status == "ok"


@pytest.mark.parametrize("method", ["auto", "DOP853", "dopri5", "CVODE_BDF"])
def test_the_measured_error_bounds_the_true_one_within_a_factor_of_ten(method):
    # Aligned modes: a closed solution, at infinite depth and, as a continuous flow on a coarse grid, in depth as well.
    start, times = torch.tensor([1.3, 0.8]), torch.linspace(0, 3, 7)
    truth = torch.diag_embed(exact.aligned_limit(times, start, TARGET.diagonal()))
    limit = nf.integrate(LIMIT, torch.diag(start), times, method, 1e-6, 1e-8, estimate=True)
    W = nf.relaxed_balanced(torch.diag(start))
    for nodes in (1, 2, 3, 5):
        flow = nf.ContinuousFlow(nf.DepthGrid.gauss(1, nodes), LIMIT.loss)
        path = nf.integrate(flow, W, times, method, 1e-6, 1e-8, estimate=True)
        true = torch.linalg.matrix_norm(path.z - truth).max()
        assert float(true) / 10 < float(path.error.max()) < 10 * float(true)
    true = torch.linalg.matrix_norm(limit.z - truth).max()
    assert float(true) / 10 < float(limit.error.max()) < 10 * float(true)


@pytest.mark.parametrize("seed", range(4))
def test_the_depth_error_bounds_the_true_one_within_a_factor_of_ten(seed):
    z0, W = relaxed_profile(3, seed=seed, twist=3.0)
    loss, times = nf.Quadratic(positive_matrix(3, seed=seed + 9)), torch.linspace(0, 2, 5)
    limit = nf.integrate(nf.IntrinsicFlow(loss, nf.LogMean()), z0, times, "DOP853", 1e-12, 1e-13)
    for panels, order in ((1, 4), (2, 4), (4, 3), (4, 6)):
        flow = nf.ContinuousFlow(nf.DepthGrid.gauss(panels, order), loss)
        path = nf.integrate(flow, W, times, "DOP853", 1e-12, 1e-13)
        true = distance(path.z, limit.z)
        assert true / 10 < float(path.depth_error.max()) < 10 * true


@pytest.mark.parametrize("method", ["DOP853", "auto"])
def test_an_adaptive_grid_is_refined_and_keeps_the_tolerance(method):
    z0, W = relaxed_profile(3, seed=5, twist=6.0)
    loss, times = nf.Quadratic(positive_matrix(3, seed=6)), torch.linspace(0, 2, 5)
    limit = nf.integrate(nf.IntrinsicFlow(loss, nf.LogMean()), z0, times, "DOP853", 1e-12, 1e-13)
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 4), loss)
    path = nf.integrate(flow, W, times, method, 1e-8, 1e-10, adapt=True)
    assert path.status == "ok"
    assert path.stats["grid"] != [1, 4]
    assert distance(path.z, limit.z) < 1e-7
    assert float(path.drift.max()) < 1e-6


def test_a_grid_is_refined_on_the_way_and_a_generous_one_is_coarsened():
    # Training far away from a start that a coarse grid resolves.
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 4), nf.Quadratic(torch.tensor([[0.0, 30.0], [-30.0, 0.0]])))
    path = nf.integrate(flow, nf.identity(2), torch.linspace(0, 1, 5), "auto", 1e-8, 1e-10, adapt=True)
    assert path.status == "ok"
    assert "from 1 × 4 to 1 ×" in path.stats["history"][0]
    # An observer is shown the grid that it knows, on which W is the closest polynomial of its degree.
    seen = nf.integrate(
        flow, nf.identity(2), torch.linspace(0, 1, 5), "auto", 1e-8, 1e-10, adapt=True, observe=lambda i, state: state
    ).observed
    assert seen.shape == (5, 4, 2, 2)
    assert distance(flow.product(seen), path.z) < 0.02 * float(torch.linalg.matrix_norm(path.z).max())
    assert torch.equal(seen[0], flow.sample(nf.identity(2)))
    wide = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 16), nf.Quadratic(TARGET))
    path = nf.integrate(wide, nf.identity(2), torch.linspace(0, 1, 5), "DOP853", 1e-6, 1e-8, adapt=True)
    assert path.stats["grid"] == [4, 6]
    limit = nf.integrate(LIMIT, torch.eye(2), torch.linspace(0, 1, 5), "DOP853", 1e-12, 1e-13)
    assert distance(path.z, limit.z) < 1e-6


def test_a_rough_profile_is_refused_by_an_adaptive_grid():
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 4), nf.Quadratic(TARGET))
    path = nf.integrate(flow, rough, [0.0, 0.1], "DOP853", adapt=True)
    assert path.ending == "depth"


@pytest.mark.slow
def test_auto_says_what_it_did():
    x = randn(50, 4, seed=1) @ torch.diag(torch.tensor([6.0, 2.0, 1.0, 0.3]))
    loss, times = nf.Regression(x, x @ positive_matrix(4, seed=2).mT), torch.linspace(0, 100, 5)
    whole = nf.integrate(nf.IntrinsicFlow(loss, nf.LogMean()), torch.eye(4), times, "auto", 1e-6, 1e-8)
    assert whole.stats["history"] == ["stiff from t = 0 on: whole steps of NDF"]
    flow = nf.IntrinsicFlow(loss, nf.TwoLayer(1.0))
    auto, explicit = (nf.integrate(flow, torch.eye(4), times, m, 1e-6, 1e-8) for m in ("auto", "DOP853"))
    assert auto.stats["history"][0].startswith("stiff at t = ")
    assert distance(auto.z, explicit.z) < 1e-5
    assert auto.stats["evaluations"] < explicit.stats["evaluations"] / 5
    calm = nf.integrate(LIMIT, torch.eye(2), [0.0, 1.0], "auto")
    assert calm.stats["history"] == []


def test_progress_reports_where_the_run_is():
    seen = []
    flow = nf.FiniteFlow(32, nf.Quadratic(randn(3, 3, seed=1)), "exp")
    nf.integrate(flow, 0.1 * randn(32, 3, 3, seed=2), torch.linspace(0, 20, 3), "dopri5", progress=seen.append)
    assert seen[-1].fraction == 1.0
    assert [where.t for where in seen] == sorted(where.t for where in seen)
    assert "loss" in str(seen[-1])
    assert "evaluations" in str(seen[-1])
    assert seen[-1].step > 0


def test_float32_and_float64_are_not_mixed():
    with pytest.raises(TypeError, match=r"target of the loss is torch.float64|state is torch.float32"):
        nf.integrate(LIMIT, torch.eye(2, dtype=torch.float32), [0.0, 1.0])


@pytest.mark.parametrize("method", ["auto", "CVODE_BDF", "LSODA", "dopri5", "Radau"])
def test_float32_states_are_integrated_by_every_back_end(method):
    flow = nf.IntrinsicFlow(nf.Quadratic(TARGET.float()), nf.LogMean())
    path = nf.integrate(flow, torch.eye(2, dtype=torch.float32), [0.0, 1.0, 2.0], method, rtol=1e-4, atol=1e-6)
    assert path.status == "ok"
    assert path.z.dtype == torch.float32
    truth = torch.diag_embed(exact.aligned_limit(path.times, torch.ones(2), TARGET.diagonal()))
    assert distance(path.z.double(), truth) < 1e-3


def test_a_dense_jacobian_that_has_no_place_is_refused():
    flow = nf.FiniteFlow(3000, nf.Quadratic(torch.eye(4)))
    for method in ("BDF", "Radau", "LSODA"):
        with pytest.raises(ValueError, match="keeps a dense Jacobian, 17 GiB"):
            nf.integrate(flow, torch.zeros(3000, 4, 4), [0.0, 1.0], method)
