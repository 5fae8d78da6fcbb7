import math
import subprocess
import sys
from time import sleep

import numpy as np
import pytest
import torch
from cases import all_losses, distance, positive_matrix, randn, smooth_profile

import neuralode_flow as nf
from neuralode_flow import exact

ADAPTIVE = ["dopri5", "dopri8", "bosh3", "adaptive_heun", "RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA"]
FIXED = {"euler": 1, "midpoint": 2, "implicit_midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "carpenter_kennedy": 4}
TARGET = torch.diag(torch.tensor([2.0, 0.5]))
LIMIT = nf.IntrinsicFlow(nf.Quadratic(TARGET), nf.LogMean())


def truth(times):
    start = torch.ones(2)
    return torch.diag_embed(exact.aligned_limit(times, start, TARGET.diagonal()))


@pytest.mark.parametrize("method", ADAPTIVE)
def test_every_output_is_as_accurate_as_the_tolerance_also_between_steps(method):
    times = torch.linspace(0, 3, 23)
    rtol = 1e-5 if method in ("adaptive_heun", "bosh3", "RK23") else 1e-8
    path = nf.integrate(LIMIT, torch.eye(2), times, method, rtol=rtol, atol=rtol / 100)
    assert path.status == "ok"
    errors = torch.linalg.matrix_norm(path.z - truth(times))
    assert float(errors.max()) < 30 * rtol
    assert path.stats["evaluations"] > 0
    assert torch.allclose(path.loss, (path.z - TARGET).square().sum((-2, -1)) / 2)


def test_fehlberg2_converges_with_its_tolerance_though_its_estimate_is_optimistic():
    times = torch.linspace(0, 3, 7)
    errors = [
        distance(nf.integrate(LIMIT, torch.eye(2), times, "fehlberg2", rtol=r, atol=r).z, truth(times))
        for r in (1e-4, 1e-6)
    ]
    assert errors[1] < errors[0] / 20
    assert errors[1] < 1e-3


@pytest.mark.parametrize(("method", "order"), FIXED.items())
def test_fixed_step_methods_have_their_order(method, order):
    times = torch.tensor([0.0, 0.3, 1.0])
    errors = [
        distance(nf.integrate(LIMIT, torch.eye(2), times, method, step=h).z, truth(times))
        for h in (0.1, 0.05, 0.025, 0.0125)
    ]
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert slopes[-2:] == pytest.approx([order, order], abs=0.1)


@pytest.mark.parametrize("begin", [1e6, -1e7])
def test_steps_of_adams_are_equal_up_to_the_round_off_of_times(begin):
    """At large times steps differ in their last digits; a method that began anew at each was another one."""
    flow = nf.IntrinsicFlow(nf.Quadratic(torch.diag(torch.tensor([2.0, 1.0]))), nf.TwoLayer(0.5))
    start, end = torch.diag(torch.tensor([0.5, 1.5])), 1.5
    early = nf.integrate(flow, start, [0.0, end], "explicit_adams", step=0.01)
    late = nf.integrate(flow, start, [begin, begin + end], "explicit_adams", step=0.01)
    assert late.stats["evaluations"] == early.stats["evaluations"]
    exact = nf.integrate(flow, start, [0.0, end], "DOP853", 1e-13, 1e-14).z[-1]
    errors = [float(torch.linalg.matrix_norm(path.z[-1] - exact)) for path in (early, late)]
    assert errors[1] < 1.1 * errors[0] < 2e-8


@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams", "fixed_adams"])
def test_multistep_methods_converge(method):
    times = torch.linspace(0, 1, 3)
    paths = [nf.integrate(LIMIT, torch.eye(2), times, method, step=h) for h in (0.0125, 0.003125)]
    assert [path.status for path in paths] == ["ok", "ok"]
    errors = [distance(path.z, truth(times)) for path in paths]
    assert errors[1] < errors[0] / 50
    assert errors[1] < 1e-9


def test_a_broken_tableau_fails_the_order_test():
    def broken(velocity, state, times, control):
        for a, b in zip(times, times[1:], strict=False):
            k = velocity(a, state)
            state = state + (b - a) * velocity(a, state + (b - a) * 0.6 * k)
            yield state

    from neuralode_flow.time.base import Control

    errors = []
    for n in (40, 80, 160):
        times = torch.linspace(0, 1, n + 1)
        states = list(broken(lambda t, z: LIMIT.velocity(z), torch.eye(2), times.tolist(), Control(1, 1, None)))
        errors.append(distance(states[-1], truth(times)[-1]))
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.1)


