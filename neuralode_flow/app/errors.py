"""What ends a run early: a sentence for people, and the exit status that goes with it."""

from __future__ import annotations

import sys

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..registry import unknown_name


class Stop(Exception):
    """The program cannot go on; the text says why and what to do."""

    status: int


class BadInput(Stop):
    """The user's config or files are at fault; nothing has been written."""

    status = 2


class StudyFailed(Stop):
    """The input was accepted, but the study did not run whole."""

    status = 1


# What Hydra raises where a command line or a config file is at fault; for some mistakes it is a plain ValueError.
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)


def complain(error: BaseException | str) -> None:
    """Says on stderr what is wrong."""
    print(f"neuralode-flow: {error if isinstance(error, str) else _sentence(error)}", file=sys.stderr)


def _sentence(error: BaseException) -> str:
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return unknown_name(group, name, list(error.options))
    text = str(error).replace("'++", "'")  # the user did not write the ++ (see main.forced)
    return text if isinstance(error, Stop) or error.__cause__ is None else f"{text}\n{error.__cause__}"
