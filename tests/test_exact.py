"""Closed solutions against the flows that they solve."""

import pytest
import torch
from cases import distance, generator, randn

import neuralode_flow as nf
from neuralode_flow import exact

TIMES = torch.linspace(0, 3, 7)
START = torch.tensor([0.3, 1.0, 2.0, 0.05, 1.5])
TARGET = torch.tensor([2.0, 1.0, 0.4, 1.2, -0.5])


def aligned(values):
    """diag(values) in fixed singular bases with det > 0."""
    U, V = (torch.linalg.matrix_exp(m - m.mT) for m in (randn(5, 5, seed=1), randn(5, 5, seed=2)))
    return U @ torch.diag_embed(values) @ V.mT


def solved(kernel, times=TIMES):
    flow = nf.IntrinsicFlow(nf.Quadratic(aligned(TARGET)), kernel)
    return nf.integrate(flow, aligned(START), times, "DOP853", rtol=1e-12, atol=1e-14).z


def test_aligned_limit():
    assert distance(aligned(exact.aligned_limit(TIMES, START, TARGET)), solved(nf.LogMean())) < 1e-10


@pytest.mark.parametrize("L", [1, 2, 3, 8, 64])
def test_aligned_layers(L):
    truth = aligned(exact.aligned_layers(TIMES / 2, START, TARGET, L))
    assert distance(truth, solved(nf.DividedDifference(torch.zeros(L)), TIMES / 2)) < 1e-10


def test_saxe_is_two_aligned_layers():
    assert torch.allclose(exact.saxe(TIMES, START, TARGET), exact.aligned_layers(TIMES, START, TARGET, 2), atol=1e-12)


def test_saxe_at_target_zero_and_late_times():
    sigma = exact.saxe(torch.tensor([0.0, 2.0, 1e6]), torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]))
    assert torch.allclose(sigma[:, 0], torch.tensor([0.5, 0.5 / 3, 0.5 / (1 + 1e6)]), atol=1e-14)
    assert float(sigma[-1, 1]) == 1.0


@pytest.mark.parametrize("L", [2, 3, 9])
def test_layers_from_above_come_down_to_the_target_without_a_word(L):
    sigma = nf.exact.aligned_layers(torch.tensor([0.0, 100.0, 1e9]), torch.tensor([2.5, 1e4]), torch.full((2,), 2.0), L)
    assert float((sigma[1:] - 2).abs().max()) < 1e-15


def test_many_layers_tend_to_the_limit_at_order_one():
    limit = exact.aligned_limit(TIMES, START, TARGET)
    errors = [float((exact.aligned_layers(TIMES / L, START, TARGET, L) - limit).abs().max()) for L in (64, 128, 256)]
    assert [a / b for a, b in zip(errors, errors[1:], strict=False)] == pytest.approx([2, 2], abs=0.06)


@pytest.mark.parametrize("lam", [0.0, 0.8, -2.0])
def test_two_layer_solution_against_the_network_and_the_closed_flow(lam):
    z0, target = randn(4, 4, seed=3), randn(4, 4, seed=4)
    shifts = torch.tensor([0.0, lam])
    state = nf.relaxed_balanced_layers(z0, shifts, generator(5))
    W1, W2 = torch.eye(4) + state / 2
    times = torch.linspace(0, 2, 5)
    Q = exact.two_layer(times, W1, W2, target)
    loss = nf.Quadratic(target)
    closed = nf.integrate(nf.IntrinsicFlow(loss, nf.TwoLayer(lam)), z0, times, "DOP853", rtol=1e-12, atol=1e-14)
    assert distance(Q[:, 4:, :4], closed.z) < 1e-9
    network = nf.integrate(nf.FiniteFlow(2, loss), state, 2 * times, "DOP853", rtol=1e-12, atol=1e-14)
    U1, U2 = torch.eye(4) + network.state / 2
    assert distance(Q[-1, :4, :4], U1.mT @ U1) < 1e-9
    assert distance(Q[-1, 4:, 4:], U2 @ U2.mT) < 1e-9


