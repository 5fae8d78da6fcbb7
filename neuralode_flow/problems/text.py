"""A table from comma-separated text, as pandas, R, NumPy and spreadsheets write it.

Names of columns and of rows are no data. Where text alone cannot tell names from numbers, the file is refused with a
sentence that names `problem.header`, which then decides.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import BinaryIO

import numpy as np

from .cells import Commas, Points, is_missing, is_number, is_whole, number_of, numbers_of
from .names import Body, Line, RowNames, check_named, check_second, has_row_names, is_header, without_names
from .wanted import Wanted

HEADERS = ("auto", "yes", "no")

# Of one line, or of a cell in quotes that goes over several: 40,000 numbers with all their digits.
_LONGEST_LINE = 2**20
_SPREADSHEET_ERROR = re.compile(r"#(N/A|DIV/0!|VALUE!|REF!|NUM!|NAME\?|NULL!)")


def read_text(
    label: str, stream: BinaryIO, header: str, wanted: Wanted | None = None, *, blanks: bool = False
) -> np.ndarray:
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
        numbers with decimals (with a RuntimeWarning); numbers that may be names otherwise are refused (see Notes).
    wanted : Wanted, optional
        Columns by name: then the first line holds names, whatever else is in the table. Whether missing numbers become
        NaN.
    blanks : bool
        Whether there may be blanks alone between the cells.

    Raises
    ------
    ValueError
        If it is no table, or could be two; the message names the place, or `problem.header`.

    Notes
    -----
    The first column is left out, as names of the rows, where the line of names has an empty cell above it (pandas, R's
    write.csv) or is one cell short (R's write.table). Refused are a first line of whole numbers over decimals, of years
    over other numbers, of 0, 1, … or 1, 2, 3, … and of equal steps up where no other line has equal steps; a line of
    whole numbers over decimals below names, or two of them without names (pandas' columns in levels); different
    decimals over whole numbers; a first column that counts the lines, unless it has a name that no index has (a
    RuntimeWarning then); one of different whole numbers that has the name of an index or is in quotes alone. Two
    decimals above two columns of decimals are data: nothing in the text could tell.
    """
    encoding, delimiter = _dialect(stream, blanks)
    wanted = wanted or Wanted()
    with io.TextIOWrapper(stream, encoding, newline="") as text:
        lines = _lines(label, text, delimiter)
        if wanted.columns is not None:
            return _columns(label, lines, delimiter, header, wanted)
        return _table(label, lines, delimiter, header, wanted.missing)


def _columns(label: str, lines: Iterator[Line], delimiter: str, header: str, wanted: Wanted) -> np.ndarray:
    """The columns that are asked for by the names in the first line; what else is in the table is not looked at."""
    first, second = next(lines, None), next(lines, None)
    if header == "no":
        raise ValueError(f"{label} has no line of names with problem.header=no, and columns are asked for by name")
    if first is None or second is None:
        raise ValueError(f"{label} is empty: no line of numbers below one of names; give at least one")
    width = len(second.cells)
    left = int(len(first.cells) != width and has_row_names(label, first, second, delimiter))
    try:
        picks = [left + i for i in wanted.picks(label, first.cells)]
    except ValueError as error:
        if any(cell == "" or is_number(cell) for cell in first.cells):
            raise ValueError(f"{error}; the first line must hold the names of the columns") from error
        raise
    names = RowNames(label, first.cells, short=True) if left else None
    rows = chain([second], lines)
    body = _numbers(label, rows, delimiter, width, names, wanted.missing, picks, [""] * left + first.cells)
    if header == "auto":
        check_second(label, body)
    return body.table


def _table(label: str, lines: Iterator[Line], delimiter: str, header: str, missing: bool) -> np.ndarray:
    first, second = next(lines, None), next(lines, None)
    named = first is not None and is_header(label, first, second, header)
    if first is None or (named and second is None):
        raise ValueError(f"{label} is empty: no line of numbers; give at least one")
    if named and second is not None:
        short = len(first.cells) < len(second.cells)
        names = RowNames(label, first.cells, short=short) if has_row_names(label, first, second, delimiter) else None
        body = _numbers(label, chain([second], lines), delimiter, len(second.cells), names, missing)
        if header == "auto":
            check_named(label, first.cells, body)
        return body.table
    body = _numbers(
        label, chain([first], [second] if second else [], lines), delimiter, len(first.cells), None, missing
    )
    return without_names(label, first, body, delimiter) if header == "auto" else body.table


