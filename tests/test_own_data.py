"""Tables from outside, as pandas, R, xarray and spreadsheets write them: read as meant, or refused with the cure.

Each holds the same three columns of numbers, among others; what is read must be these numbers, to the last bit or as
many digits as were written.
"""

from __future__ import annotations

import builtins
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import hydra
import numpy as np
import pandas as pd
import pyarrow
import pytest
import xarray as xr
from pyarrow import parquet

from neuralode_flow.app.schema import checked
from neuralode_flow.problems import PROBLEMS
from neuralode_flow.problems.arrays import read_columns, read_table

ROWS = 9
NUMBERS = np.random.default_rng(0).normal(size=(ROWS, 3)) * [10, 1, 0.01]
NAMES = ["length, cm", "Größe", "y"]
HOLES = NUMBERS.copy()
HOLES[2, 0] = HOLES[5, 2] = np.nan
KEPT = np.delete(NUMBERS, [2, 5], axis=0)
ROUND = np.round(NUMBERS, 3)


def frame(numbers: np.ndarray = NUMBERS) -> pd.DataFrame:
    """The numbers among columns that hold none."""
    table = pd.DataFrame(numbers, columns=NAMES)
    table.insert(1, "site", [f"Oslo; {i}" if i % 2 else "Rom" for i in range(ROWS)])
    table["day"] = pd.date_range("2026-01-01", periods=ROWS)
    return table


def columns(path: Path, *, missing: bool = False) -> np.ndarray:
    """x and y of a table by the names of their columns, side by side."""
    parts = read_columns("problem.table", path, {"problem.x": NAMES[:2], "problem.y": NAMES[2:]}, missing=missing)
    return np.concatenate([part.numpy() for part in parts], axis=1)


def write(name: str, text: str, encoding: str = "utf-8") -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        (folder / name).write_bytes(text.encode(encoding))
        return folder / name

    return made


def pandas_csv(name: str, numbers: np.ndarray = NUMBERS, **options: object) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        frame(numbers).to_csv(folder / name, **options)
        return folder / name

    return made


