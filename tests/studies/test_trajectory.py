"""One run beside the intrinsic limit: from a relaxed balanced start it is held to what is measured of both."""

import dataclasses

import numpy as np
import pytest
import torch
from cases import relaxed_profile, slow
from small import clock

import neuralode_flow as nf
from neuralode_flow.finding import Finding
from neuralode_flow.studies import trajectory

GAP = "Frobenius distance of z from the intrinsic limit"


def run(seed=0, dimension=3, initial=None, grid=(4, 12), schedule=None, **settings):
    """The study on a target at random, from a start with twist and shift."""
    target = torch.eye(dimension) + torch.randn(dimension, dimension, generator=torch.Generator().manual_seed(seed))
    problem = dataclasses.replace(nf.PROBLEMS["teacher"](dimension=dimension), loss=nf.Quadratic(target))
    start = initial or relaxed_profile(dimension, seed)[1]
    solver = nf.Collocation(nf.DepthGrid.gauss(*grid))
    return trajectory.run(problem, start, solver, schedule or clock(4.0, 5, rtol=1e-6, atol=1e-8), **settings)


def gap(found):
    return next(check for check in Finding.of(found).checks if check.name == GAP)


@pytest.mark.parametrize("method", ["DOP853", "auto", "dopri5", *slow("Radau")])
@pytest.mark.parametrize("seed", [0, *slow(1, 2)])
def test_it_stays_as_near_as_what_is_measured_of_both(method, seed):
    found = run(seed, schedule=clock(4.0, 5, method=method, rtol=1e-5, atol=1e-7))
    errors = sum(float(found[name].max()) for name in ("time_error", "depth_error", "limit_error"))
    assert found.attrs["status"] == "ok"
    assert 0 < gap(found).error <= gap(found).bound < 2 * errors + 1e-6
    assert gap(found).holds


def test_a_coarse_grid_is_in_the_bound():
    coarse = run(grid=(1, 8), adapt=False, schedule=clock(4.0, 5))
    assert gap(coarse).error > 1e3 * float(coarse.time_error.max())
    assert gap(coarse).holds


def test_a_kernel_that_is_a_hundredth_off_is_noticed(monkeypatch):
    class Off(nf.LogMean):
        keeps_sign = False  # in logarithms it has rates of its own

        def __call__(self, sigma):
            return 1.01 * super().__call__(sigma)

        def slope(self, sigma):
            return 1.01 * super().slope(sigma)

    monkeypatch.setattr(trajectory, "LogMean", Off)
    found = run()
    assert found.attrs["status"] == "ok"
    assert gap(found).bound < 1e-3 < gap(found).error
    assert not Finding.of(found).passed


@pytest.mark.parametrize("slower", [0.99, 1.01])
def test_a_velocity_that_is_a_hundredth_off_is_noticed(slower, monkeypatch):
    class Off(nf.ContinuousFlow):
        def velocity(self, W):
            return slower * super().velocity(W)

    monkeypatch.setattr(trajectory, "ContinuousFlow", Off)
    assert not gap(run()).holds


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"initial": nf.smooth(3, 1.0, torch.Generator().manual_seed(1))}, "not relaxed balanced"),
        ({"estimate": False}, "nothing is measured"),
        ({"model": "finite", "network_depth": 8}, "layers follow another flow"),
        ({"model": "intrinsic"}, "it is the limit"),
    ],
)
def test_nothing_is_held_to_the_limit_where_it_need_not_follow(settings, why):
    found = run(**settings)
    assert gap(found).bound is None, why
    assert ("limit_error" in found) == (set(settings) == {"initial"})


def test_an_error_that_is_known_for_a_part_of_the_times_bounds_nothing():
    found = run(schedule=clock(20.0, 41, rtol=1e-9, atol=1e-11, max_evaluations=700))
    assert "the error in time is known up to" in found.attrs["status"]
    assert np.isfinite(found.distance_from_limit).sum() > np.isfinite(found.time_error).sum() > 1
    assert gap(found).bound is None
