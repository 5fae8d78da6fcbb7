"""A linearly implicit method, which needs the derivative of the velocity and no iteration."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...matrices import lu_factors
from ..base import METHODS, Control, Start
from ..byformula import ByFormula
from ..formulas import Attempt, Plan, Proposing, Rates, first_step, of_those, root_mean, sizes

# Rodas5P (Steinebach, BIT Numer. Math. 63, 2023): order 5, embedded order 4, L-stable and stiffly accurate, eight
# stages. Of the form without products by the matrix (Hairer–Wanner II, IV.7): rows of a and c.
_GAMMA = 0.21193756319429014
_A = (
    (3.0,),
    (2.849394379747939, 0.45842242204463923),
    (-6.954028509809101, 2.489845061869568, -10.358996098473584),
    (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
    (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946),
)
_C = (
    (-14.155112264123755,),
    (-17.97296035885952, -2.859693295451294),
    (147.12150275711716, -1.41221402718213, 71.68940251302358),
    (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
    (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
    (
        30.91273214028599, -3.1208243349937974, 77.79954646070892, 34.28646028294783, -19.097331116725623,
        -28.087943162872662,
    ),
    (
        37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047, -40.06618937091002,
        -54.66780262877968, -9.48861652309627,
    ),
)  # fmt: skip

# The last stages add up: stage 7 starts where stage 6 has led, and the result is where stage 8 leads.
_WEIGHTS = (*_A, (*_A[-1], 1.0), (*_A[-1], 1.0, 1.0))

_ORDER = 5
_SAFETY, _LEAST, _MOST = 0.9, 0.2, 6.0


class RosenbrockFormula(Proposing):
    """(1/(hγ) − J) u_i = v(y + Σ_j a_ij u_j) + Σ_j c_ij u_j / h, y + Σ_j a_8j u_j + u_8; the error of order 4 is u_8.

    J is the derivative of the velocity at y, factorised once for each step.
    """

    def __init__(self, control: Control) -> None:
        self.rtol, self.atol = control.rtol, control.atol

    def flat(self, states: Tensor) -> Tensor:
        return states.reshape(len(states), -1)

    def first(self, rates: Rates, y: Tensor, f: Tensor, length: float) -> np.ndarray:
        return first_step(rates, y, f, self.atol + y.abs() * self.rtol, 1 / _ORDER, length)

    def tried(self, rates: Rates, y: Tensor, f: Tensor, h: np.ndarray) -> Attempt:
        rows = np.arange(len(y))
        J, had = rates.jacobians(rows, y)
        step = sizes(h, y)[:, None]
        if not had.all():
            y, f, step = of_those(had, y, f, step)
            J, rows = J[torch.from_numpy(had).to(y.device)] if had.any() else y.new_zeros(0, 0, 0), rows[had]
        if not len(rows):
            return Attempt(rows, y, f, y.new_zeros(0))
        M = J.neg_()
        M.diagonal(dim1=-2, dim2=-1).add_(1 / (step * _GAMMA))
        LU, pivots = lu_factors(M)
        u = y.new_empty(len(_C) + 1, *y.shape)
        trial, slope = y, f
        for i, (a, c) in enumerate(zip(((), *_WEIGHTS), ((), *_C), strict=True)):
            if i:
                trial = y + _combined(a, u)
                slope, had = rates(rows, trial)
                if not had.all():
                    rows = rows[had]
                    y, step, trial, slope, LU, pivots = of_those(had, y, step, trial, slope, LU, pivots)
                    u = u[:, torch.from_numpy(had).to(y.device)]
            given = slope + _combined(c, u) / step if i else slope
            u[i] = torch.linalg.lu_solve(LU, pivots, given[..., None])[..., 0]
        following = trial + u[-1]
        slope, had = rates(rows, following)
        rows, error = rows[had], u[-1]
        y, following, slope, error = of_those(had, y, following, slope, error)
        allowed = self.atol + self.rtol * torch.maximum(y.abs(), following.abs())
        return Attempt(rows, following, slope, root_mean(error / allowed))

    def judged(self, error: Tensor, plan: Plan, again: np.ndarray, ended: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = error.double().cpu().numpy()
        with np.errstate(divide="ignore"):
            factor = np.nan_to_num(_SAFETY * size ** (-1 / _ORDER), nan=_LEAST).clip(_LEAST, _MOST)
        accepted = size <= 1
        h = plan.h * np.where(accepted & again, np.minimum(factor, 1), factor)
        return accepted, np.where(accepted & ended, np.maximum(h, plan.proposed), h)


def _combined(weights: tuple[float, ...], u: Tensor) -> Tensor:
    """Σ_j weights_j u_j of the first ones, entry by entry in one order for any number of members."""
    total = weights[0] * u[0]
    for weight, part in zip(weights[1:], u[1:], strict=False):
        total.add_(part, alpha=weight)
    return total


@METHODS.register("rodas5p")
class Rodas5P(ByFormula):
    """Rodas5P for stiff flows of up to a thousand numbers, of each member by itself with ``control="member"``."""

    formula = RosenbrockFormula
    differentiates = True

    def __init__(self, start: Start) -> None:
        super().__init__(start, method=type(self), postpones=not start.state.is_cpu)

    def _again(self, start: Start) -> Rodas5P:
        return type(self)(start)