def test_methods_agree_on_a_network_and_observe_sees_every_output():
    flow = nf.FiniteFlow(8, all_losses(3, seed=0)["regression"], "cayley")
    start, times, seen = flow.sample(smooth_profile(3, seed=1)), torch.linspace(0, 2, 5), []
    paths = [
        nf.integrate(flow, start, times, m, rtol=1e-10, atol=1e-12, observe=lambda i, s: seen.append((i, s)))
        for m in ("dopri5", "dopri8", "DOP853", "LSODA")
    ]
    assert max(distance(p.z, paths[0].z) for p in paths) < 1e-7
    assert [i for i, _ in seen] == [0, 1, 2, 3, 4] * 4
    assert torch.equal(seen[-1][1], paths[-1].state)
    assert torch.allclose(flow.product(paths[0].state), paths[0].z[-1])


def test_a_batch_equals_its_members():
    loss = nf.Quadratic(torch.stack([randn(3, 3, seed=s) for s in range(4)]))
    grid = nf.DepthGrid.gauss(2, 6)
    flow = nf.ContinuousFlow(grid, loss)
    start = torch.stack([smooth_profile(3, seed=s).at(grid.nodes) for s in range(4)])
    times = torch.linspace(0, 1, 3)
    together = nf.integrate(flow, start, times, "dopri5", rtol=1e-10, atol=1e-12)
    assert together.z.shape == (3, 4, 3, 3)
    assert together.loss.shape == together.drift.shape == (3, 4)
    for member in range(4):
        single = nf.ContinuousFlow(grid, nf.Quadratic(loss.target[member]))
        alone = nf.integrate(single, start[member], times, "dopri5", rtol=1e-10, atol=1e-12)
        assert distance(together.z[:, member], alone.z) < 1e-7


def test_one_time_gives_the_initial_values():
    path = nf.integrate(LIMIT, torch.eye(2), [0.5])
    assert path.z.shape == (1, 2, 2)
    assert path.stats["evaluations"] == 0


@pytest.fixture
def single():
    """Torch's own default dtype, which programs that use the library mostly have."""
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda t: torch.tensor(t, dtype=torch.float64)])
def test_times_keep_their_digits_whatever_the_default_dtype_is(kind, single, tmp_path):
    times, run = [0.0, 0.3, 1 / 3], (LIMIT, torch.eye(2, dtype=torch.float64))
    path = nf.integrate(*run, kind(times), "DOP853", checkpoint=tmp_path / "run.npz")
    assert path.times.tolist() == times
    assert torch.equal(path(kind(times)), path.z)
    with pytest.raises(ValueError, match="times"):  # other ones in the last digits
        nf.integrate(*run, kind([0.0, 0.3, 1 / 3 + 1e-12]), "DOP853", checkpoint=tmp_path / "run.npz")


def test_a_run_repeats_to_the_bit():
    flow = nf.FiniteFlow(16, nf.Quadratic(randn(4, 4, seed=2)), "exp")
    start = flow.sample(smooth_profile(4, seed=3))
    first, again = (nf.integrate(flow, start, [0.0, 0.7, 1.0], "dopri5") for _ in range(2))
    assert torch.equal(first.z, again.z)
    assert torch.equal(first.state, again.state)


@pytest.mark.parametrize("method", ["dopri5", "DOP853", "BDF", "rk4", "implicit_midpoint"])
def test_a_blow_up_is_a_status_and_keeps_what_was_reached(method):
    # ż = z³-like growth: f = −¼ ‖z‖⁴ is unbounded below and reaches infinity in finite time.
    flow = nf.IntrinsicFlow(nf.Custom(lambda z: -z.square().sum().square()), nf.LogMean())
    path = nf.integrate(flow, torch.eye(2), torch.linspace(0, 1, 21), method, rtol=1e-6, atol=1e-8)
    assert path.status != "ok"
    assert len(path.times) == len(path.z) == len(path.loss) < 21
    assert bool(torch.isfinite(path.state).all())


