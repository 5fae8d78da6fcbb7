"""Does gradient flow on θ close on z = φ(θ)? The criteria, with the numbers that decided them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..checks import float_tensor, same_kind
from ..display import counted, html_table, said
from ..flows.factorization import check_map, checked_map
from ..modes import undisturbed
from .derivatives import jacobian
from .lie import SPREAD, Lie, lie_nearby, lie_span
from .metric import Change, MetricDerivative, Verdict, largest_change
from .place import Place
from .ranks import UNDECIDED, Rank
from .units import Measured

Laws = Callable[[Any], Any] | Sequence[Callable[[Any], Any]]

# A given law may change by this part of the terms of its change along a gradient of φ, and by this part of all of it.
_LAW, _ROUND_OFF = 1e-9, 1e-13

_TORN = "φ has no derivative at θ"


@dataclass(frozen=True, eq=False)
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
        Number of independent laws: of those given, the rank of ∂h(θ); else of all that exist on a neighbourhood of θ,
        n − dim Lie(∇φ) at a generic point of it.
    evidence : mapping of str to Rank
        "rank", "kernel" (of ∂φ and ∂h together), "laws", "lie" (n − dim Lie(∇φ)(θ), also where laws were given) and
        "nearby" (the same at a generic point near θ).
    metric_size : float
        The largest ‖∂M[v]‖ over unit v in that null space, Frobenius norm; 0 for an empty null space.
    metric_scale : float
        ‖M‖/‖θ‖, the size of ∂M to be expected where all entries of z, and all of θ, are of one size.
    direction : Tensor or None
        The v (of the shape of θ) where it is attained; None for an empty null space.
    metric_relative : float
        What decides `metric`: the largest ``|∂M_ij[v]|`` relative to its terms, the same in all units of z.
    singular : True, False or "undecided"
        Whether Lie(∇φ) has fewer dimensions at θ than at the points around it.

    Examples
    --------
    >>> report = nf.intrinsic.report(lambda theta: theta[0] * theta[1], torch.tensor([1.0, 2.0]))
    >>> print(report.evidence["laws"].rank, report.recoverable is True)
    1 True
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
    metric_relative: float = 0.0
    singular: Verdict = False

    @property
    def undecided(self) -> bool:
        """Whether any verdict is."""
        return UNDECIDED in (self.rank, self.recoverable, self.metric, self.laws)

    def __repr__(self) -> str:
        verdicts = f"A recoverable: {self.recoverable}", f"B metric: {self.metric}"
        return said(self, f"n={self.dimension}", f"rank {self.rank}", counted(self.laws, "law"), *verdicts)

    def __str__(self) -> str:
        lines = self._lines()
        width = max(map(len, lines))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())

    def _repr_html_(self) -> str:
        return html_table("Intrinsic property of z = φ(θ) at θ", self._lines().items())

    def _lines(self) -> dict[str, str]:
        """What is known, by its name."""
        change = f"‖∂M‖ on the kernel: {self.metric_size:.1e}, relative {self.metric_relative:.1e}"
        lines = {
            "dimension of θ": str(self.dimension),
            "rank of ∂φ": str(self.evidence["rank"]),
            "independent laws": str(self.evidence["laws"]),
            "n − dim Lie(∇φ)": str(self.evidence["lie"]),
        }
        if self.singular is not False:
            lines["singular point"] = f"{self.singular}  [n − dim Lie(∇φ) nearby: {self.evidence['nearby']}]"
        return lines | {
            "A: recoverable": f"{self.recoverable}  [rank of (∂φ, ∂h): {self.evidence['kernel']}]",
            "B: metric property": f"{self.metric}  [{change}]",
        }


@undisturbed
@torch.inference_mode(False)  # whose tensors take no part in derivatives
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
        laws that exist on a neighbourhood of θ: where Lie(∇φ) has as many dimensions at θ as around it, their gradients
        are all that is orthogonal to it, by the theorem of Frobenius.

    Returns
    -------
    Report

    Raises
    ------
    TypeError, ValueError
        If φ, θ or the laws are of another kind, not finite, φ has derivatives that are not its own (parts of it are
        detached, or a `backward` is wrong), or what is given as a law is not conserved.

    Notes
    -----
    Marcotte, Peyré, Gribonval, arXiv 2508.07370: theorems 2.17 (A) and 2.14 (B). All derivatives are exact to
    round-off; ranks are decided by gaps in singular values, see Rank, after scaling of rows and columns to one size.

    Where Lie(∇φ) has fewer dimensions at θ than around it, not all that is orthogonal to it comes from laws. But the
    laws near θ number n − g, with g the dimension around it, and rank ∂φ(θ) <= dim Lie(θ) < g: A is False there, and
    everywhere it is True just where rank ∂φ(θ) = g. The gradients of laws are still orthogonal to Lie(∇φ)(θ), so that
    B is False if ∂M ≠ 0 on ker ∂φ ∩ Lie(∇φ)(θ), and True if ∂M = 0 on all of ker ∂φ; else it is undecided.

    Examples
    --------
    >>> def phi(theta):
    ...     return theta[0] * theta[1]
    >>> report = nf.intrinsic.report(phi, torch.tensor([1.0, 2.0]))
    >>> report.rank, report.laws, report.recoverable, report.metric
    (1, 1, True, True)
    """
    check_map("phi", phi)
    h = None if laws is None else _together(laws)
    point, rebuilt = _flattened(theta)
    z = checked_map("phi", lambda vector: phi(rebuilt(vector)), point)
    same_kind("phi(theta)", z, "theta.double()", point)
    if h is not None:
        checked_map("laws", lambda vector: h(rebuilt(vector)), point, depends=False)

    def flat_phi(vector: Tensor) -> Tensor:
        return phi(rebuilt(vector)).reshape(-1)

    if not bool(jacobian(flat_phi, point).isfinite().all()):
        raise ValueError("phi must have a derivative at theta, but that of autograd is not finite; move theta")
    n = len(point)
    generator = torch.Generator().manual_seed(0)
    place = Place.at(point, flat_phi, generator)
    J = place.jacobian(flat_phi)
    even, around = lie_nearby(flat_phi, place, generator)
    spread = place.spread(J)
    lie = lie_span(even, place, generator, spread, around.level, around.rank.rank)
    generic = _generic(lie, around)
    if h is None:
        found = _with_all(J, lie, around, generic)
    else:
        dh = place.jacobian(lambda vector: h(rebuilt(vector)))
        check_conserved(J, dh)
        found = _with_given(J, dh)
    torn = not around.joined and place.torn(flat_phi)
    if torn:
        found = replace(found, recoverable=UNDECIDED, sure=False, rank=found.rank.doubted(_TORN))
    of_phi = J.rank.doubted(_TORN if torn else "")
    slopes = MetricDerivative(flat_phi, place, J, generator)
    change = slopes.on(found.inner)
    beyond = change if found.outer is found.inner else slopes.on(found.outer)
    size, direction = largest_change(flat_phi, point, J.values, found.inner)
    M = J.values @ J.values.mT if len(J.values) <= n else J.values.mT @ J.values
    return Report(
        dimension=n,
        rank=of_phi.verdict,
        recoverable=found.recoverable,
        metric=_metric(change, beyond, found.sure, spread <= SPREAD),
        laws=found.laws.verdict,
        evidence={
            "rank": of_phi,
            "kernel": found.rank,
            "laws": found.laws,
            "lie": lie.rank.minus_from(n),
            "nearby": generic.minus_from(n),
        },
        metric_size=size,
        metric_scale=float(torch.linalg.matrix_norm(M)) / max(float(point.norm()), 1e-300),
        direction=None if direction is None else rebuilt(direction),
        metric_relative=change.relative,
        singular=_less(lie, around),
    )


