"""The gauge orbits of balanced networks with one product: their volume, and the entropy that is its logarithm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..kernels import DividedDifference, Kernel, LogMean
from ..matrices import random_orthogonal


def kernel(N: int) -> Kernel:
    """Of N balanced layers in the time of the limit; of the limit for 0."""
    return DividedDifference(torch.zeros(N, dtype=torch.float64), time_scale=1 / N) if N else LogMean()


def entropy(sigma: Tensor, N: int) -> Tensor:
    """½ Σ_{i<j} log K_ij at singular values `(..., d)`, K the kernel of N balanced layers: `(...)`.

    K_ij is (σ_i² − σ_j²) / (N (σ_i^{2/N} − σ_j^{2/N})), so that this is the entropy of Menon and Yu (arXiv 2509.09088)
    up to a constant that depends on d and N alone. The kernel holds where singular values meet.
    """
    i, j = torch.triu_indices(sigma.shape[-1], sigma.shape[-1], offset=1)
    return torch.log(kernel(N)(sigma)[..., i, j]).sum(-1) / 2


def geometric(sigma: Tensor) -> Tensor:
    """The same of the geometric mean K_ij = σ_i σ_j, which is (d − 1)/2 · log Π σ_i."""
    return (sigma.shape[-1] - 1) / 2 * torch.log(sigma).sum(-1)


def factors(z: Tensor, N: int, generator: torch.Generator) -> Tensor:
    """N balanced layers `(N, d, d)`, the first one first, whose product is z, in random frames between them."""
    U, sigma, Vh = torch.linalg.svd(z)
    frames = [Vh.mT, *random_orthogonal((N - 1, *z.shape), generator).to(z), U]
    return torch.stack(
        [after * sigma ** (1 / N) @ before.mT for before, after in zip(frames, frames[1:], strict=False)]
    )


def log_volume(layers: Tensor) -> Tensor:
    """½ log det of the Gram matrix of the tangent vectors of the orbit at N layers `(N, d, d)`.

    The orbit is that of O(d)^{N−1}, which turns the frames between layers; it moves layer k by A_k W_k − W_k A_{k−1}
    with A_0 = A_N = 0, and each A_k runs through an orthonormal basis of the skew matrices.
    """
    N, d, _ = layers.shape
    i, j = torch.triu_indices(d, d, offset=1)
    skew, number = layers.new_zeros(len(i), d, d), torch.arange(len(i))
    skew[number, i, j], skew[number, j, i] = math.sqrt(0.5), -math.sqrt(0.5)
    tangent = layers.new_zeros(N - 1, len(i), N, d, d)
    for k in range(N - 1):
        tangent[k, :, k], tangent[k, :, k + 1] = skew @ layers[k], -layers[k + 1] @ skew
    return torch.log(torch.linalg.svdvals(tangent.reshape((N - 1) * len(i), -1))).sum()
