"""The logarithmic polar form moves z as the intrinsic flow does, and keeps what no z in float64 can hold."""

import math

import pytest
import torch
from cases import all_losses, distance, positive_matrix, randn
from torch.testing import assert_close

import neuralode_flow as nf
from neuralode_flow.time.base import fixed_steps

# Least shift attained two, three and two times; the others at any distance.
KERNELS = {
    "limit": nf.LogMean(),
    "two layers": nf.TwoLayer(0.0),
    "balanced": nf.DividedDifference(torch.zeros(5), time_scale=0.2),
    "mixed": nf.DividedDifference(torch.tensor([0.0, -0.3, 0.9, -0.3, -0.3])),
    "close": nf.DividedDifference(torch.tensor([0.0, 1e-9, 0.0])),
}


class AsIs(nf.IntrinsicFlow):
    """The flow in z itself: a subclass is not carried in logarithms."""


def completion(unseen=(0, 0)):
    """2 × 2 with one entry unseen: z₁₁ must grow, since z₁₂ z₂₁ = 1 and z₂₂ → 0 leave det z > 0 no other way."""
    target, mask = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.ones(2, 2, dtype=torch.bool)
    mask[unseen] = False
    return nf.Completion(target, mask)


def of_layers(L):
    return nf.DividedDifference(torch.zeros(L)) if L else nf.LogMean()


def least_z11(loss):
    """Of a z with det z > 0 that has this loss."""
    left = math.sqrt(2 * loss)
    return (1 - left) ** 2 / left


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("d", [1, 2, 4])
def test_its_velocity_moves_z_by_the_velocity_of_the_intrinsic_flow(name, d):
    z = positive_matrix(d, seed=d, scale=1.0)
    for loss in all_losses(d, seed=3).values():
        flow = nf.IntrinsicFlow(loss, KERNELS[name])
        carried = flow.carrier()
        state = carried.enter(z)
        assert distance(carried.product(state), z) < 1e-14
        rate = carried.velocity(state)
        h = 1e-3 / (1 + float(rate.norm()))
        ends = [carried.product(state + k * h * rate) for k in (-2, -1, 1, 2)]
        moved = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * h)
        assert distance(moved, flow.velocity(z)) < 1e-9 * (1 + float(flow.velocity(z).norm()))


@pytest.mark.parametrize("name", KERNELS)
def test_whole_trajectories_are_those_of_z(name):
    z0 = torch.stack([positive_matrix(3, seed=1), torch.eye(3), 0.3 * torch.eye(3)])
    loss = nf.Quadratic(positive_matrix(3, seed=7, scale=0.8))
    run = (z0, torch.linspace(0, 1.5, 4), "DOP853", 1e-12, 1e-13)
    carried, plain = (nf.integrate(kind(loss, KERNELS[name]), *run) for kind in (nf.IntrinsicFlow, AsIs))
    assert carried.status == plain.status == "ok"
    assert plain.carried_log_sigma is None
    assert distance(carried.z, plain.z) < 1e-10
    assert float((carried.log_sigma - plain.log_sigma).abs().max()) < 1e-10
    assert torch.equal(carried.state, carried.z[-1])


@pytest.mark.slow
def test_two_layers_follow_the_truth_that_a_float_cannot_hold():
    # z = B Bᵀ with B' = −G B is the same flow, and keeps det z ≥ 0 by its form.
    loss, times = completion(), [0.0, 160.0]
    form = nf.integrate(
        nf.FactorizationFlow(lambda B: B @ B.mT / 2, loss), math.sqrt(0.2) * torch.eye(2), times, "auto", 1e-10, 1e-12
    )
    for kernel, method in ((nf.TwoLayer(0.0), "DOP853"), (of_layers(2), "auto")):
        path = nf.integrate(nf.IntrinsicFlow(loss, kernel), 0.1 * torch.eye(2), times, method, 1e-8)
        assert path.status == "ok"
        assert float(path.z[-1, 0, 0]) == pytest.approx(9.3950, abs=5e-5)
        assert float(path.z[-1, 0, 0]) == pytest.approx(float(form.z[-1, 0, 0]), rel=1e-6)
        assert float(path.loss[-1]) == pytest.approx(5.541e-3, abs=1e-6)
        log_det = 2 * torch.linalg.slogdet(form.state / math.sqrt(2))[1]
        assert float(path.log_sigma[-1].sum()) == pytest.approx(float(log_det), abs=1e-3)
        assert math.exp(float(path.log_sigma[-1].sum())) == pytest.approx(1.538e-24, rel=1e-3)


