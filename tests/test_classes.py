"""Losses of classes: their derivatives, their numbers for large logits, and which targets they take."""

import re

import mpmath
import pytest
import torch
from cases import randn

import neuralode_flow as nf
from neuralode_flow import losses


def classes(n, k, seed):
    """Class numbers (n, 1), each of them there."""
    draws = torch.randint(0, k, (n, 1), generator=torch.Generator().manual_seed(seed)).double()
    draws[:k, 0] = torch.arange(k)
    return draws


def made(name, led=True):
    """A loss of 12 rows, with readin and readout or without, and the function that it must be, by torch alone."""
    x, y = randn(12, 4 if led else 3, seed=0), classes(12, 3, 1)
    readin, readout = (randn(3, 4, seed=2), randn(3, 3, seed=3)) if led else (None, None)
    signs = torch.where(torch.cat((y > 0, y > 1, y < 1), 1), 1.0, -1.0)

    def value(z):
        prediction = (x if readin is None else x @ readin.mT) @ z.mT
        prediction = prediction if readout is None else prediction @ readout.mT
        if name == "logistic":
            return torch.log1p(torch.exp(-signs * prediction)).sum((-2, -1)) / 12
        chances = torch.exp(prediction) / torch.exp(prediction).sum(-1, keepdim=True)
        return -torch.log(chances.gather(-1, y.long().expand(*chances.shape[:-1], 1))).sum((-2, -1)) / 12

    return nf.LOSSES[name](x, signs if name == "logistic" else y, readin, readout), value


