"""Two-layer ReLU networks: z_j = u_j v_jᵀ, neuron by neuron."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...checks import count, floating, real
from ...flows.factorization import FactorizationFlow
from ...losses import Quadratic
from ...signatures import Seed
from .base import SYSTEMS, ClosedFlow, Map, System, generator, normal

# A v_j within this cosine of a switch has reached it.
_REACHED = 1e-9

# A rate below this part of its terms is zero: that of a neuron that no other sample drives.
_ROUND_OFF = 1e-12


@SYSTEMS.register("relu_two_layer")
def relu_two_layer(
    inputs: int = 3,
    outputs: int = 1,
    width: int = 6,
    samples: int = 12,
    biases: bool = True,
    slope: float = 0.0,
    seed: Seed = 0,
) -> System:
    """y(x) = Σ_j u_j σ(v_j·x), z_j = u_j v_jᵀ, with the laws δ_j = ‖u_j‖² − ‖v_j‖² (Marcotte 2023, 2025).

    With s_j = √(δ_j² + 4‖z_j‖²), so that ‖u_j‖² = (s_j + δ_j)/2 and ‖v_j‖² = (s_j − δ_j)/2,
    ż_j = −G_j z_jᵀz_j/‖u_j‖² − z_j z_jᵀG_j/‖v_j‖². G_j is the gradient of f = 1/(2n) Σ_i ‖y(x_i) − y_i‖² in z_j, where
    z_j decides which samples activate the neuron: the formula goes on through the switches.

    Parameters
    ----------
    inputs, outputs, width : int
        Sizes of the network.
    samples : int
        n, how many x_i there are: absolute values of standard normals. The y_i are a linear map of them.
    biases : bool
        Whether v_j has a bias, the weight of a last input that is always 1.
    slope : float
        σ(p) = p for p > 0 and `slope` p else, from 0 (ReLU) up to 1.
    seed : int
        Seed of x, y and θ₀.

    Notes
    -----
    A switch where the velocities on both sides lead to it ends both flows, that of θ as well as that of z: neither has
    a classical solution beyond it, and `until` ends the comparison there. With samples in one orthant and a linear map
    to learn that is rare.
    """
    return random_network("relu_two_layer", "ReLU", inputs, outputs, width, samples, biases, slope, seed)


def random_network(
    name: str,
    activation: str,
    inputs: int,
    outputs: int,
    width: int,
    samples: int,
    biases: bool,
    slope: float,
    seed: int,
) -> System:
    """The system of a random network and random samples."""
    d, m = count("system.inputs", inputs), count("system.outputs", outputs)
    w, n = count("system.width", width), count("system.samples", samples)
    if not isinstance(biases, bool):
        raise TypeError(f"system.biases must be True or False, got {biases!r}")
    slope = slope_of(slope)
    random = generator(seed)
    x = normal(random, n, d).abs()
    if biases:
        x = torch.cat((x, torch.ones_like(x[:, :1])), dim=1)
    y = x @ normal(random, x.shape[1], m) / math.sqrt(x.shape[1])
    u, v = normal(random, w * m), normal(random, w * x.shape[1]) / math.sqrt(x.shape[1])
    # None of the u_j starts near zero: see NeuronLoss on what a small z_j forgets.
    u = u.sign() * (0.4 + 0.4 * u.abs()) / math.sqrt(w)
    theta = torch.cat((u, v))
    return two_layer_system(
        name,
        f"Two-layer {activation} network {d}–{w}–{m}, regression on {n} samples (seed {seed})",
        "Marcotte et al. 2025, arXiv 2508.07370; laws: Marcotte et al. 2023, arXiv 2307.00144",
        TwoLayer(x, y, w, slope, (w, m, x.shape[1])),
        theta,
    )


def two_layer_system(
    name: str,
    title: str,
    source: str,
    network: TwoLayer,
    theta: Tensor,
    observe: Mapping[str, Map] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> System:
    """The system of a two-layer network that starts at θ₀."""
    loss = NeuronLoss(network, theta)
    return System(
        name=name,
        title=title,
        source=source,
        phi=network.phi,
        laws=network.laws,
        theta=theta,
        loss=loss,
        independent=network.width,
        closed=NeuronFlow(loss),
        recoverable=True,
        metric=True,
        flow=network_flow(network.outputs, network.y, network.laws),
        until=network.slides,
        until_what="a switch that the flow cannot leave on either side",
        bound=1e-6,
        checks={"z decides the activations": loss.activations_lost, "‖u‖² and ‖v‖² from ‖z‖ and δ": loss.norms_lost},
        observe=observe or {},
        facts=facts or {},
    )


def slope_of(slope: float) -> float:
    """The slope of a leaky ReLU for negative arguments, from 0 to 1."""
    if not 0 <= real("system.slope", slope) <= 1:
        raise ValueError(f"system.slope must be between 0 (ReLU) and 1 (linear), got {slope!r}")
    return float(slope)


def network_flow(outputs: Map, y: Tensor, laws: Map) -> FactorizationFlow:
    """θ' = −∇ 1/(2n) Σ_i ‖outputs(θ)_i − y_i‖², of the network itself: no z, no path, no pattern of activations."""
    scale = 1 / math.sqrt(len(y))
    return FactorizationFlow(partial(_scaled, outputs=outputs, scale=scale), Quadratic(scale * y, axes=2), laws)


