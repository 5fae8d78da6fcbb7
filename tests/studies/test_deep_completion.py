"""Completion whose norm shoots up, and starts that are turned: by second routes, with planted faults."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from cases import slow
from small import SMALL, failing

from neuralode_flow.finding import Finding
from neuralode_flow.matrices import random_orthogonal
from neuralode_flow.studies import STUDIES, deep_completion, shooting
from neuralode_flow.studies.deep_completion import _Completed

COMPLETED, TRAINED, KEPT = deep_completion._completed, deep_completion._trained, {}
SQUARE = "3 trained factors against their closed flow, relative"
DEEPER = "3 layers against 2 on the same entries"
TURNED = "errors from a turned start, where the straight one shoots up"
UNSEEN = "square of the unseen errors from that of all errors less the loss"
SHOOTING = "small matrices on which infinite depth shoots up, a control"


def once(key, found, *given, **options):
    """What is trained but once for all tests here."""
    if key not in KEPT:
        KEPT[key] = found(*given, **options)
    return KEPT[key]


def completed(clock, N, loss, z0, fall, name):
    key = (N, loss.target.numpy().tobytes(), loss.mask.numpy().tobytes(), z0.numpy().tobytes())
    return once(key, COMPLETED, clock, N, loss, z0, fall, name)


def run(monkeypatch, **changes):
    inputs, options = SMALL["deep_completion"]()
    monkeypatch.setattr(deep_completion, "_completed", completed)
    monkeypatch.setattr(deep_completion, "_trained", lambda *given, **more: once("trained", TRAINED, *given, **more))
    return STUDIES["deep_completion"].run(**inputs, **options | changes)


def again(found, square=0.0, **changes):
    """What is found of a dataset with other numbers in it."""
    changed = found.assign(changes)
    return failing(deep_completion._finding(changed, 64, 3, square, 0.0, "", "ok", "").attached(changed))


def rank_one(n, seed):
    u, v = torch.randn(2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return u / u.norm(), v / v.norm()


@pytest.mark.parametrize("seed", range(4))
def test_the_turned_start_is_the_rotation_in_the_plane_of_u_and_v(seed):
    u, v = rank_one(5, seed)
    R = shooting.turned(2.5 * torch.outer(u, v))
    beside = u - (u @ v) * v
    generator = torch.outer(beside / beside.norm(), v)
    expected = torch.linalg.matrix_exp(torch.acos(u @ v) * (generator - generator.mT))
    assert torch.allclose(R, expected, rtol=0, atol=1e-13)
    assert torch.allclose(R @ v, u, rtol=0, atol=1e-13)


def test_it_is_the_nearest_of_those_that_lead_v_to_u():
    u, v = rank_one(4, 0)
    R = shooting.turned(torch.outer(u, v))
    rest = torch.linalg.svd(v[None])[2][1:]  # a basis of what is orthogonal to v
    turns = random_orthogonal((200, 3, 3), torch.Generator().manual_seed(1))
    others = R @ (torch.outer(v, v) + rest.mT @ turns @ rest)
    assert float((others @ v - u).abs().max()) < 1e-13
    proper = others[torch.linalg.det(others) > 0]
    assert float(torch.einsum("kii->k", proper).max()) <= float(R.trace())


def test_both_signs_are_run_and_only_what_shoots_is_turned():
    targets, calls = [torch.outer(*rank_one(3, seed)) for seed in range(3)], {}

    def complete(k, sign, z0, name):
        calls[name] = (sign * targets[k], z0)
        return {"straight-1-0": 7.0, "straight-2-1": np.nan}.get(name, 0.5)

    found = shooting.shots(targets, 0.1, complete)
    assert {name for name in calls if "turned" in name} == {"turned-1-0", "turned-2-1"}
    assert np.isfinite(found.shot_straight.values).sum() == 5
    assert np.isfinite(found.shot_turned.values).tolist() == [[False, False], [True, False], [False, True]]
    for k in range(3):
        (against, start), (along, _) = calls[f"straight-{k}-0"], calls[f"straight-{k}-1"]
        assert torch.equal(against, -along)
        assert float(against.trace()) < 0
        assert torch.equal(start, 0.1 * torch.eye(3, dtype=torch.float64))
        assert float(along.trace()) == pytest.approx(float(found.shot_overlap[k, 1]))
    target, start = calls["turned-1-0"]
    assert torch.allclose(start, 0.1 * shooting.turned(target))


TURN, SHOTS = shooting.turned, shooting.shots


def all_turned(targets, size, complete):
    """Every start is turned, the straight ones too."""
    return SHOTS(targets, size, lambda k, sign, z0, name: complete(k, sign, size * TURN(sign * targets[k]), name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "name", "fault", "sees"),
    [
        (shooting, "turned", lambda target: torch.eye(len(target)).to(target), {TURNED}),
        (shooting, "turned", lambda target: TURN(-target), {TURNED}),
        (deep_completion, "shots", all_turned, {SHOOTING}),
    ],
    ids=["not turned", "turned away", "always turned"],
)
def test_a_planted_fault_is_seen(monkeypatch, where, name, fault, sees):
    monkeypatch.setattr(where, name, fault)
    found = run(monkeypatch)
    assert sees <= failing(found)
    assert not Finding.of(found).passed


@pytest.mark.slow
def test_every_check_of_numbers_can_fail(monkeypatch):
    found = run(monkeypatch)
    assert again(found) == set()
    assert again(found, square=1e-7) == {SQUARE}
    assert again(found, unseen=found.unseen * 0 + 1) == {DEEPER}
    assert again(found, shot_turned=found.shot_turned * 30) == {TURNED}
    assert again(found, shot_turned=found.shot_straight) == {TURNED}
    assert again(found, shot_straight=found.shot_straight / 100) == {SHOOTING}


def test_the_default_type_of_numbers_draws_no_other_entries():
    before, drawn = torch.get_default_dtype(), []
    try:
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            drawn += deep_completion._cases(3, 1, 1, torch.Generator().manual_seed(0))
    finally:
        torch.set_default_dtype(before)
    (target, order), (other, entries) = drawn
    assert torch.equal(target, other)
    assert torch.equal(order, entries)


def test_a_run_that_ends_early_is_told(monkeypatch):
    stopped = _Completed(
        unseen=np.nan, squared=1.0, all_squared=1.0, effective_rank=1.0, loss=1.0, time=1.0, status="stopped"
    )
    inputs, options = SMALL["deep_completion"]()
    monkeypatch.setattr(deep_completion, "_completed", lambda *given: stopped)
    monkeypatch.setattr(deep_completion, "_trained", lambda *given, **more: 0.0)
    found = Finding.of(STUDIES["deep_completion"].run(**inputs, **options))
    assert found.status == "stopped"
    assert not found.passed


@pytest.mark.parametrize("horizon", [1e-6, *slow(100.0)])
def test_where_no_loss_has_fallen_nothing_is_said_of_what_is_missed(horizon):
    """At 100 the loss of larger matrices has, and no infinite depth of the small ones has shot up by then."""
    inputs, options = SMALL["deep_completion"]()
    clock = replace(inputs["clock"], times=torch.tensor([0.0, horizon], dtype=torch.float64))
    found = STUDIES["deep_completion"].run(clock, **options)
    errors, verdict = {check.name: check.error for check in Finding.of(found).checks}, Finding.of(found).verdict
    assert np.isnan(found.shot_straight).all()
    assert np.isnan([errors[TURNED], errors[SHOOTING]]).all()
    assert np.isfinite([errors[SQUARE], errors[DEEPER]]).all() == (horizon > 1)
    ended = (
        "of 6 completions and 2 of 2 small ones ended before their loss had fallen, and what they miss is not known."
    )
    assert verdict.endswith(f"{6 if horizon < 1 else 0} {ended}")
    assert "shoots up" not in verdict
    assert "nan" not in verdict
    assert ("deeper is better" in verdict) == (horizon > 1)


@pytest.mark.slow
def test_a_pair_that_is_not_known_is_no_worse_one(monkeypatch):
    found = run(monkeypatch)
    assert again(found, unseen=found.unseen.where(found.member > 0)) == {DEEPER}
    assert again(found, unseen=found.unseen.where(found.network != 0)) == set()
    few = xr.concat([found.unseen, found.unseen * np.nan], xr.DataArray([32, 40], dims="entries"))
    changed = found.drop_dims("entries").assign(
        unseen=few.transpose("network", "entries", "member"), unseen_off=0 * few
    )
    verdict = deep_completion._finding(changed, 64, 3, 0.0, 0.0, "", "ok", "").verdict
    assert verdict.startswith("With 32 of 64 entries")
    assert "nan" not in verdict


def test_entries_that_are_all_seen_leave_nothing_to_complete(monkeypatch):
    with pytest.raises(ValueError, match=r"study\.observations\[1\] must be at most 63, got 64"):
        run(monkeypatch, observations=[32, 64])
    with pytest.raises(ValueError, match=r"study\.drawn_entries must be at most 8, got 9"):
        run(monkeypatch, drawn_entries=9)


def test_an_error_of_the_unseen_entries_that_is_off_is_seen(monkeypatch):
    run(monkeypatch)  # without the fault

    def off(*given):
        found = completed(*given)
        return replace(found, unseen=1.01 * found.unseen)

    inputs, options = SMALL["deep_completion"]()
    monkeypatch.setattr(deep_completion, "_completed", off)
    assert failing(STUDIES["deep_completion"].run(**inputs, **options)) == {UNSEEN}
