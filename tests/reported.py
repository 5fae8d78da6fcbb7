"""A page of a run with figures that a test brings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from neuralode_flow.app.report import Drawn, all_drawn, write_report
from neuralode_flow.figures import FIGURES
from neuralode_flow.finding import Finding


def write_page(
    folder: Path,
    record: Mapping[str, Any],
    data: xr.Dataset,
    config: str,
    command: str,
    figures: Mapping[str, Drawn],
) -> Path:
    """What `write_report` writes, with the captions of the study's own figures."""
    finding = Finding.of(data, record)
    captions = FIGURES[finding.study].captions if finding.study in FIGURES else {}
    described = {name: drawn.described() for name, drawn in figures.items()}
    shown = all_drawn(folder, finding.problem, captions, described)
    return write_report(folder, record, data, config, command, shown)
