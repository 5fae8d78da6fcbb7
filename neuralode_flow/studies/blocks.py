"""Blocks of the Hessian of a deep network, one for each layer: exact ones, and those of an approximate chain rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from ..curvature.hessian import by_autograd
from ..flows.factorization import FactorizationFlow
from ..losses import Loss
from ..matrices import normal
from ..problems.handwritten import ten_digits

Product = Callable[[Tensor], Tensor]

PIXELS, CLASSES = 64, 10  # of the digits
_LOWER, _UPPER = 0.02, 0.04  # gains between which powers of the gain are read


class Activation(NamedTuple):
    """φ, its derivative, and the gain at which signals keep their size."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    gain: float


ACTIVATIONS = {
    "linear": Activation(lambda z: z, torch.ones_like, 1.0),
    "relu": Activation(torch.relu, lambda z: (z > 0).to(z), 2**0.5),
    "tanh": Activation(torch.tanh, lambda z: 1 - torch.tanh(z).square(), 1.0),
}


class OutputLoss(Loss, Protocol):
    """A loss of the outputs `(n, k)` of all samples, their mean, that knows its second derivative."""

    def curvature(self, z: Tensor) -> Tensor:
        """∂²loss/∂z_i² of each sample i alone, without the mean: `(n, k, k)`."""


class SquaredError:
    """1/(2n) Σ_i ‖z_i − y_i‖²."""

    dimension: int | None = None

    def __init__(self, y: Tensor) -> None:
        self.y = y

    def __call__(self, z: Tensor) -> Tensor:
        return (z - self.y).square().sum((-2, -1)) / (2 * len(self.y))

    def gradient(self, z: Tensor) -> Tensor:
        return (z - self.y) / len(self.y)

    def curvature(self, z: Tensor) -> Tensor:
        return torch.eye(z.shape[-1]).to(z).expand(len(z), -1, -1)


class Softmax:
    """−1/n Σ_i log softmax(z_i) at the class of sample i; y has one 1 in each row."""

    dimension: int | None = None

    def __init__(self, y: Tensor) -> None:
        self.y = y

    def __call__(self, z: Tensor) -> Tensor:
        return -(self.y * torch.log_softmax(z, -1)).sum((-2, -1)) / len(self.y)

    def gradient(self, z: Tensor) -> Tensor:
        return (torch.softmax(z, -1) - self.y) / len(self.y)

    def curvature(self, z: Tensor) -> Tensor:
        chances = torch.softmax(z, -1)
        return torch.diag_embed(chances) - chances.unsqueeze(-1) * chances.unsqueeze(-2)


@dataclass(frozen=True, eq=False)
class Network:
    """z_k = W_k x_{k−1}, x_k = φ(z_k), and the outputs z_L, on samples x_0.

    Attributes
    ----------
    inputs : Tensor (n, d)
    activation : Activation
    loss : OutputLoss
    weights : list of Tensor
        W_1, …, W_L, `(width, d)`, …, `(k, width)`.
    """

    inputs: Tensor
    activation: Activation
    loss: OutputLoss
    weights: Sequence[Tensor]

    def outputs(self, weights: Sequence[Tensor]) -> Tensor:
        """z_L, `(n, k)`."""
        x = self.inputs
        for W in weights[:-1]:
            x = self.activation.value(x @ W.mT)
        return x @ weights[-1].mT

    def exact(self, k: int) -> Product:
        """V ↦ ∂²loss/∂W_k² V, by autograd; k counts from 0."""

        def phi(W: Tensor) -> Tensor:
            return self.outputs([*self.weights[:k], W, *self.weights[k + 1 :]])

        W = self.weights[k]
        return by_autograd(FactorizationFlow(phi, self.loss), W, W.new_ones(()))

    def chain_rule(self) -> list[Product]:
        """V ↦ 1/n Σ_i J_kᵀ H_out J_k V x_{k−1}x_{k−1}ᵀ with J_k = ∂z_L/∂z_k, for each layer: written out."""
        signals, jacobians = self.parts()
        H = self.loss.curvature(self.outputs(self.weights))
        return [_outer(J.mT @ H @ J, x) for x, J in zip(signals, jacobians, strict=True)]

    def parts(self) -> tuple[list[Tensor], list[Tensor]]:
        """x_{k−1} `(n, ·)` and J_k = ∂z_L/∂z_k `(n, k, ·)` of each layer k, by the products of its layers."""
        signals, slopes = [self.inputs], []
        for W in self.weights[:-1]:
            z = signals[-1] @ W.mT
            signals.append(self.activation.value(z))
            slopes.append(self.activation.slope(z))
        last = self.weights[-1]
        jacobians = [torch.eye(len(last)).to(last).expand(len(self.inputs), -1, -1)]
        for W, slope in zip(self.weights[:0:-1], slopes[::-1], strict=True):
            jacobians.append(jacobians[-1] @ W * slope.unsqueeze(-2))
        return signals, jacobians[::-1]


