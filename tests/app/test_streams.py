"""The commands as a shell starts them: with streams that are closed, full, ASCII, or read by somebody who goes away."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import neuralode_flow

# A whole run with signs that ASCII lacks in its title, as short as one can be: its study draws nothing.
STUDY = """
import xarray as xr

from neuralode_flow.finding import Finding
from neuralode_flow.studies import STUDIES, Study
from neuralode_flow.studies.base import Clock


def run(clock: Clock, *, seed: int = 0, progress: object = None):
    return Finding(study="short", problem="b = u² − v²", status="ok", verdict="All is well.").attached(xr.Dataset())


STUDIES.register("short")(Study(run))
"""
RUN = "-m neuralode_flow ~study +study.name=short plugins=[short] out=runs"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(folder: Path, line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a line of bash does in which PY is this Python; its status is that of the first command."""
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MPL", "HYDRA"))}
    if "plugins=[short]" in line:
        folder.joinpath("short.py").write_text(STUDY, encoding="utf-8")
    script = f"{line}; exit ${{PIPESTATUS[0]}}"
    return subprocess.run(
        ["bash", "-c", script], cwd=folder, env=quiet | {"PY": sys.executable} | environment, capture_output=True,
        encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip


def whole(folder: Path) -> bool:
    """Whether the one run in a folder is whole."""
    (summary,) = folder.glob("runs/*/*/summary.json")
    return json.loads(summary.read_text())["status"] == "ok"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "environment", "status", "out", "err"),
    [
        ("", ASCII, 0, "b = u? ? v?", ""),
        (">/dev/full", {}, 0, "", "No space left on device; the results are in runs/short/"),
        (">&-", {}, 0, "", "stdout cannot be written to: Bad file descriptor; the results are in runs/short/"),
        ("2>/dev/full", {}, 0, "b = u² − v²", ""),
        (">&- 2>&- <&-", {}, 0, "", ""),
        ("| true", {}, 141, "", ""),
    ],
)  # fmt: skip
def test_a_whole_run_is_one_whatever_its_streams_are(
    tmp_path: Path, redirection: str, environment: dict[str, str], status: int, out: str, err: str
) -> None:
    ended = shell(tmp_path, f"$PY {RUN} {redirection}", **environment)
    assert (ended.returncode, whole(tmp_path)) == (status, True), ended.stderr
    assert out in ended.stdout
    assert err in ended.stderr
    assert len(ended.stderr.splitlines()) == bool(err)


@pytest.mark.parametrize("command", ["neuralode_flow", "neuralode_flow.app.plot S", "neuralode_flow.app.collect S"])
def test_a_folder_that_is_gone_is_said(tmp_path: Path, command: str) -> None:
    (tmp_path / "gone").mkdir()
    ended = shell(tmp_path / "gone", f"rmdir ../gone; $PY -m {command}")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "neuralode-flow: the current folder has been removed; change into another one\n"


@pytest.mark.slow
def test_a_reader_who_goes_away_ends_no_member_of_a_sweep(tmp_path: Path) -> None:
    drawn = "-m neuralode_flow -m experiment=diagonal time.samples=3 system.seed=0,1 resume=S"
    swept = shell(tmp_path, f"$PY {drawn} | head -1")
    assert (swept.returncode, swept.stderr) == (141, "")
    assert len(list(tmp_path.glob("S/*/summary.json"))) == 2
    assert not list(tmp_path.glob("S/*/failed.json"))
    assert "2 of 2 members" in shell(tmp_path, "$PY -m neuralode_flow.app.collect S").stdout
    for line in ("collect S", "plot S/0"):
        ended = shell(tmp_path, f"$PY -m neuralode_flow.app.{line} | true")
        assert (ended.returncode, ended.stderr) == (141, "")


PAGES = ["", *(pytest.param(module, marks=pytest.mark.slow) for module in (".app.collect", ".app.plot"))]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    ("redirection", "status", "err"),
    [("| true", 141, ""), (">/dev/full", 1, "stdout cannot be written to: No space left on device")],
)
def test_a_page_that_nobody_reads_leaves_no_traceback(
    tmp_path: Path, page: str, redirection: str, status: int, err: str
) -> None:
    ended = shell(tmp_path, f"$PY -m neuralode_flow{page} --help {redirection}")
    assert ended.returncode == status
    assert ended.stderr.strip() == (f"neuralode-flow: {err}" if err else "")


def test_the_figures_of_papers_say_what_is_wrong_to_whoever_listens(tmp_path: Path) -> None:
    ended = shell(tmp_path, "$PY -m neuralode_flow.app.reproduce nothing 2>&-")
    assert (ended.returncode, ended.stderr, ended.stdout) == (2, "", "")


@pytest.mark.parametrize(("module", "name"), [("", ""), (".app.collect", "-collect"), (".app.plot", "-plot")])
def test_the_version_is_that_of_the_package(tmp_path: Path, module: str, name: str) -> None:
    assert neuralode_flow.__version__ == version("neuralode_flow")
    ended = shell(tmp_path, f"$PY -X importtime -m neuralode_flow{module} --version")
    assert ended.stdout == f"neuralode-flow{name} {neuralode_flow.__version__}\n"
    assert ended.returncode == 0
    assert module or " torch" not in ended.stderr


@pytest.mark.slow
def test_figures_are_drawn_whatever_matplotlib_is_told_and_files_are_called(tmp_path: Path) -> None:
    names = ["a$b.csv", r"c$d_x^2{%<b>[red]:smile:" + "\\[b] \U0001f600.csv"]
    for name in names:
        tmp_path.joinpath(name).write_text("\n".join(f"{i / 2},{i * i % 7}" for i in range(6)))
    tmp_path.joinpath("matplotlibrc").write_text("text.usetex: True\nfont.size: 30\nsavefig.format: nonsense\n")
    settings = ["problem=file", f"problem.x='{names[0]}'", f"problem.y='{names[1]}'",
                "debug=quick", "study.layers=[euler]", "out=runs"]  # fmt: skip
    pictures = []
    for backend in ("module://matplotlib_inline.backend_inline", "nonsense", "agg"):
        ended = subprocess.run(
            [sys.executable, "-m", "neuralode_flow", *settings], cwd=tmp_path, capture_output=True, encoding="utf-8",
            env=os.environ | {"MPLBACKEND": backend}, check=False,
        )  # fmt: skip
        assert (ended.returncode, ended.stderr) == (0, "")
        assert f"{names[0]} → {names[1]}: 2 inputs" in ended.stdout.replace("\n", "")
        *_, picture = sorted(tmp_path.glob("runs/*/*/figures/square.png"))
        pictures.append(picture.read_bytes())
        if backend == "nonsense":
            tmp_path.joinpath("matplotlibrc").unlink()
    assert len(set(pictures)) == 1
    page = picture.parent.with_name("report.html").read_text(encoding="utf-8")
    assert "<title>Convergence: a$b.csv → c$d_x^2{%&lt;b&gt;[red]:smile:" in page
    charts = re.findall(r'<script type="application/json">(.*?)</script>', page, flags=re.DOTALL)
    assert any("continuous limit\na$b.csv → c$d_x^2{%&lt;b&gt;" in str(json.loads(chart)["title"]) for chart in charts)
