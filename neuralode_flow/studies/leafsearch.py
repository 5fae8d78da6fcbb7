"""Two linear layers: where criterion B holds, found by least squares, and what the law says of such points."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..intrinsic.systems.balanced_two_layer import relaxed_metric
from ..intrinsic.systems.hyperbolic_leaf import leaf_metric
from ..intrinsic.systems.linear_network import (
    image_dimension,
    independent_laws,
    laws_of,
    phi_of,
    split,
)

# What a point can be: the search ends elsewhere, B fails with the kernel of the point itself or after training, or one
# of the closed leaves.
KINDS = ("not reached", "dropped", "relaxed balanced", "narrower", "two eigenvalues", "other")
NOT_REACHED, DROPPED, RELAXED, NARROWER, TWO, OTHER = range(len(KINDS))

# ‖∂M‖ where it is zero; singular values of Q that are about to vanish, and those of (∂φ, ∂h) that are zero, over the
# largest; eigenvalues of the law that are equal. All for ‖θ‖ = 1.
ZERO, LOST, KERNEL, EQUAL = 1e-11, 1e-3, 1e-9, 1e-8
_STEPS, _REACHED = 60, 1e-14  # of the least squares
_DAMPING, _LEAST_DAMPING, _LOWERED, _RAISED = 1e-2, 1e-8, 0.2, 4.0


@dataclass(frozen=True)
class TwoLayers:
    """z = UVᵀ with U (n, r), V (m, r), and θ = (Vᵀ, U). φ and h are quadratic, so that their slopes are linear in θ.

    Attributes
    ----------
    outputs, inputs, width : int
        n, m, r.
    """

    outputs: int
    inputs: int
    width: int

    @property
    def widths(self) -> tuple[int, int, int]:
        """From input to output."""
        return self.inputs, self.width, self.outputs

    @property
    def dimension(self) -> int:
        """Of θ."""
        return (self.outputs + self.inputs) * self.width

    @property
    def full(self) -> int:
        """The largest rank of Q."""
        return min(self.width, self.outputs + self.inputs)

    @property
    def closes(self) -> bool:
        """Whether relaxed balanced layers of this width close on z."""
        n, m = self.outputs, self.inputs
        return self.width <= min(n, m) or self.width == max(n, m)

    @cached_property
    def rank(self) -> int:
        """The rank of ∂φ and ∂h together at a generic θ: they are orthogonal."""
        return image_dimension(self.widths) + independent_laws(self.widths)

    @cached_property
    def second(self) -> tuple[Tensor, Tensor]:
        """The second derivatives of (φ, h), and of the entries of M that are on and above its diagonal, (k, N, N).

        The entries above the diagonal are taken √2 times, so that the norm is that of Frobenius.
        """
        zero = torch.zeros(self.dimension, dtype=torch.float64)
        phi, laws = phi_of(self.widths), laws_of(self.widths)
        both = torch.func.jacrev(torch.func.jacrev(lambda t: torch.cat((phi(t).reshape(-1), laws(t)))))(zero)
        slope = both[: self.outputs * self.inputs]
        half = torch.einsum("ikp,jlp->ijkl", slope, slope)
        i, j = torch.triu_indices(len(slope), len(slope), device=slope.device)
        return both, (1 + (i < j)).to(slope).sqrt()[:, None, None] * (half + half.mT)[i, j]

    def slopes(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """(∂φ, ∂h) and ∂M at θ (b, N)."""
        both, metric = (torch.einsum("ikl,bl->bik", tensor.to(theta), theta) for tensor in self.second)
        return both, metric

    def stacked(self, theta: Tensor) -> Tensor:
        """Q = [U; V] (..., n + m, r)."""
        transposed, U = split(theta, self.widths)
        return torch.cat((U, transposed.mT), dim=-2)

    def flat(self, Q: Tensor) -> Tensor:
        """θ of Q."""
        return torch.cat((Q[..., self.outputs :, :].mT.flatten(-2), Q[..., : self.outputs, :].flatten(-2)), dim=-1)

    def change(self, theta: Tensor) -> Tensor:
        """‖∂M‖/‖θ‖ on the kernel of (∂φ, ∂h) at θ (b, N) itself, whatever its dimension there."""
        both, metric = self.slopes(unit(theta))
        _, values, Vh = torch.linalg.svd(both, full_matrices=True)
        values = torch.nn.functional.pad(values, (0, Vh.shape[-1] - values.shape[-1]))
        kernel = Vh * (values <= KERNEL * values[:, :1])[..., None]
        return torch.linalg.matrix_norm(metric @ kernel.mT)

    def training_metric(self, theta: Tensor, G: Tensor) -> Tensor:
        """M G = ∂φ ∂φᵀ G at θ (b, N)."""
        slope = self.slopes(theta)[0][:, : self.outputs * self.inputs]
        return (slope @ (slope.mT @ G.flatten(-2)[..., None]))[..., 0].reshape(G.shape)


def unit(theta: Tensor) -> Tensor:
    """θ (b, N) over its norm."""
    return theta / torch.linalg.vector_norm(theta, dim=-1, keepdim=True)


def search(network: TwoLayers, theta: Tensor) -> Tensor:
    """From each θ (b, N) to a zero of ‖∂M‖ on the kernel of (∂φ, ∂h), as far as steps of Levenberg and Marquardt lead.

    The kernel has the dimension of a generic point; its basis N moves by dN = −J⁺ dJ N, J = (∂φ, ∂h), derived here: a
    turn of the basis does not change the norm. ‖∂M‖ is homogeneous in θ, which stays on the unit sphere.
    """
    theta = unit(theta)
    damping = theta.new_full((len(theta),), _DAMPING)
    residual, slope = _linearised(network, theta)
    for _ in range(_STEPS):
        size = torch.linalg.vector_norm(residual, dim=-1)
        moving = (size > _REACHED).nonzero()[:, 0]
        if not len(moving):
            break
        here, r, A = theta[moving], residual[moving], slope[moving]
        # Gauge directions are in the null space of A: what is added is at least the round-off of A.
        weight = damping[moving] * r.square().sum(-1) + torch.finfo(theta.dtype).eps * A.square().sum((-2, -1))
        normal = A.mT @ A + weight[:, None, None] * torch.eye(theta.shape[-1]).to(theta)
        there = unit(here - torch.linalg.solve(normal, A.mT @ r[..., None])[..., 0])
        found = _linearised(network, there)
        better = torch.linalg.vector_norm(found[0], dim=-1) < size[moving]
        factor = torch.where(better, theta.new_tensor(_LOWERED), theta.new_tensor(_RAISED))
        damping[moving] = (damping[moving] * factor).clamp(min=_LEAST_DAMPING)
        taken = moving[better]
        theta[taken], residual[taken], slope[taken] = there[better], found[0][better], found[1][better]
    return theta


def _linearised(network: TwoLayers, theta: Tensor) -> tuple[Tensor, Tensor]:
    """∂M on a basis of the kernel, (b, k), and its slope along the sphere, (b, k, N)."""
    both, metric = network.slopes(theta)
    second, second_metric = (tensor.to(theta) for tensor in network.second)
    U, values, Vh = torch.linalg.svd(both, full_matrices=True)
    rank = network.rank
    kernel = Vh[:, rank:].mT
    seen = (metric @ Vh[:, :rank].mT) / values[:, None, :rank] @ U[..., :rank].mT  # ∂M J⁺
    turned = torch.einsum("bqj,bjcl->bqcl", seen, torch.einsum("jkl,bkc->bjcl", second, kernel))
    slope = (torch.einsum("qkl,bkc->bqcl", second_metric, kernel) - turned).flatten(1, 2)
    along = slope - (slope @ theta[..., None]) @ theta[:, None, :]
    return (metric @ kernel).flatten(1), along


def reached(network: TwoLayers, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Where a search from each θ (b, N) ends, and the rank of Q there (b,).

    A search tends to Q of lower rank where there are zeros but none of full rank. Once all but LOST of a singular value
    has gone, it goes on in the narrower network of the others: Q = Q̃ Rᵀ with orthonormal columns of R.
    """
    theta = search(network, theta)
    rank = torch.full((len(theta),), network.full, device=theta.device)
    for width in range(network.full - 1, 0, -1):
        left, values, right = torch.linalg.svd(network.stacked(theta), full_matrices=False)
        lost = values[:, width] <= LOST * values[:, 0]
        if bool(lost.any()):
            narrow = TwoLayers(network.outputs, network.inputs, width)
            inside = search(narrow, narrow.flat((left * values[:, None, :])[lost, :, :width]))
            theta[lost] = network.flat(narrow.stacked(inside) @ right[lost, :width])
            rank[lost] = width
    return theta, rank


