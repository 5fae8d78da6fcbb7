"""Every system passes its own check, and the study says so only when it does."""

from dataclasses import replace

import pytest
import torch
from cases import slow
from small import clock

import neuralode_flow as nf
from neuralode_flow import results
from neuralode_flow.figures import FIGURES, Movie, save
from neuralode_flow.flows.intrinsic import IntrinsicFlow
from neuralode_flow.intrinsic.systems import ClosedFlow
from neuralode_flow.kernels import LogMean
from neuralode_flow.studies import STUDIES

STUDY = STUDIES["closure"]
HEAVY = {"relu_dag", "relu_two_layer", "leaky_relu"}


def study(system, horizon=1.0, samples=5):
    return STUDY.run(system, clock(horizon, samples, rtol=1e-11, atol=1e-13))


@pytest.mark.parametrize("name", [*sorted({*nf.SYSTEMS} - HEAVY), *slow(*sorted(HEAVY))])
def test_every_system_passes_its_own_check(name):
    dataset = study(nf.SYSTEMS[name]())
    summary = STUDY.summarise(dataset)
    assert summary["status"] == "ok"
    assert summary["passed"], summary["verdict"]
    assert summary["error"] <= summary["bound"]
    assert max(summary["errors"].values()) <= summary["bound"]
    assert not summary["verdict"].startswith("NOT")


def test_a_wrong_closed_flow_fails_the_check():
    system = nf.SYSTEMS["diagonal"]()
    wrong = ClosedFlow(system.loss, lambda b, G: -4 * torch.sqrt(b.square() + 4.01) * G)
    summary = STUDY.summarise(study(replace(system, closed=wrong)))
    assert summary["status"] == "ok"
    assert not summary["passed"]
    assert summary["verdict"].startswith("NOT as theory says.")
    assert summary["error"] > 1e-3


def test_a_wrong_closed_flow_is_found_without_an_integration():
    system = nf.SYSTEMS["diagonal"]()
    slightly = ClosedFlow(system.loss, lambda b, G: (1 + 1e-6) * system.closed.formula(b, G))
    summary = STUDY.summarise(study(replace(system, closed=slightly), horizon=1e-4))
    assert abs(summary["errors"]["the closed flow is the velocity of z"] / 1e-6 - 1) < 1e-3
    assert not summary["passed"]
    assert summary["verdict"].startswith("NOT as theory says.")


def test_a_system_of_ones_own_is_checked_before_it_is_used():
    system = nf.SYSTEMS["diagonal"](dimension=2)
    n = len(system.theta)

    def only_at_the_start(theta):  # its gradient vanishes at θ₀, and nowhere else
        return (theta - system.theta).square().sum(-1, keepdim=True)

    for wrong, message in (
        ({"laws": only_at_the_start}, r"laws of system 'diagonal' must be conserved .* entry 0 is not"),
        ({"laws": lambda theta: theta[..., :1]}, r"laws of system 'diagonal' must be conserved"),
        ({"laws": 3}, "laws of system 'diagonal' must be a function"),
        ({"theta": system.theta.reshape(1, n)}, r"theta of system 'diagonal' must have shape \(n,\)"),
        ({"bound": float("inf")}, "bound of system 'diagonal' must be finite"),
        ({"closed": ClosedFlow(system.loss, lambda b, G: b.sum())}, "closed of system 'diagonal' must give a velocity"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            study(replace(system, **wrong))


def test_a_wrong_number_of_laws_or_a_wrong_verdict_of_theory_fails_the_check():
    system = nf.SYSTEMS["diagonal"](dimension=2)
    for wrong in ({"independent": 3}, {"recoverable": False}, {"metric": False}):
        summary = STUDY.summarise(study(replace(system, **wrong)))
        assert not summary["passed"]
        assert "where theory says" in summary["verdict"]


def test_a_control_that_fits_fails_the_check():
    square = nf.SYSTEMS["linear_network"](widths=(2, 2, 2))
    summary = STUDY.summarise(study(replace(square, control=square.closed)))
    assert not summary["passed"]
    other = IntrinsicFlow(square.loss, LogMean())
    assert STUDY.summarise(study(replace(square, control=other)))["control_left"] > 0.01


@pytest.mark.slow
def test_where_no_formula_is_known_theta_is_recovered():
    system = nf.SYSTEMS["convolution"](kernels=(2, 2, 2), strides=(1, 1))
    summary = STUDY.summarise(study(system))
    assert "Newton" in summary["check"]
    assert summary["error"] < 1e-9


def test_the_comparison_of_a_relu_network_ends_at_the_first_switch():
    dataset = study(nf.SYSTEMS["relu_dag"](seed=1), horizon=20.0, samples=101)
    summary = STUDY.summarise(dataset)
    assert summary["ended_by"] == "the first switch of an activation"
    assert 0 < summary["reached_time"] < 20
    assert "then comes the first switch" in summary["verdict"]
    assert summary["error"] <= 1e-6


def test_a_flow_that_ends_early_gives_the_status():
    coarse = clock(1.0, 3, method="rk4", rtol=1e-8, atol=1e-8, step=0.5)
    summary = STUDY.summarise(STUDY.run(nf.SYSTEMS["diagonal"](), coarse))
    assert "finite" in summary["status"]
    assert not summary["passed"]


def test_the_figures_are_drawn_from_the_saved_dataset(tmp_path):
    dataset = study(nf.SYSTEMS["relu_spline"](width=3, samples=8), samples=4)
    results.write(tmp_path / "results.nc", dataset)
    figures = FIGURES["closure"](nf.open(tmp_path))
    assert set(figures) == {"flow", "spline", "training"}
    assert isinstance(figures["training"], Movie)
    written = [path for name, figure in figures.items() for path in save(figure, tmp_path / name)]
    assert {path.suffix for path in written} == {".png", ".pdf", ".gif"}
    assert all(path.stat().st_size > 1000 for path in written)
