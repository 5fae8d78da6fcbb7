"""Derivatives of φ beyond the gradient, exact to round-off: at many points side by side, in reverse mode.

torch.func has them as well, but imports torch's compiler for them, which takes more than half as long as torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def jacobian(function: Map, theta: Tensor) -> Tensor:
    """∂function at θ (n,), as a matrix (m, n) whatever the shape of its value."""
    m = function(theta).numel()
    if not m:
        return theta.new_zeros(0, len(theta))
    with _recorded():
        points = _leaf(theta.expand(m, -1))
        return slope(each(function, points).diagonal(), points).detach()


def hessians(function: Map, theta: Tensor, directions: Tensor) -> Tensor:
    """The derivative of ∂function at θ (n,) along each of the directions (k, n), as (k, m, n)."""
    k, n = directions.shape
    m = function(theta).numel()
    if not k * m:
        return theta.new_zeros(k, m, n)
    with _recorded():
        points = _leaf(theta.expand(k, m, n).reshape(-1, n))
        rows = slope(each(function, points).unflatten(0, (k, m)).diagonal(dim1=1, dim2=2), points)
        # Of a gradient the derivative along v is the gradient of its product with v.
        return slope(rows.unflatten(0, (k, m)) * directions.unsqueeze(1), points).detach().unflatten(0, (k, m))


def gradients(function: Map, points: Tensor, combinations: Tensor) -> Tensor:
    """∇(a·function) at each of the points (k, n), for the combinations a (k, m)."""
    with _recorded():
        points = _leaf(points)
        return slope(each(function, points) * combinations, points).detach()


def brackets(function: Map, points: Tensor, combinations: Tensor) -> Tensor:
    """The terms (k, 2^(l−1), n) whose sum is [X₁, [X₂, … X_l]] at each point (k, n), X_i = ∇(a_i·function).

    They are kept apart: what is left of terms that cancel is told from round-off by their size.

    Parameters
    ----------
    function : callable
        (n,) → values of any shape.
    points : Tensor (k, n)
    combinations : Tensor (k, l, m)
        a₁, …, a_l for each point.
    """
    with _recorded():
        points = _leaf(points)
        values = each(function, points)
        *outer, last = (slope(values * a, points) for a in combinations.unbind(1))
        terms = [last]
        for X in reversed(outer):  # [X, Y] = DY·X − DX·Y for each term Y
            terms = [*(_along(Y, points, X) for Y in terms), *(-_along(X, points, Y) for Y in terms)]
        return torch.stack(terms, dim=1).detach()


def each(function: Map, points: Tensor) -> Tensor:
    """The values of a function at every point (k, n), as (k, m): at once where it can be vectorised."""
    try:
        found = torch.func.vmap(function)(points)
    except RuntimeError:
        found = torch.stack([function(point) for point in points])
    return found.reshape(len(points), -1)


def slope(values: Tensor, points: Tensor) -> Tensor:
    """The gradient of the sum of values in the points; zero where they do not depend on them."""
    if not values.requires_grad:
        return torch.zeros_like(points)
    found = torch.autograd.grad(values.sum(), points, create_graph=True, allow_unused=True)[0]
    return torch.zeros_like(points) if found is None else found


def _along(field: Tensor, points: Tensor, direction: Tensor) -> Tensor:
    """The derivative of a field (k, n) at its points along a direction (k, n) of each."""
    dual = torch.zeros_like(field, requires_grad=True)
    # (∂field)ᵀ dual is linear in dual: its product with a direction has the gradient ∂field · direction there.
    return slope(slope(field * dual, points) * direction, dual)


@contextmanager
def _recorded() -> Iterator[None]:
    """With derivatives recorded, whatever the mode of the caller."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _leaf(points: Tensor) -> Tensor:
    """The same numbers, on which nothing depends yet."""
    return points.detach().clone().requires_grad_()
