"""What users and their scripts rely on by name: settings with their defaults, keys of summary.json, variables of
results.nc. Names may be added; those in frozen.json stay. `python tests/test_frozen.py` adds new settings and studies,
`python tests/test_frozen.py STUDY …` what is new in the results of these studies, which it runs."""

import json
import sys
from functools import cache
from pathlib import Path

import hydra
import pytest
from cases import slow
from small import FROZEN, PUBLISHED, SMALL, assert_names_stay, names

from neuralode_flow.app.runfolder import flat
from neuralode_flow.app.schema import checked
from neuralode_flow.studies import STUDIES
from neuralode_flow.untrusted import parse_yaml

CONF = Path(__file__).parent.parent / "conf"


def names_in(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


SETTINGS = [
    *(f"{group}={name}" for group in ("experiment", "initial", "depth", "debug") for name in names_in(group)),
    *(f"problem={name}" for name in names_in("problem") if name != "file"),
    *(f"study={name}" for name in names_in("study") if name != "closure"),
    *(f"study=closure system={name}" for name in names_in("system")),
    "problem=file problem.x=x.csv problem.y=y.csv",
    "study=trajectory time=descent",
]


def settings(choice):
    """Every setting of a command with its value."""
    with hydra.initialize_config_module("neuralode_flow.conf", version_base="1.3"):
        return flat(parse_yaml(checked(hydra.compose("config", overrides=choice.split())).to_yaml()))


@cache
def frozen_settings():
    return json.loads(FROZEN.read_text())["settings"]


@pytest.mark.parametrize("choice", SETTINGS)
def test_settings_and_their_defaults_stay(choice):
    frozen = frozen_settings()[choice]
    now = settings(choice)
    assert {key: now.get(key, "gone") for key in frozen} == frozen


LONG = "conservation_laws", "edge", "learning_rate"


# The published ones with their claims.
@pytest.mark.parametrize("study", [*(name for name in SMALL if name not in (*PUBLISHED, *LONG)), *slow(*LONG)])
def test_names_of_results_stay(study):
    assert_names_stay(study)


def test_every_study_and_experiment_is_frozen():
    frozen = json.loads(FROZEN.read_text())
    assert set(frozen["results"]) == set(SMALL) == set(STUDIES)
    assert set(SETTINGS) <= set(frozen["settings"])


def _added(frozen, now):
    """What is frozen, and what is new."""
    if isinstance(frozen, dict) and isinstance(now, dict):
        return {key: _added(frozen.get(key, now.get(key)), now.get(key)) for key in dict.fromkeys([*frozen, *now])}
    return frozen


if __name__ == "__main__":
    known = json.loads(FROZEN.read_text()) if FROZEN.exists() else {}
    asked = sys.argv[1:] or set(SMALL) - set(known.get("results", {}))
    found = {"settings": {c: settings(c) for c in SETTINGS}, "results": {study: names(study) for study in asked}}
    FROZEN.write_text(json.dumps(_added(known, found), indent=1, sort_keys=True, ensure_ascii=False) + "\n")
