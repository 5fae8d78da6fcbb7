"""Figures as data for a page: what is drawn is what is described."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from neuralode_flow.figures import Movie, describe, style
from neuralode_flow.figures.markup import to_html


@pytest.mark.parametrize(
    ("label", "html"),
    [
        ("plain & <simple>", "plain &amp; &lt;simple&gt;"),
        ("costs $5", "costs $5"),
        (r"$\sigma_a(t)$", "σ<sub><i>a</i></sub>(<i>t</i>)"),
        (r"$\|z_L(t)\|_F$ of all", "‖<i>z</i><sub><i>L</i></sub>(<i>t</i>)‖<sub><i>F</i></sub> of all"),
        (r"$L^{2}[0,1]$", "<i>L</i><sup>2</sup>[0,1]"),
        (r"$\sigma_{\min}(T)^2/2$", "σ<sub>min </sub>(<i>T</i>)<sup>2</sup>/2"),
        (r"$L = 8$", "<i>L</i> = 8"),
        (r"$a < b$", "<i>a</i> &lt; <i>b</i>"),
        (r"$\mathrm{tr}\, W$ and $-1$", "tr <i>W</i> and −1"),
        (r"$W_{{12}}$", "<i>W</i><sub>12</sub>"),
        (r"$\frac{1}{2}\Vert x\Vert^2$, $\alpha = \frac14$", "1/2‖<i>x</i>‖<sup>2</sup>, α = 1/4"),
        (r"$\langle\varepsilon\rangle$", "⟨ε⟩"),
        (r"$x_", "$x_"),
    ],
)
def test_labels_become_html(label: str, html: str) -> None:
    assert to_html(label) == html


def panel(figure: Figure) -> dict:
    record = describe(figure)
    assert record is not None
    json.dumps(record, allow_nan=False)
    return record["panels"][0]


def test_parts_of_error_bars_belong_to_their_curve_and_lines_of_its_colour_do_not() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 2], [1, 2], "-", color="C0", label="limit")
    axes.errorbar([1, 2], [3, 4], [0.1, 0.2], fmt="o", capsize=2, color="C0", label="measured")
    axes.plot([1, 2], [5, 6], ":", color="C0")
    figure.legend()
    marks = panel(figure)["marks"]
    assert [mark["entries"] for mark in marks if mark["y"][0] == 1] == [[0]]
    assert [mark["entries"] for mark in marks if mark["y"][0] == 5] == [[]]
    others = [mark["entries"] for mark in marks if mark["y"][0] not in (1, 5)]
    assert len(others) == 4  # points, two rows of caps, bars
    assert all(entries == [1] for entries in others)


def test_what_has_no_number_has_no_points() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.errorbar([1, 2, 3], [1, np.nan, 3], [0.1, np.nan, 0.2], fmt="o")
    axes.fill([np.nan], [np.nan])
    assert len(panel(figure)["marks"]) >= 2


def test_curves_keep_their_numbers_and_axes_their_scales() -> None:
    figure, (axes,) = style.blank("Title with $L$")
    axes.plot([1, 2, 4], [1.0, np.nan, 1 / 3], "o--", color=style.GREEN, lw=2.0, label="curve")
    axes.set_yscale("log")
    style.depth_axis(axes, [1, 2, 4])
    axes.legend()
    record = describe(figure)
    (mark,) = record["panels"][0]["marks"]
    assert mark["x"] == [1, 2, 4]
    assert mark["y"] == [1.0, None, 0.3333333]
    assert (mark["color"], mark["marker"], mark["width"]) == ("#009e73", "o", 2.0)
    assert len(mark["dash"]) == 2
    assert record["title"] == "Title with <i>L</i>"
    assert record["panels"][0]["y"]["scale"] == "log"
    assert record["panels"][0]["x"]["ticks"] == [(1.0, "1"), (2.0, "2"), (4.0, "4")]
    assert record["legend"][0]["label"] == "curve"


def test_a_curve_belongs_to_what_the_legend_says_about_it() -> None:
    figure, (left, right) = style.blank("", panels=2)
    left.plot([0, 1], [0, 1], color=style.BLUE, label="a")
    left.plot([0, 1], [0, 2], color=style.BLUE, ls="--", label="b")
    right.plot([0, 1], [0, 1], color=style.BLUE, ls="--")  # as b, without a label
    right.plot([0, 1], [0, 1], color=style.BLUE, ls=":")  # as neither of two
    left.plot([0, 1], [0, 3], color=style.ORANGE, label="c")
    right.plot([0, 1], [0, 3], color=style.ORANGE, ls=":")  # only the colour is known
    right.plot([0, 1], [0, 1], color=style.GREEN)  # unknown
    right.plot([0, 1], [0, 1], color=style.GREEN, gid="a\nb")
    style.legend_below(figure)
    entries = [[mark["entries"] for mark in part["marks"]] for part in describe(figure)["panels"]]
    assert entries == [[[0], [1], [2]], [[1], [], [2], [], [0, 1]]]


def test_lines_and_bands_across_the_axes_and_error_bars() -> None:
    figure, (axes,) = style.blank("")
    axes.axhline(2.0)
    axes.axvline(3.0)
    axes.axhspan(0.0, 1.0, color="#EFEFEF")
    axes.errorbar([0, 1], [1, 2], yerr=[[0.5, 0.5], [0.5, 0.5]], label="bars")
    axes.scatter([0, 1], [1, 2])
    axes.legend()
    kinds = [mark["kind"] for mark in panel(figure)["marks"]]
    assert kinds.count("across") == 2
    assert kinds.count("upright") == 1
    assert kinds.count("curve") == 3
    bars = [mark for mark in panel(figure)["marks"] if None in mark["x"]]
    assert bars[0]["y"] == [0.5, 1.5, None, 1.5, 2.5, None]


def test_what_cannot_be_described_stays_a_picture() -> None:
    figure, (axes,) = style.blank("")
    axes.pcolormesh(np.eye(3))
    assert describe(figure) is None
    figure, (axes,) = style.blank("")
    axes.imshow(np.eye(3))
    assert describe(figure) is None


def test_a_movie_becomes_a_slider_over_what_moves() -> None:
    figure, (axes,) = style.blank("")
    axes.plot([0, 1], [5, 5], color=style.BLACK)
    (moving,) = axes.plot([0, 1], [0, 0], color=style.BLUE)
    movie = Movie(figure, lambda i: moving.set_ydata([i, 2 * i]), np.array([0.0, 0.5, 1.0]), film=False)
    record = describe(movie)
    assert record["slider"]["values"] == [0.0, 0.5, 1.0]
    assert record["slider"]["label"] == "training time <i>t</i>"
    assert record["slider"]["changes"] == [{"panel": 0, "mark": 1, "y": [[0, 0], [1, 2], [2, 4]]}]


def test_a_movie_that_is_no_film_is_saved_as_its_last_frame(tmp_path) -> None:
    figure, (axes,) = style.blank("")
    (moving,) = axes.plot([0, 1], [0, 0])
    movie = Movie(figure, lambda i: moving.set_ydata([i, 2 * i]), np.arange(3), film=False)
    assert [path.name for path in style.save(movie, tmp_path / "last")] == ["last.png", "last.pdf"]
    assert moving.get_ydata() == [2, 4]
