"""Bad input is refused in words that help: every case is run, and docs/refusals.md lists what each one says.

`python tests/test_refusals.py` writes that file anew.
"""

import contextlib
import io
import linecache
import math
import os
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, wraps
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import neuralode_flow as nf
from neuralode_flow import exact, laws
from neuralode_flow.app.main import command as run_command
from neuralode_flow.studies import STUDIES

PACKAGE = Path(nf.__file__).parent
TABLE = Path(__file__).parents[1] / "docs" / "refusals.md"
HERE = "/here"  # what the table has in place of the current folder
PROGRAM = "neuralode-flow"

# Calls by the word that the error text must have: the argument at fault, or the file.
LIBRARY = {
    "flow": [
        "nf.integrate(None, state, times)",
        "nf.integrate(loss, state, times)",
        "nf.integrate(nf.FiniteFlow(4, nf.Quadratic(z.clone().requires_grad_())), state, times)",
        "nf.ModifiedFlow(None, 0.1)",
        "nf.ModifiedFlow(nf.FiniteFlow, 0.1)",
    ],
    "rate": [
        "nf.ModifiedFlow(flow, 0.0)",
        "nf.ModifiedFlow(flow, math.nan)",
        "nf.ModifiedFlow(flow, '0.1')",
    ],
    "state": [
        "nf.integrate(flow, None, times)",
        "nf.integrate(flow, np.zeros((4, 2, 2)), times)",
        "nf.integrate(flow, torch.zeros(5, 2, 2), times)",
        "nf.integrate(flow, torch.zeros(2, 2), times)",
        "nf.integrate(flow, torch.zeros(4, 2, 3), times)",
        "nf.integrate(flow, torch.zeros(4, 3, 3), times)",
        "nf.integrate(flow, torch.zeros(4, 0, 0), times)",
        "nf.integrate(flow, state * math.nan, times)",
        "nf.integrate(flow, state.long(), times)",
        "nf.integrate(flow, state.half(), times)",
        "nf.integrate(flow, state.to_sparse(), times)",
        "nf.integrate(flow, state.to('meta'), times)",
        "nf.integrate(flow, state.float(), times)",
        "nf.integrate(many, state, times)",
        "nf.integrate(many, torch.zeros(2, 4, 2, 2), times)",
        "nf.integrate(net, torch.zeros(4, 2, 2), times)",
        "nf.integrate(limit, [[1.0, 0.0], [0.0, 1.0]], times)",
        "nf.integrate(limit, torch.diag(torch.tensor([1.0, -1.0])), times)",
        "nf.integrate(limit, lambda s: z, times)",
        "nf.integrate(flow, nf.identity(3), times)",
        "flow.velocity(torch.zeros(5, 2, 2))",
        "flow.product(None)",
        "net.law(torch.zeros(2, 2))",
        "nf.integrate(flow, state.clone().requires_grad_(), times)",
        "nf.integrate(flow, lambda s: z.clone().requires_grad_(), times)",
        "torch.func.vmap(lambda W: nf.integrate(flow, W, times).z)(state.expand(2, 4, 2, 2))",
        "torch.func.grad(lambda W: nf.integrate(flow, W, times).loss[-1])(state)",
        "limit.velocity(z.clone().requires_grad_())",
        "nf.curvature.sharpness(flow, state * math.nan)",
        "nf.curvature.sharpness(flow, 1e200 * (1 + state))",
        "nf.curvature.sharpness(flow, state.clone().requires_grad_())",
        "nf.curvature.minimiser_spectrum(flow, None)",
    ],
    "W": [
        "nf.intrinsic.depth_criterion(grid, state.expand(2, 4, 2, 2))",
        "nf.integrate(flow, lambda s: 0.0, times)",
        "nf.integrate(flow, lambda s: z * math.nan, times)",
        "flow.sample(z)",
        "flow.sample(lambda s: torch.ones(2, 3))",
        "nf.DepthGrid.auto(lambda s: z * (s > 0.3), 1e-8)",
        "nf.DepthGrid.auto(None, 1e-8)",
        "nf.Collocation(grid).product(torch.zeros(5, 2, 2))",
        "nf.Collocation(grid).gradient(torch.zeros(4, 2, 3), lambda z: z)",
        "nf.DepthGrid.auto(lambda s: 1e200 * z, 1e-8)",
        "laws.commutator(torch.ones(2, 3))",
        "laws.euler_law(z)",
        "laws.symmetric_law(None)",
    ],
    "times": [
        "torch.func.grad(lambda t: nf.exact.aligned_limit(t, sigma, tau).sum())(torch.ones(1))",
        "nf.integrate(flow, state, [])",
        "nf.integrate(flow, state, None)",
        "nf.integrate(flow, state, 1.0)",
        "nf.integrate(flow, state, [0.0, 'a'])",
        "nf.integrate(flow, state, [[0.0, 1.0]])",
        "nf.integrate(flow, state, [0.0, math.nan])",
        "nf.integrate(flow, state, [1.0, 0.0])",
        "nf.integrate(flow, state, [0.0, 1.0, 1.0])",
        "exact.aligned_limit([0.0, 1.0], sigma, tau)",
        "exact.aligned_limit(torch.tensor([-1.0]), sigma, tau)",
        "exact.aligned_layers(torch.tensor([math.nan]), sigma, tau, 2)",
        "exact.aligned_limit(torch.ones(1, 1), sigma, tau)",
        "exact.aligned_layers(torch.tensor([-1.0]), sigma, tau, 1)",
        "exact.saxe(torch.tensor([-1.0]), sigma, tau)",
        "exact.saxe([0.0], sigma, tau)",
        "exact.two_layer(torch.tensor([1.0, 0.0]), z, z, z)",
        "exact.two_layer(torch.tensor([-1.0]), z, z, z)",
    ],
    "method": [
        "nf.integrate(flow, state, times, 'dopri55')",
        "nf.integrate(flow, state, times, None)",
        "nf.integrate(nf.FiniteFlow(60000, loss), torch.zeros(60000, 2, 2), times, 'Radau')",
    ],
    "rtol": [
        "nf.integrate(flow, state, times, rtol=0.0)",
        "nf.integrate(flow, state, times, rtol=math.nan)",
        "nf.integrate(flow, state, times, rtol='1e-8')",
        "nf.OdeintDepth(grid, rtol=0.0)",
    ],
    "atol": [
        "nf.integrate(flow, state, times, atol=-1.0)",
    ],
    "control": [
        "nf.integrate(flow, state, times, control='membr')",
        "nf.integrate(flow, state, times, 'BDF', control='member')",
        "nf.integrate(flow, state, times, control='member', dense=True)",
    ],
    "step": [
        "nf.integrate(flow, state, times, 'euler', step=0.0)",
        "nf.integrate(flow, state, times, 'euler', step=[0.1])",
        "nf.integrate(flow, state, times, 'euler', step=1e-9)",
        "nf.integrate(flow, state, times, 'euler', step=1e-3, max_evaluations=10)",
    ],
    "max_evaluations": [
        "nf.integrate(flow, state, times, max_evaluations=0)",
        "nf.integrate(flow, state, times, max_evaluations=1e6)",
    ],
    "max_seconds": [
        "nf.integrate(flow, state, times, max_seconds=0)",
        "nf.integrate(flow, state, times, max_seconds=math.inf)",
        "nf.integrate(flow, state, times, max_seconds='1')",
    ],
    "event": [
        "nf.integrate(flow, state, times, stop={'los': 1e-6})",
        "nf.integrate(flow, state, times, stop={'mine': 1e-6})",
    ],
    "stop": [
        "nf.integrate(flow, state, times, stop='loss')",
        "nf.integrate(flow, state, times, stop=[('loss', 1e-6)])",
        "nf.integrate(flow, state, times, stop={'loss': -1.0})",
        "nf.integrate(flow, state, times, stop={'loss': None})",
        "nf.integrate(flow, state, times, stop={'norm': math.inf})",
        "nf.integrate(flow, state, times, stop={'time': math.nan})",
        "nf.integrate(flow, state, times, stop={'mine': lambda t, z, state: 'a'})",
    ],
    "adapt": [
        "nf.integrate(flow, state, times, adapt=1)",
        "nf.integrate(limit, z, times, adapt=True)",
    ],
    "estimate": ["nf.integrate(flow, state, times, estimate='yes')"],
    "study.drawn_entries": ["nf.run('deep_completion', study={'drawn_dimension': 3, 'drawn_entries': 9})"],
    "study.seed": [
        "nf.run('interpolant', problem={'name': 'file', 'x': 'flat.npy', 'y': 'flat.npy', 'standardise': False})",
        "nf.run('interpolant', problem={'name': 'file', 'x': 'zero.npy', 'y': 'zero.npy', 'standardise': False})",
    ],
    "checks": [
        "nf.integrate(flow, state, times, checks=0)",
        "nf.integrate(flow, state, times, checks=False, adapt=True)",
        "nf.integrate(flow, state, times, checks=False, estimate=True)",
    ],
    "throw": ["nf.integrate(flow, state, times, throw=None)"],
    "checkpoint": [
        "nf.integrate(flow, state, times, checkpoint='')",
        "nf.integrate(flow, state, times, checkpoint=5)",
        "nf.integrate(flow, state, times, checkpoint='folder')",
        "nf.integrate(flow, state, times, checkpoint='missing/run.npz')",
        "nf.integrate(flow, state, times, checkpoint='words.npz/run.npz')",
        "nf.integrate(flow, state, times, checkpoint='finished.npz')",
        "nf.integrate(flow, state, times, checkpoint='run.npz', rtol=1e-6)",
        "nf.integrate(flow, state, times, checkpoint='run.npz', stop={'loss': 1e-6})",
        "nf.integrate(flow, state, [0.0, 2.0], checkpoint='run.npz')",
        "nf.integrate(limit, z, times, checkpoint='run.npz')",
    ],
    "damaged.npz": [
        "nf.integrate(flow, state, times, checkpoint='damaged.npz')",
        "nf.load('damaged.npz')",
    ],
    "version.npz": [
        "nf.integrate(flow, state, times, checkpoint='version.npz')",
        "nf.load('version.npz')",
    ],
    "words.npz": [
        "nf.integrate(flow, state, times, checkpoint='words.npz')",
        "nf.load('words.npz')",
    ],
    "missing.npz": ["nf.load('missing.npz')"],
    "empty.npz": ["nf.load('empty.npz')"],
    "folder": ["nf.load('folder')"],
    "every": [
        "nf.integrate(flow, state, times, checkpoint='new.npz', every=-1)",
        "nf.integrate(flow, state, times, checkpoint='new.npz', every='60')",
    ],
    "target": [
        "nf.Quadratic([[1.0]])",
        "nf.Quadratic(z * math.inf)",
        "nf.Quadratic(z.int())",
        "nf.Quadratic(z.to_sparse())",
        "exact.two_layer(torch.ones(1), z, z, torch.eye(3))",
    ],
    "mask": [
        "nf.Completion(z, torch.ones(2, 2))",
        "nf.Completion(z, torch.ones(3, 3, dtype=torch.bool))",
        "nf.Completion(z, torch.zeros(2, 2, dtype=torch.bool))",
        "nf.Completion(z.expand(3, 2, 2), torch.ones(2, 2, 2, dtype=torch.bool))",
        "nf.Completion(z, torch.tensor([0, 1])[:, None, None].expand(2, 2, 2).bool())",
    ],
    "x": [
        "nf.Regression(np.ones((3, 2)), torch.ones(3, 2))",
        "nf.Regression(torch.ones(3), torch.ones(3))",
        "nf.Regression(torch.ones(3, 2), torch.ones(4, 2))",
        "nf.Regression(None, z)",
    ],
    "y": [
        "nf.Regression(torch.ones(3, 2), torch.ones(3, 2).float())",
        "nf.Regression(z, None)",
    ],
    "readin": [
        "nf.Regression(torch.ones(3, 2), torch.ones(3, 2), torch.ones(2, 3))",
        "nf.Regression(torch.ones(3, 2), torch.ones(3, 4))",
    ],
    "readout": ["nf.Regression(torch.ones(3, 2), torch.ones(3, 2), z, torch.ones(3, 2))"],
    "f": [
        "nf.Custom(3)",
        "nf.Custom(lambda z: z)(z)",
        "nf.Custom(lambda z: torch.tensor(1.0)).gradient(z)",
        "nf.Custom(lambda z: z.sum() > 0)(z)",
    ],
    "axes": [
        "nf.Custom(torch.trace, axes=-1)",
        "nf.Custom(torch.trace, axes='2')",
        "nf.Quadratic(z, axes=3)",
    ],
    "A": [
        "nf.LeastSquares(torch.ones(3), torch.ones(3))",
        "nf.LeastSquares(None, torch.ones(3))",
        "nf.LeastSquares(torch.ones(3, 2), torch.ones(4))",
    ],
    "b": [
        "nf.LeastSquares(torch.ones(3, 2), torch.ones(3, 1))",
        "nf.LeastSquares(torch.ones(3, 2), torch.ones(3).float())",
    ],
    "shape": [
        "nf.LeastSquares(torch.ones(3, 2), torch.ones(3), (3,))",
        "nf.LeastSquares(torch.ones(3, 2), torch.ones(3), (-1, 2))",
    ],
    "phi": [
        "nf.FactorizationFlow(None, loss)",
        "nf.integrate(nf.FactorizationFlow(torch.sin, loss), torch.ones(3), times)",
        "nf.integrate(nf.FactorizationFlow(lambda theta: 1.0, loss), z, times)",
        "nf.integrate(nf.FactorizationFlow(lambda theta: torch.eye(2), loss), z, times)",
        "nf.integrate(nf.FactorizationFlow(torch.log, loss), -z, times)",
        "nf.curvature.hessian(nf.FactorizationFlow(lambda theta: torch.sin(theta).detach() * theta, loss), z)",
        "nf.intrinsic.report(lambda theta: theta[0] * theta[1].detach(), torch.tensor([1.0, 2.0]))",
        "nf.integrate(nf.FactorizationFlow(torch.sin, loss), z.float(), times)",
        "nf.integrate(nf.FactorizationFlow(torch.sin, many.loss), z, times)",
        "nf.intrinsic.report(None, z)",
        "nf.intrinsic.report(lambda theta: 1.0, z)",
        "nf.intrinsic.report(torch.log, -z)",
    ],
    "laws": [
        "nf.FactorizationFlow(torch.sin, loss, 3)",
        "nf.integrate(nf.FactorizationFlow(torch.sin, many.loss, torch.sum), z.expand(3, 2, 2), times)",
        "nf.intrinsic.report(torch.trace, z, 3)",
        "nf.intrinsic.report(torch.trace, z, lambda theta: theta)",
    ],
    "theta": [
        "nf.intrinsic.report(torch.sin, None)",
        "nf.intrinsic.report(torch.sin, z.int())",
        "nf.intrinsic.report(torch.sin, ())",
        "nf.intrinsic.report(torch.sin, z * math.nan)",
        "nf.intrinsic.RecoveredFlow(torch.sum, lambda theta: theta[:0], torch.ones(2), nf.Quadratic(z[0, 0]))",
        "nf.intrinsic.RecoveredFlow(torch.sin, torch.sin, z, loss)",
    ],
    "panels": [
        "nf.DepthGrid.gauss(0, 4)",
        "nf.DepthGrid.gauss(1.0, 4)",
        "nf.DepthGrid.gauss(10**12, 4)",
        "nf.DepthGrid.gauss(10**5, 4)",
    ],
    "order": [
        "nf.DepthGrid.gauss(1, 0)",
        "nf.DepthGrid.gauss(1, 10**400)",
    ],
    "tol": [
        "nf.DepthGrid.auto(lambda s: z, -1.0)",
        "nf.DepthGrid.auto(lambda s: z, 1e-20)",
        "nf.DepthGrid.auto(lambda s: z, 10**400)",
    ],
    "s": [
        "grid.interpolate(state, 1.5)",
        "nf.relaxed_balanced(z)(2.0)",
        "grid.interpolate(state, 'a')",
        "grid.interpolate(state, None)",
        "grid.interpolate(state, torch.zeros(2, 2))",
    ],
    "values": [
        "grid.interpolate(torch.zeros(5, 2, 2), 0.5)",
        "laws.depth_curvature(grid, torch.zeros(5, 2, 2))",
        "grid.interpolate(None, 0.5)",
        "grid.integrate(None)",
        "grid.integrate(state.long())",
    ],
    "depth": [
        "nf.ContinuousFlow(grid, loss, 'colocation')",
        "nf.ContinuousFlow(grid, loss, nf.Collocation(nf.DepthGrid.gauss(1, 4)))",
        "nf.FiniteFlow(0, loss)",
        "nf.FiniteFlow(2.0, loss)",
        "nf.FiniteFlow(loss, 2)",
        "exact.aligned_layers(torch.ones(1), sigma, tau, 0)",
        "nf.ContinuousFlow(grid, loss, None)",
        "nf.ContinuousFlow(grid, loss, 3)",
        "nf.ContinuousFlow(grid, loss, nf.Collocation)",
    ],
    "layer": [
        "nf.FiniteFlow(2, loss, 'eulr')",
        "nf.FiniteFlow(2, loss, None)",
        "nf.FiniteFlow(2, loss, 3)",
        "nf.FiniteFlow(2, loss, type('Own', (type(nf.LAYERS['cayley']),), {'order': 3})())",
        "nf.FiniteFlow(2, loss, type('Own', (type(nf.LAYERS['cayley']),), {'quadratic_law': True})())",
        "nf.FiniteFlow(2, loss, type('Own', (type(nf.LAYERS['cayley']),), {'adjoint': lambda *_: _[3]})())",
    ],
    "sampling": [
        "nf.FiniteFlow(2, loss, sampling='right')",
        "nf.FiniteFlow(2, loss, sampling=['midpoint'])",
    ],
    "shift": [
        "nf.TwoLayer('a')",
        "nf.TwoLayer(math.nan)",
        "nf.relaxed_balanced(z, shift=lambda s: math.nan)",
        "nf.TwoLayer(10**400)",
        "nf.relaxed_balanced(z, shift=1.0)",
        "nf.relaxed_balanced(z, shift='a')",
        "nf.relaxed_balanced(z, shift=lambda s: None)",
        "nf.relaxed_balanced(z, shift=lambda s: 'a')",
        "nf.relaxed_balanced(z, shift=lambda s: 1j)",
        "nf.relaxed_balanced(z, shift=lambda s: torch.ones(2))",
        "nf.relaxed_balanced(z, shift=lambda s: True)",
    ],
    "shifts": [
        "nf.DividedDifference([0.0, 1.0])",
        "nf.DividedDifference(torch.zeros(2, 2))",
        "nf.DividedDifference(torch.tensor([-1e308, 1e308]))",
        "nf.relaxed_balanced_layers(z, torch.tensor([0.0, math.inf]))",
        "nf.relaxed_balanced_layers(z, torch.tensor([-1e308, 1e308]))",
        "nf.relaxed_balanced_layers(z, torch.zeros(3).float())",
    ],
    "time_scale": ["nf.DividedDifference(torch.zeros(2), -1.0)"],
    "z0": [
        "nf.relaxed_balanced(None)",
        "nf.relaxed_balanced(z.clone().requires_grad_())",
        "nf.relaxed_balanced(torch.diag(torch.tensor([1.0, -1.0])))",
        "nf.relaxed_balanced_layers(torch.zeros(2, 2), torch.zeros(3))",
        "nf.balanced(torch.ones(2))",
        "nf.control(-z)",
        "nf.control(0 * z)",
        "nf.control(torch.ones(2, 2))",
    ],
    "twist": [
        "nf.relaxed_balanced(z, twist=lambda s: z)",
        "nf.relaxed_balanced(z, twist=lambda s: torch.zeros(3, 3))",
        "nf.relaxed_balanced(z, twist=1.0)",
        "nf.relaxed_balanced(z, twist=z)",
        "nf.relaxed_balanced(z, twist=lambda s: 1.0)",
        "nf.relaxed_balanced(z, twist=lambda s: torch.zeros(5, 2, 2))",
    ],
    "d": [
        "nf.identity(0)",
        "nf.smooth(2.5, 1.0, torch.Generator())",
    ],
    "scale": ["nf.smooth(2, 0.0, torch.Generator())"],
    "initialisation": ["nf.INITIALS['contrl']"],
    "problem.dimension": ["nf.PROBLEMS['teacher'](dimension=0)"],
    "problem.seed": ["nf.PROBLEMS['teacher'](seed=2**32)"],
    "problem.x": [
        "nf.PROBLEMS['file']('missing.csv', 'good.csv')",
        "nf.PROBLEMS['file']('a' * 300 + '.csv', 'good.csv')",
        "nf.PROBLEMS['file']('words.npy', 'good.csv')",
    ],
    "sigma0": [
        "exact.aligned_limit(torch.ones(1), [1.0], tau)",
        "exact.aligned_limit(torch.ones(1), -sigma, tau)",
        "exact.aligned_limit(torch.ones(1), sigma, torch.ones(3))",
        "exact.aligned_layers(torch.ones(1), 0 * sigma, tau, 1)",
        "exact.saxe(torch.ones(1), sigma[None], tau)",
        "exact.saxe(torch.ones(1), -sigma, tau)",
    ],
    "W1": [
        "exact.two_layer(torch.ones(1), z, torch.diag(torch.tensor([2.0, 4.0])), z)",
        "exact.two_layer(torch.ones(1), None, z, z)",
        "exact.two_layer(torch.ones(1), state, z, z)",
    ],
    "loss": [
        "nf.ContinuousFlow(grid, None)",
        "nf.FiniteFlow(2, None)",
        "nf.integrate(nf.FiniteFlow(4, nf.Custom(lambda z: (z.detach() * z).sum())), state + z, times)",
        "nf.FiniteFlow(2, nf.Quadratic)",
        "nf.FiniteFlow(2, lambda z: z.sum())",
        "nf.IntrinsicFlow(3, nf.LogMean())",
        "nf.ContinuousFlow(grid, nf.Quadratic(torch.ones(2, 3)))",
        "nf.FiniteFlow(2, nf.Quadratic(torch.ones(2, 3)))",
        "nf.IntrinsicFlow(nf.LeastSquares(torch.ones(3, 2), torch.ones(3)), nf.LogMean())",
        "nf.FactorizationFlow(torch.sin, None)",
    ],
    "grid": [
        "nf.ContinuousFlow(None, loss)",
        "nf.ContinuousFlow(4, loss)",
        "nf.ContinuousFlow(loss, grid)",
        "nf.Collocation(None)",
        "nf.OdeintDepth(None)",
        "flow.on(None)",
        "laws.continuous_law(None, state)",
    ],
    "kernel": [
        "nf.IntrinsicFlow(loss, None)",
        "nf.IntrinsicFlow(loss, 'LogMean')",
        "nf.IntrinsicFlow(loss, type('Own', (nf.TwoLayer,), {'__call__': lambda _, sigma: sigma})())",
        "nf.IntrinsicFlow(loss, nf.LogMean)",
    ],
    "adaptive method": [
        "nf.OdeintDepth(grid, 'dopri9')",
        "nf.OdeintDepth(grid, None)",
        "nf.OdeintDepth(grid, 'rk4')",
    ],
    "dtype": [
        "nf.DepthGrid.gauss(dtype=torch.int64)",
        "nf.DepthGrid.gauss(dtype=torch.complex128)",
        "nf.DepthGrid.gauss(dtype=torch.bfloat16)",
        "nf.DepthGrid.auto(lambda s: z.half(), 1e-4)",
        "nf.DepthGrid.gauss(dtype=float)",
        "nf.DepthGrid.gauss(dtype='float64')",
        "nf.identity(2, dtype=torch.int64)",
    ],
    "device": [
        "nf.DepthGrid.gauss(device='gpu')",
        "nf.DepthGrid.gauss(device=7)",
        "nf.identity(2, device='gpu')",
    ],
    "law": [
        "laws.drift(z, z)",
        "laws.drift(state, torch.zeros(3, 2, 2))",
    ],
    "degree": [
        "grid.project(state, -1)",
        "grid.project(state, 1.5)",
        "grid.project(state, None)",
        "grid.project(state, 99)",
    ],
    "dimension": [
        "nf.intrinsic.count_laws(torch.sin, 0)",
        "nf.intrinsic.quadratic_laws(torch.sin, 100)",
        "nf.Custom(torch.trace, '2')",
        "nf.Custom(torch.trace, 0)",
        "nf.Custom(torch.trace, -1)",
        "nf.Custom(torch.trace, 2.0)",
        "nf.Custom(torch.trace, True)",
    ],
    "z": [
        "loss(None)",
        "loss(torch.eye(3))",
        "loss(torch.ones(2))",
        "nf.Custom(torch.trace, 2)(torch.ones(2, 3))",
        "nf.Regression(z, z)(torch.eye(3))",
        "nf.curvature.balanced_spectrum(loss, torch.eye(3))",
        "nf.curvature.least_sharpness(torch.ones(2, 3))",
    ],
    "generator": [
        "nf.relaxed_balanced_layers(z, torch.zeros(3), 5)",
        "nf.smooth(2, 1.0, None)",
        "nf.smooth(2, 1.0, 5)",
    ],
    "terms": [
        "nf.smooth(2, 1.0, torch.Generator(), 0)",
        "nf.smooth(2, 1.0, torch.Generator(), 2.5)",
    ],
    "profile": [
        "nf.Rough(None, 1.0, 2, 0)",
        "nf.Detour(None, z)",
    ],
    "noise": [
        "nf.Rough(nf.identity(2), 0.0, 2, 0)",
    ],
    "networks": [
        "nf.Rough(nf.identity(2), 1.0, 0, 0)",
        "nf.Rough(nf.identity(2), 1.0, 2.5, 0)",
    ],
    "seed": [
        "nf.Rough(nf.identity(2), 1.0, 2, 'a')",
        "nf.intrinsic.count_laws(torch.sin, 2, seed=-1)",
    ],
    "sigma": [
        "limit.kernel(None)",
        "limit.kernel([1.0, 0.5])",
        "limit.kernel(torch.tensor(1.0))",
        "limit.kernel(-sigma)",
        "nf.TwoLayer()(None)",
    ],
    "problem.loss": [
        "nf.Problem('mine', 'Mine', None, z)",
    ],
    "problem.z0": [
        "nf.Problem('mine', 'Mine', loss, torch.eye(3))",
    ],
    "tau": [
        "exact.saxe(torch.ones(1), sigma, [2.0, 2.0])",
    ],
    "curvature.balanced_spectrum": ["nf.curvature.hessian(limit, z)"],
    "top(k)": ["nf.curvature.hessian(nf.FiniteFlow(1025, loss), torch.zeros(1025, 2, 2)).spectrum()"],
    "k": [
        "nf.curvature.hessian(flow, state).top(0)",
        "nf.curvature.hessian(flow, state).top(17)",
    ],
    "direction": ["nf.curvature.hessian(flow, state).product(z)"],
    "system": ["nf.SYSTEMS['neuron']"],
    "system.dimension": ["nf.SYSTEMS['diagonal'](dimension=0)"],
    "system.seed": ["nf.SYSTEMS['diagonal'](seed=-1)"],
    "modes": ["nf.intrinsic.depth_criterion(grid, state, modes=0)"],
    "stop['sigma_min']": [
        "nf.integrate(nf.FactorizationFlow(torch.sin, nf.Quadratic(z[0])), z[0], times, stop={'sigma_min': 1.0})"
    ],
    "W2": [
        "exact.two_layer(torch.ones(1), z, torch.eye(3), z)",
    ],
}

