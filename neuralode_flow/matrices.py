"""Functions of matrices that torch does not have: polar form, logarithms, random normal and orthogonal ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from .checks import of_members, square, underived
from .compat import standard_gamma
from .looks import current
from .modes import bare, eager, forward_mode

_SAFE = 96  # rows of matrices that are factorised rightly in batches
_LARGE = 2**18  # multiplications of a product from which on torch's is as fast, and may have several threads


def quiet_product(one: np.ndarray, other: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """np.matmul that says as little of infinities and NaN as torch does, whatever np.seterr is set to."""
    with np.errstate(all="ignore"):
        found: np.ndarray = np.matmul(one, other, out=out)
    return found


def each_product(one: Tensor, other: Tensor) -> Tensor:
    """one @ other for batches `(..., m, k)` and `(..., k, n)`, in float64 on the CPU each as it is alone.

    Where a factor is shared, torch takes a batch as one tall matrix, and MKL rounds by its height on processors of its
    maker: the numbers of a member would depend on how many others there are.
    """
    mere = eager() and _is_numbers(one) and _is_numbers(other)
    if not mere or one.shape[-1] != other.shape[-2]:  # which torch says
        return one @ other
    if one.shape[-2] * one.shape[-1] * other.shape[-1] <= _LARGE:
        return torch.from_numpy(quiet_product(one.detach().numpy(), other.detach().numpy()))
    batch = torch.broadcast_shapes(one.shape[:-2], other.shape[:-2])
    if batch.numel() == 1:
        return one @ other
    alone = (part.expand(*batch, *part.shape[-2:]).flatten(0, -3) for part in (one, other))
    return torch.stack([a @ b for a, b in zip(*alone, strict=True)]).unflatten(0, batch)


def _is_numbers(part: Tensor) -> bool:
    return part.is_cpu and part.dtype == torch.float64 and bare(part)


def orientation_preserving(name: str, z: Tensor) -> Tensor:
    """`z` as square matrices `(..., d, d)` with det z > 0; raises ValueError otherwise."""
    square(name, z)
    sign, logarithm = slogdet(z)
    kept = sign > 0
    if not bool(kept.all()):
        det = (sign * torch.exp(logarithm)).min()
        raise ValueError(
            f"{name}{of_members(~kept)} must have det > 0, got det = {float(det):.6g}: the continuous model cannot "
            f"reach det <= 0; flip the sign of one column, or start from another matrix"
        )
    return z


def lost_values(z: Tensor, sigma: Tensor) -> Tensor:
    """Which singular values `(..., d)` of z `(..., d, d)` are its round-off, and might as well be 0.

    Those of a matrix with at most one entry in each row and column, such as a diagonal one, are exact.
    """
    entries = z != 0
    exact = torch.maximum(entries.sum(-1).amax(-1), entries.sum(-2).amax(-1)) <= 1
    small = sigma <= z.shape[-1] * torch.finfo(sigma.dtype).eps * sigma.amax(-1, keepdim=True)
    return (sigma > 0) & small & ~exact.unsqueeze(-1)


def solve(A: Tensor, B: Tensor, left: bool = True) -> Tensor:
    """X of A X = B, or of X A = B, for batches `(..., d, d)` and `(..., d, n)`.

    As `torch.linalg.solve`, which factorises a batch of large matrices wrongly, or hangs, where MKL has several threads
    (seen with torch 2.13 from d ≈ 190 on): there the matrices are taken one after the other.
    """
    if forward_mode():
        # Twice in forward mode the derivative of torch.linalg.solve is wrong (by half, seen with torch 2.13).
        return inverse(A) @ B if left else B @ inverse(A)
    if not _one_by_one(A):
        noted = current()
        if noted is None:
            return torch.linalg.solve(A, B, left=left)
        X, info = torch.linalg.solve_ex(A, B, left=left)
        noted.doubts.append((info != 0).any())
        return X
    batch = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    flat = (M.expand(*batch, *M.shape[-2:]).reshape(-1, *M.shape[-2:]) for M in (A, B))
    solved = [torch.linalg.solve(a, b, left=left) for a, b in zip(*flat, strict=True)]
    return torch.stack(solved).reshape(*batch, *B.shape[-2:])


def inverse(A: Tensor) -> Tensor:
    """The inverses of matrices `(..., d, d)`, with the same care."""
    if not _one_by_one(A):
        return torch.linalg.inv(A)
    return torch.stack([torch.linalg.inv(a) for a in A.reshape(-1, *A.shape[-2:])]).reshape(A.shape)


def slogdet(A: Tensor) -> tuple[Tensor, Tensor]:
    """Signs and logarithms of the determinants of matrices `(..., d, d)`, with the same care."""
    if not _one_by_one(A):
        return torch.linalg.slogdet(A)
    signs, logarithms = zip(*(torch.linalg.slogdet(a) for a in A.reshape(-1, *A.shape[-2:])), strict=True)
    return torch.stack(signs).reshape(A.shape[:-2]), torch.stack(logarithms).reshape(A.shape[:-2])


def lu_factors(A: Tensor) -> tuple[Tensor, Tensor]:
    """Factors and pivots of matrices `(..., d, d)`, for `torch.linalg.lu_solve`, with the same care."""
    if not _one_by_one(A):
        LU, pivots, _ = torch.linalg.lu_factor_ex(A)
        return LU, pivots
    factors, orders, _ = zip(*(torch.linalg.lu_factor_ex(a) for a in A.reshape(-1, *A.shape[-2:])), strict=True)
    return torch.stack(factors).reshape(A.shape), torch.stack(orders).reshape(A.shape[:-1])


def matrix_exp(A: Tensor) -> Tensor:
    """The exponentials of matrices `(..., d, d)`.

    As `torch.linalg.matrix_exp`, whose series has a wrong coefficient for one matrix by itself: in the largest column
    sum 0.05 it is off by 1e-10 (seen with torch 2.13; in float32 by 1e-5, at 0.5). Beside itself it is not.
    """
    if math.prod(A.shape[:-2]) != 1:
        return torch.linalg.matrix_exp(A)
    return torch.linalg.matrix_exp(torch.stack((A, A)))[0]


def _one_by_one(A: Tensor) -> bool:
    return A.ndim > 2 and A.shape[-1] > _SAFE and A.is_cpu and torch.get_num_threads() > 1


def frobenius(z: Tensor, batch: int) -> Tensor:
    """The Frobenius norm of a z of any shape, over all but its first `batch` axes."""
    return torch.linalg.vector_norm(z.reshape(*z.shape[:batch], -1), dim=-1)


def polar(z: Tensor) -> tuple[Tensor, Tensor]:
    """z = Q H: the orthogonal factor Q and log H, for invertible z `(..., d, d)`."""
    U, sigma, Vh = torch.linalg.svd(z)
    return U @ Vh, Vh.mT @ (torch.log(sigma).unsqueeze(-1) * Vh)


def skew_log(Q: Tensor) -> Tensor:
    """The skew logarithm of a rotation, with angles in [−π, π]: `(..., d, d)` → the same shape.

    From the real Schur form, where eigenvalues −1 come in pairs and turn by π in a common plane; the principal
    logarithm does not exist there.
    """
    flat = Q.detach().reshape(-1, *Q.shape[-2:]).cpu().double().numpy()
    return torch.from_numpy(np.stack([_skew_log(q) for q in flat])).to(Q).reshape(Q.shape)


def _skew_log(Q: np.ndarray) -> np.ndarray:
    T, Z = scipy.linalg.schur(Q, output="real")
    d, log, half_turns, k = len(Q), np.zeros_like(Q), [], 0
    while k < d:
        if k + 1 < d and abs(T[k + 1, k]) > 1e-14:
            angle = np.arctan2((T[k + 1, k] - T[k, k + 1]) / 2, (T[k, k] + T[k + 1, k + 1]) / 2)
            log[k + 1, k], log[k, k + 1] = angle, -angle
            k += 2
            continue
        if T[k, k] < 0:
            half_turns.append(k)
        k += 1
    for i, j in zip(half_turns[::2], half_turns[1::2], strict=True):
        log[j, i], log[i, j] = np.pi, -np.pi
    log = Z @ log @ Z.T
    return (log - log.T) / 2


class Turning:
    """exp(sB) for a skew B `(..., d, d)` and numbers s `(n,)`: `(..., n, d, d)`, as a function of s.

    For s in an array of NumPy, and B in memory, that is an array as well.

    iB is Hermitian, with eigenvalues θ_k and eigenvectors v_k: Σ_k cos(θ_k s) Re v_kv_k* + sin(θ_k s) Im v_kv_k*.
    """

    def __init__(self, B: Tensor) -> None:
        self.B = B
        self._angles, vectors = torch.linalg.eigh(1j * B)
        planes = vectors.mT.unsqueeze(-1) * vectors.mT.conj().unsqueeze(-2)  # (..., k, d, d)
        self._planes = torch.cat((planes.real, planes.imag), dim=-3).flatten(-2)

    def __call__(self, s: Any) -> Any:
        xp: Any = np if isinstance(s, np.ndarray) else torch
        angles, planes = (part if xp is torch else part.numpy() for part in (self._angles, self._planes))
        phases = s[..., None] * angles[..., None, :]
        waves = xp.concatenate((xp.cos(phases), xp.sin(phases)), axis=-1)
        return (waves @ planes).reshape(*waves.shape[:-1], *self.B.shape[-2:])


def real_log(name: str, z: Tensor) -> Tensor:
    """The principal logarithm of matrices `(..., d, d)`; raises ValueError where it is not real."""
    square(name, z)
    underived(name, z, "its logarithm is computed")
    flat = z.detach().reshape(-1, *z.shape[-2:]).cpu().double().resolve_neg().numpy()
    logs = [scipy.linalg.logm(matrix) for matrix in flat]
    if any(np.abs(np.imag(log)).max() > 1e-10 * (1 + np.abs(log).max()) or not np.isfinite(log).all() for log in logs):
        raise ValueError(
            f"{name} has no real logarithm: it is singular or has negative eigenvalues; choose another matrix"
        )
    return torch.from_numpy(np.stack([np.real(log) for log in logs])).to(z).reshape(z.shape)


def normal(random: torch.Generator, *shape: int) -> Tensor:
    """Standard normals in float64; drawn on the CPU, so that a seed means the same numbers on every device."""
    return torch.randn(shape, generator=random, dtype=torch.float64, device="cpu").to(torch.get_default_device())


def random_orthogonal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Haar-distributed orthogonal matrices of shape `(..., d, d)`, in float64."""
    Q, R = torch.linalg.qr(torch.randn(shape, dtype=torch.float64, generator=generator, device=generator.device))
    return Q * torch.sign(R.diagonal(dim1=-2, dim2=-1)).unsqueeze(-2)


def wishart_factor(rows: int, columns: float, generator: torch.Generator) -> Tensor:
    """L of a matrix L Q of `rows` × `columns` independent standard normal numbers, Q Qᵀ = 1: `(rows, rows)`, float64.

    Bartlett 1933: the entries below the diagonal are standard normal, the squares on it χ² of columns, columns − 1, …
    degrees of freedom, so that any number of columns costs the same. It is drawn, and stays, on the CPU.
    """
    lower = torch.randn(rows, rows, generator=generator, dtype=torch.float64, device="cpu").tril(-1)
    freedom = columns - torch.arange(rows, dtype=torch.float64, device="cpu")
    # A gamma variable of half the degrees of freedom, doubled, is chi-squared.
    return lower + (2 * standard_gamma(freedom / 2, generator)).sqrt().diag()
