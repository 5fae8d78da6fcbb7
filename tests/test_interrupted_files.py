"""Ctrl-C while a dataset is written or read: the file is whole, and nothing complains of what is half made."""

import signal
import sys

import h5netcdf
import numpy as np
import pytest
import xarray as xr

from neuralode_flow import results

BEGIN = h5netcdf.File.__init__


@pytest.mark.parametrize("work", ["write", "read"])
def test_ctrl_c_waits_for_a_file_that_is_being_made(work, tmp_path, monkeypatch):
    complaints = []
    dataset, path = xr.Dataset({"x": ("time", np.linspace(0, 1, 50))}), tmp_path / results.FILE
    results.write(path, dataset)

    def interrupted(file, *args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        return BEGIN(file, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(sys, "unraisablehook", complaints.append)
        patch.setattr(h5netcdf.File, "__init__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            results.write(path, dataset + 1) if work == "write" else results.open(path)
    assert not complaints
    xr.testing.assert_identical(results.open(path), dataset)