# Command lines by the word that the text must have.
COMMAND = {
    "unknown key": [
        "time.rtoll=1",
        "+bogus=1",
        "problem.seed=1",
        "problm=teacher",
        "problem=teacher problem.sed=2",
        "initial=identity initial.seed=1",
        "-m problem=teacher problem.seed=0,1 problem.sed=2",
    ],
    "unknown": [
        "problem=techer",
        "problem.name=techer",
        "initial=contrl",
        "depth=colocation",
        "experiment=quik",
        "study=convergense",
        "device=gpu",
        "-m problem=teacher,techer",
        "study=closure system=neuron",
        "-m device=gpu,cpu",
    ],
    "time.rtol": [
        "time.rtol=abc",
        "time.rtol=null",
        "time.rtol=0",
        "time.rtol=nan",
        "-m time.rtol=1e-8,-1",
        "time.rtol=1,2",
        "+time.rtol=1",
    ],
    "time.horizon": ["time.horizon=inf", "experiment=minimax time.horizon=3"],
    "time.samples": [
        "time.samples=1",
        "time.samples=2.5",
        "time.samples=100000000000000",
    ],
    "time.method": ["time.method=dopri55"],
    "time.step": ["time.step=0"],
    "time.rule": ["study=trajectory time=descent time.rule=gdd"],
    "time.rate": [
        "study=trajectory time=descent time.rate=0",
        "study=trajectory time=descent time.rate=nan",
        "study=trajectory time=descent time.rate=0.03",
        "study=trajectory time.rate=0.01",
    ],
    "time.momentum": [
        "study=trajectory time=descent time.rule=heavy_ball time.momentum=1.0",
        "study=trajectory time=descent time.momentum=0.5",
        "study=trajectory time=descent time.rule=heavy_ball time.momentun=0.5",
    ],
    "time: batch": ["study=trajectory time=descent time.rule=sgd time.batch=1000"],
    "time: rule": ["study=trajectory time=descent time.rule=muon problem=teacher problem.dimension=1"],
    "time=descent": [
        "study=trajectory time=descent time.rtol=1e-8",
        "study=closure system=diagonal time=descent",
        "study=learning_rate time=descent",
    ],
    "time.max_evaluations": ["time.max_evaluations=0", "time.max_evaluations=1e6"],
    "time.max_seconds": ["time.max_seconds=0", "time.max_seconds=soon", "study=trajectory study.max_seconds=5"],
    "save_every": ["save_every=-1"],
    "depth.panels": [
        "depth.panels=0",
        "depth.panels=1000000000000000",
    ],
    "depth.order": [
        "depth.order=true",
        "depth.order=1000",
        "depth.order=null",
    ],
    "depth.tol": [
        "depth.tol=0",
        "depth.tol=1e-20",
        "depth.tol=1e-8 depth.panels=2",
        "depth.tol=1e-8 study=universality",
        "depth.tol=1e-8 problem=teacher members=2",
    ],
    "initial.seed": ["initial.seed=-1"],
    "initial.twist": ["initial.twist=abc"],
    "problem.dimension": [
        "problem=teacher problem.dimension=0",
        "problem=file problem.x=good.csv problem.y=good.csv problem.dimension=1",
        "problem=teacher problem.dimension=1000000",
    ],
    "problem.scale": ["problem=teacher problem.scale=-1"],
    "problem.seed": [
        "problem=teacher members=2 problem.seed=5",
        "experiment=diagonal problem.seed=3",
        "-m problem=teacher problem.seed=0,-1",
    ],
    "problem.standardise": ["problem=file problem.x=good.csv problem.y=good.csv problem.standardise=1"],
    "problem.whiten": [
        "problem=file problem.x=good.csv problem.y=good.csv problem.whiten=1",
        "problem=file problem.x=good.csv problem.y=good.csv problem.whiten=true problem.standardise=false",
        "problem=file problem.x=short.csv problem.y=short.csv problem.whiten=true",
    ],
    "problem": [
        "~problem",
        "problem=null",
        "problem=3",
        "-m problem=null,teacher",
    ],
    "problem.x": [
        "problem=file",
        "problem=file problem.x=missing.csv problem.y=good.csv",
        "problem=file problem.x=ragged.csv problem.y=good.csv",
        "problem=file problem.x=nan.csv problem.y=good.csv",
        "problem=file problem.x=word.csv problem.y=good.csv",
        "problem=file problem.x=hole.csv problem.y=good.csv",
        "problem=file problem.x=empty.csv problem.y=good.csv",
        "problem=file problem.x=constant.csv problem.y=good.csv",
        "problem=file problem.x=nan.npy problem.y=good.csv",
        "problem=file problem.x=cube.npy problem.y=good.csv",
        "problem=file problem.x=two.npz problem.y=good.csv",
        "problem=file problem.x=claim.npy problem.y=good.csv",
        "problem=file problem.x=counted.csv problem.y=good.csv",
        "problem=file problem.x=index.csv problem.y=good.csv",
        "problem=file problem.x=decimal.csv problem.y=good.csv",
        "problem=file problem.x=long.csv problem.y=good.csv",
        "problem=file problem.x=table.txt problem.y=good.csv",
        "problem=file problem.x=folder problem.y=good.csv",
        "problem=file problem.table=good.csv problem.x=[a,a] problem.y=[b]",
    ],
    "problem.header": [
        "problem=file problem.x=good.csv problem.y=good.csv problem.header=maybe",
        "problem=file problem.table=good.csv problem.x=[a] problem.y=[b] problem.header=no",
    ],
    "problem.x: ": [
        "problem=file problem.table=names.csv problem.x=[hieght] problem.y=[dose]",
        "problem=file problem.table=short.csv problem.x=[a] problem.y=[b]",
    ],
    "problem.table": [
        "problem=file problem.x=[a] problem.y=[b]",
        "problem=file problem.table=good.csv problem.x=[] problem.y=[b]",
        "problem=file problem.table=good.csv problem.x=[a] problem.y=[b] problem.x_key=a",
        "problem=file problem.table=nan.npy problem.x=[a] problem.y=[b]",
        "problem=file problem.table=names.csv problem.x=[site] problem.y=[dose]",
        "problem=file problem.table=words.parquet problem.x=[a] problem.y=[b]",
        "problem=file problem.table=words.nc problem.x=[a] problem.y=[b]",
    ],
    "problem.x_key": ["problem=file problem.x=two.npz problem.x_key=c problem.y=good.csv"],
    "problem.missing": [
        "problem=file problem.table=names.csv problem.x=[height] problem.y=[dose]",
        "problem=file problem.x=good.csv problem.y=good.csv problem.missing=ignore",
        "problem=file problem.table=names.csv problem.x=[empty] problem.y=[dose] problem.missing=drop",
    ],
    "problem.held_out": [
        "problem=file problem.x=good.csv problem.y=good.csv problem.held_out=1.5",
        "problem=file problem.x=one.csv problem.y=one.csv problem.held_out=0.2",
    ],
    "problem.loss": [
        "problem=file problem.table=names.csv problem.x=[dose] problem.y=[dose] problem.loss=logistic",
        "problem=file problem.table=names.csv problem.x=[dose] problem.y=[dose] problem.loss=cross_entropy",
        "problem=linnerud problem.loss=cross_entropy",
    ],
    "problem.y": [
        "problem=file problem.x=good.csv problem.y=short.csv",
        "problem=file problem.table=names.csv problem.x=[dose] problem.y=[class] problem.loss=cross_entropy",
        "problem=file problem.table=names.csv problem.x=[dose] problem.y=[one] problem.loss=cross_entropy",
    ],
    "study.depths": [
        "study.depths=[]",
        "study.depths=[4,0]",
        "study=unifying study.depths=[3]",
        "study.depths=[8,4]",
        "study.depths=4",
        "study.depths=[4,8",
        "study.depths=[1000000000]",
        "experiment=delta_rewrite study.depths=[16,32]",
        "experiment=delta_rewrite study.depths=[2,4,8]",
    ],
    "study.layers": ["study.layers=[eulr]"],
    "study.sampling": ["study.sampling=centre"],
    "study.workers": ["study.workers=0"],
    "device": ["device=null"],
    "threads": [
        "threads=0",
        "threads=999999999999999",
    ],
    "out": ["out=", "out=good.csv"],
    "sweep": [
        "-m hydra.sweep.dir=folder time.rtol=1e-8,1e-9",
        "-m 'time.rtol=range(0)'",
    ],
    "directory": ["--config-dir=nowhere"],
    "unknown option": [
        "--bogus",
        "-m --bogus time.rtol=1",
    ],
    "both sides": [
        "time.atol=1e-9 -m time.rtol=1e-8,1e-9",
    ],
    "words": [
        "words",
    ],
    "==": [
        "==",
    ],
    "a=b=c": [
        "a=b=c",
    ],
    "broken.yaml": [
        "--config-dir=. --config-name=broken",
    ],
    "resume": [
        "-m resume=true time.rtol=1e-8,1e-9",
    ],
    "time": [
        "time=null",
    ],
    "hydra.sweeper.params": [
        "-m hydra.sweeper.params.a=1",
    ],
    "system": ["study=closure"],
    "system.dimension": ["experiment=diagonal system.dimension=0"],
    "study.draws": ["experiment=initialisations study.draws=1"],
    "study.steps": [
        "study=learning_rate study.steps=[]",
        "study=learning_rate study.steps=[0,2]",
        "study=learning_rate study.steps=[4,2]",
        "study=learning_rate study.steps=2",
        "study=minimax study.steps=[80,160,321]",
    ],
    "study.layer": ["study=learning_rate study.layer=eulr"],
    "study.pair": [
        "study=perceptron study.pair=[3]",
        "study=perceptron study.pair=[3,3]",
        "study=perceptron study.pair=[3,10]",
    ],
    "study.products": ["study=perceptron study.products=[0.4,41]"],
    "study.sizes": [
        "study=perceptron study.sizes=[16]",
        "study=perceptron study.sizes=[10,30]",
        "study=width study.sizes=[16,32]",
    ],
    "study.samples": [
        "study=leaky_rank study.samples=2",
        "study=spline_landscape study.samples=8",
        "study=unifying study.samples=1",
    ],
    "study.certified": ["study=width study.certified=[1,4]"],
    "study.images": ["study=width study.images=1000"],
    "study.points": ["study=unifying study.points=1"],
    "study.scales": ["study=leaky_rank study.scales=[1,10]"],
    "study.slope": ["study=leaky_rank study.slope=1"],
    "study.largest": ["study=leaves study.largest=1"],
    "study.starts": ["study=leaves study.starts=4"],
    "system.shift": ["experiment=hyperbolic_leaf system.shift=0.7"],
    "study.imbalances": ["study=min_norm study.imbalances=[1,2,4,8]"],
    "study.gains": ["study=curvature study.gains=[1]"],
    "study.deep": ["study=curvature study.deep=[5]"],
    "study.trained_width": ["study=curvature study.trained_width=1"],
    "study.alphas": ["study=minimax study.alphas=[2,4,8,16,32]"],
    "study.widths": [
        "study=min_norm study.widths=[64,512]",
        "study=minimax study.widths=[64,256]",
        "study=minimax study.widths=[63,256,1024]",
    ],
    "study.penalties": ["study=minimax study.penalties=[0.1]"],
    "study.drawn_dimension": ["study=deep_completion study.drawn_dimension=1"],
    "study.dimension": ["study=volume_form study.dimension=1"],
}

