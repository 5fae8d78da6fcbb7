"""A table from comma-separated text, as pandas, R, NumPy and spreadsheets write it.

Names of columns and of rows are no data. Where text alone cannot tell names from numbers, the file is refused with a
sentence that names `problem.header`, which then decides.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
import warnings
from array import array
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO, NamedTuple

import numpy as np

HEADERS = ("auto", "yes", "no")

# Of one line, or of a cell in quotes that goes over several: 40,000 numbers with all their digits.
_LONGEST_LINE = 2**20
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
# Numbers written in other ways, and what stands for one that is missing: a line of these alone may hold no names.
_GROUPED = r"\d{1,3}(?:[.,'\u2019\s]\d{3})+(?:[.,]\d+)?|\d+(?:[.,]\d+)?(?:[eEdD][+-]?\d+)?"
_SPOILT = re.compile(rf"\(?[+\-\u2212\u2013]?[$€£¥]?\s*(?:{_GROUPED})(?:\s*[$€£¥]|[+-].*[ij])?\)?")
_MISSING = {"", "NA", "N/A", "n/a", "<NA>", "NULL", "null", "None", "missing", "-", "--", ".", "?"}
_LOGICAL = {"TRUE", "True", "true", "FALSE", "False", "false"}
_SPREADSHEET_ERROR = re.compile(r"#(N/A|DIV/0!|VALUE!|REF!|NUM!|NAME\?|NULL!)")
_INDICES = re.compile(
    r"i|(.*[_ .])?(id|index|row|no\.?|nr\.?)|rownames?|rowid|obs|case|sample|subject|record|unnamed: 0|level_0"
)


class _Record(NamedTuple):
    """A line of the table: its number from 1, its cells, whether all or the first were in quotes, what came before.

    That is whether there was a comment anywhere, and a blank line since the last line of the table, if there was one.
    """

    line: int
    cells: list[str]
    quoted: bool
    first_quoted: bool
    commented: bool
    blank: bool | None


class _Body(NamedTuple):
    """The numbers of a table (n, k), and which of them were written without a decimal point or an exponent."""

    table: np.ndarray
    whole: np.ndarray


def read_text(label: str, stream: BinaryIO, header: str) -> np.ndarray:
    """The numbers in comma-, semicolon- or tab-separated text (UTF-8, or UTF-16 with its mark), as a table (n, k).

    Parameters
    ----------
    label : str
        Opens every error message.
    stream : file
        Of the text; lines that begin with # are left out.
    header : str
        "yes": the first line holds the names of the columns. "no": all lines are numbers. "auto": the first line holds
        names if it has no number, if its first cell is empty, if it alone is in quotes, or if it counts 0, 1, … over
        numbers with decimals (with a RuntimeWarning); whole numbers that may be names otherwise are refused.

    Raises
    ------
    ValueError
        If it is no table, or could be two; the message names the place, or `problem.header`.

    Notes
    -----
    The first column is left out, as names of the rows, where the line of names has an empty cell above it (pandas, R's
    write.csv) or is one cell short (R's write.table).
    """
    encoding, delimiter = _dialect(stream)
    with io.TextIOWrapper(stream, encoding, newline="") as text:
        return _table(label, _records(label, text, delimiter), delimiter, header)


def _table(label: str, records: Iterator[_Record], delimiter: str, header: str) -> np.ndarray:
    first = next(records, None)
    second = next(records, None)
    named = first is not None and _is_header(label, first, second, header)
    if first is None or (named and second is None):
        raise ValueError(f"{label} is empty: no line of numbers; give at least one")
    if named and second is not None:
        names = _RowNames(label, first.cells) if _has_row_names(label, first, second, delimiter) else None
        body = _numbers(label, chain([second], records), len(second.cells), names)
        if header == "auto":
            _refuse_named_index(label, first.cells, body)
        return body.table
    body = _numbers(label, chain([first], [second] if second else [], records), len(first.cells), None)
    return _without_header(label, first, body, delimiter) if header == "auto" else body.table


def _dialect(stream: BinaryIO) -> tuple[str, str]:
    """Encoding and delimiter: tab, semicolon or comma by the last line looked at, since a header might quote any."""
    sample = stream.read(_LONGEST_LINE)
    marked = sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    wide = marked and re.search("[0-9]", sample.decode("utf-16", errors="ignore"))  # else it is no text at all
    encoding = "utf-16" if wide else "utf-8-sig"
    lines = [line for line in sample.decode(encoding, errors="ignore").splitlines() if line.strip()]
    if len(lines) > 1 and stream.read(1):
        del lines[-1]  # perhaps not whole
    stream.seek(0)
    last = next((line for line in reversed(lines) if not line.lstrip().startswith("#")), "")  # a comment may hold any
    unquoted = re.sub('"[^"]*"', "", last)
    return encoding, next((mark for mark in "\t;" if mark in unquoted), ",")


def _records(label: str, text: io.TextIOWrapper, delimiter: str) -> Iterator[_Record]:
    """All lines that are neither blank nor comments."""
    pieces: list[str] = []
    number = length = 0
    commented, blank = False, None

    def lines() -> Iterator[str]:
        nonlocal number, length, commented
        while line := text.readline(_LONGEST_LINE):
            number += 1
            length += len(line)
            if length >= _LONGEST_LINE:
                raise ValueError(f"{label} has a line of more than {_LONGEST_LINE} characters; it is no table")
            if pieces or not _is_remark(label, number, line):
                pieces.append(line)
                yield line
            else:  # quotes in it mean nothing
                commented = commented or line.lstrip().startswith("#")
                length = 0

    try:
        for cells in csv.reader(lines(), delimiter=delimiter, strict=True):
            raw = "".join(pieces).strip()
            pieces.clear()
            length = 0
            cells = [cell.strip() for cell in cells]
            if raw:
                quoted = raw.count('"') >= 2 * len(cells)
                yield _Record(number, cells, quoted, raw[:1] == '"', commented, blank)
                blank = False
            elif blank is not None:
                blank = True
    except (OSError, UnicodeError, csv.Error) as error:
        raise ValueError(
            f"{label} cannot be read as UTF-8 text with commas, semicolons or tabs between its cells ({error}); export "
            f"it again"
        ) from error


def _is_remark(label: str, number: int, line: str) -> bool:
    """Whether a line is none of the table: a comment, or a spreadsheet's hint which delimiter there is."""
    start = line.lstrip()
    if not start.startswith("#"):
        return number == 1 and re.fullmatch(r"sep=.", start.rstrip("\r\n")) is not None
    error = _SPREADSHEET_ERROR.match(start)
    if error:
        raise ValueError(
            f"{label}, line {number}: {error[0]} is not a number; fill or remove what the spreadsheet misses"
        )
    return True


def _is_header(label: str, first: _Record, second: _Record | None, header: str) -> bool:
    """Whether the first line holds names; one with words and numbers is a mistake that should be seen, not skipped."""
    numbers = [_is_number(cell) for cell in first.cells]
    if header == "yes" and first.commented and all(numbers):
        raise ValueError(
            f"{label} has a comment before line {first.line}, which holds numbers: of problem.header=yes either could "
            f"be the names; remove one of them, or set problem.header=no"
        )
    if header != "auto":
        return header == "yes"
    if not any(numbers):
        if any(first.cells) and all(_is_spoilt(cell) for cell in first.cells):
            shown = ", ".join(map(repr, first.cells[:3])) + (" …" if len(first.cells) > 3 else "")
            raise ValueError(
                f"{label}: line {first.line} ({shown}) may be names of columns, or numbers that are missing or written "
                f"in another way; set problem.header=yes for the former, write numbers such as -1.5e3 for the latter"
            )
        return any(first.cells)
    unnamed = first.cells[0] == "" and len(first.cells) > 1
    return second is not None and (unnamed or (first.quoted and not second.quoted))


def _has_row_names(label: str, names: _Record, row: _Record, delimiter: str) -> bool:
    """Whether the first column names the rows; ValueError where the line of names has too many or too few cells."""
    above, below = len(names.cells), len(row.cells)
    unnamed = next((i for i, cell in enumerate(names.cells[1:], 2) if cell == ""), None)
    if above == below and unnamed:
        raise ValueError(
            f"{label}: column {unnamed} has no name in line {names.line}; name it if it is data, remove it if it names "
            f"rows"
        )
    if above == below:
        return below > 1 and names.cells[0] == ""
    unsure = delimiter == "," and below == 2 and _is_whole(row.cells[0]) and not row.first_quoted  # 1,5 is 1.5?
    if above == below - 1 and not unsure:
        return True
    doubled = delimiter == "," and below == 2 * above
    comma = "; numbers with decimal commas need semicolons between them" if doubled else ""
    raise ValueError(
        f"{label}: line {names.line} has the names of {above} columns but line {row.line} has {below} cells; give each "
        f"column one name, or set problem.header=no if line {names.line} holds numbers{comma}"
    )


class _RowNames:
    """Looks at the cells of a column that has no name: they must be names of rows and not data."""

    def __init__(self, label: str, names: list[str]) -> None:
        self._label = label
        others = names[1:]
        counted = others == [str(i) for i in range(len(others))]  # as pandas numbers columns
        self._must_count = bool(others) and not counted and all(map(_is_number, others))
        self._expected: tuple[int, ...] = (0, 1)

    def check(self, line: int, cell: str) -> None:
        whole = _is_whole(cell)
        if cell and not whole and not _is_number(cell):
            return
        if whole and (not self._must_count or int(cell) in self._expected):
            self._expected = (int(cell) + 1,)
            return
        raise ValueError(
            f"{self._label}: the first column has no name, but line {line} has {cell!r} there, which is no name of a "
            f"row; name the column if it is data, remove it if it is not"
        )


def _numbers(label: str, rows: Iterator[_Record], width: int, names: _RowNames | None) -> _Body:
    """The numbers of all lines, without the names of rows."""
    values, whole, left = array("d"), bytearray(), int(names is not None)
    commas, points, first = _Commas(label), False, 0
    after_blank, after_line = 0, False
    for line, cells, *_, blank in rows:
        first = first or line
        after_blank, after_line = after_blank or line * bool(blank), after_line or blank is False
        if len(cells) != width:
            raise ValueError(
                f"{label} is ragged: line {line} has {len(cells)} cells but line {first} has {width}; make all lines "
                "equally long"
            )
        if names is not None:
            names.check(line, cells[0])
        cells = cells[left:]
        values.extend(_fast(cells) or [_number(label, line, i, cell, commas) for i, cell in enumerate(cells, left + 1)])
        whole.extend(map(_is_whole, cells))
        points = points or any("." in cell for cell in cells)
    commas.check(points)
    if width == 1 and after_blank and after_line:  # else it is how lines end
        raise ValueError(
            f"{label}: the line before line {after_blank} is blank, where a number may be missing; fill or remove "
            f"missing entries"
        )
    shape = (-1, width - left)
    return _Body(np.frombuffer(values).reshape(shape), np.frombuffer(whole, dtype=bool).reshape(shape))


class _Commas:
    """Decimal commas, as long as they can be nothing else."""

    def __init__(self, label: str) -> None:
        self._label, self._place, self._sure = label, "", False

    def number(self, line: int, column: int, cell: str) -> float:
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


def _refuse_named_index(label: str, names: list[str], body: _Body) -> None:
    """Raises ValueError where the line below the names may hold names as well, or the first column may be an index."""
    table, whole = body
    if len(set(names)) < len(names) and len(table) > 1 and whole[0].all() and not whole[1:].any():  # pandas
        raise ValueError(
            f"{label}: names of columns repeat themselves, and the line below them may hold names or numbers; write "
            f"one line of names, all different"
        )
    if _INDICES.fullmatch(names[0].lower()) and _counts(body, 0, 1):
        raise ValueError(
            f"{label}: its first column, {names[0]!r}, counts the lines and may be an index; remove it if it is one, "
            f"set problem.header=yes if it is data"
        )


def _counts(body: _Body, *starts: int) -> bool:
    """Whether the first of several columns counts three lines or more, from one of `starts`."""
    n, width = body.table.shape
    column = body.table[:, 0]
    counting = body.whole[:, 0].all() and column[0] in starts and (np.diff(column) == 1).all()
    return width > 1 and n > 2 and bool(counting)


def _without_header(label: str, line: _Record, body: _Body, delimiter: str) -> np.ndarray:
    """The table of a file all of whose lines are numbers, unless the first line or column may be names."""
    table, whole = body
    first = table[0]
    if len(table) > 1 and whole[0].all() and _may_be_names(body):
        if len(first) > 1 and _is_range(first) and not whole[1:].any() and not _is_even(table[:, 0]):
            warnings.warn(
                f"{label}: its first line (0 to {len(first) - 1}) is taken as the names of its columns; set "
                f"problem.header=no if it holds numbers",
                RuntimeWarning,
                stacklevel=2,
            )
            return table[1:]
        shown = ", ".join(f"{number:g}" for number in first[:3]) + (" …" if len(first) > 3 else "")
        raise ValueError(
            f"{label}: its first line ({shown}) may be names of columns or numbers; set problem.header=yes for the "
            f"former, problem.header=no for the latter"
        )
    if len(table) > 1 and _may_be_marks(table):
        raise ValueError(
            f"{label}: its first line ({first[0]:g}, {first[1]:g}, {first[2]:g} …) is equally spaced as no other, and "
            f"may be names of columns or numbers; set problem.header=yes for the former, problem.header=no for the "
            f"latter"
        )
    if _counts(body, 0, int(line.first_quoted and not line.quoted)):  # R quotes names of rows
        raise ValueError(
            f"{label}: its first column counts the lines and may be an index; remove it if it is one, set "
            f"problem.header=no if it is data"
        )
    pairs = delimiter == "," and table.shape[1] == 2 and len(table) > 1 and whole.all()
    if pairs and (table[:, 1] >= 0).all() and (table[:, 1] > 1).any():
        raise ValueError(
            f"{label}: each line may be two whole numbers or one with a decimal comma; set problem.header=no for the "
            f"former, write points for the latter"
        )
    return table


def _may_be_names(body: _Body) -> bool:
    """Whether whole numbers in the first line look like names: 0, 1, …, years, or whole as nothing below them is."""
    table, whole = body
    first, decimals = table[0], not whole[1:].any()
    if len(first) == 1:  # labels 0, 1, … are data
        return decimals and first[0] == 0 and len(table) > 2
    years = (table >= 1800) & (table < 2200) & whole
    distinct = len(np.unique(first)) == len(first)
    counted = _is_range(first) or (len(first) > 2 and _is_range(first - 1))  # from 0, or from 1
    return counted or (distinct and (decimals or (bool(years[0].all()) and not years[1:].any())))


def _may_be_marks(table: np.ndarray) -> bool:
    """Whether the first line alone has equal steps, as the wavelengths or times above columns have."""
    first = np.diff(table[0])
    if len(first) < 3 or not first.any() or not _is_even(table[0]):
        return False
    return not any(row[0] != row[1] and _is_even(row) for row in table[1:])


def _is_range(values: np.ndarray) -> bool:
    return np.array_equal(values, np.arange(len(values)))


def _is_even(column: np.ndarray) -> bool:
    """Whether three numbers or more are equally spaced, as times are."""
    steps = np.diff(column)
    return len(steps) > 1 and np.allclose(steps, steps.mean(), rtol=1e-3, atol=0.0)


def _fast(cells: list[str]) -> list[float] | None:
    """The numbers of a line where all is well, else None."""
    try:
        numbers = list(map(float, cells))
    except ValueError:
        return None
    return numbers if math.isfinite(sum(numbers)) and not any("_" in cell for cell in cells) else None


def _number(label: str, line: int, column: int, cell: str, commas: _Commas) -> float:
    place = f"{label}, line {line}, column {column}"
    if _DECIMAL_COMMA.fullmatch(cell):
        return commas.number(line, column, cell)
    if not _is_number(cell):
        what = f"{cell[:60]!r} is not a number" if cell else "the cell is empty"
        raise ValueError(f"{place}: {what}; write numbers such as -1.5e3 between commas, semicolons or tabs")
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError(f"{place}: {cell!r} is not finite; fill or remove NaN and infinite entries")
    return value


def _is_number(cell: str) -> bool:
    if "_" in cell:  # Python reads 1_000; a table should not
        return False
    try:
        float(cell)
    except ValueError:
        return _DECIMAL_COMMA.fullmatch(cell) is not None
    return True


def _is_spoilt(cell: str) -> bool:
    """Whether a cell that is no number looks like one in other words, or like one that is missing."""
    return cell in _MISSING | _LOGICAL or _SPOILT.fullmatch(cell) is not None


def _is_whole(cell: str) -> bool:
    """Whether a cell has digits alone, and perhaps a sign."""
    return cell.removeprefix("-").removeprefix("+").isdecimal()
