"""Figures that another process draws, which was forked before torch was imported."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pytest

from neuralode_flow import results
from neuralode_flow.app import drawing
from neuralode_flow.figures import FIGURES, save

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the process is forked on Linux alone")

FAKE = ("study=fake", "problem=reflection", "out=runs")


@pytest.fixture
def beside(monkeypatch):
    """A function that forks the process as if torch were not imported yet, and returns it."""

    def forked():
        monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
        with monkeypatch.context() as earlier:
            earlier.delitem(sys.modules, "torch")
            drawing.prepare("closure", ("png",), lambda: None)
        return drawing._other[0]

    yield forked
    drawing.dismiss()


@dataclass
class Where:
    """Is drawn by the process whose number it returns, unless something else happens there."""

    there: str = ""
    raises: bool = False
    here: int = os.getpid()

    def __call__(self):
        if os.getpid() != self.here:
            if self.there == "it imports torch":
                sys.modules["torch"] = sys
            elif self.there == "it is killed":
                os.kill(os.getpid(), signal.SIGKILL)
        if self.raises:
            raise ValueError(f"raised by {'this' if os.getpid() == self.here else 'the other'} process")
        return os.getpid()


def test_the_other_process_draws_once_and_ends(beside):
    other = beside()
    assert drawing.begun(Where())() == other.pid != os.getpid()
    assert not other.is_alive()
    assert drawing.begun(Where())() == os.getpid()


def test_an_error_is_raised_here(beside):
    beside()
    with pytest.raises(ValueError, match="raised by this process"):
        drawing.begun(Where(raises=True))()


@pytest.mark.parametrize("there", ["it imports torch", "it is killed"])
def test_what_fails_there_is_drawn_here(beside, there):
    beside()
    assert drawing.begun(Where(there))() == os.getpid()


def test_what_cannot_be_sent_is_drawn_here(beside):
    beside()
    assert drawing.begun(lambda: "no pickle")() == "no pickle"
    os.kill(beside().pid, signal.SIGKILL)
    assert drawing.begun(Where())() == os.getpid()


def test_the_other_process_does_not_wait_for_long(beside, monkeypatch):
    monkeypatch.setattr(drawing, "_PATIENCE", 0.0)
    other = beside()
    other.join(30)
    assert not other.is_alive()
    assert drawing.begun(Where())() == os.getpid()


@pytest.mark.parametrize("instead", ["no figures", "torch", "one processor"])
def test_there_is_no_other_process_where_it_gains_nothing(monkeypatch, instead):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0} if instead == "one processor" else {0, 1})
    if instead != "torch":
        monkeypatch.delitem(sys.modules, "torch")
    drawing.prepare("closure", () if instead == "no figures" else ("png",), lambda: None)
    assert drawing._other is None


@pytest.mark.parametrize("which", ["os.fork", "multiprocessing.connection.Pipe"])
def test_where_no_process_can_be_made_this_one_draws(beside, monkeypatch, which):
    def none(*arguments):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as limited:
        limited.setattr(which, none)
        limited.setattr("os.sched_getaffinity", lambda process: {0, 1})
        limited.delitem(sys.modules, "torch")
        drawing.prepare("closure", ("png",), lambda: None)
    assert drawing._other is None
    assert drawing.begun(Where())() == os.getpid()


@pytest.mark.slow
def test_only_a_single_run_that_nobody_adds_to_has_one(command, monkeypatch, config_dir, workplace):
    asked = []
    monkeypatch.setattr(drawing, "prepare", lambda study, formats, configure: asked.append((study, formats)))
    assert command(*FAKE).status == 0
    assert asked == [("fake", ("png", "pdf"))]
    (workplace / "added.py").write_text("")
    (config_dir / "other.yaml").write_text(
        "hydra:\n  callbacks:\n    own:\n      _target_: hydra.experimental.callback.Callback\n"
    )
    for others in (
        ["-m"],
        ["hydra.job.chdir=true"],
        ["plugins=[added]"],
        ["hydra/job_logging=default"],
        ["+other=other"],
    ):
        command(*others, *FAKE)
    assert len(asked) == 1
    command(*FAKE, "figures=none")
    assert asked[1:] == [("fake", ())]


def test_pictures_are_those_of_this_process(tmp_path):
    code = "import sys; from neuralode_flow.app.main import command; command(); print('matplotlib' in sys.modules)"
    arguments = ["study=closure", "system=diagonal", "time=closure", "time.samples=3", "-q", f"out={tmp_path}"]
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    alone = len(os.sched_getaffinity(0)) == 1
    folder, imported = ended.stdout.split()
    assert (imported, ended.stderr) == (str(alone), "")
    figures = FIGURES["closure"](results.open(Path(folder)))
    drawn = [path for name, figure in figures.items() for path in save(figure, tmp_path / name)]
    assert len(drawn) == 2 * len(figures) > 0
    for path in drawn:
        assert (Path(folder) / "figures" / path.name).read_bytes() == path.read_bytes()
    page = (Path(folder) / "report.html").read_text(encoding="utf-8")
    assert all(escape(FIGURES["closure"].captions[name]) in page for name in figures)


def test_it_ends_with_this_process_however_that_ends():
    code = (
        "import os, signal, sys; from neuralode_flow.app import drawing\n"
        "os.sched_getaffinity = lambda process: {0, 1}\n"
        "drawing.prepare('closure', ('png',), lambda: None); assert drawing._other\n"
        "os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1] == 'killed' else sys.exit(3)"
    )
    for how, status in (("killed", -signal.SIGKILL), ("exits", 3)):
        # Its output is read until both processes have closed it.
        ended = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, timeout=40)
        assert (ended.returncode, ended.stderr) == (status, "")
