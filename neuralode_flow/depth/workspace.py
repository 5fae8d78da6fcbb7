"""Scratch memory that outlives a call: at moderate sizes the page faults of fresh memory cost as much as a product."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# What is kept of one buffer: above it the products take far longer than the faults.
_LARGEST = 2**24  # bytes

# take(name, shape, like): uninitialised memory of the dtype and device of `like`.
Take = Callable[[str, tuple[int, ...], Tensor], Tensor]


class Workspace(threading.local):
    """Named buffers of one thread; each is replaced when another shape is asked for."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._lent = False

    @contextmanager
    def lend(self) -> Iterator[Take]:
        """The buffers, until the block ends. A block inside another one gets fresh memory."""
        if self._lent:
            yield _fresh
            return
        self._lent = True
        try:
            yield self._take
        finally:
            self._lent = False

    def _take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != shape or buffer.dtype != like.dtype or buffer.device != like.device:
            buffer = _fresh(name, shape, like)
            if buffer.nbytes <= _LARGEST:
                self._buffers[name] = buffer
            else:
                self._buffers.pop(name, None)
        return buffer


def _fresh(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    # Memory of inference mode could not be written to after it.
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=like.dtype, device=like.device)
