"""Two layers with a leaky ReLU whose second layer is fixed: data, the losses that train it, and its closed limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, softplus

from ..losses import Loss
from ..problems.handwritten import digit_pair
from .axes import largest_of
from .margin import largest_margin

_FAR = 30.0  # a margin from which log log(1 + exp(−m)) is −m to round-off


class Network(NamedTuple):
    """f(x) = Σ_j a_j φ(⟨w_j, x⟩), φ(p) = max(γp, p), on samples x_i of classes y_i; only the rows w_j are trained.

    rows : array (n, d), x_i.
    labels : array (n,), y_i = ±1.
    signs : array (m,), √m a_j = ±1.
    slope : γ.
    """

    rows: np.ndarray
    labels: np.ndarray
    signs: np.ndarray
    slope: float

    def outputs(self, W: Tensor, points: np.ndarray) -> Tensor:
        """f of `points` (..., k, d), for weights (..., m, d): (..., k)."""
        hidden = leaky_relu(torch.as_tensor(points) @ W.mT, self.slope)
        return hidden @ torch.as_tensor(self.signs / len(self.signs) ** 0.5)

    def margins(self, W: Tensor) -> Tensor:
        """y_i f(x_i), (..., n)."""
        return torch.as_tensor(self.labels) * self.outputs(W, self.rows)

    def slopes(self, W: Tensor) -> Tensor:
        """The gradients of the margins at one W, by autograd: (n, m, d)."""
        jacobian: Tensor = torch.autograd.functional.jacobian(self.margins, W)
        return jacobian

    @property
    def near(self) -> float:
        """min‖x_i‖² over R² n max|⟨x_i, x_j⟩|, R = max‖x_i‖/min‖x_i‖: large where the data are nearly orthogonal."""
        gram = self.rows @ self.rows.T
        squares = np.diag(gram)
        products = np.abs(gram - np.diag(squares)).max()
        return float(squares.min() ** 2 / (squares.max() * len(gram) * products))


class LogExponential:
    """log Σ_i exp(−m_i): the gradient flow of the exponential loss in another time, which does not underflow."""

    dimension: int | None = None

    def __call__(self, z: Tensor) -> Tensor:
        return torch.logsumexp(-z, -1)

    def gradient(self, z: Tensor) -> Tensor:
        return -torch.softmax(-z, -1)


class LogLogistic:
    """log Σ_i log(1 + exp(−m_i)): the same of the logistic loss."""

    dimension: int | None = None

    def __call__(self, z: Tensor) -> Tensor:
        return torch.logsumexp(self._each(z), -1)

    def gradient(self, z: Tensor) -> Tensor:
        near = z.clamp(max=_FAR)
        slope = torch.where(z < _FAR, torch.sigmoid(-near) / softplus(-near), torch.ones_like(z))
        return -slope * torch.softmax(self._each(z), -1)

    @staticmethod
    def _each(z: Tensor) -> Tensor:
        return torch.where(z < _FAR, softplus(-z.clamp(max=_FAR)).log(), -z)


LOSSES: dict[str, Callable[[], Loss]] = {"exponential": LogExponential, "logistic": LogLogistic}


def correlated(rows: np.ndarray, correlation: float) -> np.ndarray:
    """Samples with the products (1 − ρ)⟨x_i, x_j⟩ + ρ, ρ the correlation."""
    root: np.ndarray = np.linalg.cholesky((1 - correlation) * rows @ rows.T + correlation)
    return root


def digits(network: Network) -> dict[str, Network]:
    """The same network on ten images each of the digits 3 and 8: pixels in [0, 1], and with their means taken off."""
    images, labels = digit_pair(3, 8)
    first = np.concatenate([np.flatnonzero(labels == label)[:10] for label in (1.0, -1.0)])
    pixels = images[:, :-1]
    rows = {"raw": pixels, "centred": pixels - pixels.mean(0)}
    return {name: network._replace(rows=all_rows[first], labels=labels[first]) for name, all_rows in rows.items()}


class Limit(NamedTuple):
    """The network of largest margin whose neurons are v (a_j > 0) and u (a_j < 0), with all margins 1.

    dual : array (n,), λ.
    positive, negative : array (d,), v and u.
    """

    dual: np.ndarray
    positive: np.ndarray
    negative: np.ndarray

    def weights(self, network: Network) -> np.ndarray:
        """W, (m, d)."""
        return np.where(network.signs[:, None] > 0, self.positive, self.negative)

    def normal(self, network: Network) -> np.ndarray:
        """Of the hyperplane on which f vanishes: m₁v − m₂u, (d,)."""
        up = int((network.signs > 0).sum())
        return up * self.positive - (len(network.signs) - up) * self.negative


def factors(labels: np.ndarray, slope: float) -> tuple[np.ndarray, np.ndarray]:
    """φ' of neurons v and of neurons u at each sample, where v is on the side of the class 1 and u on the other."""
    return np.where(labels > 0, 1.0, slope), np.where(labels > 0, slope, 1.0)


def limit(network: Network) -> Limit:
    """The closed limit, by one linear system for λ: all margins are 1 if neurons are λ-sums of y_i φ' x_i.

    Raises
    ------
    ValueError
        If the samples have no such network.
    """
    labels, width = network.labels, len(network.signs)
    up = int((network.signs > 0).sum())
    on_v, on_u = factors(labels, network.slope)
    gram = network.rows @ network.rows.T
    system = (up * np.outer(on_v, on_v) + (width - up) * np.outer(on_u, on_u)) * gram * labels / width
    try:
        dual = np.linalg.solve(system, labels)
    except np.linalg.LinAlgError as error:
        raise ValueError("the samples are not independent, so that no λ is the limit's; choose fewer") from error
    v = (on_v * labels * dual) @ network.rows / width**0.5
    u = -(on_u * labels * dual) @ network.rows / width**0.5
    return Limit(dual, v, u)


def stationarity(network: Network, closed: Limit) -> float:
    """How far the closed limit is from min ‖W‖²/2 with all margins at least 1: by autograd.

    The largest of ‖W − Σ λ_i ∇m_i‖/‖W‖, the distances of the margins from 1, and −λ.
    """
    W = torch.as_tensor(closed.weights(network))
    pulled = torch.einsum("i,imd->md", torch.as_tensor(closed.dual), network.slopes(W))
    off = float((network.margins(W) - 1).abs().max())
    return largest_of([float((W - pulled).norm() / W.norm()), off, -closed.dual.min()])


def apart(network: Network, closed: Limit) -> float:
    """The closed limit against the quadratic program of largest margin with its signs of ⟨w_j, x_i⟩, as directions."""
    W = torch.as_tensor(closed.weights(network))
    margin = largest_margin(network.slopes(W).flatten(1).cpu().numpy())
    found = (W / W.norm()).flatten().cpu().numpy()
    return largest_of([np.linalg.norm(found - margin.direction), margin.gap])


def deviation(W: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """‖W/‖W‖ − W*/‖W*‖‖ in the Frobenius norm, (..., m, d) → (...)."""
    size = np.linalg.norm(W, axis=(-2, -1), keepdims=True)
    gap: np.ndarray = np.linalg.norm(W / size - wanted / np.linalg.norm(wanted), axis=(-2, -1))
    return gap


def stable_rank(gram: np.ndarray) -> np.ndarray:
    """‖W‖_F²/‖W‖₂² of W Wᵀ, (..., m, m) → (...)."""
    rank: np.ndarray = np.trace(gram, axis1=-2, axis2=-1) / np.linalg.eigvalsh(gram)[..., -1]
    return rank
