"""The kernel of layers in sixty digits, for shifts that take few values."""

import pytest


def roots_in_many_digits(sigma, shifts):
    """x_a + c_k, less the least c, by Newton's method in log(x + min c); shifts with their multiplicities."""
    mpmath = pytest.importorskip("mpmath")
    least, roots = min(shifts), []
    for s in sigma:
        goal = 2 * mpmath.log(s)
        y = goal / sum(shifts.values())
        for _ in range(300):
            x = mpmath.exp(y)
            logs = mpmath.fsum(n * mpmath.log(x + (c - least)) for c, n in shifts.items())
            step = (logs - goal) / mpmath.fsum(n * x / (x + (c - least)) for c, n in shifts.items())
            y -= step
            if abs(step) < mpmath.mpf(10) ** -50:
                break
        roots.append({c: mpmath.exp(y) + (c - least) for c in shifts})
    return roots


def kernel_in_many_digits(sigma, shifts):
    """K_ab of a few singular values, by the pairs (a, b)."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        several = {mpmath.mpf(c): int((shifts == c).sum()) for c in shifts.unique().tolist()}
        squares = [mpmath.mpf(s) ** 2 for s in sigma]
        roots, first, found = roots_in_many_digits([mpmath.mpf(s) for s in sigma], several), next(iter(several)), {}
        for i, own in enumerate(roots):
            for j, other in enumerate(roots):
                if i == j:
                    exact = mpmath.fsum(n / own[c] for c, n in several.items()) * squares[i]
                else:
                    exact = (squares[i] - squares[j]) / (own[first] - other[first])
                found[i, j] = float(exact)
    return found