def test_two_layer_solution_survives_late_times_and_refuses_unbalanced_layers():
    target = torch.diag(torch.tensor([2.0, 1.0]))
    Q = exact.two_layer(torch.tensor([1e4]), 0.1 * torch.eye(2), 0.1 * torch.eye(2), target)
    assert torch.allclose(Q[0, 2:, :2], target, atol=1e-12)
    with pytest.raises(ValueError, match="λ-balanced"):
        exact.two_layer(TIMES, torch.eye(2), randn(2, 2, seed=6), target)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: exact.aligned_limit(torch.tensor([-1.0]), START, TARGET), "times must be >= 0"),
        (lambda: exact.aligned_limit(TIMES, torch.tensor([0.0]), torch.tensor([1.0])), "sigma0 must be above 0"),
        (lambda: exact.aligned_layers(TIMES, START, TARGET, 0), "depth must be at least 1"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("tau", [1e-4, 1e-6, 1e-8, -1e-8])
@pytest.mark.parametrize("L", [2, 3, 64, None])
def test_small_targets_are_a_small_change_of_the_target_zero(L, tau):
    def solution(value):
        arguments = torch.tensor([0.5]), torch.tensor([1.0]), torch.tensor([value])
        return float(exact.aligned_limit(*arguments) if L is None else exact.aligned_layers(*arguments, L))

    slope = (solution(1e-3) - solution(-1e-3)) / 2e-3
    assert solution(tau) - solution(0.0) == pytest.approx(slope * tau, rel=1e-3, abs=1e-15)


@pytest.mark.parametrize("L", [3, 8, None])
def test_tiny_starts_keep_their_relative_accuracy(L):
    # While σ ≪ τ the equation is σ' = L σ^{2−2/L} τ, to first order in σ/τ.
    start = 1e-9
    arguments = torch.tensor([1.0]), torch.tensor([start]), torch.tensor([1.0])
    sigma = float(exact.aligned_limit(*arguments) if L is None else exact.aligned_layers(*arguments, L))
    a, rate = (2, 1) if L is None else (2 - 2 / L, L)
    expected = (start ** (1 - a) - (a - 1) * rate) ** (1 / (1 - a))
    assert sigma / expected == pytest.approx(1, abs=1e-8)
    assert sigma > start


def test_extreme_times():
    times = torch.tensor([0.0, 1e-300, 1e-16, 1e300])
    sigma = exact.aligned_limit(times, torch.tensor([0.3, 2.0, 0.5]), torch.tensor([1.0, 1.0, -1.0]))
    assert torch.allclose(sigma[:3], torch.tensor([[0.3, 2.0, 0.5]] * 3), atol=1e-15)
    assert torch.allclose(sigma[3], torch.tensor([1.0, 1.0, 0.0]), atol=1e-12)


def in_many_digits(t, start, tau):
    """σ(t) at infinite depth by bisection of the elapsed time, from either side of τ."""
    mpmath = pytest.importorskip("mpmath")
    t, start, tau = map(mpmath.mpf, (t, start, tau))

    def primitive(sigma):
        return mpmath.log(sigma / abs(tau - sigma)) / tau**2 - 1 / (tau * sigma)

    def late(sigma):
        return sigma == tau or primitive(sigma) - primitive(start) > t

    if start < tau:
        low, high, at = mpmath.log(start / (tau - start)), mpmath.mpf(160), lambda u: tau / (1 + mpmath.exp(-u))
    else:
        floor = max(tau, 0)
        low, high, at = mpmath.mpf(0), mpmath.mpf(160), lambda u: floor + (start - floor) * mpmath.exp(-u)
    for _ in range(190):
        middle = (low + high) / 2
        low, high = (low, middle) if late(at(middle)) else (middle, high)
    return at(low)


@pytest.mark.parametrize(
    ("start", "tau", "times"),
    [
        (0.3, 1.0, [0.1, 1.0, 10.0]),
        (1e-9, 1.0, [1.0, 5e8, 1e9, 1.0000001e9, 2e9]),  # it escapes at 1e9, with κ up to 2.5e8
        (4e-8, 2e-4, [1e10, 1.2e11, 1.3e11]),
        (2.0, 0.4, [1e-3, 1.0, 100.0]),
        (62.5, 2.6e-5, [1e3, 1e9, 1.5e12, 1e13]),  # comes down to a target far below
        (0.07, 7e-6, [1e5, 2e13]),
        (2.7, -3e-5, [1e-3, 1e6, 1e9]),
        (380.0, -22.0, [1e-6, 2e-3]),
    ],
)
def test_the_limit_has_all_digits_that_its_condition_leaves(start, tau, times):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(90):
        h = mpmath.mpf(10) ** -30
        for t in times:
            truth, condition = in_many_digits(t, start, tau), 0
            for a, b, c in ((h, 0, 0), (0, h, 0), (0, 0, h)):
                moved = in_many_digits(t * (1 + a), start * (1 + b), tau * (1 + c))
                condition += abs(float((moved / truth - 1) / h))
            sigma = float(exact.aligned_limit(torch.tensor([t]), torch.tensor([start]), torch.tensor([tau])))
            assert abs(float(sigma / truth - 1)) < 1e-15 * (1 + condition)
