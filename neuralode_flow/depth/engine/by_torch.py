"""The torch engine: depth products and gradients by operations of torch, on every device and in every mode of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ... import matrices
from ...checks import all_finite
from ...modes import bare, gradient, plain
from .. import picard
from ..panels import stages
from ..products import add_identity, identity_like, multiply, outside
from ..workspace import Take, Workspace

if TYPE_CHECKING:
    from ..grid import DepthGrid
    from ..promises import LayerRule

# How far C may be from I: beyond it the grid does not resolve W, or W is large, and C⁻¹ costs digits.
NEAR_IDENTITY = 0.1

# Layers that are multiplied one after the other. Larger blocks take more calls, which is what counts in short chains.
BLOCK = 4

# Bytes of the layers, or of the columns of a panel, that are taken together where there are many of them.
SEGMENT = 2**22

# Columns of a panel that are taken together at least: products with fewer are slow.
NARROWEST = 64

Outer = Callable[[Tensor], Tensor]


class Stepped(NamedTuple):
    """Where a step leads, what steps have added with it, and whether all of that is finite."""

    following: Tensor
    added: Tensor
    finite: bool


_WORKSPACE = Workspace()


def flow(grid: DepthGrid, W: Tensor, outer: Outer | None = None) -> Tensor:
    """As `Engine.flow`: fast in eager mode, and by operations that can be differentiated in all others."""
    return _end(grid, W) if outer is None else _gradient(grid, W, outer)


def _end(grid: DepthGrid, W: Tensor) -> Tensor:
    """z = P(1, 0)."""
    if plain(W):
        try:
            with _WORKSPACE.lend() as take:
                return outside(_across(grid, W, take))[2]
        except picard.Unsolved:
            pass
    return outside(stages(grid, W).across)[2]


def _across(grid: DepthGrid, W: Tensor, take: Take) -> Tensor:
    """P(b, a) = u(b) u(a)⁻¹ of each panel, `(..., panels, d, d)`, by half of what `Middle` takes."""
    integrals, local = picard.integrals(grid.panels, grid.order, W.dtype, W.device), _by_panels(grid, W).contiguous()
    if _is_large(local):
        ends = _half(local, integrals.middle, integrals.ends, None, take)
    else:
        solved = picard.solve(local, integrals.middle, take)
        ends = add_identity(picard.along_nodes(integrals.ends, solved.slopes))
    return matrices.solve(ends[:, 0], ends[:, 1], left=False).view(*W.shape[:-3], grid.panels, *W.shape[-2:])


def _by_panels(grid: DepthGrid, W: Tensor) -> Tensor:
    """`(..., N, d, d)` → `(B, m, d, d)`."""
    return W.reshape(-1, grid.order, *W.shape[-2:])


def _gradient(grid: DepthGrid, W: Tensor, outer: Outer) -> Tensor:
    """P(1,s_i)ᵀ G P(s_i,0)ᵀ with G = outer(z)."""
    if plain(W):
        with _WORKSPACE.lend() as take:
            try:
                middle = (_by_strips if _is_large(_by_panels(grid, W)) else _from_middle)(grid, W, take)
            except picard.Unsolved:
                pass
            else:
                return _to_nodes(grid.panels, W.shape, middle, outer)
    solved = stages(grid, W)
    before, after, z = outside(solved.across)
    # One matrix per panel carries what lies outside of it, so that each node costs two products.
    inner = after.mT @ outer(z).unsqueeze(-3) @ before.mT
    return (solved.backward @ inner.unsqueeze(-3) @ solved.forward.mT).flatten(-4, -3)


class Middle(NamedTuple):
    """The solution of `stages` seen from the middle c of each panel.

    B is the number of panels of all members.

    A panel's collocation polynomials u with u' = W u, u(c) = I and v with v' = −v W, v(c) = I reach only half as far as
    those of `Stages`. By the symplectic condition v u is the same matrix C at both ends of the panel, so that
    P(s_i, a) = u(s_i) C⁻¹ v(a) and P(b, s_i) = u(b) C⁻¹ v(s_i).

    u, vT : Tensor (B, m, d, d)
        u and vᵀ at the nodes.
    enter, leave, C : Tensor (B, d, d)
        C⁻¹ v(a), u(b), and C, which is near I.
    lent : bool
        Whether u and vᵀ lie in memory of the workspace; else they may be written over, and given away.
    """

    u: Tensor
    vT: Tensor
    enter: Tensor
    leave: Tensor
    C: Tensor
    lent: bool = True


def _from_middle(grid: DepthGrid, W: Tensor, take: Take) -> Middle:
    """Both halves of all panels by sweeps; raises Unsolved where they do not converge, or C is not near I."""
    integrals = picard.integrals(grid.panels, grid.order, W.dtype, W.device)
    local = _by_panels(grid, W)
    B, m, *square = local.shape
    both = take("both", (2 * B, m, *square), local)
    both[:B] = local
    torch.neg(local.mT, out=both[B:])
    solved = picard.solve(both, integrals.middle, take)
    ends = add_identity(picard.along_nodes(integrals.ends, solved.slopes))
    halves = add_identity(solved.integral)
    return Middle(halves[:B], halves[B:], *_met(ends[:B, 1], ends[B:]))


def _met(leave: Tensor, vT_ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`enter`, `leave` and C of the two halves, which have met where C is near I; else raises Unsolved."""
    C = torch.bmm(vT_ends[:, 1].mT, leave)
    if not float((C - identity_like(C)).abs().max()) <= NEAR_IDENTITY:
        raise picard.Unsolved
    return matrices.solve(C, vT_ends[:, 0].mT), leave, C


