"""A study goes on to a longer horizon from the checkpoints of a shorter run: what it had found at its times stays.

Those with the quickest integrations stand for all of them: how an integration is saved is the same in each.
"""

import time
from dataclasses import replace

import numpy as np
import pytest
import small
import torch

from neuralode_flow.studies import STUDIES


@pytest.mark.parametrize("name", ["closure", "convergence", "scalar_blocks"])
def test_the_numbers_at_the_old_times_stay_to_the_bit(name, tmp_path):
    inputs, settings = small.SMALL[name]()
    clock = replace(inputs["clock"], checkpoints=tmp_path)
    short = STUDIES[name].run(**inputs | {"clock": clock}, **settings, progress=lambda fraction, what: None)
    begun = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    end, spacing = clock.times[-1:], float(clock.times[1])
    clock = replace(clock, times=torch.cat((clock.times, end + spacing, end + 1.5 * spacing)), started=time.monotonic())
    longer = STUDIES[name].run(**inputs | {"clock": clock}, **settings, progress=lambda fraction, what: None)

    n = short.sizes["time"]
    assert longer.sizes["time"] == n + 2
    compared = [key for key in short.variables if "time" in short[key].dims]
    for key in compared:
        before, after = short[key].values, longer[key].isel(time=slice(0, n)).values
        np.testing.assert_array_equal(after, before, err_msg=str(key))
    assert len(compared) >= 2
    assert begun
    stayed = [path.name for path, then in begun.items() if path.stat().st_mtime_ns == then]
    assert stayed == []
