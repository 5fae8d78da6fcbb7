"""Linear convolutional networks as products of polynomials: all their factorisations, and the metric of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, reduce
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, conv_transpose1d, conv_transpose2d

# What a polynomial of norm 1 has outside of its monomials and the reals: up to this it is a filter.
TOLERANCE = 1e-6

_STEPS, _RANK = 2, 1e-10  # of least squares, and what counts as zero among the singular values of ∂φ

_COMPOSE, _APPLY = {1: conv_transpose1d, 2: conv_transpose2d}, {1: conv1d, 2: conv2d}


class Filters(NamedTuple):
    """A network of convolutions without activations, in one or two dimensions.

    kernels : tuple of tuple of int, the shapes of w_1, …, w_L.
    strides : tuple of int, those of the layers 1, …, L − 1, alike in all dimensions.
    """

    kernels: tuple[tuple[int, ...], ...]
    strides: tuple[int, ...]

    @property
    def dilations(self) -> list[int]:
        """By how much each filter is stretched in the composed one."""
        return np.cumprod((1, *self.strides)).tolist()

    @property
    def sizes(self) -> list[int]:
        """Entries of each filter."""
        return [int(np.prod(shape)) for shape in self.kernels]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the composed filter."""
        layers = list(zip(self.dilations, self.kernels, strict=True))
        return tuple(1 + sum(d * (shape[a] - 1) for d, shape in layers) for a in range(len(self.kernels[0])))

    def split(self, theta: Tensor) -> list[Tensor]:
        """θ (n,) as filters of their shapes."""
        return [part.reshape(shape) for part, shape in zip(theta.split(self.sizes), self.kernels, strict=True)]

    def phi(self, theta: Tensor) -> Tensor:
        """θ (n,) → the composed filter z, flat."""
        compose = _COMPOSE[len(self.kernels[0])]
        first, *others = (w[None, None] for w in self.split(theta))
        for w, dilation in zip(others, self.dilations[1:], strict=True):
            first = compose(first, w, dilation=dilation)
        return first.reshape(-1)

    def laws(self, theta: Tensor) -> Tensor:
        """θ (n,) → ‖w_{k+1}‖² − ‖w_k‖²."""
        return torch.stack([w.square().sum() for w in self.split(theta)]).diff()

    def layers(self, theta: Tensor, signal: Tensor) -> Tensor:
        """What the layers make of a signal, one after the other."""
        apply = _APPLY[signal.ndim]
        steps = zip(self.split(theta), (*self.strides, 1), strict=True)
        return reduce(lambda x, step: apply(x, step[0][None, None], stride=step[1]), steps, signal[None, None])[0, 0]

    def composed(self, theta: Tensor, signal: Tensor) -> Tensor:
        """The same by the composed filter."""
        apply, stride = _APPLY[signal.ndim], self.dilations[-1]
        z = self.phi(theta).reshape(1, 1, *self.shape)
        return apply(signal[None, None], z, stride=stride)[0, 0]

    def exponents(self, layer: int | None = None) -> np.ndarray:
        """The powers of one variable that the entries of a filter, or of z, are coefficients of.

        Kronecker's substitution: the a-th variable is the first one to the power of Π_{b<a} (size of z along b), so
        that products in one variable are those in all of them.
        """
        return _exponents(self, layer)

    def polynomial(self, layer: int | None, entries: np.ndarray) -> np.ndarray:
        """Coefficients in one variable, lowest first."""
        powers = self.exponents(layer)
        coefficients = np.zeros(powers[-1] + 1)
        coefficients[powers] = entries.reshape(-1)
        return coefficients

    def product(self, filters: Sequence[np.ndarray]) -> np.ndarray:
        """The composed filter, by one variable."""
        polynomials = (self.polynomial(k, w) for k, w in enumerate(filters))
        composed: np.ndarray = reduce(np.convolve, polynomials)[self.exponents()]
        return composed

    def jacobian(self, filters: Sequence[np.ndarray]) -> np.ndarray:
        """∂φ = (T_1, …, T_L), T_k the product of all filters but w_k, moved to each entry of w_k."""
        powers, polynomials = self.exponents(), [self.polynomial(k, w) for k, w in enumerate(filters)]
        moved = np.zeros((powers[-1] + 1, sum(self.sizes)))
        column = 0
        for k in range(len(filters)):
            others = reduce(np.convolve, polynomials[:k] + polynomials[k + 1 :])
            for power in self.exponents(k):
                moved[power : power + len(others), column] = others
                column += 1
        kept: np.ndarray = moved[powers]
        return kept

    def metric(self, filters: Sequence[np.ndarray]) -> np.ndarray:
        """M = Σ_k T_k T_kᵀ."""
        J = self.jacobian(filters)
        M: np.ndarray = J @ J.T
        return M


