"""What the command prints: one screen of help, and as much of a run as is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from neuralode_flow.app.main import with_flags

SMALL = ["problem=linnerud", "study.depths=[4,8]", "study.layers=[euler]", "time.samples=3", "figures=none"]


def said(folder: Path, *arguments: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "neuralode_flow", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
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


def test_quiet_prints_the_folder_and_verbose_all_that_is_known(tmp_path: Path) -> None:
    printed = said(tmp_path, "-q", *SMALL)
    (line,) = printed.splitlines()
    folder = tmp_path / line
    assert json.loads((folder / "summary.json").read_text())["device"] == "cpu (threads: 1)"
    normal, verbose = said(tmp_path, *SMALL), said(tmp_path, *SMALL, "--verbose")
    for word in ("The other edges of the square", "device: cpu", "versions: python", "Frobenius norm"):
        assert word not in " ".join(normal.split())
        assert word in " ".join(verbose.split()), verbose
    again = said(tmp_path, *SMALL, "-v", f"resume={line}")  # another one on a run that has ended: the same run
    assert again.split()[:4] == ["this", "run", "is", "finished:"]


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
    command = [sys.executable, "-m", "neuralode_flow", *SMALL, "verbosity=loud"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "quiet, normal, verbose" in done.stderr
