"""What ends a run early: a sentence for people, and the exit status that goes with it."""

from __future__ import annotations

import sys
from contextlib import suppress

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from ..parent import ENDING
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


def told_to_end(stop: SystemExit) -> bool:
    """Whether it answers a signal; else a module of the user's has called sys.exit, maybe with 0, and all is lost."""
    return isinstance(stop.code, int) and stop.code in {128 + number for number in ENDING}


def complain(error: BaseException | str) -> None:
    """Says on stderr what is wrong, if anybody can hear it."""
    with suppress(OSError):
        print(f"neuralode-flow: {error if isinstance(error, str) else sentence(error)}", file=sys.stderr, flush=True)


def sentence(error: BaseException) -> str:
    """What is wrong, on one line."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return unknown_name(group, name, list(error.options))
    if isinstance(error, Stop):
        return str(error)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1} is no YAML: {error.problem or error.context}; mend the file"
    text = first_line(error)
    return text if error.__cause__ is None else f"{text}: {first_line(error.__cause__)}"


def first_line(error: BaseException) -> str:
    """What is wrong, without the advice that Hydra and OmegaConf add in further lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # The user did not write the ++ (see main.forced).
    text = lines[0].removeprefix("LexerNoViableAltException: ").replace("'++", "'")
    if "Either remove + prefix" in str(error):
        text = f"{text.removesuffix('.')}; remove the + from your setting"
    key = getattr(error, "full_key", None)
    return f"{key}: {text}" if key and key not in text else text
