"""Files of others: refused by kind, size and place before they are read, whatever seal they carry."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import io
import os
import pkgutil
import random
import re
import resource
import socket
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import xarray as xr

import neuralode_flow as nf
from neuralode_flow import archive, results
from neuralode_flow.problems.arrays import MOST_BYTES, read_table

GIB = 2**30
MOST_MEMORY, MOST_SECONDS = 200 * 2**20, 5.0
REFUSALS = (ValueError, TypeError, FileNotFoundError)


def table(path: Path) -> torch.Tensor:
    return read_table("problem.x", path, "x")


def checkpoint(path: Path) -> nf.Trajectory:
    flow = nf.IntrinsicFlow(nf.Quadratic(torch.eye(2)), nf.LogMean())
    return nf.integrate(flow, torch.eye(2), [0.0, 1.0], checkpoint=path)


def outcome(read: Callable[[Path], object], path: Path) -> tuple[str, int, float]:
    """How a child ends that reads a file: the text of its error, the memory that it took (bytes), and its CPU time.

    A child that is forked from here has all modules, so that its largest memory grows by the reading alone.
    """
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        text = "it was read"
        try:
            torch.set_num_threads(1)
            before, started = resident(), time.process_time()
            try:
                read(path)
            except REFUSALS as error:
                text = f"{type(error).__name__}: {error}"
            except BaseException as error:
                text = f"escaped: {error!r}"
            taken = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, 0)
            os.write(send, f"{taken} {time.process_time() - started} {text}"[:4000].encode())
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as answer:
        words = answer.read().decode(errors="ignore").split(" ", 2)
    os.waitpid(child, 0)
    assert len(words) == 3, "the child has died"
    return words[2], int(words[0]), float(words[1])


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def refused(read: Callable[[Path], object], path: Path, words: str) -> None:
    text, memory, seconds = outcome(read, path)
    assert re.match(rf"(ValueError|TypeError|FileNotFoundError): .*(?:{words})", text)
    assert path.name in text
    assert text.isprintable()
    assert memory < MOST_MEMORY
    assert seconds < MOST_SECONDS


# --- what is no file ------------------------------------------------------------------------------------------------

PLACES = {
    "pipe": (os.mkfifo, "a named pipe"),
    "folder": (os.mkdir, "a directory|a folder"),
    "device": (lambda path: os.symlink("/dev/zero", path), "a device"),
    "loop": (lambda path: os.symlink(path, path), "Too many levels"),
    "socket": (lambda path: bound(path), "a socket"),
}
READERS = {"x.csv": table, "x.npy": table, "x.npz": table, "run.npz": nf.load, "check.npz": checkpoint, "r.nc": nf.open}


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_and_not_waited_for(name: str, place: str, tmp_path: Path, monkeypatch) -> None:
    if (name, place) == ("r.nc", "folder"):
        pytest.skip("a folder is the folder of a run")
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    make, words = PLACES[place]
    make(Path(name))
    refused(READERS[name], Path(name), words)


def test_a_config_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    results.write(tmp_path / "results.nc", xr.Dataset({"a": ("s", [1.0, 2.0])}, attrs={"config": "a: 1"}))
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=r"config.yaml is a named pipe"):
        nf.open(tmp_path)


# --- tables ---------------------------------------------------------------------------------------------------------


def npy_header(shape: tuple, descr: str = "<f8", version: int = 1) -> bytes:
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text


def zeros(path: Path, numbers: int, name: str = "x.npy", method: int = zipfile.ZIP_DEFLATED) -> None:
    """A compressed archive of so many zeros."""
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as file, file.open(name, "w", force_zip64=True) as member:
        member.write(npy_header((numbers,)))
        for _ in range(numbers // 2**20):
            member.write(bytes(8 * 2**20))


def sparse(path: Path, size: int, first: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(first)
        file.truncate(size)


def many_members(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for i in range(30_000):
            file.writestr(f"{i}.npy", b"")


def rewritten(path: Path, **changes: int) -> None:
    """An archive whose list of members says other sizes than there are."""
    np.savez(path, x=np.arange(6.0))
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\1\2")
    for name, value in changes.items():
        struct.pack_into("<I", content, at + {"packed": 20, "size": 24}[name], value)
    path.write_bytes(content)


TABLES = {
    "three GB of zeros": ("npz", lambda p: zeros(p, 3 * 2**27), "takes 3221225472 bytes"),
    "half a GB of zeros": ("npz", lambda p: zeros(p, 2**26), "takes 536870912 bytes, more than"),
    "another compression": ("npz", lambda p: zeros(p, 2**20, method=zipfile.ZIP_LZMA), "in a way that numpy.savez"),
    "many members": ("npz", many_members, "its list of members takes"),
    "a size that lies": ("npz", lambda p: rewritten(p, size=2**31, packed=2**31), "cannot be read as a NumPy file"),
    "a claim in a member": ("npz", lambda p: member(p, npy_header((10**9,))), r"claims shape \(1000000000,\)"),
    "a claim": ("npy", lambda p: p.write_bytes(npy_header((10**9,)) + bytes(80)), r"claims shape \(1000000000,\)"),
    "a negative claim": ("npy", lambda p: p.write_bytes(npy_header((-1, -8)) + bytes(80)), "claims shape"),
    "a long header": ("npy", lambda p: sparse(p, GIB, b"\x93NUMPY\2\0" + struct.pack("<I", GIB - 100)), "NumPy file"),
    "a large array": ("npy", lambda p: sparse(p, 3 * GIB, npy_header((3 * 2**27,))), f"at most {MOST_BYTES} are read"),
    "two arrays": ("npy", lambda p: p.write_bytes(2 * (npy_header((2,)) + bytes(16))), "bytes follow its array"),
    "objects": ("npy", lambda p: p.write_bytes(npy_header((2,), "|O") + b"\x80\x04N."), "Python objects"),
    "a large text": ("csv", lambda p: sparse(p, 2 * GIB, b"1,2\n"), f"at most {MOST_BYTES} are read"),
    "a long line": ("csv", lambda p: sparse(p, GIB // 2, b"1,2\n"), "has a line of more than"),
    "a long cell": ("csv", lambda p: p.write_text('1,2\n"' + "\n" * 10**6), "cannot be read as UTF-8|a line of more"),
    "a long row": ("csv", lambda p: p.write_text('"1' + '\n","' * 10**6), "a line of more than"),
}


def member(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", content)


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * c.startswith("three")) for c in TABLES])
def test_a_hostile_table_is_refused_before_it_is_read(case: str, tmp_path: Path) -> None:
    suffix, make, words = TABLES[case]
    path = tmp_path / f"x.{suffix}"
    make(path)
    refused(table, path, words)


def test_compressed_tables_of_measurements_are_read(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 2, size=(1000, 50)).astype(float)
    np.savez_compressed(tmp_path / "x.npz", numbers)
    np.testing.assert_array_equal(table(tmp_path / "x.npz"), numbers)


# --- archives -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path() -> nf.Trajectory:
    flow = nf.FiniteFlow(3, nf.Quadratic(torch.eye(2)), "cayley")
    return nf.integrate(flow, torch.zeros(3, 2, 2), torch.linspace(0, 1, 3))


def sealed(path: Path, content: bytes) -> None:
    """A zip archive with the seal of ours, as anybody can put there."""
    seal = b"neuralode_flow archive 2 "
    content = content[:-2] + struct.pack("<H", len(seal) + 64) + seal
    path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())


def zipped(method: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def as_npy(value: bytes) -> bytes:
    return npy_header((len(value),), "|u1") + value


def with_many_names() -> bytes:
    """Members that are all the same bytes of the file."""
    content = zipped(a=as_npy(bytes(10**6)))
    at, end = content.index(b"PK\1\2"), content.rindex(b"PK\5\6")
    entry = content[at:end]
    entries = b"".join(entry.replace(b"a.npy", f"{i:05}".encode()) for i in range(10_000))
    last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 10_000, 10_000, len(entries), at, 0)
    return content[:at] + entries + last


ARCHIVES = {
    "three GB of zeros": lambda: zipped(zipfile.ZIP_DEFLATED, header=as_npy(b"{}"), z=bytes(10**8)),
    "a long header": lambda: zipped(header=as_npy(b"[" + b"[]," * 2**24 + b"[]]")),
    "a deep header": lambda: zipped(header=as_npy(b"[" * 10**6)),
    "a list for a header": lambda: zipped(header=as_npy(b"[]")),
    "a claim": lambda: zipped(header=as_npy(b"{}"), z=npy_header((10**10,))),
    "objects": lambda: zipped(header=as_npy(b"{}"), z=npy_header((2,), "|O")),
    "one member by many names": with_many_names,
    "no header": lambda: zipped(z=as_npy(b"1")),
}


@pytest.mark.parametrize("case", ARCHIVES)
@pytest.mark.parametrize("read", [nf.load, checkpoint])
def test_a_hostile_archive_is_refused_though_it_is_sealed(read: Callable, case: str, tmp_path: Path) -> None:
    sealed(tmp_path / "run.npz", ARCHIVES[case]())
    refused(read, tmp_path / "run.npz", "not a file that neuralode_flow wrote")


def test_a_saved_path_is_an_npz_archive(path: nf.Trajectory, tmp_path: Path) -> None:
    path.save(tmp_path / "path.npz")
    with np.load(tmp_path / "path.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["z"], path.z)
        assert b'"trajectory"' in arrays["header"].tobytes()
    assert zipfile.ZipFile(tmp_path / "path.npz").testzip() is None


def test_archives_of_the_first_version_are_read(path: nf.Trajectory, tmp_path: Path) -> None:
    path.save(tmp_path / "path.npz")
    with np.load(tmp_path / "path.npz") as arrays:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    old = f"neuralode_flow archive 1\n{digest}\n".encode() + buffer.getvalue()
    (tmp_path / "old.npz").write_bytes(old)
    assert torch.equal(nf.load(tmp_path / "old.npz").z, path.z)
    (tmp_path / "old.npz").write_bytes(old[:-1])
    with pytest.raises(ValueError, match="is damaged: its contents do not match its checksum"):
        nf.load(tmp_path / "old.npz")


def test_a_sealed_archive_of_something_else_holds_no_trajectory(path: nf.Trajectory, tmp_path: Path) -> None:
    path.save(tmp_path / "path.npz")
    header, arrays = archive.read(tmp_path / "path.npz")
    archive.write(tmp_path / "path.npz", header, arrays | {"foreign": np.ones(2)})
    with pytest.raises(ValueError, match="does not hold a trajectory"):
        nf.load(tmp_path / "path.npz")


# --- results --------------------------------------------------------------------------------------------------------


def with_line(path: Path) -> None:
    """Puts the last line of ours below a file, as anybody can."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("ab") as file:
        file.write(f"\nneuralode_flow results 1 {digest}\n".encode())


