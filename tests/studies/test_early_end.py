"""Runs that a budget ends between two output times: what stands at a time is the number of that time, or NaN."""

import numpy as np
import pytest
import torch
from cases import positive_matrix, randn

import neuralode_flow as nf
from neuralode_flow.time.trajectory import at_times, common_times

# Of each study: settings, and budgets that end some of what it integrates, between two output times.
CASES = {
    "initialisations": (
        {"problem": "teacher", "problem.dimension": 2, "debug": "quick", "study.depths": [2], "study.draws": 2},
        [60, 100],
    ),
    "lazy_to_rich": ({"time.samples": 9, "study.width": 3, "study.balances": [0.5]}, [60, 100]),
    "trajectory": ({"time.samples": 9}, [220]),
    "closure": ({"time.samples": 9, "system": "balanced_two_layer"}, [60, 200]),
}


@pytest.mark.parametrize("study", CASES)
def test_what_stands_at_a_time_is_of_that_time(study):
    settings, budgets = CASES[study]
    whole = nf.run(study, settings).dataset
    assert whole.status == "ok"
    for budget in budgets:
        found = nf.run(study, settings | {"time.max_evaluations": budget}).dataset
        assert "budget" in found.status
        there = found.isel(time=np.isin(found.time, whole.time))
        unknown = len(there.time) < len(whole.time)
        for name, own in there.data_vars.items():
            if "time" in own.dims and own.dtype.kind == "f":
                other = whole[name].sel(time=own.time)
                off = (np.abs(own - other) / (1e-6 + np.abs(other).max())).values
                assert np.nanmax(off, initial=0) < 1e-5, name
                unknown |= bool(np.isnan(off).any())
        assert unknown


def test_a_column_at_the_times_asked_for_has_no_end_between_them():
    flow, times = nf.FiniteFlow(3, nf.Quadratic(positive_matrix(2, 1))), torch.linspace(0.0, 2.0, 5)
    start, options = 0.3 * randn(3, 2, 2, seed=2), {"observe": lambda i, state: state.sum(), "rtol": 1e-8}
    whole = nf.integrate(flow, start, times, **options)
    early = nf.integrate(flow, start, times, stop={"time": 1.2}, **options)
    assert early.times.tolist() == [0.0, 0.5, 1.0, 1.2]
    assert common_times(early.times, times) == common_times(times, early.times) == 3
    assert common_times(times * (1 + 1e-15), times) == 5
    for name in ("z", "loss", "observed"):
        column = at_times(early, times, name)
        assert torch.equal(column[:3], getattr(early, name)[:3])
        assert bool(column[3:].isnan().all())
        assert at_times(whole, times, name) is getattr(whole, name)
        assert column.shape == getattr(whole, name).shape
