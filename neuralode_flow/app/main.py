"""The command `neuralode-flow`: Hydra composes the config, and every way to end has its exit status.

0: the study ran whole. 1: it did not. 2: bad input, and nothing was written. 129: the terminal was closed.
130: interrupted. 141: the reader of the output, such as `head`, has gone. 143: terminated. Results lie in a folder: a
run is whole also where stdout is full or closed, and says so on stderr; what is printed alone, such as --help, then
ends with 1.
torch is imported only when a run starts: `--help` and shell completion stay fast.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, QuotedString, Sweep
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from .. import __version__
from ..compat import composed_for_mode, end_at_once, hydra_arguments
from ..parent import ENDING, end
from . import local
from .child import run_member
from .errors import HYDRA_ERRORS, BadInput, Stop, StudyFailed, complain
from .groups import offer
from .helppage import experiments, short
from .local import PROGRAM
from .points import GROUPS
from .runfolder import discard_if_empty, discard_unused
from .schema import checked
from .streams import standard_streams

FULL_ERROR = "HYDRA_FULL_ERROR"
HELP = {"--help", "-h"}
FLAGS = {flag: f"verbosity={level}" for level in ("quiet", "verbose") for flag in (f"--{level}", f"-{level[0]}")}
WANTS_TRACEBACK = os.environ.get(FULL_ERROR) == "1"  # what the user set, before main() sets it


def main() -> None:
    """Runs the command line of this process and ends it; the module's docstring lists the statuses."""
    try:
        command()
        status = 0
    except SystemExit as stop:
        if not isinstance(stop.code, int | None):
            raise
        status = stop.code or 0
    end_at_once(status)


def command() -> None:
    """The same, where the process goes on if the status is 0 or what SystemExit says is caught."""
    with standard_streams():
        if "--version" in sys.argv[1:]:  # Hydra's option would print its own
            print(f"{PROGRAM} {__version__}")
        elif HELP.issuperset(sys.argv[1:]) and sys.argv[1:]:
            print(short(), end="")
            sys.exit(0)  # as Hydra ends its page
        else:
            _main()


def _main() -> None:
    if HELP & set(sys.argv[1:]):
        sys.argv[1:] = [argument for argument in sys.argv[1:] if argument != "all"]
    sys.argv[1:] = with_flags([ranged(at_home(argument)) for argument in sys.argv[1:]])
    try:
        check_arguments(sys.argv[1:])
    except BadInput as error:
        complain(error)
        sys.exit(error.status)
    if not {"--shell-completion", "-sc"} & set(sys.argv):
        sys.argv[1:] = map(forced, sys.argv[1:])
    os.environ[FULL_ERROR] = "1"  # Hydra then raises its errors instead of printing them and exiting with 1
    # Our preset of the Ray launcher has the name that the launcher gives its own.
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/ray' is validated against", UserWarning)
    for number in ENDING:
        if signal.getsignal(number) == signal.SIG_DFL:  # Python would end without cleaning up; nohup ignores one
            signal.signal(number, end)
    offer(sys.argv[1:])
    try:
        with composed_for_mode(_check_whole):
            hydra.main(version_base="1.3", config_path="pkg://neuralode_flow.conf", config_name=local.CONFIG)(_task)()
    except SystemExit as stop:
        if not stop.code and HELP & set(sys.argv):  # after Hydra's own page
            print("Experiments (experiment=NAME):", *experiments(), "", sep="\n")
        raise
    except Stop as stop:  # why has been said
        sys.exit(stop.status)
    except HYDRA_ERRORS as error:
        if WANTS_TRACEBACK:
            traceback.print_exc()
        complain(error)
        sys.exit(BadInput.status)
    except OSError as error:
        if error.filename is None or WANTS_TRACEBACK:  # a stream that is closed or full is no file of Hydra's
            raise
        complain(f"{error.filename} cannot be written: {error.strerror}; free the folder, or choose another one")
        sys.exit(StudyFailed.status)
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(130)
    finally:
        discard_unused()


def _check_whole(name: str, config: DictConfig) -> None:
    """Raises BadInput, and says why, where a config of the user's is without what gives runs their folders."""
    if not {*local.OURS} <= {*(config.hydra.get("callbacks") or {})}:
        error = BadInput(
            f"--config-name={name} has not what a command needs of Hydra, and would not heed resume and out; begin it "
            f"with `defaults: [config, _self_]`, or make it an experiment, CONFIG_DIR/experiment/{name}.yaml"
        )
        complain(error)
        raise error


def with_flags(arguments: list[str]) -> list[str]:
    """The same, with settings in place of our flags, beside the other settings: Hydra wants all in one place."""
    asked = [FLAGS[argument] for argument in arguments if argument in FLAGS][-1:]
    rest = [argument for argument in arguments if argument not in FLAGS]
    first = next((i for i, argument in enumerate(rest) if "=" in argument and argument[0] != "-"), len(rest))
    return [*rest[:first], *asked, *rest[first:]]


