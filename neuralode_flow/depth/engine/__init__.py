"""Who computes: the compiled engine or torch's, chosen once for each call; both do the same two operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from . import by_torch, compiled

if TYPE_CHECKING:
    from ..grid import DepthGrid


class LayerRule(Protocol):
    """What a layer rule promises, for A of shape `(..., L, d, d)`.

    1. `layer(A)` gives U = rule(A) and whatever `adjoint` wants to reuse; U is differentiable by autograd.
       A layer depends on its own A alone.
    2. `adjoint(A, saved, M)`, if it has one, is the gradient of tr(MᵀU) with respect to A, exact to round-off. Autograd
       through `layer` takes its place where there is none.
    3. `order` is the order of convergence in 1/L with midpoint sampling. A rule sees one W_k, the middle of its part of
       the depth, which tells the integral of W over it to order 2: so that is the highest.
    4. `quadratic_law` is True where L²(U_{k+1}ᵀU_{k+1} − U_kU_kᵀ) is conserved exactly by the training flow.
    5. `label`, if it has one, is what figures call it; else they take its name.
    6. `compiled`, if its class itself has one (a subclass may be another rule), is its number in the compiled engine.

    What can be measured of a rule alone is, at its first use in a flow; the order is compared in the study.
    """

    order: int
    quadratic_law: bool

    def layer(self, A: Tensor) -> tuple[Tensor, Any]: ...


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


def choose(W: Tensor) -> Engine:
    """The compiled engine where it is there and takes such a state, torch's in all other cases."""
    return compiled if compiled.takes(W) else by_torch
