"""The report as its reader has it: in a browser, with a mouse, with the keyboard alone, on a phone, in the dark."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from browser import CHROMIUM, DRIVER, Browser, chromium
from matplotlib.figure import Figure

from neuralode_flow.app.report import Drawn, write_report
from neuralode_flow.figures import FIGURES, style
from neuralode_flow.finding import ERRORS_OF_Z, ErrorTable, Finding

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


def dataset() -> xr.Dataset:
    """A convergence dataset of round numbers: errors 1/L and 1/L², W(t, s) = t + s."""
    depths, times, s = np.array([4, 8, 16]), np.linspace(0, 2, 5), np.array([0.1, 0.5, 0.9])
    errors = np.array([1.0 / depths, 1.0 / depths**2])
    z = np.eye(2) * (1 + times)[:, None, None]
    z_finite = np.broadcast_to(z, (2, 3, 1, 5, 2, 2)) * (1 + errors)[:, :, None, None, None, None]
    W = np.broadcast_to((times[:, None] + s)[..., None, None], (5, 3, 2, 2)) * np.array([[1.0, 2.0], [3.0, 4.0]])
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
            "loss_finite": (("rule", "depth", "member", "time"), np.broadcast_to(np.exp(-times), (2, 3, 1, 5))),
            "W": (("time", "s", "row", "column"), W),
            "W_finite": (("depth", "time", "s", "row", "column"), np.stack([W * (1 + e) for e in errors[0]])),
        },
        {"rule": ["euler", "exp"], "depth": depths, "time": times, "s": s},
        {"problem": "round numbers", "floor": 1e-11, "floor_profile": 1e-11},
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = dataset()
    drawn = {name: Drawn(figure) for name, figure in FIGURES["convergence"](data).items()}
    errors = {str(rule): data.error_z.sel(rule=rule).values for rule in data.rule.values}
    finding = Finding(
        study="convergence",
        problem="round numbers",
        status="ok",
        verdict="All is well.",
        tables=(ErrorTable("Errors by depth", data.depth.values.tolist(), errors, 1e-11, ERRORS_OF_Z),),
    )
    return write_report(
        tmp_path_factory.mktemp("run"), finding.record(), finding.attached(data), "a: 1\n", "run again", drawn
    )


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


def chart(name: str) -> int:
    return list(FIGURES["convergence"](dataset())).index(name)


def shapes(browser: Browser, name: str, panel: int = 0) -> list[str]:
    """The paths of all curves of a panel."""
    script = """const chart = document.querySelectorAll(".chart")[arguments[0]];
        const panel = chart.querySelectorAll(".panel")[arguments[1]];
        return [...panel.querySelectorAll("[data-mark]")].map((node) => node.getAttribute("d"));"""
    return browser.run(script, chart(name), panel)


def texts(browser: Browser, name: str, selector: str) -> list[str]:
    script = """const nodes = document.querySelectorAll(".chart")[arguments[0]].querySelectorAll(arguments[1]);
        return [...nodes].map((node) => node.textContent);"""
    return browser.run(script, chart(name), selector)


def focus(browser: Browser, name: str, selector: str) -> None:
    browser.run(
        "document.querySelectorAll('.chart')[arguments[0]].querySelector(arguments[1]).focus()", chart(name), selector
    )


def press(browser: Browser, name: str, text: str) -> None:
    browser.run(
        """const buttons = document.querySelectorAll(".chart")[arguments[0]].querySelectorAll("button");
        [...buttons].find((button) => button.textContent.trim() === arguments[1]).click();""",
        chart(name), text,
    )  # fmt: skip


def test_all_figures_are_drawn_and_the_verdict_is_first(browser: Browser) -> None:
    assert browser.run("return document.querySelectorAll('.chart').length") == 5
    assert all(len(shapes(browser, name)) >= 3 for name in FIGURES["convergence"](dataset()))
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
    before = len(shapes(browser, "singular_values"))
    press(browser, "singular_values", "L = 8")
    hidden = shapes(browser, "singular_values")
    assert len(hidden) == before - 2  # two singular values
    press(browser, "singular_values", "none")
    assert shapes(browser, "singular_values") == []
    press(browser, "singular_values", "all")
    assert len(shapes(browser, "singular_values")) == before


def test_the_pointer_finds_values(browser: Browser) -> None:
    browser.run("document.querySelectorAll('.chart')[0].scrollIntoView()")
    script = """const node = document.querySelector(".chart .dots").getAttribute("d").match(/M([\\d.]+),([\\d.]+)/);
        const svg = document.querySelector(".chart svg"), box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
        return [box.left + node[1] * box.width / view.width, box.top + node[2] * box.height / view.height];"""
    x, y = browser.run(script)
    browser.mouse(("move", round(x) + 6, round(y) + 3))
    (value,) = texts(browser, "square", ".value")
    assert value.startswith("Euler: 1.00")
    assert "= 4," in value
    assert value.endswith("= 0.25")


WINDOWS = [(360, 740), (1280, 720), (1920, 1080)]  # a phone, a laptop, a wide screen

# Of a panel in the middle of the window: its frame, and a point in the middle of each of its marks.
POINTS = """const chart = document.querySelectorAll(".chart")[arguments[0]];
    const node = chart.querySelectorAll(".panel svg")[arguments[1]];
    node.scrollIntoView({block: "center"});
    const box = node.getBoundingClientRect();
    const centres = [...node.querySelectorAll("[data-mark]")].map((mark) => {
        const points = mark.getAttribute("d").match(/[ML][-\\d.]+,[-\\d.]+/g) || ["M-1,-1"];
        const [x, y] = points[Math.floor(0.6 * points.length)].slice(1).split(",").map(Number);
        return [x + box.left, y + box.top];
    });
    return [[box.left, box.top, box.right, box.bottom], centres];"""

# Where the found point is, and the box of the values, in the window.
FOUND = """const chart = document.querySelectorAll(".chart")[arguments[0]];
    const found = chart.querySelector(".found"), values = chart.querySelector(".value").getBoundingClientRect();
    if (!found) return null;
    const box = found.ownerSVGElement.getBoundingClientRect();
    return [Number(found.getAttribute("cx")) + box.left, Number(found.getAttribute("cy")) + box.top,
        [values.left, values.top, values.right, values.bottom]];"""


def changed_elsewhere(before: np.ndarray, after: np.ndarray, frame: list[float], found: list) -> tuple[int, np.ndarray]:
    """How many pixels changed; by how much those did that are neither at the found point, its guides nor the values."""
    x, y, values = found
    left, top, right, bottom = frame
    rows, columns = np.mgrid[: before.shape[0], : before.shape[1]] + 0.5
    across, upright = (np.abs(rows - y) < 3) & (columns < x), (np.abs(columns - x) < 3) & (rows > y)
    drawn = (across | upright) & (columns > left) & (columns < right) & (rows > top) & (rows < bottom)
    drawn |= np.hypot(rows - y, columns - x) < 8
    drawn |= (columns > values[0]) & (columns < values[2]) & (rows > values[1] - 1) & (rows < values[3] + 1)
    change = np.abs(before - after).max(axis=-1)
    return int((change > 0).sum()), change[(change > 0) & ~drawn]


def point_at_everything(window: Browser, page: Path, most: int = 3) -> int:
    """Points at up to `most` marks of each panel of a page; nothing but the found point and its values may change.

    Returns how many points were found.
    """
    count = 0
    for chart_number in range(window.run("return document.querySelectorAll('.chart').length")):
        script = "return document.querySelectorAll('.chart')[arguments[0]].querySelectorAll('.panel').length"
        for panel in range(window.run(script, chart_number)):
            window.mouse(("move", 1, 1))
            frame, centres = window.run(POINTS, chart_number, panel)
            before = window.pixels()
            found_here = 0
            for x, y in centres[:: max(1, len(centres) // most)]:
                if not (frame[0] < x < frame[2] and frame[1] < y < frame[3]):
                    continue
                window.mouse(("move", round(x), round(y)))
                found = window.run(FOUND, chart_number)
                if found is None:
                    continue
                changed, elsewhere = changed_elsewhere(before, window.pixels(), frame, found)
                assert changed > 20
                assert len(elsewhere) == 0, f"chart {chart_number}, panel {panel}: up to {elsewhere.max()}"
                found_here += 1
            if found_here:  # a found point of the panel before is gone, its values are not
                count += found_here
                window.open(page)
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
    left.axvline(3)
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
    return write_report(folder, record, xr.Dataset(), "a: 1\n", "again", {"looks": Drawn(all_looks())})


@pytest.mark.parametrize("dark", [False, True])
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


def test_only_one_point_is_asked_for_and_none_of_a_hidden_curve(browser: Browser) -> None:
    found = "return [...document.querySelectorAll('.chart')[arguments[0]].querySelectorAll('.found')].length"
    for panel in (0, 1):
        _, centres = browser.run(POINTS, chart("weights"), panel)
        browser.mouse(("move", *map(round, centres[-1])))
        assert browser.run(found, chart("weights")) == 1
    focus(browser, "loss", "svg[tabindex]")
    browser.keys("right")
    assert browser.run(found, chart("loss")) == 1
    browser.keys(*["+"] * 9)  # the point is out of view
    assert (browser.run(found, chart("loss")), texts(browser, "loss", ".value")) == (0, ["\xa0"])
    browser.keys("0")
    assert browser.run(found, chart("loss")) == 1
    press(browser, "loss", "none")
    assert (browser.run(found, chart("loss")), texts(browser, "loss", ".value")) == (0, ["\xa0"])


def test_print_has_no_guides_without_their_values(browser: Browser) -> None:
    focus(browser, "loss", "svg[tabindex]")
    browser.keys("right")
    shown = "return getComputedStyle(document.querySelector(arguments[0])).display"
    for media, seen in (("print", False), ("", True)):
        browser.devtools("Emulation.setEmulatedMedia", media=media)
        parts = (".guide", ".found", ".value", ".tools", ".legend button:not([aria-pressed])")
        assert [browser.run(shown, part) != "none" for part in parts] == [seen] * 5


@pytest.mark.parametrize("dark", [False, True])
def test_focus_grid_and_bands_are_seen_on_the_paper(window: Browser, looks: Path, dark: bool) -> None:
    window.screen(1280, 720, dark)
    window.open(looks)
    left, top, right, bottom = map(round, window.run(POINTS, 0, 0)[0])
    plain = window.pixels()
    window.run("document.querySelector('.panel svg').focus()")
    window.keys("+", "0")  # the focus is shown once a key is pressed
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


def test_a_box_zooms_and_a_double_click_shows_all(browser: Browser) -> None:
    browser.run("document.querySelectorAll('.chart')[0].scrollIntoView()")
    before = shapes(browser, "square")
    left, top = browser.run(
        "const box = document.querySelector('.chart svg').getBoundingClientRect(); return [box.left, box.top]"
    )
    x, y = round(left), round(top)
    browser.mouse(("move", x + 200, y + 60), ("down", 0, 0), ("move", x + 400, y + 200), ("up", 0, 0))
    assert shapes(browser, "square") != before
    browser.run("document.querySelector('.chart svg').dispatchEvent(new MouseEvent('dblclick'))")
    assert shapes(browser, "square") == before


def test_the_keyboard_alone_is_enough(browser: Browser) -> None:
    order = browser.run(
        """const chart = document.querySelectorAll(".chart")[arguments[0]];
        const nodes = [...chart.querySelectorAll("svg[tabindex], input, button")];
        return nodes.filter((node) => node.tabIndex >= 0).length""",
        chart("weights"),
    )
    assert order >= 10
    before = shapes(browser, "loss")
    focus(browser, "loss", "svg[tabindex]")
    browser.keys("right", "right")
    (value,) = texts(browser, "loss", ".value")
    assert "= 0.5," in value
    assert value.endswith("0.606531")
    browser.keys("+", "+")
    assert shapes(browser, "loss") != before
    browser.keys("0")
    assert shapes(browser, "loss") == before
    browser.keys("tab")  # the focus leaves the drawing
    assert browser.run("return document.activeElement.closest('.panel') !== document.querySelector('.panel')")


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_legible_on_a_phone_and_in_the_dark(browser: Browser, dark: bool) -> None:
    browser.screen(360, 740, dark)
    assert browser.run("return document.documentElement.scrollWidth") <= 360
    assert (
        browser.run("return Math.min(...[...document.querySelectorAll('.panel svg')].map((n) => n.clientWidth))") > 280
    )
    assert (
        browser.run("return Math.min(...[...document.querySelectorAll('.chart button')].map((n) => n.clientHeight))")
        >= 28
    )
    script = """const channel = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
        const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(channel);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const paper = light(getComputedStyle(document.body).backgroundColor);
        const ratios = ["p", "td", ".verdict", "figcaption", ".label", ".chart button"].map((selector) => {
            const ink = light(getComputedStyle(document.querySelector(selector)).color);
            return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); });
        return [paper, Math.min(...ratios), getComputedStyle(document.querySelector(".panel svg")).filter];"""
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
