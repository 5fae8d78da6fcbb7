"""Velocity evaluations of whole runs of the command line by DOP853 and by auto: python benchmarks/defaults.py [NAME …]

Each NAME is an experiment or a problem (of study=trajectory); by default all that come with the package are measured.
A run is cut after SECONDS; what it had spent by then is printed as a lower bound.
"""

from __future__ import annotations

import sys
import warnings
from importlib.resources import files

from hydra import compose, initialize_config_module

from neuralode_flow.app.job import build, prepare
from neuralode_flow.app.schema import checked
from neuralode_flow.studies import STUDIES
from neuralode_flow.time.watch import Watch

SECONDS = 60.0
METHODS = ("DOP853", "auto")
OF_A_USER = ("file",)  # problems that need files


def names(group: str) -> list[str]:
    folder = files("neuralode_flow.conf") / group
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def evaluations(overrides: list[str]) -> tuple[int, str]:
    """How many velocities a run computes in this process, and how it ended."""
    with initialize_config_module("neuralode_flow.conf", version_base="1.3"):
        job = checked(compose("config", overrides))
    prepare(job.machine)
    spend, count = Watch._spend, [0]

    def counted(watch: Watch, t: float) -> None:
        count[0] += 1
        spend(watch, t)

    Watch._spend = counted  # type: ignore[method-assign]
    try:
        alone = {"workers": 1} if "workers" in job.study.parameters else {}
        STUDIES[job.study.name].run(**build(job), **job.study.parameters | alone)
    except RuntimeError as error:
        return count[0], "cut" if "budget" in str(error) else str(error)
    finally:
        Watch._spend = spend  # type: ignore[method-assign]
    return count[0], ""


def main() -> None:
    experiments, problems = names("experiment"), [name for name in names("problem") if name not in OF_A_USER]
    print("| run | DOP853 | auto | ratio |\n|---|---|---|---|")
    for name in sys.argv[1:] or [*problems, *experiments]:
        chosen = [f"experiment={name}"] if name in experiments else ["study=trajectory", f"problem={name}"]
        settings = [*chosen, f"time.max_seconds={SECONDS}"]
        found = [evaluations([*settings, f"time.method={method}"]) for method in METHODS]
        cells = [f"{count}{f' ({how})' if how else ''}" for count, how in found]
        print(f"| {name} | {cells[0]} | {cells[1]} | {found[0][0] / max(1, found[1][0]):.2f} |", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
