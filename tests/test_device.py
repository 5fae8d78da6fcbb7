"""Tensors stay on the device of the state: on a GPU where there is one, and beside another default device."""

import warnings

import pytest
import torch
from torch.testing import assert_close

import neuralode_flow as nf
from neuralode_flow.checks import all_finite
from neuralode_flow.depth.engine import by_torch, compiled, on_device
from neuralode_flow.flows.continuous import Unresolved
from neuralode_flow.initial import random_shift, random_twist
from neuralode_flow.initial.detour import Detour
from neuralode_flow.looks import Looks, as_one, current, postponed
from neuralode_flow.matrices import solve
from neuralode_flow.time import byformula
from neuralode_flow.time.formulas import ScipyFormula, ScipyOnDevice
from neuralode_flow.time.steprule import STEP_RULES

SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(12, 3, generator=SOURCE, dtype=torch.float64)
Y = X @ torch.randn(3, 3, generator=SOURCE, dtype=torch.float64)
Z0 = torch.linalg.matrix_exp(0.3 * torch.randn(3, 3, generator=SOURCE, dtype=torch.float64))
W0 = nf.INITIALS["relaxed_balanced"](Z0)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def continuous(device):
    return nf.ContinuousFlow(nf.DepthGrid.gauss(2, 8, device=device), nf.Regression(X.to(device), Y.to(device)))


FLOW = continuous("cpu")
START = FLOW.sample(W0)


def steps(rule, flow=FLOW, start=START):
    return nf.descend(flow, start, 20, rule, 0.02, record=5)


def path(device="cpu", **options):
    flow = continuous(device)
    return nf.integrate(flow, START.to(device), [0.0, 0.5, 1.0], "DOP853", rtol=1e-10, **options)


@pytest.mark.parametrize("rule", STEP_RULES)
def test_steps_do_not_ask_for_the_default_device(rule):
    expected = steps(rule)
    with torch.device("meta"):
        found = steps(rule)
    assert torch.equal(found.z, expected.z)
    assert torch.equal(found.drift, expected.drift)


def test_the_samples_of_a_profile_do_not_either():
    with torch.device("meta"):
        found = FLOW.sample(W0)
    assert torch.equal(found, START)


@pytest.mark.parametrize("kind", [nf.FiniteFlow, nf.ContinuousFlow])
@pytest.mark.parametrize("profile", ["relaxed_balanced", "smooth", "detour", "rough", "by hand", "at once"])
def test_profiles_are_made_and_sampled_where_the_loss_is(kind, profile):
    def state():
        loss, W = nf.Regression(X, Y), nf.INITIALS["relaxed_balanced"](Z0)
        flow = nf.FiniteFlow(6, loss) if kind is nf.FiniteFlow else nf.ContinuousFlow(nf.DepthGrid.gauss(2, 8), loss)
        made = {
            "relaxed_balanced": lambda: nf.relaxed_balanced(Z0, random_shift(0.5, gen()), random_twist(3, 0.5, gen())),
            "smooth": lambda: nf.smooth(3, 0.5, gen()),
            "detour": lambda: Detour(W, X[:3] - X[:3].mT),
            "rough": lambda: nf.Rough(W, noise=0.1, networks=2, seed=0),
            "by hand": lambda: lambda s: s * Z0,
            "at once": lambda: AtOnce(),
        }[profile]()
        return flow.sample(made), made(0.3)

    def gen():
        return torch.Generator().manual_seed(1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Unresolved)
        expected = state()
        with torch.device("meta"):
            found = state()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class AtOnce:
    """A profile that makes its numbers where the depths are."""

    def __call__(self, s):
        return s * Z0

    def at(self, nodes):
        return nodes[:, None, None] * Z0.to(nodes)


@pytest.mark.parametrize("profile", [AtOnce(), nf.identity(3)])
def test_layers_go_to_another_device_with_their_loss(profile):
    class Elsewhere(nf.FiniteFlow):
        def check(self, state):
            """There are no numbers on the device meta to be checked."""

    class There:
        dimension, target = 3, None

        def __init__(self):
            self.target = torch.empty(3, 3, dtype=torch.float64, device="meta")

        def __call__(self, z):
            return (z - self.target).square().sum() / 2

        def gradient(self, z):
            return z - self.target

    flow = Elsewhere(4, There())
    assert flow.nodes.device.type == flow.sample(profile).device.type == "meta"


