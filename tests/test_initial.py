import math
import pickle

import numpy as np
import pytest
import torch
from cases import generator, positive_matrix, randn, relaxed_profile

import neuralode_flow as nf
from neuralode_flow.depth import chain
from neuralode_flow.depth.grid import Remembered, sample_each
from neuralode_flow.flows.finite import starts
from neuralode_flow.initial import INITIALS
from neuralode_flow.initial.layers import Ends
from neuralode_flow.initial.random import Smooth, SmoothNumber
from neuralode_flow.initial.relaxed import _is_slow
from neuralode_flow.laws import depth_curvature, relaxed_balance_defect
from neuralode_flow.matrices import random_orthogonal, skew_log


@pytest.mark.parametrize("d", [1, 2, 3, 5, 8, 16])
def test_relaxed_balanced_starts_at_z0_and_its_curvature_is_scalar(d):
    z0, W0 = relaxed_profile(d, seed=d)
    grid = nf.DepthGrid.gauss(4, 16)
    W = W0.at(grid.nodes)
    assert float((nf.Collocation(grid).product(W) - z0).abs().max()) < 1e-13 * d
    assert float(relaxed_balance_defect(grid, W)) < 1e-8
    assert torch.allclose(W0(0.3), W0.at(torch.tensor([0.3]))[0], atol=0)


def test_the_shift_is_the_trace_of_the_curvature():
    z0 = positive_matrix(4, seed=0)
    W0 = nf.relaxed_balanced(z0, shift=lambda s: math.sin(3 * s) - 0.4)
    grid = nf.DepthGrid.gauss(3, 16)
    C = depth_curvature(grid, W0.at(grid.nodes))
    expected = (torch.sin(3 * grid.nodes) - 0.4)[:, None, None] * torch.eye(4)
    assert float((C - expected).abs().max()) < 1e-9


def test_the_profile_is_the_formula_with_its_frame():
    # Without shift and twist: W(s) = Q log(H) Qᵀ + log Q₁ with Q = exp(s log Q₁).
    z0 = positive_matrix(3, seed=1)
    U, sigma, Vh = torch.linalg.svd(z0)
    omega = skew_log(U @ Vh)
    Q = torch.linalg.matrix_exp(0.7 * omega)
    expected = Q @ (Vh.mT @ torch.diag(torch.log(sigma)) @ Vh) @ Q.mT + omega
    assert torch.allclose(nf.balanced(z0)(0.7), expected, atol=1e-13)


@pytest.mark.parametrize("d", [2, 3, 4, 7])
def test_skew_logarithm_of_rotations_also_by_half_turns(d):
    for seed in range(5):
        Q = random_orthogonal((d, d), generator(seed))
        if torch.linalg.det(Q) < 0:
            Q[:, 0] = -Q[:, 0]
        half_turn = Q @ torch.diag(torch.tensor([-1.0, -1.0] + [1.0] * (d - 2))) @ Q.mT
        for rotation in (Q, half_turn, torch.eye(d)):
            log = skew_log(rotation)
            assert torch.allclose(log, -log.mT, atol=0)
            assert torch.allclose(torch.linalg.matrix_exp(log), rotation, atol=1e-13)


def test_leading_axes_of_z0_make_an_ensemble():
    z0 = torch.stack([positive_matrix(3, seed=s) for s in range(4)])
    together = nf.relaxed_balanced(z0, shift=lambda s: s).at(torch.linspace(0, 1, 5))
    assert together.shape == (4, 5, 3, 3)
    alone = nf.relaxed_balanced(z0[2], shift=lambda s: s).at(torch.linspace(0, 1, 5))
    assert torch.allclose(together[2], alone, atol=1e-13)


def test_an_unresolved_twist_is_said():
    omega = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    with pytest.warns(RuntimeWarning, match="twist"):
        nf.relaxed_balanced(torch.eye(2), twist=lambda s: omega * (1.0 if s < 0.3 else 2.0))


