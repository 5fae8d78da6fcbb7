"""Verdicts in other units: z ↦ D z and θ ↦ D'θ over sixteen decades, against exact arithmetic."""

import os
import random

import exactly
import maps
import pytest
import torch

from neuralode_flow.intrinsic import RecoveredFlow, count_laws, quadratic_laws, report
from neuralode_flow.intrinsic.metric import Change
from neuralode_flow.intrinsic.ranks import UNDECIDED
from neuralode_flow.losses import Quadratic

BALANCED = [0.5, 1.25, -0.75, 2.0] * 2
CASES = {
    "two layers": (maps.layers(2, 1, 2), [0.5, 1.25, -0.75, 2.0, 0.375, -1.5]),
    "two layers, balanced": (maps.layers(2, 2, 2), BALANCED),
    "a number beside balanced layers": (maps.beside(maps.layers(2, 2, 2)), [3.0, *BALANCED]),
    "WWᵀ": (maps.symmetric(2, 2), [0.5, 1.25, -0.75, 2.0]),
    "a product": (maps.product, [0.5, 1.25, -0.75]),
    "u² − v²": (maps.squares, [0.5, 1.25, -0.75, 2.0]),
    "a neuron": (maps.neuron, [0.5, 1.25, -0.75]),
    "no symmetry": (maps.mixed, [0.5, 1.25, -0.75, 2.0]),
}
# Units of z alone; all θ in another unit; each θ_i in its own; a point with entries of all sizes.
KINDS = ("z", "one unit", "metric", "point")
DRAWS = int(os.environ.get("NEURALODE_FLOW_DRAWS", "4"))  # of each map and kind


def power(draws, decades=8):
    """A power of two from 10^−decades to 10^decades: multiplying by it is exact."""
    return 2.0 ** round(draws.uniform(-decades, decades) / 0.30103)


def drawn(name, kind, seed, decades=8):
    """φ and θ of a case in other units."""
    phi, theta = CASES[name]
    draws = random.Random(f"{name} {kind} {seed}")
    of_z = [power(draws, decades) for _ in phi(theta)]
    of_theta = [power(draws, decades) for _ in theta] if kind in ("metric", "point") else [1.0] * len(theta)
    if kind == "one unit":
        of_theta = [power(draws, decades)] * len(theta)
    if kind != "point":
        theta = [t / s for t, s in zip(theta, of_theta, strict=True)]
    return maps.scaled(phi, of_z, of_theta), theta


def outcome(name, kind, seed):
    """(found, true) of A, B, the number of laws and the question whether the point is singular."""
    phi, theta = drawn(name, kind, seed)
    found = report(maps.in_torch(phi), torch.tensor(theta))
    truth = exactly.verdicts(phi, theta)
    return list(zip((found.recoverable, found.metric, found.laws, found.singular), truth, strict=True))


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("name", CASES)
def test_units_of_z_and_one_unit_of_theta_change_no_verdict(name, kind):
    for seed in range(2):
        assert all(found == true for found, true in outcome(name, kind, seed))


@pytest.mark.parametrize("kind", KINDS[2:])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_a_unit_for_every_parameter_leaves_the_truth_or_nothing(name, kind):
    for seed in range(2):
        assert all(found in (true, "undecided") for found, true in outcome(name, kind, seed))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "most"), [("z", 0.0), ("one unit", 0.0), ("metric", 0.5), ("point", 0.5)])
def test_draws_of_every_map_are_true_and_most_are_decided(kind, most):
    pairs = [pair for name in CASES for seed in range(100, 100 + DRAWS) for pair in outcome(name, kind, seed)]
    assert all(found in (true, "undecided") for found, true in pairs)
    assert sum(found == "undecided" for found, _ in pairs) <= most * len(pairs)


