"""Sharpness along training: the leading eigenvalues of the Hessian at each output of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..checks import count
from ..flows.base import Flow
from .hessian import Hessian, fixed_weights


def along(flow: Flow, k: int = 1) -> Callable[[int, Tensor], Tensor]:
    """An observer for `integrate` and `descend`: the k largest eigenvalues of the Hessian at each output, with errors.

    Parameters
    ----------
    flow : ContinuousFlow, FiniteFlow or FactorizationFlow
        The flow itself, also where a `CentralFlow` or a `ModifiedFlow` around it is run.
    k : int

    Returns
    -------
    callable
        For ``observe=``. What it returns is kept in `Trajectory.observed`, `(T, ..., k, 2)`: eigenvalues, falling, each
        with the residual of its eigenvector behind it, as `Hessian.top` finds them.

    Raises
    ------
    TypeError, ValueError
        If flow is none of those or k not at least 1; in the run as `hessian` and `Hessian.top`.

    Examples
    --------
    >>> flow = nf.FiniteFlow(3, nf.Quadratic(torch.tensor([[3.0]])))
    >>> state, rate = torch.tensor([4.5, -1.5, -0.9]).reshape(3, 1, 1), 0.4
    >>> path = nf.descend(flow, state, steps=200, rate=rate, record=50, observe=nf.curvature.along(flow))
    >>> sharpness, error = path.observed[:, 0].T
    >>> [round(value, 2) for value in sharpness.tolist()], bool((error < 1e-12).all())  # 2/rate = 5
    ([1.85, 6.36, 5.57, 5.24, 5.09], True)
    """
    fixed_weights(flow)
    return partial(_observe, flow, count("k", k))


def _observe(flow: Flow, k: int, i: int, state: Tensor) -> Tensor:
    pairs = Hessian(flow, state).top(k)
    return torch.stack((pairs.values, pairs.residuals), dim=-1)