def test_the_evaluation_budget_holds_in_total():
    for method in ("dopri5", "DOP853", "rk4", "BDF"):
        path = nf.integrate(LIMIT, torch.eye(2), torch.linspace(0, 3, 31), method, rtol=1e-10, max_evaluations=57)
        assert path.stats["evaluations"] == 57
        assert path.status.startswith("the budget of 57 velocity evaluations was used up at t = ")


@pytest.mark.parametrize(
    "method", ["dopri5", "DOP853", "BDF", "LSODA", "auto", "CVODE_BDF", "rodas5p", "dopri8", "rk4"]
)
def test_a_budget_is_used_up_where_the_trajectory_ends_and_not_inside_a_step_that_is_dropped(method):
    start, times = 0.9 * torch.eye(2), torch.linspace(0, 3, 31)
    path = nf.integrate(LIMIT, start, times, method, rtol=1e-10, max_evaluations=25)
    assert path.ending == "evaluations"
    assert path.status.endswith(f"was used up at t = {float(path.times[-1]):.6g}")


@pytest.mark.parametrize("control", ["shared", "member"])
def test_a_budget_of_wall_time_is_used_up_where_the_trajectory_ends(control):
    def slow(z):
        sleep(0.002)
        return (z - 2).square().sum((-2, -1))

    flow, start = nf.IntrinsicFlow(nf.Custom(slow), nf.DividedDifference(torch.tensor([0.0, 0.5]))), torch.eye(2)
    path = nf.integrate(flow, start.expand(2, 2, 2), [0.0, 3.0], rtol=1e-10, max_seconds=0.2, control=control)
    assert path.ending == "seconds"
    assert path.status.startswith(f"the budget of wall time was used up at t = {float(path.times[-1]):.6g}, after 0.")


def test_a_loss_that_turns_nan_is_a_status():
    flow = nf.IntrinsicFlow(nf.Custom(lambda z: torch.sqrt(z.trace() - 1.5).square() + z.square().sum()), nf.LogMean())
    path = nf.integrate(flow, torch.eye(2), torch.linspace(0, 4, 9))
    assert "not finite" in path.status


@pytest.mark.parametrize("gap", [2.3e-16, 1e-14, 1e-11])
@pytest.mark.parametrize("depth", [4, 64])
def test_radau_goes_on_after_a_step_that_was_cut_to_nothing(depth, gap):
    flow = nf.FiniteFlow(depth, nf.Quadratic(torch.tensor([[2.0, 1.0], [0.0, 1.0]])))
    start = randn(depth, 2, 2, seed=0)
    plain = nf.integrate(flow, start, [0.0, 1.0, 2.0], "Radau", 1e-7, 1e-9)
    path = nf.integrate(flow, start, [0.0, 1.0, 1.0 + gap, 2.0], "Radau", 1e-7, 1e-9)
    assert path.status == "ok"
    assert float((path.z[-1] - plain.z[-1]).abs().max()) < 1e-9
    assert path.stats["evaluations"] < plain.stats["evaluations"] + 30


@pytest.mark.parametrize("method", ["Radau", "BDF"])
def test_finite_difference_jacobians_of_large_states_are_no_stagnation(method):
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 5), nf.Quadratic(1.5 * torch.eye(8)))
    path = nf.integrate(flow, flow.sample(nf.identity(8)), [0.0, 0.1], method, rtol=1e-4, atol=1e-6)
    assert path.status == "ok"


@pytest.mark.parametrize(("method", "end"), [("euler", 1e100), ("rk4", 5.0), ("explicit_adams", 5.0)])
def test_ok_is_never_said_of_numbers_that_are_not_finite(method, end):
    flow = nf.IntrinsicFlow(nf.Custom(lambda z: -(z**4).sum()), nf.LogMean())
    path = nf.integrate(flow, torch.eye(2), [0.0, 0.01, end], method)
    assert path.status != "ok"
    assert bool(torch.isfinite(path.z).all() and torch.isfinite(path.loss).all() and torch.isfinite(path.state).all())