@pytest.mark.parametrize("size", [1.2e5, 8e5, 1e12, 1e-12])
def test_a_large_entry_of_z_does_not_hide_that_the_metric_changes(size):
    phi = maps.scaled(maps.beside(maps.layers(2, 2, 2)), [size, 1, 1, 1, 1], [1.0] * 9)
    theta = torch.tensor([1.0, 0.5, 1.25, -0.75, 2.0, 0.3, -1.5, 1.0, 0.7])
    found = report(maps.in_torch(phi), theta)
    given = report(maps.in_torch(phi), theta, maps.in_torch(lambda t: maps.balance(2, 2, 2)(t[1:])))
    for verdicts in (found, given):
        assert (verdicts.recoverable, verdicts.metric, verdicts.laws) == (False, False, 3)


@pytest.mark.parametrize("b", [1e10, 1e-10, 1e16])
def test_a_large_parameter_makes_no_change_of_the_metric_out_of_round_off(b):
    lam, turn = 0.7, torch.linalg.qr(torch.tensor([[0.6, 0.9], [-0.4, 0.5]])).Q
    rates = torch.tensor([1.3, 0.4])
    U, V = turn * (rates + lam).sqrt(), turn.mT * rates.sqrt()  # UᵀU − VᵀV = λI

    def phi(theta):
        return torch.cat((theta[:1], (theta[1:5].reshape(2, 2) @ theta[5:].reshape(2, 2).mT).flatten()))

    theta = torch.cat((torch.tensor([b]), U.flatten(), V.flatten()))
    for laws in (None, maps.in_torch(lambda t: maps.balance(2, 2, 2)(t[1:]))):
        assert report(phi, theta, laws).metric is True


def test_a_false_law_is_refused_however_small_its_unit():
    phi = maps.in_torch(maps.beside(maps.product))
    theta = torch.tensor([2.0, 0.5, -1.5])
    for size in (1.0, 1e-9, 1e-20, 1e9):
        report(phi, theta, lambda t, size=size: size * (t[1] ** 2 - t[2] ** 2))
        with pytest.raises(ValueError, match="laws must be conserved"):
            report(phi, theta, lambda t, size=size: size * (t[1] ** 2 + 1e-6 * t[2] ** 2))
        with pytest.raises(ValueError, match="laws must be conserved"):
            report(phi, theta, lambda t, size=size: t[1] ** 2 - t[2] ** 2 + min(size, 1.0) * 1e9 * t[0])


def test_what_is_garbage_is_no_rank_in_any_unit():
    def phi(theta):  # its second entry is 1, but for round-off
        return torch.stack((theta[0] * theta[1], (theta / theta.norm()).square().sum()))

    assert report(phi, torch.tensor([0.3, 1.7, -0.6])).rank == 1


@pytest.mark.parametrize("size", [1e-10, 1.0, 1e10])
def test_counts_of_laws_do_not_depend_on_the_units_of_z(size):
    phi = maps.in_torch(maps.scaled(maps.beside(maps.layers(2, 1, 2)), [size, 1, 1], [1.0] * 7))
    assert count_laws(phi, 7).verdict == 3
    found = quadratic_laws(phi, 7)
    assert found.evidence.verdict == len(found) == 3


def test_a_flow_is_recovered_in_any_units():
    phi = maps.in_torch(maps.scaled(maps.neuron, [1e9, 1e-9], [1e-7] * 3))
    laws = maps.in_torch(lambda t: [t[0] * t[0] - t[1] * t[1] - t[2] * t[2]])
    flow = RecoveredFlow(phi, laws, torch.tensor([1.5, 0.5, -0.7]) * 1e7, Quadratic(torch.zeros(2)))
    assert bool(flow.velocity(flow.start).isfinite().all())


def test_a_change_of_the_metric_within_its_round_off_is_no_proof():
    assert Change(relative=1e-3, real=False).verdict == UNDECIDED
    assert Change(relative=1e-3, real=True).verdict is False
    assert Change(relative=1e-12, real=False).verdict is True
