"""Momentum measured: how far its flow, and its steps, are from what the laws say of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..checks import all_finite
from ..depth.grid import DepthGrid
from ..time.base import FAILURES
from ..time.descend import GROWN
from ..time.steprule import STEP_RULES, Ground


def walk(
    flow: Any, rule: str, W: Tensor, V: Tensor, steps: int, rate: float, momentum: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """States `(members, …)` and their last steps, from W and a last step V, after 0, 1, … `steps` steps of a rule.

    `descend` starts at rest; this starts where it is told. It ends where that does: with RuntimeError where a loss has
    grown beyond what comes back, also to numbers at which the gradient is zero.
    """
    ground = Ground(flow, flow.velocity, _one_loss, 1, W)
    kind: Any = STEP_RULES[rule]
    taken = kind(ground, rate, momentum=momentum)
    taken.memory["V"] = V
    most = GROWN * (1 + flow.loss(flow.product(W)).abs())
    yield W, V
    for n in range(steps):
        diverged = f"{rule} diverged at step {n + 1} of rate {rate:g}; choose a smaller study.rate"
        try:
            W = taken.step(n, W)
            grown = not bool((flow.loss(flow.product(W)) <= most).all())  # NaN is not
        except FAILURES as error:
            raise RuntimeError(diverged) from error
        if grown or not all_finite(W):
            raise RuntimeError(diverged)
        yield W, taken.memory["V"]


def _one_loss(state: Tensor, loss: Any) -> Tensor:
    raise NotImplementedError("momentum has one loss")


def skew(N: Tensor) -> Tensor:
    """The skew part of matrices."""
    return (N - N.mT) / 2


def size(law: Tensor) -> Tensor:
    """The largest Frobenius norm over depth: `(..., n, d, d)` → `(...)`."""
    return torch.linalg.matrix_norm(law).amax(-1)


def flow_misses(flow: Any, times: Tensor, W: Tensor, V: Tensor, friction: float) -> dict[str, Tensor]:
    """How far pairs (W, V) `(T, members, …)` on a path are from what W_tt + αW_t = −∇f keeps, `(T, members)`.

    All relative to the largest ‖N‖ on the path: "kept", the change of e^{αt} skew N, and "skew", ‖skew N‖ itself.
    """
    N = flow.momentum_law(W, V)
    grown = torch.exp(friction * (times - times[0]))[:, None, None, None, None] * N
    largest = size(N).amax(0)
    return {"kept": size(skew(grown - grown[0])) / largest, "skew": size(skew(N)) / largest}


def drive_misses(flow: Any, clock: DepthGrid, span: float, W: Tensor, V: Tensor, friction: float) -> Tensor:
    """By how much e^{αt}N misses its integral of e^{αt}(VᵀV − VVᵀ), at the Gauss nodes of a grid in time: `(members,)`.

    That is C_tt + αC_t = 2(VᵀV − VVᵀ), once integrated: C_t = N + Nᵀ.
    """
    N, eye = flow.momentum_law(W, V), torch.eye(W.shape[-1]).to(W)
    growth = torch.exp(friction * span * clock.nodes.to(W))[:, None, None, None, None]
    grown, driven = growth * N, growth * flow.law_of_steps(flow.step_law(V, eye))
    done = span * clock.antiderivative(driven.flatten(1, 3)).reshape(driven.shape)
    missed = grown - done
    return size(missed - missed[0]).amax(0) / size(N).amax(0)


def step_misses(flow: Any, W: Tensor, V: Tensor, momentum: float) -> dict[str, Tensor]:
    """How far steps `(n + 1, members, …)` are from the exact laws of heavy ball, each `(n + 1, members)`.

    "skew": skew N_n from βⁿ skew N_0, relative to the largest ‖N‖; "law": C_n from where
    C_{j+1} = C_j + β(N_j + N_jᵀ) + V_{j+1}ᵀV_{j+1} − V_{j+1}V_{j+1}ᵀ has taken it, and "moved": C_n from C_0, both
    relative to the largest ‖C‖; "turning": ‖skew N_n‖, relative as "skew".
    """
    N, law, eye = flow.momentum_law(W, V), flow.law(W), torch.eye(W.shape[-1]).to(W)
    powers = momentum ** torch.arange(len(W), dtype=W.dtype, device=W.device)
    kept = powers[:, None, None, None, None] * skew(N[0])
    steps = momentum * (N + N.mT)[:-1] + flow.law_of_steps(flow.step_law(V[1:], eye))
    said = torch.cat((law[:1], law[0] + steps.cumsum(0)))
    of_N, of_law = size(N).amax(0), size(law).amax(0)
    return {
        "skew": size(skew(N) - kept) / of_N,
        "turning": size(skew(N)) / of_N,
        "law": size(law - said) / of_law,
        "moved": size(law - law[0]) / of_law,
    }
