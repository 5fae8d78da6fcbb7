"""Two linear layers X U Vᵀ on fewer samples than features: what their start decides, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import count
from ..flows.factorization import FactorizationFlow
from ..losses import Quadratic
from ..matrices import wishart_factor
from ..problems import Problem


class Samples(NamedTuple):
    """X (n, D) of rank n < D and Y (n, m); a state is θ (..., D + m, k) with the rows of U over those of V."""

    x: Tensor
    y: Tensor

    @property
    def least(self) -> Tensor:
        """Θ = X⁺Y (D, m), the solution of least norm."""
        return torch.linalg.pinv(self.x) @ self.y

    @property
    def span(self) -> Tensor:
        """Orthonormal columns (D, n) that span the rows of X."""
        return torch.linalg.svd(self.x, full_matrices=False).Vh.mT

    def factors(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """U and V."""
        return theta[..., : self.x.shape[1], :], theta[..., self.x.shape[1] :, :]

    def parts(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """U₁ (..., n, k) in the basis `span`; U₂ (..., D, k), the part of U that is orthogonal to it; V."""
        U, V = self.factors(theta)
        U1 = self.span.mT @ U
        return U1, U - self.span @ U1, V

    def residual(self, theta: Tensor) -> Tensor:
        """Y − X U Vᵀ, (..., n, m)."""
        U, V = self.factors(theta)
        return self.y - self.x @ U @ V.mT

    def flow(self, rates: Tensor) -> FactorizationFlow:
        """The gradient flow of ½‖Y − X U Vᵀ‖² in units of time 1/rates, which has the leading axes of a batch."""
        root = rates[..., None, None].rsqrt()
        x = root * self.x

        def phi(theta: Tensor) -> Tensor:
            U, V = self.factors(theta)
            return x @ U @ V.mT

        return FactorizationFlow(phi, Quadratic(root * self.y, axes=2))


def samples_of(problem: Problem, rows: int, outputs: int, seed: int) -> Samples:
    """`rows` drawn samples of a problem, and the first `outputs` columns of their targets.

    Raises
    ------
    TypeError, ValueError
        If the problem has no samples, or not as many of them, of features or of targets.
    """
    table = getattr(problem.loss, "samples", None)
    if table is None:
        raise ValueError(f"problem={problem.name} has no samples; choose one of a table, such as breast_cancer_white")
    n, d = table.inputs.shape
    count("study.rows", rows, least=2, most=min(n, d - 1))
    count("study.outputs", outputs, most=min(rows - 1, table.y.shape[1]))
    drawn = np.random.default_rng(seed).choice(n, rows, replace=False)
    found = Samples(table.inputs[drawn].double(), table.y[drawn, :outputs].double())
    if np.linalg.matrix_rank(found.x.cpu().numpy()) < rows:
        raise ValueError(f"study.seed={seed} draws rows that determine one another; choose another")
    return found


def imbalance(U1: Tensor, V: Tensor) -> Tensor:
    """Λ = U₁ᵀU₁ − VᵀV, which gradient flow keeps: (..., k, k)."""
    return U1.mT @ U1 - V.mT @ V


def rate_bound(law: Tensor, n: int, m: int) -> Tensor:
    """c = [λ_n(Λ)]₊ + [λ_m(−Λ)]₊ of Λ (..., k, k), with the k eigenvalues falling and none beyond them.

    By Weyl's inequality λ_n(U₁U₁ᵀ) ≥ λ_n(Λ) and λ_m(VVᵀ) ≥ λ_m(−Λ), so that L' ≤ −2σ_min(X)² c L.
    """
    values = torch.linalg.eigvalsh(law)

    def place(rising: Tensor, number: int) -> Tensor:
        return rising[..., -number].clamp(min=0) if number <= rising.shape[-1] else torch.zeros_like(rising[..., 0])

    return place(values, n) + place(-values.flip(-1), m)


def kernel(x1: Tensor, over: Tensor, under: Tensor) -> Tensor:
    """X UUᵀXᵀ ⊗ 1 + XXᵀ ⊗ VVᵀ, by which the residual E' = −K E falls: (..., nm, nm).

    Parameters
    ----------
    x1 : Tensor (n, n)
        X in the basis of its rows.
    over, under : Tensor (..., n, n), (..., m, m)
        U₁U₁ᵀ and VVᵀ.
    """
    n, m = over.shape[-1], under.shape[-1]
    first = torch.einsum("...ij,ab->...iajb", x1 @ over @ x1.mT, torch.eye(m).to(over))
    second = torch.einsum("ij,...ab->...iajb", x1 @ x1.mT, under)
    return (first + second).reshape(*first.shape[:-4], n * m, n * m)


def ends(w: Tensor, one_sided: float) -> tuple[Tensor, Tensor]:
    """U₁U₁ᵀ and VVᵀ where training ends, if Λ = one_sided · 1 (derived here).

    U₁ΛU₁ᵀ = (U₁U₁ᵀ)² − WWᵀ and VΛVᵀ = WᵀW − (VVᵀ)² with W = U₁Vᵀ (n, m), what the minimum-norm solution is in the
    basis of the rows of X.
    """
    return (
        _of_symmetric(w @ w.mT, lambda s: (one_sided + (one_sided**2 + 4 * s).sqrt()) / 2),
        _of_symmetric(w.mT @ w, lambda s: (-one_sided + (one_sided**2 + 4 * s).sqrt()) / 2),
    )


def wide_ends(w: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The same if U₁U₁ᵀ = VVᵀ = scale · 1 and U₁Vᵀ = 0 at the start: the limit of random starts of infinite width.

    Derived here: θθᵀ / scale stays symmetric, positive definite and in O(n, m), where W/scale decides it.
    """
    return (
        _of_symmetric(w @ w.mT, lambda s: (scale**2 + s).sqrt()),
        _of_symmetric(w.mT @ w, lambda s: (scale**2 + s).sqrt()),
    )


