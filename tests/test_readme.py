"""The README's example, run as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_print_what_the_readme_shows(capsys):
    blocks = re.findall(r"```(python)?\n(.*?)```", README.read_text(), re.DOTALL)
    first, second, third = [i for i, (language, _) in enumerate(blocks) if language == "python"]
    names = {}
    exec(compile(blocks[first][1], "README.md", "exec"), names)
    printed, shown = capsys.readouterr().out.splitlines(), blocks[first + 1][1].splitlines()
    assert len(printed) == len(shown)
    # The first error is at round-off, where a machine may differ; the others are stated to the digit.
    assert printed[1:] == shown[1:]
    number = r"(\S+) from"
    assert float(re.search(number, printed[0])[1]) < 1e-10
    assert re.sub(number, "", printed[0]) == re.sub(number, "", shown[0])
    exec(compile(blocks[second][1], "README.md", "exec"), names)
    assert capsys.readouterr().out == blocks[second + 1][1]
    exec(compile(blocks[third][1], "README.md", "exec"), names)
    zeros = r"largest zero \S+,"  # round-off
    assert re.sub(zeros, "", capsys.readouterr().out) == re.sub(zeros, "", blocks[third + 1][1])


@pytest.mark.parametrize("name", re.findall(r"\]\(((?!http)[^)]+)\)", README.read_text()))
def test_the_readme_links_to_files_that_exist(name):
    assert (README.parent / name).is_file()
