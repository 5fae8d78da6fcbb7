"""What --help prints: one screen; the names and sentences of all experiments come with --help all."""

from __future__ import annotations

import textwrap
from importlib.resources import files
from importlib.resources.abc import Traversable

_SHORT = """\
neuralode-flow: how deep linear networks train, L layers beside their limit.

Usage: neuralode-flow [GROUP=NAME ...] [GROUP.FIELD=VALUE ...] [-m] [-q | -v]

  neuralode-flow                        the main job, on a real problem
  neuralode-flow debug=quick            the same, small
  neuralode-flow experiment=control     an experiment by its name
  neuralode-flow problem=file problem.table=t.csv 'problem.x=[a,b]' problem.y=c
  neuralode-flow -m problem=teacher problem.seed=0,1,2          a sweep
  neuralode-flow experiment=overnight resume=FOLDER             start, or go on

Often set, with what they are:
  time.horizon=2.0   training time       study.depths=[4,8,16]  layer numbers
  time.method=auto   for stiff problems  study.layers=[euler]   layer rules
  time=descent       in steps: time.rule=muon time.rate=0.01 time.momentum=0.5
  device=cpu         or cuda             figures=png            or all, none

{groups}

Options:
  -m             a sweep: KEY=VALUE,VALUE runs each of the values
  -q, --quiet    print the folder alone      -v, --verbose   print all of it
  --cfg job      print the config            --config-dir F  use your own files
  --help all     every field, every experiment and what it shows, exit statuses
Results: runs/<study>/<time>/ (report.html, results.nc, figures/, summary.json)
"""
_SHOWN = ("problem", "initial", "study", "experiment")
_WIDTH = 79


def short() -> str:
    """One screen."""
    groups = []
    for group in _SHOWN:
        names = ", ".join(sorted(names_of(group)))
        groups.append(textwrap.fill(f"{group}: {names}", _WIDTH, subsequent_indent="  ", break_on_hyphens=False))
    return _SHORT.format(groups="\n".join(groups))


def experiments() -> list[str]:
    """One line for each experiment: its name and the sentence in the third line of its file."""
    found = {}
    for name, file in names_of("experiment").items():
        lines = file.read_text(encoding="utf-8").splitlines()
        if len(lines) > 2:
            found[name] = lines[2].removeprefix("# ")
    width = max(map(len, found), default=0)
    return [f"  {name:<{width}}  {sentence}" for name, sentence in sorted(found.items())]


def names_of(group: str) -> dict[str, Traversable]:
    """The files of a group of the config, by the names that they are chosen by."""
    folder = files("neuralode_flow.conf") / group
    return {path.name.removesuffix(".yaml"): path for path in folder.iterdir() if path.name.endswith(".yaml")}