class Leaves(NamedTuple):
    """What the law says of points, each (b,): a kind, the rank of Q, and the ends λ₊ ≥ λ₋ of the spectrum of the law.

    The law is taken on the range of Qᵀ; λ₊ = λ₋ where the layers are relaxed balanced.
    """

    kind: Tensor
    rank: Tensor
    largest: Tensor
    smallest: Tensor


def leaves(network: TwoLayers, theta: Tensor, rank: Tensor) -> Leaves:
    """Which closed leaves the points θ (b, N) of norm 1 lie on, whose Q have the given ranks (b,)."""
    n, m = network.outputs, network.inputs
    left, values, _ = torch.linalg.svd(network.stacked(theta), full_matrices=False)
    kind, largest, smallest = torch.full_like(rank, OTHER), torch.zeros_like(theta[:, 0]), torch.zeros_like(theta[:, 0])
    for number in rank.unique().tolist():
        there = rank == number
        frame = (left * values[:, None, :])[there, :, :number]
        law = torch.linalg.eigvalsh(frame[:, :n].mT @ frame[:, :n] - frame[:, n:].mT @ frame[:, n:])
        largest[there], smallest[there] = law[:, -1], law[:, 0]
        found = torch.full_like(rank[there], OTHER)
        if TwoLayers(n, m, number).closes:
            found[law[:, -1] - law[:, 0] <= EQUAL] = RELAXED if number == network.width else NARROWER
        if number == n + m:
            spread = (law[:, m - 1] - law[:, 0]) + (law[:, -1] - law[:, m])
            found[(law[:, m - 1] < 0) & (law[:, m] > 0) & (spread <= EQUAL)] = TWO
        kind[there] = found
    return Leaves(kind, rank, largest, smallest)


def closed_metric(found: Leaves, z: Tensor, G: Tensor) -> Tensor:
    """M G (b, n, m) from z and the law alone; NaN where the leaf is of another kind."""
    result = torch.full_like(z, torch.nan)
    for number in found.rank.unique().tolist():
        two = (found.kind == TWO) & (found.rank == number)
        one = ((found.kind == RELAXED) | (found.kind == NARROWER)) & (found.rank == number)
        half = ((found.largest - found.smallest) / 2)[:, None], ((found.largest + found.smallest) / 2)[:, None]
        result[two] = leaf_metric(z[two], G[two], half[0][two])
        result[one] = relaxed_metric(z[one], G[one], half[1][one], number)
    return result