def planes(d, size):
    """A skew matrix that turns every plane of coordinates (0, 1), (2, 3), … by `size` radians per unit of depth."""
    return torch.block_diag(*[size * SKEW] * (d // 2), *[torch.zeros(1, 1)] * (d % 2))


@pytest.mark.parametrize(("size", "d"), [(300.0, 2), (-400.0, 2), (400.0, 5), (900.0, 3)])
def test_a_fast_constant_twist_starts_at_z0(size, d):
    # The grid must resolve W itself, which turns twice as fast as the frame.
    z0, grid = positive_matrix(d, seed=3), nf.DepthGrid.gauss(128, 16)
    W0 = nf.relaxed_balanced(z0, twist=lambda s: planes(d, size))
    assert float((nf.Collocation(grid).product(W0.at(grid.nodes)) - z0).abs().max()) < 1e-11
    assert torch.equal(W0.end_to_end, z0)
    frame = W0.grid.interpolate(W0.rotation, torch.tensor([0.1234, 0.9]))
    for R, s in zip(frame, (0.1234, 0.9), strict=True):
        assert torch.allclose(R, torch.linalg.matrix_exp(s * planes(d, size)), atol=1e-10)


def test_a_fast_twist_that_changes_its_speed_starts_at_z0():
    z0, grid = positive_matrix(2, seed=4), nf.DepthGrid.gauss(128, 16)
    W0 = nf.relaxed_balanced(z0, twist=lambda s: 300 * math.cos(60 * s) * SKEW)
    assert float((nf.Collocation(grid).product(W0.at(grid.nodes)) - z0).abs().max()) < 1e-11


@pytest.mark.parametrize("part", ["twist", "shift"])
@pytest.mark.parametrize("kind", ["bump", "jump"])
def test_a_start_that_cannot_be_promised_names_the_size(part, kind):
    feature = {
        "bump": lambda s: 50 * math.exp(-(((s - 0.31371) / 4e-4) ** 2)),
        "jump": lambda s: 3.0 * (s > 0.137),
    }[kind]
    function = {"twist": lambda s: feature(s) * SKEW, "shift": feature}[part]
    with pytest.warns(RuntimeWarning, match=rf"{part}\(s\) is resolved to .* misses z0 by about") as said:
        W0 = nf.relaxed_balanced(positive_matrix(2, seed=5), **{part: function})
    stated = float(str(said[0].message).split("by about ")[1].split(",")[0])
    edges = torch.tensor([0.0, 0.137, 0.1374, 0.312, 0.3137, 0.3154, 1.0])
    assert abs(true_gap(W0, edges)) < 10 * stated + 1e-7


def true_gap(W0, edges):
    """‖P(1,0) − z₀‖ of a profile that is smooth between the edges: Magnus' fourth order, 1000 steps on each piece."""
    z = torch.eye(2)
    for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        h = (b - a) / 1000
        left = a + h * torch.arange(1000)
        W = W0.at(torch.stack((left + h * (0.5 - 3**0.5 / 6), left + h * (0.5 + 3**0.5 / 6)), 1).flatten())
        one, two = W[::2], W[1::2]
        steps = torch.linalg.matrix_exp(h / 2 * (one + two) + h**2 * 3**0.5 / 12 * (two @ one - one @ two))
        z = chain.product(steps) @ z
    return float(torch.linalg.matrix_norm(z - W0.end_to_end))


def test_a_grid_that_misses_a_fast_twist_is_said_where_the_state_cannot_tell():
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 8), nf.Quadratic(torch.eye(2)))
    W0 = nf.relaxed_balanced(positive_matrix(2, seed=6), twist=lambda s: 1000 * SKEW)
    path = nf.integrate(flow, W0, [0.0, 0.01], "DOP853")
    assert path.ending == "depth"
    assert float(path.depth_error[0]) > 0.5 * float(torch.linalg.matrix_norm(path.z[0] - W0.end_to_end))


def test_control_has_the_same_z0_and_is_not_relaxed_balanced():
    z0 = positive_matrix(3, seed=2)
    grid = nf.DepthGrid.gauss(2, 12)
    W = nf.control(z0).at(grid.nodes)
    assert torch.allclose(nf.Collocation(grid).product(W), z0, atol=1e-12)
    assert float(relaxed_balance_defect(grid, W)) > 0.01
    normal = z0 @ z0.mT
    assert float(relaxed_balance_defect(grid, nf.control(normal).at(grid.nodes))) < 1e-11


