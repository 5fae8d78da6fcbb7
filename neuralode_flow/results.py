"""Datasets on disk: results.nc is netCDF followed by one line with a format version and a checksum of what precedes it.

Readers of netCDF pay no attention to that line; `open` refuses a file that it does not fit. Anybody can write such a
line, so `open` also looks before it reads: an HDF5 file can lead to others, and claim data that it does not have.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import xarray as xr

from .files import CONFIG, RESULTS, as_path, atomic_path, check_seal, check_version, last_bytes, opened, seal
from .interrupt import postponed
from .storable import as_attribute, owners, storable

FILE = RESULTS
VERSION = 1
_LAST_LINE = re.compile(rb"\nneuralode_flow results (\d{1,9}) ([0-9a-f]{64})\n\Z")
_LONGEST_LINE = 128
_LEAST_BYTES = 256  # that a variable takes in a file, with its name; HDF5 takes 330 and more
_MOST_TEXTS = 2**24
_MOST_TEXT = 2**26  # bytes that all texts may take
_MOST_READ = 2**32  # … that those of attributes may, each as long as the longest, where they are read to be measured
_LONGEST_CONFIG = 2**22

# Attributes by which netCDF and its readers say how values are to be read, or which they keep to themselves.
_MEANINGS = {
    "scale_factor", "add_offset", "missing_value", "dtype", "calendar", "coordinates", "grid_mapping", "_FillValue",
    "_Unsigned", "_Encoding", "_nc3_strict", "_Netcdf4Dimid", "_Netcdf4Coordinates", "_NCProperties", "NAME", "CLASS",
    "DIMENSION_LIST", "REFERENCE_LIST",
}  # fmt: skip
_OURS = "neuralode_flow_"  # before the name of one that somebody has given that name


def write(path: Path, dataset: xr.Dataset, before: Callable[[], object] | None = None) -> None:
    """Writes a dataset, whole or not at all.

    Parameters
    ----------
    path : Path
    dataset : xarray.Dataset
    before : callable, optional
        Called when all is written, just before it takes the place of what is there.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    with atomic_path(path) as temporary, _Kept(temporary, "w+") as stream:
        try:
            with postponed(True):  # what is only half made complains when it is forgotten
                plain = _with_attributes(storable(dataset).drop_encoding(), _written)  # no compression, in one piece
                plain.to_netcdf(stream, engine="h5netcdf")
            size = stream.seek(0, io.SEEK_END)
            line = f"\nneuralode_flow results {VERSION} {seal(stream, 0, size)}\n"
            stream.seek(size)
            stream.write(line.encode())
        finally:
            if stream.failure is not None:
                raise stream.failure
        if before is not None:
            before()


Attributes = dict[str, Any]


def _with_attributes(dataset: xr.Dataset, change: Callable[[xr.Dataset | xr.Variable], Attributes]) -> xr.Dataset:
    """The same with other attributes, of itself and of each variable."""
    other = dataset.copy()
    for owner in owners(other):
        owner.attrs = change(owner)
    return other


def _written(owner: xr.Dataset | xr.Variable) -> Attributes:
    """Attributes as netCDF can hold them, those that have a meaning to its readers under another name."""
    dated = isinstance(owner, xr.Variable) and owner.dtype.kind in "mM"
    named = {str(name): value for name, value in owner.attrs.items()}
    return {_OURS + name if _means(name, value, dated) else name: as_attribute(value) for name, value in named.items()}


def _read(owner: xr.Dataset | xr.Variable) -> Attributes:
    """The same under the names that they had."""
    return {str(name).removeprefix(_OURS): value for name, value in owner.attrs.items()}


def _means(name: str, value: Any, dated: bool) -> bool:
    """Whether readers of netCDF would take an attribute for how values are to be read, or refuse it."""
    return name in _MEANINGS or name.startswith(_OURS) or (name == "units" and (dated or " since " in str(value)))


