"""What the start of two linear layers decides: formulas by second routes, and planted faults that the checks see."""

import pytest
import torch
from small import SMALL, dataset, failing

import neuralode_flow as nf
from neuralode_flow.finding import Finding
from neuralode_flow.studies import STUDIES, min_norm, overparametrised
from neuralode_flow.studies.overparametrised import Samples

STUDY = STUDIES["min_norm"]
BOUND = "rate of the bound over the fall of the loss"
LAW = "imbalance Λ, by how much it moves"
LAW_CONTROL = "UᵀU + VᵀV, by how much it moves, a control"
RATE = "rate of the slowest direction from the closed kernel"
KERNEL = "slowest rate of the kernel where training ends, from closed"
SHARP = "rate of the slowest direction beyond its bound, largest imbalance"
EXCESS = "order in a² of the rate over its bound from 2"
BALANCED = "c of the balanced start, a control"
LEFT = "loss left of the balanced start, a control"
ORDER = "order in 1/width of the distance from ½"
LIMIT = "distance from its closed limit, largest width"
ORDER_CONTROL = "order of the distance at the exponent ¼, a control"
MOVED = "order in 1/width of ‖V‖² to its closed limit from ½"
MOVED_CONTROL = "‖V‖² if it did not move, from that limit, a control"
UNSAID = "distance that U₂Vᵀ and what is not fitted leave unsaid"
INSIDE = "distance from a start in the invariant set"
WIDE = "where a start of infinite width ends, from closed"
START = "mean square of the entries of random starts off that of N(0, width^(−2α))"
INSIDE_CONTROL = "U₂ of that start, a control"

BOUNDED, GAUSSIAN, ONE_SIDED, ENDS = (
    getattr(min_norm, name) for name in ("rate_bound", "gaussian", "one_sided", "ends")
)
PARTS, FLOW, WIDE_ENDS = Samples.parts, Samples.flow, overparametrised.wide_ends


def run(**changes):
    inputs, settings = SMALL["min_norm"]()
    return STUDY.run(**inputs, **settings | {"draws": 16} | changes)


def samples(n=3, d=5, m=2, seed=0):
    random = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, k, generator=random, dtype=torch.float64) for k in (d, m))
    return Samples(x, y)


def trained(data, theta, horizon=16.0):
    """The end of training, in units of 1/the slowest rate."""
    U1, _, V = data.parts(theta)
    K = overparametrised.kernel(data.x @ data.span, U1 @ U1.mT, V @ V.mT)
    flow = data.flow(torch.linalg.eigvalsh(K)[..., 0])
    return nf.integrate(flow, theta, [0.0, horizon], "DOP853", rtol=1e-10, atol=1e-12).state


def test_the_kernel_is_that_of_autograd():
    data = samples()
    theta = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    J = torch.autograd.functional.jacobian(data.residual, theta).reshape(6, -1)
    U1, _, V = data.parts(theta)
    K = overparametrised.kernel(data.x @ data.span, U1 @ U1.mT, V @ V.mT)
    torch.testing.assert_close(K, J @ J.T, rtol=1e-12, atol=1e-12)


def test_the_bound_holds_of_any_factors_and_is_that_of_the_eigenvalues_counted_by_hand():
    random = torch.Generator().manual_seed(2)
    for k in (2, 4, 9):
        U1, V = (torch.randn(rows, k, generator=random, dtype=torch.float64) for rows in (3, 2))
        law = overparametrised.imbalance(U1, V)
        values = sorted(torch.linalg.eigvals(law).real.tolist(), reverse=True)
        by_hand = max(values[2], 0) + max(-values[-2], 0) if k > 2 else max(-values[0], 0)
        c = float(overparametrised.rate_bound(law, 3, 2))
        assert c == pytest.approx(by_hand, abs=1e-12)
        squares = [float(torch.linalg.eigvalsh(factor @ factor.mT)[0]) for factor in (U1, V)]
        assert c <= sum(squares) + 1e-12
    assert c > 0


