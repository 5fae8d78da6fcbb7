"""What losses of samples share: predictions R z P xᵢ, and gradients that come back through them."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor

from ..display import first_of
from ..matrices import each_product
from .base import loss_said
from .regression import Table, check_samples, kept


class Samples:
    """Samples around z, with fixed readin P and readout R.

    Parameters
    ----------
    x, y, readin, readout
        As in `Regression`.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or devices do not fit together, or an entry is not finite.
    """

    def __init__(self, x: Tensor, y: Tensor, readin: Tensor | None = None, readout: Tensor | None = None) -> None:
        inputs, d = check_samples(x, y, readin, readout)
        # All of them are copies, as the products with a readin are: what is written later is in none of them.
        self.x, self.y, self.readout = inputs.clone(), y.clone(), kept(readout)
        self.dimension: int | None = d
        self.shape = (d, d)

    def __repr__(self) -> str:
        return loss_said(self, f"{len(self.x)} samples")

    @property
    def samples(self) -> Table:
        """The samples themselves."""
        return Table(self.x, self.y)

    def part(self, rows: Tensor | None = None, shift: Tensor | None = None) -> Self:
        """The loss of some of the samples, or with other targets: see `Regression.part`."""
        one = copy.copy(self)
        one.x, one.y = self.samples.taken(rows, shift)
        return one

    def _prediction(self, z: Tensor) -> Tensor:
        prediction = each_product(self.x, z.mT)
        return prediction if self.readout is None else each_product(prediction, self.readout.mT)

    def _pulled_back(self, slope: Tensor) -> Tensor:
        """The gradient in z of ⟨slope, prediction⟩ / n."""
        pulled = slope if self.readout is None else each_product(slope, self.readout)
        return each_product(pulled.mT, self.x) / len(self.x)


class Labelled(Samples):
    """Samples whose y says classes: `encode` makes targets of them; what is no table is refused as for others."""

    def part(self, rows: Tensor | None = None, shift: Tensor | None = None) -> Self:
        if shift is not None:
            raise ValueError(f"{type(self).__name__} has classes for targets, to which no noise can be added")
        return super().part(rows)

    def __init__(self, x: Tensor, y: Tensor, readin: Tensor | None = None, readout: Tensor | None = None) -> None:
        is_table = isinstance(y, Tensor) and y.ndim == 2 and y.is_floating_point()
        super().__init__(x, self.encode("y", y) if is_table else y, readin, readout)

    @staticmethod
    def encode(name: str, y: Tensor) -> Tensor:
        """Targets `(n, d_out)` of the classes in a table; raises ValueError if there are none."""
        raise NotImplementedError


def classes(name: str, y: Tensor) -> Tensor:
    """The classes 0, …, k − 1 of one column `(n, 1)` of whole numbers that count from 0 or 1, `(n,)`.

    Raises
    ------
    ValueError
        If they do not count, or are one alone; the message says what to write.
    """
    column = y[:, 0]
    broken = torch.nonzero(column != column.round())
    if len(broken):
        row = int(broken[0])
        raise ValueError(
            f"{name} must hold classes, the whole numbers 0, 1, 2, … in one column, got {float(column[row]):g} in row "
            f"{row + 1}; number the classes, or take problem.loss=quadratic for measurements"
        )
    found, first = torch.unique(column), column.min()
    if len(found) < 2:
        raise ValueError(f"{name} must hold two classes or more, got {float(first):g} in all rows")
    if first not in (0, 1) or found[-1] - first != len(found) - 1:
        shown = first_of([f"{value:g}" for value in found.tolist()])
        raise ValueError(
            f"{name} must number its classes 0, 1, 2, … without gaps (or from 1), got {shown}; number them anew"
        )
    return (column - first).long()
