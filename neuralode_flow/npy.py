"""NumPy's files, looked at before they are read: an array has the bytes that its header claims, and no objects."""

from __future__ import annotations

import io
import math
import zipfile
from typing import IO, BinaryIO

import numpy as np

from .files import last_bytes

# NumPy refuses longer headers itself, but only after it has read them.
_LONGEST_HEADER = 2**16
# The list of members that a zip archive has at its end: 46 bytes and a name for each.
_LONGEST_LIST = 2**20
_END, _END_64 = 22, 56 + 20  # the sizes of the last record of a zip archive, and of those before it in a large one


def read_array(stream: IO[bytes], stored: int, most: float = math.inf) -> np.ndarray:
    """The array in a .npy file.

    Parameters
    ----------
    stream : file
        It stands at the first of the file's bytes.
    stored : int
        How many there are.
    most : float
        The largest number of bytes that the array may take.

    Raises
    ------
    ValueError
        If the header is none, is of objects, or claims more than `most` or another size than `stored`; nothing has been
        read then.
    """
    first = stream.tell()
    head = io.BytesIO(stream.read(_LONGEST_HEADER))
    if not head.getvalue().startswith(np.lib.format.MAGIC_PREFIX):
        raise ValueError("it has no NumPy header")
    version = np.lib.format.read_magic(head)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"its header is of version {version[0]}.{version[1]}, which is for tables with named fields")
    shape, _, dtype = readers[version](head)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size > stored - head.tell():
        raise ValueError(f"its header claims shape {shape} of {dtype}, but {stored - head.tell()} bytes follow")
    if size < stored - head.tell():  # numpy.save twice into one file
        raise ValueError(f"{stored - head.tell() - size} bytes follow its array, perhaps of another one")
    if size > most:
        raise ValueError(f"its array of shape {shape} takes {size} bytes, more than {most:.0f}")
    stream.seek(first)
    return np.lib.format.read_array(stream, allow_pickle=False)


def members(stream: BinaryIO, comment: int = 0) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """A zip archive that ends in a comment of so many bytes, and its members by the names that NumPy gives them.

    Raises
    ------
    ValueError
        If it is none, has too many members, or has one that NumPy would not write; no member has been read then.
    """
    tail, _ = last_bytes(stream, _END_64 + _END + comment)
    tail = tail.rjust(_END_64 + _END + comment, b"\0")
    if tail.rfind(b"PK\5\6") != _END_64:
        raise ValueError("it does not end as an archive of numpy.savez does")
    large = tail.startswith(b"PK\6\6") and tail[56:60] == b"PK\6\7"
    length = int.from_bytes(tail[40:48] if large else tail[_END_64 + 12 : _END_64 + 16], "little")
    if length > _LONGEST_LIST:
        raise ValueError(f"its list of members takes {length} bytes, more than {_LONGEST_LIST}")
    archive = zipfile.ZipFile(stream)
    found = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    for name, info in found.items():
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise ValueError(f"its member {name!r} is compressed or encrypted in a way that numpy.savez does not know")
    return archive, found
