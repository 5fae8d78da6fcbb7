"""Sweeps (-m): every point is checked before the first one runs, and the sweep's folder is its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from .errors import HYDRA_ERRORS, BadInput, complain
from .schema import checked


class CheckSweep(Callback):
    """Hydra calls it before a sweep, when nothing has been written yet."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Ends the program with status 2 at the first bad point; else claims the sweep's folder."""
        try:
            for overrides in points(config):
                job = checked(compose(config.hydra.job.config_name, overrides))
                if job.machine.resume is not False:
                    raise BadInput(f"resume is for single runs, got resume={job.machine.resume} with -m; leave -m out")
            _claim(Path(config.hydra.sweep.dir))
        except (BadInput, *HYDRA_ERRORS) as error:
            complain(error)
            # Hydra turns the exceptions of a callback into warnings, but not this one.
            sys.exit(BadInput.status)


def points(config: DictConfig) -> list[list[str]]:
    """The overrides of every run of a sweep; other sweepers than Hydra's own choose their points as they go."""
    sweeper = config.hydra.sweeper
    if not sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
        return []
    lines = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    lines += list(config.hydra.overrides.task)
    batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(lines), None)
    result = [list(point) for batch in batches for point in batch]
    if not result:
        ranges = ", ".join(line.removeprefix("++") for line in lines)
        raise BadInput(f"the sweep has no point: a range in {ranges} is empty; give it at least one value")
    return result


def _claim(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise BadInput(f"the sweep's folder {folder} exists already; choose another hydra.sweep.dir") from error
    except OSError as error:
        raise BadInput(f"the sweep's folder {folder} cannot be made: {error.strerror}; set out=FOLDER") from error
