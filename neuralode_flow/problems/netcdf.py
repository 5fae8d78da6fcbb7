"""Tables in .nc files, netCDF of version 3 or 4, read by xarray."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import h5py
import numpy as np

from .wanted import FREE_GROWTH, MOST_BYTES, MOST_GROWTH, Refused, Wanted, beside, chosen_name

if TYPE_CHECKING:
    import xarray as xr

_HDF, _CLASSIC = b"\x89HDF", b"CDF"


def read_netcdf(label: str, stream: BinaryIO, size: int, wanted: Wanted) -> np.ndarray:
    """A variable of a .nc file, or columns `(n, k)` by name; fill values are NaN.

    Raises
    ------
    ValueError
        If it is no netCDF, is damaged, leads to other files, or claims too much; or if it is open which variable is
        meant.
    """
    import xarray as xr

    try:
        magic = stream.read(4)
        stream.seek(0)
        if magic == _HDF:
            with h5py.File(stream, "r") as file:
                _refuse_tricks(file)
            stream.seek(0)
        elif not magic.startswith(_CLASSIC):
            raise ValueError("it does not begin as one")
        engine = "h5netcdf" if magic == _HDF else "scipy"
        with xr.open_dataset(stream, engine=engine, decode_times=False) as data:
            if wanted.columns is None:
                names = [str(name) for name, variable in data.data_vars.items() if variable.dtype.kind in "fiub"]
                return data[chosen_name(label, names, wanted, "variable of numbers")].values
            return _columns(label, data, wanted)
    except (Refused, TypeError):
        raise
    except Exception as error:  # whatever a damaged file makes HDF5 or xarray raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{label} cannot be read as netCDF ({reason}); write it again, or save a .csv") from error


def _refuse_tricks(file: h5py.File) -> None:
    """Raises ValueError unless all values lie in the file, and take no more memory than its bytes can hold."""
    whole = 0
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{name!r} leads elsewhere")
        if file.get(name, getclass=True) is not h5py.Dataset:
            continue
        held = file[name]
        if held.is_virtual or held.external:
            raise ValueError(f"the values of {name!r} lie in other files")
        size = held.size * held.dtype.itemsize if held.size else 0
        whole += size
        if size > max(FREE_GROWTH, MOST_GROWTH * held.id.get_storage_size()) or whole > MOST_BYTES:
            raise ValueError(f"{name!r} claims {size} bytes, more than are read")


def _columns(label: str, data: xr.Dataset, wanted: Wanted) -> np.ndarray:
    """Columns by name: variables of one axis, and what has a label along the second of two axes."""
    names, found = [], []
    for name, variable in data.variables.items():
        if variable.ndim == 1 and variable.dtype.kind in "fiub":
            names.append(str(name))
            found.append(variable)
        elif variable.ndim == 2 and name in data.data_vars and variable.dims[1] in data.coords:
            labels = data[variable.dims[1]].values
            if labels.dtype.kind in "OUT":
                names += [str(label) for label in labels]
                found += [variable[:, i] for i in range(len(labels))]
    picked = [found[i] for i in wanted.picks(label, names)]
    axes = {variable.dims[0]: None for variable in picked}
    if len(axes) > 1:
        raise Refused(f"{label}: the columns must lie along one axis, got {', '.join(map(str, axes))}; choose others")
    return beside(label, names, lambda name: np.asarray(found[names.index(name)].values), wanted)