LIBRARY_CASES = [(word, call) for word, calls in LIBRARY.items() for call in calls]
COMMAND_CASES = [(word, line) for word, lines in COMMAND.items() for line in lines]


@dataclass(frozen=True)
class Refusal:
    """How a bad input was refused: its text, and the error (library) or the exit status (command line)."""

    text: str
    error: Exception | None = None
    status: int | None = None
    out: str = ""
    left: tuple[str, ...] = ()


@cache
def names() -> dict:
    """What the calls of the table may use."""
    z = torch.eye(2)
    grid, loss = nf.DepthGrid.gauss(1, 4), nf.Quadratic(z)
    return {
        "math": math, "np": np, "torch": torch, "nf": nf, "exact": exact, "laws": laws,
        "grid": grid,
        "loss": loss,
        "flow": nf.ContinuousFlow(grid, loss),
        "many": nf.ContinuousFlow(grid, nf.Quadratic(z.expand(3, 2, 2))),
        "net": nf.FiniteFlow(3, loss),
        "limit": nf.IntrinsicFlow(loss, nf.LogMean()),
        "state": torch.zeros(4, 2, 2),
        "times": [0.0, 1.0],
        "z": z,
        "sigma": torch.tensor([1.0, 0.5]),
        "tau": torch.tensor([2.0, 2.0]),
    }  # fmt: skip


