"""The compiled engine against torch's: all sizes, instruction sets and numbers of threads, and what it must refuse."""

import math
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import distance, randn, slow

import neuralode_flow as nf
from neuralode_flow.depth.engine import by_torch, choose, compiled, divided, polar
from neuralode_flow.depth.rules import LAYERS

RULES = "rk2", "cayley", "exp"
SIZES = [*range(1, 13), 15, 16, 17, 24, 31, 33, 64, 100]


class HandedOver(Exception):
    """The compiled engine has given a call to torch's."""


@pytest.fixture(autouse=True)
def route(monkeypatch):
    """In place of the two routes of this folder: what the compiled engine hands over is not done."""
    if compiled.library() is None:
        pytest.skip("the engine is not compiled here")

    def refuse(*arguments):
        raise HandedOver

    names = "flow", "chain", "layered", "descend_flow", "multiply", "grams", "stepped"
    monkeypatch.setattr(compiled, "by_torch", SimpleNamespace(**dict.fromkeys(names, refuse)))


MODES = {"best": (2, 1), "two threads": (2, 2), "avx2": (1, 1), "plain": (0, 2)}


@pytest.fixture(params=MODES.values(), ids=MODES)
def mode(request):
    """The best instruction set that is allowed, and the number of threads."""
    with set_to(*request.param):
        yield request.param


@contextmanager
def set_to(level, threads):
    before = torch.get_num_threads()
    compiled.set_level(level)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        compiled.set_level(2)
        torch.set_num_threads(before)


def without(monkeypatch, function, *arguments):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "library", lambda: None)
        result = function(*arguments)
    torch.set_num_threads(threads)
    return result


def model(d, *batch, layers, norm=2.0):
    W = randn(*batch, layers, d, d, seed=d)
    return W * (norm / torch.linalg.matrix_norm(W, 2).max())


@pytest.mark.parametrize(("panels", "order"), [(1, 13), (4, 6), (2, 8), (8, 3), (3, 5), (6, 2)])
def test_the_continuous_gradient_is_that_of_torch(panels, order, mode, monkeypatch):
    grid = nf.DepthGrid.gauss(panels, order)
    solver = nf.Collocation(grid)
    for d in SIZES if (panels, order) == (1, 13) else (1, 2, 3, 4, 5, 8, 17, 32):
        for batch in ((), (3,)):
            W, outer = model(d, *batch, layers=len(grid)), nf.Quadratic(randn(d, d, seed=2)).gradient
            found, z = compiled.flow(grid, W, outer), compiled.flow(grid, W)
            expected = without(monkeypatch, solver.gradient, W, outer)
            assert distance(found, expected) < 2e-13 * float(torch.linalg.matrix_norm(expected).max())
            assert distance(z, without(monkeypatch, solver.product, W)) < 1e-12


@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize(("panels", "order"), [(4, 12), (8, 12), (3, 5), (1, 1), (1, 2), (1, 13)])
def test_small_matrices_flow_as_they_do_in_larger_ones(d, panels, order, mode):
    # Up to d = 4 the sweeps are others than those of 9 x 9, in float64 as well.
    grid, corner = nf.DepthGrid.gauss(panels, order), (..., slice(d), slice(d))
    for norm in (1e-3, 0.1, 1.0, 2.0, 1.5 * panels, 8.0, 30.0 * panels, math.nan):
        W, G = model(d, 2, layers=len(grid), norm=norm), randn(d, d, seed=2)
        large, outer = torch.zeros(2, len(grid), 9, 9), torch.zeros(9, 9)
        large[corner], outer[corner] = W, G
        try:
            z, expected = compiled.flow(grid, large)[corner], compiled.flow(grid, large, lambda z, G=outer: G)[corner]
        except HandedOver:
            with pytest.raises(HandedOver):
                compiled.flow(grid, W)
            continue
        size = float(torch.linalg.matrix_norm(expected).max())
        assert distance(compiled.flow(grid, W, lambda z, G=G: G), expected) < 5e-14 * size
        assert distance(compiled.flow(grid, W), z) < 5e-14 * float(torch.linalg.matrix_norm(z).max())