class Digits(NamedTuple):
    """Images of handwritten digits `(n, 64)`, centred, each of mean square 1; their classes `(n, 10)`, one 1 a row."""

    x: Tensor
    y: Tensor


def digits(number: int, random: torch.Generator) -> Digits:
    """Some of the images that come with scikit-learn."""
    pictures, classes = (torch.as_tensor(part) for part in ten_digits())
    rows = torch.randperm(len(pictures), generator=random, device="cpu")[:number].to(pictures.device)
    x = pictures[rows] - pictures[rows].mean(0)
    return Digits(
        x / x.square().mean(-1, keepdim=True).sqrt(), torch.nn.functional.one_hot(classes[rows], CLASSES).to(x)
    )


def gaussian(random: torch.Generator, gain: float, sizes: Sequence[int]) -> list[Tensor]:
    """W_1, …, W_L from sizes[0] to sizes[L], of variance gain²/fan-in."""
    return [gain * normal(random, after, before) / before**0.5 for before, after in zip(sizes, sizes[1:], strict=False)]


def _outer(M: Tensor, x: Tensor) -> Product:
    """V ↦ 1/n Σ_i M_i V x_i x_iᵀ, for M `(n, a, a)` and x `(n, b)`."""

    def product(V: Tensor) -> Tensor:
        return (M @ (x @ V.mT).unsqueeze(-1)).squeeze(-1).mT @ x / len(x)

    return product


def norm(product: Product, like: Tensor) -> float:
    """The largest modulus of an eigenvalue of a symmetric operator on tensors of one shape, by Lanczos' method."""
    x = np.random.default_rng(0).standard_normal(like.numel())

    def apply(v: np.ndarray) -> np.ndarray:
        return product(torch.from_numpy(v.reshape(like.shape)).to(like)).reshape(-1).cpu().numpy()

    size = float(np.linalg.norm(apply(x)) / np.linalg.norm(x))
    if not size:
        return 0.0
    # ARPACK measures residuals against eigenvalues of the size 1; the eigenvalue errs by about the square of one.
    scaled = LinearOperator((len(x), len(x)), matvec=lambda v: apply(np.ascontiguousarray(v)) / size, dtype=x.dtype)
    return size * float(np.abs(eigsh(scaled, 1, which="LM", v0=x, tol=1e-7, return_eigenvectors=False)).max())


def block_norms(network: Network, k: int) -> tuple[float, float, float]:
    """‖H_k‖, ‖G_k‖ and ‖H_k − G_k‖ of the exact block H_k and that of the chain rule, G_k."""
    exact, kept, W = network.exact(k), network.chain_rule()[k], network.weights[k]
    return norm(exact, W), norm(kept, W), norm(lambda V: exact(V) - kept(V), W)


def against_chain_rule(
    data: Digits, width: int, layers: int, gains: Sequence[float], draws: int, random: torch.Generator
) -> tuple[dict[str, Any], list[str]]:
    """Variables of the dataset and its cases: norms of exact blocks, of the chain rule's and of what it drops."""
    cases = [("linear", 1.0), ("relu", 2**0.5), *(("tanh", gain) for gain in gains)]
    sizes = (PIXELS, *(layers - 1) * (width,), CLASSES)
    units = [gaussian(random, 1.0, sizes) for _ in range(draws)]
    found = []
    for kind, gain in cases:
        networks = [Network(data.x, ACTIVATIONS[kind], Softmax(data.y), [gain * W for W in unit]) for unit in units]
        found.append([[block_norms(network, k) for network in networks] for k in range(layers)])
    over = ("case", "layer", "draw")
    parts = np.moveaxis(np.array(found), -1, 0)
    variables = {name: (over, part) for name, part in zip(("exact", "kept", "dropped"), parts, strict=True)}
    return variables, [f"{kind} {gain:.3g}" for kind, gain in cases]


def powers(data: Digits, width: int, deep: Sequence[int], random: torch.Generator) -> dict[str, Any]:
    """Variables of the dataset: slopes of log(dropped/kept) in log gain between two small gains.

    Of all layers but the last, (L, layer), and NaN beyond them.
    """
    shape = (len(deep), max(deep) - 1)
    power, expected = np.full(shape, np.nan), np.full(shape, np.nan)
    for i, L in enumerate(deep):
        unit = gaussian(random, 1.0, (PIXELS, *(L - 1) * (width,), CLASSES))
        lower, upper = (
            Network(data.x, ACTIVATIONS["tanh"], Softmax(data.y), [gain * W for W in unit]) for gain in (_LOWER, _UPPER)
        )
        for k in range(L - 1):
            logs = [np.log(dropped / kept) for _, kept, dropped in (block_norms(one, k) for one in (lower, upper))]
            power[i, k], expected[i, k] = (logs[1] - logs[0]) / np.log(_UPPER / _LOWER), 2 * (k + 1) - L
    over = ("deep", "inside")
    return {"power": (over, power), "power_expected": (over, expected)}