def _dialect(stream: BinaryIO, blanks: bool) -> tuple[str, str]:
    """Encoding and delimiter: tab, semicolon or comma by the last line looked at, since a header might quote any.

    With `blanks`, it is a blank where the commas can only be decimal ones.
    """
    sample = stream.read(_LONGEST_LINE)
    marked = sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    wide = marked and re.search("[0-9]", sample.decode("utf-16", errors="ignore"))  # else it is no text at all
    encoding = "utf-16" if wide else "utf-8-sig"
    lines = [line for line in sample.decode(encoding, errors="ignore").splitlines() if line.strip()]
    if len(lines) > 1 and stream.read(1):
        del lines[-1]  # perhaps not whole
    stream.seek(0)
    last = next((line for line in reversed(lines) if not line.lstrip().startswith("#")), "")  # a comment may hold any
    unquoted = re.sub('"[^"]*"', "quoted", last)
    mark = next((mark for mark in "\t;" if mark in unquoted), ",")
    cells = unquoted.split()
    between = blanks and mark == "," and len(cells) > 1
    return encoding, " " if between and all("," not in cell or is_number(cell) for cell in cells) else mark


def _lines(label: str, text: io.TextIOWrapper, delimiter: str) -> Iterator[Line]:
    """All lines that are neither blank nor comments."""
    pieces: list[str] = []
    number = length = 0
    commented, blank = False, None

    def raw() -> Iterator[str]:
        nonlocal number, length, commented
        while line := text.readline(_LONGEST_LINE):
            number += 1
            length += len(line)
            if length >= _LONGEST_LINE:
                raise ValueError(f"{label} has a line of more than {_LONGEST_LINE} characters; it is no table")
            if pieces or not _is_remark(label, number, line):
                pieces.append(line)
                yield line.rstrip() + "\n" if delimiter == " " else line
            else:  # quotes in it mean nothing
                commented = commented or line.lstrip().startswith("#")
                length = 0

    try:
        for cells in csv.reader(raw(), delimiter=delimiter, skipinitialspace=delimiter == " ", strict=True):
            written = "".join(pieces).strip()
            pieces.clear()
            length = 0
            cells = [cell.strip() for cell in cells]
            if written:
                quoted = written.count('"') >= 2 * len(cells)
                yield Line(number, cells, quoted, written[:1] == '"', commented, blank)
                blank = False
            elif blank is not None:
                blank = True
    except (OSError, UnicodeError, csv.Error) as error:
        raise ValueError(
            f"{label} cannot be read as UTF-8 text with commas, semicolons or tabs between its cells ({error}); export "
            f"it again, as UTF-8"
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


def _numbers(
    label: str,
    rows: Iterator[Line],
    delimiter: str,
    width: int,
    names: RowNames | None,
    missing: bool,
    picks: Sequence[int] | None = None,
    called: Sequence[str] = (),
) -> Body:
    """The numbers of all lines, in the columns that are picked: by default in all but the names of rows."""
    values, whole = array("d"), bytearray()
    picks = range(int(names is not None), width) if picks is None else picks
    places = [f"{i + 1} ({called[i]!r})" if called else f"{i + 1}" for i in picks]
    commas, thousands, points, first = Commas(label), Points(label, delimiter), False, 0
    gap, close = 0, False  # a line that follows a blank one, and whether any follows another
    for line, cells, *_, blank in rows:
        first = first or line
        gap, close = gap or line * bool(blank), close or blank is False
        if len(cells) != width:
            raise ValueError(
                f"{label} is ragged: line {line} has {len(cells)} cells but line {first} has {width}; make all lines "
                "equally long"
            )
        if names is not None:
            names.check(line, cells)
        cells = [cells[i] for i in picks]
        values.extend(
            numbers_of(cells)
            or [number_of(label, line, *each, commas, missing) for each in zip(places, cells, strict=True)]
        )
        whole.extend(map(is_whole, cells))
        cells = [cell for cell in cells if not is_missing(cell)]
        thousands.see(line, cells)
        points = points or any("." in cell for cell in cells)
    if names is not None:
        names.check_end()
    commas.check(points)
    thousands.check()
    if width == 1 and gap and close:  # else it is how lines end
        raise ValueError(
            f"{label}: the line before line {gap} is blank, where a number may be missing; fill or remove "
            f"missing entries"
        )
    shape = (-1, len(picks))
    return Body(np.frombuffer(values).reshape(shape), np.frombuffer(whole, dtype=bool).reshape(shape))
