"""What training can come to: the infimum of a loss over det z > 0, and the part of the way to it."""

import json
import subprocess
import sys

import pytest
import torch
from small import clock

import neuralode_flow as nf
from neuralode_flow.figures import FIGURES
from neuralode_flow.losses import Regression
from neuralode_flow.problems import PROBLEMS, Problem
from neuralode_flow.studies import STUDIES


def inputs(problem):
    return {
        "problem": problem,
        "initial": nf.INITIALS["relaxed_balanced"](problem.z0),
        "solver": nf.Collocation(nf.DepthGrid.gauss(4, 8)),
        "clock": clock(2.0, 5),
    }


def samples(target, rows=30, noise=0.0):
    torch.manual_seed(0)
    x = torch.randn(rows, target.shape[1], dtype=torch.float64)
    return x, x @ target.mT + noise * torch.randn(rows, target.shape[0], dtype=torch.float64)


def reached(loss, horizon=60.0):
    """The loss at the end of a long flow in z."""
    flow, start = nf.IntrinsicFlow(loss, nf.LogMean()), torch.eye(2, dtype=torch.float64)
    path = nf.integrate(flow, start, [0.0, horizon], "DOP853", rtol=1e-8, atol=1e-10)
    return float(path.loss[-1])


TARGETS = {"within reach": [[1.5, 0.4], [-0.2, 0.8]], "a reflection": [[1.5, 0.0], [0.0, -0.6]]}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kind", ["quadratic", "regression"])
def test_a_long_flow_comes_to_the_infimum_and_no_further(name, kind):
    target = torch.tensor(TARGETS[name], dtype=torch.float64)
    loss = nf.Quadratic(target) if kind == "quadratic" else Regression(*samples(target, noise=0.3))
    infimum = float(loss.infimum())
    # A flow to a singular matrix tends to it like a power of t.
    assert 0 <= reached(loss) - infimum + 1e-12 < 0.03


def test_fewer_rows_than_columns_leave_the_least_value_of_all():
    x, y = samples(torch.tensor(TARGETS["a reflection"], dtype=torch.float64), rows=1)
    assert Regression(x, y).boundary() is None
    assert float(Regression(x, y).infimum()) < 1e-25


def test_where_it_is_not_known_nothing_is_said():
    x, y = samples(torch.eye(2, dtype=torch.float64))
    assert Regression(x, y, readout=torch.eye(2, dtype=torch.float64)).infimum() is None
    assert nf.Quadratic(torch.ones(3, dtype=torch.float64)).infimum() is None
    study = STUDIES["convergence"]
    custom = Problem("own", "own", nf.Custom(lambda z: (z - 2).square().sum()), torch.eye(2).double())
    dataset = study.run(**inputs(custom), depths=[4], layers=["euler"])
    assert "loss_infimum" not in dataset
    assert "infimum" not in study.summarise(dataset)["verdict"]


def test_a_convergence_study_says_how_far_training_has_come():
    study = STUDIES["convergence"]
    dataset = study.run(**inputs(PROBLEMS["linnerud"]()), depths=[4], layers=["euler"])
    summary = study.summarise(dataset)
    start, end, least = (summary[f"loss_{name}"] for name in ("start", "end", "infimum"))
    assert (start, end) == tuple(dataset.loss_continuous.values[[0, -1]])
    assert least == pytest.approx(1.0546831318677807, rel=1e-9)
    assert summary["loss_way"] == pytest.approx((start - end) / (start - least))
    assert f"{100 * summary['loss_way']:.0f} % of the way to its infimum over det z > 0 (1.055)" in summary["verdict"]
    figure = FIGURES["convergence"](dataset)["loss"]
    dotted = [line for line in figure.axes[0].lines if str(line.get_label()).startswith("infimum")]
    assert [list(line.get_ydata()) for line in dotted] == [[least, least]]


@pytest.mark.parametrize(
    ("problem", "least", "most"),
    [([], 0.85, 1.0), (["problem=breast_cancer"], 0.5, 0.7)],
)
@pytest.mark.slow
def test_the_main_job_is_one_where_training_comes_near_the_infimum(problem, least, most, tmp_path):
    settings = [*problem, "study.depths=[4]", "study.layers=[euler]", "figures=none"]
    subprocess.run(
        [sys.executable, "-m", "neuralode_flow", *settings], cwd=tmp_path, check=True, capture_output=True, timeout=120
    )
    (file,) = tmp_path.glob("runs/convergence/*/summary.json")
    summary = json.loads(file.read_text())
    assert least <= summary["loss_way"] <= most
    assert summary["loss_infimum"] == pytest.approx(0.928508202151, rel=1e-9)
    assert f"{100 * summary['loss_way']:.0f} % of the way to its infimum over det z > 0 (0.9285)" in summary["verdict"]
    assert ("x whitened to covariance I" in summary["data"]) == (problem == [])