@cache
def files() -> dict[str, bytes]:
    """The files in the current folder of every case."""
    with tempfile.TemporaryDirectory() as folder:
        run, finished, nan, cube, two, flat, zero = (
            Path(folder) / name
            for name in ("run.npz", "finished.npz", "nan.npy", "cube.npy", "two.npz", "flat.npy", "zero.npy")
        )
        flow, state, times = (names()[name] for name in ("flow", "state", "times"))
        nf.integrate(flow, state, times, checkpoint=run)
        nf.integrate(flow, state, times).save(finished)
        np.save(nan, np.array([[1.0, math.nan], [2.0, 3.0]]))
        np.save(cube, np.zeros((2, 2, 2)))
        np.save(flat, np.outer(np.arange(1.0, 6.0), np.ones(5)))
        np.save(zero, np.column_stack((np.zeros(5), np.eye(5) + 1.0)))
        np.savez(two, a=np.ones(3), b=np.ones(3))
        arrays = {path.name: path.read_bytes() for path in (run, finished, nan, cube, two, flat, zero)}
    return arrays | {
        "damaged.npz": arrays["run.npz"][:-5],
        "version.npz": arrays["run.npz"].replace(b"archive 2", b"archive 999"),
        "words.npz": b"hello\n",
        "empty.npz": b"",
        "good.csv": b"a,b\n1,2\n3,5\n2,7\n",
        "short.csv": b"1.5,2\n3,4\n",
        "claim.npy": arrays["cube.npy"].replace(b"(2, 2, 2)", b"(9, 9, 9)"),
        "counted.csv": b"0,1\n5,3\n2,7\n",
        "index.csv": b"0,1.5\n1,2.5\n2,0.5\n",
        "decimal.csv": b"a\n1,5\n2,5\n",
        "long.csv": b"a,b,c\n1,2\n3,5\n",
        "ragged.csv": b"1,2\n3\n",
        "nan.csv": b"1,2\n3,nan\n",
        "word.csv": b"1,2\n3,x\n",
        "hole.csv": b"1,2\n3,\n",
        "empty.csv": b"",
        "constant.csv": b"1,1\n1,1\n1,1\n",
        "table.txt": b"1,2\n",
        "words.npy": b"hello, this is no table\n",
        "names.csv": b"height,dose,site,class,one,empty\n1.5,0.5,Oslo,0,1,\nNA,1.5,Rom,1,1,\n2.5,0.7,Oslo,3,1,\n",
        "one.csv": b"a,b\n1.5,2\n",
        "words.parquet": b"hello, this is no table\n",
        "words.nc": b"hello, this is no table\n",
        "broken.yaml": b"time:\n  rtol: 1\n bad: [\n",
    }


