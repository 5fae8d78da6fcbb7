"""The command `neuralode-flow-plot RUN…`: redraws the figures of a run, or lays several runs over one another."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from .. import __version__
from ..figures import FIGURES, Figures, figure_set, save
from ..figures.overlay import overlay
from ..untrusted import printable
from .errors import BadInput, complain
from .memberfolder import dataset
from .plugins import load
from .streams import results_told, standard_streams


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws what the command line names; status 2 if it cannot be drawn."""
    with standard_streams():
        _main(arguments)


def _main(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="neuralode-flow-plot", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or its results.nc")
    parser.add_argument("--out", type=Path, help="folder of the pictures (of one run: its own figures/; else overlay/)")
    parser.add_argument("--plugins", default="", help="MODULE,MODULE: your own figures, if they are not installed")
    options = parser.parse_args(arguments)
    try:
        load([*filter(None, options.plugins.split(","))])
        written = drawn(options.runs, options.out)
    except BadInput as error:
        complain(printable(error))
        raise SystemExit(error.status) from None
    except OSError as error:
        complain(f"the pictures cannot be written: {error.strerror or error}; choose another folder with --out")
        raise SystemExit(1) from None
    with results_told(written[0].parent):
        print(*written, sep="\n")


def drawn(runs: Sequence[Path], out: Path | None) -> list[Path]:
    """The written pictures: all figures of one run, or the curves of several in common axes.

    Raises
    ------
    BadInput
        If a run cannot be read or drawn.
    OSError
        If the pictures cannot be written.
    """
    try:
        datasets = [dataset(run) for run in runs]
    except (OSError, ValueError) as error:
        raise BadInput(str(error)) from error
    folder = out or (_folder(runs[0]) / "figures" if len(runs) == 1 else Path("overlay"))
    if out is None and folder.is_symlink():
        raise BadInput(f"{folder} is a link, which is not followed; choose a folder with --out")
    try:
        figures = _figures(runs, datasets)
        folder.mkdir(parents=True, exist_ok=True)
        return [path for name, figure in figures.items() for path in save(figure, folder / name)]
    except (BadInput, OSError):
        raise
    except Exception as error:  # whatever data of other shapes make NumPy and Matplotlib raise
        names = ", ".join(map(str, runs))
        raise BadInput(f"{names} cannot be drawn ({type(error).__name__}: {error})") from error


def _figures(runs: Sequence[Path], datasets: Sequence[xr.Dataset]) -> Figures:
    """Figures by name."""
    studies = {str(dataset.attrs.get("study")) for dataset in datasets}
    if len(studies) > 1:
        raise BadInput(f"runs of different studies cannot be laid over one another: {', '.join(sorted(studies))}")
    if len(runs) > 1:
        try:
            return overlay(_named(runs, datasets))
        except ValueError as error:
            raise BadInput(str(error)) from error
    study = studies.pop()
    if "sweep" in datasets[0].attrs:
        raise BadInput(f"{runs[0]} is a collected sweep; give its members, {runs[0]}/*, or see its report.html")
    name = figure_set(study, datasets[0])
    if name not in FIGURES:
        raise BadInput(
            f"{runs[0]} is of the study {study}, which has no figures here; --plugins names modules of your own"
        )
    return FIGURES[name](datasets[0])


def _folder(run: Path) -> Path:
    return run if run.is_dir() else run.parent


def _named(runs: Sequence[Path], datasets: Sequence[xr.Dataset]) -> dict[str, xr.Dataset]:
    """Datasets by the shortest ends of their paths that tell the runs apart."""
    folders = [_folder(run).resolve() for run in runs]
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = [printable("/".join(folder.parts[-length:])) for folder in folders]
        if len(set(names)) == len(names):
            return dict(zip(names, datasets, strict=True))
    raise BadInput("a run is named twice; give different runs")


if __name__ == "__main__":
    main()
