"""Does gradient flow on θ close on z = φ(θ)? The criteria, with the numbers that decided them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import float_tensor
from ..flows.factorization import check_map, checked_map
from .derivatives import Map, along, each, jacobian
from .lie import lie_span
from .ranks import UNDECIDED, Rank, kernel, rank_of, stacked

Verdict = bool | str
Laws = Callable[[Any], Any] | Sequence[Callable[[Any], Any]]

# ∂M on the kernel, relative to ‖M‖/‖θ‖: up to METRIC_ZERO it vanishes, from METRIC_NONZERO on it does not.
METRIC_ZERO, METRIC_NONZERO = 1e-9, 1e-6

# A given law may turn by this much along a gradient of φ, as the sine of their angle.
_LAW = 1e-9


@dataclass(frozen=True)
class Report:
    """What is known of φ at θ. A verdict is True, False or "undecided": compare with `is True`.

    Attributes
    ----------
    dimension : int
        n, the numbers in θ.
    rank : int or "undecided"
        Of ∂φ(θ).
    recoverable : True, False or "undecided"
        Criterion A, ker ∂φ ∩ ker ∂h = {0}: locally θ is a function of (z, h), and the flow closes on z.
    metric : True, False or "undecided"
        Criterion B, ∂M = 0 on ker ∂φ ∩ ker ∂h with M = ∂φ ∂φᵀ: necessary for ż to be a function of z and h alone, so
        that False is a proof; True is one only where `recoverable` is.
    laws : int or "undecided"
        Number of independent laws: of those given, the rank of ∂h(θ); else n − dim Lie(∇φ)(θ).
    evidence : mapping of str to Rank
        "rank", "kernel" (of ∂φ and ∂h together), "laws", and "lie" (n − dim Lie, also where laws were given).
    metric_size : float
        The largest ‖∂M[v]‖ over unit v in that kernel, Frobenius norm; 0 for an empty kernel.
    metric_scale : float
        ‖M‖/‖θ‖, what metric_size is compared with.
    direction : Tensor or None
        The v (of the shape of θ) where it is attained; None for an empty kernel.
    """

    dimension: int
    rank: int | str
    recoverable: Verdict
    metric: Verdict
    laws: int | str
    evidence: Mapping[str, Rank]
    metric_size: float
    metric_scale: float
    direction: Tensor | None

    @property
    def undecided(self) -> bool:
        """Whether any verdict is."""
        return UNDECIDED in (self.rank, self.recoverable, self.metric, self.laws)

    def __str__(self) -> str:
        relative = self.metric_size / self.metric_scale if self.metric_scale else 0.0
        change = f"‖∂M‖ on the kernel: {self.metric_size:.1e}, relative {relative:.1e}"
        lines = {
            "dimension of θ": str(self.dimension),
            "rank of ∂φ": str(self.evidence["rank"]),
            "independent laws": str(self.evidence["laws"]),
            "n − dim Lie(∇φ)": str(self.evidence["lie"]),
            "A: recoverable": f"{self.recoverable}  [rank of (∂φ, ∂h): {self.evidence['kernel']}]",
            "B: metric property": f"{self.metric}  [{change}]",
        }
        width = max(map(len, lines))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def report(phi: Callable[[Any], Tensor], theta: Any, laws: Laws | None = None) -> Report:
    """The intrinsic property of a factorisation z = φ(θ) at θ.

    Parameters
    ----------
    phi : callable, θ → z
        Any function written in torch, without side effects.
    theta : Tensor, or a tuple, list or dict of tensors
        Where to look; φ and the laws are called with the same structure.
    laws : callable, θ → h, or a list of them, optional
        Conserved quantities: a tensor of any shape, or a tuple or list of tensors. Without them the criteria take all
        local laws that exist: by the theorem of Frobenius their gradients are orthogonal to Lie(∇φ)(θ) and span what
        is.

    Returns
    -------
    Report

    Raises
    ------
    TypeError, ValueError
        If φ, θ or the laws are of another kind, not finite, or what is given as a law is not conserved.

    Notes
    -----
    Marcotte, Peyré, Gribonval, arXiv 2508.07370: theorems 2.17 (A) and 2.14 (B). All derivatives are exact to
    round-off; ranks are decided by gaps in singular values, see Rank.
    """
    check_map("phi", phi)
    h = None if laws is None else _together(laws)
    point, rebuilt = _flattened(theta)
    if isinstance(theta, Tensor):
        checked_map("phi", phi, theta)
        if h is not None:
            checked_map("laws", h, theta, depends=False)

    def flat_phi(vector: Tensor) -> Tensor:
        return phi(rebuilt(vector)).reshape(-1)

    n = len(point)
    J = jacobian(flat_phi, point)
    rank = rank_of(torch.linalg.svdvals(J))
    generator = torch.Generator().manual_seed(0)
    span, lie, level = lie_span(flat_phi, point, generator)
    # At a point that is not generic the brackets may come late: a random point nearby tells how far to go.
    nearby = point + 0.1 * point.abs().mean() * torch.randn(n, generator=generator, dtype=point.dtype).to(point)
    needed = lie_span(flat_phi, nearby, generator)[2]
    if needed > level:
        span, lie, _ = lie_span(flat_phi, point, generator, levels=needed)
    evidence = {"rank": rank, "lie": lie.minus_from(n)}
    if h is None:
        evidence["laws"] = evidence["lie"]
        # ker ∂h is the span of the brackets: its complement takes the place of ∂h.
        dh = kernel(span)[0].mT if len(span) else torch.eye(n).to(point)
    else:
        dh = jacobian(lambda vector: h(rebuilt(vector)), point)
        _check_conserved(J, dh)
        evidence["laws"] = rank_of(torch.linalg.svdvals(dh))
    basis, evidence["kernel"] = kernel(stacked(J, dh))
    size, direction = _metric_change(flat_phi, point, J, basis)
    scale = float(torch.linalg.matrix_norm(J @ J.mT if len(J) <= n else J.mT @ J)) / max(float(point.norm()), 1e-300)
    doubtful = not all(evidence[name].decided for name in ("rank", "laws", "kernel"))
    return Report(
        dimension=n,
        rank=rank.verdict,
        recoverable=UNDECIDED if doubtful else basis.shape[1] == 0,
        metric=UNDECIDED if doubtful else metric_verdict(size, scale),
        laws=evidence["laws"].verdict,
        evidence=evidence,
        metric_size=size,
        metric_scale=scale,
        direction=None if direction is None else rebuilt(direction),
    )


def _together(laws: Laws) -> Callable[[Any], Tensor]:
    """The laws as one function that returns one vector."""
    functions: list[Any] = list(laws) if isinstance(laws, (list, tuple)) else [laws]
    for function in functions:
        check_map("laws", function)

    def flat(value: Any) -> list[Any]:
        if isinstance(value, (list, tuple)):
            return [part for item in value for part in flat(item)]
        return [value.reshape(-1) if isinstance(value, Tensor) else value]

    def together(theta: Any) -> Tensor:
        parts = [part for function in functions for part in flat(function(theta))]
        for part in parts:
            if not isinstance(part, Tensor):
                raise TypeError(f"laws must return a tensor, or several, got {type(part).__name__}")
        return torch.cat(parts)

    return together


def metric_verdict(size: float, scale: float) -> Verdict:
    """Criterion B from the largest ‖∂M[v]‖ over unit v, and what it is compared with."""
    if size <= METRIC_ZERO * scale:
        return True
    return False if size >= METRIC_NONZERO * scale else UNDECIDED


def _metric_change(phi: Map, theta: Tensor, J: Tensor, basis: Tensor) -> tuple[float, Tensor | None]:
    """The largest ‖∂M[v]‖ over unit v in the span of a basis (n, k), and that v; M = J Jᵀ."""
    if not basis.shape[1]:
        return 0.0, None
    changes = each(lambda v: along(lambda point: jacobian(phi, point), theta, v), basis.mT.contiguous())
    columns = torch.cat((J, *changes), dim=1)
    if columns.shape[1] < len(J):  # many z and few θ: in an orthonormal basis of all that takes part
        Q = torch.linalg.qr(columns).Q
        J, changes = Q.mT @ J, Q.mT @ changes
    half = changes @ J.mT
    _, values, Vh = torch.linalg.svd((half + half.mT).reshape(len(half), -1).mT, full_matrices=False)
    return float(values[0]), basis @ Vh[0]


def _check_conserved(J: Tensor, dh: Tensor) -> None:
    """Raises ValueError unless every gradient of a law is orthogonal to all gradients of φ."""
    slope = (dh @ J.mT).abs()
    sizes = torch.linalg.vector_norm(dh, dim=1, keepdim=True) * torch.linalg.vector_norm(J, dim=1)
    allowed = _LAW * sizes + _LAW**2 * sizes.max() if sizes.numel() else sizes
    if bool((slope > allowed).any()):
        i, j = divmod(int((slope - allowed).argmax()), slope.shape[1])
        raise ValueError(
            f"laws must be conserved by every gradient flow of f∘φ, but entry {i} is not: its gradient has the product "
            f"{float(slope[i, j]):.3g} with that of entry {j} of φ; leave it out, or give laws=None"
        )


def _flattened(theta: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """θ as one float64 vector, and the function that gives a vector the structure of θ."""
    if isinstance(theta, Tensor):
        vector = float_tensor("theta", theta).detach().double()
        return vector.reshape(-1), lambda v: v.reshape(theta.shape)
    if not isinstance(theta, (tuple, list, Mapping)) or not theta:
        raise TypeError(f"theta must be a tensor, or a tuple, list or dict of tensors, got {type(theta).__name__}")
    names = list(theta) if isinstance(theta, Mapping) else list(range(len(theta)))
    parts = [float_tensor(f"theta[{name!r}]", theta[name]).detach().double() for name in names]
    sizes = [part.numel() for part in parts]

    def rebuilt(vector: Tensor) -> Any:
        pieces = [piece.reshape(part.shape) for piece, part in zip(vector.split(sizes), parts, strict=True)]
        return dict(zip(names, pieces, strict=True)) if isinstance(theta, Mapping) else type(theta)(pieces)

    return torch.cat([part.reshape(-1) for part in parts]), rebuilt
