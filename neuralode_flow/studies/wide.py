"""Two layers v·tanh(Wx) on a few samples: the kernel that trains them, and the width from which they provably fit."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import roots_hermitenorm
from torch import Tensor

from ..flows.factorization import FactorizationFlow
from ..losses import Quadratic
from ..matrices import normal

_DEGREES, _NODES = 200, 400  # of tanh in Hermite polynomials, whose squares fall like exp(−π√k): below 1e-18 then
_BLOCK = 2**21  # entries of F that are made at once
_STEP, _END = 0.25, 8.5  # of the trapezoidal rule for normal numbers, whose error is below 1e-15 with both
_GROWTH = 1.02  # from one width that is looked at to the next
_MOST = 1e8  # numbers in a state


class Network(NamedTuple):
    """f(x) = Σ_k v_k tanh(⟨w_k, x⟩) on n samples, trained towards y by half the squared distance.

    A state θ (..., m, d + 1) has a row for each neuron: w_k and, last, v_k.

    X : Tensor (d, n), the samples.
    y : Tensor (n,)
    """

    X: Tensor
    y: Tensor

    def hidden(self, theta: Tensor) -> Tensor:
        """F = tanh(WX), (..., m, n)."""
        return torch.tanh(theta[..., :-1] @ self.X)

    def outputs(self, theta: Tensor) -> Tensor:
        """vF, (..., n)."""
        return (self.hidden(theta) * theta[..., -1:]).sum(-2)

    def kernel(self, theta: Tensor) -> Tensor:
        """The tangent kernel FᵀF + (XᵀX)∘(DᵀD), D = v tanh'(WX): (..., n, n)."""
        F = self.hidden(theta)
        D = theta[..., -1:] * (1 - F.square())
        return F.mT @ F + (self.X.mT @ self.X) * (D.mT @ D)

    def least(self, theta: Tensor) -> Tensor:
        """σ_min(F) of n singular values, (...)."""
        return torch.linalg.svdvals(self.hidden(theta))[..., -1]

    def linear_movement(self, theta: Tensor) -> Tensor:
        """‖W_∞ − W₀‖ of the network linearised at θ: of the part in W of Jᵀ K⁻¹ r, J the Jacobian of the outputs."""
        dual = torch.linalg.solve(self.kernel(theta), self.outputs(theta) - self.y)
        D = theta[..., -1:] * (1 - self.hidden(theta).square())
        return torch.linalg.matrix_norm((D * dual.unsqueeze(-2)) @ self.X.mT)

    def flow(self) -> FactorizationFlow:
        """Its gradient flow."""
        return FactorizationFlow(self.outputs, Quadratic(self.y, axes=1))

    def bounds(self, theta: Tensor) -> Bounds:
        """What is certified of the flow from one θ."""
        values = torch.linalg.svdvals(self.hidden(theta))
        residual = torch.linalg.vector_norm(self.outputs(theta) - self.y)
        numbers = (values[-1], values[0], torch.linalg.vector_norm(theta[:, -1]), residual, self.norm)
        return Bounds(*map(float, numbers))

    @property
    def norm(self) -> float:
        """‖X‖, the largest singular value."""
        return float(torch.linalg.matrix_norm(self.X, 2))

    @property
    def eigenvalue(self) -> float:
        """The least one of the limit of FᵀF/m."""
        return float(np.linalg.eigvalsh(limit_kernel(self.X))[0])


