"""How objects speak: in one line, in the table of a notebook, and where there is room for a few of many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def said(value: Any, *parts: str) -> str:
    """A repr in one line: the kind of a value and what is known of it."""
    return f"{type(value).__name__}({', '.join(part for part in parts if part)})"


def named(value: Any) -> str:
    """What a function is called, or what an object says of itself, without empty brackets."""
    while isinstance(value, partial):  # the numbers that it holds are many
        value = value.func
    if hasattr(value, "__name__"):
        return str(value.__name__)
    own = type(value).__repr__ is not object.__repr__
    return repr(value).removesuffix("()") if own else type(value).__name__


def counted(number: int | str, what: str) -> str:
    """Number and noun: "1 layer", "16 layers"."""
    return f"{number} {what}{'' if str(number) == '1' else 's'}"


def crossed(sizes: Iterable[int]) -> str:
    """Sizes that are multiplied: "4×12"."""
    return "×".join(map(str, sizes))


def members_said(shape: Sequence[int]) -> str:
    """The leading axes of a batch in words, "3 members" or "2×3 members"; empty of a single one."""
    return counted(crossed(shape), "member") if len(shape) else ""


def number_said(value: float | None, form: str = ".2e") -> str:
    """A number in so many digits; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else format(value, form)


def with_error(value: float, error: float, form: str = ".3f") -> str:
    """A number with its error, where that is known."""
    return f"{value:{form}} ± {error:{form}}" if math.isfinite(error) else f"{value:{form}}"


def first_of(values: Sequence[object], most: int = 6) -> str:
    """The first of many values in one line: "1, 2, 3 …"."""
    return ", ".join(map(str, values[:most])) + (" …" if len(values) > most else "")


def shortened(text: str, most: int = 60) -> str:
    """A sentence on one line, cut to at most so many signs."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


_HEAD = "text-align: left; padding: 2px 0; color: inherit; background: none"
_CELL = (
    "text-align: left; vertical-align: top; padding: 2px 16px 2px 0; color: inherit; background: none; "
    "border-top: 1px solid rgba(128, 128, 128, 0.4)"
)


def html_table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """Names and values for a notebook, light or dark: all colours are those of the page, and all text is escaped."""
    lines = [
        f'<tr><td style="{_CELL}">{escape(name)}</td><td style="{_CELL}">{escape(value)}</td></tr>'
        for name, value in rows
    ]
    head = f'<tr><th colspan="2" style="{_HEAD}">{escape(title)}</th></tr>'
    return f'<table style="border-collapse: collapse; border: none; color: inherit">{head}{"".join(lines)}</table>'


def evenly(count: int, most: int) -> np.ndarray:
    """Numbers in 0 … count − 1, evenly spaced with both ends among them: all of them, or `most`."""
    import numpy as np  # the help of the command goes without

    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
