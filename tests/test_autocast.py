"""Inside torch.autocast, float32 stays float32: what a run says of its error would not hold for bfloat16.

The truth is the same call outside of it, to the bit.
"""

from collections.abc import Callable

import pytest
import torch
from cases import randn

import neuralode_flow as nf
from neuralode_flow.flows.base import Flow

D = 3
SINGLE = torch.float32
TARGET = randn(D, D, seed=1).to(SINGLE)
START = torch.eye(D, dtype=SINGLE) + 0.1 * randn(D, D, seed=2).to(SINGLE)
LOSS = nf.Regression(randn(9, D, seed=3).to(SINGLE), randn(9, D, seed=4).to(SINGLE))
GRID = nf.DepthGrid.gauss(1, 4, dtype=SINGLE)
TIMES = [0.0, 0.1]


def two_layers(theta: torch.Tensor) -> torch.Tensor:
    first, second = theta.unflatten(-1, (2, D, D)).unbind(-3)
    return second @ first


def spectrum(flow: Flow, state: torch.Tensor) -> torch.Tensor:
    if isinstance(flow, nf.IntrinsicFlow):
        return nf.curvature.balanced_spectrum(LOSS, state)
    return nf.curvature.minimiser_spectrum(flow, state)


FLOWS: dict[str, tuple[Flow, torch.Tensor]] = {
    "continuous": (nf.ContinuousFlow(GRID, LOSS), torch.linspace(0.5, 1.5, 4, dtype=SINGLE)[:, None, None] * START),
    "finite": (nf.FiniteFlow(depth=3, loss=LOSS, layer="rk2"), START.expand(3, D, D)),
    "intrinsic": (nf.IntrinsicFlow(LOSS, kernel=nf.LogMean()), START),
    "factorization": (
        nf.FactorizationFlow(two_layers, nf.Custom(lambda z: (TARGET @ z).square().sum())),
        torch.cat([START.flatten(), START.flatten()]),
    ),
}
CALLS: dict[str, Callable[[Flow, torch.Tensor], torch.Tensor]] = {
    "velocity": lambda flow, state: flow.velocity(state),
    "product": lambda flow, state: flow.product(state),
    "explicit run": lambda flow, state: nf.integrate(flow, state, TIMES, "DOP853", rtol=1e-4, estimate=True).z,
    "implicit run": lambda flow, state: nf.integrate(flow, state, TIMES, "rodas5p", rtol=1e-4).z,
    "dense run": lambda flow, state: nf.integrate(flow, state, TIMES, "DOP853", rtol=1e-4, dense=True)([0.03]),
    "steps": lambda flow, state: nf.descend(flow, state, rate=1e-3, steps=3).z,
    "spectrum": spectrum,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", FLOWS)
def test_float32_stays_float32(name: str, call: str) -> None:
    flow, state = FLOWS[name]
    expected = CALLS[call](flow, state)
    with torch.autocast("cpu", torch.bfloat16):
        assert (TARGET @ TARGET).dtype == torch.bfloat16  # it is at work
        found = CALLS[call](flow, state)
        assert (TARGET @ TARGET).dtype == torch.bfloat16  # and again after the call
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_the_rank_of_a_report_is_decided_by_all_digits() -> None:
    theta = randn(2 * D * D, seed=5).to(SINGLE)
    with torch.autocast("cpu", torch.bfloat16):
        found = str(nf.intrinsic.report(two_layers, theta))
    assert found == str(nf.intrinsic.report(two_layers, theta))
