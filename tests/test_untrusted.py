"""Files of others become plain values, or a sentence."""

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from neuralode_flow import files, untrusted


@pytest.mark.parametrize(
    "config",
    [
        {"a": {"b": [1, 2.5, 1e-8, 1e30, -3, 0]}, "c": None, "d": True},
        {"texts": ["1e-8", "1", "010", "1:30", "2024-01-01", "null", "yes", "${a.b}", "a: b", "é\nü", "", " x ", "<<"]},
        {"large": [2**63, -(2**63), 1.7976931348623157e308, 5e-324, float("inf"), float("-inf")]},
    ],
)  # fmt: skip
def test_a_config_is_read_as_omegaconf_reads_it(tmp_path, config):
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    assert untrusted.read_yaml(path) == config


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", "010"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("9" * 30, "9" * 30), ("1e-8", 1e-8), ("1.", 1.0)],
)
def test_numbers_are_decimal(text, value):
    assert untrusted.parse_yaml(text) == value


@pytest.mark.parametrize(
    "text",
    ["!!python/name:os.getcwd", "a: !x 1", "&a [*a]", "[" * 50, "- " * 50, "a: 1\na: 2", "? [a]\n: 1", "a: \x07"],
)  # fmt: skip
def test_what_no_config_has_is_refused(text):
    with pytest.raises(ValueError, match=r"no YAML|a tag|an alias|too deeply|twice"):
        untrusted.parse_yaml(text)


def test_nothing_but_a_regular_file_of_a_small_size_is_read(tmp_path):
    small, long, pipe, link = (tmp_path / name for name in ("small", "long", "pipe", "link"))
    small.write_bytes(b"ok")
    long.touch()
    os.truncate(long, 10**12)
    os.mkfifo(pipe)
    link.symlink_to(small)
    assert untrusted.read_plain(small) == b"ok"
    for path, reason in (
        (long, "more than"),
        (pipe, "is a named pipe"),
        (link, "is a link"),
        (tmp_path, "is a directory"),
    ):
        with pytest.raises(ValueError, match=reason):
            untrusted.read_plain(path)
    with pytest.raises(ValueError, match="is a device"):
        untrusted.read_plain(Path("/dev/zero"))
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        untrusted.read_plain(tmp_path / "nowhere")


def test_a_link_that_takes_the_place_of_a_file_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "file").write_text("ok")
    look = files.check_regular

    def swap(label, path, **how):
        look(label, path, **how)
        path.unlink()
        path.symlink_to(tmp_path / "secret")

    monkeypatch.setattr(files, "check_regular", swap)
    with pytest.raises(ValueError, match="cannot be read"):
        untrusted.read_plain(tmp_path / "file")


def test_signs_that_move_the_cursor_are_written_out():
    assert untrusted.printable("\x1b[31ma\nb\udcff") == "\\x1b[31ma\\nb\\udcff"
    assert untrusted.printable("a\nb\x00", lines=True) == "a\nb\\x00"
    assert untrusted.printable("é" * 10, most=3) == "ééé…"
