"""Depth grids: equal panels of Gauss–Legendre nodes on [0, 1], and calculus on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import count, float_tensor, floating, placed, positive, underived
from ..display import crossed, said
from ..modes import undisturbed
from .products import along
from .sizing import sized

Profile = Callable[[float], Tensor]

_BLOCKS = 512  # nodes up to which interpolation is one product of full matrices for each panel
MOST_NODES, MOST_ORDER = 2**18, 2**10  # of a grid, and of one panel: the rule of a panel costs order³


@dataclass(frozen=True, eq=False)
class Rule:
    """The Gauss–Legendre rule of one panel, on [0, 1]; all arrays are NumPy float64.

    Attributes
    ----------
    nodes, weights : (m,)
        Gauss nodes and weights.
    integrate : (m, m)
        Entry (i, j) is the integral from 0 to c_i of the j-th Lagrange polynomial: the matrix A of the Gauss
        Runge–Kutta method (Hairer–Lubich–Wanner, Geometric Numerical Integration, II.1.3).
    differentiate : (m, m)
        Derivative at c_i of the j-th Lagrange polynomial.
    to_legendre : (m, m)
        Values at the nodes → coefficients of the Legendre polynomials P_0 … P_{m−1} on [0, 1].
    barycentric : (m,)
        Barycentric weights of the nodes.
    from_middle : (m + 2, m)
        Integrals of the Lagrange polynomials from 1/2 to the nodes, to 0 and to 1.
    """

    nodes: np.ndarray
    weights: np.ndarray
    integrate: np.ndarray
    differentiate: np.ndarray
    to_legendre: np.ndarray
    barycentric: np.ndarray
    from_middle: np.ndarray


@cache
def gauss_rule(order: int) -> Rule:
    """The Gauss–Legendre rule with `order` nodes, computed through Legendre coefficients (stable to high order)."""
    legendre = np.polynomial.legendre
    x, w = legendre.leggauss(order)
    degrees = np.arange(order)
    points = np.concatenate((x, [-1.0, 1.0, 0.0]))
    values = legendre.legvander(points, order)  # P_0 … P_m there
    to_legendre = (2 * degrees[:, None] + 1) / 2 * values[:order, :-1].T * w
    # ∫_{-1}^x P_k = (P_{k+1} − P_{k−1}) / (2k + 1), and x + 1 for k = 0
    primitive = np.empty((len(points), order))
    primitive[:, 0] = points + 1
    for k in range(1, order):
        primitive[:, k] = (values[:, k + 1] - values[:, k - 1]) / (2 * k + 1)
    integrals = primitive @ to_legendre / 2
    slope = np.stack([legendre.legval(x, legendre.legder(np.eye(order)[k])) for k in range(order)], axis=1)
    # Weights of the barycentric formula on Gauss nodes: (−1)^j sqrt((1 − x_j²) w_j), Wang–Xiang 2012
    barycentric = (-1.0) ** degrees * np.sqrt((1 - x**2) * w)
    return Rule(
        nodes=(x + 1) / 2,
        weights=w / 2,
        integrate=integrals[:order],
        differentiate=slope @ to_legendre * 2,
        to_legendre=to_legendre,
        barycentric=barycentric,
        from_middle=integrals[:-1] - integrals[-1],
    )


@lru_cache(maxsize=32)
def _gauss(panels: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of equal panels: members of a run have the same grids."""
    rule = gauss_rule(order)
    nodes = ((np.arange(panels)[:, None] + rule.nodes) / panels).ravel()
    return nodes, np.tile(rule.weights / panels, panels)