@pytest.mark.parametrize(
    ("method", "control"),
    [(name, "shared") for name in ("DOP853", "dopri5", "rodas5p", "auto", "rk4")]
    + [(name, "member") for name in ("DOP853", "dopri5", "rodas5p")],
)
def test_runs_do_not_ask_for_the_default_device(method, control, tmp_path):
    """Nor one that goes on from a checkpoint, nor one in which a member fails."""
    targets = torch.stack([torch.eye(2), 3 * torch.eye(2), 0.5 * torch.eye(2)])
    flows = [nf.IntrinsicFlow(nf.Quadratic(targets), nf.LogMean()), nf.FiniteFlow(3, Failing(targets))]
    starts = [torch.eye(2).expand(3, 2, 2).clone(), torch.zeros(3, 3, 2, 2)]

    def ends(folder):
        folder.mkdir()
        for flow, start in zip(flows, starts, strict=True):
            run = {"flow": flow, "state": start, "times": [0.0, 0.1, 1.0], "method": method, "control": control}
            run |= {} if method == "rk4" else {"rtol": 1e-4, "atol": 1e-6}
            short = nf.integrate(**run, max_evaluations=20, checkpoint=folder / "run.npz")
            whole = nf.integrate(**run, checkpoint=folder / "run.npz")
            (folder / "run.npz").unlink()
            yield short.z, whole.z, whole(whole.times[0]), short.status, whole.status

    expected = list(ends(tmp_path / "usual"))
    with torch.device("meta"):
        found = list(ends(tmp_path / "other"))
    for a, b in zip(found, expected, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))
        assert a[3:] == b[3:]


class Failing(nf.Quadratic):
    def gradient(self, z):
        if bool((z[..., 0, 0] > 2).any()):
            raise torch.linalg.LinAlgError("a factorisation did not converge")
        return z - self.target


@GPU
@pytest.mark.parametrize("profile", [nf.balanced(Z0), lambda s: s * Z0, AtOnce()])
def test_a_state_lands_on_the_gpu_of_its_loss(profile):
    for flow in (continuous("cuda"), nf.FiniteFlow(6, nf.Regression(X.cuda(), Y.cuda()))):
        assert flow.sample(profile).device.type == "cuda"


@GPU
@pytest.mark.parametrize("rule", STEP_RULES)
def test_steps_on_a_gpu_are_those_on_the_processor(rule):
    found = steps(rule, continuous("cuda"), START.cuda())
    assert found.z.device.type == "cuda"
    assert_close(found.z.cpu(), steps(rule).z, rtol=0, atol=1e-12)


# --- The engine for accelerators, and one look for each step --------------------------------------------------------


def waves(members, d, size, nodes, seed=0):
    A = torch.randn(3, members, 1, d, d, generator=torch.Generator().manual_seed(seed))
    s = nodes[:, None, None]
    W = A[0] + A[1] * torch.sin(2 * s) + A[2] * torch.cos(3 * s)
    return W * (size / torch.linalg.matrix_norm(W, 2).max())


@pytest.mark.parametrize(("panels", "order", "d", "size"), [(1, 13, 1, 2), (2, 8, 4, 2), (3, 5, 9, 1), (1, 9, 24, 0.5)])
def test_its_velocities_are_those_of_the_other_engines(panels, order, d, size):
    grid = nf.DepthGrid.gauss(panels, order)
    W, target = waves(3, d, size, grid.nodes), torch.randn(d, d, generator=torch.Generator().manual_seed(1))
    known, looks = by_torch.flow(grid, W, lambda z: z - target), Looks()
    scale = float(known.abs().max())
    assert_close(on_device.flow(grid, W, lambda z: z - target), known, rtol=0, atol=1e-14 * d * scale)
    assert_close(on_device.flow(grid, W), by_torch.flow(grid, W), rtol=1e-13, atol=1e-14 * d)
    with postponed(looks):
        for _ in range(3):  # the first looks
            assert_close(on_device.flow(grid, W, lambda z: z - target), known, rtol=0, atol=1e-14 * d * scale)
        assert not looks.doubted()


