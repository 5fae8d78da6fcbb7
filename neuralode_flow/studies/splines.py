"""Univariate ReLU networks Σ_j u_j σ(w_j x + b_j) as splines: derivatives of the loss by sums over pieces."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Spline(NamedTuple):
    """A network and its samples: x (n,) increasing, y (n,); u, w, b (h,).

    The loss is 1/(2n) Σ r_i², r the residual y(x_i) − y_i.
    """

    x: np.ndarray
    y: np.ndarray
    u: np.ndarray
    w: np.ndarray
    b: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, theta: np.ndarray) -> Spline:
        """θ (3h,) has the u_j and then the pairs (w_j, b_j)."""
        h = len(theta) // 3
        return cls(x, y, theta[:h], theta[h::2], theta[h + 1 :: 2])

    @property
    def theta(self) -> np.ndarray:
        """(3h,)."""
        return np.concatenate((self.u, np.stack((self.w, self.b), axis=-1).ravel()))

    @property
    def lines(self) -> np.ndarray:
        """Slope and intercept u_j (w_j, b_j) that a neuron adds on its side of its knot, (h, 2)."""
        return np.stack((self.u * self.w, self.u * self.b), axis=-1)

    @property
    def active(self) -> np.ndarray:
        """First sample on which a neuron is active, and the one after the last, by its knot −b_j/w_j: (h, 2)."""
        knots = -self.b / self.w
        right = np.stack((np.searchsorted(self.x, knots, "right"), np.full(len(knots), len(self.x))), axis=-1)
        left = np.stack((np.zeros(len(knots), dtype=int), np.searchsorted(self.x, knots, "left")), axis=-1)
        return np.where(self.w[:, None] > 0, right, left)

    def residual(self) -> np.ndarray:
        """y(x_i) − y_i: the lines of the neurons, each on its side of its knot."""
        return self._half_lines() @ self.lines.T.ravel() - self.y

    def moments(self) -> np.ndarray:
        """Σ r_i x_i/n and Σ r_i/n over the samples on which a neuron is active, (h, 2)."""
        r = self.residual()
        return between(np.stack((r * self.x, r)), self.active) / len(self.x)

    def gradient(self) -> np.ndarray:
        """Of the loss in θ, (3h,): ∂_u = w R₁ + b R₀, ∂_w = u R₁, ∂_b = u R₀ with the moments R₁, R₀."""
        first, zeroth = self.moments().T
        return np.concatenate(
            (self.w * first + self.b * zeroth, np.stack((self.u * first, self.u * zeroth), axis=-1).ravel())
        )

    def hessian(self) -> np.ndarray:
        """Of the loss in θ, (3h, 3h): T_jᵀ M_jk T_k, and for each neuron R₁ at (u, w) and R₀ at (u, b).

        T_j is the derivative of u_j (w_j, b_j) in (u_j, w_j, b_j), and M_jk has the moments of the samples on which
        both neurons are active.
        """
        h, active = len(self.u), self.active
        both = np.stack(
            (np.maximum.outer(active[:, 0], active[:, 0]), np.minimum.outer(active[:, 1], active[:, 1])), axis=-1
        )
        second, first, zeroth = np.moveaxis(between(np.stack((self.x**2, self.x, np.ones_like(self.x))), both), -1, 0)
        M = np.array([[second, first], [first, zeroth]]) / len(self.x)
        T = np.zeros((h, 2, 3))
        T[:, 0, 0], T[:, 1, 0] = self.w, self.b
        T[:, 0, 1] = T[:, 1, 2] = self.u
        blocks = np.einsum("jpa,pqjk,kqb->jakb", T, M, T)
        each = np.arange(h)
        for place, moment in zip((1, 2), self.moments().T, strict=True):
            blocks[each, 0, each, place] += moment
            blocks[each, place, each, 0] += moment
        order = np.concatenate((3 * each, np.stack((3 * each + 1, 3 * each + 2), axis=-1).ravel()))
        result: np.ndarray = blocks.reshape(3 * h, 3 * h)[np.ix_(order, order)]
        return result

    def rank(self) -> int:
        """The rank of the Hessian where all moments vanish and no u_j does, counted on the pieces (derived here).

        It is the dimension, on the samples, of lines on half-lines. Where one knot has neurons of both sides, or a
        neuron is active everywhere, each piece has a line of its own: two for a piece, one where it has one sample
        only. Else one line less is free, which pieces between neurons of different sides have to make up for.
        """
        n, active = len(self.x), self.active
        active = active[active[:, 0] < active[:, 1]]
        whole = (active[:, 0] == 0) & (active[:, 1] == n)
        right, left = set(active[active[:, 0] > 0, 0]), set(active[active[:, 1] < n, 1])
        cuts = sorted(right | left)
        sizes = np.diff([0, *cuts, n])
        if whole.any() or right & left:
            return int(np.minimum(2, sizes).sum())
        if not cuts:
            return 0
        sides = np.array([False, *(cut in right for cut in cuts), True])
        alone = sizes == 1
        return int(2 * len(cuts) - alone.sum() + min(2, (alone & (sides[1:] != sides[:-1])).sum()))

    def fitted(self) -> float:
        """The least loss of lines on half-lines: of one on each piece where each has its own, else by least squares."""
        first, last = self.active[self.active[:, 0] < self.active[:, 1]].T
        n = len(self.x)
        if not (((first == 0) & (last == n)).any() or set(first[first > 0]) & set(last[last < n])):
            basis = self._half_lines()
            missed = self.y - basis @ np.linalg.lstsq(basis, self.y, rcond=1e-12)[0]
            return float(missed @ missed) / (2 * n)
        lost, edges = 0.0, np.unique([0, *first, *last, n])
        for start, end in zip(edges[:-1], edges[1:], strict=True):
            if end - start > 2:
                x, y = self.x[start:end], self.y[start:end]
                x = x - x.mean()
                lost += float(((y - y.mean()) ** 2).sum() - (x @ y) ** 2 / (x @ x))
        return lost / (2 * n)

    def _half_lines(self) -> np.ndarray:
        """x_i and 1 of each neuron on the samples on which it is active, (n, 2h)."""
        at = np.arange(len(self.x))
        first, last = self.active.T
        on = ((first[:, None] <= at) & (at < last[:, None])).astype(float)
        return np.concatenate((on * self.x, on)).T

    def settled(self) -> Spline:
        """The nearest lines of the neurons whose moments vanish on the same samples; u_j² − w_j² − b_j² stays.

        A critical point of the loss if no sample changes its side of a knot.
        """
        change = -np.linalg.lstsq(self._half_lines(), self.residual(), rcond=1e-12)[0].reshape(2, -1).T
        lines = self.lines + change
        kept = self.u**2 - self.w**2 - self.b**2
        squares = (lines**2).sum(-1)
        longer = (np.abs(kept) + np.sqrt(kept**2 + 4 * squares)) / 2
        u = np.sign(self.u) * np.sqrt(np.where(kept > 0, longer, squares / longer))  # (s − |δ|)/2 would cancel
        return self._replace(u=u, w=lines[:, 0] / u, b=lines[:, 1] / u)

    def silent(self) -> Spline | None:
        """One neuron more, with u = 0 and a knot t such that Σ r_i (x_i − t) = 0 beyond it; None if there is none.

        At a critical point this is one as well, and a saddle, since the moments of that neuron do not vanish.
        """
        r, n = self.residual(), len(self.x)
        for cut in range(2, n - 1):
            first, zeroth = (r * self.x)[cut:].sum() / n, r[cut:].sum() / n
            if abs(zeroth) > 1e-6 and self.x[cut - 1] < first / zeroth < self.x[cut]:
                added = (np.append(a, v) for a, v in ((self.u, 0.0), (self.w, 1.0), (self.b, -first / zeroth)))
                return self._replace(**dict(zip("uwb", added, strict=True)))
        return None


def between(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Sums of values (k, n) over samples from ends[..., 0] to before ends[..., 1], 0 where there are none: (..., k)."""
    sums = np.concatenate((np.zeros((len(values), 1)), values.cumsum(-1)), axis=-1)
    start, end = ends[..., 0], np.maximum(ends[..., 1], ends[..., 0])
    result: np.ndarray = np.moveaxis(sums[:, end] - sums[:, start], 0, -1)
    return result


def cauchy(t: np.ndarray) -> np.ndarray:
    """The distribution function of the knots of independent N(0, 1) weights and biases."""
    result: np.ndarray = 0.5 + np.arctan(t) / np.pi
    return result


def uniform_ratio(t: np.ndarray) -> np.ndarray:
    """The same of weights and biases that are uniform on [−1, 1] (derived here): density ¼ up to 1, 1/(4t²) beyond."""
    size = np.abs(t)
    above = np.where(size <= 1, size / 4, 0.5 - 1 / (4 * np.maximum(size, 1)))
    result: np.ndarray = 0.5 + np.sign(t) * above
    return result