@pytest.mark.parametrize(("L", "z11"), [(2, 12.0506), (3, 18.5246), (4, 24.8638)])
@pytest.mark.slow
def test_the_entry_that_is_not_seen_grows_as_it_must(L, z11):
    path = nf.integrate(nf.IntrinsicFlow(completion(), of_layers(L)), 0.1 * torch.eye(2), [0.0, 320.0], "auto", 1e-8)
    assert path.status == "ok"
    assert float(path.z[-1, 0, 0]) == pytest.approx(z11, abs=6e-5)


@pytest.mark.parametrize(
    ("L", "end", "small"),
    [
        (0, 3e6, 1e-6),
        pytest.param(2, 3e6, 8e-6, marks=pytest.mark.slow),  # 1e-6 takes very long
        pytest.param(3, 1e7, 1e-6, marks=pytest.mark.slow),
        pytest.param(4, 3e6, 1e-6, marks=pytest.mark.slow),
    ],
)
def test_a_small_loss_is_reached_by_a_large_entry_only(L, end, small):
    times = torch.cat((torch.zeros(1), torch.logspace(2, math.log10(end), 9)))
    path = nf.integrate(nf.IntrinsicFlow(completion(), of_layers(L)), 0.1 * torch.eye(2), times, "auto", 1e-8)
    assert path.status == "ok"
    assert float(path.loss[-1]) < small
    for z, loss in zip(path.z[1:], path.loss[1:].tolist(), strict=True):
        assert abs(float(z[0, 0])) >= least_z11(loss)


@pytest.mark.parametrize("method", ["euler", "rk4", "implicit_midpoint", "dopri5", "DOP853", "BDF", "CVODE_BDF"])
@pytest.mark.parametrize("kernel", [nf.LogMean(), nf.TwoLayer(0.0)], ids=["limit", "two layers"])
def test_no_step_however_large_crosses(method, kernel):
    # From small starts with targets of the other sign of det: σ_min falls for ever.
    target = randn(3, 3, seed=8)
    target = target if float(torch.linalg.det(target)) < 0 else -target
    fixed = {"step": 0.1} if fixed_steps(nf.METHODS[method]) else {"rtol": 1e-2, "atol": 1e-2}
    path = nf.integrate(
        nf.IntrinsicFlow(nf.Quadratic(target), kernel), 0.5 * torch.eye(3), [0, 5, 20.0], method, **fixed
    )
    assert path.ending in ("ok", "unreachable")
    assert float(path.log_sigma[-1, -1]) < -2
    assert bool((torch.linalg.slogdet(path.z)[0] >= 0).all())


@pytest.mark.parametrize("sign", [1, -1])
def test_two_layers_keep_either_sign_of_det(sign):
    start, target = torch.diag(torch.tensor([1.0, 0.5 * sign])), torch.diag(torch.tensor([2.0, sign]))
    reached = nf.integrate(nf.IntrinsicFlow(nf.Quadratic(target), nf.TwoLayer(0.0)), start, [0.0, 30.0], "auto")
    assert reached.status == "ok"
    assert float(reached.loss[-1]) < 1e-12
    other = nf.integrate(nf.IntrinsicFlow(nf.Quadratic(target), nf.TwoLayer(0.0)), -start @ start, [0.0, 30.0], "auto")
    assert float(torch.linalg.slogdet(other.z[-1])[0]) >= 0  # (−1)² det > 0, and stays
    assert (other.ending == "unreachable") == (sign < 0)


