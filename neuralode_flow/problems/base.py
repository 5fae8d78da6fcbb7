"""What a problem is: a loss on the end-to-end map and the map that training starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from ..checks import seeded, square
from ..display import said
from ..losses import Loss, check_loss
from ..matrices import normal as normal
from ..registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, eq=False)
class Problem:
    """One training problem.

    Attributes
    ----------
    name : str
        The name it is chosen by.
    title : str
        One sentence for people, with the sizes.
    loss : Loss
        f(z) and its gradient, for maps `(..., d, d)`.
    z0 : Tensor (d, d)
        The end-to-end map that training starts from.
    held_out : Loss, optional
        The loss on rows that training does not see.
    data : tuple of str
        What was done to the data, in a few words each.

    Examples
    --------
    >>> problem = nf.PROBLEMS["linnerud"]()
    >>> problem.title
    'Linnerud: 3 exercises → 3 body measures of 20 men'
    >>> problem.z0.shape
    torch.Size([3, 3])
    """

    name: str
    title: str
    loss: Loss
    z0: Tensor
    held_out: Loss | None = None
    data: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return said(self, repr(self.name), f"d={self.z0.shape[-1]}", type(self.loss).__name__)

    def __post_init__(self) -> None:
        check_loss("problem.loss", self.loss)
        square("problem.z0", self.z0)
        if self.held_out is not None:
            check_loss("problem.held_out", self.held_out)
        d = self.loss.dimension
        if d is not None and self.z0.shape[-1] != d:
            raise ValueError(f"problem.z0 must be {d} by {d} as the loss is, got shape {tuple(self.z0.shape)}")


PROBLEMS: Registry[Callable[..., Problem]] = Registry("problem")

# How a builder declares a parameter that is the path of a file which it reads: a finished run knows what was in it.
InputFile = Annotated[str, "the path of an input file"]


def identity(dimension: int) -> Tensor:
    """The map that W = 0 gives, `(d, d)` in float64, on torch's default device like all of a problem."""
    return torch.eye(dimension, dtype=torch.float64)


def generator(seed: int) -> torch.Generator:
    """The only source of random numbers of a problem, made from `problem.seed` (0 ≤ seed < 2³²)."""
    return seeded("problem.seed", seed)


def numbers(name: str, made: Tensor) -> None:
    """Raises TypeError where what a problem is made of has no numbers, since the default device is meta."""
    if made.is_meta:
        raise TypeError(
            f"{name} must hold numbers, and the default device is meta, on which tensors have none: make the problem "
            f"on another device"
        )


def standardised(table: Tensor, rows: Tensor | None = None) -> Tensor:
    """Columns of `table` (n, k) with mean 0 and variance 1 (over n); constant columns become exactly 0.

    With the indices of `rows`, mean and variance are those of these rows, and a column that is constant there is 0.
    """
    seen = table if rows is None else table[rows]
    size = seen.abs().amax(dim=0)
    # Dividing by the largest entry first keeps the squares of huge and tiny columns in range.
    unit = torch.where(size > 0, size, 1.0)
    scaled = seen / unit
    mean = scaled.mean(dim=0)
    spread = (scaled - mean).square().mean(dim=0).sqrt()
    # The entries decide, not the spread: that of a constant column is round-off and not always 0.
    constant = (scaled == scaled[:1]).all(dim=0)
    return torch.where(constant, 0.0, (table / unit - mean) / torch.where(constant, 1.0, spread))
