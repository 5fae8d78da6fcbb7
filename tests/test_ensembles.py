"""Many members as one run, and runs that are long or wide."""

import subprocess
import sys

import pytest
import torch
from cases import distance, positive_matrix, randn, relaxed_profile

import neuralode_flow as nf

TIMES = torch.linspace(0.0, 1.0, 3)


def members(d, count):
    profiles = [relaxed_profile(d, seed)[1] for seed in range(count)]
    targets = torch.stack([positive_matrix(d, seed + 50) for seed in range(count)])
    return profiles, targets


@pytest.mark.parametrize("method", ["auto", "DOP853", "dopri5", "CVODE_BDF"])
def test_members_that_run_together_end_where_they_do_alone(method):
    profiles, targets = members(3, 4)
    accuracy = {"method": method, "rtol": 1e-8, "atol": 1e-10}
    grid = nf.DepthGrid.gauss(2, 8)
    for make in (lambda loss: nf.ContinuousFlow(grid, loss), lambda loss: nf.FiniteFlow(6, loss, "cayley")):
        together = make(nf.Quadratic(targets))
        flows = [make(nf.Quadratic(target)) for target in targets]
        states = [flow.sample(profile) for flow, profile in zip(flows, profiles)]
        path = nf.integrate(together, torch.stack(states), TIMES, **accuracy)
        assert path.z.shape == (3, 4, 3, 3)
        assert path.loss.shape == path.drift.shape == (3, 4)
        alone = [nf.integrate(flow, state, TIMES, **accuracy).z for flow, state in zip(flows, states)]
        assert distance(path.z, torch.stack(alone, dim=1)) < 1e-6


def test_one_start_towards_many_targets_and_two_leading_axes():
    _, targets = members(3, 4)
    grid = nf.DepthGrid.gauss(1, 8)
    flow = nf.ContinuousFlow(grid, nf.Quadratic(targets.unflatten(0, (2, 2))))
    state = flow.grid.nodes[:, None, None] * randn(3, 3, seed=1)
    velocity = flow.velocity(state.expand(2, 2, 8, 3, 3))
    for i, target in enumerate(targets):
        alone = nf.ContinuousFlow(grid, nf.Quadratic(target)).velocity(state)
        assert torch.allclose(velocity[i // 2, i % 2], alone, atol=1e-13)


PEAK = """
import torch, neuralode_flow as nf
from pathlib import Path
torch.set_default_dtype(torch.float64)
def resident(name):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return 1024 * int(line.split()[1])
def velocity(L):
    flow, state = nf.FiniteFlow(L, nf.Quadratic(torch.eye(16))), torch.randn(L, 16, 16) / 4
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    flow.velocity(state)
    return (resident("VmHWM") - before) / (8 * state.numel())
velocity(64)
print(velocity(20000))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_velocity_of_a_long_network_takes_the_memory_of_at_most_six_states():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 6