@pytest.mark.parametrize("led", [True, False])
@pytest.mark.parametrize("name", ["logistic", "cross_entropy"])
def test_value_gradient_and_hessian_are_those_of_autograd_and_of_differences(name, led):
    loss, value = made(name, led)
    z, v, h = randn(2, 3, 3, seed=6), randn(2, 3, 3, seed=7), 1e-6
    torch.testing.assert_close(loss(z), value(z), rtol=1e-13, atol=1e-13)
    point = z.clone().requires_grad_()
    slope = torch.autograd.grad(value(point).sum(), point, create_graph=True)[0]
    bend = torch.autograd.grad((slope * v).sum(), point)[0]
    torch.testing.assert_close(loss.gradient(z), slope.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(loss.hessian(z, v), bend, rtol=1e-12, atol=1e-13)
    numeric = (loss(z + h * v) - loss(z - h * v)) / (2 * h)
    torch.testing.assert_close((loss.gradient(z) * v).sum((-2, -1)), numeric, atol=1e-8, rtol=1e-7)
    numeric = (loss.gradient(z + h * v) - loss.gradient(z - h * v)) / (2 * h)
    torch.testing.assert_close(loss.hessian(z, v), numeric, atol=1e-8, rtol=1e-7)
    losses.compare_derivatives(loss, z)


@pytest.mark.parametrize("margin", [1e-3, 1.0, 30.0, 300.0, -30.0, -300.0, 1e6, -1e6])
def test_large_logits_keep_their_digits(margin):
    """One row x = 1, z = margin: log(1 + exp(−margin)) to the last digits, also far below round-off of 1."""
    one = torch.ones(1, 1)
    z = torch.tensor([[margin, 0.0], [0.0, 0.0]])
    padded = torch.tensor([[1.0], [0.0]])
    with mpmath.workdps(60):
        exact = mpmath.log1p(mpmath.exp(-mpmath.mpf(margin)))
        slope = -1 / (1 + mpmath.exp(mpmath.mpf(margin)))
    binary = nf.LOSSES["logistic"](one, one, padded, padded.mT)
    several = nf.LOSSES["cross_entropy"](one, torch.tensor([[1.0, 0.0]]), padded, torch.eye(2))
    for loss in (binary, several):
        assert float(loss(z)) == pytest.approx(float(exact), rel=1e-14, abs=1e-300)
        assert float(loss.gradient(z)[0, 0]) == pytest.approx(float(slope), rel=1e-14, abs=1e-300)
        assert bool(loss.hessian(z, torch.ones(2, 2)).isfinite().all())


def test_logits_near_the_largest_number_stay_finite():
    for name in ("logistic", "cross_entropy"):
        loss, _ = made(name)
        z = 1e300 * randn(3, 3, seed=4)
        assert bool(loss(z).isfinite())
        assert bool(loss.gradient(z).isfinite().all())


def test_two_classes_are_the_logistic_loss_of_half_the_difference():
    x, y = randn(9, 2, seed=0), classes(9, 2, 1)
    several = nf.LOSSES["cross_entropy"](x, y)
    binary = nf.LOSSES["logistic"](x, y, None, torch.tensor([[-1.0, 1.0]]))
    z = randn(2, 2, seed=2)
    torch.testing.assert_close(several(z), binary(z))
    torch.testing.assert_close(several.gradient(z), binary.gradient(z))


def test_targets_in_all_ways_that_they_are_written_in_give_one_loss():
    x, y, z = randn(12, 3, seed=0), classes(12, 3, 1), randn(3, 3, seed=2)
    hot = torch.nn.functional.one_hot(y[:, 0].long(), 3).double()
    values = [float(nf.LOSSES["cross_entropy"](x, target)(z)) for target in (y, y + 1, hot)]
    assert values == [values[0]] * 3
    signs = 2 * hot - 1
    assert float(nf.LOSSES["logistic"](x, hot)(z)) == float(nf.LOSSES["logistic"](x, signs)(z))


@pytest.mark.parametrize(
    ("name", "y", "words"),
    [
        ("logistic", [[1.0], [2.0]], "must hold −1 and 1, or 0 and 1, for the logistic loss, got 2 in row 2, column 1"),
        ("logistic", [[1.0, 0.0], [-1.0, 1.0]], "got 0 among −1 and 1 in row 1, column 2"),
        ("cross_entropy", [[0.5], [1.0]], "whole numbers 0, 1, 2, … in one column, got 0.5 in row 1; number"),
        ("cross_entropy", [[0.0], [2.0]], "without gaps (or from 1), got 0, 2; number them anew"),
        ("cross_entropy", [[2.0], [3.0]], "without gaps (or from 1), got 2, 3; number them anew"),
        ("cross_entropy", [[-1.0], [0.0]], "without gaps (or from 1), got -1, 0; number them anew"),
        ("cross_entropy", [[1.0], [1.0]], "two classes or more, got 1 in all rows"),
        ("cross_entropy", [[1.0, 0.0], [1.0, 1.0]], "a column for each class with one 1 in each row and 0 else"),
        ("cross_entropy", [[0.0, 0.0], [1.0, 0.0]], "got 0, 0 in row 1"),
    ],
)
def test_other_targets_are_refused(name, y, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        nf.LOSSES[name].encode("problem.y", torch.tensor(y))
    with pytest.raises(ValueError, match="^y must"):
        nf.LOSSES[name](torch.ones(2, len(y[0])), torch.tensor(y))


@pytest.mark.parametrize("name", ["logistic", "cross_entropy"])
def test_training_separates_what_can_be_separated(name):
    """Two clouds: the flow of z ends with each row on its side, and a loss that falls as it must along a gradient."""
    y = classes(40, 2, 3)
    x = 0.3 * randn(40, 2, seed=4) + torch.where(y > 0, 2.0, -2.0)
    loss = nf.LOSSES[name](x, y, None, torch.eye(1, 2) if name == "logistic" else None)
    path = nf.integrate(nf.IntrinsicFlow(loss, nf.LogMean()), torch.eye(2), torch.linspace(0.0, 5.0, 11))
    assert bool((path.loss.diff() < 0).all())
    outputs = x @ path.z[-1].mT
    guess = outputs[:, :1] > 0 if name == "logistic" else outputs[:, 1:] > outputs[:, :1]
    assert bool((guess == (y > 0)).all())


@pytest.mark.parametrize("name", ["logistic", "cross_entropy"])
@pytest.mark.parametrize(
    ("y", "kind", "words"),
    [
        ([[0.0], [1.0]], TypeError, "y must be a torch tensor, got list"),
        (torch.zeros(2), ValueError, "y must have at least 2 axes"),
        (torch.zeros(2, 1, 1), ValueError, "y must have 2 axes"),
        (torch.zeros(2, 1, dtype=torch.int64), TypeError, "y must hold floating-point numbers"),
    ],
)
def test_what_is_no_table_is_refused_as_by_other_losses(name, y, kind, words):
    with pytest.raises(kind, match=words):
        nf.LOSSES[name](torch.eye(2), y)
