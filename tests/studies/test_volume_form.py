"""The entropy of gauge orbits: formulas by second routes, and planted faults that the checks see."""

import math
from dataclasses import replace
from functools import cache

import mpmath
import numpy as np
import pytest
import torch
from small import SMALL, dataset, failing

import neuralode_flow as nf
from neuralode_flow.finding import Finding
from neuralode_flow.matrices import random_orthogonal
from neuralode_flow.studies import STUDIES, orbit, volume_form

ENTROPY, FACTORS, LOG_VOLUME = orbit.entropy, orbit.factors, orbit.log_volume
VOLUME = "logarithm of the volume form, from the metric against the formula"
ORBIT = "entropy, from the tangent vectors of the orbit against the formula"
FIRST = "order in 1/N, entropy of N layers, off 1"
SECOND = "order in 1/N, entropy without its part of order 1, off 2"
UNBALANCED = "entropy of layers that are not balanced against the formula, a control"
OTHER = "entropy of the deepest network, distance from the geometric mean over that from its limit, a control"


def run(**changes):
    inputs, options = SMALL["volume_form"]()
    return STUDIES["volume_form"].run(**inputs | options | changes)


@cache
def path():
    """The trajectory of the small run, which no fault here touches."""
    kept = []

    def recorded(*given, **options):
        kept.append(nf.integrate(*given, **options))
        return kept[0]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(volume_form, "integrate", recorded)
        run()
    return kept[0]


def again(**changes):
    """What is found of the small dataset with other numbers in it."""
    changed = dataset("volume_form").assign(changes)
    return failing(volume_form._finding(changed, "", "ok").attached(changed))


def written_out(sigma, N):
    """Menon and Yu's entropy in 50 digits; where singular values meet, its limit N σ^{2 − 2/N}."""
    with mpmath.workdps(50):
        total, values = mpmath.mpf(0), [mpmath.mpf(value) ** 2 for value in sigma]
        for j, y in enumerate(values):
            for x in values[:j]:
                if N:
                    below = mpmath.root(x, N) - mpmath.root(y, N)
                    total += mpmath.log((x - y) / below / N if below else x ** (1 - mpmath.mpf(1) / N))
                else:
                    total += mpmath.log((x - y) / mpmath.log(x / y) if x != y else x)
        return float(total / 2)


@pytest.mark.parametrize("N", [0, 1, 2, 3, 8, 256])
@pytest.mark.parametrize(
    "sigma",
    [[2.0, 1.0, 0.3], [1.3, 1.3, 1.3], [1.0, 1.0 + 1e-9, 1.0 - 1e-14], [1e3, 1e-3, 1e-6]],
    ids=["apart", "equal", "nearly equal", "far"],
)
def test_the_entropy_has_its_digits_also_where_singular_values_meet(sigma, N):
    found = float(orbit.entropy(torch.tensor(sigma, dtype=torch.float64), N))
    assert abs(found - written_out(sigma, N)) < 1e-12


