"""What the studies of published figures have in common: a claim, what was measured of it, and the verdict."""

from __future__ import annotations

import json
from typing import Any

import xarray as xr

LIMIT = {"long_name": "layers; 0 is infinite depth"}


def claimed(
    dataset: xr.Dataset,
    *,
    study: str,
    figure: str,
    title: str,
    claim: str,
    published: Any,
    measured: Any,
    check: str,
    error: float,
    bound: float,
    passed: bool,
    verdict: str,
    status: str = "ok",
    **more: Any,
) -> xr.Dataset:
    """The dataset with its claim in its attributes, from which `summarise` makes the record.

    Parameters
    ----------
    dataset : xarray.Dataset
    study, figure, title : str
        The study, the figure's name ("F1", or "own"), and one sentence that says what is studied.
    claim : str
    published, measured : number, text, list or dict
        What the paper says, and what was found.
    check : str
        What `error` is, which `bound` must hold.
    passed : bool
        Whether the claim holds.
    verdict : str
        The same in words, with the numbers.
    status : str
        "ok", or why the study did not run whole.
    **more
        Further entries of the record.
    """
    record = {
        "study": study, "status": status, "verdict": verdict, "figure": figure, "problem": title, "claim": claim,
        "published": published, "measured": measured, "check": check, "error": float(error), "bound": float(bound),
        "passed": bool(passed) and status == "ok", **more,
    }  # fmt: skip
    return dataset.assign_attrs(
        study=study, status=status, verdict=verdict, problem=title, record=json.dumps(record, ensure_ascii=False)
    )


def summarise(dataset: xr.Dataset) -> dict[str, Any]:
    """The flat record of the study for summary.json."""
    return json.loads(dataset.attrs["record"])
