"""Whether the first line or the first column of a table in text holds names: those are no data.

Where text alone cannot tell names from numbers, the table is refused with a sentence that names `problem.header`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from ..caution import warn
from ..display import first_of
from .cells import is_number, is_spoilt, is_whole

_INDICES = re.compile(
    r"i|(.*[_ .])?(id|index|row|no\.?|nr\.?)|rownames?|rowid|obs|case|sample|subject|record|unnamed: 0|level_0"
)


class Line(NamedTuple):
    """A line of the table: its number from 1, its cells, whether all or the first were in quotes, what came before.

    That is whether there was a comment anywhere, and a blank line since the last line of the table, if there was one.
    """

    line: int
    cells: list[str]
    quoted: bool
    first_quoted: bool
    commented: bool
    blank: bool | None


class Body(NamedTuple):
    """The numbers of a table (n, k), and which of them were written without a decimal point or an exponent."""

    table: np.ndarray
    whole: np.ndarray


def is_header(label: str, first: Line, second: Line | None, header: str) -> bool:
    """Whether the first line holds names; one with words and numbers is a mistake that should be seen, not skipped."""
    numbers = [is_number(cell) for cell in first.cells]
    if header == "yes" and first.commented and all(numbers):
        raise ValueError(
            f"{label} has a comment before line {first.line}, which holds numbers: of problem.header=yes either could "
            f"be the names; remove one of them, or set problem.header=no"
        )
    if header != "auto":
        return header == "yes"
    if not any(numbers):
        if any(first.cells) and all(is_spoilt(cell) for cell in first.cells):
            shown = first_of([*map(repr, first.cells)], 3)
            raise ValueError(
                f"{label}: line {first.line} ({shown}) may be names of columns, or numbers that are missing or written "
                f"in another way; set problem.header=yes for the former, write numbers such as -1.5e3 for the latter"
            )
        return any(first.cells)
    unnamed = first.cells[0] == "" and len(first.cells) > 1
    return second is not None and (unnamed or (first.quoted and not second.quoted))


def has_row_names(label: str, names: Line, row: Line, delimiter: str) -> bool:
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
    unsure = delimiter == "," and below == 2 and is_whole(row.cells[0]) and not row.first_quoted  # 1,5 is 1.5?
    unsure |= above == 1 and not names.quoted and bool({",", ";"} & set(names.cells[0]))  # names of two columns
    if above == below - 1 and not unsure:
        return True
    doubled = delimiter == "," and below == 2 * above
    comma = "; numbers with decimal commas need semicolons between them" if doubled else ""
    raise ValueError(
        f"{label}: line {names.line} has the names of {above} columns but line {row.line} has {below} cells; give each "
        f"column one name, or set problem.header=no if line {names.line} holds numbers{comma}"
    )


class RowNames:
    """Looks at the cells of a column that has no name: they must be names of rows and not data.

    Where the line of names is one cell `short`, lines that all end with a mark between cells have no names of rows.
    """

    def __init__(self, label: str, names: list[str], *, short: bool) -> None:
        self._label, self._open = label, short
        others = names[1:]
        counted = others == [str(i) for i in range(len(others))]  # as pandas numbers columns
        self._must_count = bool(others) and not counted and all(map(is_number, others))
        self._expected: tuple[int, ...] = (0, 1)

    def check(self, line: int, cells: list[str]) -> None:
        cell = cells[0]
        whole = is_whole(cell)
        self._open &= cells[-1] == ""
        if cell and not whole and not is_number(cell):
            return
        if whole and (not self._must_count or int(cell) in self._expected):
            self._expected = (int(cell) + 1,)
            return
        raise ValueError(
            f"{self._label}: the first column has no name, but line {line} has {cell!r} there, which is no name of a "
            f"row; name the column if it is data, remove it if it is not"
        )

    def check_end(self) -> None:
        if self._open:
            raise ValueError(
                f"{self._label}: all lines below the names end with an empty cell, so that a first column may have no "
                f"name, or each line ends with a mark between cells; remove that mark, or name the column"
            )


def check_second(label: str, body: Body) -> None:
    """Raises ValueError where the line below the names of columns may hold names as well."""
    table, whole = body
    if table.shape[1] > 1 and len(table) > 1 and whole[0].all() and not whole[1:].any():  # pandas' names in levels
        raise ValueError(
            f"{label}: the line below the names of columns is whole as no other and may hold names or numbers; "
            f"remove it if it holds names, set problem.header=yes if it holds numbers"
        )


def check_named(label: str, names: list[str], body: Body) -> None:
    """Raises ValueError where the line below the names may hold names as well, or the first column may be an index."""
    check_second(label, body)
    first = names[-body.table.shape[1]]  # names of rows are no column of the body
    counting, named = _counts(body, 0, 1), _INDICES.fullmatch(first.lower())
    if named and (counting or _numbers_lines(body)):
        how = "counts" if counting else "has another whole number for each of"
        raise ValueError(
            f"{label}: its first column, {first!r}, {how} the lines and may be an index; remove it if it is one, set "
            f"problem.header=yes if it is data"
        )
    if counting:
        warn(
            f"{label}: its first column, {first!r}, counts the lines and is taken as data; remove it if it is an index"
        )


def _counts(body: Body, *starts: int) -> bool:
    """Whether the first of several columns counts three lines or more, from one of `starts`."""
    n, width = body.table.shape
    column = body.table[:, 0]
    counting = body.whole[:, 0].all() and column[0] in starts and (np.diff(column) == 1).all()
    return width > 1 and n > 2 and bool(counting)


def _numbers_lines(body: Body) -> bool:
    """Whether the first of several columns has whole numbers alone, none of them twice, in any order."""
    n, width = body.table.shape
    return width > 1 and n > 1 and bool(body.whole[:, 0].all()) and len(np.unique(body.table[:, 0])) == n


def without_names(label: str, line: Line, body: Body, delimiter: str) -> np.ndarray:
    """The table of a file all of whose lines are numbers, unless the first line or column may be names."""
    table, whole = body
    first = table[0]
    if len(table) > 1 and whole[0].all() and _may_be_names(body):
        if len(first) > 1 and _is_range(first) and not whole[1:].any() and not _is_even(table[:, 0]):
            warn(
                f"{label}: its first line (0 to {len(first) - 1}) is taken as the names of its columns; set "
                f"problem.header=no if it holds numbers"
            )
            return table[1:]
        shown = first_of([f"{number:g}" for number in first], 3)
        raise ValueError(
            f"{label}: its first line ({shown}) may be names of columns or numbers; set problem.header=yes for the "
            f"former, problem.header=no for the latter"
        )
    if _may_be_levels(body):
        raise ValueError(
            f"{label}: its first two lines are whole as no other and may be names of columns or numbers; remove them "
            f"in the first case, set problem.header=no in the second"
        )
    if _has_decimals_alone(body):
        raise ValueError(
            f"{label}: its first line ({first[0]:g}, {first[1]:g} …) has decimals as no other, and may be names of "
            f"columns or numbers; set problem.header=yes for the former, problem.header=no for the latter"
        )
    if len(table) > 1 and _may_be_marks(table):
        raise ValueError(
            f"{label}: its first line ({first[0]:g}, {first[1]:g}, {first[2]:g} …) is equally spaced as no other, and "
            f"may be names of columns or numbers; set problem.header=yes for the former, problem.header=no for the "
            f"latter"
        )
    quoted = line.first_quoted and not line.quoted and _numbers_lines(body)  # R quotes names of rows
    if quoted or _counts(body, 0):
        how = "is in quotes alone" if quoted else "counts the lines"
        raise ValueError(
            f"{label}: its first column {how} and may be an index; remove it if it is one, set problem.header=no if it "
            f"is data"
        )
    pairs = delimiter == "," and table.shape[1] == 2 and len(table) > 1 and whole.all()
    if pairs and (table[:, 1] >= 0).all() and (table[:, 1] > 1).any():
        raise ValueError(
            f"{label}: each line may be two whole numbers or one with a decimal comma; set problem.header=no for the "
            f"former, write points for the latter"
        )
    return table


def _may_be_names(body: Body) -> bool:
    """Whether whole numbers in the first line look like names: 0, 1, …, years, or whole as nothing below them is."""
    table, whole = body
    first, decimals = table[0], not whole[1:].any()
    if len(first) == 1:  # labels 0, 1, … are data
        return decimals and first[0] >= 0 and len(table) > 2
    years = (table >= 1800) & (table < 2200) & whole
    distinct = len(np.unique(first)) == len(first)
    counted = _is_range(first) or (len(first) > 2 and _is_range(first - 1))  # from 0, or from 1
    return counted or (distinct and (decimals or (bool(years[0].all()) and not years[1:].any())))


def _may_be_levels(body: Body) -> bool:
    """Whether two lines of whole numbers stand over decimals, as pandas' columns in levels."""
    n, width = body.table.shape
    return n > 2 and width > 1 and bool(body.whole[:2].all()) and not body.whole[2:].any()


def _has_decimals_alone(body: Body) -> bool:
    """Whether different decimals, such as frequencies or concentrations, stand over lines of whole numbers."""
    table, whole = body
    different = table.shape[1] > 1 and len(np.unique(table[0])) == table.shape[1]
    return different and len(table) > 2 and not whole[0].any() and bool(whole[1:].all())


def _may_be_marks(table: np.ndarray) -> bool:
    """Whether the first line alone has equal steps, as the wavelengths or times above columns have."""
    if not (np.diff(table[0]) > 0).all() or not _is_even(table[0]):
        return False
    return not any(row[0] != row[1] and _is_even(row) for row in table[1:])


def _is_range(values: np.ndarray) -> bool:
    return np.array_equal(values, np.arange(len(values)))


def _is_even(column: np.ndarray) -> bool:
    """Whether three numbers or more are equally spaced, as times are."""
    steps = np.diff(column)
    return len(steps) > 1 and np.allclose(steps, steps.mean(), rtol=1e-3, atol=0.0)
