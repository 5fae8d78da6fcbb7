"""The training flow of a finite linear network of L layers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from ..checks import count, unpatched
from ..depth.engine import Stepped, choose, explicit
from ..depth.engine.explicit import Legs, Ran, Tableau, Tried
from ..depth.grid import Profile, sample_each
from ..depth.products import identity_like
from ..depth.rules import LAYERS, LayerRule, check_rule
from ..depth.rules.euler import Euler
from ..depth.rules.rk2 import RK2
from ..display import counted
from ..laws import euler_law, euler_momentum_law, relaxed_balance, symmetric_law
from ..losses import Loss, check_square_loss
from ..losses.base import repeats
from ..modes import undisturbed
from ..registry import unknown_name
from .base import check_layers, check_matrices, flow_said, own_velocity, place_of

# Layers count as relaxed balanced where their law is as near as that to multiples of I, relative to ‖U_k‖².
_BALANCED = 1e-11

SAMPLINGS = {"midpoint": 0.5, "left": 0.0}
# The highest order in 1/L that a rule which sees one W_k can have: that of the quadrature.
SAMPLING_ORDERS = {"midpoint": 2.0, "left": 1.0}


def _alike(one: LayerRule, other: LayerRule) -> bool:
    """Whether two rules are of one class and hold the same, as far as that can be told."""
    mine, theirs = (getattr(rule, "__dict__", {}) for rule in (one, other))
    if type(one) is not type(other) or mine.keys() != theirs.keys():
        return False
    pairs = [(value, theirs[key]) for key, value in mine.items()]
    with suppress(Exception):  # whatever a comparison of the user's objects raises
        return all(torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b) for a, b in pairs)
    return False


def starts(flows: Sequence[FiniteFlow], W0: Profile) -> list[Tensor]:
    """`sample` of several networks, whose depths are looked at together."""
    depths, layers = [flow.nodes for flow in flows], getattr(W0, "layers", None)
    states = sample_each(W0, *depths) if layers is None else [layers(nodes) for nodes in depths]
    states = [state.to(place_of(flow.loss)) for flow, state in zip(flows, states, strict=True)]
    for flow, state in zip(flows, states, strict=True):
        flow.check(state)
    return states


class FiniteFlow:
    """dW_k/dt = −L ∂f/∂W_k, the gradient flow of f(U_L … U_1) with U_k = rule(W_k/L).

    The factor L is the L² inner product over depth; it is what makes the limit L → ∞ exist.

    Parameters
    ----------
    depth : int
        L >= 1.
    loss : Loss
    layer : str or LayerRule
        "euler", "rk2", "cayley", "exp".
    sampling : {"midpoint", "left"}
        `sample` puts W0((k − ½)/L) or W0((k − 1)/L) into layer k = 1 … L.

    Raises
    ------
    TypeError, ValueError
        If depth is not a positive integer, a name is unknown, or loss or layer is none.

    Examples
    --------
    >>> flow = nf.FiniteFlow(depth=8, loss=nf.Quadratic(2 * torch.eye(2)), layer="cayley")
    >>> path = nf.integrate(flow, nf.identity(2), [0.0, 4.0], "DOP853", rtol=1e-10, atol=1e-12)
    >>> path.status, float((path.z[-1] - 2 * torch.eye(2)).abs().max()) < 1e-5
    ('ok', True)
    """

    def __init__(self, depth: int, loss: Loss, layer: str | LayerRule = "euler", sampling: str = "midpoint") -> None:
        self.depth = count("depth", depth)
        check_square_loss("loss", loss)
        self.loss = loss
        self.rule: LayerRule = LAYERS[layer] if isinstance(layer, str) else layer
        check_rule("layer", self.rule)
        if not isinstance(sampling, str) or sampling not in SAMPLINGS:
            raise ValueError(unknown_name("sampling", sampling, list(SAMPLINGS)))
        self.sampling = sampling

    def __repr__(self) -> str:
        names = [name for name, rule in LAYERS.items() if rule is self.rule]
        names += [name for name, rule in LAYERS.items() if _alike(rule, self.rule)]  # one that was copied, or pickled
        names.append(type(self.rule).__name__)
        sampling = "" if self.sampling == "midpoint" else f"{self.sampling} nodes"
        return flow_said(self, counted(self.depth, f"{names[0]} layer"), sampling)

    @property
    def repeats(self) -> bool:
        """Whether the velocity does the same operations whatever the numbers are: as the loss and the rule say."""
        return type(self) is FiniteFlow and type(self.rule) in (Euler, RK2) and repeats(self.loss)

    @property
    def factors(self) -> int:
        """How many matrices are multiplied to z."""
        return self.depth

    @property
    def nodes(self) -> Tensor:
        """The depth s_k that stands for layer k, shape (L,), where the loss is."""
        layers = torch.arange(self.depth, dtype=torch.float64, device=place_of(self.loss))
        return (layers + SAMPLINGS[self.sampling]) / self.depth

    def sample(self, W0: Profile) -> Tensor:
        """W0 on the layers' depths: the state `(..., L, d, d)`, where the loss is.

        A profile with a method `layers` gives them itself.
        """
        return starts([self], W0)[0]

    def check(self, state: Tensor) -> None:
        """Raises TypeError or ValueError unless the state has L layers and fits the loss."""
        check_layers(state, self.depth, "layers")
        check_matrices("state", state, self.loss, 3)

    def keeps_sign(self, state: Tensor) -> Tensor:
        """Whether the exact flow from a state keeps the sign of det z, `(...)`.

        Known of layers U_{k+1}ᵀU_{k+1} − U_kU_kᵀ = λ_k I whose least c_k = λ_1 + … + λ_{k−1} is attained twice, of a
        rule with a quadratic law: they become singular together, and then z does not move across (docs/math.md).
        """
        if not self.rule.quadratic_law:
            return torch.zeros(state.shape[:-3], dtype=torch.bool, device=state.device)
        lam, off, scale = relaxed_balance(self.rule.layer(state / self.depth)[0])
        c = torch.nn.functional.pad(lam, (1, 0)).cumsum(-1)
        small = max(_BALANCED, 100 * torch.finfo(state.dtype).eps) * scale
        twice = (c - c.amin(-1, keepdim=True) <= small.unsqueeze(-1)).sum(-1) > 1
        return twice & (off <= small)

    @undisturbed
    def velocity(self, state: Tensor) -> Tensor:
        """−L ∂f/∂W_k, shape `(..., L, d, d)`: the exact gradient for every layer rule."""
        check_layers(state, self.depth, "layers")
        return choose(state).chain(state, self._downhill, self.rule, self.depth)

    def knows_steps(self, state: Tensor) -> bool:
        """Whether the compiled engine has the rule and takes such a state."""
        own = type(self) is FiniteFlow and own_velocity(self, FiniteFlow) and "_downhill" not in vars(self)
        return own and explicit.takes(state.unsqueeze(0), self.rule)

    def explicit_steps(self, states: Tensor, slopes: Tensor, h: np.ndarray, tableau: Tableau) -> Tried | None:
        """A step of each state `(n, ..., L, d, d)` along its slope, of size h `(n,)`, by an explicit formula."""
        check_layers(states, self.depth, "layers")
        return explicit.steps(self._steps_of(states), states, slopes, h, self.loss, tableau)

    def explicit_runs(self, states: Tensor, slopes: Tensor, legs: Legs, tableau: Tableau) -> Ran | None:
        """Steps of states `(n, L, d, d)`, each on its way to a time."""
        check_layers(states, self.depth, "layers")
        own = unpatched(FiniteFlow, "product") and "product" not in vars(self)
        return explicit.runs(self._steps_of(states), states, slopes, legs, self.loss, tableau, maps=own)

    def _steps_of(self, states: Tensor) -> explicit.Model | None:
        return explicit.of_layers(states.shape[-3], self.rule, self.depth)

    def _downhill(self, z: Tensor) -> Tensor:
        return -self.loss.gradient(z)

    @undisturbed
    def product(self, state: Tensor) -> Tensor:
        """z = U_L … U_1, shape `(..., d, d)`."""
        check_layers(state, self.depth, "layers")
        return choose(state).chain(state, rule=self.rule, depth=self.depth)

    @property
    def step_law_is_exact(self) -> bool:
        """Of Euler layers: the steps are those of the U_k."""
        return type(self.rule) is Euler

    def step_law(self, step: Tensor, directions: Tensor) -> Tensor:
        """Vᵀ(Δ_{k+1}ᵀΔ_{k+1} − Δ_kΔ_kᵀ)V for directions V: what a step Δ of Euler layers adds to the law."""
        right, left = choose(step).grams(step, directions)
        return right[..., 1:, :, :] - left[..., :-1, :, :]

    def stepped(self, state: Tensor, velocity: Tensor, rate: float, directions: Tensor, added: Tensor) -> Stepped:
        """state + rate · velocity, and `added` with the `step_law` of that step; the velocity is lost."""
        return choose(state).stepped(state, velocity, rate, directions, added, apart=1)

    @undisturbed
    def descended(self, state: Tensor, rate: float, directions: Tensor, added: Tensor) -> Stepped:
        """`stepped` along the velocity at the state: each layer moves when its velocity is found."""
        if not own_velocity(self, FiniteFlow):
            return self.stepped(state, self.velocity(state).clone(), rate, directions, added)
        check_layers(state, self.depth, "layers")
        return choose(state).descend_chain(state, self._downhill, self.rule, self.depth, rate, directions, added)

    def law_of_steps(self, added: Tensor) -> Tensor:
        """By how much steps that have added so much have moved Vᵀ `law` V."""
        return added

    def momentum_law(self, state: Tensor, velocity: Tensor) -> Tensor:
        """L²(U_{k+1}ᵀU̇_{k+1} − U̇_kU_kᵀ) of Euler layers that move at V = L U̇: `(..., L−1, d, d)`."""
        check_layers(state, self.depth, "layers")
        return euler_momentum_law(state, velocity)

    def law(self, state: Tensor) -> Tensor:
        """The law between neighbouring layers, `(..., L−1, d, d)`: exact for Euler layers, else up to O(1/L²)."""
        check_layers(state, self.depth, "layers")
        if not self.rule.quadratic_law:
            return symmetric_law(state)
        if type(self.rule) is Euler:
            return euler_law(state)
        U = self.rule.layer(state / self.depth)[0]
        return euler_law(self.depth * (U - identity_like(U)))