@pytest.mark.parametrize("size", [0.0, 3.0])
def test_ends_of_one_sided_starts_are_where_training_leads(size):
    data = samples()
    theta = overparametrised.one_sided(data, size, torch.Generator().manual_seed(3))
    U1, _, V = data.parts(theta)
    law = overparametrised.imbalance(U1, V)
    torch.testing.assert_close(law, size * torch.eye(3, dtype=torch.float64), rtol=1e-13, atol=1e-13)
    U1, _, V = data.parts(trained(data, theta, 16.0))
    over, under = overparametrised.ends(data.span.mT @ data.least, size)
    torch.testing.assert_close(U1 @ U1.mT, over, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(V @ V.mT, under, rtol=1e-6, atol=1e-6)


def test_ends_of_infinite_width_are_those_of_orthonormal_rows():
    data, scale = samples(), 0.7
    theta = torch.cat((data.span @ torch.eye(3, 5).double(), torch.eye(5, dtype=torch.float64)[3:])) * scale**0.5
    torch.testing.assert_close(overparametrised.wide_start(data) * scale**0.5, theta)
    U1, _, V = data.parts(trained(data, theta))
    over, under = overparametrised.wide_ends(data.span.mT @ data.least, scale)
    torch.testing.assert_close(U1 @ U1.mT, over, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(V @ V.mT, under, rtol=1e-6, atol=1e-6)


def test_the_triangular_factor_moves_as_the_whole_network_does():
    data, width = samples(), 60
    theta = torch.randn(7, width, generator=torch.Generator().manual_seed(4), dtype=torch.float64) / width**0.5
    factor = torch.linalg.cholesky(theta @ theta.mT)
    (U, V), (u, v) = (data.factors(trained(data, start, 2.0)) for start in (theta, factor))
    torch.testing.assert_close(U @ V.mT, u @ v.mT, rtol=1e-9, atol=1e-9)
    products = GAUSSIAN(data, width, 0.25, 4000, torch.Generator().manual_seed(5))
    products = (products @ products.mT).mean(0)
    assert float((products - width**0.5 * torch.eye(7, dtype=torch.float64)).abs().max()) < 0.1


def decaying(self, rates):
    """The flow with weight decay."""
    flow = FLOW(self, rates)
    velocity = flow.velocity
    flow.velocity = lambda state: velocity(state) - 1e-3 * state
    return flow


FAULTS = {
    "bound": (min_norm, "rate_bound", lambda law, n, m: 2 * BOUNDED(law, n, m), {BOUND}),
    "place": (min_norm, "rate_bound", lambda law, n, m: BOUNDED(law, 1, 1), {BOUND}),
    "law": (min_norm, "imbalance", lambda U1, V: U1.mT @ U1 - 1.01 * V.mT @ V, {LAW, BALANCED}),
    "ends": (min_norm, "ends", lambda w, size: ENDS(1.01 * w, size), {RATE, KERNEL}),
    "wide": (min_norm, "wide_ends", lambda w, scale: ENDS(w, scale), {MOVED, LIMIT}),
    "wider": (min_norm, "wide_ends", lambda w, scale: tuple(1.01 * part for part in WIDE_ENDS(w, scale)), {WIDE}),
    "larger": (min_norm, "gaussian", lambda *given: 1.01 * GAUSSIAN(*given), {START}),
    "unmoved": (min_norm, "wide_ends", lambda w, scale: ENDS(0 * w, scale)[:1] + (scale * torch.eye(1).double(),),
                {MOVED_CONTROL}),
    "exponent": (min_norm, "gaussian", lambda s, h, a, n, g: GAUSSIAN(s, h, a - 0.1, n, g), {ORDER, LIMIT}),
    "control": (min_norm, "gaussian", lambda s, h, a, n, g: GAUSSIAN(s, h, 0.5, n, g), {ORDER_CONTROL}),
    "invariant": (min_norm, "invariant", lambda s, theta: theta, {INSIDE}),
    "inside": (min_norm, "invariant", lambda s, theta: torch.cat((s.span @ s.parts(theta)[0], s.parts(theta)[2]), -2),
               {INSIDE_CONTROL}),
    "balanced": (min_norm, "one_sided", lambda s, a, g: ONE_SIDED(s, max(a, 0.01), g), {BALANCED, KERNEL}),
    "decay": (Samples, "flow", decaying, {LAW, UNSAID, KERNEL}),
}  # fmt: skip


QUICK = ("bound", "ends", "exponent", "decay", "wider", "larger")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS],
)
def test_a_planted_fault_is_seen(monkeypatch, name):
    where, what, fault, sees = FAULTS[name]
    monkeypatch.setattr(where, what, fault)
    found = run()
    assert sees <= failing(found)
    assert not Finding.of(found).passed