def test_a_start_that_has_no_end_to_end_map_is_an_error():
    flow = nf.FiniteFlow(1, nf.Quadratic(torch.eye(2)), "cayley")
    with pytest.raises(ValueError, match="state cannot be a start of this flow"):
        nf.integrate(flow, 2 * torch.eye(2)[None], [0.0, 1.0])


@pytest.mark.slow
def test_a_stagnating_step_is_a_status_also_without_asserts():
    code = """
import torch, neuralode_flow as nf
torch.set_default_dtype(torch.float64)
flow = nf.IntrinsicFlow(nf.Custom(lambda z: -z.square().sum().square()), nf.LogMean())
path = nf.integrate(flow, torch.eye(2), [0.0, 1.0], "dopri5", rtol=1e-6, atol=1e-8)
print(path.stats["evaluations"], path.status)
"""
    run = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True, timeout=120)
    evaluations, status = run.stdout.split(maxsplit=1)
    assert int(evaluations) < 20_000
    assert not status.startswith("ok")


@pytest.mark.parametrize("layer", ["euler", "cayley"])
def test_implicit_midpoint_in_float32(layer):
    flow = nf.FiniteFlow(4, nf.Quadratic(TARGET.float()), layer)
    start = torch.zeros(4, 2, 2, dtype=torch.float32)
    path = nf.integrate(flow, start, [0.0, 1.0], "implicit_midpoint", rtol=1e-4, step=0.1)
    assert path.status == "ok"


def test_numbers_of_numpy_are_numbers():
    flow = nf.FiniteFlow(np.int64(4), nf.Quadratic(TARGET))
    path = nf.integrate(flow, torch.zeros(4, 2, 2), np.linspace(0, 1, 3), rtol=np.float32(1e-6))
    assert path.status == "ok"


def test_a_failing_depth_solve_reaches_the_status():
    class Failing(nf.Collocation):
        def gradient(self, W, outer):
            raise FloatingPointError("the depth solve failed at s = 0.5")

    grid = nf.DepthGrid.gauss(1, 3)
    flow = nf.ContinuousFlow(grid, nf.Quadratic(torch.eye(2)), Failing(grid))
    path = nf.integrate(flow, flow.sample(nf.identity(2)), [0.0, 1.0])
    assert path.status == "the velocity could not be computed at t = 0: the depth solve failed at s = 0.5"


def test_float32_raises_the_tolerance_with_a_warning():
    flow = nf.IntrinsicFlow(nf.Quadratic(TARGET.float()), nf.LogMean())
    with pytest.warns(UserWarning, match="rtol = 1e-08 to 1.2e-05"):
        path = nf.integrate(flow, torch.eye(2, dtype=torch.float32), [0.0, 1.0], "DOP853")
    assert path.z.dtype == torch.float32
    assert float((path.z[-1].double() - truth(torch.tensor([0.0, 1.0]))[-1]).abs().max()) < 1e-4


def test_nested_torchdiffeq_follows_the_limit():
    grid = nf.DepthGrid.gauss(1, 6)
    z0 = positive_matrix(2, seed=4, scale=0.2)
    loss = nf.Quadratic(randn(2, 2, seed=5))
    flow = nf.ContinuousFlow(grid, loss, depth="torchdiffeq")
    path = nf.integrate(flow, flow.sample(nf.relaxed_balanced(z0)), [0.0, 0.2], rtol=1e-6, atol=1e-8)
    limit = nf.integrate(nf.IntrinsicFlow(loss, nf.LogMean()), z0, [0.0, 0.2], "DOP853", rtol=1e-10, atol=1e-12)
    assert distance(path.z, limit.z) < 1e-5


