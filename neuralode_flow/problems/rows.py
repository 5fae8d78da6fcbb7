"""What is done to the rows of a user's tables before they are trained on, each said in a few words."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..display import first_of
from .base import generator, numbers, standardised

MISSING = {"refuse": False, "drop": True}

# Of standard deviations: whitened columns have covariance I to 1e-16 / LEAST_SPREAD.
LEAST_SPREAD = 1e-5


@dataclass(eq=False)
class Rows:
    """Rows x `(n, d_in)` and y `(n, d_out)`, those of them to train on, those held out, and what was done to them."""

    x: Tensor
    y: Tensor
    train: Tensor | None = None
    held: Tensor | None = None
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        numbers("x", self.x)

    def drop_missing(self) -> None:
        """Leaves out the rows with a NaN; raises ValueError if none is left."""
        absent = self.x.isnan().any(1) | self.y.isnan().any(1)
        if not absent.any():
            return
        n, number, first = len(absent), int(absent.sum()), int(torch.nonzero(absent)[0]) + 1
        if number == n:
            raise ValueError(
                f"problem.missing=drop leaves none of the {n} rows: each misses a value; fill some columns"
            )
        self.x, self.y = self.x[~absent], self.y[~absent]
        self.said.append(f"{number} of {n} rows left out, where a value is missing (the first is row {first})")

    def hold_out(self, part: float, seed: int) -> None:
        """Holds out a part of the rows, drawn by a seed; raises ValueError if none would be left to train on."""
        n = len(self.x)
        number = max(1, round(part * n))
        if number >= n:
            raise ValueError(f"problem.held_out={part:g} leaves none of the {n} rows to train on; give more rows")
        order = torch.randperm(n, generator=generator(seed), device="cpu").to(self.x.device)
        self.held, self.train = order[:number].sort().values, order[number:].sort().values
        self.said.append(f"{number} of {n} rows held out (seed {seed}), {n - number} trained on")

    def standardise(self, *, outputs: bool) -> None:
        """Gives columns mean 0 and variance 1, over the rows to train on; raises ValueError if no column varies."""
        self.x = self._standardised("x", self.x)
        if outputs:
            self.y = self._standardised("y", self.y)
        over = "" if self.train is None else " over the rows trained on"
        which = "every column" if outputs else "every column of x"
        self.said.append(f"{which} standardised to mean 0, variance 1{over}")

    def whiten(self) -> None:
        """Gives the columns of x covariance I over the rows to train on, by the inverse root of their covariance.

        Columns are to be standardised before; what is constant stays 0. Raises ValueError if others determine a column.
        """
        seen = self.trained()[0]
        varies = (seen != 0).any(0)
        directions, spread = _principal(seen[:, varies])
        k, n = len(spread), len(seen)
        if spread[-1] < LEAST_SPREAD * spread[0]:
            raise ValueError(
                f"problem.whiten=true needs columns that do not determine one another: in a direction of the {k} that "
                f"vary in problem.x, {n} rows spread by less than {LEAST_SPREAD:.0e} of their most; leave out columns, "
                f"give more rows, or set problem.whiten=false"
            )
        inputs = self.x.clone()
        inputs[:, varies] = self.x[:, varies] @ (directions / spread) @ directions.mT
        self.x = inputs
        over = "" if self.train is None else " over the rows trained on"
        self.said.append(f"x whitened to covariance I{over}")

    def _standardised(self, name: str, table: Tensor) -> Tensor:
        result, seen = standardised(table, self.train), table if self.train is None else table[self.train]
        flat = (seen == seen[:1]).all(0)
        if flat.all():
            raise ValueError(
                f"problem.{name} has no column that varies over its {len(seen)} rows, so nothing is left once "
                f"standardised; set problem.standardise=false"
            )
        constant = (torch.nonzero(flat)[:, 0] + 1).tolist()
        if constant:
            which = first_of(constant)
            self.said.append(f"column{'s' if len(constant) > 1 else ''} {which} of {name} constant, set to 0")
        return result

    def trained(self) -> tuple[Tensor, Tensor]:
        """x and y of the rows to train on."""
        return (self.x, self.y) if self.train is None else (self.x[self.train], self.y[self.train])


def _principal(table: Tensor) -> tuple[Tensor, Tensor]:
    """The principal directions of rows `(n, k)`, the columns of `(k, k)`, and the standard deviations along them."""
    # The singular values of the rows, not the eigenvalues of their covariance: half the digits would be lost there.
    factor = torch.linalg.qr(table / len(table) ** 0.5, mode="r").R
    _, found, directions = torch.linalg.svd(factor)
    spread = found.new_zeros(table.shape[1])  # fewer rows than columns leave some at 0
    spread[: len(found)] = found
    return directions.mT, spread