def external_storage(file: h5py.File) -> None:
    file.create_dataset("a", (4,), "u1", external=[("/etc/hostname", 0, 4)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource("other.nc", "a", (4,))
    file.create_virtual_dataset("a", layout)


def far_chunks(file: h5py.File) -> None:
    file.create_dataset("a", (2**29,), "f8", chunks=(2**16,), fillvalue=1.0)


TRICKS = {
    "external storage": (external_storage, "the values of 'a' lie elsewhere, or in pieces"),
    "virtual": (virtual, "the values of 'a' lie elsewhere, or in pieces"),
    "external link": (lambda f: f.__setitem__("a", h5py.ExternalLink("other.nc", "/a")), "'a' leads elsewhere"),
    "soft link": (lambda f: f.__setitem__("a", h5py.SoftLink("/b")), "'a' leads elsewhere"),
    "loop": (lambda f: f.__setitem__("a", f["/"]), "'a' is no variable"),
    "chunks": (far_chunks, "lie elsewhere, or in pieces"),
    "never written": (lambda f: f.create_dataset("a", (2**29,), "f8"), "claims 4294967296 bytes that were never"),
    "compressed": (lambda f: f.create_dataset("a", data=np.zeros(2**20), compression=9), "elsewhere, or in pieces"),
    "objects": (lambda f: f.create_dataset("a", data=[f.ref], dtype=h5py.ref_dtype), "of a kind that is never"),
    "nested": (lambda f: f.create_dataset("a", (3,), h5py.vlen_dtype(h5py.vlen_dtype("f8"))), "of a kind that is"),
    "a committed type": (lambda f: f.__setitem__("a", np.dtype("f8")), "'a' is no variable"),
    "a committed pair": (lambda f: f.__setitem__("a", np.dtype([("r", "f8"), ("i", "i8")])), "'a' is no variable"),
    "pairs": (lambda f: f.create_dataset("a", (3,), np.dtype([("r", "f8"), ("s", "f8")])), "of a kind that is never"),
    "complex chunks": (lambda f: f.create_dataset("a", (2**20,), "c16", chunks=(2**16,)), "elsewhere, or in pieces"),
}  # fmt: skip


@pytest.mark.parametrize("case", TRICKS)
def test_hostile_results_are_refused_though_they_are_sealed(case: str, tmp_path: Path) -> None:
    make, words = TRICKS[case]
    path = tmp_path / "results.nc"
    with h5py.File(path, "w") as file:
        make(file)
    with_line(path)
    refused(nf.open, path, f"results.nc is not a file that neuralode_flow wrote: .*{re.escape(words)}")


def test_a_forged_heap_that_all_texts_share_is_refused(tmp_path: Path) -> None:
    """Each of the texts is made to name the longest one."""
    path = tmp_path / "results.nc"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=["x" * 10**6, *["y"] * 2000], dtype=h5py.string_dtype())
        at = file["a"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[at : at + 16 * 2001] = content[at : at + 16] * 2001
    path.write_bytes(content)
    with_line(path)
    refused(nf.open, path, "its texts take up to 2001000000 bytes")
    content[at + 4 : at + 12] = b"\x01" * 8  # a heap that is nowhere: nobody knows what HDF5 makes of it
    path.write_bytes(content)
    with_line(path)
    refused(nf.open, path, "its texts take up to 2001000000 bytes")


def test_texts_of_many_members_beside_a_long_finding_are_read(tmp_path: Path) -> None:
    """As 10⁴ members of the main study have them: an attribute of 30 kB, and short texts, many of which are empty."""
    texts = {
        name: (("seed", "rule"), np.full((10_000, 4), text)) for name, text in (("label", "Euler"), ("reason", ""))
    }
    texts["status"] = ("seed", np.array([f"ok {i}" for i in range(10_000)]))
    dataset = xr.Dataset(texts, attrs={"finding": "x" * 30_000})
    results.write(tmp_path / "results.nc", dataset)
    xr.testing.assert_identical(nf.open(tmp_path), dataset)


@pytest.mark.slow
def test_more_than_a_million_texts_are_read(tmp_path: Path) -> None:
    """As 10⁵ members have them whose study says eleven words of each."""
    texts = {f"label_{k}": ("seed", np.array([f"{k} {i}" for i in range(100_000)], dtype=object)) for k in range(11)}
    dataset = xr.Dataset(texts)
    results.write(tmp_path / "results.nc", dataset)
    xr.testing.assert_identical(nf.open(tmp_path), dataset)


def test_the_smallest_variables_are_more_than_a_file_must_have_room_for(tmp_path: Path) -> None:
    """However many there are: of 10 001 (40 s) it was tried."""
    dataset = xr.Dataset({f"v{i}": ((), i) for i in range(300)})
    results.write(tmp_path / "results.nc", dataset)
    xr.testing.assert_identical(nf.open(tmp_path), dataset)


def test_more_variables_than_a_file_has_room_for_are_refused(tmp_path: Path) -> None:
    with h5py.File(path := tmp_path / "results.nc", "w", libver="latest") as file:
        own = file.create_dataset("a", data=0)
        for i in range(20_000):
            file[f"{i}"] = own
    with_line(path)
    refused(nf.open, path, "it has 20001 variables")


def test_one_long_text_among_many_does_not_make_all_as_long(tmp_path: Path) -> None:
    """As where one of many members has failed, with a long reason."""
    texts = np.array(["ok"] * 100_000, dtype=object)
    texts[7] = "x" * 3000
    dataset = xr.Dataset({"status": ("seed", texts), "word": ("seed", ["a", "bc"] * 50_000)})
    results.write(tmp_path / "results.nc", dataset)
    _, memory, _ = outcome(nf.open, tmp_path)
    assert memory < MOST_MEMORY
    again = nf.open(tmp_path)
    xr.testing.assert_identical(again, dataset)
    assert again.word.dtype == "<U2"


def test_a_long_config_beside_many_attributes_is_read(tmp_path: Path) -> None:
    """As one has that lists the seeds of its members, in a dataset whose variables all say what they are."""
    variables = {f"v{k}": ("x", np.arange(3.0), {"long_name": f"number {k}", "units": "1"}) for k in range(60)}
    dataset = xr.Dataset(variables, attrs={"config": "é" * 10**6, "finding": "x" * 10**5})
    results.write(tmp_path / "results.nc", dataset)
    xr.testing.assert_identical(nf.open(tmp_path), dataset)


def test_attributes_that_are_too_long_together_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(results, "_MOST_TEXT", 2**20)
    dataset = xr.Dataset({f"v{k}": ("x", np.arange(3.0), {"long_name": "x" * 30_000}) for k in range(60)})
    results.write(tmp_path / "results.nc", dataset)
    xr.testing.assert_identical(nf.open(tmp_path), dataset)  # the file is as large as they are
    monkeypatch.setattr(results, "_length", lambda value: 10**6)  # as where each named the same text
    with pytest.raises(ValueError, match="its texts take up to"):
        nf.open(tmp_path)


@pytest.mark.parametrize("text", [b"GCOL", b"GCOL\x01\0\0\0", b"GCOL\x01\0\0\0\0\0\0\0\0\0\0\x01"])
def test_values_that_look_like_the_head_of_a_heap_are_read(text: bytes, tmp_path: Path) -> None:
    """Among 10⁸ random numbers those four bytes are there with a probability of a sixth."""
    values = np.random.default_rng(0).normal(size=4000)
    values.view("u1")[8000 : 8000 + len(text)] = np.frombuffer(text, "u1")
    said = {"long_name": "GCOL is a word, and what follows is no heap " * 9}
    dataset = xr.Dataset({"z": ("x", values, said)}, attrs={"title": "a"})
    results.write(tmp_path / "results.nc", dataset)
    xr.testing.assert_identical(nf.open(tmp_path), dataset)


def test_results_with_every_kind_of_value_are_read(tmp_path: Path) -> None:
    dataset = xr.Dataset(
        {
            "z": (("time", "row"), np.random.default_rng(0).normal(size=(5, 3))),
            "passed": ("rule", [True, False]),
            "count": ("rule", [1, 2]),
            "reason": ("rule", ["", "of a plateau " * 50]),
        },
        coords={"rule": ["euler", "rk2"], "time": np.linspace(0, 1, 5)},
        attrs={"config": "a: 1\n", "names": ["a", "b"], "n": 3, "list": [1.5, 2.5]},
    )
    dataset.z.encoding = {"zlib": True, "chunksizes": (1, 3)}
    dataset.encoding = {"unlimited_dims": {"time"}}
    results.write(tmp_path / "results.nc", dataset)
    again = nf.open(tmp_path)
    assert list(again.attrs["names"]) == ["a", "b"]
    xr.testing.assert_equal(again, dataset)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale_factor", 2.0), ("add_offset", 1.0), ("missing_value", 1.0), ("_FillValue", 2.0), ("_Unsigned", "true"),
        ("units", "days since 2000-01-01"), ("units", "hours"), ("coordinates", "a b"), ("calendar", "noleap"),
        ("dtype", "bool"), ("_Encoding", "utf-8"), ("NAME", "a"), ("CLASS", "DIMENSION_SCALE"), ("_nc3_strict", 1),
        ("grid_mapping", "b"), ("neuralode_flow_NAME", "b"),
    ],
)  # fmt: skip
def test_attributes_that_mean_something_to_readers_change_no_number(name: str, value: object, tmp_path: Path) -> None:
    """They came back as other numbers, or as times, with nothing said."""
    dataset = xr.Dataset(
        {"a": ("s", [1.0, 2.0], {name: value}), "b": ("s", [1, 2], {name: value, "x": 3})},
        {"s": ("s", [0.0, 1.0], {name: value})},
        {name: value},
    )
    results.write(tmp_path / "results.nc", dataset)
    assert results.open(tmp_path).identical(dataset)
    with xr.open_dataset(tmp_path / "results.nc", engine="h5netcdf") as others:  # to other readers it is another name
        assert others.a.values.tolist() == [1.0, 2.0]
        assert others.b.values.tolist() == [1, 2]


