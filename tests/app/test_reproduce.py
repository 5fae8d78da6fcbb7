"""The table of all figures says what was measured, and what failed."""

from importlib.resources import files

import pytest

from neuralode_flow.app import reproduce


def test_every_figure_has_an_experiment():
    names = {path.name for path in (files("neuralode_flow.conf") / "experiment").iterdir()}
    assert {f"{name}.yaml" for name in reproduce.EXPERIMENTS} <= names


def test_a_row_is_verified_only_if_the_study_ran_whole_and_its_claim_holds():
    summary = {"study": "x", "status": "ok", "passed": True, "figure": "F1", "claim": "c", "measured": [1.0, 2.0]}
    assert reproduce.row("x", summary, 1.0).verdict == "verified"
    assert reproduce.row("x", summary | {"passed": False}, 1.0).verdict == "NOT verified"
    assert reproduce.row("x", summary | {"status": "blown"}, 1.0).verdict == "NOT verified"


def test_numbers_are_shown_short():
    assert reproduce.short([1.23456, 2]) == "1.23, 2"
    assert reproduce.short({"a": 0.1}) == "a 0.1"
    assert reproduce.short(list(range(9))) == "0, 1, …, 7, 8"


def test_an_experiment_that_fails_becomes_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce.sys, "executable", "false")
    row = reproduce.reproduced("square", tmp_path)
    assert row.verdict == "failed: exit status 1"


def test_an_unknown_figure_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(reproduce.sys, "argv", ["reproduce", "f9"])
    with pytest.raises(SystemExit) as stop:
        reproduce.main()
    assert stop.value.code == 2
    assert "unknown figure 'f9' (valid: f1_sander2022" in capsys.readouterr().err


@pytest.mark.slow
def test_real_experiments_run_beside_one_another_and_keep_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce.sys, "argv", ["reproduce", "f5_zhang2026", "f2_marion2023"])
    with pytest.raises(SystemExit) as stop:
        reproduce.main()
    table = capsys.readouterr().out
    assert (stop.value.code, table.count("verified")) == (0, 2)
    assert table.index("f5_zhang2026") < table.index("f2_marion2023")
    assert len(list(tmp_path.glob("runs/reproduce/*/*/*/*/summary.json"))) == 2
