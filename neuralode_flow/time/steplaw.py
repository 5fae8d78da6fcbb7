"""The conserved quantity of a flow under steps along its gradient: it moves by what the steps themselves say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..depth.engine import Stepped
from ..flows.capabilities import KnowsMomentumLaw, KnowsStepLaw, offers

# Of larger matrices the law is followed along so many directions, at a cost that a velocity does not notice.
_DIRECTIONS = 4


class StepLaw:
    """How far the law is from where steps along gradients have taken it.

    For a step Δ the law moves by ΔᵀΔ − ΔΔᵀ, whatever the loss (docs/math.md). Matrices of up to 4 × 4 are followed
    whole; of larger ones VᵀEV of a distance E, symmetric, for 4 orthonormal directions V in general position. Over
    all V the mean of ‖VᵀEV‖² is (a + b) ‖E‖² + b (tr E)² (derived here), so that ‖VᵀEV‖ / √(a + b) estimates ‖E‖,
    and is zero only where nothing is wrong; an E that is a multiple of the identity counts more than once.

    Parameters
    ----------
    flow : KnowsStepLaw
    start : Tensor
        The state whose law is the first.

    Attributes
    ----------
    memory : dict
        What steps have done so far, tensors by name, for a checkpoint. A step puts new ones there.
    """

    def __init__(self, flow: Any, start: Tensor) -> None:
        d = start.shape[-1]
        number = min(d, _DIRECTIONS)
        random = torch.randn(d, number, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
        directions = torch.linalg.qr(random)[0] if number < d else torch.eye(d, dtype=torch.float64, device="cpu")
        self.flow, self.directions, self.scale = flow, directions.to(start).contiguous(), _scale(d, number)
        self.first = self._seen(flow.law(start))
        self._step = torch.zeros_like(start)  # one place for all: new memory takes as long as the subtraction
        self.memory = {"law": self._moved_by(self._step)}

    @staticmethod
    def known(flow: Any) -> bool:
        """Whether the law of a flow moves in steps as it should: exactly so."""
        return offers(flow, KnowsStepLaw) and flow.step_law_is_exact

    def step(self, state: Tensor, following: Tensor) -> None:
        """Takes into account that a step has led from a state to the one that follows."""
        self.memory["law"] = self.memory["law"] + self._moved_by(self._between(state, following))

    def follow(self, state: Tensor, direction: Tensor, rate: float) -> Stepped:
        """state + rate · direction, a step that is taken into account in the same reading; the direction is lost."""
        step: Stepped = self.flow.stepped(state, direction, rate, self.directions, self.memory["law"])
        self.memory["law"] = step.added
        return step

    def descend(self, state: Tensor, rate: float) -> Stepped:
        """`follow` along the velocity of a flow that `Descends`."""
        step: Stepped = self.flow.descended(state, rate, self.directions, self.memory["law"])
        self.memory["law"] = step.added
        return step

    def drift(self, state: Tensor) -> Tensor:
        """The largest distance over depth, `(...)`."""
        missed = self._seen(self.flow.law(state)) - self._said()
        if missed.shape[-3] == 0:
            return missed.new_zeros(missed.shape[:-3])
        return self.scale * torch.linalg.matrix_norm(missed).amax(-1)

    def _said(self) -> Tensor:
        """Where the steps have taken the law, seen from the directions."""
        return self.first + self.flow.law_of_steps(self.memory["law"])

    def _between(self, state: Tensor, following: Tensor) -> Tensor:
        return torch.sub(following, state, out=self._step)

    def _moved_by(self, step: Tensor) -> Tensor:
        found: Tensor = self.flow.step_law(step, self.directions)
        return found

    def _seen(self, law: Tensor) -> Tensor:
        return self.directions.mT @ law @ self.directions


class MomentumLaw(StepLaw):
    """Of heavy ball from rest, V_{n+1} = β V_n − η g_n: C_{n+1} = C_n + β M_n + q_n, M_{n+1} = β M_n + 2 q_n.

    Here q_n = ΔᵀΔ − ΔΔᵀ for the step Δ = V_{n+1}, and M_n = N_n + N_nᵀ starts from 0 (docs/math.md).
    """

    def __init__(self, flow: Any, start: Tensor, momentum: float) -> None:
        super().__init__(flow, start)
        self.momentum = momentum
        self.memory["law_carried"] = torch.zeros_like(self.memory["law"])

    def step(self, state: Tensor, following: Tensor) -> None:
        q = self._moved_by(self._between(state, following))
        moved = self.momentum * self.memory["law_carried"] + q
        self.memory |= {"law": self.memory["law"] + moved, "law_carried": moved + q}


class DecayLaw(StepLaw):
    """Of steps −η g after what they start from was multiplied by c: C_{n+1} = c² C_n + ΔᵀΔ − ΔΔᵀ, Δ = −η g_n.

    Where W decays, (1 − c) S'_{n+1} is added, S = W + Wᵀ; where layers decay they do so to `origin` (docs/math.md).
    """

    def __init__(self, flow: Any, start: Tensor, kept: float, origin: Tensor | None = None) -> None:
        super().__init__(flow, start)
        self.kept, self.origin = kept, origin
        self.memory["law_kept"] = torch.ones((), dtype=start.dtype, device=start.device)
        if origin is None:
            self.memory["law_left"] = torch.zeros_like(start)

    @staticmethod
    def known(flow: Any) -> bool:
        return StepLaw.known(flow) and offers(flow, KnowsMomentumLaw)

    def step(self, state: Tensor, following: Tensor) -> None:
        c, had = self.kept, self.memory
        pushed = following - c * state - (0 if self.origin is None else (1 - c) * self.origin)
        self.memory |= {"law": c**2 * had["law"] + self._moved_by(pushed), "law_kept": c**2 * had["law_kept"]}
        if self.origin is None:
            self.memory["law_left"] = c**2 * had["law_left"] + (1 - c) * following

    def _said(self) -> Tensor:
        said = self.memory["law_kept"] * self.first + self.flow.law_of_steps(self.memory["law"])
        if self.origin is None:
            W = self.memory["law_left"]
            said = said + self._seen(self.flow.momentum_law(torch.zeros_like(W), W + W.mT))
        return said


def _scale(d: int, k: int) -> float:
    """1/√(a + b), where E[P_ij P_kl] = a δ_ij δ_kl + b (δ_ik δ_jl + δ_il δ_jk) of a random projection P of rank k."""
    if k == d:
        return 1.0
    a = k * (k * (d + 1) - 2) / (d * (d + 2) * (d - 1))
    b = (k - a * d) / (d * d + d)
    return float((a + b) ** -0.5)
