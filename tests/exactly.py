"""Criteria A and B in exact arithmetic, for polynomial φ: a second route to every verdict, without round-off.

Polynomials have coefficients modulo a prime; a float is a rational number, and so is everything made of it. Random
points modulo the prime are generic with probability one.
"""

import itertools
import random
from fractions import Fraction

PRIME = 2**61 - 1


class Poly:
    """Σ c x^e modulo PRIME, as {e: c}."""

    def __init__(self, terms):
        self.terms = {e: c for e, c in terms.items() if c}

    @classmethod
    def variables(cls, n):
        return [cls({tuple(int(i == j) for j in range(n)): 1}) for i in range(n)]

    def __add__(self, other):
        terms = dict(self.terms)
        for e, c in other.terms.items():
            terms[e] = (terms.get(e, 0) + c) % PRIME
        return Poly(terms)

    def __sub__(self, other):
        return self + other * -1

    def __mul__(self, other):
        if not isinstance(other, Poly):
            factor = residue(other)
            return Poly({e: c * factor % PRIME for e, c in self.terms.items()})
        terms = {}
        for (e, c), (f, d) in itertools.product(self.terms.items(), other.terms.items()):
            key = tuple(map(sum, zip(e, f, strict=True)))
            terms[key] = (terms.get(key, 0) + c * d) % PRIME
        return Poly(terms)

    def __bool__(self):
        return bool(self.terms)

    def d(self, i):
        return Poly({(*e[:i], e[i] - 1, *e[i + 1 :]): c * e[i] % PRIME for e, c in self.terms.items() if e[i]})

    def at(self, point):
        total = 0
        for e, c in self.terms.items():
            for x, k in zip(point, e, strict=True):
                c = c * pow(x, k, PRIME) % PRIME
            total += c
        return total % PRIME


def residue(number):
    """A float or a fraction modulo PRIME."""
    exact = Fraction(number)
    return exact.numerator * pow(exact.denominator, -1, PRIME) % PRIME


def eliminated(rows):
    """Row echelon form modulo PRIME, without rows of zeros, and the pivots."""
    rows, done, pivots = [list(row) for row in rows], [], []
    for column in range(len(rows[0]) if rows else 0):
        lead = next((row for row in rows if row[column]), None)
        if lead is None:
            continue
        rows.remove(lead)
        inverse = pow(lead[column], -1, PRIME)
        lead = [x * inverse % PRIME for x in lead]
        rows, done = (
            [[(x - row[column] * y) % PRIME for x, y in zip(row, lead, strict=True)] for row in part]
            for part in (rows, done)
        )
        done.append(lead)
        pivots.append(column)
    return done, pivots


def rank(rows):
    return len(eliminated(rows)[1])


def kernel(rows, n):
    """A basis of the vectors that all rows are orthogonal to."""
    done, pivots = eliminated(rows)
    basis = []
    for free in sorted(set(range(n)) - set(pivots)):
        vector = [0] * n
        vector[free] = 1
        for row, pivot in zip(done, pivots, strict=True):
            vector[pivot] = -row[free] % PRIME
        basis.append(vector)
    return basis


def gradient(function, n):
    return [function.d(i) for i in range(n)]


def lie(fields, point, levels):
    """Vectors that span the Lie algebra of polynomial fields at a point, to a level; levels=None: until none adds."""
    n = len(point)
    new = generators = fields
    found = [[c.at(point) for c in field] for field in fields]
    dimension = rank(found)
    for level in itertools.count(2):
        if levels is not None and level > levels:
            break
        new = [bracket(X, Y) for X, Y in itertools.product(generators, new)]
        new = [field for field in new if any(field)]
        values = [[c.at(point) for c in field] for field in new]
        found = eliminated(found + values)[0]
        if levels is None and (len(found) in (dimension, n)):
            return found, level
        dimension = len(found)
    return found, levels


def bracket(X, Y):
    n = len(X)

    def component(i):
        total = Poly({})
        for j in range(n):
            total = total + Y[i].d(j) * X[j] - X[i].d(j) * Y[j]
        return total

    return [component(i) for i in range(n)]


def verdicts(phi, theta, laws=None, further=1):
    """(A, B, number of laws, singular) of a polynomial φ, a function of a list of numbers, at a list of floats.

    B is None where the point is singular and no laws are given. Brackets go `further` levels than a generic point
    needs.
    """
    n = len(theta)
    x = Poly.variables(n)
    fields = [gradient(z, n) for z in phi(x)]
    point = [residue(t) for t in theta]
    draws = random.Random(0)
    around, level = lie(fields, [draws.randrange(PRIME) for _ in range(n)], None)
    J = [[c.at(point) for c in field] for field in fields]
    if laws is None:
        here = lie(fields, point, level + further)[0]
        singular = len(here) < len(around)
        stack = J + kernel(here, n)
        number, A = n - len(around), rank(J) == len(around)
    else:
        dh = [[c.at(point) for c in gradient(h, n)] for h in laws(x)]
        singular, stack, number = False, J + dh, rank(dh)
        A = rank(stack) == n
    return A, None if singular else metric_kept(fields, J, kernel(stack, n), point), number, singular


def metric_kept(fields, J, basis, point):
    """Whether ∂M vanishes on a basis."""
    for v in basis:
        change = [
            [sum(c.d(j).at(point) * v[j] for j in range(len(v)) if v[j]) % PRIME for c in field] for field in fields
        ]
        for (a, da), (b, db) in itertools.combinations_with_replacement(list(zip(J, change, strict=True)), 2):
            if sum(x * dy + dx * y for x, dx, y, dy in zip(a, da, b, db, strict=True)) % PRIME:
                return False
    return True