@dataclass(frozen=True, eq=False)
class _NullSpace:
    """ker ∂φ ∩ ker ∂h: the span of `inner` (n, k) is a part of it for sure if `sure`, and it is a part of `outer`."""

    inner: Tensor
    outer: Tensor
    sure: bool
    rank: Rank
    laws: Rank
    recoverable: Verdict


def _with_given(J: Measured, dh: Measured) -> _NullSpace:
    """The null space with the gradients dh of given laws."""
    basis, rank = _kernel(J, dh)
    verdict = rank.rank == basis.shape[0] if rank.decided else UNDECIDED
    return _NullSpace(basis, basis, rank.decided, rank, dh.rank, verdict)


def _kernel(J: Measured, dh: Measured) -> tuple[Tensor, Rank]:
    """ker ∂φ ∩ ker ∂h, and the rank of both together: as they are orthogonal, it is the sum of theirs."""
    basis, rank = J.above(dh).null_space()
    apart = J.rank.rank + dh.rank.rank
    return basis, rank if rank.rank == apart else rank.doubted(f"∂φ and ∂h alone have ranks that add to {apart}")


def _with_all(J: Measured, lie: Lie, around: Lie, generic: Rank) -> _NullSpace:
    """The null space with the gradients of all laws that exist on a neighbourhood of θ."""
    n = J.values.shape[1]
    inner, rank = _kernel(J, lie.fields.complement())
    sure = J.rank.decided and rank.decided and lie.least == lie.rank.rank
    laws = generic.minus_from(n)
    recoverable: Verdict = UNDECIDED
    if J.rank.decided:
        if generic.decided or J.rank.rank == n:
            recoverable = J.rank.rank in (n, generic.rank)
        elif J.rank.rank < max(lie.least, around.least):
            recoverable = False
    if generic.decided and lie.rank.decided and generic.rank == lie.rank.rank:
        return _NullSpace(inner, inner, sure, rank, laws, recoverable)
    most = Rank(J.rank.rank + laws.rank, J.rank.largest_zero, J.rank.smallest_nonzero, J.rank.doubt or laws.doubt)
    return _NullSpace(inner, J.null_space()[0], sure, most, laws, recoverable)


