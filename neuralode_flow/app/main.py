"""The command `neuralode-flow`: Hydra composes the config, and every way to end has its exit status.

0: the study ran whole. 1: it did not. 2: bad input, and nothing was written. 130: interrupted. 141: the reader of
the output has gone. 143: terminated.
torch is imported only when a run starts: `--help` and shell completion stay fast.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from .errors import HYDRA_ERRORS, BadInput, Stop, complain
from .runfolder import discard_if_empty
from .schema import SECTIONS, checked

GROUPS = (*SECTIONS, "experiment", "debug")
FULL_ERROR = "HYDRA_FULL_ERROR"
WANTS_TRACEBACK = os.environ.get(FULL_ERROR) == "1"  # what the user set, before main() sets it


def main() -> None:
    """Runs the command line of this process and exits; the module's docstring lists the statuses."""
    sys.argv[1:] = [forced(argument) for argument in sys.argv[1:]]
    os.environ[FULL_ERROR] = "1"  # Hydra then raises its errors instead of printing them and exiting with 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by default Python would end without cleaning up
    try:
        hydra.main(version_base="1.3", config_path="pkg://neuralode_flow.conf", config_name="config")(_task)()
    except Stop as stop:  # _task has said why
        sys.exit(stop.status)
    except HYDRA_ERRORS as error:
        if WANTS_TRACEBACK:
            traceback.print_exc()
        complain(error)
        sys.exit(BadInput.status)
    except BrokenPipeError:  # whoever read the output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(130)


def forced(argument: str) -> str:
    """A plain override of a field, `a.b=value`, as one that Hydra takes whether the field exists or not.

    Hydra's own answer to a misspelt field does not say what the valid ones are; the schema's does, once it sees it.
    """
    key = re.match(r"([A-Za-z_][\w.]*)=", argument)
    if key is None or key[1] in GROUPS or key[1].split(".")[0] == "hydra":
        return argument
    return f"++{argument}"


def _task(config: DictConfig) -> None:
    """What Hydra calls with the config of each run."""
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    folder = Path(HydraConfig.get().runtime.output_dir) if sweep else None
    try:
        job = checked(config)
        from .job import run

        run(job, _command(), folder)
    except Stop as stop:
        if WANTS_TRACEBACK:
            traceback.print_exc()
        complain(stop)
        if sweep:
            raise  # the other points go on, and Hydra raises it again when they are done
        sys.exit(stop.status)
    finally:
        if folder is not None:
            discard_if_empty(folder)


def _command() -> str:
    """The command line that repeats this run; for a point of a sweep, that of the point alone."""
    settings = HydraConfig.get()
    own = [f"--config-dir={s.path}" for s in settings.runtime.config_sources if s.provider == "command-line"]
    return shlex.join(["neuralode-flow", *own, *(line.removeprefix("++") for line in settings.overrides.task)])