@pytest.mark.parametrize("kernel", [nf.TwoLayer(0.5), nf.DividedDifference(torch.tensor([0.3, 0.0, 0.3]))])
def test_layers_that_are_not_singular_together_cross(kernel):
    target = torch.diag(torch.tensor([1.0, -1.0]))
    path = nf.integrate(nf.IntrinsicFlow(nf.Quadratic(target), kernel), torch.eye(2), [0.0, 60.0], "auto")
    assert path.status == "ok"
    assert distance(path.z[-1], target) < 1e-6


def test_a_step_that_overflows_is_rejected():
    loss, times = nf.Quadratic(30 * torch.eye(2)), [0.0, 0.2]
    for method in ("dopri5", "DOP853", "LSODA", "CVODE_BDF"):
        path = nf.integrate(nf.IntrinsicFlow(loss, nf.LogMean()), 0.5 * torch.eye(2), times, method)
        assert path.status == "ok"
        assert distance(path.z[-1], 30 * torch.eye(2)) < 1e-5


def test_a_zero_singular_value_stays_as_good_as_zero():
    z0 = torch.diag(torch.tensor([1.0, 0.0]))
    path = nf.integrate(nf.IntrinsicFlow(nf.Quadratic(2 * torch.eye(2)), nf.TwoLayer(0.0)), z0, [0.0, 9.0], "DOP853")
    assert path.status == "ok"
    assert distance(path.z[-1], torch.diag(torch.tensor([2.0, 0.0]))) < 1e-8


def test_single_precision_keeps_the_sign_too():
    loss = nf.Quadratic(torch.diag(torch.tensor([2.0, -1.0])).float())
    path = nf.integrate(nf.IntrinsicFlow(loss, nf.LogMean()), torch.eye(2).float(), [0.0, 50.0], "dopri5", 1e-4, 1e-4)
    assert path.z.dtype == path.log_sigma.dtype == torch.float32
    assert path.ending == "unreachable"
    assert bool((torch.linalg.slogdet(path.z)[0] > 0).all())


def test_states_events_and_observers_are_those_of_z():
    seen, flow = [], nf.IntrinsicFlow(nf.Quadratic(2 * torch.eye(2)), nf.LogMean())
    path = nf.integrate(
        flow, torch.eye(2), [0.0, 1.0, 20.0], "DOP853", 1e-10, observe=lambda i, state: seen.append(state),
        stop={"same": lambda t, z, state: 1.0 if torch.equal(z, state) else -1.0, "steady": 1e-5},
    )  # fmt: skip
    assert path.ending == "steady"
    assert float(flow.velocity(path.z[-1]).abs().max()) == pytest.approx(1e-5, rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(seen, path.z, strict=False))
    small = nf.integrate(
        nf.IntrinsicFlow(completion(), nf.TwoLayer(0.0)),
        0.1 * torch.eye(2),
        [0, 200.0],
        "auto",
        stop={"sigma_min": 1e-20},
    )
    assert small.ending == "sigma_min"
    assert float(small.log_sigma[-1, -1]) == pytest.approx(math.log(1e-20), abs=1e-6)


def test_a_flow_with_a_velocity_of_its_own_is_integrated_as_it_is():
    class Slower(nf.IntrinsicFlow):
        def velocity(self, state):
            return super().velocity(state) / 2

    loss = nf.Quadratic(2 * torch.eye(2))
    patched = nf.IntrinsicFlow(loss, nf.LogMean())
    patched.velocity = Slower(loss, nf.LogMean()).velocity
    whole = nf.integrate(nf.IntrinsicFlow(loss, nf.LogMean()), torch.eye(2), [0.0, 0.5], "DOP853")
    for flow in (Slower(loss, nf.LogMean()), patched):
        half = nf.integrate(flow, torch.eye(2), [0.0, 1.0], "DOP853")
        assert distance(half.z[-1], whole.z[-1]) < 1e-7


