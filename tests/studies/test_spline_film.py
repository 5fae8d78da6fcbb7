"""The film of the spline ends on its target, from every start that the experiment draws."""

import numpy as np
import pytest
import torch

import neuralode_flow as nf
from neuralode_flow.figures import FIGURES
from neuralode_flow.intrinsic.systems import SYSTEMS

ON_TARGET = 0.1  # of sin πx, which has amplitude 1


def last_frame(dataset):
    """x and y of the curve in the last frame of the film, where the samples are."""
    movie = FIGURES["closure"](dataset)["training"]
    movie.frame(movie.frames - 1)
    (curve,) = [line for line in movie.figure.axes[0].lines if line.get_label() == "function"]
    x, y = (np.asarray(values) for values in curve.get_data())
    return x[abs(x) <= 1], y[abs(x) <= 1]


def off_target(dataset):
    """The largest error of the function in the last frame."""
    x, y = last_frame(dataset)
    assert len(x) > 100
    return float(abs(y - np.sin(np.pi * x)).max())


@pytest.mark.slow
def test_the_last_frame_of_the_film_is_on_the_target():
    found = nf.run("relu_spline")
    dataset = found.dataset
    assert found.finding.passed, found.finding.verdict
    assert float(dataset.time[-1]) == 16  # no knot was held at a sample
    assert off_target(dataset) < ON_TARGET
    assert float(dataset.loss[-1]) < min(1e-3, float(dataset.loss[0]) / 100)
    assert (np.diff(dataset.loss) < 0).all()


@pytest.mark.parametrize(
    "short", [{"time.horizon": 0.5}, {"system.knots": "random", "system.imbalance": 1.0, "time.horizon": 0.5}]
)
def test_a_film_that_is_cut_ends_off_the_target(short):
    found = nf.run("relu_spline", {**short, "time.samples": 4})
    assert found.finding.passed, found.finding.verdict
    assert off_target(found.dataset) > 3 * ON_TARGET


@pytest.mark.parametrize("seed", range(10))
def test_even_knots_are_one_in_each_part_and_face_both_ways(seed):
    system = SYSTEMS["relu_spline"](width=8, seed=seed, knots="even")
    knots = system.observe["knots"](system.theta)
    parts = (knots + 1) / 2 * 8 - torch.arange(8)
    assert float(parts.min()) >= 0.25
    assert float(parts.max()) <= 0.75
    w, b = system.loss.network.factors(system.theta)[1].T
    assert w.tolist() == pytest.approx([1, -1] * 4)
    assert (-b / w).tolist() == pytest.approx(knots.tolist())


@pytest.mark.parametrize("knots", ["random", "even"])
def test_imbalance_changes_the_laws_and_not_the_function(knots):
    one, other = (SYSTEMS["relu_spline"](knots=knots, imbalance=ratio) for ratio in (1.0, 5.0))
    for quantity in ("function", "knots"):
        difference = one.observe[quantity](one.theta) - other.observe[quantity](other.theta)
        assert float(difference.abs().max()) < 1e-13
    assert float((one.phi(one.theta) - other.phi(other.theta)).abs().max()) < 1e-13
    assert bool((other.laws(other.theta) < one.laws(one.theta) - 1).all())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"knots": "evn"}, r"system\.knots: unknown choice of knots 'evn'; did you mean 'even'"),
        ({"imbalance": 0.0}, r"system\.imbalance must be above 0"),
    ],
)
def test_bad_starts_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        SYSTEMS["relu_spline"](**options)


def test_frames_and_curves_say_their_times_however_short_the_run():
    figures = nf.run("relu_spline", {"time.horizon": 0.004, "time.samples": 3, "system.width": 4}).figures
    movie, told = figures["training"], []
    for i in range(movie.frames):
        movie.frame(i)
        told += [text.get_text() for text in movie.figure.axes[0].texts]
    assert told == ["t = 0", "t = 0.002", "t = 0.004"]
    labels = [line.get_label() for line in figures["spline"].axes[0].lines]
    assert labels == [*told, "samples"]
