"""Which step rules z₀ decides: the study's checks hold, and each of them can fail."""

import numpy as np
import pytest
import small

import neuralode_flow as nf
from neuralode_flow.finding import Finding
from neuralode_flow.kernels import LogMean
from neuralode_flow.studies import STUDIES, universality
from neuralode_flow.studies.universality import LARGE
from neuralode_flow.time.rules.adam import Adam
from neuralode_flow.time.rules.gd import GradientDescent
from neuralode_flow.time.rules.normalised import Normalised


def found(**settings):
    inputs, small_settings = small.SMALL["universality"]()
    chosen = small_settings | {"rules": ["gd"], "depths": [2]} | settings
    dataset = STUDIES["universality"].run(**inputs | chosen)
    return dataset, Finding.of(dataset)


def failing(finding):
    return [check.name for check in finding.checks if not check.holds]


def test_all_checks_hold_and_say_which_rule_they_are_of():
    dataset, finding = small.dataset("universality"), Finding.of(small.dataset("universality"))
    assert finding.status == "ok"
    assert failing(finding) == []
    assert finding.passed
    assert len(finding.checks) == 8
    assert {"gd", LARGE, "muon", "adam", "sgd"} <= set(dataset.rule.values.tolist())
    assert "Starts that are not fan out under all of them." in finding.verdict
    assert "(most under " in finding.verdict
    assert "(least under " in finding.verdict
    spread = dataset.spread.max("step")
    for rule in dataset.rule.values:
        turns = bool(dataset.equivariant.sel(rule=rule))
        assert turns or float(spread.sel(rule=rule)) > 1e-2
    assert float(spread.sel(rule="muon")) < 1e-12
    assert dataset.step.values.tolist() == list(range(41))


def test_the_spread_is_what_its_name_says():
    dataset, _ = found()
    z = dataset.z.sel(rule="gd").values
    distances = [np.linalg.norm(z[:, k] - z[:, 0], axis=(-2, -1)) for k in range(3)]
    expected = np.max(distances, axis=0) / np.linalg.norm(z[:, 0], axis=(-2, -1))
    np.testing.assert_allclose(dataset.spread.sel(rule="gd"), expected, rtol=1e-12)
    others = np.linalg.norm(z[:, 4] - z[:, 3], axis=(-2, -1)) / np.linalg.norm(z[:, 3], axis=(-2, -1))
    np.testing.assert_allclose(dataset.control_spread.sel(rule="gd"), others, rtol=1e-12)


def test_a_rule_that_claims_to_turn_and_does_not_fails(monkeypatch):
    monkeypatch.setattr(Adam, "equivariant", True)
    _, finding = found(rules=["gd", "adam"])
    assert failing(finding) == [
        "starts under rules that turn with the gradient",
        "Euler networks turned by random gauges",
    ]
    assert "apart under gd, gd, large steps, adam (most under adam)" in finding.verdict
    assert "have the same z_n" not in finding.verdict


def test_a_rule_that_claims_not_to_turn_and_does_fails(monkeypatch):
    monkeypatch.setattr(Normalised, "equivariant", False)
    _, finding = found(rules=["normalised"], steps=10)
    assert failing(finding) == ["starts under rules that see coordinates or sizes"]
    assert "Relaxed balanced starts do not fan out under normalised." in finding.verdict


def test_starts_that_are_not_relaxed_balanced_fail(monkeypatch):
    def astray(z0, twist, shift, seed):
        return nf.INITIALS["detour"](z0, twist, shift, 0.1, seed)

    monkeypatch.setitem(nf.INITIALS._entries, "relaxed_balanced", astray)
    _, finding = found()
    assert failing(finding)[0] == "starts under rules that turn with the gradient"


def test_controls_that_are_relaxed_balanced_fail():
    _, finding = found(detour=1e-9)
    assert failing(finding) == ["other starts under any rule"]
    assert "Starts that are not relaxed balanced do not fan out under gd" in finding.verdict
    assert "Starts that are not fan out" not in finding.verdict


def test_steps_that_are_not_large_fail():
    _, finding = found(large=1e-4)
    assert "gd in large steps, distance from the flow" in failing(finding)


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [
        (universality, "_off_the_flow", lambda right: lambda *given: 1.01 * right(*given)),
        (universality, "_off_the_flow", lambda right: lambda *given: 0.99 * right(*given)),
        (LogMean, "log_rate", lambda right: lambda *given: 1.01 * right(*given)),
        (GradientDescent, "step", lambda right: lambda self, n, W: W + 1.01 * (right(self, n, W) - W)),
    ],
    ids=["larger", "smaller", "kernel", "rule"],
)
def test_a_distance_from_the_flow_that_is_off_by_one_percent_is_seen(monkeypatch, where, name, fault):
    """It must be a fan, which it is all the same."""
    monkeypatch.setattr(where, name, fault(getattr(where, name)))
    _, finding = found(rules=["gd"])
    assert "that distance against that from its own limit in smaller steps" in failing(finding)


def test_a_rule_that_goes_astray_is_said_and_does_not_pass():
    _, finding = found(large=300.0)
    assert finding.status.startswith(f"{LARGE}: the depth grid of 4 × 8 nodes does not resolve W")
    assert not finding.passed
    assert "gd in large steps, distance from the flow" in failing(finding)


@pytest.mark.parametrize("rules", [["sign", "adam", "lars"], ["lars", "adam", "sign"]])
def test_a_rule_that_diverges_is_told_whatever_its_place(rules):
    _, finding = found(rules=rules, length=30.0, rate=3.0, steps=20)
    assert finding.status.startswith("lars: the training diverged")
    assert failing(finding) == ["starts under rules that see coordinates or sizes", "other starts under any rule"]
    assert np.isnan([check.error for check in finding.checks]).all()
    assert finding.verdict.endswith("Not all is known of lars.")
    assert f"or more under {', '.join(rule for rule in rules if rule != 'lars')} (least under" in finding.verdict
    assert "all of them" not in finding.verdict


def test_checks_of_members_are_called_the_same_whichever_rule_is_worst():
    checks, worst = [], set()
    for seed in range(4):
        _, finding = found(rules=["gd", "sign", "adam"], problem=nf.PROBLEMS["teacher"](dimension=2, seed=seed))
        checks.append([(check.name, check.norm) for check in finding.checks])
        worst |= {rule for rule in ("sign", "adam") if f"(least under {rule})" in finding.verdict}
    assert worst == {"sign", "adam"}
    assert all(own == checks[0] for own in checks)


def test_rules_of_samples_are_left_out_where_there_are_none():
    problem = nf.Problem(
        "matrix", "a matrix", nf.Quadratic(2 * nf.PROBLEMS["linnerud"]().z0), nf.PROBLEMS["linnerud"]().z0
    )
    dataset, finding = found(problem=problem, rules=["gd", "sgd", "label_noise"])
    assert dataset.rule.values.tolist() == ["gd", LARGE]
    assert "sgd, label_noise" in finding.notes["Rules"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_other_draws_pass_too(seed):
    _, finding = found(
        rules=["gd", "heavy_ball", "muon", "normalised", "adam", "weight_decay"], starts=8, seed=1000 * seed
    )
    assert failing(finding) == []
