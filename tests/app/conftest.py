"""The command, called in this process, with a study that takes no time and ends as it is told to."""

import os
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from neuralode_flow.app.main import command as run_command
from neuralode_flow.depth import DepthSolver
from neuralode_flow.depth.grid import Profile
from neuralode_flow.problems import Problem
from neuralode_flow.signatures import Depths
from neuralode_flow.studies import STUDIES, Clock, Study


def fake_run(
    problem: Problem,
    initial: Profile,
    solver: DepthSolver,
    clock: Clock,
    *,
    end: str = "ok",
    depths: Depths = (4, 8),
    progress: object = None,
) -> xr.Dataset:
    progress(0.5, "half")
    if end == "warn":
        for _ in range(2):
            warnings.warn("z0 is missed by about 0.3", RuntimeWarning, stacklevel=1)
    if end == "raise":
        raise RuntimeError("the sky fell")
    if end == "interrupt":
        raise KeyboardInterrupt
    if end.startswith("terminate") and not Path("told").exists():
        if end == "terminate_once":
            Path("told").touch()
        os.kill(os.getppid() if end == "terminate_all" else os.getpid(), signal.SIGTERM)
        time.sleep(60)
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "kill_once" and not Path("killed").exists():
        Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "once" and not Path("mended").exists():
        raise RuntimeError("not yet")
    errors = [[1 / depth for depth in depths]]
    return xr.Dataset(
        {"error_z": (("rule", "depth"), errors)},
        coords={"rule": ["euler"], "depth": list(depths), "time": clock.times.numpy()},
        attrs={"status": "ok" if end.endswith("once") or end == "warn" else end},
    )


def fake_summary(dataset: xr.Dataset) -> dict:
    return {
        "study": "fake",
        "status": dataset.attrs["status"],
        "verdict": "All is well.",
        "depths": dataset.depth.values,
        "errors": {"euler": dataset.error_z.values[0]},
        "orders": {"euler": float("nan")},
        "law_drift": np.float64("inf"),
    }


@dataclass
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def config_dir(tmp_path):
    """A user's own folder of config files, which also offers the fake study."""
    folder = tmp_path / "own config"
    (folder / "study").mkdir(parents=True)
    (folder / "study" / "fake.yaml").write_text("name: fake\n")
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def command(workplace, config_dir, monkeypatch, capfd):
    """A function that runs `neuralode-flow ARGUMENTS` and tells how it ended."""
    monkeypatch.setitem(STUDIES._entries, "fake", Study(fake_run, fake_summary))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    at_terminate = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["neuralode-flow", f"--config-dir={config_dir}", *arguments])
        capfd.readouterr()
        status = 0
        try:
            run_command()
        except SystemExit as stop:
            status = stop.code
        return Ended(status, *capfd.readouterr())

    yield run
    signal.signal(signal.SIGTERM, at_terminate)


@pytest.fixture
def fake(monkeypatch):
    """The fake study by its name, where no command is run."""
    monkeypatch.setitem(STUDIES._entries, "fake", Study(fake_run, fake_summary))


@pytest.fixture
def left_behind(workplace):
    """A function that lists all files and folders that were made in the current folder."""
    return lambda: sorted(os.path.relpath(path, workplace) for path in workplace.rglob("*"))