@contextlib.contextmanager
def current_folder() -> Iterator[Path]:
    """A temporary current folder with `files()` and an empty folder."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name, content in files().items():
            Path(name).write_bytes(content)
        Path("folder").mkdir()
        yield Path.cwd()


@cache
def called(call: str) -> Refusal:
    """What a call of the library raises."""
    with current_folder() as folder:
        try:
            eval(call, dict(names()))
        except Exception as error:
            return Refusal(str(error).replace(str(folder), HERE), error=error)
    raise AssertionError(f"{call} was accepted")


def _never(run):
    """A study that has the fields of another but does not start, should a bad input get through."""

    @wraps(run)
    def stopped(*_, **__):
        raise RuntimeError("the input was accepted")

    return stopped


@cache
def commanded(line: str) -> Refusal:
    """How `neuralode-flow LINE` ends, run in this process."""
    studies = {name: replace(study, run=_never(study.run)) for name, study in STUDIES.items()}
    at_terminate, status, out, err = signal.getsignal(signal.SIGTERM), 0, io.StringIO(), io.StringIO()
    with (
        current_folder() as folder,
        mock.patch.dict(STUDIES._entries, studies),
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "argv", [PROGRAM, *shlex.split(line)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            run_command()
        except SystemExit as stop:
            status = stop.code
        finally:
            signal.signal(signal.SIGTERM, at_terminate)
        left = {str(path.relative_to(folder)) for path in folder.rglob("*")} - {*files(), "folder"}
    text = err.getvalue().replace(str(folder), HERE)
    return Refusal(text, status=status, out=out.getvalue(), left=tuple(sorted(left)))


def assert_helpful(text: str, word: str) -> None:
    """One line of one or two sentences that names what is at fault."""
    assert text.strip() == text != ""
    assert text.isprintable()
    assert text.count(". ") <= 1
    assert len(text) < 1000  # the names of all experiments take 600
    assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)


@pytest.mark.parametrize(("word", "call"), LIBRARY_CASES, ids=[call for _, call in LIBRARY_CASES])
def test_the_library_refuses(word, call):
    refusal = called(call)
    assert isinstance(refusal.error, (TypeError, ValueError, OSError))
    trace = refusal.error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_code.co_filename
    assert Path(raised_in).is_relative_to(PACKAGE)
    # An error of Python or torch that passes through our code has no words of ours.
    assert linecache.getline(raised_in, trace.tb_lineno).strip().startswith("raise ")
    assert_helpful(refusal.text, word)


@pytest.mark.parametrize(("word", "line"), COMMAND_CASES, ids=[line for _, line in COMMAND_CASES])
def test_the_command_refuses(word, line):
    refusal = commanded(line)
    assert refusal.status == 2
    assert refusal.out == ""
    assert refusal.left == ()
    assert refusal.text.startswith(f"{PROGRAM}: ")
    assert "Traceback" not in refusal.text
    assert refusal.text.endswith("\n")
    assert_helpful(refusal.text[:-1], word)


def test_every_case_is_there_once_and_there_are_many():
    calls, lines = [call for _, call in LIBRARY_CASES], [line for _, line in COMMAND_CASES]
    assert len(calls) == len(set(calls)) >= 50
    assert len(lines) == len(set(lines)) >= 25


def _code(text: str) -> str:
    assert "`" not in text
    return f"`{text}`".replace("|", r"\|")


def rendered() -> str:
    """The whole of docs/refusals.md."""
    calls = [(call, called(call)) for _, call in LIBRARY_CASES]
    lines = [(line, commanded(line)) for _, line in COMMAND_CASES]
    return "\n".join(
        [
            "# What is refused, and in which words",
            "",
            f"Each bad input below is run by tests/test_refusals.py, which also writes this file, and is refused with "
            f"the text beside it. The calls use the flows, states and files that are made there, and `{HERE}` stands "
            "for the current folder.",
            "",
            "## Library",
            "",
            "| call | error type | text |",
            "| --- | --- | --- |",
            *(f"| {_code(call)} | {type(r.error).__name__} | {_code(r.text)} |" for call, r in calls),
            "",
            "## Command line",
            "",
            "| arguments | exit status | text |",
            "| --- | --- | --- |",
            *(f"| {_code(line)} | {r.status} | {_code(r.text.strip())} |" for line, r in lines),
            "",
        ]
    )


def test_the_table_in_the_docs_says_what_is_said():
    assert TABLE.read_text(encoding="utf-8") == rendered(), "run `python tests/test_refusals.py`"


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    TABLE.write_text(rendered(), encoding="utf-8")
