"""Two linear layers on the leaf (UᵀU − VᵀV)² = a²I: closed without relaxed balance."""

from __future__ import annotations

import torch
from torch import Tensor

from ...checks import count, positive
from ...losses import Quadratic
from ...matrices import random_orthogonal
from ...signatures import Seed
from .balanced_two_layer import spectral
from .base import SYSTEMS, ClosedFlow, System, generator, normal
from .linear_network import independent_laws, laws_of, phi_of, split


@SYSTEMS.register("hyperbolic_leaf")
def hyperbolic_leaf(outputs: int = 3, inputs: int = 2, scale: float = 0.7, seed: Seed = 0) -> System:
    """z = U Vᵀ of width n + m with ΣJΣ = a²J for Σ = QQᵀ, Q = [U; V], J = diag(I_n, −I_m).

    Σ/a is then a positive definite element of O(n, m), Σ = a exp([[0, X], [Xᵀ, 0]]), so that UUᵀ = √(a² + zzᵀ) and
    VVᵀ = √(a² + zᵀz): ż = −(√(a² + zzᵀ) G + G √(a² + zᵀz)). The flow stays there because Q is invertible and the
    condition is one on the laws alone, (UᵀU − VᵀV)² = a²I: they have the eigenvalues a, n times, and −a, m times. It is
    derived here, from the laws of arXiv 2307.00144 and the two-layer equations of arXiv 2508.07370.

    Parameters
    ----------
    outputs, inputs : int
        n, m.
    scale : float
        a > 0.
    seed : int
        Seed of X, the orthogonal factor of Q, and the target.
    """
    n, m, a = count("system.outputs", outputs), count("system.inputs", inputs), positive("system.scale", scale)
    random, widths = generator(seed), (m, n + m, n)
    X, target = normal(random, n, m) / 2, normal(random, n, m)
    log_sigma = torch.cat((torch.cat((X.new_zeros(n, n), X), 1), torch.cat((X.mT, X.new_zeros(m, m)), 1)))
    Q = a**0.5 * torch.linalg.matrix_exp(log_sigma / 2) @ random_orthogonal((n + m, n + m), random).to(X)
    J = torch.cat((X.new_ones(n), -X.new_ones(m))).diag()
    loss = Quadratic(target)

    def formula(z: Tensor, G: Tensor) -> Tensor:
        left, values, right = torch.linalg.svd(z)
        A, B = (spectral(side, values, lambda s: torch.sqrt(s.square() + a**2)) for side in (left, right.mT))
        return -(A @ G + G @ B)

    def on_leaf(times: Tensor, path: Tensor) -> float:
        transposed, U = split(path, widths)
        stacked = torch.cat((U, transposed.mT), dim=-2)
        sigma = stacked @ stacked.mT
        return float((sigma @ J @ sigma - a**2 * J).abs().max())

    return System(
        name="hyperbolic_leaf",
        title=f"Two linear layers {m}-{n + m}-{n} on the leaf (UᵀU − VᵀV)² = {a * a:.3g} I (seed {seed})",
        source="derived here from arXiv 2307.00144 and 2508.07370",
        phi=phi_of(widths),
        laws=laws_of(widths),
        theta=torch.cat((Q[n:].mT.flatten(), Q[:n].flatten())),
        loss=loss,
        independent=independent_laws(widths),
        closed=ClosedFlow(loss, formula),
        recoverable=n == m == 1,  # else nm + (n + m)(n + m + 1)/2, the ranks of ∂φ and ∂h, are less than (n + m)²
        metric=True,
        checks={"ΣJΣ = a²J": on_leaf},
    )
