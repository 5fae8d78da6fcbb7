"""The report as its reader has it: in a browser, with a mouse, with the keyboard alone, on a phone, in the dark."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from browser import CHROMIUM, DRIVER, Browser, chromium
from cases import slow
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from reported import write_page

from neuralode_flow.app.report import Drawn
from neuralode_flow.figures import FIGURES, style
from neuralode_flow.finding import ERRORS_OF_Z, ErrorTable, Finding

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


def dataset(samples: int = 5, nodes: int = 3) -> xr.Dataset:
    """A convergence dataset of round numbers: errors 1/L and 1/L², W(t, s) = t + s."""
    depths, times, s = np.array([4, 8, 16]), np.linspace(0, 2, samples), np.linspace(0.1, 0.9, nodes)
    errors = np.array([1.0 / depths, 1.0 / depths**2])
    z = np.eye(2) * (1 + times)[:, None, None]
    z_finite = np.broadcast_to(z, (2, 3, 1, samples, 2, 2)) * (1 + errors)[:, :, None, None, None, None]
    W = np.broadcast_to((times[:, None] + s)[..., None, None], (samples, nodes, 2, 2)) * np.array(
        [[1.0, 2.0], [3.0, 4.0]]
    )
    matrix = ("time", "row", "column")
    return xr.Dataset(
        {
            "z_finite": (("rule", "depth", "member", *matrix), z_finite),
            "z_continuous": (matrix, z),
            "z_intrinsic": (matrix, z),
            "error_z": (("rule", "depth"), errors),
            "error_profile": (("rule", "depth"), errors),
            "error_richardson": ("depth", errors[1]),
            "error_finite_square": ("depth", 1e-12 * depths),
            "error_intrinsic_depth": ("depth", errors[0]),
            "error_reference": ((), 1e-11),
            "error_grid": ((), 1e-12),
            "error_time": ((), 1e-12),
            "order": ("rule", [1.0, 2.0]),
            "order_spread": ("rule", [0.01, 0.01]),
            "order_profile": ("rule", [1.0, 2.0]),
            "order_profile_spread": ("rule", [0.01, 0.01]),
            "order_richardson": ((), 2.0),
            "order_intrinsic_depth": ((), 1.0),
            "loss_continuous": ("time", np.exp(-times)),
            "loss_finite": (("rule", "depth", "member", "time"), np.broadcast_to(np.exp(-times), (2, 3, 1, samples))),
            "W": (("time", "s", "row", "column"), W),
            "W_finite": (("depth", "time", "s", "row", "column"), np.stack([W * (1 + e) for e in errors[0]])),
        },
        {"rule": ["euler", "exp"], "depth": depths, "time": times, "s": s},
        {"problem": "round numbers", "floor": 1e-11, "floor_profile": 1e-11},
    )


def written(folder: Path, data: xr.Dataset) -> Path:
    """The report of a convergence study."""
    drawn = {name: Drawn(figure) for name, figure in FIGURES["convergence"](data).items()}
    errors = {str(rule): data.error_z.sel(rule=rule).values for rule in data.rule.values}
    finding = Finding(
        study="convergence",
        problem="round numbers",
        status="ok",
        verdict="All is well.",
        tables=(ErrorTable("Errors by depth", data.depth.values.tolist(), errors, 1e-11, ERRORS_OF_Z),),
    )
    return write_page(folder, finding.record(), finding.attached(data), "a: 1\n", "run again", drawn)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("run"), dataset())


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(window: Browser, page: Path) -> Iterator[Browser]:
    window.screen(1000, 900)
    window.open(page)
    assert window.log() == []
    yield window
    assert window.log() == []


@cache
def charts() -> list[str]:
    """The charts of a page, in their order."""
    return list(FIGURES["convergence"](dataset()))


def chart(name: str) -> int:
    return charts().index(name)


def shapes(browser: Browser, name: str, panel: int = 0) -> list[str]:
    """What Plotly has drawn of each curve of a panel that is shown: its line and its points."""
    script = """const panel = document.querySelectorAll(".chart")[arguments[0]].querySelectorAll(".plot")[arguments[1]];
        return [...panel.querySelectorAll(".scatterlayer .trace")].map((trace) =>
            [...trace.querySelectorAll("path")].map((path) => path.outerHTML).join());"""
    return browser.run(script, chart(name), panel)


def texts(browser: Browser, name: str, selector: str) -> list[str]:
    script = """const nodes = document.querySelectorAll(".chart")[arguments[0]].querySelectorAll(arguments[1]);
        return [...nodes].map((node) => node.textContent);"""
    return browser.run(script, chart(name), selector)


def focus(browser: Browser, name: str, selector: str) -> None:
    browser.run(
        "document.querySelectorAll('.chart')[arguments[0]].querySelector(arguments[1]).focus()", chart(name), selector
    )


def press(browser: Browser, name: str | int, text: str) -> None:
    browser.run(
        """const buttons = document.querySelectorAll(".chart")[arguments[0]].querySelectorAll("button");
        [...buttons].find((button) => button.textContent.trim() === arguments[1]).click();""",
        chart(name) if isinstance(name, str) else name, text,
    )  # fmt: skip


def test_all_figures_are_drawn_and_the_verdict_is_first(browser: Browser) -> None:
    assert browser.run("return document.querySelectorAll('.chart').length") == 5
    assert all(len(shapes(browser, name)) >= 3 for name in charts())
    assert browser.run("return document.querySelector('h1').nextElementSibling.textContent") == "All is well."
    assert browser.run("return performance.getEntriesByType('resource').length") == 0  # nothing else is loaded


def test_the_slider_moves_the_weights_and_the_singular_values(browser: Browser) -> None:
    before = [shapes(browser, "weights", panel) for panel in (0, 1)]
    focus(browser, "weights", "input[type=range]")
    browser.keys("left", "left")
    after = [shapes(browser, "weights", panel) for panel in (0, 1)]
    assert texts(browser, "weights", "output") == ["1"]
    for old, new in zip(before, after, strict=True):
        assert len(old) == len(new)
        assert all(a != b for a, b in zip(old, new, strict=True))
    browser.keys("right", "right")
    assert [shapes(browser, "weights", panel) for panel in (0, 1)] == before


# At each place of a slider: what stands beside it, and the last curve of either panel as Plotly has drawn it.
WALK = """const chart = document.querySelectorAll(".chart")[arguments[0]];
    const range = chart.querySelector("input[type=range]");
    const drawn = (plot) => plot._fullData[plot._fullData.length - 1].y, seen = [];
    for (let i = 0; i <= Number(range.max); i++) {
        range.value = i;
        range.dispatchEvent(new Event("input"));
        seen.push([chart.querySelector("output").textContent, ...[...chart.querySelectorAll(".plot")].map(drawn)]);
    }
    return seen;"""


@pytest.mark.slow
def test_a_film_of_which_moments_were_left_out_goes_over_those_that_are_kept(window: Browser, tmp_path: Path) -> None:
    data = dataset(samples=201, nodes=400)
    moments = set(data.time.values[::2])  # at most 101 frames are drawn; not all of them fit on the page
    window.open(written(tmp_path, data))
    assert texts(window, "weights", "output") == ["2"]  # it starts at the last one
    note = texts(window, "weights", "figcaption")[0]
    seen = window.run(WALK, chart("weights"))
    assert 10 < len(seen) < 90
    assert f"The slider has {len(seen)} of 101 moments." in note
    times = [float(text) for text, *_ in seen]
    assert times == sorted(set(times))
    assert (times[0], times[-1]) == (0, 2)
    for t, (_, W, sigma) in zip(times, seen, strict=True):
        assert min(abs(t - moment) for moment in moments) < 1e-6
        assert np.allclose(W, t + data.s.values, atol=1e-4)
        assert np.allclose(sigma, 1 + t, atol=1e-4)
    last = [shapes(window, "weights", panel) for panel in (0, 1)]
    focus(window, "weights", "input[type=range]")
    window.keys("home", "right")
    assert float(texts(window, "weights", "output")[0]) == times[1]
    assert all(old != new for panel in (0, 1) for old, new in zip(last[panel], shapes(window, "weights", panel)))
    assert window.log() == []


@pytest.mark.slow
def test_play_runs_to_the_last_time(browser: Browser) -> None:
    press(browser, "weights", "play")
    browser.run("window.seen = new Set()")
    browser.run(
        """const out = document.querySelectorAll(".chart")[arguments[0]].querySelector("output");
        new MutationObserver(() => window.seen.add(out.textContent)).observe(out, {childList: true});""",
        chart("weights"),
    )
    browser.wait(5)
    assert texts(browser, "weights", ".play") == ["play"]
    assert browser.run("return [...window.seen].sort()")[-1] == "2"
    assert browser.run("return window.seen.size") >= 3


def test_depths_can_be_hidden(browser: Browser) -> None:
    before = shapes(browser, "singular_values")
    press(browser, "singular_values", "L = 8")
    assert len(shapes(browser, "singular_values")) == len(before) - 4  # two singular values, with their points
    press(browser, "singular_values", "none")
    assert shapes(browser, "singular_values") == []
    press(browser, "singular_values", "all")
    assert shapes(browser, "singular_values") == before


def test_areas_have_no_values(window: Browser, looks: Path) -> None:
    window.screen(1280, 720)
    window.open(looks)
    script = """const area = document.querySelector(".js-fill");
        const places = area.getAttribute("d").match(/[-\\d.]+,[-\\d.]+/g);
        return places.slice(0, 3).map((place) => {
            const at = new DOMPoint(...place.split(",")).matrixTransform(area.getScreenCTM());
            return [at.x, at.y]; });"""
    corners = np.array(window.run(script))
    for x, y in (corners[2], corners.mean(axis=0)):
        window.mouse(("move", round(x), round(y)))
        assert hovered(window) == []
    window.screen(1000, 900)


def test_a_legend_of_lines_across_hides_them_too(window: Browser, looks: Path) -> None:
    window.open(looks)
    count = "return document.querySelectorAll('.plot .shapelayer path').length"
    before = window.run(count)
    press(window, 0, "across")
    assert window.run(count) == before - 1


def hovered(browser: Browser) -> list[str]:
    """What stands beside the pointer."""
    browser.wait(0.3)
    return browser.run("return [...document.querySelectorAll('.hovertext')].map((node) => node.textContent)")


def test_the_pointer_finds_values(browser: Browser) -> None:
    browser.run("document.querySelectorAll('.chart')[0].scrollIntoView()")
    script = """const box = document.querySelector(".chart .points path").getBoundingClientRect();
        return [box.left + box.width / 2, box.top + box.height / 2];"""
    x, y = browser.run(script)
    browser.mouse(("move", round(x) + 6, round(y) + 3))
    (value,) = hovered(browser)
    assert value.startswith("Euler: 1.00")
    assert "= 4" in value
    assert value.endswith("= 0.25")


WINDOWS = [(360, 740), (1280, 720), (1920, 1080)]  # a phone, a laptop, a wide screen

# Of a panel in the middle of the window: its frame, and a point in the middle of each of its curves.
POINTS = """const node = document.querySelectorAll(".chart")[arguments[0]].querySelectorAll(".plot")[arguments[1]];
    node.scrollIntoView({block: "center"});
    const box = node.querySelector(".nsewdrag").getBoundingClientRect();
    const centres = [...node.querySelectorAll(".scatterlayer .trace")].map((trace) => {
        const points = [...trace.querySelectorAll(".points path")];
        if (points.length) {
            const place = points[Math.floor(0.6 * points.length)].getBoundingClientRect();
            return [place.left + place.width / 2, place.top + place.height / 2];
        }
        const line = trace.querySelector(".js-line, .js-fill");
        const found = line.getAttribute("d").match(/[-\\d.]+,[-\\d.]+/g);
        const [x, y] = found[Math.floor(0.6 * found.length)].split(",").map(Number);
        const at = new DOMPoint(x, y).matrixTransform(line.getScreenCTM());
        return [at.x, at.y];
    });
    return [[box.left, box.top, box.right, box.bottom], centres];"""

# The boxes of what is told beside the pointer.
TOLD = """return [...document.querySelectorAll(".hovertext")].map((node) => {
    const box = node.getBoundingClientRect();
    return [box.left, box.top, box.right, box.bottom]; });"""


def changed_elsewhere(before: np.ndarray, after: np.ndarray, told: list[list[float]]) -> tuple[int, np.ndarray]:
    """How many pixels changed; by how much those did that are not in the boxes of what is told."""
    rows, columns = np.mgrid[: before.shape[0], : before.shape[1]] + 0.5
    inside = np.zeros(before.shape[:2], dtype=bool)
    for left, top, right, bottom in told:
        inside |= (columns > left - 2) & (columns < right + 2) & (rows > top - 2) & (rows < bottom + 2)
    change = np.abs(before - after).max(axis=-1)
    return int((change > 0).sum()), change[(change > 0) & ~inside]


def point_at_everything(window: Browser, page: Path, most: int = 3) -> int:
    """Points at up to `most` curves of each panel of a page; nothing may change but what is told beside the pointer.

    Returns how many points were found.
    """
    count = 0
    window.open(page)
    for chart_number in range(window.run("return document.querySelectorAll('.chart').length")):
        script = "return document.querySelectorAll('.chart')[arguments[0]].querySelectorAll('.plot').length"
        for panel in range(window.run(script, chart_number)):
            window.mouse(("move", 1, 1))
            frame, centres = window.run(POINTS, chart_number, panel)
            window.wait(0.15)  # what was told before is gone
            before = window.pixels()
            for x, y in centres[:: max(1, len(centres) // most)]:
                if not (frame[0] < x < frame[2] and frame[1] < y < frame[3]):
                    continue
                window.mouse(("move", round(x), round(y)))
                window.wait(0.15)
                told = window.run(TOLD)
                if not told:
                    continue
                changed, elsewhere = changed_elsewhere(before, window.pixels(), told)
                assert changed > 20
                assert len(elsewhere) == 0, f"chart {chart_number}, panel {panel}: up to {elsewhere.max()}"
                count += 1
    return count


def light_of(colour: np.ndarray) -> float:
    """The relative luminance of a colour, by WCAG."""
    parts = np.asarray(colour) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """From 1 to 21."""
    dark, light = sorted(map(light_of, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def all_looks() -> Figure:
    """Lines, dashes, points, bands, bars, spans, a triangle and a crossing line, on linear and on logarithmic axes."""
    figure, (left, right) = style.blank("All looks", panels=2)
    x = np.linspace(1, 5, 9)
    left.plot(x, x**2, label="line")
    left.plot(x, 20 - x, ls="--", marker="o", label="dashes")
    left.scatter(x, 10 + np.sin(x), label="points")
    left.axhspan(2, 4, color="#EFEFEF")
    left.axvline(3, color="#D55E00", label="across")
    left.fill([1, 2, 2], [20, 20, 24], facecolor="#E69F00", edgecolor="#000000")
    right.errorbar(x, x**-2.0, yerr=0.3 * x**-2.0, marker="^", label="bars")
    right.loglog(x, x**-1.0, ls=":", marker="x", label="crosses")
    style.triangle(right, (1, 2), 0.1, -2, "−2")
    style.legend_below(figure)
    return figure


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    record = {"study": "convergence", "status": "ok", "verdict": "All is well."}
    folder = tmp_path_factory.mktemp("looks")
    return write_page(folder, record, xr.Dataset(), "a: 1\n", "again", {"looks": Drawn(all_looks())})


@pytest.mark.parametrize("dark", [False, *slow(True)])
def test_a_pointer_changes_nothing_but_the_found_point_and_its_values(window: Browser, looks: Path, dark: bool) -> None:
    window.screen(1280, 720, dark)
    window.open(looks)
    assert point_at_everything(window, looks) >= 4
    window.screen(1000, 900)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The reports of a convergence study and of a trajectory, run by the command."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "neuralode_flow", "problem=linnerud", "time.samples=9"]
    for study in (["study.depths=[4,8,16]"], ["study=trajectory", "study.estimate=false"]):
        subprocess.run([*command, *study], cwd=folder, check=True, capture_output=True)
    return sorted(folder.glob("runs/*/*/report.html"))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "dark"), [(size, bool(i % 2)) for i, size in enumerate(WINDOWS)])
def test_so_it_is_in_every_chart_of_real_runs(
    window: Browser, looks: Path, runs: list[Path], size: tuple[int, int], dark: bool
) -> None:
    assert [page.parent.parent.name for page in runs] == ["convergence", "trajectory"]
    window.screen(*size, dark)
    for page in (looks, *runs):
        window.open(page)
        assert point_at_everything(window, page) >= 5
    window.screen(1000, 900)


def test_print_has_no_controls(browser: Browser) -> None:
    shown = "return getComputedStyle(document.querySelector(arguments[0])).display"
    for media, seen in (("print", False), ("", True)):
        browser.devtools("Emulation.setEmulatedMedia", media=media)
        parts = (".modebar", ".time button", "details", ".legend button:not([aria-pressed])")
        assert [browser.run(shown, part) != "none" for part in parts] == [seen] * 4


@pytest.mark.parametrize("dark", [False, True])
def test_focus_grid_and_bands_are_seen_on_the_paper(window: Browser, looks: Path, dark: bool) -> None:
    window.screen(1280, 720, dark)
    window.open(looks)
    left, top, right, bottom = map(round, window.run(POINTS, 0, 0)[0])
    plain = window.pixels()
    window.run("document.querySelector('.modebar-btn').focus({preventScroll: true})")
    window.keys("tab")  # the focus is shown once a key is pressed
    focused = window.pixels()
    window.screen(1000, 900)
    paper = plain[2, 2]
    inside = plain[top + 15 : bottom - 40, left + 80 : right - 20].reshape(-1, 3)
    colours, counts = np.unique(inside, axis=0, return_counts=True)
    seen = [contrast(colour, paper) for colour in colours[counts > 1000]]  # the paper, the band, the grid
    assert len(seen) >= 3
    assert sorted(seen)[1] > 1.1
    outline = focused[(focused != plain).any(axis=-1)]
    assert contrast(np.median(outline, axis=0), paper) > 3  # WCAG, of what is no text


@pytest.mark.slow
def test_a_box_zooms_and_a_double_click_shows_all(browser: Browser) -> None:
    before = shapes(browser, "square")
    (left, top, _, _), _ = browser.run(POINTS, 0, 0)
    x, y = round(left), round(top)
    browser.mouse(("move", x + 200, y + 60), ("down", 0, 0), ("move", x + 400, y + 200), ("up", 0, 0))
    browser.wait(0.5)
    zoomed = shapes(browser, "square")
    assert zoomed != before
    browser.run("document.querySelector('.legend button').click()")  # what is hidden leaves the view as it was
    assert set(shapes(browser, "square")) < set(zoomed)
    browser.run("document.querySelector('.legend button').click()")
    browser.mouse(*[("move", x + 300, y + 100), ("down", 0, 0), ("up", 0, 0), ("down", 0, 0), ("up", 0, 0)])
    browser.wait(0.5)
    assert shapes(browser, "square") == before


def test_a_view_between_the_ticks_of_a_figure_has_ticks(browser: Browser) -> None:
    ticks = "return [...document.querySelector('.plot').querySelectorAll('.xtick')].map((node) => node.textContent)"
    assert browser.run(ticks) == ["4", "8", "16"]
    (left, top, right, _), _ = browser.run(POINTS, 0, 0)
    middle, y = round((left + right) / 2), round(top)
    browser.mouse(("move", middle + 30, y + 60), ("down", 0, 0), ("move", middle + 80, y + 200), ("up", 0, 0))
    browser.wait(0.5)
    assert len(browser.run(ticks)) >= 2
    assert "8" not in browser.run(ticks)


def test_an_axis_that_is_linear_around_zero(window: Browser, tmp_path: Path) -> None:
    figure, (axes,) = style.blank("Long")
    axes.plot([0.0, 0.5, 1.0, 10.0, 1000.0], [0.0, 1.0, 2.0, 3.0, 4.0], "o", label="curve")
    axes.set_xscale("symlog", linthresh=1.0)
    style.legend_below(figure)
    page = write_page(tmp_path, {"study": "convergence"}, xr.Dataset(), "", "", {"long": Drawn(figure)})
    window.screen(1000, 900)
    window.open(page)
    script = """const box = (node) => { const b = node.getBoundingClientRect(); return b.left + b.width / 2; };
        return [[...document.querySelectorAll(".points path")].map(box),
            [...document.querySelectorAll(".xtick text")].map((node) => [node.textContent, box(node)])];"""
    points, ticks = window.run(script)
    steps = np.diff(points)
    assert np.allclose(steps, steps[0] * np.array([1, 1, 2, 4]), rtol=0.02)  # 0, ½, 1, 10, 1000: 0, ½, 1, 2, 4
    places = dict(ticks)
    for value, at in (("0", points[0]), ("1", points[2]), ("10", points[3]), ("1000", points[4])):
        assert abs(places[value] - at) < 1
    _, centres = window.run(POINTS, 0, 0)
    window.mouse(("move", *map(round, centres[0])))
    assert hovered(window) == ["curvex = 10y = 3"]
    assert window.log() == []


@pytest.mark.slow
def test_the_keyboard_alone_is_enough(browser: Browser) -> None:
    before = shapes(browser, "loss")
    for title, back in (("Zoom in", False), ("Reset axes", True), ("Zoom out", False), ("Reset axes", True)):
        focus(browser, "loss", f"[data-title='{title}']")
        browser.keys("enter")
        browser.wait(0.5)
        assert (shapes(browser, "loss") == before) == back
    focus(browser, "loss", ".legend button")
    browser.keys("enter")
    assert shapes(browser, "loss") != before
    browser.keys("enter")
    assert shapes(browser, "loss") == before
    focus(browser, "loss", "summary")
    browser.keys("enter")
    browser.wait(0.3)
    first = texts(browser, "loss", "details tr")[1]
    assert (first[:2], first.count("1")) == ("01", 4)  # t = 0: the loss is 1 in each of the four columns
    browser.keys("tab")  # to the table, which scrolls
    assert browser.run("return document.activeElement.className") == "scroll"


def test_the_table_has_the_numbers_of_what_is_shown(browser: Browser) -> None:
    focus(browser, "weights", "summary")
    browser.keys("enter")
    browser.wait(0.3)
    rows = "details .scroll:last-child tr"  # the singular values of z, 1 + t times 1 + 1/L
    assert texts(browser, "weights", rows)[0].endswith("L = 4L = 8L = 16continuous depthintrinsic limit")
    assert texts(browser, "weights", rows)[1:] == ["13.753.3753.187533", "23.753.3753.187533"]
    focus(browser, "weights", "input[type=range]")
    browser.keys("home")
    assert texts(browser, "weights", rows)[1] == "11.251.1251.062511"
    press(browser, "weights", "L = 8")
    assert texts(browser, "weights", rows)[1] == "11.251.062511"
    press(browser, "weights", "none")
    assert texts(browser, "weights", "details td") == []


def test_labels_of_others_are_text(window: Browser, tmp_path: Path) -> None:
    figure, (axes,) = style.blank("<b>Title</b> & %{x}")
    axes.plot([1, 2], [1, 2], "o", label='<img src=x onerror="alert(1)"> %{y} & "q"')
    axes.set_xlabel("a < b")
    axes.text(1.2, 1.5, "<i>text</i> & more")
    style.legend_below(figure)
    page = write_page(tmp_path, {"study": "convergence"}, xr.Dataset(), "", "", {"hostile": Drawn(figure)})
    window.open(page)
    _, centres = window.run(POINTS, 0, 0)
    window.mouse(("move", *map(round, centres[0])))
    assert hovered(window) == ['<img src=x onerror="alert(1)"> %{y} & "q"a < b = 2y = 2']
    assert window.run("return document.querySelector('.annotation-text').textContent") == "<i>text</i> & more"
    assert window.run("return document.querySelectorAll('.chart img').length") == 0
    assert window.log() == []


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_legible_on_a_phone_and_in_the_dark(browser: Browser, dark: bool) -> None:
    browser.screen(360, 740, dark)
    assert browser.run("return document.documentElement.scrollWidth") <= 360
    assert browser.run("return Math.min(...[...document.querySelectorAll('.plot')].map((n) => n.clientWidth))") > 280
    assert (
        browser.run("return Math.min(...[...document.querySelectorAll('.legend button')].map((n) => n.clientHeight))")
        >= 28
    )
    script = """const channel = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
        const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(channel);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const paper = light(getComputedStyle(document.body).backgroundColor);
        const ratios = ["p", "td", ".verdict", "figcaption", ".label", ".legend button"].map((selector) => {
            const ink = light(getComputedStyle(document.querySelector(selector)).color);
            return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); });
        return [paper, Math.min(...ratios), getComputedStyle(document.querySelector(".plot")).filter];"""
    paper, contrast, drawing = browser.run(script)
    assert (paper < 0.05) == dark
    assert contrast > 4.5  # WCAG AA
    assert ("invert" in drawing) == dark
    browser.screen(1000, 900)


def test_the_page_of_a_sweep_opens_too(window: Browser, tmp_path: Path) -> None:
    from neuralode_flow.app.collect import Collected, sweep_page

    record = {"member": "0", "problem.seed": 0, "study": "convergence", "status": "ok", "verdict": "Fine.", "loss": 1.0}
    records = [record, record | {"member": "1", "problem.seed": 1, "loss": 2.0},
               {"member": "2", "problem.seed": 2, "status": "the sky </script> fell"}]  # fmt: skip
    sweep = Collected(records, ["problem.seed"], {"0": dataset(), "1": dataset()}, None)
    (tmp_path / "report.html").write_bytes(sweep_page(tmp_path, sweep))
    window.open(tmp_path / "report.html")
    assert window.log() == []
    assert "2 of 3 members have finished" in window.run("return document.querySelector('.verdict').textContent")
    assert "the sky </script> fell" in window.run("return document.querySelector('table').textContent")
    assert window.run("return document.querySelectorAll('.chart').length") >= 2
    assert json.loads(window.run("return document.querySelector('.chart script').textContent"))["legend"]


def test_words_steps_and_curves_are_drawn_as_such(window: Browser, tmp_path: Path) -> None:
    figure, (left, right) = style.blank("Kinds\nround numbers", panels=2)
    style.category_axis(left, ["<b>one</b>", "two words"])
    left.plot([-0.2, 1.2], [1.0, 2.0], "o", label="found")
    right.plot([0.0, 0.5, 1.0], [1.0, 2.0, 2.0], drawstyle="steps-post", label="steps")
    style.smooth(right, np.array([0.0, 0.5, 1.0]), np.array([3.0, 5.0, 4.0]), label="curve")
    finding = Finding(study="convergence", problem="round numbers", status="ok", verdict="All is well.")
    data = finding.attached(xr.Dataset())
    window.open(write_page(tmp_path, finding.record(), data, "a: 1\n", "again", {"kinds": Drawn(figure)}))
    assert window.run("return document.querySelector('.chart .title').textContent") == "Kinds"  # the rest is above
    ticks = (
        "return [...document.querySelectorAll('.plot')[0].querySelectorAll('.xtick')].map((tick) => tick.textContent)"
    )
    assert window.run(ticks) == ["<b>one</b>", "two words"]
    lines = "[...document.querySelectorAll('.plot')[1].querySelectorAll('.js-line')]"
    steps, curve = window.run(f"return {lines}.map((line) => line.getAttribute('d'))")
    assert {"H", "V"} <= set(steps)  # along and up, and never slanting
    assert not {"L", "C", "Q"} & set(steps)
    assert curve.count("L") >= 16
    window.run("document.querySelector('.chart summary').click()")
    window.wait(0.3)
    cells = "[...document.querySelector('.chart details table').querySelectorAll('td')]"
    assert window.run(f"return {cells}.map((cell) => cell.textContent)") == ["<b>one</b>", "1", "two words", "2"]
    assert window.log() == []


def test_curves_are_those_of_the_figure_and_stay_between_their_points(window: Browser, tmp_path: Path) -> None:
    at = np.cumsum([0.0, 1.0, 0.1, 0.3, 0.1, 2.0])
    figure, panels = style.blank("Curves", panels=2)
    panels[1].set_yscale("log")
    for panel, x, y in (
        (0, at, [1.0, 1.0, 0.9, 0.1, 0.1, 0.2]),  # from one plateau to another
        (0, [0.0, 1.0, 0.5, -1.0], [0.0, 1.0, 3.0, 2.0]),  # back over itself
        (1, at, [1.0, 1e-1, 1e-7, 1e-8, 1e-8, 1e-3]),
        (1, at[:2], [1.0, 2.0]),
        (1, at, [1.0, np.nan, 0.1, 0.1, 0.1, 0.2]),
    ):
        style.smooth(panels[panel], np.array(x), np.array(y))
    seen: dict[Line2D, np.ndarray] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Line2D, "draw", lambda self, renderer: seen.update({self: self.get_xydata().copy()}))
        figure.draw_without_rendering()
    expected = [seen[line] for axes in panels for line in axes.get_lines()]
    record = {"study": "convergence", "status": "ok", "verdict": "All is well."}
    window.open(write_page(tmp_path, record, xr.Dataset(), "a: 1\n", "again", {"curves": Drawn(figure)}))
    script = """return [...document.querySelectorAll(".plot")].flatMap((plot) => plot.data)
        .filter((trace) => trace.mode === "lines").map((trace) => [trace.x, trace.y, trace.line.shape]);"""
    drawn = window.run(script)
    assert [len(points) for points in expected] == [41, 25, 41, 2, 6]
    for (x, y, shape), points in zip(drawn, expected, strict=True):
        assert shape == "linear"
        np.testing.assert_allclose(np.array([x, y], dtype=float), points.T, rtol=1e-6, atol=1e-9)
    told = """return [...document.querySelectorAll(".plot")].flatMap((plot) => plot.data)
        .filter((trace) => trace.mode === "markers").map((trace) => trace.customdata.length);"""
    assert window.run(told) == [6, 4, 6, 2, 6]  # a reader is told the points and no others
    assert window.log() == []


PLACE = """const plot = document.querySelectorAll(".plot")[arguments[0]], { xaxis, yaxis } = plot._fullLayout;
    const box = plot.getBoundingClientRect();
    return [box.left + xaxis._offset + xaxis.d2p(arguments[1]), box.top + yaxis._offset + yaxis.d2p(arguments[2])];"""


def test_markers_may_be_hollow_and_pale_and_error_bars_are_as_long_as_their_errors(
    window: Browser, tmp_path: Path
) -> None:
    figure, (left, right) = style.blank("Looks", panels=2)
    for x, look in ((1, {}), (2, {"fillstyle": "none"}), (3, {"alpha": 0.3})):
        left.plot([x], [1.0], "s", ms=20, color=style.VERMILION, label=f"look {x}", **look)
    left.set_xlim(0, 4)
    right.errorbar(
        [1.0, 2.0], [10.0, 10.0], [[5.0, 9.0], [10.0, 90.0]], fmt="o", color=style.BLUE, elinewidth=4, label="bars"
    )
    right.set(yscale="log", ylim=(0.5, 200), xlim=(0, 3))
    style.legend_below(figure)
    finding = Finding(study="convergence", problem="round numbers", status="ok", verdict="All is well.")
    data = finding.attached(xr.Dataset())
    window.screen(1000, 900)
    window.open(write_page(tmp_path, finding.record(), data, "a: 1\n", "again", {"looks": Drawn(figure)}))
    pixels = window.pixels().astype(float)

    def at(panel: int, x: float, y: float, beside: int = 0) -> np.ndarray:
        """The colour at a place, or beside it, where the grid has no line."""
        left, top = map(round, window.run(PLACE, panel, x, y))
        return pixels[top + beside, left + beside]

    full, hollow, pale = (at(0, x, 1.0, 3) for x in (1, 2, 3))
    paper = pixels[2, 2]
    assert np.abs(full - [0xD5, 0x5E, 0x00]).max() < 8
    assert np.abs(hollow - paper).max() < 8
    assert np.abs(pale - (0.3 * full + 0.7 * paper)).max() < 8
    for x, low, high in ((1.0, 5.0, 20.0), (2.0, 1.0, 100.0)):
        for y, drawn in ((1.1 * low, True), (0.9 * high, True), (0.8 * low, False), (1.2 * high, False)):
            assert (np.abs(at(1, x, y) - [0x00, 0x72, 0xB2]).max() < 60) == drawn, (x, y)
    signs = window.run("return [...document.querySelectorAll('.legend svg text')].map((node) => node.textContent)")
    assert signs[:3] == ["■", "□", "■"]
    assert window.log() == []
