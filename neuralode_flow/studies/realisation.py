"""ReLU networks on samples: what their outputs say of their parameters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from ..intrinsic.paths import ReluDag
from ..intrinsic.ranks import Rank, rank_of
from ..matrices import normal

# Shares of the samples at which a neuron is inactive: its bias is a quantile, the part drawn between these.
_LOW, _HIGH = 0.1, 0.5
_LEAST, _MOST, _TRIES = 0.05, 0.6, 1000  # of the share that comes of it; draws until all neurons have such a one

_BESIDE = 0.05  # of its sums' deviation: the shift of a bias from the quantile

_STEPS = 60  # of a search for θ

_TWIN = 1.7  # the factor between the weights of twins


class Layers(NamedTuple):
    """Fully connected layers: weights (a, b), from a neurons to b, and biases (b,)."""

    weights: list[Tensor]
    biases: list[Tensor]

    @property
    def theta(self) -> Tensor:
        """As the parameters of `ReluDag.layered`."""
        return torch.cat([part.flatten() for part in (*self.weights, *self.biases)])

    @classmethod
    def of(cls, theta: Tensor, widths: Sequence[int]) -> Layers:
        """The same the other way round."""
        shapes = list(zip(widths, widths[1:], strict=False))
        parts = theta.split([*(a * b for a, b in shapes), *widths[1:]])
        weights = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=False)]
        return cls(weights, list(parts[len(shapes) :]))

    def normalised(self) -> Layers:
        """Rescaled so that what enters a hidden neuron, with its bias, has norm 1."""
        weights, biases = list(self.weights), list(self.biases)
        for k in range(len(weights) - 1):
            norms = torch.hypot(weights[k].norm(dim=0), biases[k])
            weights[k], biases[k] = weights[k] / norms, biases[k] / norms
            weights[k + 1] = norms[:, None] * weights[k + 1]
        return Layers(weights, biases)


def drawn(random: torch.Generator, widths: Sequence[int], x: Tensor, kind: str = "plain") -> Tensor:
    """θ with normal weights of variance 1/width, whose hidden neurons switch within the samples x (n, inputs).

    Parameters
    ----------
    random : torch.Generator
    widths : sequence of int
    x : Tensor (n, inputs)
    kind : str
        "plain"; "dead": the first neuron of the last hidden layer is active at no sample; "twin": of the first two
        neurons of the first layer, the one is a multiple of the other; "unadapted": normal biases of variance ¼ in the
        place of the quantiles, with which some neurons do not switch.

    Raises
    ------
    RuntimeError
        If no draw has neurons that switch.
    """
    for _ in range(_TRIES):
        layers, resting = _layers(random, widths, x, kind)
        if kind == "unadapted" or all(_LEAST <= share <= _MOST for share in resting):
            return layers.theta
    raise RuntimeError(f"none of {_TRIES} networks of widths {list(widths)} has neurons that switch; take more samples")


def _layers(random: torch.Generator, widths: Sequence[int], x: Tensor, kind: str) -> tuple[Layers, list[float]]:
    """One draw, and the shares of the samples at which its neurons rest; that of a dead one is not listed."""
    weights, biases, last, resting = [], [], len(widths) - 3, []
    for k, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        W = normal(random, a, b) / a**0.5
        if k == 0 and kind == "twin":
            W[:, 1] = _TWIN * W[:, 0]
        sums, bias = x @ W, normal(random, b) / 2
        if k <= last:
            if kind != "unadapted":
                shares = _LOW + (_HIGH - _LOW) * torch.rand(b, generator=random, dtype=torch.float64, device="cpu")
                quantiles = [torch.quantile(sums[:, j], float(shares[j])) for j in range(b)]
                # Where all neurons before it rest, all samples have one sum, and that must not be the switch itself.
                bias = _BESIDE * sums.std(0) * normal(random, b) - torch.stack(quantiles)
            if k == 0 and kind == "twin":
                bias[1] = _TWIN * bias[0]
            dead = k == last and kind == "dead"
            if dead:
                bias[0] = -sums[:, 0].max() - 1
            x = torch.relu(sums + bias)
            resting += (x == 0).double().mean(0)[int(dead) :].tolist()
        weights.append(W)
        biases.append(bias)
    return Layers(weights, biases), resting


@contextmanager
def forward_mode() -> Iterator[None]:
    """Without the deprecation warning that torch's own forward mode raises about its use of torch.jit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\..*")
        yield


