"""What a flow may offer is found by the names of its methods, whatever it inherits from."""

from functools import partial

import pytest
import torch
from cases import randn, relaxed_profile

import neuralode_flow as nf
from neuralode_flow.flows import capabilities
from neuralode_flow.flows.capabilities import offers

LOSS = nf.Quadratic(torch.diag(torch.tensor([2.0, 0.5])))
GRID = nf.DepthGrid.gauss(2, 4)
CONTINUOUS = nf.ContinuousFlow(GRID, LOSS)
LIMIT = nf.IntrinsicFlow(LOSS, nf.LogMean())
FLOWS = {
    "continuous": CONTINUOUS,
    "finite": nf.FiniteFlow(4, LOSS),
    "intrinsic": LIMIT,
    "carrier": LIMIT.carrier(),
    "factorization": nf.FactorizationFlow(lambda theta: theta @ theta.mT, LOSS),
    "momentum": nf.MomentumFlow(CONTINUOUS, 1.0),
}
OFFERED = {
    "Repeats": {"continuous", "finite"},
    "Samples": {"continuous", "finite", "momentum"},
    "AtDepths": {"finite"},
    "OnGrid": {"continuous", "momentum"},
    "ChangesGrid": {"continuous", "momentum"},
    "EstimatesDepth": {"continuous", "momentum"},
    "EstimatesSmooth": {"continuous", "momentum"},
    "KnowsMisfit": {"continuous", "momentum"},
    "EstimatesCourse": {"continuous", "momentum"},
    "Multiplies": {"continuous", "finite", "momentum"},
    "TellsLawChange": {"continuous"},
    "KnowsStepLaw": {"continuous", "finite"},
    "Descends": {"continuous", "finite"},
    "StepsExplicitly": {"continuous", "finite", "carrier", "intrinsic"},
    "RunsExplicitly": {"continuous", "finite", "carrier", "intrinsic"},
    "KnowsMomentumLaw": {"continuous", "finite"},
    "KeepsOrientation": {"continuous", "intrinsic", "carrier", "momentum"},
    "KeepsSign": {"finite", "factorization"},
    "PullsBack": {"factorization"},
    "Linearises": {"continuous", "factorization", "momentum", "intrinsic", "carrier"},
    "DerivesAlongMany": {"continuous", "intrinsic", "carrier"},
    "KnowsJacobian": {"intrinsic", "carrier"},
    "Resolves": {"continuous", "intrinsic", "carrier"},
    "StepsImplicitly": {"carrier"},
    "Carried": {"intrinsic"},
    "Enters": {"carrier"},
    "Leaves": {"carrier"},
    "ChoosesTolerances": {"carrier"},
    "KnowsFinite": {"carrier"},
    "KnowsRate": {"carrier"},
    "KnowsLogSigma": {"carrier"},
}


class Bare:
    """A stranger's flow θ' = −θ with all that every flow must have, and nothing else."""

    loss = nf.Quadratic(torch.zeros(2, 2))

    def check(self, state): ...

    def velocity(self, state):
        return -state

    def product(self, state):
        return state.sum(-3)

    def law(self, state):
        return state.new_empty(*state.shape[:-3], 0, 2, 2)


class Linearised(Bare):
    def linearised(self, state):
        return lambda direction: -direction


class Delegating:
    """A flow that passes everything on to another one."""

    def __init__(self, flow):
        self._flow = flow

    def __getattr__(self, name):
        return getattr(self._flow, name)


def test_every_capability_is_offered_by_those_flows_that_have_it():
    own = {name for name, kind in vars(capabilities).items() if getattr(kind, "_is_protocol", False)}
    assert own - {"Protocol"} == set(OFFERED)
    for name, those in OFFERED.items():
        assert {flow for flow in FLOWS if offers(FLOWS[flow], getattr(capabilities, name))} == those, name


@pytest.mark.parametrize("name", OFFERED)
def test_a_bare_flow_offers_nothing(name):
    assert not offers(Bare(), getattr(capabilities, name))


def test_part_of_a_capability_is_none():
    half = Bare()
    half.grid, half.on = GRID, lambda grid: half
    assert not offers(half, capabilities.ChangesGrid)
    half.transfer = lambda state, grid: state
    assert offers(half, capabilities.ChangesGrid)
    half.on = None
    assert not offers(half, capabilities.ChangesGrid)


def test_the_method_of_a_stranger_is_used_without_inheritance():
    start = randn(40, 2, 2, seed=0)
    paths = {kind: nf.integrate(kind(), start, [0.0, 1.0], "CVODE_BDF", 1e-6) for kind in (Bare, Linearised)}
    assert paths[Bare].stats["products"] == 0
    assert paths[Linearised].stats["products"] > 0


@pytest.mark.parametrize(
    ("flow", "start"), [(CONTINUOUS, relaxed_profile(2, seed=3)[1]), (LIMIT, torch.eye(2))], ids=["grid", "carrier"]
)
@pytest.mark.parametrize("method", ["DOP853", "CVODE_BDF"])
def test_a_flow_that_passes_on_to_another_offers_what_that_does(flow, start, method):
    run = (start, [0.0, 0.3, 1.0], method, 1e-6)
    whole, passed = (nf.integrate(kind, *run) for kind in (flow, Delegating(flow)))
    # Its velocity is its own: whole steps are not passed on, and their sums are rounded in another way.
    same = torch.equal if method != "DOP853" else partial(torch.allclose, rtol=0, atol=1e-14)
    for name in ("z", "loss", "drift", "state", "depth_error", "log_sigma"):
        one, other = getattr(passed, name), getattr(whole, name)
        assert one is other is None or same(one, other), name
    assert passed.stats["grid"] == whole.stats["grid"]
    assert passed.stats["evaluations"] == whole.stats["evaluations"]
