"""The public flags are a promise to scripts: a change of them shows up here."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from skipreel.jobs.cli import main

FLAGS = Path(__file__).with_name("flags.txt")
COMMANDS = (
    "manifest folder",
    "manifest charades",
    "manifest ucf101",
    "manifest table",
    "extract",
    "features show",
    "features verify",
    "features compact",
    "features build",
    "train",
    "sweep",
    "evaluate",
    "predict",
    "report",
    "demo",
)


def flags_of(command: str) -> str:
    page = io.StringIO()
    with contextlib.redirect_stdout(page), pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    found = re.findall(r"^[│ ]+(?:-h, )?(--[a-z][a-z-]*)", page.getvalue(), re.MULTILINE)
    return f"{command}: {' '.join(dict.fromkeys(found))}"


def test_flags_are_those_that_were_promised():
    assert [flags_of(command) for command in COMMANDS] == FLAGS.read_text().splitlines()
