"""Groups of the config for what is registered: files for the library's own, made from signatures, and none needed else.

`python -m neuralode_flow.app.groups` writes conf/problem, conf/initial, conf/system and conf/study; a test holds them
to their signatures. What a user's file registers has no such file: Hydra asks here for it, after all other sources.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from ..registry import Registry
from .errors import BadInput

GROUPS = ("problem", "initial", "system", "study")


@cache
def registries() -> dict[str, Registry[Any]]:
    """What can be chosen in each group, by name. It imports torch."""
    from ..initial import INITIALS
    from ..intrinsic.systems import SYSTEMS
    from ..problems import PROBLEMS
    from ..studies import STUDIES

    return dict(zip(GROUPS, (PROBLEMS, INITIALS, SYSTEMS, STUDIES), strict=True))


def text(group: str, name: str) -> str:
    """The config file of a registered name: its fields with their defaults, and what its docstring says of them."""
    from ..signatures import settings

    entry = registries()[group][name]
    maker = entry.run if group == "study" else entry
    first, said = _said(maker)
    lines = [f"# {first}", f"name: {name}"]
    for key, parameter in settings(maker).items():
        value = "???" if parameter.default is parameter.empty else _yaml(parameter.default)
        line, comment = f"{key}: {value}", said.get(key, "")
        if len(line) + len(comment) > 115:
            lines += textwrap.wrap(comment, 118, initial_indent="# ", subsequent_indent="# ")
            comment = ""
        lines.append(f"{line} # {comment}" if comment else line)
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_yaml, value))}]"
    return value if isinstance(value, str) and value.isidentifier() else json.dumps(value)


def _said(maker: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The first line of a NumPy docstring, and the first sentence on each parameter: its choices if there is none."""
    first, _, rest = inspect.cleandoc(maker.__doc__ or "").partition("\n")
    section = re.search(r"^Parameters\n-+\n(.*?)(?=\n\w+\n-+\n|\Z)", rest, flags=re.M | re.S)
    said: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", section[1] if section else ""):
        names, _, more = entry.partition(" : ")
        kind, *description = more.split("\n")
        sentence = re.split(r"(?<=[.])\s", " ".join(line.strip() for line in description), maxsplit=1)[0]
        choices = kind.strip("{}") if kind.startswith("{") else ""
        said |= {name.strip(): sentence or choices for name in names.split(",") if sentence or choices}
    return first, said


class Registered(ConfigSource):
    """The last place where Hydra looks for a config: among what is registered. The path names plugins to load."""

    @staticmethod
    def scheme() -> str:
        return "registered"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        # Nothing is imported to list groups, as --help does; after a failed search it is there anyway.
        return config_path in GROUPS and "neuralode_flow.studies" in sys.modules

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.removesuffix(".yaml").partition("/")
        if group not in GROUPS or name in ("", "None"):  # Hydra asks for `system: null` as well
            return False
        from .plugins import load

        try:
            load([module for module in self.path.split(",") if module])
        except BadInput as error:
            raise ConfigLoadError(str(error)) from None
        return name in registries()[group]

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return [] if results_filter is ObjectType.GROUP else sorted(registries().get(config_path, ()))

    def load_config(self, config_path: str) -> ConfigResult:
        group, _, name = config_path.removesuffix(".yaml").partition("/")
        node = OmegaConf.create({"name": name})
        return ConfigResult(provider=self.provider, path=self.full_path(), config=node, header={"package": group})


class Search(SearchPathPlugin):
    """Adds that place to where Hydra looks, with the plugins of the command line that was read last."""

    modules = ""

    def manipulate_search_path(self, search_path: Any) -> None:
        search_path.append(provider="neuralode_flow", path=f"{Registered.scheme()}://{self.modules}")


def offer(arguments: list[str]) -> None:
    """Makes Hydra look among what is registered, and what the plugins of this command line register."""
    Search.modules = ",".join(plugins_of(arguments))
    for plugin in (Registered, Search):
        Plugins.instance().register(plugin)


def plugins_of(arguments: list[str]) -> list[str]:
    """The modules that a command line names as plugins."""
    for argument in arguments:
        if argument.lstrip("+").startswith("plugins="):
            try:
                value = OverridesParser.create().parse_override(argument).value()
            except HydraException:  # Hydra says so itself
                return []
            # One without brackets is loaded as well, so that its names are known: the config says what is wrong.
            return [str(module) for module in (value if isinstance(value, list) else [value])]
    return []


if __name__ == "__main__":
    for group, names in registries().items():
        for name in names:
            path = Path(__file__).parents[2] / "conf" / group / f"{name}.yaml"
            path.write_text(text(group, name), encoding="utf-8")
