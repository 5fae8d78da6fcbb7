"""The published figures, small: each claim holds, and a wrong number would be seen."""

import json

import pytest
import torch
from small import PUBLISHED, SMALL, assert_names_stay, dataset

import neuralode_flow as nf
from neuralode_flow import results
from neuralode_flow.studies import STUDIES, mixed_regime, strong_imbalance, volume_form


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_claim_of_each_figure_holds_and_of_what_is_kept_of_it(name, tmp_path):
    summary = STUDIES[name].summarise(dataset(name))
    assert summary["status"] == "ok"
    assert summary["passed"], summary["verdict"]
    assert summary["error"] <= summary["bound"]
    assert {"figure", "claim", "published", "measured", "check", "verdict", "problem"} <= set(summary)
    assert_names_stay(name)
    results.write(tmp_path / "results.nc", dataset(name))
    assert json.dumps(STUDIES[name].summarise(nf.open(tmp_path))) == json.dumps(summary)  # which takes NaN for itself


def test_a_layer_rule_of_another_order_would_not_pass(monkeypatch):
    from neuralode_flow.studies import residual_scaling

    monkeypatch.setattr(residual_scaling, "FiniteFlow", lambda depth, loss: nf.FiniteFlow(depth, loss, "cayley"))
    inputs, options = SMALL["residual_scaling"]()
    assert not STUDIES["residual_scaling"].summarise(residual_scaling.run(**inputs, **options))["passed"]


def test_the_factor_of_strong_imbalance_has_the_derived_digits():
    assert strong_imbalance.factor(0.0) == 1.0
    assert abs(strong_imbalance.factor(1.0) - 1.0453) < 5e-5
    assert abs(strong_imbalance.factor(2.0) - 1.2549) < 5e-5
    assert abs(strong_imbalance.factor(1e-6) - 1) < 1e-6
    with pytest.raises(ValueError, match="below e"):
        strong_imbalance.factor(3.0)


def test_the_volume_form_of_two_by_two_matrices_is_that_of_its_kernel():
    sigma = torch.tensor([2.0, 0.5])
    K = nf.LogMean()(sigma)
    squares = sigma.square()
    by_kernel = -torch.log(K).sum() / 2 + torch.log(squares[0] - squares[1])
    assert abs(float(volume_form._log_volume(sigma) - by_kernel)) < 1e-13


def test_a_network_moves_as_one_with_the_triangular_factor_of_its_weights():
    d, w = 3, 40
    theta = torch.randn(2 * d, w, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / w**0.5
    factor = torch.linalg.cholesky(theta @ theta.mT)
    loss = nf.Quadratic(torch.diag(torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)))
    flow = nf.FactorizationFlow(mixed_regime._product, loss)
    accuracy = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-13}
    wide, small = (
        nf.integrate(flow, weights.reshape(2, d, -1), torch.linspace(0, 2, 5), **accuracy)
        for weights in (theta, factor)
    )
    assert float((wide.z - small.z).abs().max()) < 1e-10


def test_bartletts_factor_has_the_moments_of_a_wishart_matrix():
    d, w, draws = 2, 9, 4000
    generator = torch.Generator().manual_seed(1)
    B = torch.stack([mixed_regime._bartlett(w, d, generator) for _ in range(draws)]).reshape(draws, 2 * d, 2 * d)
    M = B @ B.mT
    mean, variance = M.mean(0), M.var(0)
    identity = torch.eye(2 * d, dtype=torch.float64)
    assert float((mean - w * identity).abs().max()) < 5 * (2 * w / draws) ** 0.5
    assert torch.allclose(variance, w * (1 + identity), rtol=0.2)
