"""Datasets on disk: results.nc is netCDF followed by one line with a format version and a checksum of what precedes it.

Readers of netCDF pay no attention to that line; `open` refuses a file that it does not fit.
"""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path

import xarray as xr

from .files import CONFIG, as_path, atomic_write, check_seal

FILE = "results.nc"
VERSION = 1
_LAST_LINE = re.compile(rb"\nneuralode_flow results (\d{1,9}) ([0-9a-f]{64})\n\Z")


def write(path: Path, dataset: xr.Dataset) -> None:
    """Writes a dataset, whole or not at all.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    # In memory first: HDF5 that cannot write its file (a full disk) takes the process down when it ends.
    buffer = io.BytesIO()
    dataset.to_netcdf(buffer, engine="h5netcdf")
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    atomic_write(path, content + f"\nneuralode_flow results {VERSION} {digest}\n".encode())


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
    """
    file = as_path("path", path)
    file = file / FILE if file.is_dir() else file
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist; give the folder of a run that has ended, or its {FILE}")
    content = file.read_bytes()
    mark = _LAST_LINE.search(content)
    if mark is None:
        raise ValueError(f"{file} is not a whole file of neuralode_flow: its last line does not say so")
    sealed = content[: mark.start()]
    check_seal(file, mark[1].decode(), VERSION, mark[2].decode(), sealed, "run the study again")
    try:
        with xr.open_dataset(io.BytesIO(content), engine="h5netcdf") as stored:
            dataset = stored.load()
    except Exception as error:  # whatever HDF5 and the decoders raise where the checksum was forged
        raise ValueError(f"{file} cannot be read as netCDF ({type(error).__name__}); run the study again") from error
    config = file.with_name(CONFIG)
    if config.exists() and dataset.attrs.get("config") != config.read_text(encoding="utf-8"):
        raise ValueError(f"{file} belongs to another run than {config}: their configs differ")
    return dataset
