"""A fault that is planted in the mathematics of a study is seen by its checks, and its verdict does not deny it."""

import importlib
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from small import SMALL, clock, dataset, failing

import neuralode_flow as nf
from neuralode_flow.finding import Finding
from neuralode_flow.studies import (
    STUDIES,
    deep_completion,
    lazy_to_rich,
    lcn,
    learning_rate,
    mixed_regime,
    perceptron,
    residual_scaling,
    scalar_blocks,
    settling,
    spline_landscape,
    square,
    unifying,
    volume_form,
    width,
)
from neuralode_flow.studies.tensors import Convolution


def small(study, **changes):
    inputs, options = SMALL[study]()
    return STUDIES[study].run(**inputs | options | changes)


def verdict(found):
    return Finding.of(found).verdict


@pytest.mark.parametrize(
    ("study", "variable"),
    [
        ("perceptron", "deviation"),
        ("lcn", "flow_apart"),
        ("leaky_rank", "digits_stationarity"),
        ("spline_landscape", "p"),
        pytest.param("identifiability", "rescaled", marks=pytest.mark.slow),
        ("leaves", "chain_change"),
        pytest.param("unifying", "closed", marks=pytest.mark.slow),
        pytest.param("curvature", "dropped", marks=pytest.mark.slow),
        ("width", "narrow"),
        ("delta_rewrite", "norm"),
    ],
)
def test_a_number_that_is_not_known_holds_nothing(study, variable, monkeypatch):
    module = importlib.import_module(f"neuralode_flow.studies.{study}")
    finding, kept = module._finding, set()

    def lost(dataset, *rest):
        kept.update(check.name for check in finding(dataset.copy(deep=True), *rest).checks if not check.holds)
        dataset[variable][(-1,) * dataset[variable].ndim] = np.nan
        return finding(dataset, *rest)

    monkeypatch.setattr(module, "_finding", lost)
    assert failing(small(study)) > kept


def test_gradient_descent_that_never_separates_the_family_is_no_perceptron(monkeypatch):
    descent = perceptron.descent

    def slow(model, rate, steps, c=1.0):
        return descent(model, rate, steps, c) if c == 1.0 else descent(model, 1e-9, steps, 0.0)

    monkeypatch.setattr(perceptron, "descent", slow)
    found = small("perceptron")
    assert np.isnan(found.family_descent_steps).all()
    assert failing(found) == {"steps on the family of n samples off their number"}


def test_blocks_of_order_two_do_not_tend_to_their_limit_at_order_one(monkeypatch):
    """1 + p + p²/2 in the place of 1 + p, in the parameters and in the scalar flow."""
    integrate = scalar_blocks.integrate

    def scalar(clock, S, name="scalar"):
        def velocity(r, _):
            block = 1 + r / S + (r / S) ** 2 / 2 if S else torch.exp(r)
            z, slope = (block**S, block ** (S - 1) * (1 + r / S)) if S else (block, block)
            return -2 * torch.sqrt(1 + r.square()) * (z + 1) * slope

        zero = torch.zeros((), dtype=torch.float64)
        flow = scalar_blocks.ClosedFlow(nf.Quadratic(zero), velocity)
        return integrate(flow, zero, clock.times, **clock.options(f"{name}-{S}")).z.numpy()

    def network(clock, S):
        def phi(theta):
            u, v = theta.chunk(2, dim=-1)
            return (1 + u * v / S + (u * v / S) ** 2 / 2).prod(-1)

        start = torch.cat((torch.full((S,), 2**0.5), torch.zeros(S))).double()
        flow = nf.FactorizationFlow(phi, nf.Quadratic(-torch.ones((), dtype=torch.float64)))
        seen = integrate(flow, start, S * clock.times, **clock.options("network"), observe=lambda i, at: at.clone())
        return (seen.observed[:, 0] * seen.observed[:, S]).numpy()

    monkeypatch.setattr(scalar_blocks, "_scalar", scalar)
    monkeypatch.setattr(scalar_blocks, "_network", network)
    assert failing(small("scalar_blocks")) == {"the order at which r tends to the limit from 1"}