@pytest.mark.parametrize(("panels", "order"), [(4, 12), (1, 13), (3, 5)])
def test_a_flow_has_the_same_numbers_whichever_others_there_are(panels, order, mode):
    grid, n = nf.DepthGrid.gauss(panels, order), 5
    for d in range(1, 10):
        W, outer = model(d, n, layers=len(grid)), nf.Quadratic(randn(d, d, seed=2)).gradient
        W *= torch.logspace(-2, 0.3, n)[:, None, None, None]  # they take sweeps of their own number
        for of in (None, outer):
            together = compiled.flow(grid, W, of)
            assert all(torch.equal(together[k], compiled.flow(grid, W[k], of)) for k in range(n)), d


def laid_out(*batch, d, seed):
    """The same matrices as they may lie in memory: in rows, in columns, with gaps, as a part of larger ones."""
    M = randn(*batch, d, d, seed=seed)
    wide, large = torch.zeros(*batch, d, 3 * d), torch.full((*batch, d + 2, d + 1), math.nan)
    wide[..., ::3], large[..., 1:-1, 1:] = M, M
    return [M, M.mT.contiguous().mT, wide[..., ::3], large[..., 1:-1, 1:]]


@pytest.mark.parametrize("d", [*range(1, 10), 12, 13, 16, 24, 31, 32])
def test_products_are_those_of_torch_however_matrices_lie(d, mode):
    for batch in ((), (3,), (2, 100), (2, 3, 4)):
        for one in laid_out(*batch, d=d, seed=1):
            for other in laid_out(*batch, d=d, seed=2) if batch != (2, 100) else [one.mT]:
                assert distance(compiled.multiply(one, other), torch.matmul(one, other)) < 1e-14 * d**2
    one, other = randn(5, 1, d, d, seed=3), randn(7, d, d, seed=4)
    assert distance(compiled.multiply(one, other), one @ other) < 1e-14 * d**2
    assert distance(compiled.multiply(one[0, 0], other), one[0, 0] @ other) < 1e-14 * d**2


def test_a_product_is_the_same_to_the_bit_whichever_are_asked_for_with_it(mode):
    one, other = randn(200, 5, 5, seed=1), randn(200, 5, 5, seed=2)
    together = compiled.multiply(one.mT, other)
    assert all(torch.equal(compiled.multiply(one[i].mT, other[i]), together[i]) for i in (0, 63, 64, 199))


def test_products_that_are_not_for_it_are_handed_over():
    M = randn(3, 4, 4, seed=1)
    for other in (M.clone().requires_grad_(), M[..., :2], M.float(), M.to(torch.complex128)):
        with pytest.raises(HandedOver):
            compiled.multiply(M, other)
    with pytest.raises(HandedOver):
        compiled.multiply(randn(40, 40, seed=1), randn(40, 40, seed=2))
    assert choose(M.clone().requires_grad_()) is by_torch


def test_what_directions_see_of_matrices_is_what_torch_sees(mode):
    for d in (*SIZES, 256):
        for k in range(1, min(d, 4) + 1):
            X, V = randn(2, 3, d, d, seed=d), randn(d, k, seed=k)
            right, left = X @ V, X.mT @ V
            for found, expected in zip(compiled.grams(X.mT.contiguous().mT, V), (right, left), strict=True):
                assert distance(found, expected.mT @ expected) < 1e-13 * float(expected.norm()) ** 2


def test_a_step_is_that_of_torch_and_seen_as_it_was_rounded(mode):
    for d in (*SIZES, 256):
        V, X, k = randn(d, min(d, 4), seed=1), randn(2, 3, d, d, seed=d), min(d, 4)
        for W, rate in ((randn(2, 3, d, d, seed=d + 1).mT, 0.3), (1e9 + X, 1e-7)):
            for apart in (0, 1):
                before = randn(2, 3 - apart, k, k, seed=3)
                following, after, finite = compiled.stepped(W, X.clone(), rate, V, before, apart)
                assert finite
                assert distance(following, W + rate * X) <= 3e-16 * float(torch.linalg.matrix_norm(following).max())
                step = following - W
                right, left = (M.mT @ M for M in (step @ V, step.mT @ V))
                size = float(before.norm() + right.norm() + left.norm())
                assert distance(after, before + right[:, apart:] - left[:, : 3 - apart]) < 1e-13 * size


