"""The command in a process of its own that is forked from this one: torch, which takes longest, is imported there.

What it imports, registers and sets dies with it. Where an interpreter of its own matters it has to be started.
"""

import atexit
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from hydra.core.global_hydra import GlobalHydra
from processes import end_after

# What a run imports, imported before it is forked.
import neuralode_flow.app.job
import neuralode_flow.figures
import neuralode_flow.studies  # noqa: F401
from neuralode_flow.app.main import main as command

_PATIENCE = 200  # seconds


def forked(
    folder: str | os.PathLike, *arguments: str, program: Callable[[], None] = command
) -> subprocess.CompletedProcess[str]:
    """How `neuralode-flow ARGUMENTS` ends in a folder, in which modules are found as by `python -m`."""
    with tempfile.TemporaryDirectory() as place:
        paths = [Path(place, name) for name in ("out", "err")]
        child = begun(folder, *arguments, program=program, paths=paths)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out, err = (path.read_text(encoding="utf-8") for path in paths)
    return subprocess.CompletedProcess(arguments, code, out, err)


def begun(
    folder: str | os.PathLike,
    *arguments: str,
    program: Callable[[], None] = command,
    paths: Sequence[str | os.PathLike] = (os.devnull, os.devnull),
) -> int:
    """The process of `neuralode-flow ARGUMENTS` in a folder, for which nobody waits; what it says goes to two files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where pytest has threads
        child = os.fork()
    if child == 0:

        def work() -> None:
            _become_new(folder, paths)
            signal.alarm(_PATIENCE)  # its end, where it hangs
            sys.argv[1:] = arguments
            program()

        end_after(work)
    return child


def _become_new(folder, paths):
    """Gives this process the streams, the folder and the settings that one has which was just started."""
    atexit._clear()  # what ends this process is not for its parent's temporary folders
    os.chdir(folder)
    sys.path.insert(0, os.getcwd())
    for fd, source in enumerate([os.devnull, *paths]):
        opened = os.open(source, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, fd)
        os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (open(fd, "w", encoding="utf-8", closefd=False) for fd in (1, 2))  # noqa: SIM115
    warnings.resetwarnings()
    for ignored in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", ignored)
    GlobalHydra.instance().clear()
    torch.set_default_dtype(torch.float32)
