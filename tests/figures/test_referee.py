"""What a referee asks of every figure: all axes named, labels that do not touch, full colours, no round-off as data."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from PIL import Image
from small import SMALL, dataset

import neuralode_flow as nf
from neuralode_flow import results
from neuralode_flow.figures import FIGURES, Movie, describe, save, style
from neuralode_flow.figures.swept import Quantity, against
from neuralode_flow.figures.weights import Model, weights

ERRORS = ("error", "distance", "drift")


@pytest.mark.parametrize("study", sorted(SMALL))
def test_what_is_kept_is_drawn_with_all_axes_named_and_labels_that_do_not_touch(study: str, tmp_path: Path) -> None:
    results.write(tmp_path / "results.nc", dataset(study))
    for name, drawn in FIGURES[study](nf.open(tmp_path)).items():
        assert all(path.stat().st_size > 1000 for path in save(drawn, tmp_path / name))
        assert FIGURES[study].captions[name].endswith(".")
        figure = drawn.figure if isinstance(drawn, Movie) else drawn
        figure.set_layout_engine("none")  # that of the saved picture stays
        figure.draw_without_rendering()
        for axes in figure.axes:
            assert axes.get_ylabel(), name
            assert style.BETTER in axes.get_ylabel() or not axes.get_ylabel().startswith(ERRORS), name
            if axes.get_label() == "<colorbar>":
                continue
            assert axes.get_xlabel(), name
            for axis, k in ((axes.xaxis, 0), (axes.yaxis, 1)):
                boxes = [label.get_window_extent() for label in axis.get_ticklabels() if shows(axes, label, k)]
                edges = sorted((box.p0[k], box.p1[k]) for box in boxes)
                assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(edges)), (name, axis)


def shows(axes: Axes, label, k: int) -> bool:
    low, high = sorted((axes.get_xlim(), axes.get_ylim())[k])
    return bool(label.get_text()) and label.get_visible() and low <= label.get_position()[k] <= high


def test_pictures_have_all_colours(tmp_path: Path) -> None:
    figure, (axes,) = style.blank("")
    axes.imshow(np.random.default_rng(0).random((64, 64)), cmap="viridis")
    (path,) = save(figure, tmp_path / "picture", ("png",))
    with Image.open(path) as image:
        assert image.mode in ("RGB", "RGBA")
        assert image.convert("RGB").getcolors(256) is None  # there are more


def layers(L: int, s: np.ndarray) -> np.ndarray:
    """Weights (1, s, 1, 1) of L layers, of which each is its number."""
    return np.minimum((s * L).astype(int), L - 1).astype(float)[None, :, None, None]


def test_layers_are_steps_where_the_nodes_tell_them_apart() -> None:
    s = (np.arange(12) + 0.5) / 12
    models = [Model(f"L = {L}", {"color": style.BLUE}, layers(L, s), np.ones((1, 1)), layers=L) for L in (4, 12, 24)]
    models.append(Model("limit", {"color": style.ORANGE}, s[None, :, None, None], np.ones((1, 1))))
    record = describe(weights("", np.zeros(1), s, models))
    marks = record["panels"][0]["marks"]
    for mark, L in zip(marks[:2], (4, 12), strict=True):
        assert mark["shape"] == "hv"
        assert mark["x"] == pytest.approx(np.arange(L + 1) / L)
        assert mark["y"] == [*range(L), L - 1]
    for mark in marks[2:]:
        assert "shape" not in mark
        assert mark["x"] == pytest.approx(s)


def test_a_smooth_curve_goes_through_its_points_and_keeps_them_as_data(monkeypatch: pytest.MonkeyPatch) -> None:
    figure, (left, right) = style.blank("", panels=2)
    x, y = np.array([0.0, 1.0, 4.0, 5.0]), np.array([1e-8, 1e-2, 1e-1, 1.0])
    (line,) = style.smooth(left, x, y, color=style.BLUE)
    right.set_yscale("log")
    style.smooth(right, x, y, color=style.BLUE)
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(Line2D, "draw", lambda self, renderer: drawn.append(self.get_xydata().copy()))
    figure.draw_without_rendering()
    curves = [points for points in drawn if len(points) == 25]
    assert len({float(points[1, 1]) for points in curves}) == 2  # on a logarithmic axis it is another curve
    for points in curves:
        assert all(np.isclose(points, (a, b)).all(axis=1).any() for a, b in zip(x, y, strict=True))
        assert (np.diff(points[:, 1]) > 0).all()  # monotone as the data are
    np.testing.assert_array_equal(line.get_xydata(), np.column_stack((x, y)))
    (mark,) = describe(figure)["panels"][0]["marks"]
    assert (mark["x"], mark["shape"]) == (x.tolist(), "spline")


def test_a_loss_below_that_of_the_error_of_z_is_round_off_and_not_drawn() -> None:
    data = dataset("lazy_to_rich")
    loss = data.loss.where(data.time < 1, 1e-28).where(data.time != data.time[3], 1e-22)
    spoilt = data.assign(loss=loss, error_z=data.error_z * 0 + 1e-11)
    left = FIGURES["lazy_to_rich"](spoilt)["regimes"].axes[0]
    drawn = np.concatenate([line.get_ydata() for line in left.get_lines()])
    assert np.nanmin(drawn) > 5e-23
    assert np.isnan(drawn).any()
    assert [text.get_text() for text in left.texts] == ["below the solver's own error"]
    assert left.patches[0].get_extents().transformed(left.transData.inverted()).y1 == pytest.approx(5e-23)


def test_words_are_categories_and_runs_that_differ_in_one_number_are_joined() -> None:
    runs = [{"start": start, "size": size} for start in ("a", "long_name_of_a_start") for size in (1, 100)]
    quantity = Quantity("error", np.array([1.0, 2.0, 3.0, np.nan]), aim=2.0)
    figure = against("Title", "value", runs, [quantity])
    words, sizes = describe(figure)["panels"]
    assert words["x"]["names"] == ["a", "long name of a\nstart"]
    assert sizes["x"]["scale"] == "log"
    assert [mark["x"] for mark in sizes["marks"] if mark["kind"] == "curve"] == [[1, 100], [1, 100, 1]]
    assert [mark["y"] for mark in sizes["marks"] if mark["kind"] == "across"] == [[2, 2]]
    assert against("", "", runs[:1], [quantity]) is None
    assert against("", "", runs, [Quantity("x", np.full(4, np.nan))]) is None
    assert against("", "", runs, [Quantity("x", -np.ones(4))], logarithmic=True) is None


def test_rules_of_several_runs_are_told_apart() -> None:
    from neuralode_flow.figures.overlay import overlay

    def run(rules: list[str], factor: float) -> xr.Dataset:
        errors = factor / np.arange(1.0, 1.0 + len(rules))[:, None] / np.array([4.0, 8.0])
        return xr.Dataset({"error_z": (("rule", "depth"), errors)}, {"rule": rules, "depth": [4, 8]})

    figure = overlay({"one": run(["euler", "exp"], 1.0), "two": run(["exp"], 3.0)})["error_z"]
    shown = {
        axes.get_title(): {line.get_label(): line.get_ydata().tolist() for line in axes.get_lines()}
        for axes in figure.axes
    }
    assert shown == {"euler": {"one": [0.25, 0.125]}, "exp": {"one": [0.125, 0.0625], "two": [0.75, 0.375]}}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