TINY = {"sizes": [4, 6, 8], "entries": 1.0, "certified": [2], "widths": [16, 24, 32], "samples": 4, "draws": 2}
TINY |= {"fitted": [2], "hidden": 4, "images": 10, "steps": 5}


@pytest.mark.parametrize(
    ("study", "variables", "changes"),
    [
        ("scalar_blocks", ["error_r"], {}),
        ("strong_imbalance", ["error_z"], {"depths": [8, 16, 32]}),
        ("width", ["loss_left", "certificate"], TINY),
    ],
)
def test_numbers_are_those_of_double_precision_whatever_the_default(study, variables, changes):
    """√2 of a start was rounded to float32, by which blocks missed their own scalar flow by 1.7e-8."""
    before, found = torch.get_default_dtype(), []
    try:
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            found.append(small(study, **changes))
    finally:
        torch.set_default_dtype(before)
    for variable in variables:
        one, other = (dataset[variable].values for dataset in found)
        np.testing.assert_allclose(one, other, rtol=1e-10)
    if study == "scalar_blocks":
        assert failing(found[0]) == set()


@pytest.mark.parametrize("size", [0.999, 1.001])
def test_a_change_of_the_tangent_kernel_that_is_off_is_seen(monkeypatch, size):
    """Of the Jacobian of the trained layers: by a constant on one of them, which their z does not feel."""
    jacobian = lazy_to_rich.jacobian

    def off(phi, theta):
        found = jacobian(phi, theta)
        return torch.cat((size * found[..., :9], found[..., 9:]), -1)

    monkeypatch.setattr(lazy_to_rich, "jacobian", off)
    assert failing(small("lazy_to_rich")) == {"change of the tangent kernel from that of its closed form"}


@pytest.mark.parametrize("part", ["_regime", "_lazy"])
def test_a_test_error_that_is_off_is_seen(monkeypatch, part):
    """The largest σ²w is held to the lazy limit to 5 % only, and the claim has the numbers."""
    right = getattr(mixed_regime, part)

    def off(*given):
        found = right(*given)
        return 1.01 * found if part == "_lazy" else replace(found, test_error=1.01 * found.test_error)

    monkeypatch.setattr(mixed_regime, part, off)
    known = "test error of z = 0 from 1, and of the lazy limit from the best multiple of Y"
    assert known in failing(small("mixed_regime", widths=[200, 400, 800], repeats=2))


def test_a_least_loss_that_is_off_is_seen(monkeypatch):
    """On det z = 0: no flow of a short horizon comes near enough to it to fall below."""
    right = torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda T: right(T) * 1.005 if T.shape[-2:] == (2, 2) else right(T))
    assert failing(small("residual_scaling")) == {"½σ_min(T)² from that by ‖T‖ and det T"}


def test_a_flow_that_falls_below_the_least_loss_of_its_side_is_said(monkeypatch):
    targets = residual_scaling._targets
    assert "no flow of the limit falls below" in verdict(dataset("residual_scaling"))
    monkeypatch.setattr(residual_scaling, "_targets", lambda number, seed: targets(number, seed)[:1] * 2)
    found = small("residual_scaling")
    assert failing(found) == {"loss of the limit below ½σ_min(T)², det T < 0"}
    assert "a flow of the limit falls below" in verdict(found)


def test_the_flow_of_another_metric_is_not_that_of_the_volume_form(monkeypatch):
    monkeypatch.setattr(volume_form, "LogMean", lambda: nf.TwoLayer(0.5))
    assert failing(small("volume_form")) == {"velocity of z from −g⁻¹∇f"}


def test_leaves_that_are_not_trained_have_not_survived_training():
    moves = "how far training moves θ"
    assert failing(dataset("leaves")) == set()
    assert failing(small("leaves", horizon=1e-12)) == {moves}