class _Kept(io.FileIO):
    """A file that keeps its failure to be written (a full disk): HDF5 that is told takes the process down at its end.

    To HDF5 it is from then on a file without what it has been given.
    """

    failure: OSError | None = None
    _end = 0

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size, place = len(rest), self.tell()
        while len(rest) and self.failure is None:
            try:
                rest = rest[super().write(rest) :]
            except OSError as failure:
                self.failure = failure
        self._end = max(self._end, place + size)
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            self._end = super().truncate(size)
        except OSError as failure:
            self.failure, self._end = self.failure or failure, self.tell() if size is None else size
        return self._end

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return super().seek(self._end + offset) if whence == io.SEEK_END else super().seek(offset, whence)


def open(path: str | Path) -> xr.Dataset:
    """The dataset of a run.

    Parameters
    ----------
    path : path
        The run folder, or its results.nc.

    Returns
    -------
    xarray.Dataset, read into memory.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If the file is damaged, of another version, of another run than its folder, or not ours; the message says which.
        Nothing is read from other files, and nothing that the file itself does not hold.

    Examples
    --------
    >>> nf.open("no_such_run")
    Traceback (most recent call last):
    ...
    FileNotFoundError: no_such_run does not exist; give the folder of a run that has ended, or its results.nc
    """
    file = as_path("path", path)
    file = file / FILE if file.is_dir() else file
    if not file.exists() and not file.is_symlink():
        raise FileNotFoundError(f"{file} does not exist; give the folder of a run that has ended, or its {FILE}")
    with opened(str(file), file) as stream:
        tail, size = last_bytes(stream, _LONGEST_LINE)
        mark = _LAST_LINE.search(tail)
        if mark is None:
            raise ValueError(f"{file} is not a whole file of neuralode_flow: its last line does not say so")
        check_version(file, int(mark[1]), VERSION)
        check_seal(file, mark[2].decode(), stream, 0, size - len(mark[0]), "run the study again")
        dataset = _dataset(file, stream, size)
    config = file.with_name(CONFIG)
    if config.exists() and dataset.attrs.get("config") != _text(config):
        raise ValueError(f"{file} belongs to another run than {config}: their configs differ")
    return dataset


def _text(path: Path) -> str:
    with opened(str(path), path) as stream:
        return stream.read(_LONGEST_CONFIG).decode(encoding="utf-8", errors="replace")


def _dataset(path: Path, stream: BinaryIO, size: int) -> xr.Dataset:
    try:
        with h5py.File(stream, "r") as file:
            _refuse_tricks(file, size, stream, _texts(stream, size))
    except _Trick as trick:
        raise ValueError(f"{path} is not a file that neuralode_flow wrote: {trick}; nothing has been read") from trick
    except Exception as error:  # whatever HDF5 raises where the checksum was forged
        raise ValueError(f"{path} cannot be read as netCDF ({type(error).__name__}); run the study again") from error
    stream.seek(0)
    try:
        with postponed(True), xr.open_dataset(_Store.open(stream)) as stored:
            return _with_attributes(_with_texts(stored.load(), max(_MOST_TEXT, size)), _read)
    except Exception as error:  # the decoders as well
        raise ValueError(f"{path} cannot be read as netCDF ({type(error).__name__}); run the study again") from error


class _Store(xr.backends.H5NetCDFStore):
    """One whose texts are objects of Python; others make each as long as the longest of its variable."""

    def open_store_variable(self, name: Any, var: Any) -> xr.Variable:
        variable = super().open_store_variable(name, var)
        if variable.encoding.get("dtype") is str:
            del variable.encoding["dtype"]
        return variable


def _with_texts(dataset: xr.Dataset, most: int) -> xr.Dataset:
    """The same with texts of one length in each variable, as NumPy has them, as long as they take so many bytes."""
    for name, variable in dataset.variables.items():
        if variable.dtype.kind == "O" and variable.size:
            taken = 4 * variable.size * max(map(len, variable.values.flat))
            if taken <= most:
                most -= taken
                dataset = dataset.assign({name: variable.astype(str)})
    return dataset


class _Trick(Exception):
    """The file holds what `write` never makes; the text says what."""


Texts = dict[int, np.ndarray]  # of each heap, by where it begins, numbers and bytes of its texts `(n, 2)`


