"""Two linear layers whose law has one positive and one negative eigenvalue: closed without relaxed balance."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ...checks import count, positive, real
from ...flows.factorization import FactorizationFlow
from ...losses import Quadratic
from ...matrices import matrix_exp, random_orthogonal
from ...signatures import Seed
from ...time.integrate import integrate
from .balanced_two_layer import spectral
from .base import SYSTEMS, ClosedFlow, System, generator, normal
from .linear_network import independent_laws, laws_of, phi_of, split


@SYSTEMS.register("hyperbolic_leaf")
def hyperbolic_leaf(
    outputs: int = 3, inputs: int = 2, scale: float = 0.7, seed: Seed = 0, shift: float = 0.0
) -> System:
    """z = U Vᵀ of width n + m, UᵀU − VᵀV with the eigenvalues λ₊ = s + a > 0, n times, and λ₋ = s − a < 0, m times.

    For Σ = QQᵀ, Q = [U; V], J = diag(I_n, −I_m), this is (Σ − sJ)J(Σ − sJ) = a²J, a condition on the laws alone since
    Q is invertible. (Σ − sJ)/a is then a positive definite element of O(n, m), exp([[0, X], [Xᵀ, 0]]), so that
    UUᵀ = s + √(a² + zzᵀ) and VVᵀ = −s + √(a² + zᵀz): ż = −(√(a² + zzᵀ) G + G √(a² + zᵀz)), without s. As λ₋ → 0 it is
    the relaxed balanced network of width n, as λ₊ → 0 that of width m. It is derived here, from the laws of
    arXiv 2307.00144 and the two-layer equations of arXiv 2508.07370.

    Parameters
    ----------
    outputs, inputs : int
        n, m.
    scale : float
        a > 0.
    seed : int
        Seed of X, the orthogonal factor of Q, and the target.
    shift : float
        s, between −a and a; neither z₀ nor z(t) depends on it.
    """
    n, m, a = count("system.outputs", outputs), count("system.inputs", inputs), positive("system.scale", scale)
    s = real("system.shift", shift)
    if abs(s) >= a:
        raise ValueError(
            f"system.shift must be between −system.scale and system.scale = {a:g}, got {s:g}: one eigenvalue of the "
            f"law must be positive and the other negative; choose a larger scale"
        )
    random, widths = generator(seed), (m, n + m, n)
    X, target = normal(random, n, m) / 2, normal(random, n, m)
    log_sigma = torch.cat((torch.cat((X.new_zeros(n, n), X), 1), torch.cat((X.mT, X.new_zeros(m, m)), 1)))
    root, turn = matrix_exp(log_sigma / 2), random_orthogonal((n + m, n + m), random).to(X)
    J = torch.cat((X.new_ones(n), -X.new_ones(m)))
    phi, loss = phi_of(widths), Quadratic(target)

    def start(shift: float) -> Tensor:
        Q = torch.sqrt(a + shift * J) * root @ turn
        return torch.cat((Q[n:].mT.flatten(), Q[:n].flatten()))

    return System(
        name="hyperbolic_leaf",
        title=f"Two linear layers {m}-{n + m}-{n}, UᵀU − VᵀV with the eigenvalues {s + a:.3g} ({n} times) and "
        f"{s - a:.3g} ({m} times), seed {seed}",
        source="derived here from arXiv 2307.00144 and 2508.07370",
        phi=phi,
        laws=laws_of(widths),
        theta=start(s),
        loss=loss,
        independent=independent_laws(widths),
        closed=ClosedFlow(loss, partial(_velocity, a=a)),
        control=ClosedFlow(loss, partial(_velocity, a=0.0)),  # balanced layers
        recoverable=n == m == 1,  # else nm + (n + m)(n + m + 1)/2, the ranks of ∂φ and ∂h, are less than (n + m)²
        metric=True,
        checks={
            "(Σ − sJ)J(Σ − sJ) = a²J": partial(_off_leaf, widths=widths, a=a, s=s),
            "z from the start with another s": partial(
                _beside_start, flow=FactorizationFlow(phi, loss), theta=start((s - a) / 2)
            ),
        },
    )


def _velocity(z: Tensor, G: Tensor, a: float) -> Tensor:
    return -leaf_metric(z, G, a)


def _off_leaf(times: Tensor, path: Tensor, widths: Sequence[int], a: float, s: float) -> float:
    transposed, U = split(path, widths)
    Q = torch.cat((U, transposed.mT), dim=-2)
    J = torch.cat((Q.new_ones(widths[-1]), -Q.new_ones(widths[0])))
    sigma = Q @ Q.mT - s * J.diag()
    return float((sigma * J @ sigma - a**2 * J.diag()).abs().max())


def _beside_start(times: Tensor, path: Tensor, flow: FactorizationFlow, theta: Tensor) -> float:
    other = integrate(flow, theta, times, "DOP853", rtol=1e-11, atol=1e-13)
    return float(torch.linalg.matrix_norm(other.z - flow.product(path)[: len(other.z)]).max())


def leaf_metric(z: Tensor, G: Tensor, a: float | Tensor) -> Tensor:
    """√(a² + zzᵀ) G + G √(a² + zᵀz), M of this family, for a of each z `(..., 1)` or of all."""
    left, values, right = torch.linalg.svd(z)
    A, B = (spectral(side, values, lambda s: torch.sqrt(s.square() + a**2)) for side in (left, right.mT))
    return A @ G + G @ B
