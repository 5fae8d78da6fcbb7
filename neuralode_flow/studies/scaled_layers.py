"""Two GELU layers on digits whose starts scale one layer up and the other down, as in figure 1 of Song et al. 2021."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import gelu, log_softmax, one_hot

from ..flows.factorization import FactorizationFlow
from ..losses import Custom, Quadratic
from ..matrices import normal
from ..problems.handwritten import ten_digits
from ..time.descend import descend
from .base import whole

# ω₂ of the paper over that of He et al. for its 1000 hidden units.
_HE_OF_THE_PAPER = 0.002**0.5
SCALES = tuple(
    omega / _HE_OF_THE_PAPER
    for omega in (0.002, 0.00744, 0.0129, 0.0183, 0.0238, 0.0347, 0.0456, 0.0564, 0.0673, 0.0782)
)

_CLASSES, _MOMENTUM = 10, 0.9
_TEACHER_RATE, _TEACHER_STEPS = 0.05, 200  # on the mean cross-entropy


def outputs(theta: Tensor, images: Tensor) -> Tensor:
    """v gelu(Wx) of a θ (m, 64 + 10) with the rows w_k and, last, the columns of v: (n, 10)."""
    pixels = images.shape[-1]
    return gelu(images @ theta[:, :pixels].mT) @ theta[:, pixels:]


def trained(
    scales: tuple[float, ...], hidden: int, images: int, steps: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """What training from starts of these scales leads to: accuracies (scales, part, when) and losses (scales,).

    Parts are the images that were trained on and as many others, when is before and after; a loss is the part that is
    left of it.

    The start is W ~ N(0, ω₁²), v ~ N(0, ω₂²), ω₂ the scale times √(2/m), ω₁ω₂ as He et al. have it. The classes are
    those of a teacher of the same shape. Each start has a step size of its own, 1/(‖F₀‖² + ‖X‖²‖v₀‖²), which the
    curvature at the start allows.
    """
    generator = torch.Generator().manual_seed(seed)
    pictures, digits = ten_digits()
    drawn = torch.randperm(len(digits), generator=generator, device="cpu")[: 2 * images].numpy()
    X = torch.as_tensor((pictures[drawn] - pictures.mean()) / pictures.std()).to(torch.get_default_device())
    truth = torch.as_tensor(digits[drawn], device=X.device)
    he = X.new_tensor([(2 / X.shape[1]) ** 0.5] * X.shape[1] + [(2 / hidden) ** 0.5] * _CLASSES)
    unit = normal(generator, 2, hidden, len(he)) * he
    labels = outputs(_teacher(unit[0], X[:images], truth[:images]), X).argmax(-1)
    found = [_one(_scaled(unit[1], scale, X.shape[1]), X, labels, images, steps) for scale in scales]
    accuracies, losses = zip(*found, strict=True)
    return np.stack(accuracies), np.array(losses)


def _scaled(theta: Tensor, scale: float, pixels: int) -> Tensor:
    return torch.cat((theta[:, :pixels] / scale, theta[:, pixels:] * scale), -1)


def _teacher(theta: Tensor, X: Tensor, digits: Tensor) -> Tensor:
    """A network trained on the digits by cross-entropy."""
    chosen = one_hot(digits, _CLASSES).to(X) / len(X)
    loss = Custom(lambda z: -(chosen * log_softmax(z, -1)).sum((-2, -1)), axes=2)
    flow = FactorizationFlow(lambda theta: outputs(theta, X), loss)
    return _last(flow, theta, _TEACHER_STEPS, _TEACHER_RATE)


def _one(theta: Tensor, X: Tensor, labels: Tensor, images: int, steps: int) -> tuple[np.ndarray, float]:
    """What `trained` has of one start."""
    seen, pixels = X[:images], X.shape[1]
    flow = FactorizationFlow(lambda theta: outputs(theta, seen), Quadratic(one_hot(labels[:images], _CLASSES).to(X)))
    F, v = gelu(seen @ theta[:, :pixels].mT), theta[:, pixels:]
    of_F, of_X, of_v = (float(torch.linalg.matrix_norm(M, 2)) for M in (F, seen, v))
    after = _last(flow, theta, steps, 1 / (of_F**2 + (of_X * of_v) ** 2))
    right = torch.stack([(outputs(at, X).argmax(-1) == labels).double() for at in (theta, after)])
    accuracy = right.unflatten(-1, (2, images)).mean(-1).mT.cpu().numpy()
    return accuracy, float(flow.loss(flow.product(after)) / flow.loss(flow.product(theta)))


def _last(flow: FactorizationFlow, theta: Tensor, steps: int, rate: float) -> Tensor:
    """Where Nesterov's momentum leads."""
    path = descend(
        flow, theta, steps, "nesterov", rate, record=steps, momentum=_MOMENTUM, observe=lambda _, state: state.clone()
    )
    kept = whole(path, "training on handwritten digits").observed
    assert kept is not None
    last: Tensor = kept[-1]
    return last
