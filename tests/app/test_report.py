"""The report: one page that stands alone, tells the verdict first and escapes whatever it is given."""

from __future__ import annotations

import base64
import io
import json
import math
import platform
import re
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from jinja2 import UndefinedError
from PIL import Image
from reported import write_page

import neuralode_flow as nf
from neuralode_flow import results
from neuralode_flow.app import report
from neuralode_flow.app.records import read_summary
from neuralode_flow.app.report import Drawn
from neuralode_flow.figures import style
from neuralode_flow.finding import MOST_ORDERS, Check, ErrorTable, Finding, finite, sentence
from neuralode_flow.orders import Order

PLOTLY = "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"  # 4.1.1
PIXEL = b"\x89PNG\r\n\x1a\n made up"


def dataset(**changes: Any) -> xr.Dataset:
    depths = np.array([4, 8, 16])
    edges = {
        "Richardson": [1e-1, 2.5e-2, math.nan],
        "left": [0.0, 1e-12, 2e-12],
        "bottom": [0.125, 0.0625, 0.03125],
    }
    finding = Finding(
        study="convergence",
        problem="Fish & <chips>: 3 → 3",
        status="ok",
        verdict="The square commutes to 4e-11.",
        checks=(
            Check("reference", 4e-11, 1e-8, "sup over time"),
            Check("grid", 3e-12),
            Check("time", math.nan),
        ),
        orders=(Order(1.0, 0.004, 3, rule="euler"), Order(2.0, math.nan, 3, rule="exp", expected=2.0)),
        tables=(
            ErrorTable("Errors by depth", depths.tolist(), {"euler": 1.0 / depths, "exp": 3.0 / depths**2}, 1e-10),
            ErrorTable("Other edges", depths.tolist(), edges, 1e-10),
        ),
    )
    return replace(finding, **changes).attached(xr.Dataset())


def summary(**changes: Any) -> dict[str, Any]:
    record = {
        "seconds": 12.34,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
    }
    return record | changes


