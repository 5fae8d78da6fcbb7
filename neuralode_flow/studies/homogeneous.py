"""Homogeneous models of two classes, trained by gradient descent and by the perceptron that it tends to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..flows.factorization import FactorizationFlow
from ..intrinsic.systems.diagonal import phi
from ..time.descend import descend
from ..time.trajectory import Trajectory
from .base import whole

# Nearer to 0 than this a margin is not told from round-off, and the limit is not defined where it vanishes.
LEAST_MARGIN, MOST_STEPS = 1e-9, 20000


@dataclass(frozen=True, eq=False)
class Model(ABC):
    """Margins y_i g(a_i; θ) of signed samples y_i a_i, g homogeneous of degree p in θ.

    Attributes
    ----------
    signed : array (n, d)
        Rows y_i a_i.
    start : array
        θ̂₀.
    """

    signed: np.ndarray
    start: np.ndarray
    degree: ClassVar[int]

    @abstractmethod
    def margins(self, theta: Tensor) -> Tensor:
        """`(n,)`, in torch: gradient descent takes its derivative by autograd."""

    @abstractmethod
    def read(self, theta: np.ndarray) -> np.ndarray:
        """The margins in NumPy, `(n,)`."""

    @abstractmethod
    def pull_back(self, theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Σ_i weights_i ∇(y_i g(a_i; θ)), written out."""


class MeanLogistic:
    """1/n Σ_i log(1 + exp(−m_i)) of margins z = m, `(n,)`."""

    dimension: int | None = None

    def __call__(self, z: Tensor) -> Tensor:
        return -logsigmoid(z).mean(-1)

    def gradient(self, z: Tensor) -> Tensor:
        return -torch.sigmoid(-z) / z.shape[-1]


class Linear(Model):
    """g(a; θ) = ⟨a, θ⟩, from 0."""

    degree = 1

    def margins(self, theta: Tensor) -> Tensor:
        return torch.as_tensor(self.signed) @ theta

    def read(self, theta: np.ndarray) -> np.ndarray:
        return self.signed @ theta

    def pull_back(self, theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return weights @ self.signed


class TwoLayer(Model):
    """g(a; u, v) = ½ Σ_j a_j (u_j² − v_j²): two diagonal layers."""

    degree = 2

    def margins(self, theta: Tensor) -> Tensor:
        return torch.as_tensor(self.signed) @ phi(theta) / 2

    def read(self, theta: np.ndarray) -> np.ndarray:
        u, v = np.split(theta, 2)
        return self.signed @ (u**2 - v**2) / 2

    def pull_back(self, theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
        u, v = np.split(theta, 2)
        pulled = weights @ self.signed
        return np.concatenate((pulled * u, -pulled * v))


class Separated(NamedTuple):
    """A run of the perceptron up to the first θ̂ that separates the classes.

    path : array (T + 1, parameters), θ̂ after each step.
    mistakes : array (T + 1,), the share of samples that are not on their side.
    least : the margin nearest to 0 of those by which a step was decided; at θ̂ = 0 none is.
    """

    path: np.ndarray
    mistakes: np.ndarray
    least: float

    @property
    def steps(self) -> int:
        """T."""
        return len(self.path) - 1


def indicator(margins: np.ndarray) -> np.ndarray:
    """1 where a sample is on the wrong side, ½ on the boundary: σ(−c^p m) as c → ∞."""
    return np.heaviside(-margins, 0.5)


def perceptron(model: Model, step: float = 1.0, *, normalised: bool = False) -> Separated:
    """θ̂ ← θ̂ + step/n Σ_i 1[m_i < 0] ∇m_i, until all margins m_i are positive.

    Parameters
    ----------
    model : Model
    step : float
    normalised : bool
        Whether the sum is over the number of samples on the wrong side, in the place of n.

    Raises
    ------
    RuntimeError
        If it has not separated the classes in `MOST_STEPS` steps.
    """
    theta, path, shares, least = model.start, [model.start], [], np.inf
    for _ in range(MOST_STEPS + 1):
        margins = model.read(theta)
        shares.append(float((margins <= 0).mean()))
        if not shares[-1]:
            return Separated(np.array(path), np.array(shares), least)
        if theta.any():
            least = min(least, float(np.abs(margins).min()))
        wrong = indicator(margins)
        theta = theta + step * model.pull_back(theta, wrong) / (wrong.sum() if normalised else len(wrong))
        path.append(theta)
    raise RuntimeError(
        f"the perceptron has not separated the classes in {MOST_STEPS} steps; choose other classes, or another step"
    )


def scale(model: Model, run: Separated, product: float) -> float:
    """c at which c^p times the margin nearest to 0 is `product`.

    Raises
    ------
    RuntimeError
        If a margin has vanished on the way: the sample on the boundary goes where round-off takes it.
    """
    if run.least == np.inf:
        raise RuntimeError(
            "the perceptron separates the classes by its first step, which no margin decides; choose other classes"
        )
    if run.least < LEAST_MARGIN:
        raise RuntimeError(
            f"a sample comes to {run.least:.1e} of the boundary on the perceptron's way, which is round-off: gradient "
            f"descent has no limit there; choose other classes, or another start"
        )
    return float((product / run.least) ** (1 / model.degree))


def descent(model: Model, rate: float, steps: int, c: float = 1.0) -> Trajectory:
    """Gradient descent on 1/n Σ_i log(1 + exp(−m_i)) from c θ̂₀; z are the margins, `observed` is θ, at each step."""
    start = torch.as_tensor(c * model.start)
    path = descend(FactorizationFlow(model.margins, MeanLogistic()), start, steps, "gd", rate, observe=_kept)
    return whole(path, f"gradient descent of rate {rate:g}")


def _kept(_: int, theta: Tensor) -> Tensor:
    return theta.clone()


def deviation(model: Model, run: Separated, c: float, step: float = 1.0) -> float:
    """The largest ‖θ_t / c − θ̂_t‖ / ‖θ̂_t‖ over the steps t ≥ 1 of a run of the perceptron, θ of gradient descent.

    The model is of degree p: in θ/c gradient descent of the rate c^{2−p} step takes the perceptron's steps with
    σ(−c^p m_i) in the place of the indicator.
    """
    path = descent(model, step * c ** (2 - model.degree), run.steps, c).observed
    assert path is not None
    apart = np.linalg.norm(path.cpu().numpy() / c - run.path, axis=1)[1:]
    return float((apart / np.linalg.norm(run.path, axis=1)[1:]).max())


def descended(model: Model, run: Separated, c: float, step: float = 1.0) -> float:
    """The same as `deviation`, of steps written out in θ̂ = θ/c: θ̂ ← θ̂ + step/n Σ_i σ(−c^p m_i) ∇m_i, in NumPy."""
    theta, most = model.start, 0.0
    for expected in run.path[1:]:
        share = expit(-(c**model.degree) * model.read(theta))
        theta = theta + step * model.pull_back(theta, share) / len(share)
        most = max(most, float(np.linalg.norm(theta - expected) / np.linalg.norm(expected)))
    return most
