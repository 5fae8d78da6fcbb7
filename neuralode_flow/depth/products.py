"""Identities and products of many small matrices, by the BLAS that is faster at them."""

from __future__ import annotations

import platform
from functools import cache

import torch
from torch import Tensor

from ..matrices import quiet_product
from ..modes import bare, plain

# Up to this size MKL, torch's BLAS, takes 1.1 to 3.5 times as long as the OpenBLAS of NumPy on processors that are not
# of its maker; but NumPy takes the matrices of a batch one after the other, on one thread, and from as many
# multiplications of numbers on as make up for the way to it.
SMALL, MANY = 32, 2**14


def identity_like(matrices: Tensor) -> Tensor:
    """Identity matrices in the shape `(..., d, d)` of `matrices`, as a view of one."""
    return torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device).expand_as(matrices)


def add_identity(matrices: Tensor, factor: float = 1.0) -> Tensor:
    """Adds a multiple of I to matrices `(..., d, d)` in place."""
    matrices.diagonal(dim1=-2, dim2=-1).add_(factor)
    return matrices


def multiply(one: Tensor, other: Tensor, out: Tensor | None = None) -> Tensor:
    """The matrix products of two batches `(..., d, d)`.

    Into `out` where it is given, with one batch axis; otherwise differentiable.
    """
    if not _by_numpy(one, other):
        return torch.matmul(one, other) if out is None else torch.bmm(one, other, out=out)
    if out is None:
        # torch.broadcast_shapes is Python, and takes longer than a product.
        batch = one.shape[:-2]
        batch = batch if batch == other.shape[:-2] else torch.broadcast_shapes(batch, other.shape[:-2])
        out = one.new_empty(*batch, one.shape[-2], other.shape[-1])
    if one.data_ptr() == other.data_ptr():  # NumPy has syrk make AᵀA, which takes twice to four times as long
        other = other.clone()
    quiet_product(one.numpy(), other.numpy(), out=out.numpy())
    return out


def along(matrix: Tensor, values: Tensor) -> Tensor:
    """matrix @ values `(..., m, n)`, each as it would be alone, by the BLAS of NumPy where they are mere numbers.

    It has fast kernels on all processors, and is called sooner. The matrix, or one for each of the last batch axis, is
    of float64 and on the CPU.
    """
    if plain(values) and values.is_cpu and values.dtype == torch.float64:
        return torch.from_numpy(quiet_product(matrix.numpy(), values.detach().numpy()))
    return matrix.to(values) @ values


def outside(factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each factor of a chain `(..., p, d, d)`: the product of those before it, of those after it; and of all.

    Returns
    -------
    before, after : Tensor (..., p, d, d)
        U_{k−1} … U_1 and U_p … U_{k+1}.
    whole : Tensor (..., d, d)
    """
    links = factors.unbind(-3)
    identity = identity_like(links[0])
    before, after = [links[0]], [links[-1]]
    for link in links[1:]:
        before.append(link @ before[-1])
    for link in reversed(links[1:-1]):
        after.append(after[-1] @ link)
    if len(links) == 1:
        return identity.unsqueeze(-3), identity.unsqueeze(-3), before[0]
    return torch.stack([identity, *before[:-1]], dim=-3), torch.stack([*after[::-1], identity], dim=-3), before[-1]


def _by_numpy(one: Tensor, other: Tensor) -> bool:
    return (
        one.shape[-1] <= SMALL
        and one.numel() * one.shape[-1] >= MANY
        and one.is_cpu
        and one.dtype == torch.float64
        and torch.get_num_threads() == 1
        and not _is_intel()
        and plain(one)
        and bare(other)
    )


@cache
def _is_intel() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            maker = next((line for line in lines if line.startswith("vendor_id")), "")
    except OSError:
        maker = platform.processor()
    return "Intel" in maker
