"""What is said of a target with det < 0 is proved or measured: a value that the loss cannot pass, and where it is."""

import re

import pytest
import torch
from cases import generator, positive_matrix, randn

import neuralode_flow as nf


def limit(target):
    return nf.IntrinsicFlow(nf.Quadratic(target), nf.LogMean())


def diagonal(*values):
    return torch.diag(torch.tensor(values))


def numbers(status):
    """The value that is said to be the least, whether it is said to be the limit, and the loss that is said."""
    least = re.search(r"the loss (tends to|cannot fall below) ([\d.e+-]+),", status)
    here = re.search(r"it is ([\d.e+-]+) at t", status)
    return float(least[2]), least[1] == "tends to", float(here[1])


def test_a_loss_that_rests_above_its_least_value_is_not_said_to_tend_there():
    # All three modes stay above zero: the loss tends to ½(9 + 4 + 1) = 7, and not to ½.
    for times in ([0.0, 1.0], [0.0, 10.0], [0.0, 1e3]):
        path = nf.integrate(limit(diagonal(-3.0, -2.0, -1.0)), torch.eye(3), times, "auto", stop={"loss": 1e-3})
        assert path.ending == "unreachable"
        least, tends, here = numbers(path.status)
        assert (least, tends) == (0.5, False)
        assert here == pytest.approx(float(path.loss[-1]), rel=1e-5)
    assert here == pytest.approx(7, abs=0.01)


def test_each_member_is_told_whether_its_target_is_out_of_reach():
    targets, times = torch.stack((diagonal(2.0, 1.0), diagonal(-0.5, 2.0), diagonal(1.5, -0.2))), [0.0, 2.0, 60.0]
    path = nf.integrate(limit(targets), torch.eye(2).expand(3, 2, 2), times, "DOP853", control="member")
    alone = [nf.integrate(limit(target), torch.eye(2), times, "DOP853").ending for target in targets]
    assert path.stats["members"]["endings"] == alone == ["ok", "unreachable", "unreachable"]
    assert path.ending == "unreachable"
    assert "the target of members 1 and 2 of 3 has det < 0" in path.status


def test_a_run_at_rest_near_the_boundary_is_said_to_be_out_of_reach_without_being_asked():
    path = nf.integrate(limit(diagonal(-3.0, -2.0, -1.0)), torch.eye(3), [0.0, 1e3], "auto")
    assert path.ending == "unreachable"
    assert numbers(path.status)[1] is False
    early = nf.integrate(limit(diagonal(-3.0, -2.0, -1.0)), torch.eye(3), [0.0, 0.5], "auto")
    assert early.status == "ok"


