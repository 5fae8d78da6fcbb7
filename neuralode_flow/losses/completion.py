"""Half the squared distance to the known entries of a target."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import float_tensor
from .base import PASSED, check_z, loss_said, of_some, side
from .quadratic import half_square


@PASSED.tested
class Completion:
    """f(z) = ½‖M ∘ (z − T)‖²: only the entries in the mask are seen.

    Parameters
    ----------
    target : Tensor (..., d, d), or (..., n, m) for a factorisation
        T; entries outside the mask do not matter (they must still be finite).
    mask : Tensor of bool, of the same matrix shape
        M, True where T is known.

    Raises
    ------
    TypeError, ValueError
        If the target is not a finite matrix, the mask is not bool, has another shape, or sees nothing of a
        member.

    Examples
    --------
    >>> mask = torch.tensor([[True, False], [False, True]])
    >>> loss = nf.Completion(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), mask)
    >>> z = torch.tensor([[2.0, 7.0], [7.0, 2.0]])
    >>> float(loss(z)), loss.gradient(z).tolist()
    (0.5, [[0.0, 0.0], [0.0, -1.0]])
    """

    repeats = True

    def __init__(self, target: Tensor, mask: Tensor) -> None:
        self.target = float_tensor("target", target, ndim=2)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"mask must be a tensor of bool, got {getattr(mask, 'dtype', type(mask).__name__)}")
        if mask.shape[-2:] != target.shape[-2:]:
            raise ValueError(
                f"mask must have the matrix shape of target, {tuple(target.shape)}, got {tuple(mask.shape)}"
            )
        try:
            torch.broadcast_shapes(mask.shape, target.shape)
        except RuntimeError:
            raise ValueError(
                f"mask must have leading axes that go with those of target, {tuple(target.shape)}, "
                f"got {tuple(mask.shape)}; give one mask per member, or one for all"
            ) from None
        if mask.device != target.device:
            raise TypeError(f"mask is on {mask.device} but target is on {target.device}; move one with .to(device=...)")
        if not bool(mask.any(-1).any(-1).all()):
            raise ValueError("mask must be True somewhere in every member: an empty mask makes a loss zero everywhere")
        self.mask = mask
        self.shape = target.shape[-2:]
        self.dimension: int | None = side(self.shape)

    def __repr__(self) -> str:
        return loss_said(self, f"{int(self.mask.sum())} of {self.mask.numel()} entries")

    def __call__(self, z: Tensor) -> Tensor:
        check_z(z, self.shape)
        return half_square(self.gradient(z))

    def gradient(self, z: Tensor) -> Tensor:
        return torch.where(self.mask, z - self.target, 0.0)

    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        return torch.where(self.mask, direction, 0.0)

    def select(self, members: Sequence[int], index: Tensor) -> Completion:
        """The loss of some members `(n,)` of a batch."""
        some = copy.copy(self)
        some.target, some.mask = (of_some(part, 2, members, index) for part in (self.target, self.mask))
        return some