@pytest.mark.parametrize("size", [4.0, 30.0])
def test_it_doubts_where_the_sweeps_that_it_knows_of_are_too_few(size):
    grid, looks = nf.DepthGrid.gauss(2, 8), Looks()
    W = waves(2, 4, 0.5, grid.nodes)
    with postponed(looks):
        on_device.flow(grid, W, torch.neg)
        on_device.flow(grid, W, torch.neg)
        assert not looks.doubted()
        on_device.flow(grid, W * 2 * size, torch.neg)
        assert looks.doubted()
    grown = as_one(looks, lambda: on_device.flow(grid, W * 2 * size, torch.neg))
    assert_close(grown, by_torch.flow(grid, W * 2 * size, torch.neg), rtol=1e-12, atol=0)


@pytest.mark.parametrize("doubtful", [0, 1, 2])
def test_work_in_doubt_is_done_again_and_at_last_with_every_look(doubtful):
    looks, seen = Looks(), []

    def work():
        seen.append(current() is looks)
        if current() is not None:
            looks.doubts.append(torch.tensor(len(seen) <= doubtful))
        return len(seen)

    assert as_one(looks, work) == doubtful + 1
    assert seen == [True, True, False][: doubtful + 1]
    assert current() is None
    assert as_one(None, work) == doubtful + 2


def test_where_c_is_not_near_the_identity_it_doubts():
    grid, looks = nf.DepthGrid.gauss(1, 2), Looks()
    W = waves(1, 3, 1.0, grid.nodes)
    with postponed(looks):
        on_device.flow(grid, 0.1 * W)
        looks.known = dict.fromkeys(looks.known, 40)
        on_device.flow(grid, 2.9 * W)
        assert looks.doubted()
    assert_close(on_device.flow(grid, 2.9 * W), by_torch.flow(grid, 2.9 * W))


def test_what_is_not_finite_is_doubted_and_solve_notes_a_singular_matrix():
    looks = Looks()
    with postponed(looks):
        assert all_finite(torch.tensor([1.0, float("nan")]))
        assert looks.doubted()
        assert all_finite(torch.ones(2))
        assert not looks.doubted()
        solve(torch.zeros(2, 3, 3), torch.ones(2, 3, 3))
        assert looks.doubted()
    assert not all_finite(torch.tensor([1.0, float("nan")]))


@pytest.mark.parametrize("method", ["RK45", "DOP853", "dopri5"])
def test_steps_of_the_formulas_are_those_of_the_methods(method, monkeypatch):
    """The stepper of accelerators, on the processor: told that the state is not there."""

    def bursting():
        flow = nf.IntrinsicFlow(nf.Custom(lambda z: -z.square().sum((-2, -1)).square()), nf.LogMean())
        return nf.integrate(flow, torch.eye(3), [0.0, 9.0], method, rtol=1e-4)

    def ending():
        return nf.integrate(FLOW, START, [0.0, 1.0], method, max_evaluations=7)

    known, burst, ended = nf.integrate(FLOW, START, [0.0, 0.3, 1.0], method, rtol=1e-4), bursting(), ending()
    with monkeypatch.context() as patch:
        patch.setattr(byformula, "on_device", lambda state: True)
        patch.setattr(ScipyFormula, "on", lambda self, device: ScipyOnDevice(self.control, name=self.name))
        found = nf.integrate(FLOW, START, [0.0, 0.3, 1.0], method, rtol=1e-4, stop={"loss": 1e-9})
        assert (bursting().ending, ending().ending) == (burst.ending, ended.ending)
    assert burst.ending != "ok"
    assert_close(found.z, known.z, rtol=0, atol=1e-13)
    assert found.stats["steps"] == known.stats["steps"]
    assert found.stats["evaluations"] == known.stats["evaluations"]