class Bounds(NamedTuple):
    """What a start certifies of its gradient flow; derived here, for |φ'| ≤ 1.

    While σ_min(F) ≥ σ₀/2, the loss falls at least at the rate σ₀²/2, ‖v‖ stays below ‖v₀‖ + ∫(‖F₀‖ + σ₀/2)‖r‖, and W
    moves by at most ‖X‖∫‖v‖‖r‖, F by ‖X‖ times that. With ‖r‖ ≤ ‖r₀‖ exp(−σ₀²t/4) this is `certificate` times σ₀/2: if
    it is at most 1, σ_min(F) stays above σ₀/2 for all t.

    least, largest : σ_min(F₀) = σ₀ and ‖F₀‖.
    outer : ‖v₀‖.
    residual : ‖r₀‖, r = vF − y.
    norm : ‖X‖.
    """

    least: float
    largest: float
    outer: float
    residual: float
    norm: float

    @property
    def certificate(self) -> float:
        """8‖X‖²‖r₀‖(‖v₀‖ + (2‖F₀‖ + σ₀)‖r₀‖/σ₀²)/σ₀³, at most 1 where the flow is certified to fit the samples."""
        growth = (2 * self.largest + self.least) * self.residual / self.least**2
        return 8 * self.norm**2 * self.residual * (self.outer + growth) / self.least**3

    @property
    def singular_value(self) -> float:
        """Below which σ_min(F) does not fall."""
        return self.least * (1 - self.certificate / 2)

    @property
    def rate(self) -> float:
        """At which the loss falls at least: twice the square of it."""
        return 2 * self.singular_value**2

    @property
    def movement(self) -> float:
        """Which ‖W − W₀‖ does not exceed."""
        return self.certificate * self.least / (2 * self.norm)


def problem(samples: int, features: int, generator: torch.Generator) -> Network:
    """Samples on the sphere of radius √d with standard normal y."""
    X = normal(generator, features, samples)
    return Network(X / torch.linalg.vector_norm(X, dim=0) * features**0.5, normal(generator, samples))


def start(generator: torch.Generator, features: int, *shape: int) -> Tensor:
    """θ of W ~ N(0, 1/d) and v ~ N(0, 1/m), for a shape (..., m): (..., m, d + 1)."""
    W, v = normal(generator, *shape, features), normal(generator, *shape, 1)
    return torch.cat((W / features**0.5, v / shape[-1] ** 0.5), -1)


@cache
def squares() -> np.ndarray:
    """The squares of the coefficients of tanh in normalised Hermite polynomials, (degrees,)."""
    x, weights = roots_hermitenorm(_NODES)
    values = np.tanh(x) * weights / (2 * np.pi) ** 0.5
    before, now, found = np.zeros_like(x), np.ones_like(x), []
    for k in range(_DEGREES):
        found.append(float(values @ now))
        before, now = now, (x * now - k**0.5 * before) / (k + 1) ** 0.5
    return np.array(found) ** 2


def limit_kernel(X: Tensor) -> np.ndarray:
    """E tanh(⟨w, x_i⟩) tanh(⟨w, x_j⟩) for w ~ N(0, 1/d) and ‖x_i‖² = d: the limit of FᵀF/m."""
    correlation = np.clip((X.mT @ X).cpu().numpy() / X.shape[0], -1, 1)
    kernel: np.ndarray = np.polynomial.polynomial.polyval(correlation, squares())
    return kernel


def closed_width(network: Network, residual: float | None = None) -> float:
    """The width of certificate 1 where FᵀF/m is its limit and ‖v₀‖ = 1; by default with ‖r₀‖² at its mean.

    Raises
    ------
    ValueError
        If the least eigenvalue of the limit is lost in round-off.
    """
    kernel, norm = limit_kernel(network.X), network.norm
    values = np.linalg.eigvalsh(kernel)
    if not values[0] > len(values) * np.finfo(float).eps * values[-1]:
        raise ValueError(
            f"{len(values)} samples in {network.X.shape[0]} dimensions have a singular kernel; lower study.sizes or "
            f"raise study.features"
        )
    r = (len(values) + np.trace(kernel)) ** 0.5 if residual is None else residual

    def certified(logarithm: float) -> float:
        least, *_, largest = np.sqrt(values * np.exp(logarithm))
        return float(np.log(Bounds(least, largest, 1.0, r, norm).certificate))

    return float(np.exp(brentq(certified, 0, 100)))