def test_a_trajectory_that_does_not_leave_its_start_is_none():
    moves = "how far z moves"
    assert failing(small("volume_form", clock=clock(1e-9))) == {moves}
    assert "along the whole trajectory" in verdict(dataset("volume_form"))
    assert "along the whole trajectory" not in verdict(small("volume_form", clock=clock(1e-9)))


def test_a_kernel_that_stays_is_not_rich():
    rich = "change of the tangent kernel at the smallest |λ|"
    assert failing(dataset("lazy_to_rich")) == set()
    assert failing(small("lazy_to_rich", width=1, balances=[0.01, 100.0])) == {rich}


def test_in_one_dimension_no_flow_closed_on_z_is_a_control():
    problem = nf.PROBLEMS["teacher"](dimension=1)
    found = small("learning_rate", problem=problem, initial=nf.INITIALS["relaxed_balanced"](problem.z0))
    assert failing(found) == set()
    assert "misses nothing of the modified flow here" in verdict(found)
    assert "a control" not in " ".join(check.name for check in Finding.of(found).checks)


@pytest.mark.parametrize(
    ("strengths", "said"), [([0.0], ""), ([0.5], "order 1"), ([0.0, 1.0], "order 1; m = 1.0453 (ℓ = 1)")]
)
def test_strong_imbalance_claims_nothing_of_strengths_that_it_does_not_have(strengths, said):
    claim = Finding.of(small("strong_imbalance", strengths=strengths)).claim
    assert claim.text.endswith(said)
    assert len(claim.published) == len(claim.measured) == len(strengths)
    assert ("limit" in claim.text) == (max(strengths) > 0)
    assert "1.2549" not in claim.text


@pytest.mark.slow
def test_what_does_not_move_slowly_tends_to_nothing(monkeypatch):
    """The order that is expected may be small itself: of 0.14 or 0.07 none is short by much."""
    classified, known = unifying.classified, []

    def planted(still, again, one, *rest):
        found = dict(next(again))
        if isinstance(one, Convolution) and one.depth == 2:
            over, away = found[still]
            found[still] = over, np.full_like(away, away[0])
        return found

    monkeypatch.setattr(unifying, "classified", lambda *given: known.append(classified(*given)) or dict(known[-1]))
    assert failing(small("unifying")) == set()
    for still, sees in (
        ("deviation", "the same order over the expected one"),
        ("singular", "that order of the layers over the expected one"),
    ):
        again = iter(known)
        monkeypatch.setattr(unifying, "classified", partial(planted, still, again))
        assert failing(small("unifying")) == {sees}
        assert next(again, None) is None


@pytest.mark.slow
def test_where_no_width_fits_none_is_said_to(monkeypatch):
    assert "a width of" in verdict(small("width", fitted=[16]))
    monkeypatch.setattr(width, "_FIT", 0.0)
    assert f"no width up to {width._MOST_FITTED} fits 16 samples" in verdict(small("width", fitted=[16]))


def test_a_wrong_count_of_flat_directions_is_not_called_right(monkeypatch):
    rank = spline_landscape.Spline.rank
    assert "flat directions are those counted" in verdict(dataset("spline_landscape"))
    monkeypatch.setattr(spline_landscape.Spline, "rank", lambda spline: rank(spline) - 1)
    assert "flat directions are not all those counted" in verdict(small("spline_landscape"))


def test_orders_that_are_not_decided_are_not_those_of_a_limit():
    found = small("leaky_rank", horizon=1e-3)
    assert "do not all tend to it at an order that is decided" in verdict(found)
    assert "tend to it at orders" in verdict(dataset("leaky_rank"))


@pytest.mark.parametrize(("rule", "alone"), [("gd", True), ("sign", False)])
def test_rules_that_are_not_tried_are_not_claimed(rule, alone):
    claim = Finding.of(small("universality", rules=[rule])).claim
    assert claim.text.startswith("for every step rule that turns with the gradient") == alone
    assert rule in claim.measured