def _scaled(theta: Tensor, outputs: Map, scale: float) -> Tensor:
    return scale * outputs(theta)


class TwoLayer:
    """The network and its samples; θ has the rows u_j and then the rows v_j.

    Parameters
    ----------
    x : Tensor (n, d)
        Inputs, with the one of the biases.
    y : Tensor (n, m)
    width : int
    slope : float
    shape : sequence of int
        Shape of z; its entries are those of (width, m, d).
    """

    def __init__(self, x: Tensor, y: Tensor, width: int, slope: float, shape: Sequence[int]) -> None:
        self.x, self.y = x, y
        self.width, self.slope = width, slope
        self.shape = tuple(shape)

    def factors(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """u (..., width, m) and v (..., width, d)."""
        cut = self.width * self.y.shape[1]
        return theta[..., :cut].unflatten(-1, (self.width, -1)), theta[..., cut:].unflatten(-1, (self.width, -1))

    def phi(self, theta: Tensor) -> Tensor:
        """z_j = u_j v_jᵀ."""
        u, v = self.factors(theta)
        return (u.unsqueeze(-1) * v.unsqueeze(-2)).reshape(*theta.shape[:-1], *self.shape)

    def square_norms(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """‖u_j‖² and ‖v_j‖²."""
        u, v = self.factors(theta)
        return u.square().sum(-1), v.square().sum(-1)

    def laws(self, theta: Tensor) -> Tensor:
        """δ_j = ‖u_j‖² − ‖v_j‖²."""
        uu, vv = self.square_norms(theta)
        return uu - vv

    def outputs(self, theta: Tensor, x: Tensor | None = None) -> Tensor:
        """y(x) (..., N, m) at x (N, d), by default at the samples."""
        u, v = self.factors(theta)
        p = (self.x if x is None else x) @ v.mT
        return torch.where(p > 0, p, self.slope * p) @ u

    def slides(self, t: float, z: Tensor, theta: Tensor) -> float:
        """Falls below zero where v_j reaches a switch to which the velocities on both sides lead."""
        u, v = self.factors(theta)
        p, size = v @ self.x.mT, _norm(v) * _norm(self.x).mT
        push = -u @ (self.outputs(theta) - self.y).mT / len(self.y)  # of an active sample i on v_j, along x_i
        gates = torch.where(p > 0, 1.0, self.slope).to(p)
        rate = (gates * push) @ self.x @ self.x.mT
        noise = _ROUND_OFF * push.abs() @ (self.x @ self.x.mT).abs()
        own = push * self.x.square().sum(-1)
        active, inactive = rate + (1 - gates) * own, rate + (self.slope - gates) * own
        distance = torch.where((active < -noise) & (inactive > noise), p.abs() / size, 1.0)
        return float(distance.min()) - _REACHED


class NeuronLoss:
    """f(z) = 1/(2n) Σ_i ‖Σ_j a_ji z_j x_i − y_i‖², a_ji = 1 where v_j·x_i > 0 and `slope` elsewhere.

    z_j decides v_j up to the sign of the pair (u_j, v_j), which no function of z alone can know. The vector of the pair
    that δ_j makes the longer one never vanishes and so turns continuously: its sign is the one nearer to that at an
    anchor. θ₀ is the first anchor, and `follow` sets more along a trajectory that turns away from it; each z_j goes by
    the anchor that it is nearest to.

    The direction of v_j has the error of z_j relative to the size of z_j. Where that is small, as when a single u_j
    changes its sign, the flow of z loses digits for good that the flow of θ keeps.

    Parameters
    ----------
    network : TwoLayer
    theta : Tensor (n,)
        θ₀, with δ and the signs at the start.
    """

    dimension: int | None = None

    def __init__(self, network: TwoLayer, theta: Tensor) -> None:
        self.network = network
        self.shape = network.shape
        self.delta = network.laws(theta)
        u, v = (normalize(factor, dim=-1) for factor in network.factors(theta))
        # Of every anchor (first axis): z, and the directions of u and v.
        self._z, self._u, self._v = (part.unsqueeze(0) for part in (self.blocks(network.phi(theta)), u, v))

    def blocks(self, z: Tensor) -> Tensor:
        """z as (..., width, m, d)."""
        x, y = self.network.x, self.network.y
        return z.reshape(*z.shape[: z.ndim - len(self.shape)], self.network.width, y.shape[1], x.shape[1])

    def square_norms(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """‖u_j‖² and ‖v_j‖² for z as blocks."""
        zz = z.square().sum((-2, -1))
        longer = (self.delta.abs() + torch.sqrt(self.delta.square() + 4 * zz)) / 2
        shorter = zz / longer  # where (s − |δ|)/2 would cancel
        return torch.where(self.delta > 0, longer, shorter), torch.where(self.delta > 0, shorter, longer)

    def _oriented(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Positive multiples of v_j (..., width, d) for z as blocks.

        With them come the cosines (..., width) of the longer vectors with those of the anchors.
        """
        nearest = (z.unsqueeze(-4) - self._z).square().sum((-2, -1)).argmin(-2)
        neurons = torch.arange(self.network.width, device=z.device)
        u, v = self._u[nearest, neurons], self._v[nearest, neurons]
        along_u, along_v = _times(z.mT, u), _times(z, v)
        long_u = (self.delta > 0).unsqueeze(-1)
        cosines = torch.where(long_u, _norm(along_u), _norm(along_v)).squeeze(-1) / z.square().sum((-2, -1)).sqrt()
        return torch.where(long_u, along_u, _times(z.mT, along_v)), cosines

    def follow(self, z: Tensor) -> None:
        """Sets an anchor at the z of a trajectory where it has turned away from the others.

        A z that has turned much further is a trial step that the solver will reject, and shows nothing.
        """
        z = self.blocks(z)
        v, cosines = self._oriented(z)
        if 0.5 < float(cosines.min()) < 0.9:
            self._z = torch.cat((self._z, z.unsqueeze(0)))
            self._u = torch.cat((self._u, normalize(_times(z, v), dim=-1).unsqueeze(0)))
            self._v = torch.cat((self._v, normalize(v, dim=-1).unsqueeze(0)))

    def _gates(self, z: Tensor) -> Tensor:
        """a_ji (..., width, n) for z as blocks."""
        return torch.where(self._oriented(z)[0] @ self.network.x.mT > 0, z.new_ones(()), self.network.slope)

    def _residual(self, z: Tensor, gates: Tensor) -> Tensor:
        return (gates.unsqueeze(-2) * (z @ self.network.x.mT)).sum(-3).mT - self.network.y

    def outputs(self, z: Tensor) -> Tensor:
        """y(x_i) (..., n, m)."""
        z = self.blocks(z)
        return self._residual(z, self._gates(z)) + self.network.y

    def activations_lost(self, times: Tensor, path: Tensor) -> float:
        """How far the outputs that z decides are from those of a path of θ (T, n)."""
        error = 0.0
        for point in path:
            z = self.network.phi(point)
            self.follow(z)
            error = max(error, float((self.outputs(z) - self.network.outputs(point)).abs().max()))
        return error

    def norms_lost(self, times: Tensor, path: Tensor) -> float:
        """How far ‖u_j‖² and ‖v_j‖² from z are from those of a path of θ (T, n)."""
        found = torch.stack(self.square_norms(self.blocks(self.network.phi(path))))
        return float((found - torch.stack(self.network.square_norms(path))).abs().max())

    def __call__(self, z: Tensor) -> Tensor:
        z = self.blocks(z)
        return self._residual(z, self._gates(z)).square().sum((-2, -1)) / (2 * len(self.network.x))

    def gradient(self, z: Tensor) -> Tensor:
        z_j = self.blocks(z)
        gates = self._gates(z_j)
        residual = self._residual(z_j, gates) / len(self.network.x)
        return (gates.unsqueeze(-2) * residual.mT.unsqueeze(-3) @ self.network.x).reshape(z.shape)


class NeuronFlow(ClosedFlow):
    """ż_j = −G_j z_jᵀz_j/‖u_j‖² − z_j z_jᵀG_j/‖v_j‖², with the norms of z_j and δ_j (Marcotte et al. 2025)."""

    def __init__(self, loss: NeuronLoss) -> None:
        super().__init__(loss, self._formula)
        self._neurons = loss

    def check(self, state: Tensor) -> None:
        """Raises unless the state has the shape of z."""
        shape = self._neurons.shape
        if floating("state", state).shape[-len(shape) :] != shape:
            raise ValueError(f"state must have shape (..., {', '.join(map(str, shape))}), got {tuple(state.shape)}")

    def velocity(self, state: Tensor) -> Tensor:
        """ż; one trajectory is followed through its turns."""
        if state.ndim == len(self._neurons.shape):
            self._neurons.follow(state)
        return super().velocity(state)

    def _formula(self, z: Tensor, G: Tensor) -> Tensor:
        shape, z, G = z.shape, self._neurons.blocks(z), self._neurons.blocks(G)
        uu, vv = (norms[..., None, None] for norms in self._neurons.square_norms(z))
        return -(G @ z.mT @ z / uu + z @ z.mT @ G / vv).reshape(shape)


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)


def _norm(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
