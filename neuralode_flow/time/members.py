"""Which members of a batch a sentence is about."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def advice(which: Tensor) -> str:
    """What to do about members that end the run of all; empty where all of them do, or there is but one."""
    alone = which.ndim == 0 or not bool(which.any()) or bool(which.all())
    return "" if alone else "; a batch goes on as one: without it the others can go on"


def not_finite(value: Tensor, members: torch.Size) -> Tensor:
    """Which members have a NaN or an infinite entry, `(...)`; `members` is the shape of the leading axes."""
    if value.shape[: len(members)] != members:
        return torch.zeros(members, dtype=torch.bool, device=value.device)
    return ~torch.isfinite(value).reshape(*members, -1).all(-1)


def culprits(
    work: Callable[[Tensor], object],
    failures: tuple[type[Exception], ...],
    state: Tensor,
    good: Tensor | None,
    members: torch.Size,
) -> Tensor:
    """Which members `work(state)` fails at, `(...)`: each half of a batch is tried beside members of a good state.

    That takes about 2 log₂(batch) calls for each of them. All False where it cannot be told.
    """
    found = torch.zeros(members, dtype=torch.bool, device="cpu")
    if good is None or not members or good.shape != state.shape or state.shape[: len(members)] != members:
        return found

    def search(these: list[tuple[int, ...]]) -> None:
        mixed = good.clone()
        for index in these:
            mixed[index] = state[index]
        try:
            work(mixed)
        except failures:
            if len(these) == 1:
                found[these[0]] = True
            else:
                search(these[: len(these) // 2])
                search(these[len(these) // 2 :])

    search([tuple(index) for index in (~found).nonzero().tolist()])
    return found