def _refuse_tricks(file: h5py.File, size: int, stream: BinaryIO, texts: Texts) -> None:
    """Raises _Trick unless all is plain: variables whose values lie in the file, each where it was written."""
    if len(file) > size // _LEAST_BYTES or file.id.get_create_plist().get_sizes() != (8, 8):
        raise _Trick(f"it has {len(file)} variables, or addresses of another size")
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise _Trick(f"{name!r} leads elsewhere")
        kind = file.get(name, getclass=True)
        if kind is not h5py.Dataset and not (kind is h5py.Datatype and _is_complex(file[name].id)):
            raise _Trick(f"{name!r} is no variable")
    owners = [("the file", file["/"]), *((repr(name), file[name]) for name in file)]
    longest, most = _longest(texts), max(_MOST_TEXT, size)
    told = [sizes for name, owner in owners for sizes in _told(name, owner, longest)]
    _refuse_excess([(claimed, 0) for claimed, _ in told], size, most)
    if most < sum(text for _, text in told) <= _MOST_READ:  # not many are so long: the config, and the finding
        told = [sizes for name, owner in owners for sizes in _told(name, owner, longest, most)]
    _refuse_excess(told, size, most)  # one of the attributes is read for what follows
    held = [_held(repr(name), file[name], stream, texts) for name in file if isinstance(file[name], h5py.Dataset)]
    _refuse_excess([*told, *held], size, most)


def _refuse_excess(sizes: list[tuple[int, int]], size: int, most: int) -> None:
    claimed, text = (sum(column) for column in zip((0, 0), *sizes, strict=True))
    if claimed > size:
        raise _Trick(f"its variables claim {claimed} bytes, and it has {size}")
    if text > most:
        raise _Trick(f"its texts take up to {text} bytes, and it has {size}")