@pytest.mark.parametrize("L", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("gauge", ["smooth", "random"])
def test_relaxed_balanced_layers_have_their_law_and_their_product(L, gauge):
    d = 4
    z0 = positive_matrix(d, seed=L) if gauge == "smooth" else randn(d, d, seed=L)
    shifts = torch.cat((torch.zeros(1), torch.cumsum(randn(L - 1, seed=L), 0) / L))
    state = nf.relaxed_balanced_layers(z0, shifts, None if gauge == "smooth" else generator(L))
    U = torch.eye(d) + state / L
    assert float((chain.product(U) - z0).abs().max()) < 1e-12
    law = U[1:].mT @ U[1:] - U[:-1] @ U[:-1].mT
    expected = torch.diff(shifts)[:, None, None] * torch.eye(d)
    assert float((law - expected).abs().sum()) < 1e-11 * L


@pytest.mark.parametrize("L", [1, 2, 7, 300])
def test_layers_in_numpy_are_those_in_torch(L, monkeypatch):
    z0 = torch.stack([positive_matrix(3, seed=seed) for seed in (1, 2)])
    shifts = torch.cumsum(randn(L, seed=3), 0) / L**1.5
    small = nf.relaxed_balanced_layers(z0, shifts)
    monkeypatch.setattr("neuralode_flow.initial.layers.array_of", lambda *_: None)
    assert float((small - nf.relaxed_balanced_layers(z0, shifts)).abs().max()) < 1e-13 * L


@pytest.mark.parametrize("name", ["relaxed_balanced", "smooth", "rough", "control", "function"])
def test_networks_that_look_at_a_profile_together_start_as_each_alone(name):
    z0 = positive_matrix(3, seed=4)
    profile = (lambda s: torch.eye(3) * s) if name == "function" else INITIALS[name](z0)
    flows = [nf.FiniteFlow(L, nf.Quadratic(z0), "euler", sampling) for L, sampling in ((1, "left"), (8, "midpoint"))]
    for flow, state in zip(flows, starts(flows, profile), strict=True):
        assert torch.allclose(state, flow.sample(profile), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="d = 2"):
        starts([*flows, nf.FiniteFlow(4, nf.Quadratic(torch.eye(2)))], profile)


@pytest.mark.parametrize(("terms", "size"), [(1, 1.0), (4, 1.0), (11, 5.0), (12, 5.0), (4, 200.0), (60, 1.0)])
def test_a_smooth_twist_that_is_not_looked_at_is_resolved(terms, size):
    z0, raw = positive_matrix(3, seed=5), randn(terms, 3, 3, seed=6) / terms
    twist, shift = Smooth(size * (raw - raw.mT)), SmoothNumber(0.5, tuple(randn(terms, seed=7).tolist()))
    assert _is_slow(twist) == (terms <= 11 and size < 10)
    grid = nf.DepthGrid.gauss(64, 16)
    known, looked = (
        nf.relaxed_balanced(z0, shift, twist),
        nf.relaxed_balanced(z0, lambda s: shift(s), lambda s: twist(s)),
    )
    assert torch.allclose(known.at(grid.nodes), looked.at(grid.nodes), rtol=1e-12, atol=1e-12)
    assert float((nf.Collocation(grid).product(known.at(grid.nodes)) - z0).abs().max()) < 1e-11


def test_a_remembered_profile_is_asked_for_known_depths_no_more():
    asked = []

    def profile(s):
        asked.append(s)
        return torch.eye(2)

    known, depths = Remembered(profile), (torch.tensor([0.1, 0.2]), torch.tensor([0.5]))
    first = sample_each(known, *depths)
    again = sample_each(known, depths[1], depths[0], torch.tensor([0.7]))
    assert asked == pytest.approx([0.1, 0.2, 0.5, 0.7])
    assert [len(part) for part in (*first, *again)] == [2, 1, 1, 2, 1]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-8), (torch.float32, 2e-4)])
