"""The page of a sweep answers what was swept: a sweep over a category and two numbers, with a control that fails."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import neuralode_flow as nf
from neuralode_flow.app import collect, swept
from neuralode_flow.app.collected import Collected
from neuralode_flow.app.joined import joined
from neuralode_flow.app.sweeppage import _caption, sweep_page
from neuralode_flow.finding import Check, ErrorTable, Finding

SWEEP = (
    "-m", "problem=teacher", "problem.scale=0.3", "initial=relaxed_balanced,control", "problem.seed=0,1",
    "problem.dimension=2,3", "study.depths=[4,8,16,32]", "study.layers=[euler,exp]", "time.horizon=0.5",
    "time.samples=3", "figures=none", "hydra.sweep.dir=sweep",
)  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Its folder, collected, and what its terminal has said."""
    place = tmp_path_factory.mktemp("swept")
    command = [sys.executable, "-m", "neuralode_flow", *SWEEP]
    ended = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True)
    collect.main([str(place / "sweep")])
    return place / "sweep", ended.stdout


def page(sweep: tuple[Path, str]) -> str:
    return (sweep[0] / "report.html").read_text(encoding="utf-8")


def charts(text: str) -> dict[str, dict]:
    """The charts of a page by their titles."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    return {record["title"]: record for record in map(json.loads, found)}


def finding(sweep: tuple[Path, str], member: int) -> Finding:
    return Finding.of(nf.open(sweep[0] / str(member)))


def rows(text: str, title: str) -> list[list[str]]:
    """The cells of the table in a section."""
    (section,) = re.findall(rf"<h2>{re.escape(title)}</h2>(.*?)</table>", text, re.DOTALL)
    lines = re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.DOTALL) for line in lines]


@pytest.mark.slow
def test_the_terminal_has_one_line_for_each_member(sweep: tuple[Path, str]) -> None:
    lines = sweep[1].splitlines()
    assert len(lines) == 1 + 8  # Hydra says first how many there are
    for i, line in enumerate(lines[1:]):
        initial = ("relaxed_balanced", "control")[i // 4]
        assert line.startswith(f"{i} (initial={initial} problem.seed={i // 2 % 2} problem.dimension={2 + i % 2}): ok; ")
        told = [f"{o.rule} {'–' if o.reason else format(o.value, '.2f')}" for o in finding(sweep, i).orders]
        assert f"orders {', '.join(told)}; " in line
        checks = [check.holds for check in finding(sweep, i).checks if check.bound is not None]
        assert f"; {sum(checks)} of 4 checks hold; " in line
    assert "; not reference: continuous model minus intrinsic limit" in lines[-1]


@pytest.mark.slow
def test_orders_errors_and_checks_of_each_member_stand_beside_its_settings(sweep: tuple[Path, str]) -> None:
    text = page(sweep)
    head, *orders = rows(text, "Observed orders")
    assert head == ["member", "dimension", "seed", "initial", "euler (expected 1)", "exp (expected 2)"]
    head, *errors = rows(text, "Errors by depth at L = 32")
    assert head[-2:] == ["euler", "exp"]
    head, *checks = rows(text, "Checks")
    assert "reference: continuous model minus intrinsic limit (bound 1e-08)" in head
    for i in range(8):
        settings = [str(i), str(2 + i % 2), str(i // 2 % 2), ("relaxed_balanced", "control")[i // 4]]
        own = finding(sweep, i)
        assert orders[i] == settings + [
            "– undecided" if order.reason else f"{order.value:.3f} ± {order.spread:.3f}" for order in own.orders
        ]
        assert errors[i] == settings + [f"{column[-1]:.2e}" for column in own.tables[0].errors.values()]
        assert checks[i][4] == f"{own.checks[0].error:.2e}{' fails' * (i >= 4)}"


@pytest.mark.slow
def test_checks_that_do_not_hold_come_before_all_else(sweep: tuple[Path, str]) -> None:
    text = page(sweep)
    _, *broken = rows(text, "Checks that do not hold")
    assert {row[0] for row in broken if row[-1].startswith("reference")} == {"4", "5", "6", "7"}
    assert f"{len(broken)} checks of " in text
    assert text.index("Checks that do not hold") < text.index("<h2>Figures</h2>") < text.index("<h2>Members</h2>")


@pytest.mark.slow
def test_charts_have_words_as_categories_and_numbers_as_numbers(sweep: tuple[Path, str]) -> None:
    record = charts(page(sweep))["Observed orders"]
    dimension, seed, initial = record["panels"]
    assert [panel["x"]["label"] for panel in record["panels"]] == ["dimension", "seed", "initial"]
    assert initial["x"]["names"] == ["relaxed\nbalanced", "control"]
    assert "names" not in dimension["x"]
    assert [label for _, label in dimension["x"]["ticks"]] == ["2", "3"]
    for panel, place in ((dimension, lambda i: 2 + i % 2), (seed, lambda i: i // 2 % 2), (initial, lambda i: i // 4)):
        for k, rule in enumerate(("euler", "exp")):
            (mark,) = [mark for mark in panel["marks"] if mark.get("name") == rule]
            orders = {i: finding(sweep, i).orders[k] for i in range(8)}
            known = [i for i, order in orders.items() if not order.reason]
            assert len(known) >= 4
            assert [round(x) for x in mark["x"]] == [place(i) for i in known]
            assert mark["y"] == pytest.approx([orders[i].value for i in known], rel=1e-6)


@pytest.mark.slow
def test_curves_are_labelled_by_their_settings_and_rules_have_panels_of_their_own(sweep: tuple[Path, str]) -> None:
    (record,) = [chart for title, chart in charts(page(sweep)).items() if title.startswith("Sup over time of the Frob")]
    assert [panel["title"] for panel in record["panels"]] == ["euler", "exp"]
    labels = [entry["label"] for entry in record["legend"]]
    assert len(set(labels)) == 8
    assert labels[5] == "dimension = 3, seed = 0, initial = control"
    for k, panel in enumerate(record["panels"]):
        marks = [mark for mark in panel["marks"] if mark["kind"] == "curve"]
        assert [mark["name"] for mark in marks] == labels
        expected = nf.open(sweep[0] / "5").error_z.values[k]
        assert marks[5]["y"] == pytest.approx(expected.tolist(), rel=1e-6)


def test_what_forged_findings_state_is_left_out() -> None:
    good = Finding(study="x", problem="", status="ok", verdict="")
    for forged in ('{"orders": 3}', "[", '{"claim": null, "checks": [{}], "orders": [], "tables": []}'):
        dataset = good.attached(xr.Dataset()).assign_attrs(finding=forged)
        assert swept.findings({"0": dataset}) == {}
    assert swept.groups(swept.findings({})) == []


def sweep_of(*findings: Finding) -> Collected:
    """A sweep over seeds whose members have found that."""
    datasets = {str(i): found.attached(xr.Dataset()) for i, found in enumerate(findings)}
    records = [{"member": name, "seed": i, "study": "x", "status": "ok"} for i, name in enumerate(datasets)]
    return Collected(records, ["seed"], datasets, None)


def stating(**checks: Check) -> Finding:
    return Finding(study="x", problem="", status="ok", verdict="", checks=tuple(checks.values()))


def test_what_must_be_large_is_not_among_what_must_be_small(tmp_path: Path) -> None:
    small, large = Check("error", 1e-9, 1e-8), Check("control", 0.5, 1e-8, least=True)
    text = sweep_page(tmp_path, sweep_of(stating(a=small, b=large), stating(a=small, b=large))).decode()
    assert rows(text, "Checks")[0] == ["member", "seed", "error (bound 1e-08)"]
    assert rows(text, "Checks of what must be large")[0] == ["member", "seed", "control (at least 1e-08)"]
    labels = {title: record["panels"][0]["y"]["label"] for title, record in charts(text).items()}
    assert labels == {
        "Checks": "error (smaller is better)", "Checks of what must be large": "value (larger is better)"
    }  # fmt: skip


def test_a_check_without_a_number_says_so_as_all_tables_do(tmp_path: Path) -> None:
    text = sweep_page(tmp_path, sweep_of(stating(a=Check("order", math.nan, 0.1)), stating(a=Check("order", 0.0, 0.1))))
    (_, *broken), (_, *checks) = (rows(text.decode(), title) for title in ("Checks that do not hold", "Checks"))
    assert broken == [["0", "0", "–", "bound 0.1", "order"]]
    assert checks[0][-1] == "– fails"
    assert "1 check of 1 member does not hold" in text.decode()


def test_each_member_is_a_point_also_where_its_number_is_not_positive(tmp_path: Path) -> None:
    found = [
        stating(a=Check("error", error), b=Check("count", count), c=Check("gain", -count))
        for error, count in ((1e-9, 0.0), (2e-9, 3.0), (3e-9, 0.0))
    ]
    text = sweep_page(tmp_path, sweep_of(*found)).decode()
    drawn = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', text, re.S)]
    points = {mark["name"]: mark["y"] for chart in drawn for mark in chart["panels"][0]["marks"] if "name" in mark}
    assert points == {"error": [1e-9, 2e-9, 3e-9], "count": [0, 3, 0], "gain": [0, -3, 0]}
    assert [chart["panels"][0]["y"]["scale"] for chart in drawn] == ["log", "linear"]


@pytest.mark.parametrize("number", [12, 15])
def test_columns_that_have_no_room_are_counted(tmp_path: Path, number: int) -> None:
    found = stating(**{f"c{i}": Check(f"check {i}", 1.0 + i) for i in range(number)})
    text = sweep_page(tmp_path, sweep_of(found, found)).decode()
    assert len(rows(text, "Checks")[0]) == 2 + 12
    said = "3 more, in the results.nc of each member."
    assert text.count(said) == (2 if number == 15 else 0)  # under the table, and under the figure


def test_a_figure_says_of_how_many_settings_it_shows_the_first() -> None:
    runs = [{f"setting {k}": i for k in range(6)} for i in range(2)]
    assert "against each of the first 4 of 6 settings;" in _caption(runs)
    assert "against each of the settings;" in _caption([{"a": 1, "b": 0}, {"a": 2, "b": 0}])


@pytest.mark.parametrize("depths", [(4, 8), (8, 8)])
def test_a_chart_of_errors_says_at_which_depth_they_are(tmp_path: Path, depths: tuple[int, int]) -> None:
    found = [
        replace(stating(), tables=(ErrorTable("Errors by depth", [2, L], {"euler": [0.5, 1 / L]}),)) for L in depths
    ]
    text = sweep_page(tmp_path, sweep_of(*found)).decode()
    several = depths[0] != depths[1]
    assert ("Each error is that at the largest depth where it is known." in text) == several
    assert [*charts(text)] == ["Errors by depth" if several else "Errors by depth at L = 8"]


@pytest.mark.parametrize("other", ["a long path", "a ninth setting"])
def test_lines_join_no_members_that_differ_in_a_setting_without_room(tmp_path: Path, other: str) -> None:
    """In the 61st sign of a text, or in a setting that no table has a column for."""
    long = other == "a long path"
    known = ["size", "problem.table"] if long else ["size", *(f"fixed.x{k}" for k in range(7)), "ninth"]
    sweep = sweep_of(*(stating(a=Check("error", 1.0 + i)) for i in range(4)))
    for i, record in enumerate(sweep.records):
        record |= dict.fromkeys(known, 0) | {"size": 1 + i // 2, known[-1]: f"{'x' * 70}{i % 2}" if long else i % 2}
    text = sweep_page(tmp_path, sweep._replace(settings=known)).decode()
    size, last = charts(text)["Checks"]["panels"]
    assert [(mark["x"], mark["y"]) for mark in size["marks"] if mark["dash"] == [] and None not in mark["x"]] == [
        ([1, 2], [1, 3]),
        ([1, 2], [2, 4]),
    ]
    if long:
        assert [name.replace("\n", "") for name in last["x"]["names"]] == [
            f"{'x' * 30}…{'x' * 29}{i}" for i in range(2)
        ]


def test_joined_results_say_how_each_member_has_run() -> None:
    datasets = {
        str(i): xr.Dataset({"loss": ("time", losses)}, {"time": times}, {"study": "x", "problem": f"seed {i}"})
        for i, (times, losses) in enumerate([([0.0, 1.0], [3.0, 2.0]), ([0.0, 0.7], [3.0, 2.5])])
    }
    statuses = {"0": "ok", "1": "the budget was used up"}
    dataset, apart = joined(datasets, {"0": {"seed": 0}, "1": {"seed": 1}}, statuses)
    assert apart == {}
    assert dataset is not None
    assert dataset.run_status.values.tolist() == [*statuses.values()]
    assert dataset.attrs["problem"] == ""


def test_integers_of_a_sweep_that_are_no_floats_keep_their_digits():
    """Where others are shorter, have none or have fractions they are texts; as float64 2⁵³ + 1 was 2⁵³."""
    large = 2**53 + 1
    one, two, three = (
        xr.Dataset(own, attrs={"study": "s"})
        for own in (
            {"x": ("k", [large, 2]), "own": ((), large), "plain": ("k", [1, 2])},
            {"x": ("k", [3]), "plain": ("k", [3])},
            {"x": ("k", [0.5]), "plain": ("k", [0.5])},
        )
    )
    settings = {"0": {"size": large}, "1": {"size": 0.5}, "2": {"size": 2}}
    dataset, apart = joined({"0": one, "1": two, "2": three}, settings, dict.fromkeys("012", "ok"))
    assert dataset is not None
    assert not apart
    assert dataset.x.values.tolist() == [[str(large), "2"], ["3", ""], ["0.5", ""]]
    assert dataset.own.values.tolist() == [str(large), "", ""]
    assert dataset["size"].values.tolist() == [str(large), "0.5", "2"]
    np.testing.assert_array_equal(dataset.plain, [[1, 2], [3, np.nan], [0.5, np.nan]])


def test_integers_that_are_texts_in_runs_of_members_are_joined_with_those_of_others():
    large = 2**53 + 1
    texts = np.array([str(large), ""], dtype=object)
    members = xr.Dataset({"x": ("seed", texts), "name": ("seed", ["a", "b"])}, attrs={"study": "s"})
    others = xr.Dataset({"x": ("seed", [large, 2]), "name": ("seed", ["c", "d"])}, attrs={"study": "s"})
    dataset, apart = joined(
        {"0": members, "1": others, "2": others}, {name: {} for name in "012"}, dict.fromkeys("012", "ok")
    )
    assert dataset is not None
    assert not apart
    assert dataset.x.values.tolist() == [[str(large), ""], [str(large), "2"], [str(large), "2"]]
    assert dataset.name.values.tolist() == [["a", "b"], ["c", "d"], ["c", "d"]]