@pytest.mark.slow
def test_a_checkpoint_keeps_the_form(tmp_path):
    flow, run = (
        nf.IntrinsicFlow(completion(), nf.TwoLayer(0.0)),
        (0.1 * torch.eye(2), [0.0, 80.0, 160.0], "DOP853", 1e-8),
    )
    whole = nf.integrate(flow, *run)
    path = tmp_path / "run.npz"
    short = nf.integrate(flow, *run, checkpoint=path, max_evaluations=2500)
    assert short.ending == "evaluations"
    assert short.state.shape == (2, 2)
    assert torch.equal(nf.load(path).state, short.state)
    again = nf.integrate(flow, *run, checkpoint=path)
    for name in ("times", "z", "loss", "state", "log_sigma"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name
    assert torch.equal(nf.load(path).log_sigma, whole.log_sigma)


def test_log_sigma_of_other_flows_is_that_of_z_and_of_no_matrix_is_refused():
    net = nf.FiniteFlow(2, nf.Quadratic(torch.eye(2)))
    path = nf.integrate(net, torch.zeros(2, 2, 2), [0.0, 1.0])
    assert torch.equal(path.log_sigma, torch.log(torch.linalg.svdvals(path.z)))
    vector = nf.integrate(nf.FactorizationFlow(lambda t: t**2, nf.Quadratic(torch.ones(3))), torch.ones(3), [0.0, 1.0])
    with pytest.raises(ValueError, match=r"log_sigma is for a z that is a matrix, and this one has shape \(2, 3\)"):
        _ = vector.log_sigma


@pytest.mark.parametrize("where", ["object", "class"])
@pytest.mark.parametrize("control", ["shared", "member"])
@pytest.mark.parametrize("L", [0, 3])
def test_a_part_that_was_put_in_place_of_its_own_is_the_one_that_is_asked(where, control, L, monkeypatch):
    loss, kernel = nf.Quadratic(positive_matrix(2, seed=1)), of_layers(L)
    start, options = torch.eye(2).expand(2, 2, 2), {"method": "DOP853", "rtol": 1e-10, "atol": 1e-12}
    known = nf.integrate(nf.IntrinsicFlow(loss, kernel), start, [0.0, 1.0], **options)

    def moved(name, part):
        flow = nf.IntrinsicFlow(loss, kernel)
        given = (lambda self, *more: part(*more)) if where == "class" else part
        with monkeypatch.context() as patch:
            patch.setattr(nf.IntrinsicFlow if where == "class" else flow, name, given, raising=False)
            return nf.integrate(flow, start, [0.0, 1.0], control=control, **options)

    assert_close(moved("product", lambda state: 2 * state).z, 2 * known.z, rtol=1e-8, atol=1e-8)
    assert_close(moved("velocity", torch.zeros_like).z[-1], known.z[0], rtol=0, atol=0)
    assert float(moved("law", lambda state: state.det()[..., None, None, None]).drift[-1].min()) > 0.01


@pytest.mark.parametrize(("start", "size", "atol"), [(1e8, 1e8, 1e-3), (1e10, 1e10, None), (1.0, 1e6, 1e-3)])
def test_a_large_z_is_as_accurate_as_was_asked_for(start, size, atol):
    # Errors of logarithms are relative ones, and the absolute one of z, which round-off raises too, is none.
    known, tau, rtol = start * torch.tensor([0.5, 0.3]), size * torch.tensor([1.0, 2.0]), 1e-9
    times = torch.tensor([0.0, 0.4, 1.0, 9.0]) / size
    path = nf.integrate(
        nf.IntrinsicFlow(nf.Quadratic(tau.diag()), nf.TwoLayer()), known.diag(), times, "DOP853", rtol, atol
    )
    off = torch.linalg.matrix_norm(path.z - torch.diag_embed(nf.exact.saxe(times, known, tau)))
    assert path.status == "ok"
    assert bool((off <= rtol * torch.linalg.matrix_norm(path.z) + (atol or 0.0)).all())
