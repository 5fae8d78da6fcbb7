"""Who computes, chosen once for each call: the compiled engine, one for accelerators, or torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from . import by_torch, compiled, explicit, on_device
from .by_torch import Stepped

__all__ = ["Engine", "Stepped", "choose", "explicit", "multiply"]

if TYPE_CHECKING:
    from ..grid import DepthGrid
    from ..promises import LayerRule


class Engine(Protocol):
    """What an engine does: z of W or, with `outer`, which maps z to the gradient there, the gradient in W."""

    def flow(self, grid: DepthGrid, W: Tensor, outer: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """z = P(1, 0) of W `(..., N, d, d)` on the nodes, or P(1,s_i)ᵀ G P(s_i,0)ᵀ with G = outer(z)."""

    def chain(
        self,
        W: Tensor,
        outer: Callable[[Tensor], Tensor] | None = None,
        rule: LayerRule | None = None,
        depth: int = 1,
    ) -> Tensor:
        """z = U_L … U_1 of U_k = rule(W_k/depth), `(..., L, d, d)`, or the gradient in all W_k/depth.

        Without a rule the layers are W_k themselves.
        """

    def multiply(self, one: Tensor, other: Tensor) -> Tensor:
        """The products of matrices of two batches, `(..., d, d)` each."""

    def grams(self, X: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        """VᵀXᵀXV and VᵀXXᵀV of matrices X `(..., N, d, d)` for directions V `(d, k)`, each `(..., N, k, k)`."""

    def stepped(self, W: Tensor, X: Tensor, rate: float, V: Tensor, added: Tensor, apart: int) -> Stepped:
        """W + rate X, and `added` with what that step does, as it was rounded.

        With the `grams` of the step, right_{k+apart} − left_k is added, `(..., N − apart, k, k)`. What is in X is lost:
        it may be the place of the result.
        """

    def descend_flow(
        self, grid: DepthGrid, W: Tensor, outer: Callable[[Tensor], Tensor], rate: float, V: Tensor, added: Tensor
    ) -> Stepped:
        """`stepped` along `flow(grid, W, outer)`, each node for itself (apart = 0)."""

    def descend_chain(
        self,
        W: Tensor,
        outer: Callable[[Tensor], Tensor],
        rule: LayerRule,
        depth: int,
        rate: float,
        V: Tensor,
        added: Tensor,
    ) -> Stepped:
        """`stepped` along `chain(W, outer, rule, depth)`, by pairs of neighbours (apart = 1)."""


def choose(W: Tensor) -> Engine:
    """The compiled engine, or the one for accelerators, where it takes such a state; torch's in all other cases."""
    if compiled.takes(W):
        return compiled
    return on_device if on_device.takes(W) else by_torch


def multiply(one: Tensor, other: Tensor) -> Tensor:
    """The products of matrices of two batches `(..., d, d)`, by the engine that takes the first."""
    return choose(one).multiply(one, other)
