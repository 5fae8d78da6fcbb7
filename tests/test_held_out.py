"""Rows that training does not see, and what the command says of what was done to the data."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from forked import forked

import neuralode_flow as nf
from neuralode_flow.problems import PROBLEMS

ROWS = 25


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two inputs in units of their own, a class and an output that depends on both inputs; a value is missing."""
    draws = np.random.default_rng(0)
    x = draws.normal(size=(ROWS, 2)) * [3.0, 0.1] + [5.0, 1.0]
    frame = pd.DataFrame(x, columns=["a", "b"])
    frame["c"] = x @ [0.5, 4.0] + 0.2 * draws.normal(size=ROWS)
    frame["kind"] = draws.integers(0, 3, ROWS)
    frame["site"] = "Oslo"
    frame.loc[4, "a"] = np.nan
    frame.to_csv(tmp_path / "data.csv", index=False)
    return tmp_path / "data.csv"


def problem(table: Path, **options: object) -> nf.Problem:
    return PROBLEMS["file"](["a", "b"], ["c"], table=str(table), missing="drop", **options)


def split(seed: int, n: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows held out and those trained on, drawn again."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()
    return np.sort(order[:number]), np.sort(order[number:])


def half_squares(rows: np.ndarray, z: np.ndarray) -> float:
    residual = rows[:, :2] @ z[:1].T - rows[:, 2:]
    return float((residual**2).sum() / (2 * len(rows)))


@pytest.mark.parametrize("seed", [0, 7])
def test_both_losses_are_those_of_their_rows_in_units_of_the_rows_trained_on(table: Path, seed: int) -> None:
    found = problem(table, held_out=0.2, seed=seed)
    rows = pd.read_csv(table)[["a", "b", "c"]].dropna().to_numpy()
    held, train = split(seed, 24, 5)
    units = (rows - rows[train].mean(0)) / rows[train].std(0)
    z = np.array([[0.3, -1.0], [0.2, 0.7]])
    maps = torch.from_numpy(z)
    assert float(found.loss(maps)) == pytest.approx(half_squares(units[train], z), rel=1e-12)
    assert float(found.held_out(maps)) == pytest.approx(half_squares(units[held], z), rel=1e-12)
    assert f"5 of 24 rows held out (seed {seed}), 19 trained on" in found.data


def test_what_is_held_out_has_no_part_in_training(table: Path) -> None:
    frame, (held, train) = pd.read_csv(table).dropna(), split(3, 24, 5)
    first = problem(table, held_out=0.2, seed=3)
    for rows, differs in ((held, "held_out"), (train, "loss")):
        changed = frame.copy()
        changed.iloc[rows[0], [0, 2]] = [100.0, -100.0]
        changed.to_csv(table, index=False)
        other = problem(table, held_out=0.2, seed=3)
        z = torch.eye(2)
        assert (float(other.loss(z)) == float(first.loss(z))) == (differs == "held_out")
        assert float(other.held_out(z)) != float(first.held_out(z))


def test_a_column_that_is_constant_where_it_is_trained_on_is_zero_everywhere(tmp_path: Path) -> None:
    (held,), _ = split(0, 4, 1)
    rows = np.arange(12.0).reshape(4, 3) ** 2
    rows[:, 1] = 5.0
    rows[held, 1] = 7.0
    pd.DataFrame(rows, columns=["a", "b", "c"]).to_csv(tmp_path / "t.csv", index=False)
    found = problem(tmp_path / "t.csv", held_out=0.25)
    z = torch.tensor([[0.0, 1.0], [0.0, 0.0]])  # c from b alone
    assert float(found.held_out(z)) == pytest.approx(float(found.held_out(torch.zeros(2, 2))), rel=1e-15)
    assert "column 2 of x constant, set to 0" in found.data


@pytest.mark.parametrize(
    ("part", "error", "said"),
    [
        (0.91, ValueError, r"problem\.held_out must be at most 0\.9, got 0\.91"),
        (-0.1, ValueError, r"problem\.held_out must be at least 0, got -0\.1"),
        (float("nan"), ValueError, r"problem\.held_out must be finite, got nan"),
        ("0.2", TypeError, r"problem\.held_out must be a number, got '0\.2'"),
    ],
)
def test_a_part_out_of_range_is_refused_in_python_as_by_the_command(table: Path, part, error, said) -> None:
    with pytest.raises(error, match=said):
        problem(table, held_out=part)


def test_without_rows_held_out_nothing_changes(table: Path) -> None:
    found, again = problem(table), problem(table, held_out=0.0, seed=9)
    assert found.held_out is None
    assert torch.equal(found.loss.gradient(found.z0), again.loss.gradient(found.z0))


def run(folder: Path, *settings: str) -> tuple[str, Path]:
    """The command in a process of its own: what it prints, and its folder."""
    words = ["problem=file", "problem.table=data.csv", "problem.x=[a,b]", "time.samples=5", "figures=none", *settings]
    ended = forked(folder, *words)
    assert ended.returncode == 0, ended.stderr
    return " ".join(ended.stdout.split()), folder / ended.stdout.strip().splitlines()[-1]


SAID = [
    "1 of 25 rows left out, where a value is missing (the first is row 5)",
    "5 of 24 rows held out (seed 1), 19 trained on",
    "every column standardised to mean 0, variance 1 over the rows trained on",
    "2 inputs and 1 outputs padded with zeros to the square z, 2 × 2",
]
HOLDING = ["problem.y=[c]", "problem.missing=drop", "problem.held_out=0.2", "problem.seed=1"]


@pytest.mark.parametrize(
    ("study", "trained", "of_z"), [("trajectory", "loss", "z"), ("convergence", "loss_continuous", "z_continuous")]
)
def test_the_command_tells_both_losses_and_what_was_done(table: Path, study: str, trained: str, of_z: str) -> None:
    short = ["study.depths=[8,16]"] if study == "convergence" else []
    printed, folder = run(table.parent, f"study={study}", *short, *HOLDING)
    dataset, summary = nf.open(folder), json.loads((folder / "summary.json").read_text())
    made = problem(table, held_out=0.2, seed=1)
    for name, loss in ((trained, made.loss), ("loss_held_out", made.held_out)):
        expected = [float(loss(torch.from_numpy(z))) for z in dataset[of_z].values]
        np.testing.assert_allclose(dataset[name].values, expected, rtol=1e-12)
    held = dataset.loss_held_out.values
    assert summary["loss_held_out"] == held[-1]
    assert summary["loss_train"] == dataset[trained].values[-1]
    assert summary["loss_held_out_least"] == held.min()
    assert summary["losses_along_training"]["held_out"] == held.tolist()
    assert summary["losses_along_training"]["time"] == dataset.time.values.tolist()
    assert f"On the rows held out the loss is {held[-1]:.4g} at the end" in printed
    page = (folder / "report.html").read_text()
    assert summary["data"] == SAID
    for said in SAID:
        assert said in printed
        assert said in page
        assert said in dataset.attrs["data"]
    assert list(summary["inputs"]) == ["problem.table"]
    if study == "convergence":
        finite = dataset.loss_finite_held_out.sel(rule="exp", depth=16).values[0]
        assert abs(finite - held).max() < 1e-2 * held.max()
        assert not np.array_equal(finite, held)


@pytest.mark.slow
def test_a_study_that_does_not_tell_it_says_so(table: Path) -> None:
    printed, folder = run(
        table.parent, "study=initialisations", "study.draws=2", "study.depths=[2]", "time.horizon=0.5", *HOLDING
    )
    assert "this study does not tell the loss of the rows held out" in printed
    assert "this study does not tell the loss of the rows held out" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_classes_are_trained_from_a_table(table: Path) -> None:
    printed, folder = run(
        table.parent, "study=trajectory", "problem.y=kind", "problem.loss=cross_entropy", *HOLDING[1:]
    )
    assert "2 inputs → 3 outputs" in printed
    assert "every column of x standardised" in printed
    dataset = nf.open(folder)
    assert float(dataset.loss[-1]) < float(dataset.loss[0])
    assert float(dataset.loss_held_out[0]) > 0


@pytest.mark.slow
def test_nothing_is_said_where_nothing_was_done(table: Path) -> None:
    pd.read_csv(table).dropna().assign(d=1.5).to_csv(table, index=False)
    printed, folder = run(table.parent, "study=trajectory", "problem.y=[a,b]", "problem.standardise=false")
    assert "data:" not in printed
    assert "data" not in json.loads((folder / "summary.json").read_text())
    assert "loss_held_out" not in nf.open(folder)
