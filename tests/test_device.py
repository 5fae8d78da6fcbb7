"""Tensors stay on the device of the state: on a GPU where there is one, and beside another default device."""

import pytest
import torch
from torch.testing import assert_close

import neuralode_flow as nf
from neuralode_flow.time.steprule import STEP_RULES

SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(12, 3, generator=SOURCE, dtype=torch.float64)
Y = X @ torch.randn(3, 3, generator=SOURCE, dtype=torch.float64)
Z0 = torch.linalg.matrix_exp(0.3 * torch.randn(3, 3, generator=SOURCE, dtype=torch.float64))
W0 = nf.INITIALS["relaxed_balanced"](Z0)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def continuous(device):
    return nf.ContinuousFlow(nf.DepthGrid.gauss(2, 8, device=device), nf.Regression(X.to(device), Y.to(device)))


FLOW = continuous("cpu")
START = FLOW.sample(W0)


def steps(rule, flow=FLOW, start=START):
    return nf.descend(flow, start, 20, rule, 0.02, record=5)


def path(device="cpu", **options):
    flow = continuous(device)
    return nf.integrate(flow, START.to(device), [0.0, 0.5, 1.0], "DOP853", rtol=1e-10, **options)


@pytest.mark.parametrize("rule", STEP_RULES)
def test_steps_do_not_ask_for_the_default_device(rule):
    expected = steps(rule)
    with torch.device("meta"):
        found = steps(rule)
    assert torch.equal(found.z, expected.z)
    assert torch.equal(found.drift, expected.drift)


def test_the_samples_of_a_profile_do_not_either():
    with torch.device("meta"):
        found = FLOW.sample(W0)
    assert torch.equal(found, START)


@GPU
@pytest.mark.parametrize("rule", STEP_RULES)
def test_steps_on_a_gpu_are_those_on_the_processor(rule):
    found = steps(rule, continuous("cuda"), START.cuda())
    assert found.z.device.type == "cuda"
    assert_close(found.z.cpu(), steps(rule).z, rtol=0, atol=1e-12)


@GPU
def test_trajectories_on_a_gpu_are_those_on_the_processor():
    found, expected = path("cuda", dense=True, estimate=True), path(dense=True, estimate=True)
    assert_close(found.z.cpu(), expected.z, rtol=0, atol=1e-12)
    assert_close(found([0.2, 0.7]).cpu(), expected([0.2, 0.7]), rtol=0, atol=1e-12)
    assert found(torch.tensor([0.2], device="cuda")).device.type == "cuda"
