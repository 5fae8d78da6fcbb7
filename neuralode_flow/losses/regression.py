"""Least squares of samples: real data, and the samples themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import float_tensor, same_kind
from ..matrices import each_product
from .base import LOSSES, PASSED, Squares, check_z, loss_said
from .quadratic import half_square, rests


class Table:
    """The samples of a loss: the inputs of z `(n, d)` and the targets `(n, d_out)`."""

    def __init__(self, inputs: Tensor, y: Tensor) -> None:
        self.inputs, self.y = inputs, y

    def __len__(self) -> int:
        return len(self.inputs)

    def taken(self, rows: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some of them, or with something added to the targets."""
        y = self.y if shift is None else self.y + shift
        return (self.inputs, y) if rows is None else (self.inputs[rows], y[rows])


def kept(readout: Tensor | None) -> Tensor | None:
    """A copy, which later writing does not reach; a readout through which derivatives are taken stays itself."""
    return readout if readout is None or readout.requires_grad else readout.clone()


def check_samples(x: Tensor, y: Tensor, readin: Tensor | None, readout: Tensor | None) -> tuple[Tensor, int]:
    """The inputs of z, `(n, d)`, and d; raises unless samples, readin and readout fit together."""
    matrices = {"x": x, "y": y, "readin": readin, "readout": readout}
    for name, matrix in matrices.items():
        if matrix is not None or name in ("x", "y"):
            table = float_tensor(name, matrix, ndim=2)
            same_kind(name, table, "x", x)
            if table.ndim != 2:
                raise ValueError(f"{name} must have 2 axes, got shape {tuple(table.shape)}")
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"x and y must have the same number of rows, got {x.shape[0]} and {y.shape[0]}")
    if readin is not None and readin.shape[1] != x.shape[1]:
        raise ValueError(f"readin must have shape (d, {x.shape[1]}) to follow x, got {tuple(readin.shape)}")
    if readout is not None and readout.shape[0] != y.shape[1]:
        raise ValueError(f"readout must have shape ({y.shape[1]}, d) to lead to y, got {tuple(readout.shape)}")
    inputs = x if readin is None else x @ readin.mT
    d = y.shape[1] if readout is None else readout.shape[1]
    if inputs.shape[1] != d:
        raise ValueError(
            f"z would map {inputs.shape[1]} inputs to {d} outputs, but it is square: "
            f"give readin (d, {x.shape[1]}) and readout ({y.shape[1]}, d) with one d"
        )
    return inputs, d


@PASSED.tested
class Regression:
    """f(z) = 1/(2n) Σ_i ‖R z P x_i − y_i‖², with fixed readin P and readout R around z.

    The data enter through the triangular factor of [x Pᵀ, y] (QR), at most d + d_out rows whatever n, so that value
    and gradient are exact and cost nothing in n. What is written into x or y afterwards does not change the loss.

    Parameters
    ----------
    x : Tensor (n, d_in)
    y : Tensor (n, d_out)
    readin : Tensor (d, d_in), optional
        P; the identity when left out, then d = d_in.
    readout : Tensor (d_out, d), optional
        R; the identity when left out, then d = d_out.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or devices do not fit together, or an entry is not finite.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> loss = nf.Regression(x, 2 * x)
    >>> float(loss(2 * torch.eye(2))) < 1e-30
    True
    >>> round(float(loss(torch.eye(2))), 12)  # 1/(2·3) Σ‖x_i‖²
    0.666666666667
    """

    repeats = True

    def __init__(self, x: Tensor, y: Tensor, readin: Tensor | None = None, readout: Tensor | None = None) -> None:
        inputs, d = check_samples(x, y, readin, readout)
        scale = x.shape[0] ** 0.5
        factor = torch.linalg.qr(torch.cat((inputs, y), dim=1) / scale, mode="r").R
        self._x, self._y = factor[:, :d].contiguous(), factor[:, d:].contiguous()
        self.readout = kept(readout)  # as samples and readin are what they were
        # Copies, as the factor is one: what is later written into x or y changes neither the whole nor a part.
        self.samples = Table(inputs.clone(), y.clone())
        self.dimension: int | None = d
        self.shape = (d, d)

    def part(self, rows: Tensor | None = None, shift: Tensor | None = None) -> Regression:
        """The loss of some of the samples, given by their numbers, or with other targets.

        Parameters
        ----------
        rows : Tensor (m,), optional
            Numbers from 0 to n − 1, which may repeat; all of them by default.
        shift : Tensor (n, d_out), optional
            What is added to y.

        Examples
        --------
        >>> x = torch.eye(2)
        >>> loss = nf.Regression(x, 2 * x)
        >>> float(loss.part(torch.tensor([0]))(torch.eye(2)))  # ½ ‖x₀‖²
        0.5
        """
        return type(self)(*self.samples.taken(rows, shift), readout=self.readout)

    def __repr__(self) -> str:
        return loss_said(self)

    def _residual(self, z: Tensor) -> Tensor:
        prediction = each_product(self._x, z.mT)
        return (prediction if self.readout is None else each_product(prediction, self.readout.mT)) - self._y

    def __call__(self, z: Tensor) -> Tensor:
        check_z(z, self.shape)
        return half_square(self._residual(z))

    def gradient(self, z: Tensor) -> Tensor:
        residual = self._residual(z)
        return each_product((residual if self.readout is None else each_product(residual, self.readout)).mT, self._x)

    def squares(self) -> Squares:
        """Half the square of the residual of the triangular factor."""
        return Squares(self._x, self._y, self.readout)

    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        image = each_product(self._x, direction.mT)
        if self.readout is not None:
            image = each_product(each_product(image, self.readout.mT), self.readout)
        return each_product(image.mT, self._x)

    def boundary(self) -> Tensor | None:
        """The least loss on det z = 0 where the minimiser has det < 0, else NaN; None if there are several."""
        return self._rest(0)

    def infimum(self) -> Tensor | None:
        """The infimum over det z > 0; None with a readout.

        It is the least value of all where a minimiser has det ≥ 0 (a singular one is a limit of such z), as always
        where there are several, since that of least norm is singular; else it is `boundary()`.
        """
        if self.readout is not None:
            return None
        least, boundary = self((torch.linalg.pinv(self._x) @ self._y).mT), self.boundary()
        return least if boundary is None or bool(boundary.isnan()) else boundary

    def plateau(self) -> Tensor | None:
        """The next value after `boundary()` at which a flow can rest on det z = 0."""
        return self._rest(1)

    def _rest(self, which: int) -> Tensor | None:
        if self.readout is not None or torch.linalg.matrix_rank(self._x) < self._x.shape[1]:
            return None
        minimiser = torch.linalg.lstsq(self._x, self._y).solution.mT
        return self(minimiser) + rests(minimiser, minimiser @ self._x.mT)[which]


LOSSES.register("quadratic")(Regression)