def growing(device, rtol=1e-10):
    """From W = 0, of which a few sweeps would do, to a large z."""
    target = torch.diag(torch.tensor([30.0, 0.03, 1.0]))
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(2, 8, device=device), nf.Quadratic(target.to(device)))
    return nf.integrate(flow, torch.zeros(16, 3, 3, device=device), [0.0, 0.3, 1.0], "DOP853", rtol=rtol)


def test_where_w_grows_beyond_what_was_known_a_step_is_done_again(monkeypatch):
    known, forgotten, forget = growing("cpu", 1e-6), [], Looks.forget
    monkeypatch.setattr(compiled, "takes", lambda W: False)
    monkeypatch.setattr(on_device, "takes", lambda W: True)
    monkeypatch.setattr(byformula, "on_device", lambda state: True)
    monkeypatch.setattr(ScipyFormula, "on", lambda self, device: ScipyOnDevice(self.control, name=self.name))
    monkeypatch.setattr(Looks, "forget", lambda self: (forgotten.append(self), forget(self)))
    found = growing("cpu", 1e-6)
    assert forgotten
    assert found.status == known.status
    assert found.stats["steps"] == known.stats["steps"]
    # At the bound of stability steps are sensitive to round-off: a thousandth of the tolerance.
    assert_close(found.z, known.z, rtol=1e-9, atol=1e-9)


def layers():
    return nf.FiniteFlow(8, nf.Regression(X, Y)).sample(W0)


def models(device):
    """Flows and their starts."""
    loss = nf.Regression(X.to(device), Y.to(device))
    yield "continuous", continuous(device), START.to(device)
    for layer in ("euler", "rk2", "cayley", "exp"):
        yield layer, nf.FiniteFlow(8, loss, layer), layers().to(device)
    yield "intrinsic", nf.IntrinsicFlow(loss, nf.LogMean()), Z0.to(device)
    factors = torch.stack((Z0, torch.eye(3))).to(device)
    yield "factorised", nf.FactorizationFlow(lambda t: t[..., 0, :, :] @ t[..., 1, :, :], loss), factors