def test_attributes_that_are_neither_numbers_nor_text_are_written_as_text(tmp_path: Path) -> None:
    told = {
        "none": None,
        "mapping": {"a": 1},
        "path": Path("x"),
        "mixed": [[1], [2, 3]],
        "few": (1, 2),
        "no": [],
        7: [1, "a"],
        "own": ["a", "b"],
    }
    results.write(tmp_path / "results.nc", xr.Dataset({"a": ("s", [1.0], {"kind": None})}, attrs=told))
    again = results.open(tmp_path)
    assert again.a.attrs == {"kind": "None"}
    assert {name: again.attrs[name] for name in ("none", "mapping", "mixed")} == {
        "none": "None", "mapping": "{'a': 1}", "mixed": "[[1], [2, 3]]",
    }  # fmt: skip
    assert again.attrs["path"] == repr(Path("x"))
    assert again.attrs["few"].tolist() == [1, 2]
    assert len(again.attrs["no"]) == 0
    assert again.attrs["7"] == "[1, 'a']"
    assert list(again.attrs["own"]) == ["a", "b"]


@pytest.mark.parametrize("kind", ["complex128", "complex64"])
def test_results_with_complex_numbers_are_read(kind: str, tmp_path: Path) -> None:
    values = np.array([[1 + 2j, np.nan], [3, -1j]], kind)
    dataset = xr.Dataset({"roots": (("time", "mode"), values), "none": ("nobody", values[0, :0]), "one": 2j})
    results.write(tmp_path / "results.nc", dataset.assign_attrs(last=1 - 1j))
    again = nf.open(tmp_path)
    xr.testing.assert_identical(again, dataset.assign_attrs(last=1 - 1j))
    assert again.roots.dtype == kind


