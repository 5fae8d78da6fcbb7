"""The intrinsic flow without a formula: θ is recovered from (z, h) by Newton's method."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import float_tensor, same_kind
from ..flows.factorization import check_map, checked_map
from ..losses import Loss, check_loss
from .derivatives import Map, jacobian
from .place import Place

_MOST_STEPS = 50

# Steps below this part of θ are round-off; a search whose steps no longer shrink ends there.
_CONVERGED, _STALLED = 1e-14, 1e-9


def recover(phi: Map, laws: Map, z: Tensor, h: Tensor, near: Tensor) -> Tensor:
    """The θ closest to `near` with φ(θ) = z and h(θ) = h, where they determine θ locally (criterion A).

    Gauss–Newton steps: they converge quadratically, and to the least-squares solution where z is slightly off the image
    of φ, as the stages of a solver in time are.

    Parameters
    ----------
    phi, laws : callable
        θ (n,) → z, θ → h, of any shapes.
    z, h : Tensor
        What φ and the laws are to be.
    near : Tensor (n,)
        Where the search starts.

    Returns
    -------
    Tensor (n,)

    Raises
    ------
    FloatingPointError
        If the search does not converge: z is too far from φ(near), or θ is not determined there.

    Examples
    --------
    >>> phi, laws = (lambda theta: theta[0] * theta[1]), (lambda theta: theta[0] ** 2 - theta[1] ** 2)
    >>> theta = nf.intrinsic.recover(phi, laws, torch.tensor(2.0), torch.tensor(3.0), near=torch.tensor([1.9, 1.2]))
    >>> [round(entry, 12) for entry in theta.tolist()]
    [2.0, 1.0]
    """
    return _search(phi, laws, z, h, near)[0]


def _search(phi: Map, laws: Map, z: Tensor, h: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """The recovered θ, and ∂φ there."""
    m = z.numel()
    wanted = torch.cat((z.reshape(-1), h.reshape(-1)))

    def both(theta: Tensor) -> Tensor:
        return torch.cat((phi(theta).reshape(-1), laws(theta).reshape(-1)))

    theta, last = near, float("inf")
    for _ in range(_MOST_STEPS):
        J = jacobian(both, theta)
        step = torch.linalg.lstsq(J, (wanted - both(theta)).unsqueeze(-1)).solution.squeeze(-1)
        theta = theta + step
        size = float(torch.linalg.vector_norm(step)) / max(float(torch.linalg.vector_norm(theta)), 1e-300)
        if size <= _CONVERGED or (size <= _STALLED and size >= last / 2):
            return theta, J[:m]
        if not size < float("inf"):
            break
        last = size
    raise FloatingPointError(
        f"θ could not be recovered from z and the laws: the search from the θ before did not converge in "
        f"{_MOST_STEPS} steps (last step {last:.2g} of ‖θ‖); z has left the image of φ, or θ is not determined there"
    )


class RecoveredFlow:
    """ż = −M(θ(z, h₀)) ∇f(z), M = ∂φ ∂φᵀ: a flow in z alone, where (z, h) determine θ (arXiv 2508.07370, theorem 2.17).

    Parameters
    ----------
    phi, laws : callable
        θ (n,) → z and θ → h, of any shapes.
    theta : Tensor (n,)
        θ₀: it gives h₀, and the branch of θ that is followed from z₀ = φ(θ₀) on.
    loss : Loss

    Raises
    ------
    TypeError, ValueError
        If phi, laws, theta or loss is of another kind, or θ is not recoverable at θ₀.

    Notes
    -----
    The search starts at the θ that was found last, so that one object follows one run. A step that is too long for it
    ends the run with a sentence.

    Examples
    --------
    >>> phi, laws = (lambda theta: theta[0] * theta[1]), (lambda theta: theta[0] ** 2 - theta[1] ** 2)
    >>> theta, loss = torch.tensor([2.0, 1.0]), nf.Quadratic(torch.tensor(5.0))
    >>> closed = nf.integrate(nf.intrinsic.RecoveredFlow(phi, laws, theta, loss), phi(theta), [0.0, 1.0], rtol=1e-10)
    >>> whole = nf.integrate(nf.FactorizationFlow(phi, loss), theta, [0.0, 1.0], rtol=1e-10)
    >>> abs(float(closed.z[-1] - whole.z[-1])) < 1e-8
    True
    """

    def __init__(self, phi: Map, laws: Map, theta: Tensor, loss: Loss) -> None:
        check_map("phi", phi)
        check_map("laws", laws)
        check_loss("loss", loss)
        if float_tensor("theta", theta).ndim != 1:
            raise ValueError(f"theta must have shape (n,), got {tuple(theta.shape)}; flatten it")
        self.phi = phi
        self.laws = laws
        self.loss = loss
        self.start = checked_map("phi", phi, theta)
        self._h = checked_map("laws", laws, theta, depends=False)
        self._theta = theta.detach().clone()
        # In units of their own, so that none of z, the laws and θ drowns in another.
        place = Place.at(self._theta, phi, torch.Generator().manual_seed(0))
        rank = place.jacobian(phi).above(place.jacobian(laws)).rank
        if rank.rank < len(theta) or not rank.decided:
            raise ValueError(
                f"theta must be determined by z and the laws, but the rank of (∂φ, ∂h) is {rank} of {len(theta)}: "
                f"criterion A fails there"
            )

    def check(self, state: Tensor) -> None:
        """Raises TypeError or ValueError unless the state is like φ(θ₀)."""
        float_tensor("state", state)
        same_kind("state", state, "phi(theta)", self.start)
        if state.shape != self.start.shape:
            raise ValueError(
                f"state must have the shape {tuple(self.start.shape)} of phi(theta), got {tuple(state.shape)}"
            )

    def velocity(self, state: Tensor) -> Tensor:
        """ż, of the shape of z; FloatingPointError where θ cannot be recovered."""
        self._theta, J = _search(self.phi, self.laws, state, self._h, self._theta)
        return -(J @ (J.mT @ self.loss.gradient(state).reshape(-1))).reshape(state.shape)

    def product(self, state: Tensor) -> Tensor:
        """z is the state itself."""
        return state

    def law(self, state: Tensor) -> Tensor:
        """No function of z is conserved for every loss."""
        return state.new_empty(*self.loss(state).shape, 0, 1, 1)