def _held(name: str, dataset: h5py.Dataset, stream: BinaryIO, texts: Texts) -> tuple[int, int]:
    """How many bytes the values of a variable take in the file, and the texts that they name."""
    layout = dataset.id.get_create_plist()
    whole = (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    # An axis of no length is one without end to HDF5, which keeps in pieces what lies along it; there are none.
    if layout.get_external_count() or (layout.get_layout() not in whole and dataset.size):
        raise _Trick(f"the values of {name} lie elsewhere, or in pieces")
    if layout.get_nfilters():
        raise _Trick(f"{name} is compressed")
    claimed, count = _size(name, dataset.id, attribute=False)
    if dataset.id.get_storage_size() >= claimed:
        return claimed, _named(stream, dataset.id.get_offset(), count, texts) if count else 0
    if b"not a netCDF variable" in dataset.attrs.get("NAME", b""):  # the length of an axis, which is not read
        return 0, 0
    raise _Trick(f"{name} claims {claimed} bytes that were never written")


def _named(stream: BinaryIO, start: int | None, count: int, texts: Texts) -> int:
    """The bytes of the texts that `count` values name, each by 16 bytes from `start` on (HDF5 format, IV.B)."""
    longest, total = _longest(texts), 0
    if start is None:  # in the head of the variable, which has no place for many
        return count * longest
    stream.seek(start)
    named = np.frombuffer(stream.read(16 * count), [("length", "<u4"), ("heap", "<u8"), ("number", "<u4")])
    named = named[named["heap"] != 0]  # the others have no text
    named = named[np.argsort(named["heap"], kind="stable")]
    for part in np.split(named, np.flatnonzero(np.diff(named["heap"])) + 1):
        own = dict(sorted(texts[heap].tolist())) if len(part) and (heap := int(part["heap"][0])) in texts else {}
        total += sum(own.get(number, longest) for number in part["number"].tolist())
    return total


def _longest(texts: Texts) -> int:
    """The most bytes that one text takes."""
    return max((int(own[:, 1].max()) for own in texts.values()), default=0)


def _told(name: str, owner: Any, longest: int, readable: int = 0) -> Iterator[tuple[int, int]]:
    """How many bytes each attribute of a variable or of the file takes, and its texts if each is the longest.

    One whose texts can take no more than `readable` bytes is read to know.
    """
    for i in range(h5py.h5a.get_num_attrs(owner.id)):
        attribute = h5py.h5a.open(owner.id, index=i)
        claimed, count = _size(f"an attribute of {name}", attribute, attribute=True)
        text = count * longest
        yield claimed, _length(owner.attrs[attribute.name]) if 0 < text <= readable else text


def _length(value: Any) -> int:
    """The bytes of a text or an array, or of all in it."""
    if isinstance(value, str):
        return len(value.encode(errors="surrogateescape"))
    array = np.asarray(value)
    return sum(map(_length, array.flat)) if array.dtype.kind == "O" and array.ndim else array.nbytes


def _size(name: str, values: Any, *, attribute: bool) -> tuple[int, int]:
    """How many bytes some values take in the file, and how many of them are of any length."""
    kind, count = values.get_type(), values.get_space().get_simple_extent_npoints()
    parts = [kind]
    if attribute and kind.get_class() == h5py.h5t.COMPOUND:  # where netCDF keeps which variables an axis has
        parts = [kind.get_member_type(i) for i in range(kind.get_nmembers())]
    elif attribute and kind.get_class() == h5py.h5t.VLEN:  # … and which axes a variable has
        parts = [kind.get_super()]
    elif _is_complex(kind):
        parts = [kind.get_member_type(0)]
    plain = {h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM} | (
        {h5py.h5t.REFERENCE} if attribute else set()
    )
    loose = kind.get_class() == h5py.h5t.VLEN or (kind.get_class() == h5py.h5t.STRING and kind.is_variable_str())
    if any(part.get_class() not in plain or (part is not kind and _is_text(part)) for part in parts):
        raise _Trick(f"{name} is of a kind that is never written")
    return count * (16 if loose else kind.get_size()), count if loose else 0


def _is_complex(kind: Any) -> bool:
    """Whether a kind of values is that of complex numbers, which has a name of its own in a file that has any."""
    if kind.get_class() != h5py.h5t.COMPOUND or kind.get_nmembers() != 2:
        return False
    parts = [kind.get_member_type(i) for i in range(2)]
    named = [kind.get_member_name(i) for i in range(2)] == [b"r", b"i"]
    return named and all(part.get_class() == h5py.h5t.FLOAT for part in parts)


def _is_text(kind: Any) -> bool:
    return bool(kind.get_class() == h5py.h5t.STRING)


def _texts(stream: BinaryIO, size: int) -> Texts:
    """The bytes of each text: HDF5 keeps texts in heaps, in which many variables can name the same one."""
    texts: Texts = {}
    overlap, place, number = b"", 0, 0
    stream.seek(0)
    while block := stream.read(1 << 20):
        block = overlap + block
        for found in re.finditer(b"GCOL", block):
            start = place - len(overlap) + found.start()
            if len(own := _heap(stream, start, size)):
                texts[start] = own
                number += len(own)
            if number > _MOST_TEXTS:
                raise _Trick(f"it has more than {_MOST_TEXTS} texts")
        place += len(block) - len(overlap)
        overlap = block[-3:]
        stream.seek(place)
    return texts


def _heap(stream: BinaryIO, start: int, size: int) -> np.ndarray:
    """Numbers and bytes of the texts in the heap that begins at `start` (HDF5 file format specification, III.E).

    Other values can have a heap's first four bytes, too; HDF5 takes none for one of another version or length.
    """
    stream.seek(start + 4)
    version, length = int.from_bytes(stream.read(4)[:1], "little"), int.from_bytes(stream.read(8), "little")
    texts: list[tuple[int, int]] = []
    if version == 1 and 16 <= length <= size - start:
        end, place = start + length, start + 16
        while place + 16 <= end and len(texts) < 2**16:  # their numbers have 16 bits
            stream.seek(place)
            head = stream.read(16)
            if len(head) < 16 or head[:2] == b"\0\0":  # what is left is free
                break
            number, own = int.from_bytes(head[:2], "little"), int.from_bytes(head[8:], "little")
            texts.append((number, min(own, 2**62)))
            place += 16 + -(-own // 8) * 8
    return np.array(texts, dtype=np.int64).reshape(-1, 2)