def test_networks_of_relaxed_balanced_layers_have_their_product_or_are_refused(dtype, bound):
    # W does not hold layers I + W/L that are far smaller than I, as large shifts make them.
    z0 = positive_matrix(3, seed=1).to(dtype)
    for L, size, held in ((5, 0.3, True), (50, 0.05, True), (50, 3.0, False), (1000, 1.0, False)):
        shifts = size * torch.randn(L, generator=generator(L)).to(dtype)
        if not held:
            with pytest.raises(ValueError, match="no admissible root"):
                nf.relaxed_balanced_layers(z0, shifts, generator(2))
            continue
        z = nf.FiniteFlow(L, nf.Quadratic(z0)).product(nf.relaxed_balanced_layers(z0, shifts, generator(2)))
        assert float((z - z0).norm()) < bound * float(z0.norm())


def test_relaxed_balanced_layers_of_an_ensemble():
    z0, shifts = torch.stack([positive_matrix(3, seed=s) for s in range(4)]), torch.tensor([0.0, 0.4, -0.3])
    for draws in (None, generator(0)):
        U = torch.eye(3) + nf.relaxed_balanced_layers(z0, shifts, draws) / 3
        assert torch.allclose(chain.product(U), z0, atol=1e-13)
        law = U[:, 1:].mT @ U[:, 1:] - U[:, :-1] @ U[:, :-1].mT
        assert torch.allclose(law, torch.diff(shifts)[:, None, None] * torch.eye(3), atol=1e-12)


