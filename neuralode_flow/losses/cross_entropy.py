"""Cross-entropy: one class of several, by a softmax of the outputs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..display import first_of
from ..signatures import MOST_DIMENSION
from .base import LOSSES, PASSED, check_z
from .samples import Labelled, classes


@LOSSES.register("cross_entropy")
@PASSED.tested
class CrossEntropy(Labelled):
    """f(z) = −1/n Σ_i log softmax(R z P x_i) at the class of row i, with fixed readin P and readout R.

    Where the classes can be separated, the infimum 0 is not reached: z grows without bound, as log t at last.

    Parameters
    ----------
    x : Tensor (n, d_in)
    y : Tensor (n, k)
        One-hot rows: 1 in the column of the class, 0 in the others. Or `(n, 1)` with class numbers 0, 1, … or 1, 2, ….
    readin, readout : Tensor, optional
        As in `Regression`; the readout has k rows.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or devices do not fit together, an entry is not finite, or y holds no classes.

    Examples
    --------
    >>> x, y = torch.eye(3), torch.tensor([[0.0], [1.0], [2.0]])  # class numbers
    >>> loss = nf.CrossEntropy(x, y)
    >>> abs(float(loss(torch.zeros(3, 3))) - math.log(3)) < 1e-15
    True
    """

    @staticmethod
    def encode(name: str, y: Tensor) -> Tensor:
        """One-hot rows `(n, k)` of the classes in a table; raises ValueError if there are none."""
        if y.ndim == 2 and y.shape[1] == 1:
            number = classes(name, y)
            k = int(number.max()) + 1
            if k > MOST_DIMENSION:
                raise ValueError(f"{name} has {k} classes, more than the {MOST_DIMENSION} that z can tell apart")
            return torch.nn.functional.one_hot(number, k).to(y)
        whole = ((y == 0) | (y == 1)).all(-1) & (y.sum(-1) == 1)
        if not whole.all():
            row = int(torch.nonzero(~whole)[0])
            shown = first_of([f"{value:g}" for value in y[row].tolist()])
            raise ValueError(
                f"{name} must hold one column of class numbers 0, 1, 2, …, or a column for each class with one 1 in "
                f"each row and 0 else, for the cross-entropy, got {shown} in row {row + 1}; write it so, or take "
                f"problem.loss=quadratic for measurements"
            )
        return y

    def __call__(self, z: Tensor) -> Tensor:
        check_z(z, self.shape)
        logits = self._prediction(z)
        others = torch.where(self.y == 1, -torch.inf, logits).logsumexp(-1)
        return -logsigmoid((self.y * logits).sum(-1) - others).sum(-1) / len(self.x)

    def gradient(self, z: Tensor) -> Tensor:
        others = torch.softmax(self._prediction(z), -1) * (1 - self.y)
        return self._pulled_back(others - self.y * others.sum(-1, keepdim=True))

    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        chances, along = torch.softmax(self._prediction(z), -1), self._prediction(direction)
        along = along - (self.y * along).sum(-1, keepdim=True)  # so that a class that is certain leaves no round-off
        return self._pulled_back(chances * (along - (chances * along).sum(-1, keepdim=True)))