def balanced(N, sigma, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left, right = random_orthogonal((2, len(sigma), len(sigma)), generator)
    z = left * torch.tensor(sigma, dtype=torch.float64) @ right
    return z, orbit.factors(z, N, generator)


def test_factors_are_balanced_and_have_their_product():
    z, layers = balanced(4, [2.0, 1.0, 0.5])
    assert torch.allclose(torch.linalg.multi_dot(list(layers.flip(0))), z, rtol=0, atol=1e-14)
    assert torch.allclose(layers[1:].mT @ layers[1:], layers[:-1] @ layers[:-1].mT, rtol=0, atol=1e-14)


@pytest.mark.parametrize("sigma", [[2.0, 1.0, 0.5], [1.3, 1.3, 0.4]], ids=["apart", "equal"])
def test_the_volume_of_the_orbit_is_that_of_frames_which_turn(sigma):
    """The tangent vectors by autograd of layers that are turned by exponentials of skew matrices."""
    N, (_, layers) = 3, balanced(3, sigma, seed=1)
    i, j = torch.triu_indices(3, 3, offset=1)

    def turned(angles):
        skew = torch.zeros(N - 1, 3, 3, dtype=torch.float64).index_put((torch.arange(N - 1)[:, None], i, j), angles)
        turns = torch.linalg.matrix_exp((skew - skew.mT) / math.sqrt(2))
        return torch.stack([turns[0] @ layers[0], turns[1] @ layers[1] @ turns[0].mT, layers[2] @ turns[1].mT])

    jacobian = torch.autograd.functional.jacobian(turned, torch.zeros(N - 1, 3, dtype=torch.float64)).reshape(27, 6)
    by_autograd = torch.linalg.slogdet(jacobian.mT @ jacobian).logabsdet / 2
    assert abs(float(orbit.log_volume(layers) - by_autograd)) < 1e-13
    formula = orbit.entropy(torch.tensor(sigma, dtype=torch.float64), N) + 3 / 2 * math.log(N)
    assert abs(float(orbit.log_volume(layers) - formula)) < 1e-13


def test_what_is_left_of_order_two_is_the_logarithm_of_a_hyperbolic_sine():
    """S_N = S_∞ − (d − 1) log det z / 2N − ½ Σ log(sinh x / x), x = log(σ_i/σ_j)/N."""
    sigma, N = torch.tensor([3.0, 1.1, 0.2], dtype=torch.float64), 5
    i, j = torch.triu_indices(3, 3, offset=1)
    x = torch.log(sigma[i] / sigma[j]) / N
    expected = orbit.entropy(sigma, 0) - 2 * torch.log(sigma).sum() / (2 * N) - torch.log(torch.sinh(x) / x).sum() / 2
    assert abs(float(orbit.entropy(sigma, N) - expected)) < 1e-14


@pytest.mark.parametrize(
    ("name", "fault", "sees"),
    [
        ("entropy", lambda sigma, N: ENTROPY(sigma, N and N + 1), {ORBIT}),
        ("entropy", lambda sigma, N: ENTROPY(sigma, N) * (1.1 if N else 1), {ORBIT, FIRST, SECOND}),
        ("entropy", lambda sigma, N: ENTROPY(sigma, N or 10**4), {SECOND}),
        ("entropy", lambda sigma, N: ENTROPY(sigma, N) + torch.log(sigma).sum(-1) / (N or 1e9), {ORBIT, SECOND}),
        ("factors", lambda z, N, generator: FACTORS(1.01 * z, N, generator), {ORBIT}),
        ("log_volume", lambda layers: LOG_VOLUME(1.001 * layers), {ORBIT}),
        ("_UNBALANCED", 1.0, {UNBALANCED}),
        ("geometric", lambda sigma: ENTROPY(sigma, 0), {SECOND, OTHER}),
        ("_log_volume", lambda sigma: torch.log(sigma).sum(), {VOLUME}),
    ],
    ids=["layers", "factor", "limit", "first order", "product", "scale", "balance", "mean", "volume"],
)
def test_a_planted_fault_is_seen(monkeypatch, name, fault, sees):
    kept = path()
    monkeypatch.setattr(volume_form, "integrate", lambda *given, **options: kept)
    monkeypatch.setattr(volume_form, name, fault)
    found = run()
    assert sees <= failing(found)
    assert not Finding.of(found).passed


def test_every_check_of_numbers_can_fail():
    found = dataset("volume_form")
    assert again() == set()
    assert again(entropy_orbit=found.entropy_orbit + 1e-9) == {ORBIT}
    assert again(entropy_orbit=found.entropy_formula.expand_dims(balance=found.balance)) == {UNBALANCED}
    assert again(entropy_orbit=found.entropy_orbit * np.nan) == {ORBIT, UNBALANCED}
    assert again(entropy_gap=found.entropy_gap * np.nan) == {FIRST}
    assert again(entropy_rest=found.entropy_gap) == {SECOND}
    assert again(entropy_other=found.entropy_rest) == {OTHER}
    assert again(entropy_other=found.entropy_other * np.nan) == {OTHER}
    assert again(log_volume=found.log_volume * np.nan) == {VOLUME}


def test_few_networks_leave_the_order_undecided(monkeypatch):
    kept = path()
    monkeypatch.setattr(volume_form, "integrate", lambda *given, **options: kept)
    found = run(depths=[4, 8])
    assert failing(found) >= {FIRST, SECOND}
    assert "at an undecided order in 1/N" in Finding.of(found).verdict


def test_the_verdict_says_nothing_of_what_is_not_there():
    whole, seen = Finding.of(dataset("volume_form")).verdict, Finding.of(run(observed=1.0))
    assert "along the whole trajectory" in whole
    assert "on the entries that are not seen" in whole
    assert "not seen" not in seen.verdict
    assert "nan" not in seen.verdict
    assert seen.passed
    early = Finding.of(run(clock=replace(SMALL["volume_form"]()[0]["clock"], max_evaluations=60)))
    assert "budget" in early.status
    assert "as far as the trajectory goes" in early.verdict


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"seed": 1}, {"dimension": 2, "rank": 1}, {"start": 3.0}, {"dimension": 7}])
def test_other_draws_and_sizes_pass(changes):
    assert failing(run(**changes)) == set()


def test_one_number_has_no_orbit():
    with pytest.raises(ValueError, match=r"study\.dimension must be at least 2, got 1"):
        run(dimension=1)
    assert nf.LogMean()(torch.ones(1)).shape == (1, 1)
