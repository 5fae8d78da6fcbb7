"""Experiment files: what they set has an effect, or is refused, wherever they come from."""

import hydra
import pytest

from neuralode_flow.app.helppage import names_of
from neuralode_flow.app.points import set_by
from neuralode_flow.app.schema import checked, idle_setting

OF_LAYERS = "study:\n  {}\n  network_depth: 8\ntime:\n  horizon: 0.1\n  samples: 2\n"


@pytest.fixture
def experiment(config_dir):
    """A function that writes an experiment file of the user's, of a study and with what else it sets."""

    def write(name, study, text, group="experiment"):
        file = config_dir / group / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"# @package _global_\ndefaults:\n  - override /study: {study}\n{text}")
        return file

    return write


def test_what_has_no_effect_is_refused_by_the_name_of_the_file(experiment, command, left_behind):
    idle = experiment("idle", "trajectory", OF_LAYERS.format("rule: exp"))
    timed = experiment("timed", "trajectory", OF_LAYERS.format("model: finite"))
    alone = (["experiment=idle"], ["experiment='idle'"], ["experiment=[idle]"], ["experiment=idle", "time.horizon=1"])
    for arguments in (*alone, ["-m", "experiment=timed,idle"], ["-m", "experiment=[idle],timed"]):
        ended = command(*arguments)
        assert ended.status == 2, arguments
        assert f"{idle}: study.rule=exp has no effect with study.model=continuous; change that, or" in ended.err
    timed.write_text(
        timed.read_text().replace("trajectory", "minimax").partition("study:\n")[0] + "time: {samples: 2}\n"
    )
    ended = command("experiment=timed")
    assert ended.status == 2
    short = experiment("short", "trajectory", OF_LAYERS.format("rule: exp"), "debug")
    assert f"{short}: study.rule=exp has no effect" in command("debug=short").err
    assert f"{timed}: time.samples=2 has no effect: study=minimax uses no time; leave it out" in ended.err
    assert left_behind() == []


@pytest.mark.slow
def test_what_the_command_line_makes_idle_or_completes_is_not(experiment, command, workplace):
    experiment("timed", "trajectory", OF_LAYERS.format("model: finite"))
    experiment("open", "trajectory", OF_LAYERS.format("rule: euler"))
    for arguments in (["experiment=timed", "study.model=continuous"], ["experiment=open", "study.model=finite"]):
        ended = command(*arguments)
        assert ended.status == 0, ended.err
    assert len(list(workplace.glob("runs/trajectory/*/summary.json"))) == 2


@pytest.mark.slow
def test_all_that_the_experiments_of_the_library_set_has_an_effect():
    with hydra.initialize_config_module("neuralode_flow.conf", version_base="1.3"):
        for group in ("experiment", "debug"):
            for name, file in names_of(group).items():
                job = checked(hydra.compose("config", overrides=[f"{group}={name}"]))
                assert [why for line in set_by(file) if (why := idle_setting(job, line)) is not None] == [], name