class Outline(HTMLParser):
    """Checks that tags are balanced and collects what the page points at and says."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def written(folder: Path, data: xr.Dataset, record: dict[str, Any], config: str = "a: 1\n") -> tuple[str, Outline]:
    (folder / "square.png").write_bytes(PIXEL)
    path = write_page(folder, record, data, config, "run x=<y>", {"square": Drawn(picture=folder / "square.png")})
    assert path == folder / "report.html"
    page = path.read_text(encoding="utf-8")
    return page, Outline(page)


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page, outline = written(tmp_path, dataset(), summary())
    assert len(outline.links) == 2
    assert outline.links[0] == "data:,"  # no icon, which a browser would ask for
    assert outline.links[1].startswith("data:image/png;base64,")
    without_names = page.replace("http://www.w3.org/2000/svg", "").replace("url(#", "")
    assert not re.search(r"https?://|@import|url\(", without_names)
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_plotly_is_what_its_makers_have_released() -> None:
    bundle = files("neuralode_flow.app") / "page" / "plotly-cartesian.min.js"
    assert sha256(bundle.read_bytes()).hexdigest() == PLOTLY
    assert b"plotly.js (cartesian - minified) v4.1.1" in bundle.read_bytes()[:100]
    assert "MIT License" in (files("neuralode_flow.app") / "page" / "plotly-LICENSE.txt").read_text()


def test_what_an_order_may_be_off_by_says_over_what_it_was_taken(tmp_path: Path) -> None:
    mean = Order(1.0, 0.02, 4, rule="euler", spread_of="3 members, standard deviation")
    _, outline = written(tmp_path, dataset(orders=(mean, Order(2.0, 0.01, 5, rule="exp"))), summary())
    assert "± 2.00e-02 over 3 members, standard deviation" in outline.text
    assert "± 1.00e-02 over the straight part" in outline.text
    assert str(mean) == "1.00 ± 0.02 over 4 depths (± over 3 members, standard deviation)"


def test_an_error_after_one_that_is_the_solvers_has_no_order(tmp_path: Path) -> None:
    table = ErrorTable("Errors by depth", [4, 8, 16, 32], {"euler": [8e-3, 1e-12, 4e-12, 2e-12]}, 2e-12)
    _, outline = written(tmp_path, dataset(tables=(table,)), summary())
    assert "4.00e-12" in outline.text
    assert "-2.00" not in outline.text


@pytest.mark.parametrize("error", [1.0, math.nan])
def test_a_verdict_whose_checks_fail_is_marked(error: float, tmp_path: Path) -> None:
    page, _ = written(tmp_path, dataset(checks=(Check("reference", error, 1e-8),)), summary())
    assert '<p class="verdict bad">' in page
    page, _ = written(tmp_path, dataset(), summary())
    assert '<p class="verdict">' in page


def test_the_verdict_comes_first_and_the_numbers_follow(tmp_path: Path) -> None:
    _, outline = written(tmp_path, dataset(), summary())
    says = outline.text[outline.text.index("Convergence: Fish & <chips>") :]
    order = ("The square commutes", "Do the training flows", "4.00e-11", "Repeat this run")
    places = [says.index(word) for word in order]
    assert places == sorted(places)
    assert "2.00e-12 " not in outline.text  # no order of an error that is round-off
    for word in (
        "± 4.00e-03",
        "expected 2",
        "bound 1e-08; sup over time",
        "4.69e-02 2.00",
        "3.00e-12",
        "12.3",
        "torch",
        "2.13.0",
        "run x=<y>",
    ):
        assert word in outline.text


def test_the_device_is_named_where_it_is_known(tmp_path: Path) -> None:
    _, outline = written(tmp_path, dataset(), summary(device="cuda:0 (A <chip>)"))
    assert "devicecuda:0 (A <chip>)" in outline.text
    _, outline = written(tmp_path, dataset(), summary())
    assert "devicecuda" not in outline.text


def test_everything_is_escaped(tmp_path: Path) -> None:
    page, outline = written(tmp_path, dataset(verdict="a < b & <script>"), summary(), "x: <script>alert(1)</script>")
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "& <script>" not in page
    assert "a < b & <script>" in outline.text
    assert "x: <script>alert(1)</script>" in outline.text


def test_a_page_that_is_not_given_all_its_parts_is_not_written() -> None:
    with pytest.raises(UndefinedError, match="'good' is undefined"):
        report.page("report.html", title="A title")


def test_a_failure_is_not_hidden(tmp_path: Path) -> None:
    page, outline = written(tmp_path, dataset(status="the step became too small at t = 1.2", verdict=""), summary())
    assert 'class="verdict bad"' in page
    assert "the step became too small at t = 1.2" in outline.text


def test_a_study_without_errors_still_has_its_page(tmp_path: Path) -> None:
    _, outline = written(tmp_path, xr.Dataset(), {"study": "other", "status": "ok"})
    assert "Other" in outline.text
    assert "Errors by depth" not in outline.text
    assert "run x=<y>" in outline.text


def test_a_study_with_a_record_of_its_own_has_its_tables(tmp_path: Path) -> None:
    record = {"study": "other", "status": "ok", "errors": {"euler": [0.5, None]}, "depths": [2, 4], "law_drift": 3e-12}
    _, outline = written(tmp_path, xr.Dataset(), record)
    assert "Errors by depth" in outline.text
    assert "5.00e-01" in outline.text
    assert "law drift3.00e-12" in outline.text


def test_one_depth_has_no_local_orders(tmp_path: Path) -> None:
    one = ErrorTable("Errors by depth", [4], {"euler": [0.25]})
    page, _ = written(tmp_path, dataset(tables=(one,)), summary())
    assert "<small>" not in page.partition("<script>")[0]
    assert "2.50e-01" in page


def test_the_small_copy_of_a_picture_keeps_the_colours_of_curves_apart(tmp_path: Path) -> None:
    colours = [style.BLUE, style.ORANGE, style.GREEN, style.VERMILION, style.PURPLE, style.SKY, style.GREY, style.BLACK]
    figure, (axes,) = style.blank("title")
    for k, colour in enumerate(colours):
        axes.plot([0, 1], [k, k + 1], color=colour)
    (path,) = style.save(figure, tmp_path / "curves", ("png",))
    with Image.open(io.BytesIO(report._small(path.read_bytes()))) as small:
        assert small.size[0] <= 680
        found = np.asarray(small.convert("RGB"), dtype=int).reshape(-1, 3)
    wanted = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours])
    nearest = np.abs(found[None] - wanted[:, None]).max(-1).min(1)
    assert nearest.max() <= 12, dict(zip(colours, nearest, strict=True))


def test_a_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.html").write_text("old")

    def full(path: Path, data: bytes) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(report, "atomic_write", full)
    with pytest.raises(OSError, match="no space"):
        write_page(tmp_path, summary(), dataset(), "", "", {})
    assert (tmp_path / "report.html").read_text() == "old"


def test_a_study_with_ten_thousand_orders_has_a_summary_that_is_read(tmp_path: Path) -> None:
    finding = Finding.of(dataset(orders=tuple(Order(1.0, 0.01, 9, rule=f"curve {i}") for i in range(10_000))))
    (tmp_path / "summary.json").write_text(json.dumps(finite(finding.record()), indent=2))
    assert len(read_summary(tmp_path / "summary.json")["observed_orders"]) == MOST_ORDERS
    results.write(tmp_path / "results.nc", finding.attached(xr.Dataset()))
    assert len(Finding.of(nf.open(tmp_path)).orders) == 10_000
    _, outline = written(tmp_path, finding.attached(xr.Dataset()), summary())
    assert "9988 more orders" in outline.text


def test_when_where_and_what_was_run_is_said_with_links_to_the_files_beside_the_page(tmp_path: Path) -> None:
    config = "problem: {name: teacher, dimension: 3, seed: 7, scale: 0.5}\ninitial: {name: control, shear: 2.0}\n"
    commit = {"git_commit": "0123abc+"}
    _, before = written(tmp_path, dataset().assign_attrs(commit), summary(), config)
    assert not [link for link in before.links if not link.startswith("data:")]  # there is no file yet
    (tmp_path / "figures").mkdir()
    for name in ("results.nc", "config.yaml", "figures/square.pdf", "figures/other.pdf"):
        (tmp_path / name).touch()
    page, outline = written(tmp_path, dataset().assign_attrs(commit), summary(), config)
    links = [link for link in outline.links if not link.startswith("data:")]
    assert links == ["results.nc", "config.yaml", "figures/square.pdf"]
    facts = outline.text.split()
    for words in (
        "Fit a random target: f(z) = ½‖z − T‖², T = I + scale·N with N of independent standard normals.",
        "dimension = 3, seed = 7, scale = 0.5",
        "shear = 2.0",
        "0123abc, with changes that are not committed",
        f"{datetime.now().astimezone():%Y-%m-%d %H:}",
        platform.node(),
    ):
        assert " ".join(words.split()) in " ".join(facts)
    assert "<h2>This run</h2>" in page


@pytest.mark.parametrize("room", [10, 10**6])
def test_a_chart_without_room_leaves_the_whole_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(report, "_MOST_OF_CHARTS", room)
    figure, (axes,) = style.blank("What is seen")
    axes.plot([0, 1], [0, 1])
    (picture,) = style.save(figure, tmp_path / "square", ("png",))
    path = write_page(tmp_path, summary(), dataset(), "", "", {"square": Drawn(figure, picture)})
    whole = base64.b64encode(picture.read_bytes()).decode()
    page = path.read_text(encoding="utf-8")
    assert (whole in page) == (room == 10) == ('<script type="application/json">' not in page)


@pytest.mark.parametrize(("problem", "heading"), [("Fish & $5 <chips>", "What is seen"), ("Other", None)])
def test_a_chart_does_not_repeat_what_the_page_has_said(tmp_path: Path, problem: str, heading: str | None) -> None:
    said = (
        f"{problem}, in one line that is far too long for the title of a figure, so that it is broken into two of them"
    )
    figure, (axes,) = style.blank(f"What is seen\n{style.plain('Fish & $5 <chips>' + said.removeprefix(problem))}")
    axes.plot([0, 1], [0, 1])
    path = write_page(tmp_path, summary(), dataset(problem=said), "a: 1\n", "", {"square": Drawn(figure)})
    (chart,) = re.findall(
        r'<script type="application/json">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL
    )
    record = json.loads(chart)
    assert record["title"].count("\n") == 2
    assert record["heading"] == (heading or record["title"])


@pytest.mark.parametrize("text", ["z of two runs", "σ_a over time", "W(t, s)", "dz/dt of all", "exp(s)", "", "É"])
def test_symbols_are_never_raised(text: str) -> None:
    assert sentence(text) == text
    assert sentence("sup over time of W") == "Sup over time of W"
