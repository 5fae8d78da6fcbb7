"""The configs of the points of a sweep, composed by Hydra once for all that choose the same groups.

Hydra takes a tenth of a second for one, and most points differ in plain values of fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from .runfolder import flat
from .schema import SECTIONS

_EXPERIMENTS = ("experiment", "debug")  # groups of files that set fields of all sections
GROUPS = (*SECTIONS, *_EXPERIMENTS)
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def own(config: DictConfig) -> DictConfig:
    """The config without what is Hydra's."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def composed(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """What Hydra makes of the overrides of a point."""
    return GlobalHydra.instance().config_loader().load_sweep_config(config, list(overrides))


def experiments_of(config: DictConfig, lines: Iterable[str]) -> dict[str, Path]:
    """The experiments that overrides choose from folders of the user's: an override for each, and its file."""
    folders = [Path(source.path) for source in config.hydra.runtime.config_sources if source.schema == "file"]
    set_to = (line.lstrip("+").partition("=") for line in lines)
    lists = ((key, names.strip("[]").split(",")) for key, _, names in set_to if key in _EXPERIMENTS)
    chosen = [(key, name.strip(" '\"")) for key, names in lists for name in names]
    files = {f"{key}={name}": folder / key / f"{name}.yaml" for folder in reversed(folders) for key, name in chosen}
    return {line: file for line, file in files.items() if file.is_file()}


def set_by(file: Traversable) -> list[str]:
    """The fields that an experiment file sets, as overrides."""
    return _settings(file.read_text(encoding="utf-8"))


@cache
def _settings(text: str) -> list[str]:
    fields = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    return [f"{key}={value}" for key, value in flat(fields).items()]


class _Set(NamedTuple):
    """A plain value for a field."""

    path: tuple[str, ...]
    value: Any


class Points:
    """The configs of the points of one sweep.

    Parameters
    ----------
    config : DictConfig
        That of the sweep.
    """

    def __init__(self, config: DictConfig) -> None:
        self._config = config
        self._read: dict[str, _Set | str | None] = {}
        self._bases: dict[tuple[str, ...], dict[str, Any] | None] = {}

    def __call__(self, overrides: Sequence[str]) -> dict[str, Any] | DictConfig:
        """The config of a point without what is Hydra's, as Hydra would compose it."""
        read = [self._line(line) for line in overrides]
        if None not in read and (base := self._base(tuple(line for line in read if isinstance(line, str)))) is not None:
            copy = _copied(base)
            if all(_put(copy, line) for line in read if isinstance(line, _Set)):
                return copy
        return own(composed(self._config, overrides))

    def _line(self, line: str) -> _Set | str | None:
        """A value for a field, the choice of a group as it is written, or None for what is left to Hydra."""
        if line not in self._read:
            self._read[line] = _understood(line)
        return self._read[line]

    def _base(self, choices: tuple[str, ...]) -> dict[str, Any] | None:
        """The config with the same choices of groups; None where fields of it depend on others."""
        if choices not in self._bases:
            plain = OmegaConf.to_container(own(composed(self._config, choices)), resolve=False)
            self._bases[choices] = plain if isinstance(plain, dict) and _is_plain(plain) else None  # type: ignore[assignment]
        return self._bases[choices]


def _understood(line: str) -> _Set | str | None:
    override = OverridesParser.create().parse_override(line)
    key, value, adds = override.key_or_group, override.value(), override.is_add() or override.is_force_add()
    if override.package is not None or override.is_delete() or override.is_sweep_override():
        return None
    if key in GROUPS:
        return line if not adds and (value is None or isinstance(value, str)) else None
    names = tuple(key.split("."))
    simple = not isinstance(value, dict) and _is_plain(value) and _PATH.fullmatch(key) and names[0] != "hydra"
    return _Set(names, value) if override.is_force_add() and simple else None


def _is_plain(value: Any) -> bool:
    """Whether a value stands for itself, and not for another one."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(not isinstance(item, dict) and _is_plain(item) for item in value)
    if isinstance(value, str):
        return "${" not in value
    return value is None or isinstance(value, (bool, int, float))


def _copied(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _copied(item) for key, item in node.items()}
    return list(node) if isinstance(node, list) else node


def _put(config: dict[str, Any], line: _Set) -> bool:
    """Sets a field; False where something else than a field is, or what holds it is not there."""
    node: Any = config
    for name in line.path[:-1]:
        node = node.get(name)
        if not isinstance(node, dict):
            return False
    if isinstance(node.get(line.path[-1]), dict):
        return False
    node[line.path[-1]] = _copied(line.value)
    return True
