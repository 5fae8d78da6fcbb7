"""What the command prints: one screen of help, and as much of a run as is asked for."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from forked import forked

from neuralode_flow.app import terminal
from neuralode_flow.app.main import with_flags
from neuralode_flow.finding import Check, ErrorTable, Finding

SMALL = ["problem=linnerud", "study.depths=[4,8]", "study.layers=[euler]", "time.samples=3", "figures=none"]


def said(folder: Path, *arguments: str, status: int = 0) -> str:
    done = forked(folder, *arguments)
    assert done.returncode == status, done.stderr
    assert done.stderr == "" or status
    return done.stdout


def test_help_is_one_screen_and_all_of_it_is_there_too(tmp_path: Path) -> None:
    page = said(tmp_path, "--help")
    lines = page.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80
    assert page == said(tmp_path, "-h")
    whole = said(tmp_path, "--help", "all")
    for word in ("f1_sander2022", "breast_cancer", "initialisations"):
        assert word in page
        assert word in whole
    for word in ("save_every: 60.0", "Exit status", "A stiff real problem"):
        assert word not in page
        assert word in whole
    assert "name: digits" in said(tmp_path, "--help", "problem=digits")


def test_quiet_prints_the_folder_alone(tmp_path: Path) -> None:
    (line,) = said(tmp_path, "-q", *SMALL).splitlines()
    assert json.loads((tmp_path / line / "summary.json").read_text())["device"] == "cpu (threads: 1)"
    assert said(tmp_path, *SMALL, "-q", f"resume={line}") == f"{line}\n"
    again = said(tmp_path, *SMALL, "-v", f"resume={line}")  # another level on a run that has ended: the same run
    assert again.split()[:4] == ["this", "run", "is", "finished:"]


def test_what_was_done_to_the_data_is_said_once(tmp_path: Path) -> None:
    lines = said(tmp_path, *SMALL, "-v").splitlines()
    (line,) = (line for line in lines if "standardised" in line)
    assert line.startswith("data: every column standardised")


def test_the_levels_print_the_folder_the_verdict_and_all_that_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    tables = tuple(ErrorTable(title, [4, 8], {"euler": [0.2, 0.1]}, what=title) for title in ("First", "Second"))
    one = Check("one", 1e-9, norm="Frobenius")
    said_of = {"study": "convergence", "problem": "A problem", "status": "ok", "verdict": "All is well."}
    finding = Finding(**said_of, checks=(one,), tables=tables)
    printed = {}
    for level in ("quiet", "normal", "verbose"):
        terminal.show("A problem", finding, Path("runs/x"), level, {"device": "cpu"})
        printed[level] = capsys.readouterr().out
    assert printed["quiet"] == "runs/x\n"
    for word, levels in (("All is well.", 2), ("First", 2), ("Second", 1), ("Frobenius", 1), ("device: cpu", 1)):
        assert [word in printed[level] for level in ("normal", "verbose")] == [levels == 2, True]


def test_the_verdict_is_green_where_all_checks_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    styles: list[str] = []
    monkeypatch.setattr(terminal, "Text", lambda text, style="": (styles.append(f"{style}"), text)[1])
    for error in (1.0, 3.0, math.nan):
        checks = (Check("one", error, 2.0),)
        terminal.show("", Finding(study="x", problem="", status="ok", verdict="Well.", checks=checks), Path("runs/x"))
    assert [style for style in styles if "green" in style or "red" in style] == ["bold green", "bold red", "bold red"]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["-q", "-m", "problem.seed=0,1"], ["-m", "verbosity=quiet", "problem.seed=0,1"]),
        (["problem.seed=0", "-m", "-q"], ["verbosity=quiet", "problem.seed=0", "-m"]),
        (["-q", "--verbose"], ["verbosity=verbose"]),
        (["--config-dir=x", "out=a"], ["--config-dir=x", "out=a"]),
    ],
)
def test_flags_stand_where_they_like(given: list[str], read: list[str]) -> None:
    assert with_flags(given) == read


def test_a_level_that_is_none_is_refused(tmp_path: Path) -> None:
    done = forked(tmp_path, *SMALL, "verbosity=loud")
    assert done.returncode == 2
    assert "quiet, normal, verbose" in done.stderr


PLUGIN = """
from neuralode_flow.depth.rules import LAYERS

class Breaks:
    order, quadratic_law = 1, False

    def layer(self, A):
        raise RuntimeError("the sky fell")

LAYERS.register("breaks")(Breaks())
"""


@pytest.mark.slow
def test_a_quiet_sweep_says_only_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "breaking.py").write_text(PLUGIN)
    study = ("study.depths=[4]", "study.workers=1", "time.samples=3", "figures=none", "plugins=[breaking]")
    sweep = ("-m", "problem=teacher", "problem.dimension=2", *study, "resume=sweep")

    def ended(*arguments: str) -> tuple[int, str, list[str]]:
        done = forked(tmp_path, *sweep, *arguments)
        return done.returncode, done.stdout, done.stderr.splitlines()

    assert ended("problem.seed=0,1", "study.layers=[euler]", "-q") == (0, "", [])
    assert len(list(tmp_path.glob("sweep/*/summary.json"))) == 2
    status, out, (one, count) = ended("study.layers=[euler],[breaks]", "-q")  # the first has ended
    assert (status, out) == (1, "")
    assert "study.layers=[breaks]" in one
    assert "the sky fell" in one
    assert "1 of 2 members have finished in sweep" in count
    status, out, err = ended("problem.seed=0,2", "study.layers=[euler]")
    assert (status, err) == (0, [])
    told = out.splitlines()
    assert told[0] == "this run is finished: sweep/0"
    assert "Launching 1 jobs locally" in told[1]
    assert told[2].startswith("3 (")
    assert "problem.seed=2" in told[2]
    assert len(told) == 3
