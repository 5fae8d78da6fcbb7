"""Tables as pandas, R, NumPy and spreadsheets write them: read as what they are, or refused with a sentence."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuralode_flow.problems import PROBLEMS
from neuralode_flow.problems.arrays import read_table

NUMBERS = np.random.default_rng(0).normal(size=(8, 3))
WHOLE = np.random.default_rng(1).integers(-5, 9, size=(8, 3))
NAMES = list("abc")


def read(path: Path, header: str = "auto") -> np.ndarray:
    return read_table("problem.x", path, "x", header).numpy()


def text(folder: Path, content: str | bytes) -> Path:
    path = folder / "x.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# What to_csv is told, and what comes out: the table, or the words of the refusal.
PANDAS = {
    "index": ({}, "table"),
    "no index": ({"index": False}, "table"),
    "neither": ({"index": False, "header": False}, "table"),
    "no names": ({"header": False}, "its first column counts the lines and may be an index"),
    "named index": (
        {"index_label": "id"},
        "counts the lines and may be an index|line 1, column 1: 'id' is not a number",
    ),
    "semicolons": ({"sep": ";", "decimal": ","}, "table"),
    "quoted commas": ({"decimal": ",", "index": False}, "table"),
    "tabs": ({"sep": "\t"}, "table"),
    "all quoted": ({"quoting": 1}, "table"),
    "UTF-16": ({"sep": "\t", "encoding": "utf-16"}, "table"),
}


@pytest.mark.parametrize("columns", [NAMES, [2019, 2020, 2021], [7, 3, 5], [0, 1, 2]], ids=["a", "2019", "7", "0"])
@pytest.mark.parametrize("table", [NUMBERS, WHOLE], ids=["floats", "integers"])
@pytest.mark.parametrize(("options", "outcome"), PANDAS.values(), ids=PANDAS)
@pytest.mark.filterwarnings("ignore:.*is taken as the names")
def test_tables_of_pandas(options: dict, outcome: str, table: np.ndarray, columns: list, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    pd.DataFrame(table, columns=columns).to_csv(path, **options)
    bare = options.get("index") is False and options.get("header") is not False
    if bare and columns == [7, 3, 5] and table is WHOLE:
        pytest.skip("integers over integers: nothing can tell them apart")
    if outcome == "table" and bare and columns != NAMES and not (columns == [0, 1, 2] and table is NUMBERS):
        outcome = r"its first line \(.*\) may be names of columns or numbers; set problem.header=yes"
        np.testing.assert_allclose(read(path, "yes"), table, rtol=1e-15)
    if outcome == "table":
        np.testing.assert_allclose(read(path), table, rtol=1e-15)
    else:
        with pytest.raises(ValueError, match=outcome):
            read(path)


def test_indices_of_pandas_are_no_data(tmp_path: Path) -> None:
    frame, path = pd.DataFrame(NUMBERS, columns=NAMES), tmp_path / "x.csv"
    for index in (frame.index[::-1], pd.date_range("2020", periods=8), [0, 1] * 4, [f"row {i}" for i in range(8)]):
        frame.set_index(pd.Index(index)).to_csv(path)
        np.testing.assert_allclose(read(path), NUMBERS, rtol=1e-15)
    frame.set_index(pd.Index(np.linspace(0, 1, 8))).to_csv(path)
    with pytest.raises(ValueError, match=r"the first column has no name, but line 2 has '0.0' there"):
        read(path)


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("levels", [[["a"], ["x", "y"]], [["a"], [0, 1]], [["a", "b"], [7]]])
def test_two_lines_of_names_are_refused(levels: list, index: bool, tmp_path: Path) -> None:
    columns = pd.MultiIndex.from_product(levels)
    pd.DataFrame(NUMBERS[:, :2], columns=columns).to_csv(tmp_path / "x.csv", index=index)
    with pytest.raises(ValueError, match=r"is not a number|has no name|is whole as no other"):
        read(tmp_path / "x.csv")


def test_one_column_of_pandas(tmp_path: Path) -> None:
    path, one = tmp_path / "x.csv", NUMBERS[:, :1]
    pd.DataFrame(one).to_csv(path)
    np.testing.assert_allclose(read(path), one, rtol=1e-15)
    pd.DataFrame(one).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"its first line \(0\) may be names of columns or numbers"):
        read(path)
    np.testing.assert_allclose(read(path, "yes"), one, rtol=1e-15)
    assert len(read(path, "no")) == 9
    for header in (["a"], False):
        pd.DataFrame(one).to_csv(path, index=False, header=header, sep=";", decimal=",")
        with pytest.raises(ValueError, match=r"decimal comma"):
            read(path)


R_TABLES = {
    "csv": ("write.csv(d, f)", "table"),
    "csv without row names": ("write.csv(d, f, row.names=FALSE)", "table"),
    "csv2": ("write.csv2(d, f)", "table"),
    "csv2 without row names": ("write.csv2(d, f, row.names=FALSE)", "table"),
    "csv of a matrix": ("write.csv(as.matrix(d), f)", "table"),
    "csv of years": ("names(d) <- c('2019', '2020', '2021'); write.csv(d, f, row.names=FALSE)", "table"),
    "csv of named rows": ("rownames(d) <- letters[1:8]; write.csv(d, f)", "table"),
    "table": ("write.table(d, f, sep=',')", "table"),
    "table without quotes": ("write.table(d, f, sep=',', quote=FALSE)", "table"),
    "table with an empty name": ("write.table(d, f, sep=',', col.names=NA)", "table"),
    "table with tabs": ("write.table(d, f, sep='\\t', quote=FALSE)", "table"),
    "table without names": ("write.table(d, f, sep=',', row.names=FALSE, col.names=FALSE)", "table"),
    "one column": ("write.table(d['a'], f, sep=',')", "first"),
    "row names alone": ("write.table(d, f, sep=',', col.names=FALSE)", "may be an index"),
    "blanks": ("write.table(d, f)", "with commas, semicolons or tabs between its cells"),
    "blanks without quotes": ("write.table(d, f, quote=FALSE)", "is not a number"),
    "years without quotes": (
        "names(d) <- c('2019', '2020', '2021'); write.table(d, f, sep=',', quote=FALSE)", "line 2 has 4 cells",
    ),
    "one column of csv2": ("write.csv2(d['a'], f, row.names=FALSE)", "numbers with decimal commas need semicolons"),
    "one column with decimal commas": (
        "write.table(d['a'], f, dec=',', row.names=FALSE, col.names=FALSE)", "or one with a decimal comma",
    ),
    "one column and unquoted rows": ("write.table(d['a'], f, sep=',', quote=FALSE)", "the names of 1 columns"),
}  # fmt: skip


@pytest.fixture(scope="module")
def r_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tables of R, written by one process."""
    folder = tmp_path_factory.mktemp("r")
    np.savetxt(folder / "truth", NUMBERS, fmt="%.17g")
    lines = ["options(digits=17)", "start <- read.table('truth', col.names=c('a', 'b', 'c'))"]
    lines += [f"d <- start; f <- '{i}.csv'; {code}" for i, (code, _) in enumerate(R_TABLES.values())]
    (folder / "write.R").write_text("\n".join(lines))
    subprocess.run(["Rscript", "write.R"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not installed")
@pytest.mark.parametrize("name", R_TABLES)
def test_tables_of_r(name: str, r_folder: Path) -> None:
    path, outcome = r_folder / f"{list(R_TABLES).index(name)}.csv", R_TABLES[name][1]
    if outcome in ("table", "first"):
        np.testing.assert_allclose(read(path), NUMBERS if outcome == "table" else NUMBERS[:, :1], rtol=1e-14)
    else:
        with pytest.raises(ValueError, match=re.escape(outcome)):
            read(path)


def test_tables_of_numpy(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for options in ({}, {"header": "a,b,c"}, {"header": "made by me\non a Monday", "footer": "the end"}):
        np.savetxt(path, NUMBERS, delimiter=",", fmt="%.17g", **options)
        np.testing.assert_array_equal(read(path), NUMBERS)
    np.savetxt(path, NUMBERS, delimiter=",", header="a,b,c")
    with pytest.raises(ValueError, match="has a comment before line 2, which holds numbers"):
        read(path, "yes")
    np.savetxt(path, NUMBERS)
    with pytest.raises(ValueError, match="is not a number; write numbers such as -1.5e3 between commas"):
        read(path)


TEXTS = [
    ("0\n1\n2\n", [[0], [1], [2]]),  # labels
    ("0,1\n0.1,0.995\n0.2,0.98\n", "may be names"),  # a time and its cosine
    ("1,0\n0.5,0.25\n", "may be names"),
    ("1.0,0\n0.5,0.25\n", [[1, 0], [0.5, 0.25]]),
    ("0,1\n1,0\n1,0\n", "may be names"),
    ("1,0\n0,1\n1,0\n", [[1, 0], [0, 1], [1, 0]]),
    ("2019,2020\n5,3\n", "may be names"),
    ("5,3,1\n2019,2020,7\n", [[5, 3, 1], [2019, 2020, 7]]),
    ("0,5.5\n1,2.5\n2,7.0\n", "may be an index"),
    ("0,5.5\n2,2.5\n1,7.0\n", [[0, 5.5], [2, 2.5], [1, 7]]),
    ("a,b,c\n1,2\n3,4\n", "line 1 has the names of 3 columns but line 2 has 2 cells"),
    ("a,b\n1,2,3,4\n", "line 1 has the names of 2 columns but line 2 has 4 cells"),
    ("a,b\n1.5,2,3\n", "the first column has no name, but line 2 has '1.5' there"),
    (",a\n1,2\n,3\n", "the first column has no name, but line 3 has '' there"),
    (",2\n3,4\n", "the first column has no name, but line 2 has '3' there"),
    ("t,a\n0,2\n1,3\n2,4\n", [[0, 2], [1, 3], [2, 4]]),
    ('"0","1"\n5,3\n2,7\n', [[5, 3], [2, 7]]),
    ("1,5\n2,5\n3,5\n", "or one with a decimal comma"),
    ("-1,5\n2,05\n", "or one with a decimal comma"),
    ("1,5;2,5\n", [[1.5, 2.5]]),
    ("a;b\n1,5;2\n-0,25;1e3\n", [[1.5, 2], [-0.25, 1000]]),
    ("1,500;2,500\n", "or one between thousands"),
    ("1,5;2.5\n", "has a decimal comma, but others have points"),
    ("1.234,5;2\n", "'1.234,5' is not a number"),
    ("#,x\n# a comment, and more\n1.5,2.5\n", [[1.5, 2.5]]),
    ("\ufeffa;b\r\n1;2\r\n", [[1, 2]]),
    ("0,1\n1,x\n", "line 2, column 2: 'x' is not a number"),
    # A comment may hold any delimiter and any quotes.
    ("a,b\n1,5\n2,7\n# one; two\n", [[1, 5], [2, 7]]),
    ("1.5,2\n2.5,7\n# one\ttwo\n", [[1.5, 2], [2.5, 7]]),
    ('# a,"b\n1,2.5\n3,"4.5"\n', [[1, 2.5], [3, 4.5]]),
    ('"","a"\n"p;q",1.5\n"r;s",2.5\n', [[1.5], [2.5]]),
    ("sep=;\na;b\n1;2,5\n", [[1, 2.5]]),
    ("sep=\t\na\tb\n1\t2.5\n", [[1, 2.5]]),
    ("sep=;\n1;2,5;3\n2;4,5;7\n", [[1, 2.5, 3], [2, 4.5, 7]]),
    ("#N/A\n1.5\n", "line 1: #N/A is not a number"),
    ("1.5,2\n#DIV/0!,3\n", "line 2: #DIV/0! is not a number"),
    # A number that is missing moves no other up.
    ('a\n1.5\n""\n2.5\n', "line 3, column 1: the cell is empty"),
    ('1.5\n2.5\n""\n', "line 3, column 1: the cell is empty"),
    ("a\n1.5\n\n2.5\n", "the line before line 4 is blank, where a number may be missing"),
    ("a\n\n1.5\n2.5\n", "the line before line 3 is blank, where a number may be missing"),
    ("\n# a comment\n\n1.5\n2.5\n\n\n", [[1.5], [2.5]]),
    ("a\r\r\n1\r\r\n2\r\r\n", [[1], [2]]),  # as Python writes them on Windows
    ("1.500;2.500\n3.100;4.200\n", "line 1: '1.500' could have a decimal point or one between thousands"),
    ("a;b\n200;2\n3.100;4\n", "line 3: '3.100' could have a decimal point or one between thousands"),
    ("1.500;0.25\n3.100;4.200\n", [[1.5, 0.25], [3.1, 4.2]]),
    ("1.500,2.500\n3.100,4.200\n", [[1.5, 2.5], [3.1, 4.2]]),
    ("1.5,2\n\n3,4\n", [[1.5, 2], [3, 4]]),
    # A first line that looks like numbers in other words is no line of names.
    *((f"{cell}\n1.5\n2.5\n", "numbers that are missing or written in another way") for cell in (
        "NA", "null", "-", "True", '"1,234.50"', "1.234.567", "1 234", "\u22121.5", "1.5D+03", "1+2i", "$5.00", "(5.0)",
        "5 €", "0x10",
    )),
    *((f"{name}\n1.5\n2.5\n", [[1.5], [2.5]]) for name in (
        "Na", "x1", "2nd", "5%", "2020-01-01", "01.02.2020", "10:30", "3D", "q0.5", "1_1",
    )),
    # Names of numbers: steps that are equal as nowhere below.
    ("400.0,402.0,404.0,406.0\n0.1,0.15,0.2,0.17\n", "is equally spaced as no other"),
    ("400,402,404,406\n1,5,2,7\n", "is equally spaced as no other"),
    ("0.0,0.1,0.2\n1,5,2\n2.5,5,2\n", "is equally spaced as no other"),
    ("0.2,0.1,0.0\n1,5,2\n2.5,5,2\n", [[0.2, 0.1, 0], [1, 5, 2], [2.5, 5, 2]]),
    ("7\n0.1\n0.2\n", "its first line (7) may be names"),
    ("-7\n0.1\n0.2\n", [[-7], [0.1], [0.2]]),
    ("1,2,3\n5,1,1\n7,4,4\n", "may be names"),
    ("0.0,0.1,0.2,0.3\n0.0,0.2,0.4,0.6\n1,5,2,7\n", [[0, 0.1, 0.2, 0.3], [0, 0.2, 0.4, 0.6], [1, 5, 2, 7]]),
    ("1.5,1.5,1.5,1.5\n1,5,2,7\n", [[1.5, 1.5, 1.5, 1.5], [1, 5, 2, 7]]),
    # Columns without a name, and an index that has one.
    (",,a\nx,0,1.5\nx,1,2.5\n", "column 2 has no name in line 1"),
    ("a,,b\n1,2,3\n", "column 2 has no name in line 1"),
    ("patient_id,a\n1,1.5\n2,2.5\n3,3.5\n", "counts the lines and may be an index"),
    ("i,a\n0,1.5\n1,2.5\n2,3.5\n", "counts the lines and may be an index"),
    ("index,a\n2,1.5\n0,2.5\n1,3.5\n", "has another whole number for each of the lines and may be an index"),
    ("Unnamed: 0,a\n17,1.5\n4,2.5\n", "has another whole number for each of the lines and may be an index"),
    ("id,a\n2,1.5\n0,2.5\n2,3.5\n", [[2, 1.5], [0, 2.5], [2, 3.5]]),
    ('"3",0.5,2.5\n"1",1.5,3.5\n', "its first column is in quotes alone and may be an index"),
    ('"1,5",2\n"2,5",3\n', [[1.5, 2], [2.5, 3]]),
    ("a,b\n1\t2\n3\t4\n", "line 1 has the names of 1 columns but line 2 has 2 cells"),
    # Other lines of numbers that may be names: in levels, and decimals over whole numbers.
    ("1,1\n0,1\n0.3,0.4\n0.1,0.5\n", "its first two lines are whole as no other"),
    ("1,1\n0,1\n0.3,4\n", [[1, 1], [0, 1], [0.3, 4]]),
    ("0.5,1.5\n34,24\n42,20\n", "has decimals as no other"),
    ("0.5,1.5\n34,24\n42,2.5\n", [[0.5, 1.5], [34, 24], [42, 2.5]]),
    ("x,y\n1,2\n0.5,3\n", [[1, 2], [0.5, 3]]),
    ("year,a\n2019,1.5\n2020,2.5\n2021,3.5\n", [[2019, 1.5], [2020, 2.5], [2021, 3.5]]),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*counts the lines and is taken as data")
@pytest.mark.parametrize(("content", "outcome"), TEXTS, ids=[content for content, _ in TEXTS])
def test_what_could_be_two_tables_is_refused_and_what_cannot_is_read(
    content: str, outcome: list | str, tmp_path: Path
) -> None:
    path = text(tmp_path, content)
    if isinstance(outcome, str):
        with pytest.raises(ValueError, match=re.escape(outcome)):
            read(path)
    else:
        np.testing.assert_array_equal(read(path), outcome)


def test_a_column_that_counts_is_said(tmp_path: Path) -> None:
    path = text(tmp_path, ",t,a\np,0,1.5\nq,1,2.5\nr,2,3.5\n")
    with pytest.warns(RuntimeWarning, match=r"its first column, 't', counts the lines and is taken as data"):
        assert read(path).shape == (3, 2)
    with pytest.raises(ValueError, match=r"its first column, 'id', counts the lines and may be an index"):
        read(text(tmp_path, ",id,a\np,0,1.5\nq,1,2.5\nr,2,3.5\n"))


def test_the_setting_decides(tmp_path: Path) -> None:
    path = text(tmp_path, "0,1\n5,3\n2,7\n")
    np.testing.assert_array_equal(read(path, "yes"), [[5, 3], [2, 7]])
    np.testing.assert_array_equal(read(path, "no"), [[0, 1], [5, 3], [2, 7]])
    for header, rows in ((True, 2), (False, 3), ("no", 3)):  # YAML takes yes and no for the former
        problem = PROBLEMS["file"](x=path, y=path, header=header)
        assert f"{rows} samples" in problem.title
    with pytest.raises(ValueError, match="problem.header must be one of auto, yes, no, got 'maybe'"):
        read(path, "maybe")
    with pytest.raises(ValueError, match="line 1, column 1: 'a' is not a number"):
        read(text(tmp_path, "a,b\n1,2\n"), "no")


def test_a_name_of_a_file_moves_no_cursor(tmp_path: Path) -> None:
    path = text(tmp_path, "1.5,2\n2.5,7\n").rename(tmp_path / "\x1b[31m\u202ex.csv")
    assert PROBLEMS["file"](x=path, y=path).title.startswith(r"\x1b[31m\u202ex.csv → \x1b[31m")


def test_names_that_count_over_decimals_are_said(tmp_path: Path) -> None:
    pd.DataFrame(NUMBERS).to_csv(tmp_path / "x.csv", index=False)
    with pytest.warns(RuntimeWarning, match=r"its first line \(0 to 2\) is taken as the names of its columns"):
        table = read(tmp_path / "x.csv")
    np.testing.assert_allclose(table, NUMBERS, rtol=1e-15)
