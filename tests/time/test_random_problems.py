"""Two hundred random problems: every run ends with a true status, and "ok" means what the tolerance says."""

import pytest
import torch
from cases import all_losses, generator, positive_matrix
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import neuralode_flow as nf
from neuralode_flow.initial import random_shift, random_twist

METHODS = ["auto", "dopri5", "dopri8", "RK45", "DOP853", "LSODA", "CVODE_BDF", "CVODE_Adams"]
INITIALS = ["relaxed_balanced", "balanced", "identity", "control", "smooth"]


SETTINGS = settings(
    deadline=None, derandomize=True, report_multiple_bugs=False, suppress_health_check=list(HealthCheck)
)


def profile(name, d, seed):
    z0 = positive_matrix(d, seed)
    draws = generator(seed)
    return {
        "relaxed_balanced": lambda: nf.relaxed_balanced(z0, random_shift(0.5, draws), random_twist(d, 1.0, draws)),
        "balanced": lambda: nf.balanced(z0),
        "identity": lambda: nf.identity(d),
        "control": lambda: nf.control(torch.eye(d) + 0.3 * torch.triu(z0, 1)),
        "smooth": lambda: nf.smooth(d, 1.0, draws),
    }[name]()


def problem(model, d, loss, initial, seed):
    """A flow, its start, and the flow and start of a reference: the same on twice as many depth nodes."""
    f, W = all_losses(d, seed)[loss], profile(initial, d, seed)
    grid, finer = nf.DepthGrid.gauss(2, 8), nf.DepthGrid.gauss(4, 8)
    flow, fine = nf.ContinuousFlow(grid, f), nf.ContinuousFlow(finer, f)
    if model == "continuous":
        return flow, W, fine
    if model == "finite":
        network = nf.FiniteFlow(6, f, ["euler", "rk2", "cayley", "exp"][seed % 4])
        return network, W, network
    limit = nf.IntrinsicFlow(f, nf.LogMean())
    return limit, fine.product(fine.sample(W)), limit


PROBLEMS = {
    "d": st.integers(2, 8),
    "loss": st.sampled_from(["quadratic", "regression", "completion", "custom"]),
    "initial": st.sampled_from(INITIALS),
    "method": st.sampled_from(METHODS),
    "seed": st.integers(0, 10_000),
    "horizon": st.sampled_from([0.3, 1.0, 4.0]),
    "rtol": st.sampled_from([1e-4, 1e-6, 1e-8]),
}


@settings(SETTINGS, max_examples=30)
@given(**PROBLEMS)
@pytest.mark.slow
def test_ok_means_that_the_error_of_the_continuous_model_is_at_most_ten_tolerances(**problem):
    check("continuous", **problem)


@settings(SETTINGS, max_examples=60)
@given(**PROBLEMS)
@pytest.mark.slow
def test_ok_means_that_the_error_of_a_finite_network_is_at_most_ten_tolerances(**problem):
    check("finite", **problem)


@settings(SETTINGS, max_examples=110)
@given(**PROBLEMS)
@pytest.mark.slow
def test_ok_means_that_the_error_of_the_intrinsic_limit_is_at_most_ten_tolerances(**problem):
    check("intrinsic", **problem)


def check(model, d, loss, initial, method, seed, horizon, rtol):
    flow, start, reference = problem(model, d, loss, initial, seed)
    times, atol = torch.linspace(0, horizon, 5), rtol / 100
    adapt = model == "continuous"
    path = nf.integrate(flow, start, times, method, rtol, atol, adapt=adapt, max_evaluations=20_000, max_seconds=20)
    assert path.ending in nf.ENDINGS
    assert (path.status == "ok") == (path.ending == "ok")
    assert bool(torch.isfinite(path.z).all() and torch.isfinite(path.loss).all())
    if path.ending in ("ok", "unreachable"):
        truth = nf.integrate(reference, start, times, "DOP853", rtol / 100, atol / 100, max_evaluations=200_000)
        assert truth.ending in ("ok", "unreachable")
        error = torch.linalg.matrix_norm(path.z - truth.z)
        tolerance = atol + rtol * torch.linalg.matrix_norm(truth.z)
        assert float((error / tolerance).max()) <= 10


def test_a_trial_step_that_goes_far_too_far_raises_no_warning():
    # Drawn above: the square of the error of RK45's first trial step overflowed.
    check(
        "intrinsic", d=7, loss="regression", initial="relaxed_balanced", method="RK45", seed=45, horizon=0.3, rtol=1e-4
    )