def jacobian(dag: ReluDag, theta: Tensor, x: Tensor) -> Tensor:
    """∂(outputs at the samples)/∂θ, (n · outputs, parameters)."""

    def outputs(point: Tensor, sample: Tensor) -> Tensor:
        return dag.forward(point, sample[None])[0]

    with forward_mode():
        found: Tensor = torch.func.vmap(torch.func.jacrev(outputs), (None, 0))(theta, x)
    return found.flatten(0, 1)


def rank(J: Tensor) -> Rank:
    """Its rank, by the triangular factor of J."""
    return rank_of(torch.linalg.svdvals(torch.linalg.qr(J, mode="r").R))


class Seen(NamedTuple):
    """Which weights and biases, as in `Layers`, the outputs depend on at some sample, and how many hidden neurons."""

    weights: list[Tensor]
    biases: list[Tensor]
    neurons: int

    @property
    def bound(self) -> int:
        """Parameters less neurons: the rank is no larger, since rescaling a neuron changes no output."""
        return sum(int(part.sum()) for part in (*self.weights, *self.biases)) - self.neurons

    @property
    def shared(self) -> int:
        """What twins in the first layer take from that.

        The weights out of them have the same derivatives, up to a factor. If there is one each, those into them have,
        too.
        """
        out = int(self.weights[1][0].sum())
        return out if out > 1 else int(self.weights[0][:, 0].sum()) + 1


def seen(dag: ReluDag, widths: Sequence[int], theta: Tensor, x: Tensor) -> Seen:
    """What the outputs depend on, by activations alone.

    A weight counts where what it leads from is active at a sample at which what it leads to is active, and has a path
    of active neurons to an output.
    """
    active = list((dag.preactivations(theta, x) > 0).split(list(widths[1:-1]), dim=-1))
    everywhere = torch.ones(len(x), 1, dtype=torch.bool, device=x.device)
    ends = everywhere.expand(-1, widths[-1])
    starts = [everywhere.expand(-1, widths[0]), *active]
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for start in reversed(starts):
        weights.insert(0, start.double().mT @ ends.double() > 0)
        biases.insert(0, ends.any(0))
        ends = start & ends.any(-1, keepdim=True)
    return Seen(weights, biases, sum(int(hidden.sum()) for hidden in biases[:-1]))


def recovered(dag: ReluDag, x: Tensor, outputs: Tensor, start: Tensor) -> Tensor:
    """θ whose outputs at the samples x are the given ones, by least squares from a start."""

    def rest(point: np.ndarray) -> np.ndarray:
        found: np.ndarray = (dag.forward(torch.as_tensor(point).to(x), x) - outputs).flatten().cpu().numpy()
        return found

    def slope(point: np.ndarray) -> np.ndarray:
        found: np.ndarray = jacobian(dag, torch.as_tensor(point).to(x), x).cpu().numpy()
        return found

    # "lm" of SciPy takes other steps where its memory happens to lie otherwise, so that no two runs were the same.
    found = least_squares(
        rest, start.cpu().numpy(), slope, method="trf", xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=_STEPS
    )
    return torch.as_tensor(found.x).to(x)


def path_slopes(dag: ReluDag, theta: Tensor) -> Tensor:
    """∂Φ, (paths, parameters); at θ = 1 it tells which parameters are on which path."""
    with forward_mode():
        slopes: Tensor = torch.func.jacfwd(dag.lifting)(theta)
    return slopes


def from_paths(dag: ReluDag, theta: Tensor) -> Tensor:
    """θ up to rescaling from Φ(θ) and the signs of θ: log |Φ| is linear in log |θ|, a row for each path."""
    incidence = path_slopes(dag, torch.ones_like(theta))
    # Its normal equations are small, and singular by the rescalings: the shortest solution is as good as any.
    inverse = torch.linalg.pinv(incidence.mT @ incidence, hermitian=True, rtol=1e-10)
    logs = inverse @ (incidence.mT @ dag.lifting(theta).abs().log())
    return theta.sign() * logs.exp()
