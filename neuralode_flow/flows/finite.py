"""The training flow of a finite linear network of L layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..checks import count
from ..depth import chain, kernel
from ..depth.grid import Profile, sample
from ..depth.layers import COMPILED, LAYERS, LayerRule, check_rule
from ..laws import euler_law, symmetric_law
from ..losses import Loss, check_square_loss
from ..modes import bare, plain, uncompiled
from ..registry import unknown_name
from .base import check_layers, check_matrices

# Bytes of the layers that are taken together where there are many of them.
SEGMENT = 2**22

SAMPLINGS = {"midpoint": 0.5, "left": 0.0}


class FiniteFlow:
    """dW_k/dt = −L ∂f/∂W_k, the gradient flow of f(U_L … U_1) with U_k = rule(W_k/L).

    The factor L is the L² inner product over depth; it is what makes the limit L → ∞ exist.

    Parameters
    ----------
    depth : int
        L >= 1.
    loss : Loss
    layer : str or LayerRule
        "euler", "rk2", "cayley", "exp".
    sampling : {"midpoint", "left"}
        `sample` puts W0((k − ½)/L) or W0((k − 1)/L) into layer k = 1 … L.

    Raises
    ------
    TypeError, ValueError
        If depth is not a positive integer, a name is unknown, or loss or layer is none.
    """

    def __init__(self, depth: int, loss: Loss, layer: str | LayerRule = "euler", sampling: str = "midpoint") -> None:
        self.depth = count("depth", depth)
        check_square_loss("loss", loss)
        self.loss = loss
        self.rule: LayerRule = LAYERS[layer] if isinstance(layer, str) else layer
        check_rule("layer", self.rule)
        if not isinstance(sampling, str) or sampling not in SAMPLINGS:
            raise ValueError(unknown_name("sampling", sampling, list(SAMPLINGS)))
        self.sampling = sampling

    @property
    def nodes(self) -> Tensor:
        """The depth s_k that stands for layer k, shape (L,)."""
        return (torch.arange(self.depth, dtype=torch.float64) + SAMPLINGS[self.sampling]) / self.depth

    def sample(self, W0: Profile) -> Tensor:
        """W0 on the layers' depths: the state `(..., L, d, d)`. A profile with a method `layers` gives them itself."""
        layers = getattr(W0, "layers", None)
        state = layers(self.nodes) if layers is not None else sample(W0, self.nodes)
        self.check(state)
        return state

    def check(self, state: Tensor) -> None:
        """Raises TypeError or ValueError unless the state has L layers and fits the loss."""
        check_layers(state, self.depth, "layers")
        check_matrices("state", state, self.loss, tuple(state.shape[:-3]))

    @uncompiled
    def velocity(self, state: Tensor) -> Tensor:
        """−L ∂f/∂W_k, shape `(..., L, d, d)`: the exact gradient for every layer rule.

        A state of more than 64 MiB is taken in segments, whose products are computed twice: beside the result little
        memory is used. A smaller one takes four times its own.
        """
        check_layers(state, self.depth, "layers")
        compiled = self._compiled(state, self._downhill)
        if compiled is not None:
            return compiled
        if state.nbytes <= 16 * SEGMENT:
            return self._pull_back(state, self._downhill)
        number = max(1, SEGMENT * self.depth // state.nbytes)
        segments = state.split(number, dim=-3)
        maps = torch.stack([self._map(segment) for segment in segments], dim=-3)
        behind = chain.gradient(maps, self._downhill).unbind(-3)
        parts = (self._pull_back(segment, partial(_constant, M)) for segment, M in zip(segments, behind, strict=True))
        if not (plain(state) and bare(behind[0])):
            return torch.cat(list(parts), dim=-3)
        result = torch.empty_like(state)
        for part, place in zip(parts, result.split(number, dim=-3), strict=True):
            place.copy_(part)
        return result

    def _downhill(self, z: Tensor) -> Tensor:
        return -self.loss.gradient(z)

    def _compiled(self, layers: Tensor, outer: Callable[[Tensor], Tensor] | None = None) -> Tensor | None:
        """`kernel.chain` of consecutive layers, where the kernel has the rule."""
        rule = COMPILED.get(type(self.rule))
        return None if rule is None else kernel.chain(layers, outer, rule, 1 / self.depth)

    def _map(self, layers: Tensor) -> Tensor:
        """The product of consecutive layers W_k, shape `(..., d, d)`."""
        compiled = self._compiled(layers)
        return chain.product(self.rule.layer(layers / self.depth)[0]) if compiled is None else compiled

    def _pull_back(self, layers: Tensor, outer: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient of a function of their product, with respect to W_k/L; `outer` is its gradient there."""
        A = layers / self.depth
        U, saved = self.rule.layer(A)
        return self.rule.adjoint(A, saved, chain.gradient(U, outer))

    @uncompiled
    def product(self, state: Tensor) -> Tensor:
        """z = U_L … U_1, shape `(..., d, d)`."""
        check_layers(state, self.depth, "layers")
        return self._map(state)

    def law(self, state: Tensor) -> Tensor:
        """The law between neighbouring layers, `(..., L−1, d, d)`: exact for Euler layers, else up to O(1/L²)."""
        check_layers(state, self.depth, "layers")
        return euler_law(state) if self.rule.quadratic_law else symmetric_law(state)


def _constant(M: Tensor, z: Tensor) -> Tensor:
    """The gradient M, wherever z is."""
    return M
