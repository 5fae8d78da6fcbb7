"""What a checkpoint knows a run by, where functions and objects of one's own belong to it."""

from functools import partial

import numpy as np
import pytest
import torch

import neuralode_flow as nf
from neuralode_flow.time import checkpoint

TARGET = torch.tensor([[2.0, 0.3, 0.0], [0.0, 0.5, 0.2], [-0.1, 0.0, 1.5]])
START = torch.eye(3)
RUN = {"state": START, "times": torch.linspace(0, 3, 7), "method": "DOP853", "rtol": 1e-7, "atol": 1e-9}


def distance(z, *, target=TARGET, power=2.0):
    return 0.5 * ((z - target).abs() ** power).sum()


class Towards(torch.nn.Module):
    """The same loss as a module."""

    def __init__(self, target):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
        self.inner[1].register_buffer("target", target)

    def forward(self, z):
        return distance(z, target=self.inner[1].target)


class Slotted:
    __slots__ = ("target",)

    def __init__(self, target):
        self.target = target

    def __call__(self, z):
        return distance(z, target=self.target)

    def of(self, z):
        return distance(z, target=self.target)


class Optional:
    def __init__(self, target):
        self.options = {"target": target}

    def __call__(self, z):
        return distance(z, **self.options)


def enclosed(target):
    return lambda z: distance(z, target=target)


def defaulted(target):
    return lambda z, target=target: distance(z, target=target)


@pytest.mark.parametrize(
    "made",
    [
        enclosed,
        defaulted,
        lambda target: partial(distance, target=target),
        Towards,
        Slotted,
        lambda target: Slotted(target).of,
        Optional,
        lambda target: enclosed_twice(enclosed(target)),
    ],
    ids=["closure", "default", "partial", "module", "slots", "method", "mapping", "function in a closure"],
)
def test_what_functions_and_objects_of_ones_own_are_given_is_part_of_a_run(made, tmp_path):
    other = TARGET.mT.contiguous()  # of the same loss at the start
    flow, changed = (nf.IntrinsicFlow(nf.Custom(made(target)), nf.LogMean()) for target in (TARGET, other))
    assert abs(changed.loss(START) - flow.loss(START)) < 1e-12
    path = tmp_path / "run.npz"
    whole = nf.integrate(flow, **RUN)
    assert nf.integrate(flow, **RUN, checkpoint=path, max_evaluations=50).ending == "evaluations"
    with pytest.raises(ValueError, match=r"belongs to a run with flow\.loss\..*target = .*, now it is"):
        nf.integrate(changed, **RUN, checkpoint=path)
    again = nf.IntrinsicFlow(nf.Custom(made(TARGET.clone())), nf.LogMean())
    assert torch.equal(nf.integrate(again, **RUN, checkpoint=path).z, whole.z)


def enclosed_twice(function):
    return lambda z: function(z)


def test_what_a_function_counts_is_no_part_of_a_run(tmp_path):
    calls, seen = 0, []

    def counted(z):
        nonlocal calls
        calls += 1
        seen.append(calls)
        return distance(z)

    flow = nf.IntrinsicFlow(nf.Custom(counted), nf.LogMean())
    whole = nf.integrate(flow, **RUN)
    assert nf.integrate(flow, **RUN, checkpoint=tmp_path / "run.npz", max_evaluations=50).ending == "evaluations"
    assert torch.equal(nf.integrate(flow, **RUN, checkpoint=tmp_path / "run.npz").z, whole.z)


def test_a_run_from_before_whose_functions_were_known_by_name_alone_goes_on(tmp_path, monkeypatch):
    flow = nf.IntrinsicFlow(nf.Custom(enclosed(TARGET)), nf.LogMean())
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_given_to", lambda function: None)
        nf.integrate(flow, **RUN, checkpoint=tmp_path / "run.npz", max_evaluations=50)
    again = nf.integrate(flow, **RUN, checkpoint=tmp_path / "run.npz")
    assert torch.equal(again.z, nf.integrate(flow, **RUN).z)


@pytest.mark.parametrize(
    "held",
    [
        torch.ones(2, dtype=torch.bfloat16),
        torch.tensor([1.0 + 2.0j]).conj(),
        torch.tensor([1.0 + 2.0j]).conj().imag,
        torch.eye(2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.eye(3)[:, 1],
        torch.ones(0),
        torch.tensor(1.0, requires_grad=True),
    ],
    ids=["bfloat16", "conjugate", "negative", "sparse", "meta", "strided", "empty", "recorded"],
)
def test_any_tensor_can_be_described(held):
    assert checkpoint.description(lambda: held)["held"] == checkpoint.description(held.clone())


def counted(target):
    n = np.zeros(1)

    def loss(z):
        n[0] += 1
        return distance(z, target=target)

    return loss


class Counting:
    def __init__(self, target):
        self.target, self.calls = target, 0

    def loss(self, z):
        self.calls += 1
        return distance(z, target=self.target)


@pytest.mark.parametrize("made", [counted, lambda target: Counting(target).loss], ids=["array", "method"])
def test_what_a_function_counts_by_itself_is_no_part_of_a_run(made, tmp_path):
    flow, path = nf.IntrinsicFlow(nf.Custom(made(TARGET)), nf.LogMean()), tmp_path / "run.npz"
    assert nf.integrate(flow, **RUN, checkpoint=path, max_evaluations=50).ending == "evaluations"
    assert nf.integrate(flow, **RUN, checkpoint=path).ending == "ok"


def test_arrays_and_mappings_of_all_kinds_are_described():
    numbers = np.arange(4.0)
    own = {"again": {}}
    own["again"]["own"] = own
    described = checkpoint.description
    assert described(numbers[::-1]) == described(numbers[::-1].copy()) != described(numbers)
    assert described(numbers.astype(">f8")) == described(numbers)
    assert described(numbers.astype(np.longdouble)) != described(numbers[::-1].astype(np.longdouble))
    assert described(own) == described(dict(own))
    assert described({counted: 1.0}) == {"function": 1.0}
