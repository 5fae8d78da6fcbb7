"""Datasets on disk: results.nc with its own checksum, so that a damaged file is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .files import atomic_path

FILE = "results.nc"
VERSION = 1
_MARKS = ("format_version", "checksum")


def write(path: Path, dataset: xr.Dataset) -> None:
    """Writes a dataset as netCDF, whole or not at all, with format version and checksum among its attributes."""
    marked = dataset.assign_attrs(format_version=VERSION, checksum=checksum(dataset))
    with atomic_path(path) as temporary:
        marked.to_netcdf(temporary, engine="h5netcdf")


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
        If the file is damaged, of another version, or not ours; the message says which.
    """
    file = Path(path)
    file = file / FILE if file.is_dir() else file
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist; give the folder of a run that has ended, or its {FILE}")
    try:
        with xr.open_dataset(file, engine="h5netcdf") as stored:
            dataset = stored.load()
    except Exception as error:  # whatever a damaged file makes HDF5 and the decoders raise
        raise ValueError(f"{file} cannot be read as netCDF: it is damaged or something else ({error})") from error
    marks = {name: dataset.attrs.pop(name, None) for name in _MARKS}
    if marks["checksum"] is None:
        raise ValueError(f"{file} was not written by neuralode_flow: it has no checksum")
    if int(marks["format_version"] or 0) != VERSION:
        raise ValueError(
            f"{file} has format version {marks['format_version']} and this program reads version {VERSION}: read it "
            f"with the version of neuralode_flow that wrote it"
        )
    if checksum(dataset) != marks["checksum"]:
        raise ValueError(f"{file} is damaged: its contents do not match its checksum; run the study again")
    return dataset


def checksum(dataset: xr.Dataset) -> str:
    """SHA-256 of all names, axes, numbers and attributes of a dataset."""
    digest = hashlib.sha256()
    for name in sorted(map(str, dataset.variables)):
        variable = dataset[name]
        digest.update(f"{name}{variable.dims}{_attributes(variable.attrs)}".encode())
        values = variable.values
        if values.dtype.kind in "OUST":  # text is stored in more than one way
            digest.update(repr(values.astype(str).tolist()).encode())
        else:
            digest.update(np.ascontiguousarray(values, dtype=np.float64).tobytes())
    digest.update(_attributes(dataset.attrs).encode())
    return digest.hexdigest()


def _attributes(attributes: Mapping[Any, Any]) -> str:
    plain = {str(name): np.ravel(value).tolist() for name, value in attributes.items() if name not in _MARKS}
    return repr(sorted(plain.items()))