def _is_large(local: Tensor) -> bool:
    """Whether W `(B, m, d, d)` fills the memory by the size of its panels, which then go by strips of columns."""
    return local.dtype == torch.float64 and local.nbytes > 16 * SEGMENT and local[0].nbytes > SEGMENT


def _by_strips(grid: DepthGrid, W: Tensor, take: Take) -> Middle:
    """As `_from_middle`, in little memory beside u and vᵀ."""
    integrals, local = picard.integrals(grid.panels, grid.order, W.dtype, W.device), _by_panels(grid, W).contiguous()
    u, vT = torch.empty_like(local), torch.empty_like(local)
    leave = _half(local, integrals.middle, integrals.ends, u, take)[:, 1].clone()
    # With −J in place of J the equations of vᵀ are those of u for Wᵀ: nothing is negated or transposed in memory.
    return Middle(u, vT, *_met(leave, _half(local.mT, -integrals.middle, -integrals.ends, vT, take)), lent=False)


def _half(W: Tensor, J: Tensor, to_ends: Tensor, halves: Tensor | None, take: Take) -> Tensor:
    """u at both ends `(B, 2, d, d)` of W `(B, m, d, d)`, and at the nodes in `halves`, by strips of each panel."""
    B, m, d, _ = W.shape
    ends = W.new_empty(B, 2, d, d)
    strips = -(-d // max(NARROWEST, SEGMENT // (m * d * W.element_size())))
    for p in range(B):
        for strip, solved in picard.solve_by_strips(W[p : p + 1], J, -(-d // strips), take):
            ends[p : p + 1, ..., strip] = picard.along_nodes(to_ends, solved.slopes)
            if halves is not None:
                halves[p : p + 1, ..., strip] = solved.integral
    if halves is not None:
        add_identity(halves)
    return add_identity(ends)


def _to_nodes(panels: int, shape: torch.Size, middle: Middle, outer: Outer) -> Tensor:
    """P(1,s_i)ᵀ G P(s_i,0)ᵀ = v_iᵀ [C⁻ᵀ P(1,c)ᵀ G P(c,0)ᵀ] u_iᵀ: two products per node."""
    before, after, z = between_middles(panels, middle.enter, middle.leave)
    B, m, d, _ = middle.u.shape
    z = z.view(*shape[:-3], d, d)
    G = outer(z)
    u, vT = middle.u, middle.vT
    if not middle.lent and bare(G):
        G = G.expand_as(z).reshape(-1, d, d)
        for p in range(B):
            inner = matrices.solve(middle.C[p].mT, after[p].mT @ G[p // panels] @ before[p].mT)
            torch.bmm((vT[p].view(m * d, d) @ inner).view(m, d, d), u[p].mT, out=vT[p])
        return vT.view(shape)
    if middle.lent and not bare(G):  # autograd keeps what G is multiplied by, and the workspace does not
        u, vT = u.clone(), vT.clone()
    G = G.expand_as(z).unsqueeze(-3).expand(*shape[:-3], panels, d, d).reshape(B, d, d)
    inner = matrices.solve(middle.C.mT, torch.bmm(torch.bmm(after.mT, G), before.mT))
    # One matrix for all nodes of a panel: products of tall matrices are the fastest.
    left = torch.bmm(vT.view(B, m * d, d), inner)
    return torch.bmm(left.view(B * m, d, d), u.view(B * m, d, d).mT).view(shape)


def between_middles(panels: int, enter: Tensor, leave: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P(c_p, 0) and P(1, c_p) C of all panels, `(B, d, d)`, and z = P(1, 0), `(members, d, d)`."""
    if panels == 1:
        return enter, leave, torch.bmm(leave, enter)
    enter, leave = enter.unflatten(0, (-1, panels)), leave.unflatten(0, (-1, panels))
    before, after = [enter[:, 0]], [leave[:, -1]]
    links = (enter[:, 1:] @ leave[:, :-1]).unbind(1)
    for link in links:
        before.append(torch.bmm(link, before[-1]))
    for link in reversed(links):
        after.append(torch.bmm(after[-1], link))
    z = torch.bmm(after[0], before[-1])
    return torch.stack(before, dim=1).flatten(0, 1), torch.stack(after[::-1], dim=1).flatten(0, 1), z


def chain(W: Tensor, outer: Outer | None = None, rule: LayerRule | None = None, depth: int = 1) -> Tensor:
    """As `Engine.chain`."""
    if rule is not None:
        return layered(W, outer, rule, depth, chain)
    return _product(W) if outer is None else _chain_gradient(W, outer)


def _product(U: Tensor) -> Tensor:
    """U_L … U_1 by pairwise products."""
    while U.shape[-3] > 1:
        even = U.shape[-3] // 2 * 2
        pairs = U[..., 1:even:2, :, :] @ U[..., 0:even:2, :, :]
        U = torch.cat((pairs, U[..., even:, :, :]), dim=-3)
    return U[..., 0, :, :]


def _chain_gradient(U: Tensor, outer: Outer) -> Tensor:
    """(U_L … U_{k+1})ᵀ G (U_{k−1} … U_1)ᵀ with G = outer(U_L … U_1), for all k.

    The chain is cut into blocks of `BLOCK` layers that are scanned side by side. What lies outside of a block enters by
    one matrix, (U_L … )ᵀ G ( … U_1)ᵀ, and these are the gradients of the chain of the blocks' products: the same
    problem, shorter. Those are 3 (L − 1) products, in 9 log₄ L calls.
    """
    L = U.shape[-3]
    layers = _blocked(U).unbind(-3)
    before = [layers[0]]
    for layer in layers[1:]:
        before.append(multiply(layer, before[-1]))
    blocks = before.pop()
    if L <= BLOCK:
        z = blocks.squeeze(-3)
        behind = outer(z).expand_as(z).unsqueeze(-3)
    else:
        behind = _chain_gradient(blocks, outer)
    gradients = []
    for layer in reversed(layers[1:]):
        gradients.append(multiply(behind, before.pop().mT))
        behind = multiply(layer.mT, behind)
    return torch.stack([behind, *reversed(gradients)], dim=-3).flatten(-4, -3)[..., :L, :, :]


def _blocked(U: Tensor) -> Tensor:
    """`(..., L, d, d)` cut into blocks, `(..., blocks, size, d, d)`, the last one filled up with identities."""
    size = min(U.shape[-3], BLOCK)
    if missing := -U.shape[-3] % size:
        U = torch.cat((U, identity_like(U[..., :missing, :, :])), dim=-3)
    return U.unflatten(-3, (-1, size))


def layered(W: Tensor, outer: Outer | None, rule: LayerRule, depth: int, links: Callable[..., Tensor]) -> Tensor:
    """`Engine.chain` of layers U_k = rule(W_k/depth) that torch makes; `links` is the chain of them as they are.

    Of more than 64 MiB the gradient goes by segments, whose products are computed twice: beside the result it uses
    little memory. Of less it takes four times that of W.
    """
    if outer is None:
        return links(rule.layer(W / depth)[0])
    if W.nbytes <= 16 * SEGMENT:
        return pulled_back(rule, W / depth, partial(links, outer=outer))
    number = max(1, SEGMENT * W.shape[-3] // W.nbytes)
    segments = W.split(number, dim=-3)
    maps = torch.stack([links(rule.layer(segment / depth)[0]) for segment in segments], dim=-3)
    behind = links(maps, outer).unbind(-3)
    parts = (
        pulled_back(rule, segment / depth, partial(links, outer=partial(_constant, M)))
        for segment, M in zip(segments, behind, strict=True)
    )
    if not (plain(W) and bare(behind[0])):
        return torch.cat(list(parts), dim=-3)
    result = torch.empty_like(W)
    for part, place in zip(parts, result.split(number, dim=-3), strict=True):
        place.copy_(part)
    return result


def grams(X: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """As `Engine.grams`."""
    right, left = X @ V, V.mT @ X
    return right.mT @ right, left @ left.mT


def stepped(W: Tensor, X: Tensor, rate: float, V: Tensor, added: Tensor, apart: int) -> Stepped:
    """As `Engine.stepped`."""
    following = torch.add(W, X, alpha=rate)
    right, left = grams(following - W, V)
    after = added + (right.narrow(-3, apart, added.shape[-3]) - left.narrow(-3, 0, added.shape[-3]))
    return Stepped(following, after, all_finite(after if after.numel() else following))


def descend_flow(grid: DepthGrid, W: Tensor, outer: Outer, rate: float, V: Tensor, added: Tensor) -> Stepped:
    """As `Engine.descend_flow`."""
    return stepped(W, flow(grid, W, outer), rate, V, added, apart=0)


def descend_chain(
    W: Tensor, outer: Outer, rule: LayerRule, depth: int, rate: float, V: Tensor, added: Tensor
) -> Stepped:
    """As `Engine.descend_chain`."""
    return stepped(W, chain(W, outer, rule, depth), rate, V, added, apart=1)


def _constant(M: Tensor, z: Tensor) -> Tensor:
    """The gradient M, wherever z is."""
    return M


def pulled_back(rule: Any, A: Tensor, outer: Outer) -> Tensor:
    """The gradient in A `(..., L, d, d)` of a function of the layers U = rule(A), whose gradient there is outer(U).

    By the rule's own `adjoint`, or by autograd through its `layer` where it has none.
    """
    if hasattr(rule, "adjoint"):
        U, saved = rule.layer(A)
        return rule.adjoint(A, saved, outer(U))
    slope = gradient(lambda point: rule.layer(point)[0], A, outer)
    if slope is None:
        raise TypeError("layer(A) must depend on A through torch operations, but autograd finds no path to it")
    return slope