def width_by_roots(network: Network) -> tuple[float, float]:
    """`closed_width` and `Network.eigenvalue` by a second route.

    The kernel comes from the trapezoidal rule. In u = width^(−½), s and S the least and largest singular values of F u,
    the certificate is (8‖X‖²r/s³)u³ + (8‖X‖²r²(2S + s)/s⁵)u⁴, and 1 at its one positive root.
    """
    values = np.linalg.eigvalsh(_kernel_by_rule(network.X.cpu().numpy()))
    s, S = np.sqrt(values[[0, -1]])
    top, r = np.linalg.svd(network.X.cpu().numpy(), compute_uv=False)[0], (len(values) + values.sum()) ** 0.5
    roots = np.roots([8 * top**2 * r**2 * (2 * S + s) / s**5, 8 * top**2 * r / s**3, 0.0, 0.0, -1.0])
    return float(roots[(abs(roots.imag) < 1e-9 * abs(roots)) & (roots.real > 0)].real.max() ** -2), float(values[0])


def _kernel_by_rule(X: np.ndarray) -> np.ndarray:
    """`limit_kernel` by the trapezoidal rule for both of two normal numbers, row by row."""
    u = np.arange(-_END, _END + _STEP / 2, _STEP)
    weights = np.exp(-(u**2) / 2) * _STEP / (2 * np.pi) ** 0.5
    rho = np.clip(X.T @ X / len(X), -1, 1)[..., None, None]
    inner = (np.tanh(row * u[:, None] + (1 - row**2) ** 0.5 * u) @ weights for row in rho)
    return np.stack([row @ (weights * np.tanh(u)) for row in inner])


def searched_width(network: Network, generator: torch.Generator) -> tuple[int, float]:
    """The first width with a certificate of at most 1 of a network that grows by 2 %, and its ‖r₀‖.

    It begins at a quarter of the closed width. F itself is not kept: FᵀF, vF and ‖v‖² are sums over the neurons.

    Raises
    ------
    RuntimeError
        If there is none up to 16 times the closed width.
    """
    (d, n), norm, closed = network.X.shape, network.norm, closed_width(network)
    gram, outputs, outer, width, wanted = network.X.new_zeros(n, n), torch.zeros_like(network.y), 0.0, 0, closed / 4
    while wanted < 16 * closed:
        while width < wanted:
            neurons = start(generator, d, min(int(wanted) + 1 - width, _BLOCK // n))
            F, v = network.hidden(neurons), neurons[:, -1] * len(neurons) ** 0.5
            gram, outputs, outer, width = gram + F.mT @ F, outputs + v @ F, outer + float(v @ v), width + len(v)
        values = torch.linalg.eigvalsh(gram)
        residual = float(torch.linalg.vector_norm(outputs / width**0.5 - network.y))
        least, largest = float(values[0].clamp(min=0)) ** 0.5, float(values[-1]) ** 0.5
        if least > 0 and Bounds(least, largest, (outer / width) ** 0.5, residual, norm).certificate <= 1:
            return width, residual
        wanted *= _GROWTH
    raise RuntimeError(f"no width up to {width} is certified for {n} samples in {d} dimensions")


def certified_start(network: Network, generator: torch.Generator) -> Tensor:
    """A start with a certificate of at most 1, from the closed width on.

    Raises
    ------
    ValueError
        If it takes too many neurons.
    """
    (d, n), width = network.X.shape, closed_width(network)
    while width * (d + 1) < _MOST:
        theta = start(generator, d, int(width) + 1)
        if network.bounds(theta).certificate <= 1:
            return theta
        width *= 1.1
    raise ValueError(
        f"{n} samples in {d} dimensions are certified from {width:.1e} neurons on, which are too many; lower "
        f"study.certified or raise study.features"
    )


def decayed(kernel: Tensor, residual: Tensor, time: float) -> Tensor:
    """exp(−Kt) r, (..., n)."""
    values, vectors = torch.linalg.eigh(kernel)
    along: Any = torch.exp(-values * time) * (vectors.mT @ residual.unsqueeze(-1)).squeeze(-1)
    return (vectors @ along.unsqueeze(-1)).squeeze(-1)
