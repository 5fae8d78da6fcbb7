"""Ctrl-C while a dataset is written or read: the file is whole, and nothing complains of what is half made."""

import signal
import sys
import threading
import time

import numpy as np
import pytest
import xarray as xr

from neuralode_flow import results


@pytest.mark.parametrize("work", ["write", "read"])
def test_ctrl_c_waits_for_a_file_that_is_being_made(work, tmp_path, monkeypatch):
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    dataset = xr.Dataset({f"x{k}": ("time", np.linspace(0, 1, 50)) for k in range(20)})
    path = tmp_path / results.FILE
    results.write(path, dataset)
    begun = time.perf_counter()
    for _ in range(3):
        results.open(path)
    length = (time.perf_counter() - begun) / 3
    came = 0
    for delay in np.linspace(0.05, 1, 12) * length:
        timer = threading.Timer(delay, signal.raise_signal, [signal.SIGINT])
        try:
            timer.start()
            results.write(path, dataset) if work == "write" else results.open(path)
            timer.join()
            time.sleep(0.001)
        except KeyboardInterrupt:
            came += 1
        timer.join()
        xr.testing.assert_identical(results.open(path), dataset)
    assert came > 6
    # Ordinary: a file that was not closed is when it is forgotten, and Ctrl-C that meets a callback of Python ends that.
    ordinary = (ResourceWarning, KeyboardInterrupt)
    assert not [complaint for complaint in complaints if complaint.exc_type not in ordinary]
