"""Plants faults into a copy of the package, one at a time, and says which of them the tests notice.

    .venv/bin/python tests/mutations.py [NUMBER …]

Prints a table for docs/testing.md; the exit status is 0 if all but one of the faults are noticed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = "neuralode_flow", "conf", "tests", "docs", "pyproject.toml", "README.md", "CHANGELOG.md", "setup.py"


class Fault(NamedTuple):
    """`old` stands once in the file, and `new` takes its place; `tests` are what is run."""

    what: str
    file: str
    old: str
    new: str
    tests: str


FAULTS = [
    Fault("the continuous velocity goes uphill", "flows/continuous.py",
          "return -self.loss.gradient(z)", "return self.loss.gradient(z)", "flows/test_gradients.py"),
    Fault("integrations that are not to be measured are, in a batch", "studies/together.py",
          "        checks=first.checks,\n", "", "studies/test_together.py"),
    Fault("the companion that measures the error in time asks for the law", "time/integrate.py",
          "better.goals, checks=self.adapt", "better.goals, checks=True", "time/test_checks.py"),
    Fault("members are recorded with the z of where they stood before", "time/ownsteps.py",
          "self._here, self.z = stand, None", "self._here = stand", "time/test_own_runs.py time/test_own_steps.py"),
    Fault("who multiplies in another way is told the z of C", "flows/finite.py",
          'own = unpatched(FiniteFlow, "product") and "product" not in vars(self)', "own = True",
          "time/test_own_runs.py"),
    Fault("the derivative of another velocity is taken", "flows/base.py",
          "and homes[0] is homes[1]", "", "time/test_rodas.py"),
    Fault("a derivative that fails ends all members", "time/watch.py",
          "bad = torch.tensor([_fails(work, flow, states, i) for i in range(n)], device=\"cpu\")",
          "bad = torch.ones(n, dtype=torch.bool)", "time/test_rodas.py"),
    Fault("a loss with another gradient is taken for half a square", "losses/base.py",
          'told = "squares" in vars(type(loss)) and "gradient" not in vars(loss) and',
          'told = hasattr(loss, "squares") or', "time/test_whole_steps.py"),
    Fault("a wrapper takes the whole steps of what it wraps", "flows/capabilities.py",
          "return itself_offers(flow, StepsExplicitly)", "return offers(flow, StepsExplicitly)",
          "time/test_whole_steps.py"),
    Fault("powers of many errors are rounded otherwise than of one", "time/formulas.py",
          "if not base.is_cpu or base.dtype != torch.float64:", "if True:", "time/test_whole_steps.py"),
    Fault("a state without a velocity in C is given what lies there", "depth/engine/polar.py",
          "!= 0 if lost else None", "!= 0 if False else None", "time/test_implicit_steps.py"),
    Fault("a kernel that was replaced is taken for the one in C", "flows/polar.py",
          ' and unpatched(LogMean, "log_rate")', "", "time/test_implicit_steps.py"),
    Fault("whole implicit steps know no budget", "time/watch.py",
          "self.budget.evaluations - self.evaluations)", "10**9)", "time/test_implicit_steps.py"),
    Fault("Newton's iteration goes on below round-off", "time/methods/ndf.py",
          "if size <= floor:", "if size <= 0:", "time/test_implicit_steps.py time/test_ndf.py"),
    Fault("members of a part have the losses of the first", "depth/engine/explicit.py",
          'torch.arange(n, device="cpu")[some]', "torch.arange(n)[: len(states[some])]", "time/test_whole_steps.py"),
    Fault("steps of members are chosen in C although somebody looks at each", "time/apart.py",
          "by_steps=bool(self.task.events)", "by_steps=False", "time/test_own_steps.py"),
    Fault("det z may change its sign in C unseen", "time/apart.py",
          "return None if self.barrier is None else self.barrier.sign", "return None if True else self.barrier.sign",
          "time/test_own_runs.py"),
    Fault("steps that C tried again cost nothing", "time/ownsteps.py",
          "self._spend(rows, ran.tried", "self._spend(rows, ran.took", "time/test_own_runs.py"),
    Fault("who goes on in C has the budget of the first", "time/ownsteps.py",
          "LONGEST) - self.evaluations[rows]", "LONGEST) - self.evaluations[rows[:1]] - 0 * rows",
          "time/test_own_runs.py"),
    Fault("who took a step in C and who in Python are mixed up", "time/ownsteps.py",
          "self.before.beside(before, order)", "self.before.beside(before, np.arange(len(order)))",
          "time/test_own_runs.py"),
    Fault("members that rest are asked for to the end of a call", "depth/engine/explicit.py",
          "or 2 * going.sum() < len(going):", "or not going.any():", "time/test_own_runs.py"),
    Fault("members without z are not put back where recording fails", "time/apart.py",
          "if not self._put_back(own):", "if True:", "time/test_own_steps.py"),
    Fault("matrices of a product are read as if they lay one after the other", "depth/engine/compiled.py",
          "*matrices.stride())", "*matrices.contiguous().stride())", "depth/test_engine.py"),
    Fault("members have the layers of the first in C", "depth/engine/divided.py",
          "apart=L if own else 0", "apart=0", "flows/test_closed_layers.py"),
    Fault("results that found no room are called written", "results.py",
          "if stream.failure is not None:", "if False:", "test_files.py"),
    Fault("the engine serves in a dispatch mode", "depth/engine/compiled.py",
          "not (plain(W) and W.is_cpu", "not (bare(W) and W.is_cpu", "time/test_whole_steps_in_modes.py"),
    Fault("a gradient that is no tensor of numbers is read as one", "depth/engine/explicit.py",
          "if not compiled.is_numbers(gradient):", "if False:", "time/test_whole_steps_in_modes.py"),
    Fault("a velocity that fails inside a step is told of at its start", "time/byformula.py",
          "next(self._later, 0.0)", "0.0", "time/test_members.py"),
    Fault("a derivative that fails is looked for beside the state at which it does", "time/watch.py",
          "FAILURES, state, self._derivable, self.members)", "FAILURES, state, self.good, self.members)",
          "time/test_members.py"),
    Fault("times are rounded to the default dtype", "checks.py",
          "torch.as_tensor(values, dtype=torch.float64, device=\"cpu\")", "found.double()", "time/test_integrate.py"),
    Fault("a network has its depths on the default device", "flows/finite.py",
          "device=place_of(self.loss))", "device=None)", "test_device.py"),
    Fault("gd takes the step of the flow beneath it", "flows/continuous.py",
          "or not own_velocity(self, ContinuousFlow):", "or False:", "time/test_descend.py"),
    Fault("a wrapper takes the step of what it passes on to", "time/descend.py",
          "and itself_offers(task.flow, Descends)", 'and hasattr(task.flow, "descended")', "time/test_descend.py"),
    Fault("a step that is not finite is not seen where a chain takes it", "depth/engine/compiled.py",
          "return Stepped(following, after, not spoiled)", "return Stepped(following, after, True)",
          "depth/test_engine.py"),
    Fault("the finite velocity without the factor L", "depth/engine/by_torch.py",
          "return pulled_back(rule, W / depth,", "return pulled_back(rule, W,",
          "depth/test_engine.py depth/test_modes.py"),
    Fault("the adjoint of RK2 without a transpose", "depth/rules/rk2.py",
          "multiply(A.mT, M).add_(multiply(M, A.mT))", "multiply(A.mT, M).add_(multiply(M, A))",
          "depth/test_layers.py"),
    Fault("the adjoint of Cayley without a transpose", "depth/rules/cayley.py",
          "multiply(multiply(saved.mT, M), saved.mT)", "multiply(multiply(saved, M), saved.mT)",
          "depth/test_layers.py"),
    Fault("a wrong weight of the Gauss rule", "depth/grid.py", "weights=w / 2,", "weights=w / 2 * (1 + 1e-9),",
          "depth/test_grid.py"),
    Fault("depth products in the wrong order", "depth/engine/by_torch.py",
          "links = (enter[:, 1:] @ leave[:, :-1]).unbind(1)", "links = (leave[:, :-1] @ enter[:, 1:]).unbind(1)",
          "depth/test_picard.py depth/test_products.py"),
    Fault("the compiled engine serves while torch compiles", "depth/engine/compiled.py",
          "not (plain(W) and W.is_cpu", "not (True and W.is_cpu", "depth/test_modes.py"),
    Fault("the logarithmic mean with r in place of 2r", "kernels/logmean.py",
          "-2 * (ell.unsqueeze(-1)", "-(ell.unsqueeze(-1)",
          "flows/test_intrinsic.py"),
    Fault("the kernel of layers without its time scale", "kernels/divided.py",
          "return self.time_scale * (K + K.mT) / 2", "return (K + K.mT) / 2", "flows/test_intrinsic.py test_square.py"),
    Fault("every network is said to keep the sign of det z", "kernels/divided.py",
          "self._least() > 1", "self._least() > 0",
          "flows/test_polar.py flows/test_intrinsic.py test_square.py"),
    Fault("the turn of the polar form with a plus", "flows/polar.py",
          "* (frame.E - _mT(frame.E))", "* (frame.E + _mT(frame.E))", "flows/test_polar.py"),
    Fault("the Jacobian in logarithms without the turn of the frame", "flows/polar.py",
          " + omega @ (turn * D)", "", "flows/test_jacobian.py"),
    Fault("the Jacobian in z with the change of the left factor alone", "flows/intrinsic.py",
          "right = (a * H + H.mT * b) / both", "right = 0 * H", "flows/test_jacobian.py"),
    Fault("a Jacobian that is known is not taken", "time/watch.py",
          "return offers(self.grid.flow, KnowsJacobian) and", "return False and", "flows/test_jacobian.py"),
    Fault("Newton's systems in logarithms with a plus", "flows/polar.py",
          "given - gamma * change", "given + gamma * change", "flows/test_resolvent.py"),
    Fault("Newton's systems of the continuous flow without the weights of depth", "flows/continuous.py",
          "weighted = self.grid.weights[:, None, None] * after", "weighted = after", "flows/test_resolvent.py"),
    Fault("steps of NDF change and their differences do not", "time/methods/ndf.py",
          "(_spaced(q, factor) @ _spaced(q, 1.0)).T", "np.eye(q + 1)", "time/test_ndf.py"),
    Fault("the error of a step of NDF a hundred times too small", "time/methods/ndf.py",
          "_KAPPA * _GAMMA + 1 / np.arange(1, _ORDERS + 2)", "(_KAPPA * _GAMMA + 1 / np.arange(1, _ORDERS + 2)) / 100",
          "time/test_ndf.py"),
    Fault("the rate of layers in logarithms doubled", "kernels/divided.py",
          "math.log(self.time_scale / 2)", "math.log(self.time_scale)", "flows/test_polar.py"),
    Fault("an escape across det z = 0 is not said", "time/barrier.py",
          "torch.where(escaped & self.when", "torch.where(~escaped & self.when",
          "time/test_barrier.py"),
    Fault("on an accelerator a doubt is passed over", "looks.py",
          "if not (looks.doubted()", "if True or not (looks.doubted()", "test_device.py"),
    Fault("on an accelerator too few sweeps are no doubt", "depth/engine/on_device.py",
          "~(change <= bound) | doubt", "doubt", "test_device.py"),
    Fault("the formula of an accelerator takes the wrong stages for its error", "time/formulas.py",
          "whole = ((five + 0.01 * three)", "whole = ((five + 0.02 * three)", "test_device.py"),
    Fault("a doubt is not told by the error of a step", "time/byformula.py",
          "error = torch.where(looks.doubt(), torch.nan, error)", "pass", "test_device.py"),
    Fault("a crossing that is allowed is called an escape", "time/barrier.py",
          "escaped = crossed & (self.least <= self.immobile)", "escaped = crossed", "time/test_barrier.py"),
    Fault("the status of a run on a coarse grid is ok", "time/resolution.py",
          "        if self.largest <= allowed(_norm(z), self.rtol, self.atol):\n", "        if True:\n",
          "time/test_resolution.py time/test_endings.py"),
    Fault("the measured error in time is zero", "time/estimate.py",
          "            return _HALVED * gap + floor\n", "            return 0 * gap\n", "time/test_estimate.py"),
    Fault("the companion takes the same steps", "time/estimate.py",
          "return sorted({*self.steps, *middles})", "return self.steps", "time/test_estimate.py"),
    Fault("the drift projects the upper modes away", "laws.py",
          "kept = (1 - bounds.unsqueeze(-2) / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)).clamp(min=0.0)",
          "kept = torch.zeros_like(sizes)", "test_laws.py"),
    Fault("a profile is compared on the nodes only", "flows/continuous.py",
          "torch.linalg.matrix_norm(gap + correction) + uncertain",
          "torch.linalg.matrix_norm(gap)", "time/test_resolution.py"),
    Fault("the stored sign of the quadratic law", "laws.py",
          "return (D + D.mT).mul_(W.shape[-3])",
          "return (D + D.mT).mul_(-W.shape[-3])", "test_laws.py"),
    Fault("the shift counts twice in the start", "initial/relaxed.py",
          "stretch = stretch - frame.grid.integrate(frame.height) / 2",
          "stretch = stretch - frame.grid.integrate(frame.height)",
          "test_initial.py"),
    Fault("completion sees what is masked", "losses/completion.py",
          "return torch.where(self.mask, z - self.target, 0.0)", "return z - self.target", "test_losses.py"),
    Fault("derivatives of losses are not looked at", "time/arguments.py",
          "        check_derivatives(flow.loss, z.detach())\n", "        pass\n", "test_losses.py"),
    Fault("two errors make an order", "orders.py",
          "LEAST_POINTS, LEAST_WITH_ONE_OUT = 3, 4", "LEAST_POINTS, LEAST_WITH_ONE_OUT = 2, 3",
          "studies/test_orders.py"),
    Fault("a contradicted order leaves the status ok", "studies/convergence.py",
          "if contradiction := _contradiction(orders):",
          "if False and (contradiction := _contradiction(orders)):", "studies/test_convergence.py"),
    Fault("round-off refutes the metric property", "intrinsic/metric.py",
          "return False if self.relative >= METRIC_NONZERO and self.real else UNDECIDED",
          "return False if self.relative >= METRIC_NONZERO else UNDECIDED", "intrinsic/test_units.py"),
    Fault("a small change of the metric is none", "intrinsic/metric.py",
          "METRIC_ZERO, METRIC_NONZERO = 1e-9, 1e-6", "METRIC_ZERO, METRIC_NONZERO = 1e-1, 1.1e-1",
          "intrinsic/test_report.py intrinsic/test_units.py"),
    Fault("events at the start are not looked at", "time/lookout.py",
          "        if event is not None:\n", "        if False:\n", "time/test_events.py time/test_endings.py"),
    Fault("a stopped run keeps half a step", "time/run.py",
          "            self._go_back()\n", "            pass\n", "time/test_stops.py time/test_checkpoint.py"),
    Fault("a bound that is not reached is said to be tended to", "time/reach.py",
          "tends = plateau is not None and bool((last < plateau)[member])", "tends = True", "time/test_reach.py"),
    Fault("implicit midpoint stops after one sweep", "time/methods/midpoint.py", "_MAX_SWEEPS = 200", "_MAX_SWEEPS = 1",
          "test_laws.py time/test_integrate.py"),
    Fault("a study that did not run whole ends with status 0", "app/job.py",
          '    if finding.status != "ok":\n', "    if False:\n", "app/test_run.py"),
    Fault("a finished folder answers to any config", "app/runfolder.py",
          "if config is not None and known:", "if False:", "app/test_run.py"),
    Fault("members of a sweep are known by their number", "app/members.py",
          'for key in ("config", "computes", "overrides"):', "for key in ():", "app/test_sweep.py"),
    Fault("a member that another run holds has failed", "app/child.py",
          "if status == _BUSY:", "if False:", "app/test_sweep.py"),
    Fault("a second signal of any kind does not wait for the step", "interrupt.py",
          "twice = self.signal == number == signal.SIGINT", "twice = self.signal is not None",
          "time/test_checkpoint.py"),
    Fault("a run ends where the handler of a signal returns", "time/run.py",
          "        request.act()\n",
          "        if request.signal is not None:\n            raise Stopped('interrupted', '')\n",
          "time/test_checkpoint.py"),
    Fault("the pointer finds areas", "app/page/charts.js",
          'hoverinfo: tells(mark) ? undefined : "skip"', "hoverinfo: undefined", "app/test_report_in_browser.py"),
    Fault("the index of pandas is data", "problems/names.py",
          'return below > 1 and names.cells[0] == ""', "return False", "test_tables.py"),
    Fault("results.nc may lead to other files", "results.py",
          "if not isinstance(file.get(name, getlink=True), h5py.HardLink):", "if False:", "test_files.py"),
    Fault("a lock that its holder has removed is one", "files.py",
          "if os.path.samestat(os.fstat(handle), os.stat(path)):", "if True:", "app/test_runfolder.py"),
    Fault("a check without a number holds", "finding.py",
          "return self.error >= self.bound if self.least else self.error <= self.bound",
          "return not (self.error < self.bound if self.least else self.error > self.bound)",
          "studies/test_convergence.py"),
    Fault("a finished run answers to any data", "app/runfolder.py",
          "if before.get(key, digest) != digest]", "if False]", "app/test_run.py"),
    Fault("squares that are solved one by one are held to the first of them", "studies/square.py",
          "if all(own._states is first._states for own in observers):", "if True:", "studies/test_together.py"),
    Fault("what a run ended with stands in the row of the next time", "time/trajectory.py",
          "reached = min(common_times(path.times, times), len(values))", "reached = len(values)",
          "studies/test_early_end.py"),
    Fault("steps of a rate of ten digits come to no time", "time/trajectory.py",
          "SAME_TIME = 2e-9", "SAME_TIME = 1e-12", "studies/test_early_end.py"),
    Fault("a limit that ended early is not said", "studies/trajectory.py",
          "if limit is None or limit.ending in REACHED:", "if True:", "studies/test_early_end.py"),
    Fault("edges of the square that ended early are not said", "studies/convergence.py",
          "    if square.broken:\n", "    if False:\n", "studies/test_early_end.py"),
    Fault("one rounding of zero weights is none", "studies/clock.py",
          "if bool(start.any()) else 1.0", "if bool(start.any()) else 0.0", "studies/test_steps.py"),
    Fault("members that ended early are in the means", "app/statistics.py",
          'whole = ran & (dataset[STATUS].values == "ok")', "whole = ran", "app/test_members.py"),
    Fault("networks that did not come to the last time are lazy", "studies/lazy_to_rich.py",
          'if path.ending != "ok":', "if False:", "studies/test_nothing_to_check.py"),
    Fault("members that wall time has cut stay as they are", "app/ensemble.py",
          "cut = [name for name, own in parts.items() if _cut(own)]", "cut = []", "app/test_budgets.py"),
    Fault("a budget of wall time ends no member", "app/ensemble.py",
          "carried_out=company, started=started)", "carried_out=company, max_seconds=None)", "app/test_members.py"),
    Fault("a figure that raises costs the summary", "app/job.py",
          "if isinstance(error, OSError) or is_memory(error):", "if True:", "app/test_plugins.py"),
    Fault("a verdict whose checks fail is marked as good", "app/report.py",
          "good=finding.passed", 'good=finding.status == "ok"', "app/test_report.py"),
    Fault("curves of a page are not as pale as those of the figure", "figures/interactive.py",
          "alpha = artist.get_alpha()", "alpha = None", "app/test_report_in_browser.py"),
    Fault("a closed flow is verified by a z that stays where it was", "studies/closure.py",
          "_TELLING * system.bound", "0.0", "studies/test_nothing_to_check.py"),
    Fault("a step that is taken back is one of its member", "time/ownsteps.py",
          "        self.steps[rows] -= 1\n", "", "time/test_own_steps.py"),
    Fault("large matrices of many members are factored at once", "matrices.py",
          "    if not _one_by_one(A):\n        LU", "    if True:\n        LU", "time/test_rodas.py"),
    Fault("the last sample of a dying neuron is a switch", "intrinsic/systems/relu_two_layer.py",
          "noise = _ROUND_OFF *", "noise = 0.0 *", "intrinsic/test_systems_relu.py"),
    Fault("an error of the depth grid is blamed on the steps", "time/estimate.py",
          "        if depth > time:\n", "        if False:\n", "time/test_resolution.py"),
    Fault("a signal that wakes nobody is noticed when a member has ended", "studies/together.py",
          "timeout=LONGEST_WAIT", "timeout=1e3", "studies/test_together.py"),
    Fault("one weight of a square is that of all members", "depth/engine/squares.py",
          "known.farther = min(weight.ndim, 1)", "known.farther = 0", "time/test_whole_steps.py"),
    Fault("a loss may have another gradient than that of its square", "losses/promises.py",
          "wrong = inner(gap, gap) >", "wrong = inner(0 * gap, gap) >",
          "test_losses.py"),
    Fault("a setting of a group that a study does not use is accepted", "app/schema.py",
          'if section not in study.groups | {"study"}:', "if False:", "app/test_systems.py"),
    Fault("members with the same seeds are draws of their own", "app/schema.py",
          "if own in seen:", "if False:", "app/test_members.py"),
    Fault("parts of members do not know their tables", "app/ensemble.py",
          " job.inputs(),", "", "app/test_members.py"),
    Fault("a member of which the grid does not resolve W has ended well", "time/apart.py",
          ', ("depth", unresolved)):', "):", "time/test_resolution.py"),
    Fault("a number that is not known is left out of a check", "studies/axes.py",
          "float(np.max(array(values)))", "float(np.nanmax(array(values)))", "studies/test_planted.py"),
    Fault("an absolute tolerance of z is one of its logarithms", "flows/polar.py",
          "min(atol, rtol)", "atol", "flows/test_polar.py"),
    Fault("a velocity that a flow keeps is one of the run", "time/watch.py",
          "found.clone() if self._lent else found", "found", "time/test_buffers.py"),
    Fault("the scratch of another instruction set is kept", "depth/engine/compiled.py",
          "_size.cache_clear()", "pass", "depth/test_engine.py"),
    Fault("an experiment file may set what has no effect", "app/sweep.py",
          "            _check_experiment(config, lines, job)\n", "", "app/test_experiment_files.py"),
    Fault("what a profile says of many depths is not looked at", "depth/grid.py",
          'return _at_all(f"{name}.at(s)", at(nodes), len(nodes))', "return at(nodes)", "depth/test_grid.py"),
    Fault("C reads as many nodes as its grid has", "depth/collocation.py",
          "shape[-3] != len(self.grid) or ", "", "depth/test_products.py"),
    Fault("a singular value of zero may come out of its logarithm", "time/run.py",
          "return crossed if self.risen is None else self.risen.sentence", "return crossed", "time/test_rank.py"),
    Fault("marks at the ends of lines make names of rows", "problems/names.py",
          'self._open &= cells[-1] == ""', "self._open = False", "test_own_data.py"),
    Fault("many starts are made by torch", "initial/layers.py",
          "array_of(part, some)", "array_of(part)", "test_initial.py"),
    Fault("autocast multiplies in half of the digits", "modes.py",
          "precise(*args, **kwargs) if _autocast() else ", "", "test_autocast.py"),
    Fault("a seed beyond 32 bits is that of another start", "checks.py",
          "if number >= 2**32:", "if number >= 2**63:", "test_initial.py"),
    Fault("errors that are no numbers are left out of an order", "orders.py",
          "if unknown > 1:", "if unknown > 99:", "studies/test_orders.py"),
    Fault("runs of several threads do not wait for one another", "app/python.py",
          "if _has_turn.get():\n        yield", "if True:\n        yield", "app/test_python.py"),
    Fault("a worker that fails ends all children of the program", "parallel.py",
          "end_pool(pool, _PATIENCE)  # an",
          "end_pool(pool, _PATIENCE), [(own.kill(), own.join()) for own in multiprocessing.active_children()]  # an",
          "test_parallel.py"),
    Fault("what goes wrong before a sweep is no more than a warning", "app/sweep.py",
          "        traceback.print_exc()\n        sys.exit(StudyFailed.status)", "        raise", "app/test_sweep.py"),
    Fault("what a coarse grid does on the way is guessed from where it leads", "time/estimate.py",
          "_WAY = 20.0", "_WAY = 0.0", "time/test_estimate.py"),
    Fault("a worker that has just been forked does what its parent would", "parallel.py",
          "with forking(_SIGNALS):", "with forking(()):", "test_parallel.py"),
    Fault("a run may be anywhere beside the intrinsic limit", "studies/trajectory.py",
          "return _OF_ERRORS *", "return 1 + _OF_ERRORS *", "studies/test_trajectory.py"),
    Fault("parts of members do not know their plugins", "app/schema.py",
          "for name in self.machine.plugins if name in known}", "for name in () if name in known}",
          "app/test_members.py"),
    Fault("the slope of a kernel is taken as it is told", "kernels/base.py",
          "[_NEAR], source)\n    if found is not None:", "[_NEAR], source)\n    if False:",
          "flows/test_intrinsic.py"),
    Fault("distances of the heat map are 1 % too large", "studies/depth_heatmap.py",
          "return gap.square()", "return 1.01 * gap.square()", "studies/test_depth_heatmap.py"),
    Fault("certificates of linear programmes are 1 % too large", "studies/bias.py",
          "return float(np.abs(correlations)", "return 1.01 * float(np.abs(correlations)",
          "studies/test_interpolant.py"),
    Fault("the rate at which descent comes to the perceptron is 1 % too large", "studies/perceptron.py",
          "return -np.polyfit(", "return -1.01 * np.polyfit(", "studies/test_perceptron.py"),
    Fault("flows are looked at 1 % later than gradient descent", "studies/edge.py",
          "settling.halves(rate *", "settling.halves(1.01 * rate *", "studies/test_edge.py"),
    Fault("few large steps of heavy ball tell their limit", "studies/momentum.py",
          "len(taken) == own + _DOUBLED", "len(taken) == own", "studies/test_momentum.py"),
    Fault("large steps are compared with a flow that is 1 % too fast", "studies/universality.py",
          "problem.z0, paths[0].times,", "problem.z0, 1.01 * paths[0].times,", "studies/test_universality.py"),
    Fault("a small start is left in one large step", "studies/leaky_rank.py",
          "max(float((sizes / speeds).min()), ", "max(float((sizes / speeds).max()), ", "studies/test_leaky_rank.py"),
    Fault("the bottom edge of the square is 1 % too long", "studies/square.py",
          "distances(z, right.intrinsic.column(", "distances(1.01 * z, 1.01 * right.intrinsic.column(",
          "studies/test_convergence.py"),
    Fault("errors of Richardson's extrapolation are 1 % too large", "studies/convergence.py",
          "errors[i] = np.sqrt(", "errors[i] = 1.01 * np.sqrt(", "studies/test_convergence.py"),
    Fault("a grid that follows W does not look at the velocity", "time/resolution.py",
          "return flow.course_error(state)", "return 0.0", "time/test_resolution.py"),
    Fault("a singular value that has been 0 between two looks has not", "studies/width.py",
          "(sign == sign[0]).all(0), sigma", "(sign == sign).all(0), sigma", "studies/test_width.py"),
    Fault("the error of running averages is that of as many nodes", "studies/meanfield.py",
          "(setting.nodes, setting.nodes + _FINER)", "(setting.nodes, setting.nodes)", "studies/test_minimax.py"),
]  # fmt: skip


def planted(fault: Fault, home: Path) -> tuple[bool, str]:
    """Whether the tests fail with the fault in the copy, and the first test that does."""
    file = home / "neuralode_flow" / fault.file
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.replace(fault.old, fault.new), encoding="utf-8")
    try:
        tests = [f"tests/{name}" for name in fault.tests.split()]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-m", "", *tests],
            cwd=home, env=os.environ | {"PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        file.write_text(whole, encoding="utf-8")
    first = next((line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
    return done.returncode == 1, first.removeprefix("FAILED ").removeprefix("ERROR ").split(" - ")[0]


def main() -> None:
    chosen = [int(number) for number in sys.argv[1:]] or list(range(1, len(FAULTS) + 1))
    with tempfile.TemporaryDirectory() as folder:
        homes: Queue[Path] = Queue()
        for k in range(2):
            home = Path(folder) / str(k)
            home.mkdir()
            for name in COPIED:
                source = ROOT / name
                copy = shutil.copytree if source.is_dir() else shutil.copy2
                copy(source, home / name)
            homes.put(home)

        def tried(number: int) -> bool:
            home = homes.get()
            try:
                noticed, first = planted(FAULTS[number - 1], home)
            finally:
                homes.put(home)
            by = f"`{first.removeprefix('tests/').split('[')[0]}`" if noticed else "**no test**"
            print(f"| {number} | {FAULTS[number - 1].what} | {by} |", flush=True)
            return noticed

        with ThreadPoolExecutor(2) as pool:
            noticed = sum(pool.map(tried, chosen))
    print(f"{noticed} of {len(chosen)} faults are noticed")
    sys.exit(noticed < len(chosen) - 1)


if __name__ == "__main__":
    main()
