"""The interpolants that diagonal networks reach: by second routes, and with planted faults that the checks see."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from small import SMALL, dataset

import neuralode_flow as nf
from neuralode_flow.finding import Finding
from neuralode_flow.studies import STUDIES, bias, interpolant
from neuralode_flow.studies.bias import Sparse, least_l1, reached, widest_l1

SLOW = pytest.mark.slow
FAULTS = ["k", "model", "widest", "narrower", *(pytest.param(name, marks=SLOW) for name in ("start", "certificate"))]

X, Y = interpolant._samples(nf.PROBLEMS["breast_cancer_white"](), 4, 0, 4)


def checks(**changes):
    inputs, settings = SMALL["interpolant"]()
    finding = Finding.of(STUDIES["interpolant"].run(**inputs, **(settings | changes)))
    return {check.name: check for check in finding.checks}


def test_all_checks_hold():
    found = Finding.of(dataset("interpolant"))
    assert found.record()["passed"], found.checks
    assert found.numbers["orders"]["least ℓ₁ norm"][-1] == pytest.approx(
        2 * (1 - found.numbers["certificate"]), rel=0.01
    )


def test_the_formula_is_where_an_independent_solver_of_the_bias_ends():
    """b minimises Σ q(b_i) with q' = asinh(b/k)/2 among all that fit the samples."""
    k = 0.7
    b = reached(X, Y, [k])[0]

    def bias(b):
        return np.sum(b * np.arcsinh(b / k) - np.hypot(b, k) + k) / 2

    start = np.linalg.pinv(X) @ Y
    fits = {"type": "eq", "fun": lambda b: X @ b - Y, "jac": lambda b: X}
    other = minimize(bias, start, jac=lambda b: np.arcsinh(b / k) / 2, constraints=fits, method="SLSQP", tol=1e-14)
    assert np.abs(b - other.x).max() < 1e-6
    assert np.abs(X @ b - Y).max() < 1e-13