def test_truth_values_among_attributes_are_read_as_numbers(tmp_path: Path) -> None:
    told = {"settled": True, "each": [True, False], "array": np.array([False, True]), "one": np.bool_(False)}
    dataset = xr.Dataset({"a": ("s", [True, False], {"measured": True})}, attrs=told)
    results.write(tmp_path / "results.nc", dataset)
    assert all(value is True for value in (dataset.attrs["settled"], dataset.a.attrs["measured"])), (
        "what is written is as it was"
    )
    again = nf.open(tmp_path)
    assert (again.attrs["settled"], again.attrs["one"], again.a.attrs["measured"]) == (1, 0, 1)
    assert (again.attrs["each"].tolist(), again.attrs["array"].tolist()) == ([1, 0], [0, 1])
    assert again.a.values.tolist() == [True, False]


# --- equality -------------------------------------------------------------------------------------------------------


def records() -> list[type]:
    """All dataclasses of the package."""
    names = [module.name for module in pkgutil.walk_packages(nf.__path__, "neuralode_flow.")]
    modules = [importlib.import_module(name) for name in names if not name.rpartition(".")[2].startswith("_")]
    values = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    return [v for v in values if dataclasses.is_dataclass(v) and v.__module__.startswith("neuralode_flow")]


def test_what_holds_arrays_equals_itself_alone(path: nf.Trajectory) -> None:
    assert path == path
    assert path != dataclasses.replace(path)
    assert len({path, dataclasses.replace(path)}) == 2
    problem = nf.Problem("mine", "Mine", nf.Quadratic(torch.eye(2)), torch.eye(2))
    assert problem == problem
    assert problem in {problem}
    by_value = {kind for kind in records() if kind.__eq__ is not object.__eq__}
    assert {kind.__name__ for kind in by_value} >= {"Rank", "Progress"}
    arrays = "|".join(["Tensor", "ndarray", "Dataset", *(k.__name__ for k in records() if k not in by_value)])
    fields = [(kind.__name__, field) for kind in by_value for field in dataclasses.fields(kind)]
    wrong = [name for name, field in fields if re.search(rf"(?<!type\[)\b({arrays})\b(?!\])", str(field.type))]
    assert wrong == []


