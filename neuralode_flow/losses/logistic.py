"""Logistic regression: each output tells two classes apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .base import LOSSES, PASSED, check_z
from .samples import Labelled


@LOSSES.register("logistic")
@PASSED.tested
class Logistic(Labelled):
    """f(z) = 1/n Σ_i Σ_o log(1 + exp(−y_io (R z P x_i)_o)) of targets y = ±1, with fixed readin P and readout R.

    Where the classes can be separated, the infimum 0 is not reached: z grows without bound, as log t at last.

    Parameters
    ----------
    x : Tensor (n, d_in)
    y : Tensor (n, d_out)
        Targets, all of them −1 or 1, or all of them 0 or 1 where 0 stands for −1.
    readin, readout : Tensor, optional
        As in `Regression`.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or devices do not fit together, an entry is not finite, or a target is another number.

    Examples
    --------
    >>> x, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [-1.0]])
    >>> loss = nf.Logistic(x, y)
    >>> float(loss(torch.zeros(1, 1))) == math.log(2), float(loss.gradient(torch.zeros(1, 1)))
    (True, -0.5)
    """

    @staticmethod
    def encode(name: str, y: Tensor) -> Tensor:
        """Targets `(n, d_out)` of a table as ±1; raises ValueError if they are neither ±1 nor 0 and 1."""
        signs, bits = (y == 1) | (y == -1), (y == 1) | (y == 0)
        if signs.all():
            return y
        if bits.all():
            return 2 * y - 1
        strange = ~(signs | bits)
        row, column = torch.nonzero(strange if strange.any() else y == 0)[0].tolist()
        mixed = "" if strange.any() else " among −1 and 1"
        raise ValueError(
            f"{name} must hold −1 and 1, or 0 and 1, for the logistic loss, got {float(y[row, column]):g}{mixed} in "
            f"row {row + 1}, column {column + 1}; number the classes so, or take problem.loss=cross_entropy for more"
        )

    def __call__(self, z: Tensor) -> Tensor:
        check_z(z, self.shape)
        return -logsigmoid(self.y * self._prediction(z)).sum((-2, -1)) / len(self.x)

    def gradient(self, z: Tensor) -> Tensor:
        return self._pulled_back(-self.y * torch.sigmoid(-self.y * self._prediction(z)))

    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        logits = self._prediction(z)
        return self._pulled_back(torch.sigmoid(logits) * torch.sigmoid(-logits) * self._prediction(direction))
