"""Singular values of zero: a run says so where they come out of the logarithms that stand for them."""

import pytest
import torch
from cases import slow

import neuralode_flow as nf

FLOW = nf.IntrinsicFlow(nf.Quadratic(torch.tensor([[2.0, 1.0], [0.0, 1.0]])), nf.TwoLayer(0.0))
RANKS = {"none": torch.zeros(2, 2), "one": torch.diag(torch.tensor([1.0, 0.0]))}
SIGMA = {"none": "2.3", "one": "0.87"}  # the largest and the smallest of the target


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("method", ["auto", "DOP853", *slow("rodas5p")])
def test_a_singular_value_of_zero_that_comes_into_sight_ends_ok(rank, method):
    early, late = (nf.integrate(FLOW, RANKS[rank], [0.0, end], method) for end in (50.0, 500.0))
    assert early.ending == "ok"
    assert float(torch.linalg.svdvals(early.z[-1])[-1]) < 1e-15
    assert late.ending == "escaped"
    assert f"counts as 2.2e-308 in logarithms and has grown to {SIGMA[rank]}:" in late.status
    assert float(torch.linalg.svdvals(late.z[-1])[-1]) > 0.1  # else it would be right to say nothing


def test_it_is_told_of_the_members_that_it_happens_to():
    starts = torch.stack([RANKS["one"], torch.eye(2), RANKS["none"]])
    for control in ("member", "shared"):
        path = nf.integrate(FLOW, starts, [0.0, 500.0], "DOP853", control=control)
        assert path.ending == "escaped"
        assert "of members 0 and 2 of 3" in path.status
        if control == "member":
            assert path.stats["members"]["endings"] == ["escaped", "ok", "escaped"]


@pytest.mark.slow
def test_small_and_lasting_ones_are_not():
    small = torch.diag(torch.tensor([1.0, 1e-200]))  # it grows, as it shall
    path = nf.integrate(FLOW, small, [0.0, 300.0], "DOP853")
    assert path.ending == "ok"
    assert float(torch.linalg.svdvals(path.z[-1])[-1]) > 0.1
    three = nf.IntrinsicFlow(FLOW.loss, nf.DividedDifference(torch.zeros(3)))  # where the rate falls with the value
    assert nf.integrate(three, RANKS["one"], [0.0, 500.0], "DOP853").ending == "ok"


def test_in_float32_it_comes_into_sight_sooner():
    loss = nf.Quadratic(torch.tensor([[2.0, 1.0], [0.0, 1.0]], dtype=torch.float32))
    flow, start = nf.IntrinsicFlow(loss, nf.TwoLayer(0.0)), RANKS["one"].float()
    assert nf.integrate(flow, start, [0.0, 5.0], "DOP853", rtol=1e-4).ending == "ok"
    assert nf.integrate(flow, start, [0.0, 100.0], "DOP853", rtol=1e-4).ending == "escaped"