def at_home(argument: str) -> str:
    """An override with the home directory in place of the `~` that begins its value or an item of it.

    Hydra's grammar knows no `~` in values but in quotes, and the shell expands it at the start of a word only.
    """
    key, _, value = argument.partition("=")
    if "~" not in value or key.startswith(("-", "~")):
        return argument
    return f"{key}={_WORD.sub(lambda word: _quoted(word[0]), value)}"


# A text in quotes, or all up to what separates items.
_WORD = re.compile(r"""'(?:\\'|[^'])*'|"(?:\\"|[^"])*"|[^,\[\]{}()'"]+""")


def _quoted(word: str) -> str:
    if word[0] in "'\"" or "~" not in word or "$" in word:
        return word
    return "'" + os.path.expanduser(word).replace("'", r"\'") + "'"


def ranged(argument: str) -> str:
    """A range of the seeds of members as text: Hydra takes one for a sweep."""
    return re.sub(r"^(members\.[\w.]+)=(range\([\d, ]+\))$", r"\1='\2'", argument)


def check_arguments(arguments: list[str]) -> None:
    """Raises BadInput unless Hydra can read the command line: its own words for most mistakes are long or cryptic."""

    def refuse(message: str) -> NoReturn:
        raise BadInput(f"{message}; {PROGRAM} --help lists what can be set")

    parser = hydra_arguments()
    parser.error = refuse  # type: ignore[method-assign]
    options, rest = parser.parse_known_args(arguments)
    unknown = [argument for argument in rest if argument.startswith("-")]
    if unknown:
        refuse(f"unknown option {unknown[0]}")
    if rest:
        raise BadInput(f"settings stand on both sides of an option, such as {rest[0]!r}; put all of them after it")
    if not options.shell_completion:
        sweep = options.multirun or "hydra.mode=MULTIRUN" in options.overrides
        for setting in options.overrides:
            _check_setting(setting, sweep)


def _check_setting(setting: str, sweep: bool) -> None:
    """Raises BadInput unless `setting` is an override that can be read, and a list of choices only in a sweep."""
    shown = setting if len(setting) <= 100 else f"{setting[:100]}..."
    wrong = f"Error parsing override {shown!r}"
    if "=" not in setting.lstrip("~") and not setting.startswith("~"):
        raise BadInput(f"{wrong}: it has no '='; write KEY=VALUE, such as time.rtol=1e-8")
    try:
        override = OverridesParser.create().parse_override(setting)
    except HydraException:
        raise BadInput(
            f"{wrong}: it cannot be read as KEY=VALUE; close all brackets and quotes, and put values with special "
            f"characters in quotes of their own, such as out=\"'a=b'\""
        ) from None
    key = override.key_or_group
    if not key:
        raise BadInput(f"{wrong}: it has no key; write KEY=VALUE, such as time.rtol=1e-8")
    if key.startswith("hydra.sweeper.params."):
        raise BadInput(f"{wrong}: a command line cannot set hydra.sweeper.params; write -m KEY=VALUE,VALUE instead")
    if override.is_sweep_override() and not sweep:
        raise BadInput(
            f"Ambiguous value for argument {shown!r}: add -m to run each of the values, or write {key}=[...] for a "
            f"list and quotes for text"
        )
    if key in GROUPS and not override.is_delete():
        value = override.value()
        for choice in value.list if isinstance(value, ChoiceSweep) else [value]:
            if not isinstance(choice, (str, list, QuotedString, Sweep, Glob)):
                raise BadInput(f"{key} must be a string or a list, got {choice!r}; choose one with {key}=NAME")


def forced(argument: str) -> str:
    """A plain override of a field, `a.b=value`, as one that Hydra takes whether the field exists or not.

    Hydra's own answer to a misspelt field does not say what the valid ones are; the schema's does, once it sees it.
    """
    key = re.match(r"([A-Za-z_][\w.]*)=", argument)
    if key is None or key[1] in GROUPS or key[1].split(".")[0] == "hydra":
        return argument
    return f"++{argument}"


def _task(config: DictConfig) -> None:
    """What Hydra calls with the config of each run, in the folder that it has made for it."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    lines = list(map(str, OmegaConf.to_container(settings.overrides.task, resolve=False)))  # type: ignore[arg-type]
    several = settings.mode == RunMode.MULTIRUN
    command = local.command_line(settings, lines, member=several)
    if several:
        sweep = Path(settings.sweep.dir)
        name = local.member_name(folder, sweep, lines)
        run_member(lambda: local.run(checked(config), command, folder, sweep, name), folder, lines)
        discard_if_empty(folder)
        return
    if folder != Path.cwd() and folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())  # to be read, and copied
    try:
        local.run(checked(config), command, folder, folder)
    except Stop as stop:
        if WANTS_TRACEBACK:
            traceback.print_exc()
        complain(stop)
        sys.exit(stop.status)