def test_random_gauges_differ_and_a_seed_repeats_them():
    z0, shifts = positive_matrix(3, seed=3), torch.zeros(4)
    first, again, other = (nf.relaxed_balanced_layers(z0, shifts, generator(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert float((first - other).abs().max()) > 0.1


def test_rough_layers_scatter_around_the_profile_with_the_given_size():
    W0 = nf.Rough(nf.identity(3), noise=0.5, networks=50, seed=0)
    layers = W0.layers(torch.linspace(0, 1, 40))
    assert layers.shape == (50, 40, 3, 3)
    assert float(layers.std()) == pytest.approx(0.5, rel=0.02)
    assert torch.equal(layers, W0.layers(torch.linspace(0, 1, 40)))


@pytest.mark.parametrize("name", list(INITIALS))
def test_every_named_initialisation_can_be_sampled(name):
    W0 = INITIALS[name](torch.eye(3))
    loss = nf.Quadratic(torch.eye(3))
    assert nf.ContinuousFlow(nf.DepthGrid.gauss(2, 4), loss).sample(W0).shape == (8, 3, 3)
    assert nf.FiniteFlow(5, loss).sample(W0).shape[-3:] == (5, 3, 3)


def test_dtype_follows_z0():
    W0 = nf.relaxed_balanced(torch.eye(2, dtype=torch.float32), shift=lambda s: s)
    assert W0(0.5).dtype == torch.float32
    assert W0.at(torch.tensor([0.1, 0.2])).dtype == torch.float32


SKEW = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: nf.relaxed_balanced(torch.diag(torch.tensor([1.0, -1.0]))),
            ValueError,
            "z0 must have det > 0, got det = -1",
        ),
        (lambda: nf.relaxed_balanced(torch.zeros(2, 2)), ValueError, "z0 must have det > 0, got det = 0"),
        (lambda: nf.relaxed_balanced(torch.zeros(0, 0)), ValueError, "z0 must not be empty"),
        (
            lambda: nf.relaxed_balanced(torch.eye(2, dtype=torch.int64)),
            TypeError,
            "z0 must hold floating-point numbers",
        ),
        (lambda: nf.relaxed_balanced(torch.ones(2, 3)), ValueError, "z0 must be square"),
        (lambda: nf.relaxed_balanced([[1.0]]), TypeError, "z0 must be a torch tensor, got list"),
        (lambda: nf.relaxed_balanced(torch.eye(2) * torch.nan), ValueError, "z0 must be finite, got 4 NaN"),
        (lambda: nf.relaxed_balanced(torch.eye(2), shift=lambda s: float("nan")), ValueError, "shift.* must be finite"),
        (lambda: nf.relaxed_balanced(torch.eye(2), twist=lambda s: torch.eye(2)), ValueError, "twist.* must be skew"),
        (
            lambda: nf.relaxed_balanced(torch.eye(2), twist=nf.smooth(2, 0.5, generator(1))),
            ValueError,
            "twist.* must be skew",
        ),
        (lambda: nf.relaxed_balanced(torch.eye(3), twist=lambda s: SKEW), ValueError, "twist.* size of z0"),
        (
            lambda: nf.relaxed_balanced(torch.eye(2), twist=lambda s: 1e5 * SKEW),
            ValueError,
            "too fast, got 1e\\+05 rad",
        ),
        (lambda: nf.relaxed_balanced_layers(torch.zeros(2, 2), torch.zeros(3)), ValueError, "z0 must be invertible"),
        (
            lambda: nf.relaxed_balanced_layers(torch.eye(2), torch.tensor([0.0, torch.nan])),
            ValueError,
            "shifts must be finite",
        ),
        (
            lambda: nf.relaxed_balanced_layers(torch.eye(2), torch.tensor([0.0, -1.7e308, 1.7e308])),
            ValueError,
            "no admissible root",
        ),
        (lambda: nf.control(torch.diag(torch.tensor([1.0, -1.0]))), ValueError, "z0 has no real logarithm"),
        (lambda: INITIALS["blanced"], ValueError, "did you mean 'balanced'"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_random_shift_at_many_depths_is_that_at_each_to_the_bit():
    shift, nodes = nf.initial.random_shift(0.7, generator(3)), torch.rand(50, generator=generator(4))
    assert shift.at(nodes).tolist() == [shift(s) for s in nodes.tolist()]
    z0 = positive_matrix(3, 5)
    quick, plain = nf.relaxed_balanced(z0, shift), nf.relaxed_balanced(z0, lambda s: shift(s))
    assert torch.equal(quick.at(nodes), plain.at(nodes))
    waves = torch.randn(4, generator=generator(3)) * torch.cos(torch.pi * 0.3 * torch.arange(4)) / torch.arange(1, 5)
    assert shift(0.3) == pytest.approx(0.7 * float(waves.sum()), rel=1e-14)


def test_profiles_that_are_looked_at_in_the_same_depths_keep_their_own_numbers():
    nodes = torch.rand(50, generator=generator(4))
    for seed in (1, 2):
        twist, z0 = nf.initial.random_twist(3, 0.7, generator(seed)), positive_matrix(3, seed)
        expected = torch.stack([twist(s) for s in nodes.tolist()])
        assert torch.allclose(twist.at(nodes), expected, rtol=0, atol=1e-15)
        known, asked = nf.relaxed_balanced(z0, twist=twist), nf.relaxed_balanced(z0, twist=lambda s, own=twist: own(s))
        assert torch.allclose(known.at(nodes), asked.at(nodes), rtol=0, atol=1e-13)
        again = pickle.loads(pickle.dumps(known))
        assert torch.equal(again.at(nodes), known.at(nodes))


def test_networks_of_several_depths_with_the_same_ends_are_those_alone():
    z0, drawn = positive_matrix(3, 6), generator(8)
    ends = Ends(z0)
    for L in (1, 5, 2):
        shifts = torch.cat((torch.zeros(1), 0.1 * torch.randn(L - 1, generator=drawn)))
        assert torch.equal(ends.layers(shifts), nf.relaxed_balanced_layers(z0, shifts))
        random = nf.relaxed_balanced_layers(z0, shifts, generator(9))
        assert torch.equal(ends.layers(shifts, generator(9)), random)
    reflected = Ends(z0.flip(0))
    with pytest.raises(ValueError, match="z0 must have det > 0"):
        reflected.layers(shifts)
    assert reflected.layers(shifts, generator(9)).shape == (2, 3, 3)


SINGULAR = torch.diag(torch.tensor([1.0, 0.0]))
LAYERS = torch.zeros(3)


@pytest.mark.parametrize(
    ("one", "use", "words"),
    [
        (
            torch.diag(torch.tensor([1.0, -2.0])),
            lambda z: nf.integrate(nf.IntrinsicFlow(nf.Quadratic(torch.eye(2)), nf.LogMean()), z, [0.0, 1.0]),
            "state of member 3 of 5 must have det > 0, got det = -2:",
        ),
        (torch.diag(torch.tensor([1.0, -2.0])), nf.relaxed_balanced, "z0 of member 3 of 5 must have det > 0, got"),
        (
            torch.diag(torch.tensor([1.0, -2.0])),
            lambda z: nf.relaxed_balanced_layers(z, LAYERS),
            "z0 of member 3 of 5 must have det > 0, got det = -2",
        ),
        (SINGULAR, nf.balanced, "z0 of member 3 of 5 must have det > 0, got det = 0"),
        (SINGULAR, lambda z: nf.relaxed_balanced_layers(z, LAYERS), "z0 of member 3 of 5 must be invertible: .* to 1$"),
    ],
)
def test_a_member_that_no_continuous_model_reaches_is_named(one, use, words):
    z = 3 * torch.eye(2).repeat(5, 1, 1)
    use(z)
    z[3] = one
    with pytest.raises(ValueError, match=words):
        use(z)


def test_a_member_that_is_singular_up_to_round_off_is_named():
    z0 = torch.eye(2).repeat(3, 1, 1)
    z0[1] = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 2**-52]])
    with pytest.warns(RuntimeWarning, match="z0 of member 1 of 3 is singular up to round-off"):
        nf.relaxed_balanced(z0)