GRID = nf.DepthGrid.gauss(1, 4)
FLOW = nf.ContinuousFlow(GRID, nf.Quadratic(torch.eye(2)))
MANY = nf.ContinuousFlow(GRID, nf.Quadratic(torch.eye(2).expand(3, 2, 2)))
NET = nf.FiniteFlow(3, nf.Quadratic(torch.eye(2)))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: nf.integrate(FLOW, torch.zeros(4, 2, 2), [0.0, 1.0, 1.0]),
            ValueError,
            "times must increase strictly, got 1",
        ),
        (lambda: nf.integrate(FLOW, torch.zeros(4, 2, 2), [1.0, 0.0]), ValueError, "times must increase strictly"),
        (lambda: nf.integrate(FLOW, torch.zeros(4, 2, 2), []), ValueError, "times must not be empty"),
        (lambda: nf.integrate(FLOW, torch.zeros(4, 2, 2), [0.0, math.nan]), ValueError, "times must be finite"),
        (lambda: nf.integrate(FLOW, torch.zeros(4, 2, 2), [[0.0, 1.0]]), ValueError, r"times must have shape \(T,\)"),
        (
            lambda: nf.integrate(FLOW, torch.zeros(4, 2, 2), [0.0, 1.0], rtol=0.0),
            ValueError,
            "rtol must be above 0, got 0.0",
        ),
        (lambda: nf.integrate(FLOW, torch.zeros(4, 2, 2), [0.0, 1.0], atol=-1.0), ValueError, "atol must be above 0"),
        (
            lambda: nf.integrate(FLOW, torch.zeros(4, 2, 2), [0.0, 1.0], rtol=math.nan),
            ValueError,
            "rtol must be finite",
        ),
        (lambda: nf.integrate(FLOW, torch.zeros(4, 2, 2), [0.0, 1.0], rtol="a"), TypeError, "rtol must be a number"),
        (
            lambda: nf.integrate(FLOW, torch.zeros(4, 2, 2), [0.0, 1.0], "dopri6"),
            ValueError,
            "unknown time method 'dopri6'",
        ),
        (
            lambda: nf.integrate(FLOW, torch.zeros(4, 2, 2), [0.0, 1.0], "euler", step=0.0),
            ValueError,
            "step must be above 0",
        ),
        (
            lambda: nf.integrate(FLOW, torch.zeros(4, 2, 2), [0.0, 1.0], max_evaluations=0),
            ValueError,
            "max_evaluations must be",
        ),
        (lambda: nf.integrate(FLOW, torch.zeros(5, 2, 2), [0.0, 1.0]), ValueError, "4 depth nodes, got"),
        (lambda: nf.integrate(FLOW, torch.zeros(4, 3, 3), [0.0, 1.0]), ValueError, "the loss is for d = 2"),
        (lambda: nf.integrate(FLOW, torch.zeros(4, 2, 3), [0.0, 1.0]), ValueError, "state must be square"),
        (lambda: nf.integrate(FLOW, torch.zeros(4, 2, 2) * math.nan, [0.0, 1.0]), ValueError, "state must be finite"),
        (lambda: nf.integrate(FLOW, torch.zeros(4, 2, 2, dtype=torch.int64), [0.0, 1.0]), TypeError, "floating-point"),
        (
            lambda: nf.integrate(FLOW, torch.zeros(4, 2, 2, dtype=torch.float32), [0.0, 1.0]),
            TypeError,
            "target of the loss",
        ),
        (lambda: nf.integrate(FLOW, torch.zeros(4, 0, 0), [0.0, 1.0]), ValueError, "state must not be empty"),
        (lambda: nf.integrate(FLOW, None, [0.0, 1.0]), TypeError, "state must be a torch tensor, got NoneType"),
        (
            lambda: nf.integrate(LIMIT, torch.eye(2), [0.0, 1.0], "rk4", step=1e-9, max_evaluations=10),
            ValueError,
            "step = 1e-09 takes more steps than max_evaluations = 10",
        ),
        (lambda: nf.integrate(MANY, torch.zeros(4, 2, 2), [0.0, 1.0]), ValueError, r"target of the loss has \(3,\)"),
        (lambda: nf.integrate(MANY, torch.zeros(2, 4, 2, 2), [0.0, 1.0]), ValueError, "one state per member"),
        (lambda: nf.integrate(NET, torch.zeros(4, 2, 2), [0.0, 1.0]), ValueError, "3 layers, got"),
        (
            lambda: nf.integrate(LIMIT, -torch.diag(torch.tensor([1.0, -1.0])), [0.0, 1.0]),
            ValueError,
            "state must have det > 0",
        ),
        (lambda: nf.FiniteFlow(0, LIMIT.loss), ValueError, "depth must be at least 1"),
        (lambda: nf.FiniteFlow(2.0, LIMIT.loss), TypeError, "depth must be an integer"),
        (
            lambda: nf.FiniteFlow(2, LIMIT.loss, layer="eulr"),
            ValueError,
            "unknown layer rule 'eulr'; did you mean 'euler'",
        ),
        (lambda: nf.FiniteFlow(2, LIMIT.loss, sampling="right"), ValueError, "unknown sampling 'right'"),
        (lambda: nf.ContinuousFlow(GRID, LIMIT.loss, depth="magnus"), ValueError, "unknown depth solver 'magnus'"),
        (lambda: nf.ContinuousFlow(GRID, LIMIT.loss, nf.Collocation(nf.DepthGrid.gauss(1, 4))), ValueError, "own grid"),
        (lambda: FLOW.sample(lambda s: torch.full((2, 2), math.nan)), ValueError, r"W\(.*\) must be finite"),
        (lambda: FLOW.sample(lambda s: torch.ones(2, 3)), ValueError, r"one square shape"),
        (lambda: FLOW.sample(lambda s: torch.ones(3, 3)), ValueError, "the loss is for d = 2"),
        (lambda: FLOW.velocity(torch.zeros(5, 2, 2)), ValueError, "4 depth nodes, got"),
        (lambda: FLOW.product(None), TypeError, "state must be a torch tensor"),
        (lambda: NET.law(torch.zeros(2, 2)), ValueError, "3 layers, got"),
        (lambda: NET.velocity(torch.zeros(3, 2, 2, dtype=torch.int64)), TypeError, "floating-point"),
        (lambda: FLOW.sample(torch.eye(2)), TypeError, "W must be a function"),
        (lambda: nf.FiniteFlow(3, nf.Quadratic(torch.ones(2, 3))), ValueError, "loss must be for square matrices"),
        (lambda: nf.Quadratic(torch.eye(2) * math.inf), ValueError, "target must be finite"),
        (lambda: nf.Quadratic(torch.eye(2, dtype=torch.int32)), TypeError, "target must hold floating-point"),
        (lambda: nf.Completion(torch.eye(2), torch.ones(2, 2)), TypeError, "mask must be a tensor of bool"),
        (
            lambda: nf.Completion(torch.eye(2), torch.ones(3, 3, dtype=torch.bool)),
            ValueError,
            "mask must have the matrix shape",
        ),
        (
            lambda: nf.Completion(torch.eye(2), torch.zeros(2, 2, dtype=torch.bool)),
            ValueError,
            "mask must be True somewhere",
        ),
        (lambda: nf.Regression(torch.ones(3, 2), torch.ones(4, 2)), ValueError, "same number of rows, got 3 and 4"),
        (lambda: nf.Regression(torch.ones(3, 2), torch.ones(3, 4)), ValueError, "map 2 inputs to 4 outputs"),
        (
            lambda: nf.Regression(torch.ones(3, 2), torch.ones(3, 2, dtype=torch.float32)),
            TypeError,
            "y is torch.float32",
        ),
        (
            lambda: nf.Regression(torch.ones(3, 2), torch.ones(3, 2), torch.ones(2, 3)),
            ValueError,
            r"readin must have shape \(d, 2\)",
        ),
        (lambda: nf.Custom(3), TypeError, "f must be a function"),
        (lambda: nf.Custom(lambda z: z)(torch.eye(2)), TypeError, "f must return a scalar"),
        (lambda: nf.Custom(lambda z: torch.tensor(1.0)).gradient(torch.eye(2)), TypeError, "f must depend on z"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("method", list(nf.METHODS))
def test_outputs_in_no_time_are_the_state_as_it_is(method):
    flow, z = nf.IntrinsicFlow(nf.Quadratic(torch.eye(2)), nf.LogMean()), torch.diag(torch.tensor([1.5, 0.7]))
    options = {"rtol": 1e-4, "atol": 1e-6}
    for times in ([0.0, 1e-300], [0.0, 1e-320], [0.0, 1e-200, 1e-100], [0.0, 1e-300, 0.01]):
        path = nf.integrate(flow, z, times, method, **options)
        assert path.status == "ok"
        assert path.times.tolist() == times
        near = [k for k, t in enumerate(times) if t < 1e-99]
        assert torch.equal(path.z[near], z.expand(len(near), 2, 2))
    usual = nf.integrate(flow, z, [0.0, 0.01], method, **options)
    assert torch.equal(path.z[-1], usual.z[-1])