@cache
def _exponents(network: Filters, layer: int | None) -> np.ndarray:
    base = np.cumprod((1, *network.shape[:-1]))
    shape = network.shape if layer is None else network.kernels[layer]
    dilation = 1 if layer is None else network.dilations[layer]
    powers: np.ndarray = dilation * np.tensordot(base, np.indices(shape), 1).reshape(-1)
    return powers


class Factorisation(NamedTuple):
    """z as a product of filters, up to their norms; `off` is how far divisors of norm 1 are from these filters."""

    filters: list[np.ndarray]
    off: float


class Factorisations(NamedTuple):
    """All factorisations of a z; `rejected` is the least that a product of roots that is none has off filters."""

    found: list[Factorisation]
    rejected: float


def factorisations(network: Filters, z: np.ndarray) -> Factorisations:
    """All real factorisations of a filter, by giving its roots to the layers in every possible way.

    Those of the polynomial of `Filters.exponents`, of which a divisor is a filter if it is real and has the filter's
    monomials alone. Nothing is known of any θ.
    """
    roots = np.roots(network.polynomial(None, z)[::-1])
    rejected = [np.inf]

    def complete(left: np.ndarray, layers: tuple[int, ...]) -> Iterator[Factorisation]:
        if not layers:
            yield Factorisation([], 0.0)
            return
        subsets, divisors, off = _divisors(left, network.exponents(layers[0]))
        rejected.append(off[off > TOLERANCE].min(initial=np.inf))
        for i in np.flatnonzero(off <= TOLERANCE):
            for rest in complete(np.delete(left, subsets[i]), layers[1:]):
                yield Factorisation([*rest.filters, divisors[i]], max(rest.off, float(off[i])))

    # From the last layer on, whose monomials are the fewest.
    return Factorisations(list(complete(roots, tuple(reversed(range(len(network.kernels)))))), min(rejected))


def projected(network: Filters, z: np.ndarray, balances: np.ndarray) -> list[np.ndarray]:
    """The filters with these balances whose product is nearest to z, of which one factorisation is near.

    Its roots are given to the layers as suits best, and Newton's steps of least squares take off what is left: a solver
    in time asks for the metric beside the image of φ, too.
    """
    left = np.roots(network.polynomial(None, z)[::-1])
    filters: list[np.ndarray] = []
    for layer in reversed(range(len(network.kernels))):
        subsets, divisors, off = _divisors(left, network.exponents(layer))
        best = int(off.argmin())
        filters.insert(0, divisors[best])
        left = np.delete(left, subsets[best])
    filters = balanced(network, filters, z, balances)
    for _ in range(_STEPS):
        step = np.linalg.lstsq(network.jacobian(filters), z - network.product(filters), rcond=_RANK)[0]
        parts = np.split(step, np.cumsum(network.sizes)[:-1])
        filters = [w + part for w, part in zip(filters, parts, strict=True)]
    return balanced(network, filters, z, balances)


@cache
def _subsets(number: int, size: int) -> np.ndarray:
    return np.array(list(combinations(range(number), size)))


def _divisors(roots: np.ndarray, powers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All subsets of roots of a degree, the polynomials that they make at `powers`, and what these have besides."""
    degree = int(powers[-1])
    subsets = _subsets(len(roots), degree)
    coefficients = np.ones((len(subsets), 1), dtype=complex)
    for root in roots[subsets].T:
        coefficients = np.pad(coefficients, ((0, 0), (1, 0))) - root[:, None] * np.pad(coefficients, ((0, 0), (0, 1)))
    coefficients /= np.linalg.norm(coefficients, axis=1, keepdims=True)
    kept = coefficients[:, powers].real
    besides = np.linalg.norm(np.delete(coefficients, powers, 1), axis=1)
    off = np.hypot(besides, np.linalg.norm(coefficients[:, powers].imag, axis=1))
    return subsets, kept, off


def balanced(network: Filters, filters: Sequence[np.ndarray], z: np.ndarray, balances: np.ndarray) -> list[np.ndarray]:
    """Filters of the same directions whose product is z and whose squared norms have the differences `balances`.

    With c_k the sums of the differences, ‖w_k‖² = a + c_k, and Π(a + c_k) increases with a where its factors are
    positive.
    """
    filters = [w / np.linalg.norm(w) for w in filters]
    product = network.product(filters)
    scale = float(product @ z / (product @ product))
    above = np.cumsum((0.0, *balances))
    above -= above.min()
    wanted = 2 * np.log(abs(scale))
    most = wanted / len(filters)
    low = wanted - (len(filters) - 1) * np.log(np.exp(most) + above.max())
    least = brentq(lambda x: np.log(np.exp(x) + above).sum() - wanted, low - 1, most + 1, rtol=1e-15)
    norms = np.sqrt(np.exp(least) + above)
    norms[0] *= np.sign(scale)
    return [norm * w for norm, w in zip(norms, filters, strict=True)]