@dataclass(frozen=True, eq=False)
class DepthGrid:
    """Panels of Gauss–Legendre nodes on the depth interval [0, 1].

    A function of depth is held by its values on the nodes, shape `(..., N, d, d)`, N = panels · order, and stands for
    the polynomial of degree order − 1 through them on each panel.

    Attributes
    ----------
    panels, order : int
        Number of equal panels and of nodes in each.
    nodes, weights : Tensor (N,)
        Depth nodes in (0, 1), increasing, and quadrature weights (their sum is 1).
    chosen_by : str
        The setting that has chosen panels and order, such as "tol" of `auto`; empty where they were given.

    Examples
    --------
    >>> grid = nf.DepthGrid.gauss(panels=4, order=12)
    >>> grid.nodes.shape, round(float(grid.weights.sum()), 12)
    (torch.Size([48]), 1.0)
    >>> abs(float(grid.weights @ torch.cos(grid.nodes)) - math.sin(1)) < 1e-15
    True
    """

    panels: int
    order: int
    nodes: Tensor
    weights: Tensor
    chosen_by: str = field(default="", compare=False)

    def __repr__(self) -> str:
        kind = "" if self.nodes.dtype == torch.float64 else str(self.nodes.dtype).removeprefix("torch.")
        return said(self, nodes_said(self), kind)

    @classmethod
    def gauss(
        cls, panels: int = 4, order: int = 6, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> DepthGrid:
        """The grid of `panels` equal panels with `order` Gauss–Legendre nodes each.

        Raises
        ------
        TypeError, ValueError
            If panels or order is not an integer of at least 1, the order is above 1024 or there would be more than
            262144 nodes; if dtype is not of floating-point numbers, or the device is not here.
        """
        panels, order = count("panels", panels, most=MOST_NODES), count("order", order, most=MOST_ORDER)
        if panels * order > MOST_NODES:
            raise ValueError(
                f"panels * order must be at most {MOST_NODES} nodes, got {panels} * {order}; use fewer panels"
            )
        placed(dtype, device)
        nodes, weights = (torch.tensor(values, dtype=dtype, device=device) for values in _gauss(panels, order))
        return cls(panels, order, nodes, weights)

    @classmethod
    def auto(cls, W: Profile, tol: float) -> DepthGrid:
        """The grid with the fewest nodes on which the velocity at the nodes and z are right to `tol`.

        The error of P(1,s)ᵀ G P(s,0)ᵀ is at most `tol` ‖G‖ max ‖P(1,s)‖ ‖P(s,0)‖ at every node and for every gradient
        G, in Frobenius norms; for random G that is `tol` times the velocity. That of z is at most `tol` ‖z‖. Both are
        measured against twice as many panels of 32 nodes as resolve W: the Legendre coefficients of W and of X' = W X
        fall below `tol` on each, and W is what they say at 1597 depths, at most 7e-4 apart, that no grid has among its
        nodes (`depth.probes`; fewer, and further apart, for d > 36). A feature of W that is narrower can be missed.

        Between the nodes the state may be off W by up to √tol times its largest value. The velocity has of that what
        ∫₀ˢ P(1,r) δW(r) P(r,0) dr holds at the nodes s, small since δW vanishes at them, and z only the square, as
        Gauss nodes integrate; both are in the errors above. To see W between the nodes, interpolate a finer grid.

        Panels are so short that h max ‖W‖₂ ≤ 4 where 64 of them can be: on longer ones a velocity takes far longer.

        Parameters
        ----------
        W : callable, float s → Tensor (..., d, d)
        tol : float
            Relative tolerance, at least 2 ε max ‖W‖₂ with the ε of the dtype: what round-off makes of z.

        Raises
        ------
        ValueError
            If tol is too small, W too large, or no grid of up to 64 panels of 32 nodes resolves W: it is rough, and a
            solver of high order is of no use.
        """
        if positive("tol", tol) < np.finfo(float).eps:
            raise ValueError(f"tol must be at least 2.2e-16, the round-off of float64, got {tol!r}; use 1e-14 or more")
        return replace(sized(cls.gauss, partial(sample, W), tol), chosen_by="tol")

    def __len__(self) -> int:
        return self.panels * self.order

    @property
    def rule(self) -> Rule:
        """The rule of one panel, scaled to [0, 1]."""
        return gauss_rule(self.order)

    def panelled(self, values: Tensor) -> Tensor:
        """`(..., N, a, b)` seen as `(..., panels, order, a, b)`."""
        return values.unflatten(-3, (self.panels, self.order))

    def integrate(self, values: Tensor) -> Tensor:
        """∫₀¹ of a function given on the nodes: `(..., N, a, b)` → `(..., a, b)`."""
        return along(self.weights[None], self._check(values).flatten(-2)).squeeze(-2).unflatten(-1, values.shape[-2:])

    def antiderivative(self, values: Tensor) -> Tensor:
        """∫₀^{s_i} of a function given on the nodes, at the nodes: `(..., N, a, b)` → the same shape."""
        local = self.panelled(self._check(values))
        within = _along_nodes(self.rule.integrate / self.panels, local)
        whole = _along_nodes(self.rule.weights[None] / self.panels, local)
        before = torch.cumsum(whole, dim=-4) - whole
        return (within + before).flatten(-4, -3)

    def differentiate(self, values: Tensor) -> Tensor:
        """d/ds of the panel polynomials, at the nodes: `(..., N, a, b)` → the same shape."""
        local = self.panelled(self._check(values))
        return _along_nodes(self.rule.differentiate * self.panels, local).flatten(-4, -3)

    def legendre(self, values: Tensor) -> Tensor:
        """Legendre coefficients on each panel: `(..., N, a, b)` → `(..., panels, order, a, b)`."""
        return _along_nodes(self.rule.to_legendre, self.panelled(self._check(values)))

    def from_legendre(self, coefficients: Tensor) -> Tensor:
        """The values on the nodes, the inverse of `legendre`: `(..., panels, order, a, b)` → `(..., N, a, b)`."""
        vander = np.polynomial.legendre.legvander(2 * self.rule.nodes - 1, self.order - 1)
        return _along_nodes(vander, coefficients).flatten(-4, -3)

    def project(self, values: Tensor, degree: int) -> Tensor:
        """The L² projection on polynomials of at most `degree` on each panel: `(..., N, a, b)` → the same shape."""
        degree, rule = count("degree", degree, least=0, most=self.order - 1), self.rule
        keep = np.polynomial.legendre.legvander(2 * rule.nodes - 1, degree) @ rule.to_legendre[: degree + 1]
        return _along_nodes(keep, self.panelled(self._check(values))).flatten(-4, -3)

    def tail(self, values: Tensor) -> float:
        """The largest of the last two Legendre coefficients over all panels, relative to the largest value."""
        scale = float(torch.linalg.matrix_norm(values).max())
        last = torch.linalg.matrix_norm(_along_nodes(self.rule.to_legendre[-2:], self.panelled(self._check(values))))
        return float(last.max()) / scale if scale > 0 else 0.0

    def misses(self, values: Tensor, depths: Tensor, seen: Tensor) -> float:
        """How far the panel polynomials are from what was seen at other depths, relative to the largest value."""
        gap = float(torch.linalg.matrix_norm(self.interpolate(values, depths) - seen).max())
        scale = float(torch.linalg.matrix_norm(seen).max())
        return gap / scale if scale > 0 else gap

    def left_out(self, values: Tensor) -> Tensor:
        """How much of ∫₀¹ of a function the nodes leave out, guessed from the decay of its Legendre coefficients.

        On a panel the nodes lose coefficients from degree 2m on; the last two, τ, are continued to there with the
        decay q over the two before: h τ qᵐ/2, the largest over the panels. For a jump inside a panel that is what it
        makes of the integral, give or take a factor of ten; smooth functions decay faster than this.
        Zero with fewer than six nodes on a panel, which cannot tell. `(..., N, a, b)` → `(...)`.
        """
        sizes = torch.linalg.matrix_norm(self.legendre(values))
        if self.order < 6:
            return torch.zeros_like(sizes[..., 0, 0])
        last, before = sizes[..., -2:].amax(-1), sizes[..., -4:-2].amax(-1)
        decay = (last / before.clamp(min=torch.finfo(sizes.dtype).tiny)).clamp(max=1.0)
        return (last * decay**self.order).amax(-1) / (2 * self.panels)

    @undisturbed
    def interpolate(self, values: Tensor, s: Tensor | float) -> Tensor:
        """Values of the panel polynomials at the depths `s`.

        Parameters
        ----------
        values : Tensor (..., N, a, b)
        s : float or Tensor (M,)
            Depths in [0, 1].

        Returns
        -------
        Tensor (..., M, a, b), or (..., a, b) when s is a float.

        Raises
        ------
        TypeError, ValueError
            If a depth is no number or outside [0, 1], or `values` does not fit the grid.
        """
        result = self.interpolation(s)(values)
        return result if isinstance(s, Tensor) and s.ndim else result.squeeze(-3)

    @undisturbed
    def interpolation(self, s: Tensor | float) -> Callable[[Tensor], Tensor]:
        """`interpolate` at the same depths `(M,)` again and again: a function of values."""
        points = np.atleast_1d(_depths(s))
        if len(self) <= _BLOCKS:
            matrices, places = _blocks(self.panels, self.order, points.tobytes())
            return lambda values: self._by_panels(matrices, places, self._check(values))
        panel, weights = _lagrange(self.panels, self.order, points)
        columns = panel[:, None] * self.order + np.arange(self.order)
        rows = np.broadcast_to(np.arange(len(points))[:, None], columns.shape)
        return lambda values: self._interpolated(rows, columns, weights, self._check(values))

    @undisturbed
    def _by_panels(self, matrices: Tensor, places: Tensor | None, values: Tensor) -> Tensor:
        """The same by a matrix for each panel `(panels, k, order)`, whose rows, or some of them, are of the points."""
        found = along(matrices, self.panelled(values).flatten(-2)).flatten(-3, -2)
        if places is not None:
            found = found.index_select(-2, places.to(values.device))
        return found.unflatten(-1, values.shape[-2:])

    @undisturbed
    def _interpolated(self, rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, values: Tensor) -> Tensor:
        """The same by a sparse matrix, whose size does not grow with the number of nodes."""
        entries = torch.from_numpy(weights.ravel()).to(values)
        where = torch.as_tensor(np.stack((rows.ravel(), columns.ravel())), device=values.device)
        matrix = torch.sparse_coo_tensor(where, entries, (len(rows), len(self)), check_invariants=False)
        flat = values.movedim(-3, 0)
        return (matrix @ flat.flatten(1)).unflatten(1, flat.shape[1:]).movedim(0, -3)

    @undisturbed
    def interpolant(self, values: Tensor) -> Callable[[float], Tensor]:
        """`interpolate` for one depth after the other: a function float s → (..., a, b)."""
        panels = self.panelled(self._check(values)).flatten(-2).unbind(-3)
        shape = values.shape[-2:]

        @undisturbed
        def at(s: float) -> Tensor:
            panel, weights = _lagrange(self.panels, self.order, np.array([s]))
            return (torch.from_numpy(weights).to(values) @ panels[panel[0]]).squeeze(-2).unflatten(-1, shape)

        return at

    def _check(self, values: Tensor) -> Tensor:
        floating("values", values)
        if values.ndim < 3 or values.shape[-3] != len(self):
            raise ValueError(
                f"values must have shape (..., N, a, b) with N = {len(self)} depth nodes, got {tuple(values.shape)}"
            )
        return values


def _lagrange(panels: int, order: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Panels of the points, (M,), and the Lagrange polynomials there, (M, order): the barycentric formula."""
    if not ((points >= 0) & (points <= 1)).all():
        raise ValueError(f"s must lie in [0, 1], got values from {points.min():.6g} to {points.max():.6g}")
    rule = gauss_rule(order)
    panel = np.minimum((points * panels).astype(int), panels - 1)
    difference = (points * panels - panel)[:, None] - rule.nodes
    exact = difference == 0
    terms = rule.barycentric / np.where(exact, 1.0, difference)
    hit = exact.any(-1, keepdims=True)
    if hit.any():
        terms = np.where(hit, exact, terms)
    return panel, terms / terms.sum(-1, keepdims=True)


@lru_cache(maxsize=32)
def _blocks(panels: int, order: int, points: bytes) -> tuple[Tensor, Tensor | None]:
    """What interpolates at points (M,), panel by panel: a study asks for the same at every output time.

    Matrices `(panels, k, order)`, where at most k points lie in a panel, and which of their rows are those of points,
    None where these are all of them, one after the other.
    """
    panel, weights = _lagrange(panels, order, np.frombuffer(points))
    counts = np.bincount(panel, minlength=panels)
    within, sorted_ = np.empty_like(panel), np.argsort(panel, kind="stable")
    within[sorted_] = np.arange(len(panel)) - np.repeat(np.cumsum(counts) - counts, counts)
    matrices = np.zeros((panels, counts.max(), order))
    matrices[panel, within] = weights
    places = panel * counts.max() + within
    everyone = np.array_equal(places, np.arange(panels * counts.max()))
    return torch.from_numpy(matrices), None if everyone else torch.from_numpy(places)


def like(grid: DepthGrid, panels: int, order: int) -> DepthGrid:
    """A Gauss grid of the dtype of another one, where that is."""
    return DepthGrid.gauss(panels, order, dtype=grid.nodes.dtype, device=grid.nodes.device)


def nodes_said(grid: DepthGrid) -> str:
    """The nodes of a grid in words: "4×12 nodes"."""
    return f"{crossed((grid.panels, grid.order))} nodes"


def more_nodes(grid: Any) -> str:
    """What is to be used in place of a grid that is too coarse, and how that is asked for; also of none of ours."""
    chosen_by = getattr(grid, "chosen_by", "")
    return f"more nodes, by a smaller {chosen_by}" if chosen_by else "more nodes"


def check_grid(name: str, value: Any) -> None:
    """Raises TypeError unless `value` is a DepthGrid."""
    if not isinstance(value, DepthGrid):
        got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name} must be a DepthGrid, got {got}; make one with DepthGrid.gauss(panels, order)")


def _depths(s: Any) -> np.ndarray:
    """`s` as an array of no or one axis."""
    underived("s", s, "places between nodes are found")
    try:
        points = np.asarray(s.detach().cpu() if isinstance(s, Tensor) else s)
    except (TypeError, ValueError):  # a ragged list
        points = np.asarray(None)
    if points.dtype.kind not in "fiu":
        raise TypeError(f"s must be a number or a tensor of them, got {type(s).__name__}")
    if points.ndim > 1:
        raise ValueError(f"s must be a number or have shape (M,), got shape {points.shape}")
    return points.astype(float)


def check_profile(name: str, value: Any) -> None:
    """Raises TypeError unless `value` can be a profile."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(
            f"{name} must be a function of a float s that returns a (d, d) tensor, got {type(value).__name__}"
        )


def sample(W: Profile, nodes: Tensor, name: str = "W") -> Tensor:
    """A profile W(s) on depth nodes.

    Parameters
    ----------
    W : callable, float s → Tensor (..., d, d)
        If it has a method `at`, that is called with all the nodes at once instead.
    nodes : Tensor (N,)
    name : str
        What the errors call W.

    Returns
    -------
    Tensor (..., N, d, d)

    Raises
    ------
    TypeError, ValueError
        If a value is not a finite floating-point square matrix, or the shape changes with s; `at` has to give one for
        each node.
    """
    at = getattr(W, "at", None)
    if at is not None:
        return _at_all(f"{name}.at(s)", at(nodes), len(nodes))
    check_profile(name, W)
    # Copies: a profile may write all its values into one tensor.
    values = [float_tensor(f"{name}({s:.6g})", W(s), ndim=2).clone() for s in nodes.tolist()]
    shapes = {tuple(v.shape) for v in values}
    if len(shapes) > 1 or values[0].shape[-1] != values[0].shape[-2]:
        raise ValueError(f"{name}(s) must have one square shape (..., d, d) at every s, got {sorted(shapes)}")
    return torch.stack(values, dim=-3)


def _at_all(name: str, values: Any, n: int) -> Tensor:
    """What a profile says of n depths at once, held to what it says of one."""
    found = float_tensor(name, values, ndim=3)
    if found.shape[-3] != n or found.shape[-1] != found.shape[-2]:
        raise ValueError(f"{name} must have shape (..., n, d, d) at n = {n} depths, got {tuple(found.shape)}")
    return found


def sample_each(W: Profile, *depths: Tensor) -> list[Tensor]:
    """`sample` on several sets of depths, which are asked for in one call where none of them may be known already."""
    if isinstance(W, Remembered):
        return [sample(W, nodes) for nodes in depths]
    return list(sample(W, torch.cat(depths)).split([len(nodes) for nodes in depths], dim=-3))


class Remembered:
    """A profile that evaluates no depths twice: for those who sample it on several grids."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._values: dict[bytes, Tensor] = {}

    def __call__(self, s: float) -> Tensor:
        return self._profile(s)

    def __getattr__(self, name: str) -> Any:
        if name == "_profile":  # of a copy that has nothing yet
            raise AttributeError(name)
        return getattr(self._profile, name)

    def at(self, nodes: Tensor) -> Tensor:
        key = nodes.detach().cpu().numpy().tobytes()
        if key not in self._values:
            self._values[key] = sample(self._profile, nodes)
        return self._values[key]


def _along_nodes(matrix: np.ndarray, local: Tensor) -> Tensor:
    """Applies an (m, m) matrix along the node axis of `(..., panels, m, a, b)`."""
    return along(torch.from_numpy(matrix), local.flatten(-2)).unflatten(-1, local.shape[-2:])
