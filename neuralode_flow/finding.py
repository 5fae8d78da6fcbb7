"""What a study found, stated once: summary.json, the terminal, the report, reproduce and collect read it from here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import xarray as xr

from .display import html_table, number_said, said, shortened
from .orders import UNDECIDED, Order

MOST_ORDERS = 100  # in a summary, which must stay small; the dataset has all of them
_ATTRIBUTE = "finding"  # of a dataset
MEMBERS = "members"  # the attribute of a dataset of a run of many members: their number
STATUS = "member_status"  # its variable that says how each of them ended
DATA = "Data"  # the title of the note on what was done to the data


def is_of_members(dataset: xr.Dataset) -> bool:
    """Whether a dataset is of a run of many members, and not of a study that counts members of its own."""
    status = dataset.variables.get(STATUS)
    return MEMBERS in dataset.attrs and status is not None and status.dims == ("seed",)


@dataclass(frozen=True)
class Claim:
    """What somebody says of the numbers.

    Attributes
    ----------
    text : str
    published, measured : number, text, list or dict
        What is said, and what was found of the same quantity; None where nothing was published.
    figure : str
        Where it is said, such as "F1"; "own" for a claim of this library.
    """

    text: str
    measured: Any
    published: Any = None
    figure: str = "own"


@dataclass(frozen=True)
class Check:
    """A number that tells how far something is from what it must be.

    Attributes
    ----------
    name : str
        What it is of.
    error : float
    bound : float or None
        The largest error that passes; None for one that is only told.
    norm : str
        In which norm, and over what.
    least : bool
        The bound is the least value that passes instead.
    """

    name: str
    error: float
    bound: float | None = None
    norm: str = ""
    least: bool = False

    def __repr__(self) -> str:
        return said(self, f"{self.name} {number_said(self.error, '.3g')}", self.said_outcome)

    @property
    def holds(self) -> bool:
        """Whether it passes; NaN does not."""
        if self.bound is None:
            return True
        return self.error >= self.bound if self.least else self.error <= self.bound

    @property
    def said_bound(self) -> str:
        """The bound in words; empty without one."""
        return "" if self.bound is None else f"{'at least' if self.least else 'bound'} {self.bound:.3g}"

    @property
    def said_outcome(self) -> str:
        """The bound, and whether it holds, in words; empty without one."""
        return "" if self.bound is None else f"{self.said_bound}: {'holds' if self.holds else 'fails'}"


@dataclass(frozen=True)
class ErrorTable:
    """Errors by number of layers.

    Attributes
    ----------
    title : str
    depths : list of int
    errors : dict of str to list of float
        A column for each label, as long as `depths`.
    floor : float
        Errors down to it are the solver's own.
    what : str
        What the errors are of, in one line.
    """

    title: str
    depths: list[int]
    errors: Mapping[str, list[float]]
    floor: float = 0.0
    what: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a study found.

    Attributes
    ----------
    study : str
        Its name.
    problem : str
        What was studied, in one sentence.
    status : str
        "ok", or why the study did not run whole.
    verdict : str
        What was found, in one or two sentences with their numbers.
    claim : Claim, optional
        What was put to the test.
    checks : tuple of Check
        The first with a bound is that of the claim.
    orders : tuple of Order
        Observed orders of convergence.
    tables : tuple of ErrorTable
    notes : dict of str to str
        Further text for the report, by its title.
    numbers : dict
        Further entries of summary.json; one that has the name of what is stated, and says something else, is there
        under `own_` and its name.
    """

    study: str
    problem: str
    status: str
    verdict: str
    claim: Claim | None = None
    checks: tuple[Check, ...] = ()
    orders: tuple[Order, ...] = ()
    tables: tuple[ErrorTable, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Finding({', '.join(self.in_short)})"

    @property
    def in_short(self) -> list[str]:
        """What its repr has: the study, how it ended, how many of its checks hold, and how many orders it has."""
        status = "ran whole" if self.status == "ok" else shortened(self.status)
        orders = f"{len(self.orders)} orders" if self.orders else ""
        return [self.study, status, *filter(None, (self.said_checks, orders))]

    @property
    def said_checks(self) -> str:
        """How many of the checks with a bound hold, in words; empty without any."""
        holding = [check.holds for check in self.checks if check.bound is not None]
        return f"{sum(holding)} of {len(holding)} checks hold" if holding else ""

    def _repr_html_(self) -> str:
        rows = [("problem", self.problem), ("status", self.status), ("verdict", self.verdict)]
        if self.claim is not None:
            rows.append(("claim", self.claim.text))
        for check in self.checks:
            told = f" ({check.said_outcome})" if check.said_outcome else ""
            rows.append((check.name, f"{number_said(check.error, '.3g')}{told}"))
        rows += [(f"order {order.rule}".strip(), str(order)) for order in self.orders[:MOST_ORDERS]]
        return html_table(self.study, [(name, value) for name, value in rows if value])

    @property
    def passed(self) -> bool:
        """Whether the study ran whole and all its checks hold."""
        return self.status == "ok" and all(check.holds for check in self.checks)

    def parts(self) -> dict[str, Any]:
        """All of it in the types of Python."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)} | {
            "claim": None if self.claim is None else vars(self.claim),
            "checks": [vars(check) for check in self.checks],
            "orders": [order._asdict() for order in self.orders],
            "tables": [vars(table) for table in self.tables],
        }
        return {name: plain(part) for name, part in parts.items()}

    def attached(self, dataset: xr.Dataset) -> xr.Dataset:
        """The dataset with this finding in its attributes; raises ValueError where a table lacks some of its errors."""
        for table in self.tables:
            for label, errors in table.errors.items():
                if len(errors) != len(table.depths):
                    raise ValueError(
                        f"errors of {label!r} in the table {table.title!r} must be one for each of "
                        f"{len(table.depths)} depths, NaN where there is none; got {len(errors)}"
                    )
        named = {"study": self.study, "problem": self.problem, "status": self.status, "verdict": self.verdict}
        return dataset.assign_attrs(named | {_ATTRIBUTE: json.dumps(self.parts(), ensure_ascii=False)})

    @staticmethod
    def parts_in(dataset: xr.Dataset) -> dict[str, Any] | None:
        """The parts of the finding in the attributes of a dataset, None where there is none."""
        return json.loads(dataset.attrs[_ATTRIBUTE]) if Finding.stated(dataset) else None

    @staticmethod
    def stated(dataset: xr.Dataset) -> bool:
        """Whether a dataset states a finding."""
        return _ATTRIBUTE in dataset.attrs

    @classmethod
    def of(cls, dataset: xr.Dataset, record: Mapping[str, Any] | None = None) -> Self:
        """The finding in the attributes of a dataset; where there is none, what a flat record says.

        Raises
        ------
        ValueError
            If there is neither.
        """
        if not cls.stated(dataset):
            if record is not None:
                return cls.from_record(record)
            raise ValueError("the dataset states no finding; its study must return `Finding(…).attached(dataset)`")
        return cls.of_parts(json.loads(dataset.attrs[_ATTRIBUTE]))

    @classmethod
    def of_parts(cls, parts: Mapping[str, Any]) -> Self:
        """The finding that has these `parts`."""
        claim = parts["claim"]
        return cls(
            **dict(parts) | {
                "claim": None if claim is None else Claim(**claim),
                "checks": tuple(Check(**check) for check in parts["checks"]),
                "orders": tuple(Order(**order) for order in parts["orders"]),
                "tables": tuple(ErrorTable(**table) for table in parts["tables"]),
            }
        )  # fmt: skip

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """That of a study that gives a flat record of its own, with errors and orders by layer rule if it has any."""
        errors, depths, orders = (plain(record.get(key)) for key in ("errors", "depths", "orders"))
        told = {key: plain(record[key]) for key in _TOLD if key in record}
        return cls(
            study=str(record.get("study", "")),
            problem=str(record.get("problem", "")),
            status=str(record.get("status", "ok")),
            verdict=str(record.get("verdict") or ""),
            checks=tuple(
                Check(_TOLD[key][0], math.nan if value is None else value, norm=_TOLD[key][1])
                for key, value in told.items()
            ),
            orders=tuple(
                Order(UNDECIDED if value is None else value, UNDECIDED, 0, rule=rule)
                for rule, value in (orders.items() if isinstance(orders, dict) else ())
            ),
            tables=(ErrorTable("Errors by depth", depths, errors, what=ERRORS_OF_Z),) if errors and depths else (),
            numbers=dict(record),
        )

    def record(self) -> dict[str, Any]:
        """The flat record for summary.json."""
        claim = self.claim
        record: dict[str, Any] = {"study": self.study, "status": self.status, "verdict": self.verdict}
        if self.problem:
            record["problem"] = self.problem
        if claim is not None:
            record |= {"figure": claim.figure, "claim": claim.text, "published": claim.published}
            record["measured"] = claim.measured
        first = next((check for check in self.checks if check.bound is not None), None)
        if first is not None:
            record |= {"check": first.name, "error": first.error, "bound": first.bound, "passed": self.passed}
        if self.checks:
            record["checks"] = [asdict(check) for check in self.checks]
        if self.orders:
            record["observed_orders"] = [order._asdict() for order in self.orders[:MOST_ORDERS]]
        record = plain(record)
        # What is stated is not overruled: a status of the study's own would be read as that of the run.
        own = {name: plain(value) for name, value in self.numbers.items()}
        return record | {
            (f"own_{name}" if name in record and record[name] != one else name): one for name, one in own.items()
        }


ERRORS_OF_Z = "error of the end-to-end map, sup over the output times"
_TOLD = {
    "reference_error": ("reference error", "sup over time, Frobenius norm"),
    "law_drift": ("law drift", "0 in exact arithmetic"),
}


def sentence(text: str) -> str:
    """`text` with its first letter raised where it begins with a word; symbols such as z, σ and dz/dt stay."""
    return re.sub(r"^[a-z]{2,}(?=[\s,.:;-]|$)", lambda word: word[0].capitalize(), text)


def plain(value: Any) -> Any:
    """`value` in the types of Python; arrays and NumPy numbers become lists and numbers."""
    if type(value) in _PLAIN:
        return value
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return value


_PLAIN = (float, str, int, bool, type(None))


def finite(value: Any) -> Any:
    """`value` with None for each number that is not finite, as JSON has it."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
