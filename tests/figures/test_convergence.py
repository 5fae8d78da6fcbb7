"""The figures of the convergence study, on made-up datasets of every awkward kind."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from neuralode_flow.figures import FIGURES, save

ORDERS = {"euler": 1.0, "rk2": 2.0, "cayley": 2.0, "exp": 2.0}
FACTORS = {"euler": 6.0, "rk2": 3.0, "cayley": 1.9, "exp": 0.8}


def made_up(
    depths: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512, 1024),
    rules: tuple[str, ...] = ("euler", "rk2", "cayley", "exp"),
    d: int = 4,
    members: int = 1,
) -> xr.Dataset:
    """A dataset with the names of the convergence study: errors are exact powers of 1/L, singular values logistic."""
    random = np.random.default_rng(0)
    times, L = np.linspace(0, 2, 21), np.array(depths, dtype=float)
    left, right = (np.linalg.qr(random.normal(size=(d, d)))[0] for _ in range(2))
    goals = np.linspace(0.2, 2.0, d)
    sigma = goals / (1 + (goals - 1) * np.exp(-3 * times[:, None]))
    z = np.einsum("ia,ta,ja->tij", left, sigma, right)
    error = np.array([FACTORS[rule] * L ** -ORDERS[rule] for rule in rules])
    bend = np.sin(np.pi * times / 2)[:, None, None] * left @ right.T / np.sqrt(d)
    scatter = 1 + 0.1 * np.arange(members)
    z_finite = z + np.einsum("rl,m,tij->rlmtij", error, scatter, bend)
    loss = ((sigma - goals) ** 2).sum(-1) / 2
    loss_finite = loss + np.einsum("rl,m,t->rlmt", error, scatter, loss)
    orders = np.array([ORDERS[rule] for rule in rules])
    richardson = np.where(np.isin(2 * L, L), 20 / L**2, np.nan)
    return xr.Dataset(
        {
            "z_finite": (("rule", "depth", "member", "time", "row", "column"), z_finite),
            "z_continuous": (("time", "row", "column"), z),
            "z_intrinsic": (("time", "row", "column"), z),
            "error_z": (("rule", "depth"), error),
            "error_profile": (("rule", "depth"), 0.7 * error),
            "error_richardson": ("depth", richardson),
            "error_finite_square": ("depth", 3e-12 * L**0.3),
            "error_intrinsic_depth": ("depth", 1.5 / L),
            "error_reference": ((), 4e-11),
            "order": ("rule", orders + 0.003),
            "order_spread": ("rule", 0 * orders + 0.004),
            "order_profile": ("rule", orders),
            "order_profile_spread": ("rule", 0 * orders + 0.02),
            "order_richardson": ((), 2.01),
            "order_intrinsic_depth": ((), 0.99),
            "loss_continuous": ("time", loss),
            "loss_finite": (("rule", "depth", "member", "time"), loss_finite),
        },
        {"rule": list(rules), "depth": list(depths), "time": times},
        {
            "floor": 1e-10,
            "floor_profile": 1e-7,
            "problem": "Breast cancer: 10 mean → 10 worst features of the cell nuclei in 569 tumours",
        },
    )


def with_gaps(dataset: xr.Dataset) -> xr.Dataset:
    dataset["error_z"][0, 2] = np.nan
    dataset["z_finite"][0, 0, 0, 5:] = np.nan
    dataset["order"][:] = np.nan
    dataset["error_reference"] = np.nan
    del dataset.attrs["floor"]
    return dataset


AWKWARD = {
    "usual": made_up(),
    "one depth": made_up(depths=(16,)),
    "two near depths": made_up(depths=(100, 101)),
    "one rule": made_up(rules=("cayley",)),
    "many members": made_up(members=3),
    "64 singular values": made_up(depths=(4, 64), d=64),
    "one singular value": made_up(depths=(4, 64), d=1),
    "NaN": with_gaps(made_up()),
    "zeros": made_up().map(np.zeros_like, keep_attrs=True),
    "all NaN": made_up().map(lambda values: values * np.nan, keep_attrs=True),
}


@pytest.mark.parametrize("case", AWKWARD)
def test_all_four_figures_are_drawn_from_any_dataset(case: str) -> None:
    figures = FIGURES["convergence"](AWKWARD[case])
    assert list(figures) == ["square", "profile", "singular_values", "loss"]
    for figure in figures.values():
        figure.savefig(io.BytesIO(), dpi=30)


def test_the_square_shows_every_edge_with_its_order() -> None:
    figure = FIGURES["convergence"](made_up())["square"]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    expected = ("Euler: 1.003 ± 0.004", "exponential: 2.003 ± 0.004", "Richardson", "intrinsic flow", "nested solve")
    for words in expected:
        assert any(words in label for label in labels), (words, labels)
    assert "Breast cancer" in figure.get_suptitle()


def test_members_are_told() -> None:
    figures = FIGURES["convergence"](made_up(members=3))
    assert "root mean square over 3 members" in figures["square"].get_suptitle()
    assert "first of 3 members" in figures["singular_values"].get_suptitle()
    assert "mean over 3 members" in figures["loss"].get_suptitle()


def test_equal_data_give_equal_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        figure = FIGURES["convergence"](made_up(depths=(4, 8)))["square"]
        png, pdf = save(figure, tmp_path / folder / "square")
        assert png.read_bytes().startswith(b"\x89PNG")
        assert pdf.read_bytes().startswith(b"%PDF")
        assert {png, pdf} == set((tmp_path / folder).iterdir())
    for suffix in ("png", "pdf"):
        first, second = ((tmp_path / folder / f"square.{suffix}").read_bytes() for folder in ("a", "b"))
        assert first == second


def test_figures_leave_the_style_of_the_caller_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    FIGURES["convergence"](made_up(depths=(4,)))
    assert dict(matplotlib.rcParams) == before