# --- damage at random -----------------------------------------------------------------------------------------------


def damaged(sound: bytes, draws: random.Random) -> bytes:
    """A file that was cut, of which a few bits are flipped, or that has got some bytes from elsewhere."""
    content, at = bytearray(sound), draws.randrange(len(sound))
    kind = draws.randrange(3)
    if kind == 0:
        return bytes(content[:at])
    if kind == 1:
        for _ in range(draws.choice((1, 1, 4, 16))):
            content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        return bytes(content)
    return bytes(content[:at] + draws.randbytes(draws.choice((1, 8, 300))) + content[at:])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, path: nf.Trajectory) -> dict[str, bytes]:
    """One sound file of each kind."""
    folder, numbers = tmp_path_factory.mktemp("sound"), np.random.default_rng(0).normal(size=(20, 3))
    np.savetxt(folder / "x.csv", numbers, delimiter=",", header="a,b,c", comments="")
    np.save(folder / "x.npy", numbers)
    np.savez(folder / "x.npz", x=numbers)
    np.savez_compressed(folder / "packed.npz", x=numbers)
    path.save(folder / "run.npz")
    results.write(folder / "r.nc", xr.Dataset({"a": ("s", numbers[:, 0]), "b": ("t", ["c", "d"])}))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def same(name: str, found: object, expected: object) -> bool:
    if isinstance(found, xr.Dataset):
        return found.identical(expected)
    found, expected = (value.z if isinstance(value, nf.Trajectory) else value for value in (found, expected))
    return torch.equal(found, expected)


