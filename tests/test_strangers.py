"""A file of a stranger's own, put beside ours with no other file touched, is found by name on the command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "neuralode_flow"

FILES = {
    "depth/rules/third.py": '''
"""Layers of order 3 of the exponential, which sampling at midpoints brings to order 2."""

from ..chain import add_identity
from ..products import multiply
from .base import LAYERS


class Third:
    label = "third Taylor"
    order = 2
    quadratic_law = False

    def layer(self, A):
        square = multiply(A, A)
        return add_identity(A + square / 2 + multiply(square, A) / 6), None


LAYERS.register("third")(Third())
''',
    "time/methods/ralston.py": '''
"""Ralston's method of order 2."""

import neuralode_flow as nf

from ..base import FixedStepper


@nf.METHODS.register("ralston")
class Ralston(FixedStepper):
    def _fixed_step(self, start, end):
        h = end - start
        first = self.velocity(start, self.state)
        return self.state + h * (first / 4 + 3 / 4 * self.velocity(start + 2 / 3 * h, self.state + 2 / 3 * h * first))
''',
    "studies/slope.py": '''
"""How fast the loss falls at the start."""

from ..finding import Check, Claim, Finding
from ..flows.continuous import ContinuousFlow
from ..time.integrate import integrate
from .axes import arranged, time
from ..depth import DepthSolver
from ..depth.grid import Profile
from ..problems import Problem
from .base import STUDIES, Clock, Progress, Study


def run(
    problem: Problem,
    initial: Profile,
    solver: DepthSolver,
    clock: Clock,
    *,
    least: float = 0.0,
    progress: Progress | None = None,
):
    flow = ContinuousFlow(solver.grid, problem.loss, solver)
    path = integrate(flow, initial, clock.times, **clock.options("slope"))
    dataset = arranged({"loss": ("time", path.loss, "loss")}, [time(path.times)])
    fall = float(path.loss[0] - path.loss[1])
    return Finding(
        study="slope",
        problem=problem.title,
        status=path.status,
        verdict=f"The loss falls by {fall:.2g} up to the second time.",
        claim=Claim("the loss falls", measured=fall),
        checks=(Check("fall of the loss", fall, least, least=True),),
    ).attached(dataset)


STUDIES.register("slope")(Study(run, question="How fast does the loss fall?"))
''',
    "figures/slope.py": '''
"""The loss against time."""

from . import style
from .base import FIGURES, FigureSet


def slope(dataset):
    figure, (axes,) = style.blank(style.problem(dataset))
    axes.plot(dataset["time"].values, dataset["loss"].values, label="loss")
    return {"slope": figure}


FIGURES.register("slope")(FigureSet(slope, {"slope": "The loss along training."}))
''',
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A copy of the package with these files in it."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(PACKAGE, home / "neuralode_flow", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        assert not (PACKAGE / name).exists()
        (home / "neuralode_flow" / name).write_text(text.lstrip())
    return home


def summary(home, place, *settings):
    line = [sys.executable, "-m", "neuralode_flow", "problem=teacher", "problem.dimension=2", *settings, "resume=run"]
    environment = os.environ | {"PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(line, cwd=place, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads((place / "run" / "summary.json").read_text()), (place / "run" / "report.html").read_text()


@pytest.mark.slow
def test_a_layer_rule_and_a_time_method_in_files_of_their_own(home, tmp_path):
    settings = ["study.layers=[exp,third]", "study.depths=[8,16,32]", "time.method=ralston", "time.step=0.02"]
    record, report = summary(home, tmp_path, *settings, "time.samples=3", "study.workers=1")
    assert abs(record["orders"]["third"] - 2) < 0.1
    assert record["expected_orders"]["third"] == 2
    assert "order of third" in report
    assert "third Taylor" in report  # in the legend


@pytest.mark.slow
def test_a_study_with_its_figure_in_files_of_their_own(home, tmp_path):
    settings = ["~study", "+study.name=slope", "+study.least=0.001", "time.samples=3"]
    record, report = summary(home, tmp_path, *settings)
    assert record["passed"]
    assert record["error"] >= 0.001
    assert "The loss along training." in report
    assert "How fast does the loss fall?" in report
    assert "at least 0.001" in report