@pytest.mark.parametrize(("n", "d", "depth"), [(3, 2, 8), (40, 4, 64), (600, 2, 4), (2, 2, 3000)])
def test_layers_of_many_networks_are_to_the_bit_those_of_each_alone(n, d, depth):
    random = torch.Generator().manual_seed(0)
    z0 = torch.eye(d) + 0.1 * torch.randn(n, d, d, generator=random)
    shifts = torch.randn(n, depth, generator=random) / depth**2
    together = Ends(z0).layers(shifts)
    for k in range(0, n, 7):
        assert torch.equal(together[k : k + 1], Ends(z0[k : k + 1]).layers(shifts[k : k + 1]))


@pytest.mark.parametrize("name", ["relaxed_balanced", "control", "smooth", "detour", "rough"])
def test_each_seed_of_a_start_is_another_start_or_refused(name):
    """A generator of torch sees 32 bits of a seed: 2³² was the start of 0, and −1 that of 2³² − 1."""
    make = INITIALS[name]
    depths = torch.tensor([0.3, 0.7], dtype=torch.float64)
    starts = [make(torch.eye(2), seed=seed) for seed in (0, 2**31, 2**32 - 1)]
    values = [getattr(start, "layers", start.at)(depths) for start in starts]
    assert not any(torch.equal(values[i], values[j]) for i in range(3) for j in range(i))
    counted = make(torch.eye(2), seed=np.int64(2**31))
    assert torch.equal(getattr(counted, "layers", counted.at)(depths), values[1])
    for seed, said in ((2**32, "below 2..32"), (-1, "at least 0"), (10**30, "below 2..32")):
        with pytest.raises(ValueError, match=f"seed must be {said}"):
            make(torch.eye(2), seed=seed)
    for seed in (1.0, True, None, "1"):
        with pytest.raises(TypeError, match="seed must be an integer"):
            make(torch.eye(2), seed=seed)


def test_seeds_that_would_be_copies_of_others_are_refused_everywhere():
    for make in (
        lambda seed: nf.PROBLEMS["teacher"](dimension=2, seed=seed),
        lambda seed: nf.SYSTEMS["diagonal"](seed=seed),
        lambda seed: nf.intrinsic.count_laws(lambda theta: theta[:2] * theta[2:], 4, seed=seed),
        lambda seed: nf.intrinsic.quadratic_laws(lambda theta: theta[:2] * theta[2:], 4, seed=seed),
        lambda seed: nf.run("trajectory", {"members.initial.seed": [0, seed]}, problem="linnerud"),
    ):
        with pytest.raises(ValueError, match=r"seed.* must be (at least 0 and )?below 2\*\*32, got 4294967296"):
            make(2**32)
    assert nf.PROBLEMS["teacher"](dimension=2, seed=np.int64(3)).title.endswith("(seed 3)")