def one_by_one(folder: Path) -> None:
    """Raises AssertionError unless each damaged file is refused with a sentence, or is what it was."""
    for file in sorted(folder.iterdir()):
        name = file.name.split("-")[1]
        read = READERS.get(name, table)
        started = time.process_time()
        try:
            found = read(file)
        except REFUSALS as error:
            if file.name not in str(error) or not str(error).isprintable():
                raise AssertionError(error) from error
            continue
        finally:
            assert time.process_time() - started < MOST_SECONDS, file
        # A table has no seal: some other number, or a line less, is another sound table.
        assert read is table or same(name, found, read(folder.parent / name)), file


def test_sixty_damaged_files_are_refused_or_equal(sound: dict[str, bytes], tmp_path: Path) -> None:
    draws = random.Random(3)
    (tmp_path / "damaged").mkdir()
    for name, content in sound.items():
        (tmp_path / name).write_bytes(content)
        for i in range(10):
            (tmp_path / "damaged" / f"{i}-{name}").write_bytes(damaged(content, draws))
    text, memory, _ = outcome(one_by_one, tmp_path / "damaged")
    assert text == "it was read"
    assert memory < MOST_MEMORY


def test_results_that_find_no_room_leave_the_old_file_and_the_process_alone(tmp_path):
    # A limit on the size of files stands for a disk that is full, wherever in the file that is seen.
    code = """
import resource, sys
from pathlib import Path
import numpy as np, xarray as xr
from neuralode_flow import results
path, generator = Path(sys.argv[1]), np.random.default_rng(0)
many = {f"v{i}": (("x", "y"), generator.normal(size=(50, 100)), {"long_name": "x" * 500}) for i in range(12)}
dataset = xr.Dataset(many, {"x": range(50)})
results.write(path, dataset)
size, old = path.stat().st_size, path.read_bytes()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit in (0, 90, 2000, 40_000, 41_000, size // 2, size - 5000, size - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        results.write(path, dataset * 2)
    except OSError as error:
        assert error.errno == 27, error
    else:
        raise AssertionError(limit)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert path.read_bytes() == old and [*path.parent.iterdir()] == [path]
assert results.open(path).identical(dataset)
"""
    without_coverage = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "results.nc")], capture_output=True, text=True, env=without_coverage
    )
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")
