"""Polynomial maps written once: for tensors, and for polynomials in exact arithmetic."""

from functools import reduce
from operator import add, mul

import torch


def total(terms):
    return reduce(add, terms)


def layers(n, m, r):
    """UVᵀ, U (n, r), V (m, r), θ = (U, V)."""
    return lambda t: [total(t[i * r + k] * t[(n + j) * r + k] for k in range(r)) for i in range(n) for j in range(m)]


def balance(n, m, r):
    """UᵀU − VᵀV."""

    def laws(t):
        return [
            total(t[i * r + a] * t[i * r + b] for i in range(n))
            - total(t[(n + j) * r + a] * t[(n + j) * r + b] for j in range(m))
            for a in range(r)
            for b in range(a, r)
        ]

    return laws


def beside(phi):
    """(b, φ): a parameter that has nothing to do with the others."""
    return lambda t: [t[0], *phi(t[1:])]


def symmetric(n, r):
    """WWᵀ."""
    return lambda t: [total(t[i * r + k] * t[j * r + k] for k in range(r)) for i in range(n) for j in range(i, n)]


def product(t):
    return [reduce(mul, t)]


def squares(t):
    """u² − v²."""
    half = len(t) // 2
    return [u * u - v * v for u, v in zip(t[:half], t[half:], strict=True)]


def neuron(t):
    """a u."""
    return [t[0] * u for u in t[1:]]


def mixed(t):
    """Without laws and without a symmetry."""
    return [t[0] + t[1] * t[2], t[0] * t[1], t[3] * t[3] + t[0]]


def scaled(phi, of_z, of_theta):
    """D φ(D' θ)."""
    return lambda t: [z * d for z, d in zip(phi([x * s for x, s in zip(t, of_theta, strict=True)]), of_z, strict=True)]


def in_torch(phi):
    return lambda theta: torch.stack(phi(list(theta.unbind())))
