"""A command's words become its settings; the flags, their help and their checks come out of a dataclass."""

import contextlib
import io
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import tyro


def parse(module: ModuleType, command: str, words: Sequence[str]) -> Any:
    """The command's settings from its words; wrong ones end in one line and SystemExit."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                module.Settings,
                args=words,
                prog=f"skipreel {command}",
                description=module.__doc__,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
            )
    except SystemExit as stop:
        if stop.code:
            print(f"skipreel {command}: {_from_box(complaint.getvalue())}", file=sys.stderr)
        raise


def _from_box(box: str) -> str:
    """What tyro says in a box, as one line: its sections, separated by rules, without the help text of options.

    Under a heading that ends in a colon stand names, each with its help text indented further.
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
