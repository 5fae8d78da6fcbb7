"""Files that someone else may have written: their kind, place and size are looked at before they are read.

What is in them becomes plain values. Nothing is followed, resolved or run: no links, tags, aliases or interpolations.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import yaml

from .files import opened

MOST_BYTES = 2**22  # of a record; most of ours have a few thousand, and none is written that has more than half of it
LONGEST_CONFIG = 2**20  # bytes; ours have a few hundred, and 12 more for each seed in a list of members
_DEEPEST = 32  # lists and mappings inside one another
_MOST_DIGITS = 20  # of an integer: 64 bits


def read_plain(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """The content of a regular file.

    Parameters
    ----------
    path : Path
        The file; folders on the way to it may be links, the file itself may not.
    most_bytes : int
        A longer file is refused unread.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is a link, a folder, a pipe or a device, is too long, or cannot be read; the message says which.
    """
    try:
        with opened(str(path), path, follow=False) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > most_bytes:
                raise ValueError(f"{path} has {size} bytes, more than the {most_bytes} that are read")
            return stream.read(most_bytes)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """The content of a regular file as UTF-8; raises what `read_plain` raises, and ValueError if it is no UTF-8."""
    try:
        return read_plain(path, most_bytes).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is not UTF-8 from byte {error.start} on") from error


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """The value in a JSON file.

    Raises
    ------
    FileNotFoundError, ValueError
        What `read_plain` raises; and ValueError if it is no JSON of a record of ours: nested deeply, with a key twice,
        with a number that is not finite or an integer of more than 64 bits, or with a text that is no Unicode.
    """
    text = read_text(path, most_bytes)
    try:
        value = json.loads(
            text, parse_int=_integer, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_unique
        )
        _check(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: line {error.lineno} is no JSON ({error.msg})") from error
    except RecursionError as error:
        raise ValueError(f"{path} is damaged: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return value


def read_yaml(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """The value in a YAML file; a text such as "${oc.env:HOME}" stays what it is.

    Raises
    ------
    FileNotFoundError, ValueError
        What `read_plain` raises; and ValueError if it is no YAML of a config of ours: see `parse_yaml`.
    """
    text = read_text(path, most_bytes)
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, in the types of JSON: numbers, texts, booleans, None, lists and mappings.

    Numbers are decimal, as OmegaConf writes them; 1e-8 is one, while 010, 1:30, 2024-01-01 and integers of more than
    64 bits are texts.

    Raises
    ------
    ValueError
        If it is no YAML, is nested deeply, or has a tag, an alias or a key twice.
    """
    try:
        _check_events(text)
        value = yaml.load(text, Loader=_Loader)
        _check(value)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "it" if mark is None else f"line {mark.line + 1}"
        raise ValueError(f"{where} is no YAML ({getattr(error, 'problem', None) or 'a control character'})") from error
    return value


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain values; no dates, merges, numbers to base 60 or keys twice."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag.endswith((":bool", ":null"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is there twice", node.start_mark)
        return mapping


_INTEGER = rf"[-+]?(?:0|[1-9][0-9]{{,{_MOST_DIGITS - 1}}})"  # with a 0 in front it would be octal
_REAL = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
for _name, _pattern in (("int", rf"(?:{_INTEGER})\Z"), ("float", rf"(?=.*[.eE])(?:{_REAL})\Z")):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), list("-+.0123456789"))


def _check_events(text: str) -> None:
    """Raises ValueError at the first tag or alias, or where the nesting is too deep, before anything is built."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            what = "an alias" if isinstance(event, yaml.AliasEvent) else "a tag"
            raise ValueError(f"line {event.start_mark.line + 1} has {what}, which no config of this program has")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")


def _check(value: Any, depth: int = 0) -> None:
    """Raises ValueError if a value is nested too deeply or has a text that is no Unicode."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("it has a text that is no Unicode") from error
    if isinstance(value, (list, dict)):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check(item, depth + 1)


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError("it has an integer of more than 64 bits")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("it has a number that is not finite")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("it has a key twice")
    return mapping


def printable(text: object, most: int = 4000, lines: bool = False) -> str:
    r"""A text without signs that move the cursor, colour or hide what follows: they are written out, as in \x1b.

    Parameters
    ----------
    text : object
        What is shown, also the name of a file that is no Unicode.
    most : int
        A longer text is cut.
    lines : bool
        Ends of lines stay.
    """
    shown = str(text)
    shown = shown if len(shown) <= most else f"{shown[:most]}…"
    if shown.isprintable():
        return shown
    kept = "\n" if lines else ""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in shown)
