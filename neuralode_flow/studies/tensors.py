"""Linear networks ⟨x, b⟩ whose layers enter through a tensor: fully connected, diagonal and convolutional ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..intrinsic.systems.base import ClosedFlow
from ..intrinsic.systems.scalar_chain import slope
from ..losses import Loss
from ..matrices import normal

_SPREAD = 0.25  # standard deviation of the logarithms of the shape of a start


class Basis(NamedTuple):
    """Groups c_g = rows_g b of coordinates, with ‖c_g‖ = Π_l ‖w_lg‖ of a network whose layer l has the parts w_lg.

    rows : array (m, s, d); b = Σ_g counts_g gain rows_gᵀ c_g.
    counts : array (m,), how many coordinates of the network a group stands for.
    gain : number
    """

    rows: np.ndarray
    counts: np.ndarray
    gain: float

    def of(self, b: np.ndarray) -> np.ndarray:
        """c of b (..., d): (..., m, s)."""
        c: np.ndarray = np.einsum("gsd,...d->...gs", self.rows, b)
        return c

    def back(self, c: np.ndarray) -> np.ndarray:
        """The b (d,) of c (m, s)."""
        b: np.ndarray = self.gain * np.einsum("g,gsd,gs->d", self.counts, self.rows, c)
        return b

    def dual(self, x: np.ndarray) -> np.ndarray:
        """u of samples (n, d), (m, s, n): ⟨x, b⟩ = Σ_g counts_g ⟨u_g, c_g⟩."""
        return self.gain * np.moveaxis(self.of(x), 0, -1)


@dataclass(frozen=True)
class Network(ABC):
    """A linear network of `depth` layers on vectors of length `dimension`.

    Attributes
    ----------
    share : float
        c_g moves by its slope times the gradient, across c_g by this part of it.
    """

    depth: int
    dimension: int
    share: float = 1.0

    @abstractmethod
    def layers(self, theta: Tensor) -> list[Tensor]:
        """θ (..., p), layer by layer."""

    @abstractmethod
    def product(self, theta: Tensor) -> Tensor:
        """b (..., d)."""

    @property
    @abstractmethod
    def basis(self) -> Basis:
        """In which every group moves for itself, up to the loss."""

    @abstractmethod
    def sizes(self, theta: Tensor) -> Tensor:
        """‖w_lg‖ of one θ, (m, L)."""

    @abstractmethod
    def start(self, random: torch.Generator, scale: float) -> Tensor:
        """θ from which training begins."""

    @abstractmethod
    def other(self, random: torch.Generator) -> Tensor:
        """θ of a more general kind, for the closed flow."""

    def closed(self, loss: Loss, theta: Tensor) -> ClosedFlow:
        """The flow of b alone, of the laws that θ has: each ‖c_g‖ is a chain of numbers."""
        rows, counts, gain = self.basis
        R, weights = torch.as_tensor(rows), torch.as_tensor(counts * gain)
        squares = self.sizes(theta).square()
        shifts = squares - squares[:, :1]

        def velocity(b: Tensor, G: Tensor) -> Tensor:
            c, pull = torch.einsum("gsd,d->gs", R, b), -gain * torch.einsum("gsd,d->gs", R, G)
            sizes = torch.linalg.vector_norm(c, dim=-1)
            along = c / sizes.unsqueeze(-1)
            radial = (along * pull).sum(-1, keepdim=True) * along
            moved = slope(sizes, shifts).unsqueeze(-1) * (self.share * pull + (1 - self.share) * radial)
            return torch.einsum("gsd,gs->d", R, weights.unsqueeze(-1) * moved)

        return ClosedFlow(loss, velocity)


class _Vectors(Network):
    """Layers that are vectors of the length d."""

    def layers(self, theta: Tensor) -> list[Tensor]:
        return list(theta.unflatten(-1, (self.depth, self.dimension)).unbind(-2))

    def other(self, random: torch.Generator) -> Tensor:
        return normal(random, self.depth * self.dimension)

    def shape(self, random: torch.Generator) -> Tensor:
        """η > 0, (m,): ‖w_lg‖ = scale · η_g at the start, but 0 in the last layer."""
        return torch.exp(_SPREAD * normal(random, len(self.basis.counts)))


class Diagonal(_Vectors):
    """b = v_1 ∘ … ∘ v_L."""

    def product(self, theta: Tensor) -> Tensor:
        return theta.unflatten(-1, (self.depth, self.dimension)).prod(-2)

    @property
    def basis(self) -> Basis:
        return Basis(np.eye(self.dimension)[:, None], np.ones(self.dimension), 1.0)

    def sizes(self, theta: Tensor) -> Tensor:
        return torch.stack(self.layers(theta), -1).abs()

    def start(self, random: torch.Generator, scale: float) -> Tensor:
        layer = scale * self.shape(random)
        return torch.cat([layer.repeat(self.depth - 1), torch.zeros_like(layer)])


class Convolution(_Vectors):
    """b = v_1 * … * v_L, circular, with filters of full width."""

    def product(self, theta: Tensor) -> Tensor:
        place = torch.arange(self.dimension)
        shifts = (place[:, None] - place) % self.dimension
        first, *others = self.layers(theta)
        for layer in others:
            first = (layer[..., shifts] @ first.unsqueeze(-1)).squeeze(-1)
        return first

    @property
    def basis(self) -> Basis:
        """Fourier's, one group of real and imaginary part for each pair of frequencies ±j."""
        d = self.dimension
        F = np.exp(-2j * np.pi * np.outer(np.arange(d // 2 + 1), np.arange(d)) / d) / d**0.5
        counts = np.where(2 * np.arange(d // 2 + 1) % d, 2.0, 1.0)
        gain = float(d ** (self.depth - 1))
        return Basis(np.stack([F.real, F.imag], 1) / gain**0.5, counts, gain)

    def sizes(self, theta: Tensor) -> Tensor:
        return torch.stack([torch.fft.rfft(layer, norm="ortho").abs() for layer in self.layers(theta)], -1)

    def start(self, random: torch.Generator, scale: float) -> Tensor:
        """Filters of the same spectrum up to phases, which are drawn for each."""
        sizes = scale * self.shape(random)
        filters = [phased(random, sizes, self.dimension) for _ in range(self.depth - 1)]
        return torch.cat([*filters, torch.zeros_like(filters[0])])


@dataclass(frozen=True)
class FullyConnected(Network):
    """b = W_1 … W_L; all of it is one group, along which b moves L times as fast as across it."""

    width: int = 4

    @property
    def _shapes(self) -> list[tuple[int, int]]:
        return [(self.dimension, self.width), *[(self.width, self.width)] * (self.depth - 2), (self.width, 1)]

    def layers(self, theta: Tensor) -> list[Tensor]:
        parts = theta.split([rows * columns for rows, columns in self._shapes], -1)
        return [part.unflatten(-1, shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def product(self, theta: Tensor) -> Tensor:
        first, *others = self.layers(theta)
        for layer in others:
            first = first @ layer
        return first.squeeze(-1)

    @property
    def basis(self) -> Basis:
        return Basis(np.eye(self.dimension)[None], np.ones(1), 1.0)

    def sizes(self, theta: Tensor) -> Tensor:
        return torch.stack([layer.norm() for layer in self.layers(theta)])[None]

    def start(self, random: torch.Generator, scale: float) -> Tensor:
        drawn = [normal(random, *shape).flatten() / self.width**0.5 for shape in self._shapes]
        return scale * torch.cat(drawn)

    def other(self, random: torch.Generator) -> Tensor:
        """Balanced layers of rank one."""
        ends = [normal(random, shape[0]) for shape in self._shapes] + [torch.ones(1, dtype=torch.float64)]
        units = [end / end.norm() for end in ends]
        return torch.cat([torch.outer(*pair).flatten() for pair in zip(units, units[1:], strict=False)])


def network(kind: str, depth: int, dimension: int) -> Network:
    """One of `KINDS`."""
    if kind == "fully_connected":
        return FullyConnected(depth, dimension, 1 / depth)
    return {"diagonal": Diagonal, "convolution": Convolution}[kind](depth, dimension)


KINDS = ("fully_connected", "diagonal", "convolution")


def phased(random: torch.Generator, spectrum: Tensor, dimension: int) -> Tensor:
    """A real signal (d,) whose Fourier coefficients have these sizes (d // 2 + 1,), and phases that are drawn."""
    return in_phase(random, spectrum[None], dimension)[0]


def in_phase(random: torch.Generator, spectra: Tensor, dimension: int) -> Tensor:
    """Real signals (n, d) with these real coefficients (n, d // 2 + 1), and for each frequency one phase for all."""
    phases = torch.pi * (2 * torch.rand(spectra.shape[-1], generator=random, dtype=torch.float64) - 1)
    real = 2 * torch.arange(spectra.shape[-1]) % dimension == 0
    turned = torch.polar(torch.ones_like(phases), torch.where(real, 0.0, phases))
    return torch.fft.irfft(spectra * turned, dimension, norm="ortho")