@pytest.mark.parametrize(
    ("target", "loss", "tends"),
    [
        ((1.0, -1.0), 0.5, True),
        ((2.0, -1.003), 0.5 * 1.003**2, True),
        ((1.0, -1.1), 0.5 * 1.1**2, False),  # the least is ½, to which an aligned start does not lead
        ((5.0, -0.1, -0.1, -0.1), 0.015, False),
        pytest.param((3.0, 2.0, -1.0), 0.5, True, marks=pytest.mark.slow),
    ],
)
def test_tends_is_said_only_of_the_value_to_which_the_loss_tends(target, loss, tends):
    path = nf.integrate(limit(diagonal(*target)), torch.eye(len(target)), [0.0, 1e5], "auto")
    assert float(path.loss[-1]) == pytest.approx(loss, rel=3e-3)
    assert path.ending == "unreachable"
    least, said, here = numbers(path.status)
    assert said is tends
    assert least == pytest.approx(0.5 * min(map(abs, target)) ** 2, rel=1e-5)
    assert here == pytest.approx(float(path.loss[-1]), rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_no_run_passes_the_value_that_is_said_and_one_that_tends_comes_near(seed):
    target = positive_matrix(3, seed=seed, scale=1.0) @ diagonal(1.0, 1.0, -1.0)
    x = randn(20, 3, seed=seed)
    for loss in (nf.Quadratic(target), nf.Regression(x, x @ target.mT)):
        path = nf.integrate(nf.IntrinsicFlow(loss, nf.LogMean()), torch.eye(3), [0.0, 1.0, 1e2, 1e5], "auto")
        if path.ending == "unreachable":
            least, tends, _ = numbers(path.status)
            assert float(path.loss.min()) >= least * (1 - 1e-6)
            assert not tends or float(path.loss[-1]) < float(loss.plateau())


def test_a_loss_that_goes_up_and_down_with_inertia_is_not_said_to_tend_anywhere():
    flow = nf.MomentumFlow(nf.ContinuousFlow(nf.DepthGrid.gauss(2, 8), nf.Quadratic(diagonal(1.0, -0.5))), 0.0)
    start = nf.balanced(diagonal(1.3, 0.3))
    loss = nf.integrate(flow, start, torch.linspace(8, 40, 33) - 8, "DOP853", 1e-8, 1e-10).loss[8:]
    assert float(loss.min()) < 0.13  # half the square of 0.5 is 0.125
    assert float(loss.max()) > 0.16
    for end in (7.83, 9.3, 11.79):  # near the least value, risen again, and near it
        path = nf.integrate(flow, start, [0.0, end], "DOP853", 1e-8, 1e-10, stop={"loss": 0.1})
        least, tends, here = numbers(path.status)
        assert (path.ending, least, tends) == ("unreachable", pytest.approx(0.125), False)
        assert here == pytest.approx(float(path.loss[-1]), rel=1e-5)
    assert nf.integrate(flow, start, [0.0, 9.3], "DOP853", 1e-8, 1e-10).status == "ok"  # far from it, and rising


def test_members_have_sentences_of_their_own():
    targets = torch.stack([diagonal(2.0, 0.5), diagonal(1.0, -1.0), diagonal(1.0, -2.0)])
    flow, start = limit(targets), torch.eye(2).expand(3, 2, 2).clone()
    path = nf.integrate(flow, start, [0.0, 1e3], "auto")
    assert path.ending == "unreachable"
    assert path.status.startswith("the target of members 1 and 2 of 3 has det < 0")
    assert "member 1 of 3: the loss tends to 0.5, its least value" in path.status
    assert numbers(path.status)[2] == pytest.approx(float(path.loss[-1, 1]), rel=1e-5)
    one = nf.integrate(limit(targets[:2]), start[:2], [0.0, 1e3], "auto")
    assert one.status.startswith("the target of member 1 of 2 has det < 0")


def test_the_plateau_is_the_second_value_at_which_a_reflection_can_rest():
    assert float(nf.Quadratic(diagonal(-3.0, -2.0, -1.0)).plateau()) == pytest.approx(2.0)
    assert float(nf.Quadratic(diagonal(1.0, -1.0)).plateau()) == pytest.approx(1.0)
    assert float(nf.Quadratic(diagonal(-1.0)).plateau()) == float("inf")
    assert nf.Quadratic(diagonal(2.0, 1.0)).plateau().isnan()
    assert nf.Quadratic(torch.ones(2, 3)).plateau() is None
    # By descent on the singular matrices: no critical value lies between the two.
    target = torch.linalg.qr(randn(3, 3, seed=1)).Q @ diagonal(2.0, 1.5, 0.7)
    target = target if float(torch.det(target)) < 0 else -target
    loss, draws = nf.Quadratic(target), generator(2)
    for _ in range(3):
        A, B = (torch.randn(3, 2, generator=draws) for _ in range(2))
        for _ in range(3000):
            A, B = A - 0.1 * loss.gradient(A @ B.mT) @ B, B - 0.1 * loss.gradient(A @ B.mT).mT @ A
        value = float(loss(A @ B.mT))
        assert value == pytest.approx(float(loss.boundary()), abs=1e-6) or value > float(loss.plateau()) - 1e-6
