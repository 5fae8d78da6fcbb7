"""Two linear layers in relaxed balance: z = U Vᵀ, UᵀU − VᵀV = λI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ...checks import count, real
from ...exact import two_layer
from ...losses import Quadratic
from ...matrices import random_orthogonal
from ...signatures import Seed
from .base import SYSTEMS, ClosedFlow, System, generator, normal
from .linear_network import independent_laws, laws_of, phi_of, split


@SYSTEMS.register("balanced_two_layer")
def balanced_two_layer(
    outputs: int = 5, inputs: int = 4, width: int = 3, balance: float = 0.7, seed: Seed = 0
) -> System:
    """z = U Vᵀ with the law UᵀU − VᵀV = λI: ż = −(A G + G B), A = UUᵀ, B = VVᵀ.

    A² − λA = zzᵀ and B² + λB = zᵀz give A = λ/2 + √(zzᵀ + λ²/4), B = −λ/2 + √(zᵀz + λ²/4) where σ > 0. On the kernel
    of zᵀ the eigenvalues of A are 0 or, for λ > 0, λ. U is then injective, of rank r <= n, and z has the rank
    min(r, m), so that they are all λ if r = n and all 0 if r <= m. For m < r < n some are λ: a turn of U within that
    kernel changes A but neither z nor the law, criterion B fails, and no flow of z exists. λ < 0 is the transposed
    case, and λ = 0 is closed for every size.

    Parameters
    ----------
    outputs, inputs, width : int
        n, m, r: U is n × r, V is m × r.
    balance : float
        λ; it needs r <= n if positive and r <= m if negative.
    seed : int
        Seed of θ₀ and the target.
    """
    n, m, r = count("system.outputs", outputs), count("system.inputs", inputs), count("system.width", width)
    lam = real("system.balance", balance)
    bounding, bound = ("outputs", n) if lam > 0 else ("inputs", m)
    if lam != 0 and r > bound:
        raise ValueError(
            f"system.width must be at most system.{bounding} = {bound} for system.balance = {lam:g}: "
            f"UᵀU − VᵀV = λI leaves no room for width {r}"
        )
    random, widths, rank = generator(seed), (m, r, n), min(n, m, r)
    left, right, gauge = (random_orthogonal((size, size), random) for size in (n, m, r))
    sigma, tau = torch.rand(2, rank, generator=random, dtype=torch.float64, device="cpu") + 0.5
    noise = normal(random, n, m) / 4
    left, right, gauge, sigma, tau = (part.to(noise) for part in (left, right, gauge, sigma, tau))
    # Not far from the frames of z₀: else a square factor could become singular, and z forget the range of the other.
    target = left[:, :rank] * tau @ right[:, :rank].mT + noise
    U, V = _factor(left, gauge, sigma, lam), _factor(right, gauge, sigma, -lam)
    loss = Quadratic(target)

    closes = lam == 0 or r == bound or r <= min(n, m)
    return System(
        name="balanced_two_layer",
        title=f"Two linear layers {m}-{r}-{n}, relaxed balanced with λ = {lam:g} (seed {seed})",
        source="arXiv 2508.07370; closed solution in t: Dominé et al. 2025, arXiv 2409.14623",
        phi=phi_of(widths),
        laws=laws_of(widths),
        theta=torch.cat((V.mT.flatten(), U.flatten())),
        loss=loss,
        independent=independent_laws(widths),
        closed=ClosedFlow(loss, partial(_velocity, lam=lam, width=r)) if closes else None,
        recoverable=r == 1,  # else (UO, VO) with O orthogonal has the same z and the same law
        metric=closes,
        checks={"z is the closed solution in t": partial(_beside_solution, widths=widths, target=target)},
    )


def _velocity(z: Tensor, G: Tensor, lam: float, width: int) -> Tensor:
    return -relaxed_metric(z, G, lam, width)


def _beside_solution(times: Tensor, path: Tensor, widths: Sequence[int], target: Tensor) -> float:
    W1, W2 = split(path[0], widths)
    m = widths[0]
    truth = two_layer(times, W1, W2, target)[:, m:, :m]
    return float(torch.linalg.matrix_norm(phi_of(widths)(path) - truth).max())


def relaxed_metric(z: Tensor, G: Tensor, lam: float | Tensor, width: int) -> Tensor:
    """A G + G B, M of relaxed balanced layers of a width at which they close, for λ of each z `(..., 1)` or of all."""
    left, values, right = torch.linalg.svd(z)
    A = spectral(left[..., :width], values, lambda s: _eigenvalues(s, lam))
    B = spectral(right.mT[..., :width], values, lambda s: _eigenvalues(s, -lam))
    return A @ G + G @ B


def spectral(vectors: Tensor, sigma: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Σ_i function(σ_i) v_i v_iᵀ over the columns v_i, with σ_i = 0 for those beyond the last singular value."""
    number = vectors.shape[-1]
    padded = torch.nn.functional.pad(sigma[..., :number], (0, max(0, number - sigma.shape[-1])))
    return vectors * function(padded).unsqueeze(-2) @ vectors.mT


def _eigenvalues(sigma: Tensor, shift: float | Tensor) -> Tensor:
    """shift/2 + √(σ² + shift²/4), without cancellation."""
    shift = torch.as_tensor(shift, dtype=sigma.dtype, device=sigma.device)
    root = torch.sqrt(sigma.square() + shift**2 / 4) + abs(shift) / 2
    return torch.where(shift >= 0, root, sigma.square() / root)


def _factor(frame: Tensor, gauge: Tensor, sigma: Tensor, shift: float) -> Tensor:
    """U (n, r) with UUᵀ = Σ_i eigenvalue(σ_i) p_i p_iᵀ in the given frame."""
    number = min(len(frame), len(gauge))
    padded = torch.nn.functional.pad(sigma, (0, number - len(sigma)))
    return frame[:, :number] * torch.sqrt(_eigenvalues(padded, shift)) @ gauge[:, :number].mT