def again(numbers=None, **changes):
    """What fails of the small dataset with other numbers in it."""
    found = dataset("min_norm")
    names = "law", "sum", "kernel", "unsaid", "inside", "inside_orthogonal", "unmoved", "wide_off", "start_off"
    kept = {name: Finding.of(found).numbers[name] for name in names}
    changed = found.assign(changes)
    return failing(min_norm._finding(changed, "", kept | (numbers or {})).attached(changed))


def test_every_check_of_numbers_can_fail():
    found = dataset("min_norm")
    assert again() == set()
    assert again({"sum": 0.0}) == {LAW_CONTROL}
    assert again({"wide_off": float("nan")}) == {WIDE}
    assert again({"start_off": 5.0}) == {START}
    assert again(loss=found.loss + 1e-3) == {LEFT}
    assert again(rate=found.rate * 1.1) == {RATE, SHARP}
    assert again(rate_closed=found.rate_bound * (1 + 1 / found.imbalance)) >= {EXCESS, RATE}
    assert again(distance=found.distance * found.width**0.1) == {ORDER, LIMIT, ORDER_CONTROL}
    assert again(rate=found.rate * 0.01) == {RATE, SHARP}
    assert again(rate=found.rate.where(found.imbalance > 0)) == {RATE}
    assert again(bound_over_fall=found.bound_over_fall * 2) == {BOUND}
    assert again(bound_over_fall=found.bound_over_fall.where(found.width > 16)) == {BOUND}
    assert again(family_bound_over_fall=found.family_bound_over_fall.where(found.imbalance > 0)) == {BOUND}


def test_the_verdict_looks_at_the_rates():
    assert min_norm._fall(0.9, 1e-4) == (
        "The loss falls at least as fast as the imbalance of the start says, whose rate is at most 0.900 of the "
        "measured one, and 1.0e-04 below it along the slowest direction"
    )
    assert "slower than" in min_norm._fall(1.1, 1e-4)
    assert "is not known" in min_norm._fall(float("nan"), 1e-4)
    for off in (0.5, -0.9, float("nan")):
        assert "below it" not in min_norm._fall(0.9, off)


def test_a_loss_that_is_the_error_of_the_solver_or_rises_holds_no_bound():
    fallen, rate = torch.zeros(min_norm._OUTPUTS, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    fallen[0] = 1.0
    decays = torch.exp(-2 * torch.linspace(0.0, 5.0, min_norm._OUTPUTS, dtype=torch.float64))
    losses = torch.stack([fallen, decays, torch.where(decays < 1e-3, 0.0, decays), 2 - decays], dim=-1)
    over = min_norm._bound_over_fall(losses, rate, 5.0)
    assert over[0].isnan()
    torch.testing.assert_close(over[1:], torch.tensor([0.5, 0.5, torch.inf], dtype=torch.float64))


def test_what_does_not_suit_it_is_refused():
    inputs, settings = SMALL["min_norm"]()
    with pytest.raises(ValueError, match=r"study\.rows must be at most 9, got 10"):
        STUDY.run(**inputs, **settings | {"rows": 10})
    with pytest.raises(ValueError, match=r"study\.outputs must be at most 1, got 2"):
        STUDY.run(**inputs, **settings | {"outputs": 2})
    with pytest.raises(ValueError, match=r"study\.widths must begin at 11 or more, .* got 10"):
        STUDY.run(**inputs, **settings | {"widths": [10, 20, 40]})
    with pytest.raises(ValueError, match="has no samples; choose one of a table"):
        STUDY.run(nf.PROBLEMS["reflection"](), **settings)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 5])
def test_other_rows_and_starts_pass(seed):
    assert failing(STUDY.run(nf.PROBLEMS["breast_cancer_white"](), seed=seed)) == set()
