"""Where settings or an early end leave nothing to compare, no check holds, and the verdict claims nothing of it."""

import numpy as np
import pytest

import neuralode_flow as nf
from neuralode_flow.studies.identifiability import FITTED

IMBALANCE = {"problem": "teacher", "problem.dimension": 2, "study.depths": [8, 16, 32], "study.network_depth": 2}
ORDER, DIGITS, APART = (
    "the order at each ℓ > 0 from 1",
    "m against its derived digits",
    "times as far from logmean as from m · logmean",
)


def found(study, settings):
    finding = nf.run(study, settings).finding
    return finding, {check.name: check.error for check in finding.checks if check.bound is not None}


@pytest.mark.parametrize(("strength", "asked"), [(0.0, set()), (0.5, {ORDER, APART}), (1.0, {ORDER, DIGITS, APART})])
def test_strong_imbalance_is_asked_for_what_its_strengths_have(strength, asked):
    finding, checks = found("strong_imbalance", IMBALANCE | {"study.strengths": [strength], "time.samples": 3})
    assert {ORDER, DIGITS, APART} & set(checks) == asked
    assert ("times as far" in finding.verdict) == (APART in asked)


@pytest.mark.slow
def test_one_product_says_nothing_of_smaller_ones():
    rising = "values of σ²w from which on the least test error does not rise"
    small = {"study.dimension": 4, "study.widths": [100, 400, 1600], "study.repeats": 2, "time.samples": 3}
    finding, checks = found("mixed_regime", small | {"study.products": [1.0]})
    assert rising not in checks
    assert "goes from" not in finding.verdict
    finding, checks = found("mixed_regime", small | {"study.products": [1.0, 2.0]})
    assert rising in checks
    assert "at σ²w = 1 (rich" in finding.verdict


@pytest.mark.parametrize(
    ("study", "settings"),
    [
        ("closure", {"system": "linear_network", "time": "closure"}),
        ("closure", {"system": "balanced_two_layer", "time": "closure"}),
        ("lazy_to_rich", {"study.width": 3, "study.balances": [0.5, 100.0], "time.samples": 3}),
    ],
)
def test_where_z_stays_nothing_is_said_of_how_it_moves(study, settings):
    """Whatever a closed flow is, it is within 1e-8 of a z that moves by less."""
    finding, checks = found(study, settings)
    assert finding.passed
    assert checks["how far z moves"] > 0.1
    finding, checks = found(study, settings | {"time.horizon": 1e-9})
    assert finding.status == "ok"
    assert checks["how far z moves"] < 1e-7
    assert not finding.passed
    assert study != "closure" or finding.verdict.startswith("z moves by too little to tell.")


def test_layers_that_did_not_come_to_the_last_time_are_neither_lazy_nor_rich():
    small = {"study.width": 3, "study.balances": [0.5, 2.0, 100.0], "time.samples": 3}
    finding, checks = found("lazy_to_rich", small)
    assert finding.status == "ok"
    assert np.isfinite([*checks.values()]).all()
    finding, checks = found("lazy_to_rich", small | {"time.max_evaluations": 60})
    assert np.isnan([*checks.values()]).all()
    assert finding.verdict == "None of 3 networks came to the last time."
    finding, checks = found("lazy_to_rich", small | {"time.max_evaluations": 600})
    assert checks.pop("change of the tangent kernel at the smallest |λ|") > 0.1  # it came to the last time
    assert np.isnan([*checks.values()]).all()
    assert "of 3 values of λ" in finding.verdict
    assert "not known at the largest" in finding.verdict
    finding, checks = found("lazy_to_rich", small | {"study.balances": [-0.5, 0.5]})
    assert [*checks] == [
        "z of the trained layers against the closed solution",
        "how far z moves",
        "change of the tangent kernel from that of its closed form",
    ]
    assert "smallest" not in finding.verdict


@pytest.mark.slow
def test_a_diagonal_network_that_was_not_trained_ends_nowhere():
    flow = "the trained b against k sinh(2xᵀν)"
    finding, checks = found("interpolant", {"study.shapes": [0.0], "time.samples": 3})
    assert checks[flow] < 1e-8
    assert finding.verdict.startswith("The trained network ends at")
    finding, checks = found("interpolant", {"study.shapes": [0.0], "time.samples": 3, "time.horizon": 1e-9})
    assert np.isnan(checks[flow])
    assert not finding.passed
    assert finding.verdict.startswith("Training leaves 100% of the loss, which is too much to say where it ends.")


@pytest.mark.slow
def test_networks_that_have_not_left_the_start_are_no_interpolants():
    found = nf.run("unifying", {"study.scale": 1e-6, "study.size": 1e5})
    assert "keep 100% of the loss, which is too much to say where they end" in found.finding.verdict
    failing = [check.name for check in found.finding.checks if check.bound is not None and not check.holds]
    assert "loss at the end of training over that at the start" in failing
    assert "the trained b against the formula of the interpolant" in failing


def test_how_far_searches_began_is_said_of_those_that_found_it():
    settings = {"draws": 1, "searches": 1, "samples": 300, "fitted": 100, "start": 0.1, "seed": 2}
    found = nf.run("identifiability", {"study": settings})
    dataset = found.dataset
    there = ((dataset.fitted <= FITTED) & (dataset.search_missing == 0)).values
    assert 0 < there.sum() < there.size
    away = float(dataset.start.values[there].max())
    assert f"In {there.sum()} of {there.size} searches the outputs are found, from up to {away:.1e} away" in (
        found.finding.verdict
    )


@pytest.mark.parametrize("depths", [[4], [4, 8]])
def test_one_depth_claims_nothing_of_several(depths):
    settings = {"problem": "teacher", "problem.dimension": 2, "time.horizon": 1, "time.samples": 3}
    found = nf.run("learning_rate", settings | {"study.depths": depths, "study.steps": [2, 4, 8]}).finding
    assert ("uniformly" in found.claim.text) == (len(depths) > 1)
    assert any("tend to those of infinite depth" in check.name for check in found.checks) == (len(depths) > 1)