def waits(run):
    """How often the processor waits for the device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            steps = run().stats["steps"]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return steps, sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


@GPU
@pytest.mark.parametrize("method", ["DOP853", "RK45", "dopri5", "dopri8", "rk4", "heun3"])
@pytest.mark.parametrize("layer", [None, "euler", "rk2"])
def test_in_a_step_the_processor_waits_once(method, layer):
    flow = continuous("cuda") if layer is None else nf.FiniteFlow(8, nf.Regression(X.cuda(), Y.cuda()), layer)
    start = START.cuda() if layer is None else layers().cuda()
    step = {"step": 0.05} if method in ("rk4", "heun3") else {}
    few, many = (waits(lambda end=end: nf.integrate(flow, start, [0.0, end], method, **step)) for end in (1.0, 3.0))
    assert many[1] - few[1] <= many[0] - few[0] + 10  # now and then W has outgrown what was known of it
    assert many[1] >= many[0]  # that they are counted at all


@GPU
@pytest.mark.parametrize("rule", ["gd", "heavy_ball", "nesterov", "normalised", "adam", "sign"])
def test_in_a_step_of_training_too(rule):
    flow = continuous("cuda")
    few, many = (waits(lambda n=n: nf.descend(flow, START.cuda(), n, rule, 0.02, record=10**6)) for n in (50, 150))
    assert many[1] - few[1] <= 110  # now and then W has outgrown what was known of it
    assert many[1] >= 100


@GPU
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")  # from the thread of autograd
@pytest.mark.parametrize("method", ["DOP853", "RK45", "dopri5", "dopri8", "rk4"])
def test_every_flow_on_a_gpu_is_that_on_the_processor(method):
    step = {"step": 0.02} if method == "rk4" else {}
    for (name, flow, start), (_, known, its_start) in zip(models("cuda"), models("cpu"), strict=True):
        found = nf.integrate(flow, start, [0.0, 0.5, 1.0], method, **step)
        expected = nf.integrate(known, its_start, [0.0, 0.5, 1.0], method, **step)
        assert found.status == expected.status, name
        # Steps are chosen by estimates of errors, whose last digits are round-off: a thousandth of the tolerance.
        bound = 1e-12 if step else 1e-11
        assert_close(found.z.cpu(), expected.z, rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}")
        assert found.stats["steps"] == expected.stats["steps"], name


@GPU
def test_members_with_steps_of_their_own_are_those_on_the_processor():
    targets = torch.linalg.matrix_exp(0.5 * torch.randn(40, 3, 3, generator=torch.Generator().manual_seed(3)))

    def run(device, method):
        flow = nf.ContinuousFlow(nf.DepthGrid.gauss(2, 8, device=device), nf.Quadratic(targets.to(device)))
        return nf.integrate(flow, START.expand(40, -1, -1, -1).to(device), [0.0, 2.0], method, control="member")

    for method in ("DOP853", "dopri5"):
        found, known = run("cuda", method), run("cpu", method)
        assert_close(found.z.cpu(), known.z, rtol=0, atol=1e-12)
        assert found.stats["members"]["steps"] == known.stats["members"]["steps"]


@GPU
def test_where_w_grows_on_a_gpu_the_numbers_stay_those_of_the_processor():
    found, known = growing("cuda"), growing("cpu")
    assert found.status == known.status
    assert_close(found.z.cpu(), known.z, rtol=1e-9, atol=1e-9)


@GPU
def test_a_loss_that_is_another_one_in_the_next_run_is_seen():
    """What a device was taught in one run is not repeated in another."""
    flow, start = continuous("cuda"), START.cuda()
    first = nf.descend(flow, start, 30, "gd", 0.02)
    flow.loss = nf.Quadratic(torch.eye(3, device="cuda"))
    second = nf.descend(flow, start, 30, "gd", 0.02)
    known = nf.descend(nf.ContinuousFlow(FLOW.grid, nf.Quadratic(torch.eye(3))), START, 30, "gd", 0.02)
    assert float((first.z - second.z).abs().max()) > 1e-2
    assert_close(second.z.cpu(), known.z, rtol=0, atol=1e-12)


@GPU
@pytest.mark.parametrize("rule", ["gd", "adam", "normalised"])
def test_training_that_diverges_ends_as_on_the_processor(rule):
    found = nf.descend(continuous("cuda"), START.cuda(), 200, rule, 40.0)
    known = nf.descend(FLOW, START, 200, rule, 40.0)
    assert (found.ending, found.stats["steps"]) == (known.ending, known.stats["steps"])


@GPU
@pytest.mark.parametrize("method", ["DOP853", "dopri5"])
def test_a_run_goes_on_from_its_checkpoint(tmp_path, method):
    flow, start, times = continuous("cuda"), START.cuda(), [0.0, 0.5, 1.0]
    whole = nf.integrate(flow, start, times, method)
    broken = nf.integrate(flow, start, times, method, checkpoint=tmp_path / "run.npz", max_evaluations=60)
    assert broken.ending == "evaluations"
    found = nf.integrate(flow, start, times, method, checkpoint=tmp_path / "run.npz")
    assert_close(found.z, whole.z, rtol=0, atol=1e-13)
    assert found.stats["steps"] == whole.stats["steps"]


@GPU
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")  # from the thread of autograd
@pytest.mark.parametrize("layer", ["euler", "exp"])
def test_the_edge_of_stability_on_a_gpu_is_that_on_the_processor(layer):
    def sharpness(device):
        flow = nf.FiniteFlow(8, nf.Regression(X.to(device), Y.to(device)), layer)
        return nf.curvature.along(flow, 2)(0, layers().to(device))

    assert_close(sharpness("cuda").cpu(), sharpness("cpu"), rtol=1e-9, atol=1e-9)


@GPU
def test_trajectories_on_a_gpu_are_those_on_the_processor():
    found, expected = path("cuda", dense=True, estimate=True), path(dense=True, estimate=True)
    assert_close(found.z.cpu(), expected.z, rtol=0, atol=1e-12)
    assert_close(found([0.2, 0.7]).cpu(), expected([0.2, 0.7]), rtol=0, atol=1e-12)
    assert found(torch.tensor([0.2], device="cuda")).device.type == "cuda"