def wide_start(samples: Samples) -> Tensor:
    """θ (D + m, n + m) of such a start with scale 1 and U₂ = 0."""
    n, m = samples.y.shape
    rows = torch.eye(n + m).to(samples.x)
    return torch.cat((samples.span @ rows[:n], rows[n:]))


def _of_symmetric(A: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    values, Q = torch.linalg.eigh(A)
    return (Q * function(values.clamp(min=0)).unsqueeze(-2)) @ Q.mT


def gaussian(samples: Samples, width: int, exponent: float, draws: int, generator: torch.Generator) -> Tensor:
    """θ (draws, D + m, D + m) that moves as U and V of `width` columns do, all of whose entries are N(0, width^(−2α)).

    Everything but the rotation of the hidden units is decided by θθᵀ, so that a triangular factor stands for θ.
    """
    rows = samples.x.shape[1] + samples.y.shape[1]
    factors = torch.stack([wishart_factor(rows, width, generator) for _ in range(draws)])
    return (width**-exponent * factors).to(samples.x)


def invariant(samples: Samples, theta: Tensor) -> Tensor:
    """θ with the rows of U₂ made orthogonal to those of U₁ and V: from there training ends at the least norm."""
    U1, U2, V = samples.parts(theta)
    kept = torch.cat((U1, V), dim=-2)
    return torch.cat((samples.span @ U1 + U2 - U2 @ torch.linalg.pinv(kept) @ kept, V), dim=-2)


def one_sided(samples: Samples, size: float, generator: torch.Generator) -> Tensor:
    """θ (D + m, n) with Λ = size · 1, U₁ a multiple of a random rotation and V = 0; balanced, Λ = 0, for size 0."""
    n, m = samples.y.shape
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64, device="cpu")).Q.to(samples.x)
    if size > 0:
        return torch.cat((size**0.5 * samples.span @ Q, torch.zeros(m, n).to(Q)))
    return torch.cat((samples.span @ Q[:, :m] @ torch.eye(m, n).to(Q), torch.eye(m, n).to(Q)))
