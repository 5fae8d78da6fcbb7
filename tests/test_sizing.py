"""How `DepthGrid.auto` sizes a grid, and a part of the study of its errors in benchmarks/accuracy.py."""

import importlib.util
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import randn, relaxed_profile, smooth_profile

import neuralode_flow as nf
from neuralode_flow.depth.grid import sample
from neuralode_flow.depth.sizing import Truth

STUDY = Path(__file__).parents[1] / "benchmarks" / "accuracy.py"


def norm(matrices):
    return torch.linalg.matrix_norm(matrices)


def maps(before, after):
    """The matrices of G ↦ P(1,s)ᵀ G P(s,0)ᵀ."""
    return torch.stack([torch.kron(a.mT.contiguous(), b) for a, b in zip(after, before, strict=True)])


@pytest.mark.parametrize(("panels", "order"), [(1, 5), (2, 6)])
def test_the_error_is_that_of_the_map_from_the_gradient_to_the_velocity(panels, order):
    W, grid, fine = smooth_profile(3, seed=4, scale=2.0), nf.DepthGrid.gauss(panels, order), nf.DepthGrid.gauss(64, 16)
    before, after, z = nf.Collocation(fine).propagators(W.at(fine.nodes))
    found_before, found_after, found_z = nf.Collocation(grid).propagators(W.at(grid.nodes))
    true = maps(fine.interpolate(before, grid.nodes), fine.interpolate(after, grid.nodes))
    found = maps(found_before, found_after)
    G = randn(3, 3, seed=1)
    assert torch.allclose(found[2] @ G.flatten(), (found_after[2].mT @ G @ found_before[2].mT).flatten())
    error = float(norm(found - true).max() / norm(maps(before, after)).max())
    assert Truth.on(fine, W.at).error(grid, W.at(grid.nodes)) == pytest.approx(error, rel=1e-6)
    assert float(norm(found_z - z) / norm(z)) < error
    assert replace(Truth.on(fine, W.at), z=z / 4).error(grid, W.at(grid.nodes)) == pytest.approx(3, rel=0.1)


def test_the_error_of_a_product_of_numbers_is_that_against_its_closed_form():
    grid, z = nf.DepthGrid.gauss(1, 5), math.exp(1 + (1 - math.cos(9)) / 9)
    W = lambda s: (1 + math.sin(9 * s)) * torch.eye(1)  # noqa: E731
    values = sample(W, grid.nodes)
    before, after, found = nf.Collocation(grid).propagators(values)
    error = max(float((after * before - z).abs().max()), abs(float(found) - z)) / z
    assert Truth.on(nf.DepthGrid.gauss(8, 16), partial(sample, W)).error(grid, values) == pytest.approx(error, rel=1e-6)


def test_products_whose_squares_no_float_holds_are_resolved():
    growth = -300.0
    grid = nf.DepthGrid.auto(lambda s: growth * torch.eye(2), 1e-8)
    z = nf.Collocation(grid).product(growth * torch.eye(2).expand(len(grid), 2, 2))
    assert float(z[0, 0]) == pytest.approx(math.exp(growth), rel=1e-8)


@pytest.mark.parametrize(("angle", "dtype", "tol"), [(100.0, torch.float64, 3e-14), (6.0, torch.float32, 1e-6)])
def test_what_round_off_does_not_allow_is_refused_and_what_it_allows_is_met(angle, dtype, tol):
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=dtype)
    with pytest.raises(ValueError, match="the round-off of z in torch.float"):
        nf.DepthGrid.auto(lambda s: angle * turn, tol)
    grid = nf.DepthGrid.auto(lambda s: angle * turn, 10 * tol)
    z = nf.Collocation(grid).product((angle * turn).expand(len(grid), 2, 2)).double()
    exact = math.cos(angle) * torch.eye(2) + math.sin(angle) * turn.double()
    assert float(norm(z - exact) / norm(exact)) < 10 * tol


@pytest.mark.parametrize("growth", [-800.0, -400.0, 400.0])
def test_a_constant_whose_product_no_float_holds_is_not_called_rough(growth):
    with pytest.raises(ValueError, match="too large or too small for torch.float64"):
        nf.DepthGrid.auto(lambda s: growth * torch.eye(2), 1e-8)


def test_a_feature_that_hardly_moves_the_velocity_is_found_all_the_same():
    A, B = randn(2, 3, 3, seed=0)
    bump = lambda s: A / 2 + math.exp(-(((s - 0.37) / 0.004) ** 2)) * B / 4  # noqa: E731
    grid, few = nf.DepthGrid.auto(bump, 1e-2), nf.DepthGrid.gauss(1, 6)
    assert Truth.on(nf.DepthGrid.gauss(64, 16), partial(sample, bump)).error(few, sample(bump, few.nodes)) < 5e-3
    points = torch.linspace(0, 1, 333)
    missed = grid.interpolate(sample(bump, grid.nodes), points) - sample(bump, points)
    assert float(norm(missed).max()) < 0.1 * float(norm(sample(bump, points)).max())


def test_an_ensemble_is_sized_by_its_worst_member_and_each_against_its_own_scale():
    W, tol = smooth_profile(2, seed=5, scale=2.0), 1e-6
    other = smooth_profile(2, seed=6, scale=0.1)
    both = lambda s: torch.stack((W(s), other(s)))  # noqa: E731
    alone = [nf.DepthGrid.auto(one, tol) for one in (W, other)]
    assert len(nf.DepthGrid.auto(both, tol)) == max(map(len, alone))
    assert len(alone[1]) < len(alone[0])


def test_panels_of_steep_profiles_are_short_enough_for_sweeps():
    W = randn(3, 3, seed=7)
    W *= 12 / torch.linalg.matrix_norm(W, 2)
    grid = nf.DepthGrid.auto(lambda s: W, 1e-8)
    assert grid.panels == 4
    assert nf.DepthGrid.auto(lambda s: W / 4, 1e-8).panels == 1


def test_a_run_on_the_grid_is_ok_and_as_accurate_as_was_asked():
    z0, W = relaxed_profile(3, seed=8)
    loss, times = nf.Quadratic(randn(3, 3, seed=9)), [0.0, 1.0, 2.0]
    flow = nf.ContinuousFlow(nf.DepthGrid.auto(W, 1e-8), loss)
    path = nf.integrate(flow, W, times, "DOP853", rtol=1e-9, atol=1e-11)
    exact = nf.integrate(nf.IntrinsicFlow(loss, nf.LogMean()), z0, times, "DOP853", rtol=1e-11, atol=1e-13)
    assert path.status == "ok"
    assert float(path.depth_error.max()) < 1e-8
    assert float(norm(path.z - exact.z).max()) < 1e-7


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("accuracy_of_grids", STUDY)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where its dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_grids_of_random_profiles_meet_the_tolerance_with_hardly_a_node_too_many(study):
    kinds = len(study.KINDS)
    found = [g for seed in range(24) for g in study.grids([seed], [study.ASKED[seed // kinds % len(study.ASKED)]])]
    parts = np.array([g.error / g.tol for g in found])
    assert parts.max() <= 1
    assert max(g.product_error / g.tol for g in found) <= 1
    assert np.quantile(parts, 0.25) >= 0.01
    assert np.median([g.nodes - g.fewest for g in found]) <= 1


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 10])
def test_the_reference_of_the_study_is_that_of_scipy(study, seed):
    assert study.Sized.random(seed).by_scipy() < 1e-11