def _metric(inner: Change, outer: Change, sure: bool, even: bool) -> Verdict:
    """Criterion B from the change of M on part of the null space and on more than it, with units that spread or not."""
    if sure and inner.verdict is False:
        return False
    kept = outer.verdict is True and (even or outer.relative == 0)
    return True if sure and kept else UNDECIDED


def _generic(lie: Lie, around: Lie) -> Rank:
    """The dimension around θ: at least that at θ."""
    if lie.rank.rank <= around.rank.rank:
        return around.rank
    return replace(lie.rank, doubt="Lie(∇φ) has fewer dimensions nearby")


def _less(lie: Lie, around: Lie) -> Verdict:
    """Whether there are fewer dimensions at θ than around it."""
    if lie.rank.decided and lie.rank.rank < around.least:
        return True
    same = lie.rank.decided and around.rank.decided and lie.rank.rank == around.rank.rank
    return False if same else UNDECIDED


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


def check_conserved(J: Measured, dh: Measured, name: str = "laws") -> None:
    """Raises ValueError unless every gradient of a law is orthogonal to all gradients of φ.

    The product of two gradients is compared with the terms that it is the sum of, so that units do not matter; what
    round-off leaves in entries that should be zero is allowed for in the units that both matrices give to θ.
    """
    slope = (dh.values @ J.values.mT).abs()
    terms = dh.values.abs() @ J.values.abs().mT
    units = dh.above(J).scales[1]
    sizes = torch.linalg.vector_norm(dh.values * units, dim=1)[:, None] * torch.linalg.vector_norm(
        J.values / units, dim=1
    )
    excess = slope - _LAW * terms - _ROUND_OFF * sizes
    if excess.numel() and bool((excess > 0).any()):
        i, j = divmod(int(excess.argmax()), slope.shape[1])
        raise ValueError(
            f"{name} must be conserved by every gradient flow of f∘φ, but entry {i} is not: its gradient has the "
            f"product {float(slope[i, j]):.3g} with that of entry {j} of φ; leave it out, or give laws=None"
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
