"""A warning names the line of the user's that called."""

import inspect
import math
import warnings
from collections.abc import Callable

import torch

import neuralode_flow as nf

FLOW = nf.IntrinsicFlow(nf.Quadratic(2 * torch.eye(2)), nf.LogMean())
SINGLE = nf.IntrinsicFlow(nf.Quadratic(2 * torch.eye(2, dtype=torch.float32)), nf.LogMean())
BATCH = torch.eye(2) * torch.tensor([1e-3, 1e6])[:, None, None]
PATH = nf.integrate(FLOW, torch.eye(2), [0.0, 1.0], "DOP853")


def jump(s: float) -> float:
    return float(s > 0.4321)


def hidden(s: float) -> torch.Tensor:
    """A bump between the nodes."""
    return 20 * math.exp(-(((s - 0.3) / 0.03) ** 2)) * torch.eye(2)


def test_the_line_is_that_of_the_user() -> None:
    calls: list[Callable[[], object]] = [
        lambda: nf.integrate(SINGLE, torch.eye(2, dtype=torch.float32), [0.0, 1.0], "DOP853", rtol=1e-9),
        lambda: PATH(0.5),
        lambda: nf.relaxed_balanced(torch.eye(2), shift=jump),
        lambda: nf.ContinuousFlow(nf.DepthGrid.gauss(1, 3), FLOW.loss).sample(hidden),
        lambda: nf.integrate(FLOW, BATCH, [0.0, 1e-9], "DOP853", rtol=1e-12, atol=1e-14),
    ]
    for call in calls:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        assert caught, inspect.getsource(call)
        line = inspect.getsourcelines(call)[1]
        assert {(warning.filename, warning.lineno) for warning in caught} == {(__file__, line)}