@pytest.mark.slow
def test_a_flow_on_z_that_is_not_the_modified_one_is_no_control(monkeypatch):
    closed = learning_rate.closed_on_z
    assert failing(dataset("learning_rate")) == set()
    monkeypatch.setattr(learning_rate, "closed_on_z", lambda loss, rate: closed(loss, 1.2 * rate))
    assert failing(small("learning_rate")) == {"part of η in dz/dt that closed on z misses at the start"}


def test_a_verdict_says_what_the_checks_beside_it_say():
    found = dataset("lcn")
    assert "z has one factorisation," in verdict(found)
    assert "z has up to 2 factorisations," in lcn._finding(found.assign(number=found.number.clip(min=2))).verdict
    assert "and by 1.0e+00 at equal norms" in lcn._finding(found.assign(apart=found.apart * 0 + 1)).verdict
    found = dataset("width")
    assert "training keeps its bounds" in verdict(found)
    slack = found.certified_bounds * 0 + 1.1
    assert "does not keep all of its bounds" in width._finding(found.assign(certified_bounds=slack), "").verdict


@pytest.mark.slow
def test_the_closed_flow_of_every_number_of_layers_is_that_of_its_factors(monkeypatch):
    """That of two layers, with which all others are compared, is not the one whose factors are trained."""
    kernel = deep_completion.kernel
    assert failing(dataset("deep_completion")) == set()
    monkeypatch.setattr(deep_completion, "kernel", lambda N: kernel(1 if N == 2 else N))
    velocity = "velocity of z by balanced factors against that of the closed flow"
    assert failing(small("deep_completion")) == {velocity}


@pytest.mark.parametrize(
    ("depths", "than", "better"),
    [
        ([2], "two layers", "infinite depth against 2"),
        pytest.param([3, 4], "3 layers", "4 layers", marks=pytest.mark.slow),
    ],
)
def test_deeper_is_better_than_what_it_is_compared_with(depths, than, better):
    found = Finding.of(small("deep_completion", depths=depths))
    assert found.claim.text.endswith(f"than {than} do")
    assert any(check.name.startswith(better) and check.least for check in found.checks)


def test_the_intrinsic_flow_of_networks_is_that_of_their_layers(monkeypatch):
    """The error of the left edge of the square was told, and held to nothing."""
    kept = failing(dataset("convergence"))

    class Slow(nf.DividedDifference):
        def __init__(self, shifts, time_scale):
            super().__init__(shifts, time_scale=0.99 * time_scale)

    monkeypatch.setattr(square, "DividedDifference", Slow)
    left = "relaxed balanced Euler network minus its intrinsic flow of L layers"
    assert failing(small("convergence")) - kept == {left}


def test_starts_that_have_one_λ_do_not_show_that_none_matters():
    assert failing(dataset("initialisations")) == set()
    spread = "spread of networks, relaxed balanced, each with its own λ, a control"
    assert failing(small("initialisations", shift=0.0)) == {spread}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "speed", "sees"),
    [
        (1.2, 1.0, "largest sharpness of the central flow from 2/η"),
        (0.8, 1.0, "largest sharpness of the central flow from 2/η"),
        (1.0, 1.2, "velocity of the central flow from a projection of that of gradient flow"),
    ],
)
def test_a_central_flow_of_another_rate_or_speed_is_not_that_of_descent(rate, speed, sees, monkeypatch):
    """Both are nearer to gradient descent than gradient flow is."""

    class Planted(settling.CentralFlow):
        def __init__(self, flow, own):
            super().__init__(flow, rate * own)

        def velocity(self, state):
            return speed * super().velocity(state)

    monkeypatch.setattr(settling, "CentralFlow", Planted)
    assert failing(small("edge")) == {sees}
