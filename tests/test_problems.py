"""Problems: what they promise, and that a bad file is told apart by setting, file and place."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import neuralode_flow as nf
from neuralode_flow.problems import PROBLEMS
from neuralode_flow.problems.arrays import read_table
from neuralode_flow.problems.base import generator, identity, normal, standardised

BUNDLED = {"linnerud": (3, 20), "breast_cancer": (10, 569), "breast_cancer_white": (10, 569), "digits": (64, 1797)}


@pytest.mark.parametrize("name", ["teacher", *BUNDLED])
def test_training_starts_from_the_identity_with_a_loss_that_can_fall(name: str) -> None:
    problem = PROBLEMS[name]()
    z = problem.z0
    gradient = problem.loss.gradient(z)
    step = 1e-3 / gradient.norm()
    assert problem.name == name
    assert torch.equal(z, torch.eye(len(z), dtype=torch.float64))
    assert problem.loss(z - step * gradient) < problem.loss(z)


@pytest.mark.parametrize("name", BUNDLED)
def test_titles_tell_the_sizes(name: str) -> None:
    d, rows = BUNDLED[name]
    problem = PROBLEMS[name]()
    assert problem.z0.shape == (d, d)
    assert str(d) in problem.title
    assert str(rows) in problem.title


def test_breast_cancer_is_least_squares_on_standardised_columns() -> None:
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer().data
    x, y = ((t - t.mean(0)) / t.std(0) for t in (table[:, :10], table[:, 20:]))
    best = torch.from_numpy(np.linalg.lstsq(x, y)[0].T)
    loss = PROBLEMS["breast_cancer"]().loss
    assert float(loss(best)) == pytest.approx(((x @ best.numpy().T - y) ** 2).sum() / (2 * len(x)), rel=1e-12)
    assert float(loss.gradient(best).abs().max()) < 1e-13


def covariance(loss: nf.Loss, d: int) -> torch.Tensor:
    """Of the inputs: the Hessian of half the mean square maps dz to dz·C."""
    return loss.hessian(torch.zeros(d, d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))


def test_whitened_tumours_have_covariance_1_and_the_least_loss_of_the_standardised_ones() -> None:
    raw, white = (PROBLEMS[name]() for name in ("breast_cancer", "breast_cancer_white"))
    one = torch.eye(10, dtype=torch.float64)
    assert (covariance(white.loss, 10) - one).abs().max() < 1e-10
    assert torch.linalg.cond(covariance(raw.loss, 10)) > 1e4
    assert float(white.loss.infimum()) == pytest.approx(float(raw.loss.infimum()), rel=1e-12)
    assert white.data == ("every column standardised to mean 0, variance 1", "x whitened to covariance I")
    assert white.title == f"{raw.title}, inputs whitened"


def test_whitening_is_the_inverse_root_of_the_covariance() -> None:
    raw, white = (PROBLEMS[name]() for name in ("breast_cancer", "breast_cancer_white"))
    values, vectors = np.linalg.eigh(covariance(raw.loss, 10).numpy())
    # f(z) of C^(−1/2) x is that of z C^(−1/2) and x: symmetric, so that z₀ = I is the identity nearest to the inputs.
    root = torch.from_numpy(vectors @ np.diag(values**-0.5) @ vectors.T)
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(10, 10)))
    assert float(white.loss(z)) == pytest.approx(float(raw.loss(z @ root)), rel=1e-10)


def test_whitening_left_the_standardised_tumours_as_they_were() -> None:
    from sklearn.datasets import load_breast_cancer

    table = torch.as_tensor(load_breast_cancer().data)
    loss, expected = PROBLEMS["breast_cancer"]().loss, nf.Regression(*map(standardised, (table[:, :10], table[:, 20:])))
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(10, 10)))
    assert torch.equal(loss.gradient(z), expected.gradient(z))


def test_digits_denoise_towards_clean_pixels() -> None:
    quiet, loud = (PROBLEMS["digits"](noise=noise) for noise in (0.1, 1.0))
    # With z = I the residual is the noise itself: f = ½ · 64 · noise².
    assert float(quiet.loss(quiet.z0)) == pytest.approx(32 * 0.01, rel=0.02)
    assert float(loud.loss(loud.z0)) == pytest.approx(32.0, rel=0.02)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_teacher_targets_are_within_reach(dimension: int, seed: int) -> None:
    loss = PROBLEMS["teacher"](dimension=dimension, seed=seed, scale=1.0).loss
    target = -loss.gradient(torch.zeros(dimension, dimension, dtype=torch.float64))
    assert torch.linalg.det(target) > 0.05


@pytest.mark.parametrize("name", ["teacher", "digits"])
def test_a_seed_repeats_a_problem_to_the_bit(name: str) -> None:
    first, again, other = (PROBLEMS[name](seed=seed) for seed in (3, 3, 4))
    values = [p.loss.gradient(p.z0) for p in (first, again, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("teacher", {"dimension": 0}, ValueError, "problem.dimension must be at least 1, got 0"),
        ("teacher", {"dimension": 2.5}, TypeError, "problem.dimension must be an integer, got 2.5"),
        ("teacher", {"scale": 0.0}, ValueError, "problem.scale must be above 0"),
        ("teacher", {"scale": float("nan")}, ValueError, "problem.scale must be finite"),
        ("teacher", {"seed": -1}, ValueError, "problem.seed must be at least 0"),
        ("teacher", {"seed": 2**64}, ValueError, "problem.seed must be below"),
        ("digits", {"noise": 0.0}, ValueError, "problem.noise must be above 0"),
        ("digits", {"noise": "much"}, TypeError, "problem.noise must be a number, got 'much'"),
    ],
)
def test_bad_parameters_are_named(name: str, options: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        PROBLEMS[name](**options)


def test_standardised_columns_have_mean_0_and_variance_1_and_constants_become_0() -> None:
    random = np.random.default_rng(0)
    table = torch.from_numpy(random.normal(size=(50, 6)) * [1, 1e-200, 1e200, 5, 1e-3, 1] + [0, 0, 0, 1e3, 0, 0])
    table[:, 5] = 0.1  # its mean is not exactly 0.1 in floating point
    result = standardised(table)
    assert result.mean(dim=0).abs().max() < 1e-12
    assert (result[:, :5].square().mean(dim=0) - 1).abs().max() < 1e-10
    assert torch.equal(result[:, 5], torch.zeros(50, dtype=torch.float64))


# --- problem=file ---------------------------------------------------------------------------------------------------


def build(x: Path, y: Path, **options: object) -> tuple[torch.Tensor, float, int]:
    problem = PROBLEMS["file"](x=str(x), y=str(y), **options)
    return problem.loss.gradient(problem.z0), float(problem.loss(problem.z0)), len(problem.z0)


@pytest.fixture
def tables() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    return random.normal(size=(12, 3)), random.normal(size=(12, 2))


def write_csv(path: Path, table: np.ndarray, delimiter: str = ",", header: str = "", end: str = "\n") -> Path:
    lines = [delimiter.join(map(repr, row)) for row in table.tolist()]
    path.write_bytes(end.join([header, *lines] if header else lines).encode())
    return path


def test_every_format_gives_the_same_problem(tmp_path: Path, tables: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = tables
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.asfortranarray(y).astype(">f8"))
    np.savez(tmp_path / "both.npz", x=x, y=y, names=np.arange(3))
    np.savez_compressed(tmp_path / "single.npz", whatever=x)
    expected, loss, d = build(tmp_path / "x.npy", tmp_path / "y.npy")
    assert d == 3
    pairs = [
        (tmp_path / "both.npz", tmp_path / "both.npz"),
        (tmp_path / "single.npz", tmp_path / "y.npy"),
        (write_csv(tmp_path / "x.CSV", x), write_csv(tmp_path / "y.csv", y, ";", "a;b")),
        (write_csv(tmp_path / "xt.csv", x, "\t", '\ufeff"length, cm"\tb\tc', "\r\n"), tmp_path / "y.npy"),
        (write_csv(tmp_path / "blank.csv", x, ",", "\n\n"), tmp_path / "y.npy"),
    ]
    for pair in pairs:
        gradient, value, _ = build(*pair)
        assert torch.equal(gradient, expected)
        assert value == loss


def test_rectangular_data_is_led_in_and_out_by_padded_identities(
    tmp_path: Path, tables: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = tables
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    for dimension, d in ((None, 3), (5, 5)):
        problem = PROBLEMS["file"](
            x=str(tmp_path / "x.npy"), y=str(tmp_path / "y.npy"), standardise=False, dimension=dimension
        )
        z = torch.from_numpy(np.random.default_rng(2).normal(size=(d, d)))
        expected = ((x @ z.numpy()[:2, :3].T - y) ** 2).sum() / (2 * len(x))
        assert float(problem.loss(z)) == pytest.approx(expected, rel=1e-12)
        assert "3 inputs → 2 outputs" in problem.title
        assert f"{d} × {d}" in problem.title


def test_integers_one_axis_and_one_row_are_accepted(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(6))
    np.save(tmp_path / "y.npy", np.array([True, False, True, True, False, True]))
    assert build(tmp_path / "x.npy", tmp_path / "y.npy")[2] == 1
    (tmp_path / "one.csv").write_text("1,2")
    assert build(tmp_path / "one.csv", tmp_path / "one.csv", standardise=False)[1] == 0.0


def whitened(folder: Path, x: np.ndarray, **options: object) -> nf.Problem:
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", np.random.default_rng(3).normal(size=x.shape))
    return PROBLEMS["file"](x=str(folder / "x.npy"), y=str(folder / "y.npy"), whiten=True, **options)


def alike(n: int, far: float) -> np.ndarray:
    """Three columns of their own sizes; the third is the sum of the others, but for `far` of it."""
    x = np.random.default_rng(2).normal(size=(n, 3)) * [1, 1e6, 1]
    x[:, 2] = x[:, 0] + x[:, 1] / 1e6 + far * x[:, 2]
    return x


@pytest.mark.parametrize("far", [1.0, 1e-2, 1e-4])
def test_tables_are_whitened_however_alike_their_columns_are(tmp_path: Path, far: float) -> None:
    found = whitened(tmp_path, alike(30, far))
    assert (covariance(found.loss, 3) - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-10
    assert found.data[-1] == "x whitened to covariance I"


def test_rows_held_out_are_whitened_as_the_others_say(tmp_path: Path) -> None:
    x = alike(40, 0.1)
    found = whitened(tmp_path, x, held_out=0.25, seed=1)
    y = np.load(tmp_path / "y.npy")
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1)).numpy()
    held, train = np.sort(order[:10]), np.sort(order[10:])
    units, outputs = ((t - t[train].mean(0)) / t[train].std(0) for t in (x, y))
    values, vectors = np.linalg.eigh(units[train].T @ units[train] / 30)
    white = units @ vectors @ np.diag(values**-0.5) @ vectors.T
    z = np.random.default_rng(4).normal(size=(3, 3))
    for rows, loss in ((train, found.loss), (held, found.held_out)):
        expected = ((white[rows] @ z.T - outputs[rows]) ** 2).sum() / (2 * len(rows))
        assert float(loss(torch.from_numpy(z))) == pytest.approx(expected, rel=1e-9)
    assert (covariance(found.held_out, 3) - torch.eye(3, dtype=torch.float64)).abs().max() > 0.01
    assert found.data[-1] == "x whitened to covariance I over the rows trained on"


def test_a_constant_column_stays_0_beside_whitened_ones(tmp_path: Path) -> None:
    x = np.insert(alike(30, 0.5), 1, 0.1, axis=1)
    found = whitened(tmp_path, x)
    expected = torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64))
    assert (covariance(found.loss, 4) - expected).abs().max() < 1e-10
    assert "column 2 of x constant, set to 0" in found.data


def test_outputs_that_are_classes_stay_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", alike(30, 0.5))
    np.save(tmp_path / "y.npy", np.arange(30) % 3)
    found = [
        PROBLEMS["file"](x=str(tmp_path / "x.npy"), y=str(tmp_path / "y.npy"), loss="cross_entropy", whiten=white)
        for white in (False, True)
    ]
    at = torch.zeros(3, 3, dtype=torch.float64)
    assert float(found[0].loss(at)) == float(found[1].loss(at)) == pytest.approx(np.log(3))
    assert not torch.equal(found[0].loss.gradient(at), found[1].loss.gradient(at))


@pytest.mark.parametrize(
    ("n", "far", "options", "words"),
    [
        (30, 0.0, {}, "of the 3 that vary in problem.x, 30 rows spread by less than 1e-05 of their most; leave out"),
        (30, 1e-8, {}, "or set problem.whiten=false"),
        (3, 1.0, {}, "3 rows spread by less than"),
        (2, 1.0, {}, "give more rows"),
        (20, 1.0, {"held_out": 0.9}, "2 rows spread by less than"),
        (30, 1.0, {"standardise": False}, "set problem.standardise=true as well"),
    ],
)
def test_columns_that_determine_one_another_are_not_whitened(
    n: int, far: float, options: dict, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape("problem.whiten=true")) as caught:
        whitened(tmp_path, alike(n, far), **options)
    assert words in str(caught.value)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_whiten_is_true_or_false(tmp_path: Path, value: object) -> None:
    np.save(tmp_path / "x.npy", alike(30, 0.5))
    with pytest.raises(TypeError, match=re.escape(f"problem.whiten must be true or false, got {value!r}")):
        PROBLEMS["file"](x=str(tmp_path / "x.npy"), y=str(tmp_path / "x.npy"), whiten=value)


def csv_file(text: str | bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "bad.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def npy_file(array: np.ndarray) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.save(folder / "bad.npy", array)
        return folder / "bad.npy"

    return write


def npz_file(**arrays: np.ndarray) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.savez(folder / "bad.npz", **arrays)
        return folder / "bad.npz"

    return write


def damaged(suffix: str, keep: int) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / f"bad.{suffix}"
        (np.save if suffix == "npy" else np.savez)(path, np.ones((30, 3)))
        path.write_bytes(path.read_bytes()[:keep])
        return path

    return write


def folder_named_csv(folder: Path) -> Path:
    (folder / "bad.csv").mkdir()
    return folder / "bad.csv"


BAD_FILES: list[tuple[str, Callable[[Path], Path], type[Exception], list[str]]] = [
    ("missing", lambda folder: folder / "none.csv", FileNotFoundError, ["none.csv", "does not exist"]),
    ("directory", folder_named_csv, ValueError, ["is a directory"]),
    ("suffix", lambda folder: Path(__file__), ValueError, ["'.py'", ".npy, .npz, .csv"]),
    ("empty csv", csv_file(""), ValueError, ["is empty"]),
    ("header only", csv_file("a,b\n"), ValueError, ["is empty"]),
    ("ragged", csv_file("1,2\n3,4\n5\n"), ValueError, ["ragged", "line 3 has 1 cells", "line 1 has 2"]),
    ("word", csv_file("a,b\n1,2\n3,x\n"), ValueError, ["line 3, column 2", "'x' is not a number"]),
    ("half a header", csv_file("1,b\n1,2\n"), ValueError, ["line 1, column 2", "'b' is not a number"]),
    ("decimal comma", csv_file("1,5;2.5\n"), ValueError, ["line 1, column 1", "'1,5' has a decimal comma"]),
    ("spaces", csv_file("1 2\n3 4\n"), ValueError, ["line 2, column 1", "'3 4' is not a number"]),
    ("underscore", csv_file("1,2\n1_000,2\n"), ValueError, ["line 2, column 1", "'1_000'"]),
    ("empty cell", csv_file("1,2\n,4\n"), ValueError, ["line 2, column 1", "the cell is empty"]),
    ("empty cells", csv_file("1,2\n,\n"), ValueError, ["line 2, column 1", "the cell is empty"]),
    ("nan in csv", csv_file("1,2\n3,nan\n"), ValueError, ["line 2, column 2", "'nan' is not finite"]),
    ("quote", csv_file('1,2\n"3,4\n'), ValueError, ["cannot be read as UTF-8"]),
    ("binary", csv_file(b"\xff\xfe\x00\x01"), ValueError, ["cannot be read as UTF-8"]),
    ("nul", csv_file(b"1,2\n3,\x00\n"), ValueError, ["bad.csv"]),
    ("nan", npy_file(np.array([[1.0, 2.0], [3.0, np.nan]])), ValueError, ["1 NaN", "row 2, column 2"]),
    ("infinite", npy_file(np.array([1.0, -np.inf])), ValueError, ["(-inf)", "row 2, column 1"]),
    ("complex", npy_file(np.ones((2, 2)) * 1j), TypeError, ["real numbers", "complex128"]),
    ("text", npy_file(np.array([["a"]])), TypeError, ["real numbers", "<U1"]),
    ("three axes", npy_file(np.ones((2, 2, 2))), ValueError, ["1 or 2 axes", "(2, 2, 2)"]),
    ("no axis", npy_file(np.array(1.0)), ValueError, ["1 or 2 axes", "()"]),
    ("no rows", npy_file(np.ones((0, 3))), ValueError, ["is empty", "(0, 3)"]),
    ("no columns", npy_file(np.ones((3, 0))), ValueError, ["is empty", "(3, 0)"]),
    ("objects", npy_file(np.array([{}], dtype=object)), ValueError, ["cannot be read as a NumPy file"]),
    ("objects in npz", npz_file(a=np.array([{}], dtype=object)), ValueError, ["cannot be read as a NumPy file"]),
    ("keys", npz_file(a=np.ones(2), b=np.ones(2)), ValueError, ["called 'x'", "found: a, b"]),
    ("no arrays", npz_file(), ValueError, ["holds 0 arrays", "found: none"]),
    ("truncated npy", damaged("npy", 200), ValueError, ["cannot be read as a NumPy file"]),
    ("truncated header", damaged("npy", 20), ValueError, ["cannot be read as a NumPy file"]),
    ("empty npy", damaged("npy", 0), ValueError, ["cannot be read as a NumPy file"]),
    ("truncated npz", damaged("npz", 300), ValueError, ["cannot be read as a NumPy file"]),
]


@pytest.mark.parametrize(("make", "error", "words"), [pytest.param(*row[1:], id=row[0]) for row in BAD_FILES])
def test_a_bad_file_is_told_by_setting_file_and_place(
    make: Callable[[Path], Path], error: type[Exception], words: list[str], tmp_path: Path
) -> None:
    np.save(tmp_path / "y.npy", np.ones((2, 2)))
    bad = make(tmp_path)
    with pytest.raises(error) as caught:
        build(bad, tmp_path / "y.npy")
    for word in ["problem.x", str(bad), *words]:
        assert word in str(caught.value)


def test_a_bad_y_is_named_y(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(4.0))
    with pytest.raises(FileNotFoundError, match="problem.y=.*nowhere.npy does not exist"):
        build(tmp_path / "x.npy", tmp_path / "nowhere.npy")


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "words"),
    [
        (np.ones((3, 2)), np.ones((4, 2)), {}, ValueError, "problem.x has 3 rows but problem.y has 4"),
        (np.eye(3), np.eye(3)[:, :2], {"dimension": 2}, ValueError, "problem.dimension must be at least 3"),
        (np.eye(3), np.eye(3), {"dimension": True}, TypeError, "problem.dimension must be an integer"),
        (np.eye(3), np.ones((3, 1)), {}, ValueError, "problem.y has no column that varies"),
        (np.eye(3), np.eye(3), {"standardise": "yes"}, TypeError, "problem.standardise must be true or false"),
        (np.eye(3) * 1e200, np.eye(3), {"standardise": False}, ValueError, "overflows at z = I"),
    ],
)
def test_x_and_y_must_fit_together(
    x: np.ndarray, y: np.ndarray, options: dict, error: type[Exception], words: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    with pytest.raises(error, match=re.escape(words)):
        build(tmp_path / "x.npy", tmp_path / "y.npy", **options)


@pytest.mark.parametrize("location", ["", 3, None])
def test_a_location_must_be_a_path(location: object) -> None:
    with pytest.raises(TypeError, match="problem.x must be the path"):
        PROBLEMS["file"](x=location, y="y.npy")


@pytest.mark.parametrize("name", ["teacher", "linnerud", "breast_cancer", "breast_cancer_white"])
def test_what_looks_at_numbers_is_not_made_where_there_are_none(name: str) -> None:
    with torch.device("meta"), pytest.raises(TypeError, match="the default device is meta"):
        PROBLEMS[name]()
    assert not PROBLEMS[name]().z0.is_meta


def test_everything_is_on_the_default_device(tmp_path: Path) -> None:
    """The meta device stands in for a GPU: it holds shapes, and refuses to meet tensors of the CPU."""
    np.save(tmp_path / "x.npy", np.eye(3))
    torch.set_default_device("meta")
    try:
        table = read_table("problem.x", tmp_path / "x.npy", "x")
        made = [identity(2), normal(generator(0), 2, 2), table, standardised(table)]
        assert all(tensor.is_meta for tensor in made)
    finally:
        torch.set_default_device(None)
