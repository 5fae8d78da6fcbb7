"""Real data that comes with scikit-learn: nothing is downloaded."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import positive
from ..compat import sklearn_table
from ..losses import LOSSES, LossName
from ..signatures import Seed
from .base import PROBLEMS, Problem, generator, identity, normal, standardised
from .rows import Rows


@PROBLEMS.register("linnerud")
def linnerud(loss: LossName = "quadratic") -> Problem:
    """Three physiological measures from three exercises, 20 men, standardised (Tenenhaus 1998).

    Parameters
    ----------
    loss : str
        A name in LOSSES: how residuals count.
    """
    done, bodies = (
        sklearn_table(f"linnerud_{part}.csv", delimiter=None, skip=1) for part in ("exercise", "physiological")
    )
    return _regression("linnerud", "Linnerud: 3 exercises → 3 body measures of {n} men", done, bodies, loss)


@PROBLEMS.register("breast_cancer")
def breast_cancer(loss: LossName = "quadratic") -> Problem:
    """The 10 worst features of a tumour's cell nuclei from the 10 mean ones, standardised (Street, Wolberg 1993).

    Parameters
    ----------
    loss : str
        A name in LOSSES: how residuals count.
    """
    return _tumours("breast_cancer", "", loss)


@PROBLEMS.register("breast_cancer_white")
def breast_cancer_white(loss: LossName = "quadratic") -> Problem:
    """The 10 worst features of a tumour's cell nuclei from the 10 mean ones, these whitened (Street, Wolberg 1993).

    Standardised inputs x of covariance C become C^(−1/2) x. The least quadratic loss is that of breast_cancer, and its
    Hessian has condition number 1 in place of 2e4, so that a short training comes near it.

    Parameters
    ----------
    loss : str
        A name in LOSSES: how residuals count.
    """
    return _tumours("breast_cancer_white", ", inputs whitened", loss, whiten=True)


@PROBLEMS.register("digits")
def digits(noise: float = 0.5, seed: Seed = 0, loss: LossName = "quadratic") -> Problem:
    """A linear denoiser of handwritten digits: 64 noisy pixels in, the 64 clean ones out.

    The clean pixels are standardised (those that never change stay 0) and the input is clean + noise·randn in these
    units. The input is not standardised again, so that the initial map z₀ = I means "no denoising".

    Parameters
    ----------
    noise : float
        Standard deviation of the noise relative to that of a pixel, above 0.
    seed : int
        Seed of the noise; the same seed gives the same problem to the bit.
    loss : str
        A name in LOSSES: how residuals count.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of the wrong kind or out of range.
    """
    level = positive("problem.noise", noise)
    random = generator(seed)
    clean = standardised(_float64(sklearn_table("digits.csv.gz")[:, :-1]))
    noisy = clean + level * normal(random, *clean.shape)
    title = f"Digits: denoise 64 pixels of {len(clean)} handwritten digits, noise {level:g} (seed {seed})"
    return Problem("digits", title, LOSSES[loss](noisy, clean), identity(clean.shape[1]))


def _tumours(name: str, more: str, loss: str, *, whiten: bool = False) -> Problem:
    """The mean and worst features of cell nuclei; `more` ends the title."""
    features = sklearn_table("breast_cancer.csv", skip=1)[:, :-1]  # 10 means, 10 standard errors, 10 worst values
    title = "Breast cancer: 10 mean → 10 worst features of the cell nuclei in {n} tumours" + more
    return _regression(name, title, features[:, :10], features[:, 20:], loss, whiten=whiten)


def _regression(name: str, title: str, x: object, y: object, loss: str, *, whiten: bool = False) -> Problem:
    """Standardised square regression from x to y, both (n, d); `{n}` in the title becomes the number of rows."""
    rows = Rows(_float64(x), _float64(y))
    rows.standardise(outputs=True)
    if whiten:
        rows.whiten()
    f, z0 = LOSSES[loss](rows.x, rows.y), identity(rows.x.shape[1])
    return Problem(name, title.format(n=len(rows.x)), f, z0, data=tuple(rows.said))


def _float64(table: object) -> Tensor:
    return torch.as_tensor(table, dtype=torch.float64)