def test_a_step_along_a_gradient_is_the_gradient_and_then_a_step_to_the_bit(mode):
    grid, rate = nf.DepthGrid.gauss(2, 5), 0.3
    for d in SIZES:
        V, outer = randn(d, min(d, 4), seed=1), nf.Quadratic(randn(d, d, seed=2)).gradient
        for batch in ((), (3,)):
            W, k = model(d, *batch, layers=10), min(d, 4)
            before = randn(*batch, 10, k, k, seed=3)
            together = compiled.descend_flow(grid, W, outer, rate, V, before)
            apart = compiled.stepped(W, compiled.flow(grid, W, outer), rate, V, before, 0)
            assert all(map(torch.equal, together[:2], apart[:2]))
            assert together.finite
            assert apart.finite
            for name, rule in LAYERS.items():
                together = compiled.descend_chain(W, outer, rule, 10, rate, V, before[..., 1:, :, :])
                slope = compiled.chain(W, outer, rule, 10)
                apart = compiled.stepped(W, slope, rate, V, before[..., 1:, :, :], 1)
                assert all(map(torch.equal, together[:2], apart[:2])), name
                assert together.finite
                assert apart.finite


def test_a_long_chain_steps_as_it_has_a_gradient(mode):
    V, outer, W = randn(16, 4, seed=1), nf.Quadratic(randn(16, 16, seed=2)).gradient, model(16, layers=1500)
    together = compiled.descend_chain(W, outer, LAYERS["euler"], 1500, 0.3, V, torch.zeros(1499, 4, 4))
    slope = compiled.chain(W, outer, LAYERS["euler"], 1500)
    apart = compiled.stepped(W, slope, 0.3, V, torch.zeros(1499, 4, 4), 1)
    assert all(map(torch.equal, together[:2], apart[:2]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_says_where_a_number_is_not_finite(bad, mode):
    grid, d = nf.DepthGrid.gauss(2, 5), 5
    V, W = randn(d, 4, seed=1), model(d, 2, layers=10)
    for member, i, j in ((0, 0, 0), (1, 4, 4), (1, 0, 3)):
        G = randn(2, d, d, seed=2)
        G[member, i, j] = bad
        assert not compiled.descend_flow(grid, W, lambda z, G=G: G, 0.1, V, torch.zeros(2, 10, 4, 4)).finite
        assert not compiled.descend_chain(
            W, lambda z, G=G: G, LAYERS["euler"], 10, 0.1, V, torch.zeros(2, 9, 4, 4)
        ).finite
        one = W[:, :1].contiguous()  # of a single layer nothing is compared, and still it is seen
        assert not compiled.descend_chain(
            one, lambda z, G=G: G, LAYERS["euler"], 1, 0.1, V, torch.zeros(2, 0, 4, 4)
        ).finite
        X = randn(2, 10, d, d, seed=3)
        X[member, 7, i, j] = bad
        for apart in (0, 1):
            added = torch.zeros(2, 10 - apart, 4, 4)
            assert not compiled.stepped(W, X.clone(), 0.1, V, added, apart).finite
            assert not by_torch.stepped(W, X.clone(), 0.1, V, added, apart).finite


def test_steps_that_are_not_for_it_are_handed_over():
    grid, d = nf.DepthGrid.gauss(2, 5), 6
    V, W, outer = randn(d, 4, seed=1), model(d, layers=10), nf.Quadratic(torch.eye(d)).gradient
    followed, added = torch.eye(d, requires_grad=True), torch.zeros(10, 4, 4)
    for arguments in (
        (W, outer, 0.1, randn(d, 5, seed=1), torch.zeros(10, 5, 5)),
        (W, lambda z: z - followed, 0.1, V, added),
        (1e4 * W, outer, 0.1, V, added),
        (W, outer, 0.1, V.float(), added),
        (W, outer, 0.1, V[:5], added),
        (W, outer, 0.1, V[:, :3], added),
        (W, outer, 0.1, V, added[:9]),
        (W.expand(3, 10, d, d), outer, 0.1, V, added),
    ):
        with pytest.raises(HandedOver):
            compiled.descend_flow(grid, *arguments)


def test_what_lies_in_shorter_memory_than_it_would_be_read_from_is_handed_over():
    grid, d = nf.DepthGrid.gauss(2, 5), 6
    V, W, outer = randn(d, 4, seed=1), model(d, layers=10), nf.Quadratic(torch.eye(d)).gradient
    for other in (W[:5], W[:9], torch.cat((W, W))):
        for arguments in ((grid, other), (grid, other, outer)):
            with pytest.raises(HandedOver):
                compiled.flow(*arguments)
    for directions in (V[:2, :2], V[:3], torch.cat((V, V)), V[None]):
        with pytest.raises(HandedOver):
            compiled.grams(W, directions)
    added, more = torch.zeros(10, 4, 4), W.expand(3, 10, d, d)
    for state, *rest in (
        (W, V[:3], added, 0), (W, V, added[:9], 0), (W, V, added, 1), (more, V, added, 0), (W, V, added[..., :3], 0),
    ):  # fmt: skip
        with pytest.raises(HandedOver):
            compiled.stepped(state, state.clone(), 0.1, *rest)
    with pytest.raises(HandedOver):
        compiled.descend_chain(W, outer, LAYERS["euler"], 10, 0.1, V, added)


def test_the_gradient_of_a_chain_is_that_of_torch(mode, monkeypatch):
    for d in SIZES:
        for L in (1, 2, 3, 7, {4: 9000, 5: 5000, 16: 1500}.get(d, 80)):  # the long ones are taken in segments
            for batch in ((), (2,)):
                W, loss = model(d, *batch, layers=L), nf.Quadratic(randn(d, d, seed=2))
                flow, U = nf.FiniteFlow(L, loss), torch.eye(d) + W / L
                expected = without(monkeypatch, flow.velocity, W)
                size = float(torch.linalg.matrix_norm(expected).max())
                assert distance(flow.velocity(W), expected) < 2e-13 * size
                assert distance(-nf.depth.chain.gradient(U, loss.gradient), expected) < 2e-13 * size
                assert distance(flow.product(W), without(monkeypatch, flow.product, W)) < 1e-12


@pytest.mark.parametrize("d", range(1, 9))
def test_parts_of_a_chain_lie_side_by_side(d, mode, monkeypatch):
    # Around the lengths from which on eight of them do, whose last parts may have no layer.
    loss = nf.Quadratic(randn(d, d, seed=2))
    for name in LAYERS:
        for L in (7, 8, 9, 15, 16, 17, 63, 64, 65, 129):
            W = model(d, 3, layers=L)
            flow = nf.FiniteFlow(L, loss, name)
            z, expected = (without(monkeypatch, f, W) for f in (flow.product, flow.velocity))
            assert distance(flow.product(W), z) < 1e-13 * float(torch.linalg.matrix_norm(z).max())
            assert distance(flow.velocity(W), expected) < 1e-12 * float(torch.linalg.matrix_norm(expected).max())
            alone = [flow.velocity(W[k]) for k in range(3)]
            assert all(torch.equal(one, flow.velocity(W)[k]) for k, one in enumerate(alone)), (name, L)


@pytest.mark.parametrize(("threads", "d", "L"), [(1, 5, 33793), (16, 8, 441), (16, 8, 651)])
def test_no_part_of_a_chain_begins_beyond_its_end(threads, d, L, monkeypatch):
    # Rounded up to whole layers, the parts that such a chain is cut into have more of them than it has.
    W, loss, before = model(d, layers=L), nf.Quadratic(randn(d, d, seed=2)), torch.get_num_threads()
    flow = nf.FiniteFlow(L, loss, "exp")
    torch.set_num_threads(threads)
    found = flow.product(W), flow.velocity(W)
    torch.set_num_threads(before)
    expected = [without(monkeypatch, map_of, W) for map_of in (flow.product, flow.velocity)]
    assert all(distance(*both) < 1e-12 for both in zip(found, expected, strict=True))


@pytest.mark.parametrize(("rule", "sizes"), [("exp", [1, 2, 4, 7, 9, 16, 33]), *slow(*((r, SIZES) for r in RULES))])
def test_layer_rules_are_those_of_torch(rule, sizes, monkeypatch):
    for d in sizes:
        for L in (1, 2, 7, {4: 9000, 9: 1500}.get(d, 20)):  # the long ones are taken in segments
            for norm in (1e-3, 0.3, 2.5, 12.0):  # of all layers together; exp(12) is found by squaring
                W, loss = model(d, *(() if d % 2 else (2,)), layers=L, norm=norm), nf.Quadratic(randn(d, d, seed=2))
                flow = nf.FiniteFlow(L, loss, rule)
                z, expected = (without(monkeypatch, f, W) for f in (flow.product, flow.velocity))
                # Of I - A/2 for one layer of norm 12 the inverse is ill-conditioned.
                bound = 1e-10 if rule == "cayley" and norm > 2 * L else 1e-12
                of_z, of_velocity = (bound * float(torch.linalg.matrix_norm(known).max()) for known in (z, expected))
                for name, mode in MODES.items():
                    with set_to(*mode):
                        assert distance(flow.product(W), z) < of_z, name
                        assert distance(flow.velocity(W), expected) < of_velocity, name


@pytest.mark.parametrize("rule", LAYERS)
def test_a_chain_has_the_same_numbers_whichever_others_there_are(rule, mode):
    # (4, 2100) is cut into segments; of so many of (4, 500) or (16, 150) nothing is stored, as it is of one of them.
    # One of the last is worth two threads, and would be cut for them.
    cases = [*((d, L, 3) for d in range(1, 10) for L in (1, 2, 5, 17)), (4, 2100, 2), (4, 500, 36), (16, 150, 8)]
    for d, L, n in cases[: None if mode[1] == 1 else -1]:
        W, flow = model(d, n, layers=L), nf.FiniteFlow(L, nf.Quadratic(2 * torch.eye(d)), rule)
        W *= torch.logspace(-1, 0.4, n)[:, None, None, None]
        for map_of in (flow.velocity, flow.product):
            together = map_of(W)
            assert all(torch.equal(together[k], map_of(W[k])) for k in (0, n // 2, n - 1)), (d, L)


def test_the_scratch_is_that_of_the_instruction_set():
    # Eight parts side by side need more than four. One that was as large as a lower set needs was written over its end.
    W, flow = model(3, 2, layers=500), nf.FiniteFlow(500, nf.Quadratic(2 * torch.eye(3)))
    sizes = 2, 500, 3, compiled.EULER, 1
    try:
        for level in (0, 1, 2):
            compiled.set_level(level)
            assert compiled._size("chain_scratch", *sizes) * 8 >= compiled.loaded().chain_scratch(*sizes)
            flow.velocity(W)
    finally:
        compiled.set_level(2)


@pytest.mark.parametrize("d", [2, 4, 7])
def test_a_layer_is_made_as_it_needs_it_beside_others(d, mode, monkeypatch):
    L, loss = 6, nf.Quadratic(randn(d, d, seed=2))
    swapped = torch.eye(d)
    swapped[:2, :2] = torch.tensor([[2.0, 1.0], [1.0, 2.0]])  # I - A/2 has zeros on its diagonal, and an inverse
    turn = randn(d, d, seed=3)
    for k in range(L):
        for rule, layer in (("cayley", swapped), ("exp", 4 * (turn - turn.mT))):
            W, flow = model(d, layers=L, norm=0.1), nf.FiniteFlow(L, loss, rule)
            W[k] = L * layer
            for map_of in (flow.velocity, flow.product):
                expected = without(monkeypatch, map_of, W)
                size = float(torch.linalg.matrix_norm(expected).max())
                assert distance(map_of(W), expected) < 1e-12 * size, (rule, k)
            for bad in (2.0, torch.nan, torch.inf) if rule == "cayley" else (1e4, torch.nan, torch.inf):
                W[k] = L * bad * torch.eye(d)
                with pytest.raises(HandedOver):
                    flow.velocity(W)


@pytest.mark.parametrize("angle", [1e-9, 1e-5, 1e-3, 0.1, 0.29, 0.7, 3.0, 20.0])
def test_the_exponential_of_a_turn(angle, mode):
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    exact = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    assert distance(compiled.chain((angle * turn)[None], rule=LAYERS["exp"]), exact) < 1e-15 * (1 + angle)
    # Its derivative in the direction of the turn itself is the turn at that angle.
    slope = compiled.chain((angle * turn)[None], lambda z: exact @ turn, LAYERS["exp"])[0]
    assert abs(float((slope * turn).sum()) - 2) < 1e-14 * (1 + angle)


def test_a_layer_that_cannot_be_made_goes_to_torch():
    with pytest.raises(HandedOver):
        compiled.chain(2 * torch.eye(3).expand(4, 3, 3), rule=LAYERS["cayley"])  # I - A/2 = 0
    swapped = torch.tensor([[2.0, 1.0], [1.0, 2.0]])  # I - A/2 has zeros on its diagonal, and an inverse
    expected = torch.linalg.inv(torch.eye(2) - swapped / 2) @ (torch.eye(2) + swapped / 2)
    assert distance(compiled.chain(swapped[None], rule=LAYERS["cayley"]), expected) < 1e-14
    for bad in (1e4, math.inf, math.nan):
        with pytest.raises(HandedOver):
            compiled.chain(bad * torch.eye(3)[None], rule=LAYERS["exp"])


def test_threads_do_not_change_a_bit():
    grid, before, results = nf.DepthGrid.gauss(4, 6), torch.get_num_threads(), []
    W, layers = model(40, layers=24), model(16, layers=2000)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        outer = nf.Quadratic(torch.eye(16)).gradient
        chain = compiled.chain(layers, outer, LAYERS["euler"], 2000)
        results.append((compiled.flow(grid, W, nf.Quadratic(torch.eye(40)).gradient), chain))
    torch.set_num_threads(before)
    for flow, chain in results[1:]:
        assert torch.equal(flow, results[0][0])
        assert distance(chain, results[0][1]) < 1e-13  # cut into other parts


def test_threads_of_its_own_do_the_same():
    grid, W, before = nf.DepthGrid.gauss(4, 6), model(40, layers=24), torch.get_num_threads()
    outer = nf.Quadratic(torch.eye(40)).gradient
    torch.set_num_threads(2)
    expected = compiled.flow(grid, W, outer)
    compiled.library().set_pool(None)
    found = compiled.flow(grid, W, outer)
    compiled.library().set_pool(compiled._openmp())
    torch.set_num_threads(before)
    assert torch.equal(found, expected)


def test_a_forked_process_does_not_wait_for_the_threads_of_its_parent():
    code = """if True:
        import multiprocessing, torch, neuralode_flow as nf
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        grid = nf.DepthGrid.gauss(4, 6)
        flow, W = nf.ContinuousFlow(grid, nf.Quadratic(torch.eye(60))), torch.randn(24, 60, 60) / 9
        flow.velocity(W)
        child = multiprocessing.get_context("fork").Process(target=flow.velocity, args=(W,))
        child.start()
        child.join(60)
        print(child.exitcode)
    """
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.stdout.strip() == "0", ended.stderr


@pytest.mark.parametrize("d", [3, 8, 9, 10, 11, 12, 13, 16])
@pytest.mark.parametrize("order", [341, 400])
def test_panels_of_very_many_nodes_are_taken_in_strips_of_rows(d, order, mode):
    at = [
        sum(c * torch.cos(k * nf.DepthGrid.gauss(1, m).nodes)[:, None, None] for k, c in enumerate(parts))
        for m, parts in ((order, model(d, layers=3)), (24, model(d, layers=3)))
    ]
    grid, outer = nf.DepthGrid.gauss(1, order), nf.Quadratic(randn(d, d, seed=2)).gradient
    z, G = compiled.flow(grid, at[0]), compiled.flow(grid, at[0], outer)
    coarse = nf.DepthGrid.gauss(1, 24)
    assert distance(z, compiled.flow(coarse, at[1])) < 1e-13
    # The gradients are one function of depth, on two grids.
    inside = torch.linspace(0.1, 0.9, 5)
    assert (
        distance(grid.interpolate(G, inside), coarse.interpolate(compiled.flow(coarse, at[1], outer), inside)) < 1e-10
    )


@pytest.mark.parametrize("d", [3, 20])
def test_what_the_grid_does_not_resolve_is_refused(d):
    grid = nf.DepthGrid.gauss(1, 13)
    W = model(d, layers=13)
    W[7, 1, 1] = torch.nan
    bad = [norm * model(d, layers=13, norm=1.0) for norm in (30.0, 1e3, 1e200, math.inf)]
    for grid, state in (*((grid, W) for W in (*bad, W)), (nf.DepthGrid.gauss(1, 2), model(d, layers=2, norm=6.0))):
        with pytest.raises(HandedOver):
            compiled.flow(grid, state)


def test_what_the_engine_is_not_made_for_goes_to_torch():
    W, large = model(3, layers=4), torch.zeros(4, compiled.LARGEST + 1, compiled.LARGEST + 1)
    assert choose(W) is compiled
    for other in (W.float(), W.clone().requires_grad_(), large, W[:0], W[..., :2], W[..., :2, :]):
        assert choose(other) is by_torch
    z, pair = torch.eye(3), torch.eye(3).expand(2, 3, 3)
    assert divided.takes(z)
    assert not divided.takes(z[:2])
    assert polar.takes(pair)
    assert not any(map(polar.takes, (z, W, pair[:1], pair[:, :2])))


def test_what_is_handed_over_is_done_whole_by_torch(monkeypatch):
    monkeypatch.setattr(compiled, "by_torch", by_torch)
    grid, outer = nf.DepthGrid.gauss(1, 4), nf.Quadratic(torch.eye(3)).gradient
    for W in (model(3, layers=4, norm=30.0), model(3, 2, layers=4, norm=9.0)):
        assert torch.equal(compiled.flow(grid, W), by_torch.flow(grid, W))
        assert torch.equal(compiled.flow(grid, W, outer), by_torch.flow(grid, W, outer))
    W, rule = model(3, layers=4), LAYERS["exp"]
    W = 1e4 * (W - W.mT)
    assert torch.equal(compiled.chain(W, None, rule, 4), by_torch.chain(W, None, rule, 4))
    target = torch.eye(3).requires_grad_()
    followed = nf.Quadratic(target).gradient  # the outer gradient carries derivatives, which C would not see
    for call in (lambda: compiled.flow(grid, W / 1e4, followed), lambda: compiled.chain(W / 1e4, followed, rule, 4)):
        assert torch.autograd.grad(call().sum(), target)[0].abs().max() > 0


def test_a_state_with_strides_is_read_as_it_is():
    grid, W = nf.DepthGrid.gauss(1, 4), model(3, layers=4)
    seen = W.mT.contiguous().mT
    assert not seen.is_contiguous()
    assert torch.equal(compiled.flow(grid, seen), compiled.flow(grid, W))


@pytest.mark.parametrize("name", ["NEURALODE_FLOW_ENGINE", "NEURALODE_FLOW_KERNEL"])
def test_it_can_be_left_aside(name):
    code = "from neuralode_flow.depth.engine import compiled; print(compiled.library())"
    ended = subprocess.run([sys.executable, "-c", code], env={name: "0"}, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "None"


def test_an_engine_that_was_compiled_from_other_sources_is_refused(tmp_path, monkeypatch):
    built = Path(compiled.library()._name)
    for path in (built, *built.parent.glob("*.[ch]")):
        shutil.copy(path, tmp_path)
    copied = tmp_path / built.name
    assert compiled._opened(copied).multiply  # as it was compiled
    with monkeypatch.context() as patch:  # an engine of before some function
        patch.setitem(compiled._SIGNATURES, "of_tomorrow", ([], None))
        with pytest.raises(ImportError, match=r"other sources.*pip install --editable"):
            compiled._opened(copied)
    with (tmp_path / "work.h").open("a") as header:
        header.write("/* another */\n")
    with pytest.raises(ImportError, match=r"other sources.*pip install --editable"):
        compiled._opened(copied)
    for source in tmp_path.glob("*.[ch]"):
        source.unlink()
    assert compiled._opened(copied).multiply  # from a wheel, which brings none