def pandas_parquet(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        change(frame()).to_parquet(folder / "t.parquet")
        return folder / "t.parquet"

    return made


def with_holes_of_integers(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(y=pd.array([1, None, *range(3, ROWS + 1)], dtype="Int64"))


def excel(rows: np.ndarray, decimal: str = ",", mark: str = ";", first: str = "\ufeff") -> str:
    """As a spreadsheet writes it: its mark of UTF-8, CRLF, quotes where they are needed, an empty last column."""
    lines = [mark.join(['"length, cm"', "Größe", "site", "y", ""])]
    for a, b, c in rows:
        cells = [f"{a:.3f}", f"{b:.3f}", '"Oslo; ""Nord"""', f"{c:.3f}", ""]
        lines.append(mark.join(cell.replace(".", decimal) for cell in cells))
    return first + "\r\n".join(lines) + "\r\n"


def doubled(folder: Path) -> Path:
    frame().rename(columns={"site": "y"}).to_csv(folder / "t.csv")
    return folder / "t.csv"


def npz(folder: Path) -> Path:
    np.savez(folder / "t.npz", **dict(zip(NAMES, NUMBERS.T, strict=True)), names=np.array(NAMES))
    return folder / "t.npz"


def fields(folder: Path) -> Path:
    table = np.zeros(ROWS, dtype=[("length, cm", float), ("y", float)])
    table["length, cm"], table["y"] = NUMBERS[:, 0], NUMBERS[:, 2]
    np.save(folder / "t.npy", table)
    return folder / "t.npy"


def netcdf(engine: str, *, labelled: bool = False) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        kinds = {"length, cm": "a", "Größe": "b"} if engine == "scipy" else {}
        data = frame().drop(columns=["day"]).rename(columns=kinds).to_xarray()
        if labelled:
            data = xr.Dataset({"t": (("sample", "feature"), NUMBERS)}, coords={"feature": NAMES})
        data.to_netcdf(folder / "t.nc", engine=engine)
        return folder / "t.nc"

    return made


# Each by what wrote it: the file, and the numbers that it must give or the words of its refusal.
TABLES: dict[str, tuple[Callable[[Path], Path], np.ndarray | str]] = {
    "pandas, with its index": (pandas_csv("t.csv"), NUMBERS),
    "pandas, no index": (pandas_csv("t.csv", index=False), NUMBERS),
    "pandas, semicolons and decimal commas": (pandas_csv("t.csv", sep=";", decimal=",", index=False), NUMBERS),
    "pandas, .tsv": (pandas_csv("t.tsv", sep="\t", index=False), NUMBERS),
    "pandas, .tsv with decimal commas": (pandas_csv("t.tsv", sep="\t", decimal=","), NUMBERS),
    "pandas, all in quotes": (pandas_csv("t.csv", quoting=1, index=False), NUMBERS),
    "pandas, .txt of UTF-16": (pandas_csv("t.txt", sep="\t", encoding="utf-16"), NUMBERS),
    "pandas, a quoted comma is a decimal one": (pandas_csv("t.csv", decimal=",", index=False), NUMBERS),
    "pandas, Latin-1": (pandas_csv("t.csv", encoding="latin-1"), "export it again, as UTF-8"),
    "pandas, compressed": (pandas_csv("t.csv.gz"), "unknown suffix '.gz' .* save the table as one of them"),
    "pandas, no names": (pandas_csv("t.csv", header=False), "the first line must hold the names of the columns"),
    "pandas, missing values": (
        pandas_csv("t.csv", HOLES, index=False), r"line 4, column 1 \('length, cm'\): the cell is empty.*missing=drop",
    ),
    "pandas, missing values as NA": (pandas_csv("t.csv", HOLES, na_rep="NA"), r"'NA' is not a number.*missing=drop"),
    "pandas, a name twice": (doubled, "2 columns of .* are called 'y'; rename all but one"),
    "pandas, true and false": (
        write("t.csv", '"length, cm",Größe,y\n1.5,2.5,True\n2.5,3.5,False\n'), "write 1 for true and 0 for false",
    ),
    "parquet": (pandas_parquet(lambda table: table), NUMBERS),
    "parquet with an index": (pandas_parquet(lambda table: table.set_index("site")), NUMBERS),
    "parquet, y is the index": (pandas_parquet(lambda table: table.set_index("y")), NUMBERS),
    "parquet, missing integers": (pandas_parquet(with_holes_of_integers), r"\(nan\) in row 2, column 3 \('y'\).*drop"),
    "parquet, dates": (pandas_parquet(lambda table: table.assign(y=table.day)), "'y' must hold real numbers.*convert"),
    "parquet, damaged": (write("t.parquet", "PAR1 and more PAR1"), "cannot be read as Parquet .*save the table as"),
    "NumPy, arrays of an archive": (npz, NUMBERS),
    "NumPy, blanks": (
        lambda folder: np.savetxt(folder / "t.txt", NUMBERS, fmt="%.17g", header="a b c") or folder / "t.txt",
        "the first line must hold the names of the columns",
    ),
    "xarray, a frame": (netcdf("h5netcdf"), NUMBERS),
    "xarray, labels along an axis": (netcdf("h5netcdf", labelled=True), NUMBERS),
    "xarray, other names": (netcdf("scipy"), r"'length, cm' is no column of .* \(its columns: a, b, y, index\)"),
    "a spreadsheet in Germany": (write("t.csv", excel(ROUND)), ROUND),
    "a spreadsheet in England": (write("t.csv", excel(ROUND, ".", ",")), ROUND),
    "a spreadsheet that says its mark": (write("t.csv", excel(ROUND, first="sep=;\r\n")), ROUND),
    "a spreadsheet's Unicode text": (write("t.txt", excel(ROUND, ",", "\t", ""), "utf-16"), ROUND),
    "points between thousands": (
        write("t.csv", excel(ROUND).replace("\r\n", "\r\n1.234,5;1,5;a;2,5;\r\n", 1)),
        "'1.234,5' is not a number; write it without marks between thousands",
    ),
    "commas between thousands": (
        write("t.csv", excel(ROUND, ".", ",").replace("\r\n", '\r\n"1,234.5",1.5,a,2.5,\r\n', 1)),
        "'1,234.5' is not a number; write it without marks between thousands",
    ),
    "apostrophes between thousands": (
        write("t.csv", excel(ROUND, ".").replace("\r\n", "\r\n1'234.5;1.5;a;2.5;\r\n", 1)),
        "without marks between thousands",
    ),
    "thousands or decimals": (
        write("t.csv", '"length, cm";Größe;y\n1.500;2.500;3.500\n2.500;1.250;1.125\n'), "write 1500 or 1.5",
    ),
    "a spreadsheet's error": (
        write("t.csv", excel(ROUND).replace("\r\n", "\r\n#DIV/0!;1,5;a;2,5;\r\n", 1)), "#DIV/0! is not a number; fill",
    ),
    "a title above the names": (
        write("t.csv", "Messung 3;;;;\n" + excel(ROUND, first="")), "the first line must hold the names",
    ),
    "an amount of money": (
        write("t.csv", excel(ROUND).replace("\r\n", "\r\n5,00 €;1,5;a;2,5;\r\n", 1)), "'5,00 €' is not a number; write",
    ),
    "a mark at the end of each line below the names": (
        write("t.csv", '"length, cm",Größe,y,site\n1.5,2.5,3.5,4.5,\n2.5,3.5,1.5,0.5,\n'),
        "the first column has no name, but line 2 has '1.5' there",
    ),
    "the same, and the first column counts": (
        write("t.csv", '"length, cm",Größe,y,site\n1,2.5,3.5,4.5,\n2,3.5,1.5,0.5,\n'),
        "all lines below the names end with an empty cell.*remove that mark",
    ),
    "the same, and the first column holds words": (
        write("t.tsv", "site\tlength, cm\tGröße\ty\tz\nOslo\t1.5\t2.5\t3.5\t4\t\nRom\t2.5\t3.5\t1.5\t5\t\n"),
        "all lines below the names end with an empty cell.*remove that mark",
    ),
    "two lines of names": (
        write("t.csv", '"length, cm",Größe,y\n0,1,2\n1.5,2.5,3.5\n2.5,3.5,1.5\n'), "set problem.header=yes if it holds",
    ),
}  # fmt: skip


def meets(path: Path, outcome: np.ndarray | str) -> None:
    """Raises unless a table gives these numbers, or is refused in these words."""
    if isinstance(outcome, str):
        with pytest.raises((ValueError, TypeError), match=outcome) as caught:
            columns(path)
        assert "problem." in str(caught.value)
        assert path.name in str(caught.value)
    else:
        np.testing.assert_allclose(columns(path), outcome, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read_as_meant_or_refused_with_the_cure(name: str, tmp_path: Path) -> None:
    make, outcome = TABLES[name]
    meets(make(tmp_path), outcome)


R_TABLES: dict[str, tuple[str, str, np.ndarray | str]] = {
    "csv": ("t.csv", "write.csv(d, f)", NUMBERS),
    "csv2": ("t.csv", "write.csv2(d, f, row.names=FALSE)", NUMBERS),
    "table": ("t.txt", "write.table(d, f)", NUMBERS),
    "table with decimal commas": ("t.txt", "write.table(d, f, dec=',')", NUMBERS),
    "table with tabs": ("t.tsv", "write.table(d, f, sep='\\t', quote=FALSE, row.names=FALSE)", NUMBERS),
    "missing values": ("t.csv", "d[3, 1] <- NA; write.csv(d, f)", r"'NA' is not a number.*problem.missing=drop"),
    "missing values of csv2": ("t.csv", "d[3, 1] <- NaN; write.csv2(d, f)", "problem.missing=drop"),
    "logical": ("t.txt", "d[['y']] <- d[['y']] > 0; write.table(d, f)", "write 1 for true and 0 for false"),
    "names without quotes": (
        "t.txt", "write.table(d, f, quote=FALSE)", "line 1 has the names of|is ragged|must hold the names|is no column",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def r_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tables of R, written by one process."""
    folder = tmp_path_factory.mktemp("r")
    np.savetxt(folder / "truth", NUMBERS, fmt="%.17g")
    lines = [
        "options(digits=17, encoding='UTF-8')",
        "start <- read.table('truth', col.names=c('a', 'b', 'y'))",
        "names(start) <- c('length, cm', 'Gr\\u00f6\\u00dfe', 'y')",
        "start <- cbind(start[1], site=rep(c('New York', 'Rom, Nord', 'Oslo'), 3), start[2:3])",
    ]
    for i, (name, code, _) in enumerate(R_TABLES.values()):
        (folder / str(i)).mkdir()
        lines.append(f"d <- start; f <- '{i}/{name}'; {code}")
    (folder / "write.R").write_text("\n".join(lines))
    subprocess.run(["Rscript", "write.R"], cwd=folder, check=True, capture_output=True, env={"LC_ALL": "C.UTF-8"})
    return folder


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not installed")
@pytest.mark.parametrize("name", R_TABLES)
def test_tables_of_r_are_read_as_meant_or_refused_with_the_cure(name: str, r_folder: Path) -> None:
    file, _, outcome = R_TABLES[name]
    meets(r_folder / str(list(R_TABLES).index(name)) / file, outcome)


MISSING = {
    "pandas": pandas_csv("t.csv", HOLES),
    "NA": pandas_csv("t.csv", HOLES, na_rep="NA", index=False),
    "NaN": pandas_csv("t.csv", HOLES, na_rep="NaN", sep=";", decimal=","),
    "#N/A": pandas_csv("t.csv", HOLES, na_rep="#N/A"),
    "a point": pandas_csv("t.csv", HOLES, na_rep=".", sep=";", decimal=","),
    "parquet": lambda folder: frame(HOLES).to_parquet(folder / "t.parquet") or folder / "t.parquet",
    "netCDF": lambda folder: (
        frame(HOLES).drop(columns="day").to_xarray().to_netcdf(folder / "t.nc", engine="h5netcdf") or folder / "t.nc"
    ),
}


@pytest.mark.parametrize("name", MISSING)
def test_rows_with_missing_values_are_left_out_on_request_and_counted(name: str, tmp_path: Path) -> None:
    path = MISSING[name](tmp_path)
    np.testing.assert_allclose(columns(path, missing=True), HOLES, rtol=1e-14)
    problem = PROBLEMS["file"](NAMES[:2], "y", table=str(path), missing="drop", standardise=False)
    x, y = KEPT[:, :2], KEPT[:, 2:]
    expected = ((x[:, :1] - y) ** 2).sum() / (2 * len(KEPT))  # z = I leads x₁ to y
    assert float(problem.loss(problem.z0)) == pytest.approx(expected, rel=1e-13)
    assert problem.data[0] == "2 of 9 rows left out, where a value is missing (the first is row 3)"
    with pytest.raises(ValueError, match="set problem.missing=drop"):
        PROBLEMS["file"](NAMES[:2], "y", table=str(path))


def test_a_row_that_misses_a_value_in_one_of_two_files_is_left_out_of_both(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", HOLES[:, :1])
    np.savetxt(tmp_path / "y.csv", HOLES[:, 2:])
    problem = PROBLEMS["file"](str(tmp_path / "x.npy"), str(tmp_path / "y.csv"), missing="drop", standardise=False)
    expected = ((KEPT[:, :1] - KEPT[:, 2:]) ** 2).sum() / (2 * len(KEPT))
    assert float(problem.loss(problem.z0)) == pytest.approx(expected, rel=1e-13)


def test_an_infinite_entry_is_never_left_out(tmp_path: Path) -> None:
    for name, cell in (("a.csv", "inf"), ("b.csv", "-Infinity")):
        (tmp_path / name).write_text(f"a,b\n1,2\n{cell},3\n3,4\n")
        with pytest.raises(ValueError, match="is not finite; fill or remove NaN and infinite entries$"):
            read_table("problem.x", tmp_path / name, "x", missing=True)
    np.save(tmp_path / "c.npy", np.array([1.0, np.inf, np.nan]))
    with pytest.raises(ValueError, match=r"1 NaN or infinite entries, the first \(inf\) in row 2"):
        read_table("problem.x", tmp_path / "c.npy", "x", missing=True)


def test_a_missing_cell_decides_nothing_about_the_marks_in_numbers(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a;b\n1.500;NA\n2.500;3.125\n")
    with pytest.raises(ValueError, match="could have a decimal point or one between thousands"):
        read_table("problem.x", tmp_path / "t.csv", "x", missing=True)


# --- whole files -----------------------------------------------------------------------------------------------------


def test_whole_files_of_each_kind_hold_the_same_numbers(tmp_path: Path) -> None:
    bare = pd.DataFrame(NUMBERS, columns=["a", "b", "c"])
    bare.to_csv(tmp_path / "t.csv")
    bare.to_csv(tmp_path / "t.tsv", sep="\t")
    bare.to_parquet(tmp_path / "t.parquet")
    bare.set_index(pd.Index(range(3, 12), name="id")).to_parquet(tmp_path / "index.parquet")
    np.savetxt(tmp_path / "t.txt", NUMBERS, fmt="%25.17g")
    np.save(tmp_path / "t.npy", NUMBERS)
    np.savez(tmp_path / "t.npz", other=NUMBERS[:2], x=NUMBERS)
    xr.Dataset({"x": (("n", "k"), NUMBERS), "other": ("n", NUMBERS[:, 0])}).to_netcdf(tmp_path / "t.nc")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 8
    for path in files:
        np.testing.assert_allclose(read_table("problem.x", path, "x").numpy(), NUMBERS, rtol=1e-15)


def test_the_key_chooses_an_array_or_a_variable(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", first=NUMBERS, second=NUMBERS[:, :1])
    xr.Dataset({"first": (("n", "k"), NUMBERS), "second": ("n", NUMBERS[:, 0])}).to_netcdf(tmp_path / "t.nc")
    for name in ("t.npz", "t.nc"):
        path = str(tmp_path / name)
        with pytest.raises(ValueError, match=r"none is called 'x' \(found: first, second\); set problem.x_key=NAME"):
            PROBLEMS["file"](path, path)
        with pytest.raises(ValueError, match="none is called 'third'.*set problem.y_key=NAME"):
            PROBLEMS["file"](path, path, x_key="first", y_key="third")
        problem = PROBLEMS["file"](path, path, x_key="first", y_key="second", standardise=False)
        assert float(problem.loss(problem.z0)) < 1e-25  # the second is the first column of the first
        assert "3 inputs → 1 outputs" in problem.title


def test_what_a_kind_of_file_has_no_use_for_is_refused(tmp_path: Path) -> None:
    text, array = str(tmp_path / "t.csv"), str(tmp_path / "t.npy")
    np.savetxt(text, NUMBERS, delimiter=",")
    np.save(array, NUMBERS)
    for path in (text, array):
        with pytest.raises(ValueError, match=r"problem.x_key=u has no effect: problem.x=.* holds one table; leave it"):
            PROBLEMS["file"](path, path, x_key="u")
    with pytest.raises(ValueError, match="problem.header=yes has no effect: no file is a text"):
        PROBLEMS["file"](array, array, header=True)
    np.savez(tmp_path / "t.npz", a=NUMBERS[:, 0])
    with pytest.raises(ValueError, match="problem.header=no has no effect: no file is a text"):
        PROBLEMS["file"](["a"], ["a"], table=str(tmp_path / "t.npz"), header="no")
    assert f"{len(NUMBERS)} samples" in PROBLEMS["file"](text, array, header="no").title


def test_fields_of_an_array_are_columns(tmp_path: Path) -> None:
    path = str(fields(tmp_path))
    problem = PROBLEMS["file"](["length, cm"], ["y"], table=path, standardise=False)
    expected = ((NUMBERS[:, 0] - NUMBERS[:, 2]) ** 2).sum() / (2 * ROWS)
    assert float(problem.loss(problem.z0)) == pytest.approx(expected, rel=1e-14)


def test_a_fill_value_is_missing_and_packed_numbers_are_unpacked(tmp_path: Path) -> None:
    packed = {"y": {"dtype": "int16", "scale_factor": 0.5, "add_offset": 3.0, "_FillValue": -999}}
    y = np.array([1.0, np.nan, 2.5])
    xr.Dataset({"y": ("n", y)}).to_netcdf(tmp_path / "t.nc", encoding=packed, engine="h5netcdf")
    np.testing.assert_array_equal(read_table("problem.y", tmp_path / "t.nc", "y", missing=True).numpy()[:, 0], y)
    with pytest.raises(ValueError, match="row 2.*problem.missing=drop"):
        read_table("problem.y", tmp_path / "t.nc", "y")


# --- files that are not what they seem -------------------------------------------------------------------------------


def test_netcdf_that_leads_to_other_files_or_claims_too_much_is_refused(tmp_path: Path) -> None:
    secret, path = tmp_path / "secret.h5", tmp_path / "t.nc"
    with h5py.File(secret, "w") as file:
        file["x"] = NUMBERS
    raw = tmp_path / "raw"
    raw.write_bytes(NUMBERS.tobytes())
    layout = h5py.VirtualLayout(shape=NUMBERS.shape, dtype=float)
    layout[:] = h5py.VirtualSource(secret, "x", shape=NUMBERS.shape)
    tricks: dict[str, Callable[[h5py.File], object]] = {
        "leads elsewhere": lambda file: file.__setitem__("x", h5py.ExternalLink(str(secret), "x")),
        "lie in other files": lambda file: file.create_virtual_dataset("x", layout),
        "lie in other files ": lambda file: file.create_dataset(
            "x", NUMBERS.shape, dtype=float, external=[(str(raw), 0, h5py.h5f.UNLIMITED)]
        ),
        "claims 8000000000 bytes": lambda file: file.create_dataset("x", (10**9,), dtype=float, chunks=(10**6,)),
    }
    for words, trick in tricks.items():
        with h5py.File(path, "w") as file:
            trick(file)
        with pytest.raises(ValueError, match=words.strip()):
            read_table("problem.x", path, "x")


def test_parquet_without_pyarrow_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame().to_parquet(tmp_path / "t.parquet")
    there = builtins.__import__

    def missing(name: str, *rest: object, **more: object) -> object:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return there(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match="needs pyarrow, which is not installed here: pip install pyarrow, or save"):
        columns(tmp_path / "t.parquet")


def test_unknown_names_are_answered_with_the_nearest_and_the_list(tmp_path: Path) -> None:
    for path in (pandas_csv("t.csv")(tmp_path), pandas_parquet(lambda table: table)(tmp_path)):
        words = "problem.x: 'Grösse' is no column of problem.table=.*; did you mean 'Größe'? (its columns: .*, day)"
        with pytest.raises(ValueError, match=re.escape(words).replace(r"\.\*", ".*")):
            PROBLEMS["file"](["Grösse"], ["y"], table=str(path))


def test_names_of_columns_come_through_the_command_line_as_they_are() -> None:
    words = ["problem=file", "problem.table=t.csv", 'problem.x=["length, cm",2019,"Größe"]', "problem.y=true_value"]
    with hydra.initialize_config_module("neuralode_flow.conf", version_base="1.3"):
        job = checked(hydra.compose("config", overrides=words))
    assert job.problem is not None
    assert job.problem.parameters["x"] == ["length, cm", "2019", "Größe"]
    assert job.problem.parameters["y"] == "true_value"


@pytest.mark.parametrize("suffix", [".tsv", ".txt", ".parquet", ".nc"])
def test_what_is_no_file_is_refused_and_not_waited_for(suffix: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"t{suffix}")
    with pytest.raises(ValueError, match="is a named pipe; give a regular file"):
        columns(tmp_path / f"t{suffix}")


def test_a_small_parquet_of_more_numbers_than_are_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"x": np.zeros(2**27 + 1, dtype=np.int8)}), path)
    assert path.stat().st_size < 2**24
    with pytest.raises(ValueError, match="has 134217729 rows of 1 columns, more than 1073741824 bytes; give fewer"):
        read_table("problem.x", path, "x")
