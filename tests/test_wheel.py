"""The distributions, made as pip makes them, in an environment made from nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BUILD = """import os, sys, setuptools.build_meta as made
os.chdir(sys.argv[1])
print(made.build_sdist(sys.argv[2]))"""
# pip says nothing of a network that is not there but this; then the test has nothing to try.
AWAY = "No matching distribution found"


def environment() -> dict[str, str]:
    """That of someone who does not stand in the clone."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def said(*command: str | Path, folder: str | Path = "/") -> str:
    """What a command prints; it must end well."""
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, env=environment())
    if AWAY in done.stderr:
        pytest.skip("packages cannot be fetched here")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    clean = folder / "clone"
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (clean / name).parent.mkdir(parents=True, exist_ok=True)
            (clean / name).write_bytes((ROOT / name).read_bytes())
    name = said(sys.executable, "-c", BUILD, clean, folder).splitlines()[-1]
    with tarfile.open(folder / name) as archive:
        archive.extractall(folder, filter="data")
    return folder / name.removesuffix(".tar.gz")


def test_the_wheel_of_the_source_distribution_runs_in_a_clean_environment(unpacked: Path, tmp_path: Path) -> None:
    said(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, unpacked)
    (wheel,) = tmp_path.glob("neuralode_flow-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for part in ("app/page/plotly-cartesian.min.js", "app/page/charts.js", "conf/config.yaml", "py.typed"):
        assert f"neuralode_flow/{part}" in names
    assert any(name.endswith("plotly-LICENSE.txt") and "dist-info" in name for name in names)
    said(sys.executable, "-m", "venv", "--without-pip", tmp_path / "clean")
    bin_folder = tmp_path / "clean" / "bin"
    constraints = ("--constraint", ROOT / "scripts" / "constraints.txt")
    # Of thousands of modules Python compiles the few that are imported, when they are.
    pip = (sys.executable, "-m", "pip", "--python", bin_folder / "python", "install", "--no-compile", "--quiet")
    pip = (*pip, *constraints)
    torch = next(
        line for line in (ROOT / "scripts" / "constraints.txt").read_text().split() if line.startswith("torch=")
    )
    small = subprocess.run([*map(str, pip), f"{torch}+cpu"], capture_output=True, env=environment())
    if small.returncode != 0:
        said(*pip, torch)
    said(*pip, wheel)
    version = "import neuralode_flow as nf; print(nf.__version__, nf.__file__)"
    number, home = said(bin_folder / "python", "-c", version).split()
    assert home.startswith(str(tmp_path / "clean"))
    assert said(bin_folder / "neuralode-flow", "--version").split()[-1] == number
    run = ("problem=linnerud", "study.depths=[4,8,16]", "time.samples=3", f"hydra.run.dir={tmp_path}/run")
    assert "Observed order" in " ".join(said(bin_folder / "neuralode-flow", *run).split())
    assert (tmp_path / "run" / "report.html").stat().st_size > 1_500_000
