"""What netCDF has no kind or no name for is kept, as text or under another name, and said."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from neuralode_flow import results
from neuralode_flow.storable import REWRITTEN, storable


def kept(tmp_path, dataset):
    results.write(tmp_path / "results.nc", dataset)
    return results.open(tmp_path / "results.nc")


def objects(*items):
    values = np.empty(len(items), dtype=object)
    values[:] = items
    return values


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (objects({1}, None), ["{1}", "None"]),
        (objects(np.zeros(2), torch.zeros(1)), ["[0.0, 0.0]", "[0.0]"]),
        (objects(10**30, 1), ["1" + 30 * "0", "1"]),
        (objects(2**62 + 1, None), ["4611686018427387905", "None"]),  # not as a float, which has fewer digits
        (np.array(["9999-01-01", "0001-01-01"], "M8[s]"), ["9999-01-01T00:00:00", "0001-01-01T00:00:00"]),
        (np.array([(1, 0.1)], [("i", int), ("f", float)]), ["(1, 0.1)"]),
        (np.array(["a\0b", "c"]), ["a\\0b", "c"]),
        (np.array(["\udc80", "c"]), ["\\udc80", "c"]),
        (pd.Categorical(["a", "b"]), ["a", "b"]),
        (pd.period_range("2020-01", periods=2, freq="M"), ["2020-01", "2020-02"]),
        (pd.IntervalIndex.from_breaks([0, 1, 2]), ["(0, 1]", "(1, 2]"]),
        (pd.array([2**53 + 1, None], "Int64"), ["9007199254740993", "None"]),
        (pd.DatetimeIndex(["2020-01-01"], tz="America/New_York"), ["2020-01-01 00:00:00-05:00"]),
    ],
)
def test_values_of_no_kind_of_netcdf_are_texts(tmp_path, values, texts):
    dataset = kept(tmp_path, xr.Dataset({"a": ("k", values)}, {"k": [*range(len(values))]}))
    assert dataset.a.values.tolist() == texts
    assert dataset.attrs[REWRITTEN] == "a has texts in place of values that netCDF has no kind for"
    as_axis = kept(tmp_path, xr.Dataset({"x": ("a", np.arange(len(values)))}, {"a": ("a", values)}))
    assert as_axis.indexes["a"].tolist() == texts
    assert as_axis.x.values.tolist() == [*range(len(values))]


@pytest.mark.parametrize(
    ("values", "same"),
    [(objects(True, False), [True, False]), (objects(1, 2.5), [1.0, 2.5]), (objects(1j, 2), [1j, 2])],
)
def test_objects_that_are_numbers_stay_numbers(tmp_path, values, same):
    dataset = kept(tmp_path, xr.Dataset({"a": ("k", values)}))
    assert dataset.a.values.tolist() == same
    assert dataset.a.dtype != object
    assert REWRITTEN not in dataset.attrs


def test_complex_numbers_that_no_other_program_knows_are_texts(tmp_path):
    dataset = kept(tmp_path, xr.Dataset({"a": ("k", np.array([1 + 2j], np.clongdouble))}))
    assert dataset.a.values.tolist() == ["(1+2j)"]


def test_objects_that_are_bytes_stay_bytes(tmp_path):
    assert kept(tmp_path, xr.Dataset({"a": ("k", objects(b"abc", b"d"))})).a.values.tolist() == [b"abc", b"d"]


def test_attributes_that_cannot_become_an_array_are_kept_as_they_say_themselves(tmp_path):
    round_about = {}
    round_about["self"] = round_about
    attributes = {
        "class": torch.Tensor, "sparse": torch.eye(2).to_sparse(), "meta": torch.empty(2, device="meta"),
        "round": round_about, "digits": [2**53 + 1, 0.5], "fractions": [1, 0.5],
    }  # fmt: skip
    told = kept(tmp_path, xr.Dataset({"a": 1.0}, attrs=attributes)).attrs
    assert told["class"] == "<class 'torch.Tensor'>"
    assert "sparse" in told["sparse"]
    assert "meta" in told["meta"]
    assert "self" in told["round"]
    assert told["digits"] == "[9007199254740993, 0.5]"
    assert told["fractions"].tolist() == [1, 0.5]


def test_names_become_others_that_nothing_else_has(tmp_path):
    given = xr.Dataset({"a/b": ("k/l", [1.0, 2.0]), "a_b": ("k_l", [3.0]), "": 4.0, ".": 5.0, 6: 6.0}, {"k/l": [7, 8]})
    dataset = kept(tmp_path, given)
    assert {name: dataset[name].values.tolist() for name in dataset.variables} == {
        "a_b_2": [1.0, 2.0], "a_b": [3.0], "_": 4.0, "__2": 5.0, "6": 6.0, "k_l_2": [7, 8],
    }  # fmt: skip
    assert dataset.a_b_2.dims == ("k_l_2",)
    for words in ("a/b is called a_b_2", "k/l is called k_l_2", "'' is called _"):
        assert words in dataset.attrs[REWRITTEN]


def test_an_index_of_levels_is_kept_as_its_levels(tmp_path):
    given = xr.Dataset({"a": (("k", "j"), np.eye(2))}, {"k": [1, 2], "j": ["x", "y"]}).stack(both=("k", "j"))
    dataset = kept(tmp_path, given)
    assert dataset.a.values.tolist() == [1, 0, 0, 1]
    assert (dataset.k.values.tolist(), dataset.j.values.tolist()) == ([1, 1, 2, 2], ["x", "y", "x", "y"])


def test_attributes_keep_all_digits_and_entries(tmp_path):
    third = torch.tensor([1 / 3], dtype=torch.float64)
    attributes = {
        "tensor": third.clone().requires_grad_(), "nested": {"z": third, "long": np.zeros(2000)},
        "nul": "a\0b", "bytes": b"\xff", "range": range(3), "ragged": [[1], [2, 3]], "words": ["a", "b\0"],
    }  # fmt: skip
    dataset = kept(tmp_path, xr.Dataset({"a": ("k", [1.0], attributes)}, attrs={**attributes, "": 1, 3: 2}))
    for told in (dataset.attrs, dataset.a.attrs):
        assert told["tensor"] == 1 / 3
        assert told["nested"] == f"{{'z': [{1 / 3}], 'long': {2000 * [0.0]}}}"
        assert (told["nul"], told["bytes"], told["range"].tolist()) == ("a\\0b", "b'\\xff'", [0, 1, 2])
        assert (told["ragged"], told["words"]) == ("[[1], [2, 3]]", "['a', 'b\\x00']")
    assert (dataset.attrs["_"], dataset.attrs["3"]) == (1, 2)


def test_dates_may_have_units_of_their_own(tmp_path):
    dates = np.array(["2020-01-01", "NaT"], "M8[ns]")
    given = xr.Dataset({"a": ("k", dates, {"units": "s", "calendar": "mine"})})
    assert kept(tmp_path, given).identical(given)


def test_what_netcdf_holds_is_left_alone():
    given = xr.Dataset(
        {"a": ("k", [1.0, 2.0], {"units": "m"}), "b": ("k", [True, False]), "c": ("k", ["σ", ""])},
        {"k": np.array(["2020-01-01", "2021-01-01"], "M8[ns]")},
        {"n": 1, "list": [1, 2], "flag": True},
    )
    assert storable(given).identical(given)
    twice = storable(xr.Dataset({"a/b": 1.0}))
    assert storable(twice).identical(twice)
