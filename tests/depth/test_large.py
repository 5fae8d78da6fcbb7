"""Panels that fill the memory go by strips of columns: the same numbers, in few states."""

import subprocess
import sys

import pytest
import torch
from cases import distance, randn, smooth_profile

import neuralode_flow as nf
from neuralode_flow.depth import picard
from neuralode_flow.depth.engine import by_torch
from neuralode_flow.depth.panels import stages


@pytest.fixture(autouse=True)
def route():
    """In place of the two routes of this folder: torch's engine is asked for by name."""


@pytest.fixture
def strips(monkeypatch):
    """How wide the strips are that are solved; panels of 512 bytes are large, and three columns a strip."""
    seen = []

    def watched(W, J, width, take):
        seen.append(width)
        return solve_by_strips(W, J, width, take)

    solve_by_strips = picard.solve_by_strips
    monkeypatch.setattr(picard, "solve_by_strips", watched)
    monkeypatch.setattr(by_torch, "SEGMENT", 512)
    monkeypatch.setattr(by_torch, "NARROWEST", 3)
    return seen


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("d", [20, 23])
@pytest.mark.parametrize(("panels", "order"), [(1, 13), (4, 6)])
def test_strips_give_what_whole_panels_give(panels, order, d, batch, strips, monkeypatch):
    monkeypatch.setattr(by_torch, "stages", None)  # the general route, which is not taken
    grid = nf.DepthGrid.gauss(panels, order)
    W = smooth_profile(d, seed=1, scale=1.0).at(grid.nodes) + randn(*batch, len(grid), d, d, seed=2) / (4 * d)
    for outer in (nf.Quadratic(randn(*batch, d, d, seed=3)).gradient, lambda _: torch.eye(d)):
        z, G = by_torch.flow(grid, W), by_torch.flow(grid, W, outer)
        assert set(strips) == {3}
        with monkeypatch.context() as patch:
            patch.setattr(by_torch, "_is_large", lambda local: False)
            whole, expected = by_torch.flow(grid, W), by_torch.flow(grid, W, outer)
        # Both are within 3e-13 of the solution.
        assert distance(z, whole) < 5e-13 * float(torch.linalg.matrix_norm(whole).max())
        assert distance(G, expected) < 5e-13 * float(torch.linalg.matrix_norm(expected).max())
        assert distance(by_torch.flow(grid, W, outer), G) == 0  # what was given is not written over again


def test_derivatives_of_the_outer_gradient_and_modes_see_the_same(strips):
    grid, target = nf.DepthGrid.gauss(2, 6), torch.eye(20).requires_grad_()
    W = smooth_profile(20, seed=1, scale=1.0).at(grid.nodes)

    def summed(gradient):
        return torch.autograd.grad((gradient * randn(*W.shape, seed=4)).sum(), target)[0]

    solved = stages(grid, W)
    before, after, z = by_torch.outside(solved.across)
    inner = after.mT @ (z - target) @ before.mT
    expected = (solved.backward @ inner.unsqueeze(-3) @ solved.forward.mT).flatten(-4, -3)
    found = by_torch.flow(grid, W, nf.Quadratic(target).gradient)
    assert strips
    slope = summed(expected)
    assert distance(summed(found), slope) < 1e-12 * float(slope.norm())
    expected = expected.detach()
    with torch.inference_mode():
        assert distance(by_torch.flow(grid, W, nf.Quadratic(torch.eye(20)).gradient), expected) < 1e-12 * float(
            expected.norm()
        )
    with torch.no_grad():
        assert distance(
            by_torch.flow(grid, W.clone().requires_grad_(), lambda z: z - target), expected
        ) < 1e-12 * float(expected.norm())


def test_what_strips_do_not_solve_goes_the_general_route(strips):
    grid, W = nf.DepthGrid.gauss(2, 6), 40 * randn(12, 20, 20, seed=4) / 20**0.5
    solved = stages(grid, W)
    before, after, z = by_torch.outside(solved.across)
    inner = after.mT @ (z - torch.eye(20)).unsqueeze(-3) @ before.mT
    expected = (solved.backward @ inner.unsqueeze(-3) @ solved.forward.mT).flatten(-4, -3)
    assert torch.equal(by_torch.flow(grid, W, nf.Quadratic(torch.eye(20)).gradient), expected)
    assert torch.equal(by_torch.flow(grid, W), z)
    assert strips


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_a_velocity_takes_the_memory_of_four_states():
    code = """if True:
        import torch, neuralode_flow as nf
        from pathlib import Path
        from neuralode_flow.depth.engine import by_torch
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(1)
        by_torch.SEGMENT = 2**18
        resident = lambda name: int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])
        def peak(order, d):
            grid = nf.DepthGrid.gauss(4, order)
            flow, W = nf.ContinuousFlow(grid, nf.Quadratic(torch.eye(d))), torch.randn(4 * order, d, d) / d
            Path("/proc/self/clear_refs").write_text("5")
            before = resident("VmRSS")
            flow.velocity(W)
            return (resident("VmHWM") - before) * 1024 / W.nbytes
        peak(6, 257)
        print(peak(8, 384))
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(ended.stdout) < 4.2
