"""Every curve of a figure is the one that its legend names, and all that there are are drawn, each in its own look."""

import matplotlib.axes
import numpy as np
import pytest

import neuralode_flow as nf
from neuralode_flow.figures import FIGURES


@pytest.fixture
def drawn(monkeypatch):
    """Values and looks of all that is drawn as lines."""
    plot, seen = matplotlib.axes.Axes.plot, []

    def kept(axes, x, y, *args, **looks):
        seen.append((np.asarray(y), {"label": None} | looks))
        return plot(axes, x, y, *args, **looks)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", kept)
    return seen


def test_the_heat_map_of_one_iteration_shows_it_once(drawn):
    dataset = nf.run("depth_heatmap", {"study.iterations": 1}).dataset
    drawn.clear()
    FIGURES["depth_heatmap"](dataset)
    (shown,) = [y for y, looks in drawn if "iteration" in str(looks["label"])]
    np.testing.assert_array_equal(shown, dataset.distance.sel(iteration=1))


@pytest.mark.slow
def test_more_depths_than_dashes_have_dashes_of_their_own(drawn):
    settings = {"problem": "teacher", "problem.dimension": 2, "debug": "quick", "study.draws": 2, "time.samples": 3}
    settings |= {"time.horizon": 0.1, "time.rtol": 1e-6, "time.atol": 1e-8}
    depths = [2, 3, 4, 5, 6, 7]
    dataset = nf.run("initialisations", settings | {"study.depths": depths}).dataset
    drawn.clear()
    FIGURES["initialisations"](dataset)
    assert len({str(looks["ls"]) for _, looks in drawn if "gid" in looks}) == len(depths) + 1


def test_all_penalties_are_drawn(drawn):
    penalties = [0.0, 0.01, 0.03, 0.1, 0.3, 1.0]
    small = {
        "draws": 4, "alphas": [1.0, 4.0, 16.0, 32.0, 64.0], "widths": [16, 64, 256], "steps": [8, 16, 32], "nodes": 12,
        "duration": 16.0, "horizon": 1.0,
    }  # fmt: skip
    dataset = nf.run("minimax", {"study": small | {"penalties": penalties}}).dataset
    drawn.clear()
    FIGURES["minimax"](dataset)
    named = [looks["label"] for _, looks in drawn if "residual" in str(looks["label"])]
    assert len(named) == 2 * (len(penalties) - 1)
