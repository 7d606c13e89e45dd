"""Runs a command by its name and its words. Flags, help and checks come from the dataclass `Settings` of its module."""

import contextlib
import importlib
import io
import math
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import tyro

from skipreel.pipeline.errors import InputError


def run_command(command: str, words: Sequence[str]) -> int:
    """Run the module `jobs.commands.<command>` with the settings from `words`.

    Returns:
        The exit code.

    Raises:
        SystemExit: after --help, or after one line about wrong words.
    """
    module = importlib.import_module(f"skipreel.jobs.commands.{command}")
    code: int = module.run(parse(module, command, words))
    return code


def parse(module: ModuleType, command: str, words: Sequence[str]) -> Any:
    """The settings of a command from its words.

    Raises:
        SystemExit: after --help, or after one line about wrong words.
    """
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(
                module.Settings,
                args=words,
                prog=f"skipreel {command}",
                description=module.__doc__,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
            )
    except SystemExit as stop:
        if stop.code:
            print(f"skipreel {command}: {_from_box(message.getvalue())}", file=sys.stderr)
        raise


def _from_box(box: str) -> str:
    """Tyro's boxed error message as one line, without the help texts of options.

    The sections of the box are separated by rules. A section has a heading, then names, indented, each with a help text
    that is indented further.
    """
    sections: list[str] = []
    heading: list[str] = []
    names: list[str] = []
    for line in (line.strip("│|").rstrip() for line in box.splitlines()[1:]):  # the first is the box's title
        indent = len(line) - len(line.lstrip())
        if not line.strip(" ─-╰╯+"):  # a rule
            sections.append(" ".join([*heading, ", ".join(names)]).strip().removesuffix("."))
            heading, names = [], []
        elif indent < 4:
            heading.append(line.strip())
        elif indent < 8:
            names.append(line.strip())
        elif not names[-1].startswith("-"):  # a positional argument has no name of its own
            names[-1] += f" {line.strip()}"
    return "; ".join(filter(None, sections))


def require_positive(name: str, value: float) -> None:
    """InputError where a setting is not a positive, finite number."""
    if not 0 < value < math.inf:
        raise InputError(f"--{name.replace('_', '-')} is {value}, allowed: a positive number")