def test_least_norms_and_widest_margins_have_the_value_of_their_duals():
    b, certificate, bound = least_l1(X, Y)
    dual = linprog(-Y, A_ub=np.vstack([X.T, -X.T]), b_ub=np.ones(2 * X.shape[1]), bounds=(None, None))
    assert np.abs(b).sum() == pytest.approx(-dual.fun, rel=1e-9)
    assert bound == pytest.approx(-dual.fun, rel=1e-9)
    assert np.abs(X @ b - Y).max() < 1e-13
    assert 0 < certificate < 1
    Z = np.sign(Y)[:, None] * X
    wide, _, bound = widest_l1(Z)
    dual = linprog(-np.ones(4), A_ub=np.vstack([Z.T, -Z.T]), b_ub=np.ones(2 * X.shape[1]))
    assert np.abs(wide).sum() == pytest.approx(-dual.fun, rel=1e-9)
    assert bound == pytest.approx(-dual.fun, rel=1e-9)
    assert (Z @ wide).min() > 1 - 1e-9


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault, monkeypatch):
    width, start = interpolant.width, interpolant.start
    if fault == "k":
        monkeypatch.setattr(interpolant, "width", lambda scale, shape: 1.01 * width(scale, shape))
        seen = "the trained b against k sinh(2xᵀν)"
    elif fault == "start":  # of another shape
        monkeypatch.setattr(interpolant, "start", lambda d, scale, shape: start(d, scale, shape / 2))
        seen = "the trained b against k sinh(2xᵀν)"
    elif fault == "certificate":
        monkeypatch.setattr(interpolant, "least_l1", lambda x, y: Sparse(least_l1(x, y).b, 0.7))
        seen = "order to least ℓ₁ norm, off the expected one"
    elif fault in ("widest", "narrower"):  # a margin that is 1 % off
        factor = {"widest": 0.99, "narrower": 1.01}[fault]
        off = widest_l1(np.sign(Y)[:, None] * X)
        off = off._replace(b=factor * off.b)
        monkeypatch.setattr(interpolant, "widest_l1", lambda z: off)
        seen = "least ℓ₁ norms off the bound by their dual solution"
    else:  # one layer, which is led to the widest ℓ₂ margin
        monkeypatch.setattr(interpolant, "phi", lambda theta: theta[: len(theta) // 4] - start(10, 1.0, 0.0)[0])
        monkeypatch.setattr(interpolant, "_trained", lambda *arguments: {"missed": 0.0, "loss": 0.0, "left": 0.0})
        monkeypatch.setattr(interpolant, "_NORMS", (1.0, 3.0))
        seen = "what the widest ℓ₂ margin misses of it, a control"
    assert not checks()[seen].holds


CERTIFICATES = "dual certificates off those by the signs of b"


@pytest.mark.parametrize("size", [0.99, 1.01])
@pytest.mark.parametrize("name", ["least_l1", "widest_l1"])
def test_a_certificate_that_is_off_by_one_percent_is_seen(name, size, monkeypatch):
    """The order that it decides is held to 5 %."""
    right = getattr(interpolant, name)

    def off(*given):
        found = right(*given)
        return found._replace(certificate=size * found.certificate)

    monkeypatch.setattr(interpolant, name, off)
    assert {name for name, check in checks(shapes=[0.0]).items() if not check.holds} == {CERTIFICATES}


def test_a_formula_of_certificates_that_is_off_is_seen(monkeypatch):
    right = bias._certificate
    monkeypatch.setattr(bias, "_certificate", lambda *given: 1.01 * right(*given))
    assert not checks(shapes=[0.0])[CERTIFICATES].holds


@pytest.mark.parametrize("rows", [2, 4, 6])
def test_the_signs_of_b_ask_for_the_certificate_of_the_programme(rows):
    generator = np.random.default_rng(rows)
    for _ in range(20):
        x = generator.standard_normal((rows, 10))
        found = least_l1(x, generator.standard_normal(rows))
        assert bias.certificate_missed(x, found) < 1e-9
        assert bias.certificate_missed(x, found._replace(certificate=0.999 * found.certificate)) > 1e-6


def test_of_many_certificates_each_is_one_but_none_below_the_least():
    """b of two entries for four rows: the signs leave η two dimensions."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((4, 10))
    found = least_l1(x, x @ np.array([1.0, -2.0, *np.zeros(8)]))
    assert bias.certificate_missed(x, found) < 1e-9
    assert bias.certificate_missed(x, found._replace(certificate=0.0)) > 1e-2


def test_what_does_not_suit_it_is_refused():
    inputs, settings = SMALL["interpolant"]()
    run = STUDIES["interpolant"].run
    with pytest.raises(ValueError, match=r"study\.rows must be .* 9, got 10"):
        run(**inputs, **settings, rows=10)
    with pytest.raises(ValueError, match=r"study\.column must be .* 9, got 10"):
        run(**inputs, **settings, column=10)
    teacher = inputs | {"problem": nf.PROBLEMS["reflection"]()}
    with pytest.raises(ValueError, match="has no samples; choose one of a table"):
        run(**teacher, **settings)


@SLOW
@pytest.mark.parametrize("seed", [1, 5, 9])
def test_other_rows_pass_as_well(seed):
    assert all(check.holds for check in checks(seed=seed, shapes=[0.0, 0.5]).values())


def test_scales_may_fall_by_any_number_of_decades():
    far = reached(X, Y, [1.0, 1e-40])[1]
    assert np.abs(far - least_l1(X, Y).b).max() < 1e-9
    assert np.abs(far - reached(X, Y, [1.0, 1e-10, 1e-20, 1e-40])[-1]).max() < 1e-12
    assert torch.get_default_dtype() == torch.float64


def test_a_classifier_is_looked_at_where_its_norm_is_what_is_told(monkeypatch):
    """At the first of 200 times beyond it what the margin misses was up to 2 % off."""
    found = dataset("interpolant").margin_missed.values
    monkeypatch.setattr(interpolant, "_LOOKS", 4000)
    inputs, options = SMALL["interpolant"]()
    fine = STUDIES["interpolant"].run(**inputs, **options).margin_missed.values
    np.testing.assert_allclose(found, fine, rtol=2e-3)
