"""What a cell of a table in text is: a number, perhaps with a decimal comma, one in other words, or a name."""

from __future__ import annotations

import math
import re

from .wanted import DROP

_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
# Numbers written in other ways, and what stands for one that is missing: a line of these alone may hold no names.
_POINTS_BETWEEN_THOUSANDS = re.compile(r"[+-]?(?:\d{1,3}|[1-9]\d{0,2}(?:\.\d{3})+)")
_GROUPED = r"0[xX][\da-fA-F]+|\d{1,3}(?:[.,'\u2019\s]\d{3})+(?:[.,]\d+)?|\d+(?:[.,]\d+)?(?:[eEdD][+-]?\d+)?"
_SEPARATED = re.compile(r"[+\-\u2212]?\d{1,3}(?:[.,'\u2019\s]\d{3})+(?:[.,]\d+)?")
_SPOILT = re.compile(rf"\(?[+\-\u2212\u2013]?[$€£¥]?\s*(?:{_GROUPED})(?:\s*[$€£¥]|[+-].*[ij])?\)?")
_MISSING = {"", "NA", "N/A", "n/a", "<NA>", "NULL", "null", "None", "missing", "-", "--", ".", "?"}
_NOT_THERE = _MISSING | {"NaN", "nan", "NAN", "#N/A"}
_LOGICAL = {"TRUE", "True", "true", "FALSE", "False", "false"}


class Points:
    """Decimal points, which between semicolons could stand between thousands."""

    def __init__(self, label: str, delimiter: str) -> None:
        self._label, self._place, self._sure = label, "", delimiter != ";"

    def see(self, line: int, cells: list[str]) -> None:
        if self._sure:
            return
        for cell in cells:
            if not _POINTS_BETWEEN_THOUSANDS.fullmatch(cell):
                self._sure = True
            elif "." in cell:
                self._place = self._place or f"line {line}: {cell!r}"

    def check(self) -> None:
        if self._place and not self._sure:
            raise ValueError(
                f"{self._label}, {self._place} could have a decimal point or one between thousands, as all could; "
                f"write 1500 or 1.5, or commas between the cells"
            )


class Commas:
    """Decimal commas, as long as they can be nothing else."""

    def __init__(self, label: str) -> None:
        self._label, self._place, self._sure = label, "", False

    def number(self, line: int, column: str, cell: str) -> float:
        self._place = self._place or f"line {line}, column {column}: {cell!r}"
        self._sure = self._sure or not _THOUSANDS.fullmatch(cell)
        return float(cell.replace(",", "."))

    def check(self, points: bool) -> None:
        if self._place and points:
            raise ValueError(f"{self._label}, {self._place} has a decimal comma, but others have points; use points")
        if self._place and not self._sure:
            raise ValueError(
                f"{self._label}, {self._place} could have a decimal comma or one between thousands, as all could; "
                f"write points"
            )


def numbers_of(cells: list[str]) -> list[float] | None:
    """The numbers of a line where all is well, else None."""
    try:
        numbers = list(map(float, cells))
    except ValueError:
        return None
    return numbers if math.isfinite(sum(numbers)) and not any("_" in cell for cell in cells) else None


def number_of(label: str, line: int, column: str, cell: str, commas: Commas, missing: bool = False) -> float:
    """The number of one cell; ValueError, which says where it stands, if it has none or no finite one.

    With `missing` it is NaN where there is none.
    """
    place = f"{label}, line {line}, column {column}"
    absent = is_missing(cell)
    if absent and missing:
        return math.nan
    if _DECIMAL_COMMA.fullmatch(cell):
        return commas.number(line, column, cell)
    if not is_number(cell):
        what = f"{cell[:60]!r} is not a number" if cell else "the cell is empty"
        raise ValueError(f"{place}: {what}; {_cure(cell, absent)}")
    value = float(cell)
    if not math.isfinite(value):
        cure = f", {DROP}" if absent else ""
        raise ValueError(f"{place}: {cell!r} is not finite; fill or remove NaN and infinite entries{cure}")
    return value


def _cure(cell: str, absent: bool) -> str:
    """What to do about a cell that is no number."""
    if absent:
        return f"write a number such as -1.5e3, {DROP}"
    if cell in _LOGICAL:
        return "write 1 for true and 0 for false"
    if _SEPARATED.fullmatch(cell):
        return "write it without marks between thousands, such as -1500.5"
    return "write numbers such as -1.5e3 between commas, semicolons or tabs"


def is_number(cell: str) -> bool:
    """Whether a cell is a number as Python writes it, or one with a decimal comma."""
    if "_" in cell:  # Python reads 1_000; a table should not
        return False
    try:
        float(cell)
    except ValueError:
        return _DECIMAL_COMMA.fullmatch(cell) is not None
    return True


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is no number."""
    return cell in _NOT_THERE


def is_spoilt(cell: str) -> bool:
    """Whether a cell that is no number looks like one in other words, or like one that is missing."""
    return cell in _MISSING | _LOGICAL or _SPOILT.fullmatch(cell) is not None


def is_whole(cell: str) -> bool:
    """Whether a cell has digits alone, and perhaps a sign."""
    return cell.removeprefix("-").removeprefix("+").isdecimal()
