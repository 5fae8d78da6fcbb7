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


def taken(L, start, sigma, tau):
    """The time from start to sigma, to 30 digits: an integral over log |τ − σ| near the target, log σ elsewhere."""
    mpmath = pytest.importorskip("mpmath")
    a = 2 - 2 / mpmath.mpf(L)
    tau = mpmath.mpf(tau)

    def part(low, high, near):
        if near:
            side = mpmath.sign(tau - low)
            ends = [mpmath.log(abs(tau - x)) for x in (low, high)]
            values = lambda y: -((tau - side * mpmath.exp(y)) ** -a)  # noqa: E731
        else:
            ends = [mpmath.log(x) for x in (low, high)]
            values = lambda x: mpmath.exp(x * (1 - a)) / (tau - mpmath.exp(x))  # noqa: E731
        pieces = int(abs(ends[1] - ends[0]) / 3) + 1
        return mpmath.quad(values, mpmath.linspace(*ends, pieces + 1), maxdegree=6)

    start, sigma = mpmath.mpf(start), mpmath.mpf(sigma)
    if tau <= 0:
        return part(start, sigma, near=False) / L
    border = tau / 2 if start < tau else 3 * tau / 2
    ahead = (start - border) * (start - tau) > 0 and abs(start - tau) > tau / 2
    if not ahead:
        return part(start, sigma, near=True) / L
    if abs(sigma - tau) >= tau / 2:
        return part(start, sigma, near=False) / L
    return (part(start, border, near=False) + part(border, sigma, near=True)) / L


@pytest.mark.parametrize("L", [2, 3, 5, 64, 1000, 10**5, 10**6])
@pytest.mark.parametrize(
    ("start", "sigma", "tau"),
    [
        (0.3, 1.0, 2.0),
        (0.3, 1.999999, 2.0),
        (1e-9, 1e-4, 2.0),
        (2 - 1e-12, 2 - 5e-13, 2.0),
        (2 + 1e-12, 2 + 5e-13, 2.0),
        (5.0, 2.5, 2.0),
        (5.0, 2.000001, 2.0),
        (1e9, 40.0, 2.0),
        (0.5, 0.1, -1.0),
        (1e7, 1e-7, -1.0),
        (1e-3, 1e-31, -1.0),
    ],
)
def test_layers_have_all_digits_at_any_depth(L, start, sigma, tau):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(40):
        exactly = taken(L, start, sigma, tau)
        t = float(exactly)
        pace = L * mpmath.mpf(sigma) ** (2 - 2 / mpmath.mpf(L)) * (mpmath.mpf(tau) - mpmath.mpf(sigma))
        truth = sigma + pace * (t - exactly)  # at the time that was rounded
        first = L * mpmath.mpf(start) ** (2 - 2 / mpmath.mpf(L)) * (mpmath.mpf(tau) - mpmath.mpf(start))
        condition = float(abs(pace * t / sigma) + abs(pace / first * start / sigma))
        got = float(exact.aligned_layers(torch.tensor([t]), torch.tensor([start]), torch.tensor([tau]), L))
        assert abs(float(got / truth - 1)) < 1e-14 * (1 + condition)


def of_any_depth(L, *arguments):
    """σ(t) of one mode, (T,); L = None is infinite depth."""
    sigma = exact.aligned_limit(*arguments) if L is None else exact.aligned_layers(*arguments, L)
    return sigma[:, 0]


@pytest.mark.parametrize("tau", [1e-250, -1e-250])
@pytest.mark.parametrize("L", [2, 3, 1000, None])
def test_a_target_far_below_the_start(L, tau):
    a, rate = (2, 1) if L is None else (2 - 2 / L, L)
    times = torch.tensor([0.0, 1e-200, 1.0, 1e100])
    sigma = of_any_depth(L, times, torch.tensor([1e250]), torch.tensor([tau]))
    # σ' = −rate σ^{1+a} from as good as infinity
    assert torch.allclose(sigma[1:], (a * rate * times[1:]) ** (-1 / a), rtol=1e-13, atol=0)


@pytest.mark.parametrize("tau", [1e250, -1e250])
@pytest.mark.parametrize("L", [2, 3, 1000, None])
def test_a_target_far_above_the_start(L, tau):
    b, rate = (1, 1) if L is None else (1 - 2 / L, L)
    start = 1e-250
    span = torch.tensor([0.0, 0.1, 0.5, 0.9]) * (1 if tau > 0 else -1)
    times = span / tau / rate / start**b
    # σ' = rate σ^{1+b} τ
    expected = torch.exp(span) if b == 0 else (1 - b * span) ** (-1 / b)
    sigma = of_any_depth(L, times, torch.tensor([start]), torch.tensor([tau]))
    assert torch.allclose(sigma / start, expected, rtol=1e-13, atol=0)
    last = of_any_depth(L, torch.tensor([1e300]), torch.tensor([start]), torch.tensor([tau]))
    assert float(last) == tau if tau > 0 else 0 <= float(last) < 1e-300


def test_one_layer_keeps_a_start_far_below_its_target():
    sigma = exact.aligned_layers(torch.tensor([1e-12]), torch.tensor([1e-9]), torch.tensor([1.0]), 1)
    assert float(sigma) == pytest.approx(1e-9 + 1e-12, rel=1e-14)


def test_saxe_far_from_its_target():
    late = exact.saxe(torch.tensor([1.0]), torch.tensor([1e-200]), torch.tensor([1e200]))
    assert float(late) == 1e200  # was infinite
    early = exact.saxe(torch.tensor([1e-20]), torch.tensor([1e20]), torch.tensor([1e-300]))
    assert float(early) == pytest.approx(1e20 / 3, rel=1e-14)  # 2τt is too small for a whole number of digits
    fast = exact.saxe(torch.tensor([5e-324]), torch.tensor([1.0]), torch.tensor([-1.7e308]))
    assert float(fast) == pytest.approx(1.0, rel=1e-14)  # 2τ is out of range, τt is not


@pytest.mark.parametrize("L", [3, None])
def test_a_start_at_the_edge_of_what_is_far_stays_for_the_shortest_time(L):
    sigma = of_any_depth(L, torch.tensor([5e-324]), torch.tensor([1e-20]), torch.tensor([1.000000000000001]))
    assert float(sigma) == pytest.approx(1e-20, rel=1e-15)
