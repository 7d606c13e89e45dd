"""Progress bars on a terminal that also shows results."""

import io
import json
import re
from types import SimpleNamespace

from rich.console import Console

from skipreel.jobs.closed_loop.queue import Outcome
from skipreel.jobs.closed_loop.session import Request
from skipreel.jobs.commands import predict
from skipreel.jobs.runtime import terminal as runtime_terminal

CONTROL = re.compile(r"\r|\n|\x1b\[([0-9;?]*)([A-Za-z])")


class Terminal(io.StringIO):
    """What is written to it, and what of this is seen in the end."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        shown, row, column, place = [""], 0, 0, 0
        text = self.getvalue()
        for control in [*CONTROL.finditer(text), None]:
            piece = text[place : control.start() if control else None]
            shown[row] = shown[row][:column].ljust(column) + piece + shown[row][column + len(piece) :]
            column += len(piece)
            if control is None:
                break
            place = control.end()
            if control[0] == "\n":
                row, column = row + 1, 0
                shown += [""] * (row == len(shown))
            elif control[0] == "\r":
                column = 0
            elif control[2] == "A":
                row -= int(control[1])
            elif control[2] == "K":
                shown[row] = ""
        return [line.rstrip() for line in shown]


def labelled(monkeypatch, terminal, output, *, names) -> None:
    console = Console(file=terminal, force_terminal=True, width=100, soft_wrap=True)
    for module in (runtime_terminal, predict):
        monkeypatch.setattr(module, "console", console)
    outcomes = (Outcome(Request(name, name), None, f"{name} is broken") for name in names)
    recognizer = SimpleNamespace(stream=lambda *_, **__: outcomes, class_names=("a",), task="video")
    monkeypatch.setattr(predict.VideoRecognizer, "load", lambda *_, **__: recognizer)
    settings = predict.Settings(videos=tuple(names), model="", output=output)
    assert predict.run(settings) == predict.EXIT_SOME_FAILED


def test_results_stand_on_lines_of_their_own_above_the_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    labelled(monkeypatch, terminal, None, names=["one", "two"])
    first, said, second, said_again, bar, last, _ = terminal.lines()
    assert [json.loads(line)["video"] for line in (first, second)] == ["one", "two"]
    assert (said, said_again, last) == (
        "failed: one is broken",
        "failed: two is broken",
        "no video was labelled, 2 failed",
    )
    assert bar.startswith("labelling videos")
    assert "2/2" in bar


def test_the_bar_stays_where_results_go_elsewhere(monkeypatch, tmp_path):
    terminal, piped = Terminal(), io.StringIO()
    monkeypatch.setattr("sys.stdout", piped)
    labelled(monkeypatch, terminal, None, names=["one", "two"])
    assert len(piped.getvalue().splitlines()) == 2
    to_file = Terminal()
    labelled(monkeypatch, to_file, str(tmp_path / "a.jsonl"), names=["one", "two"])
    for shown in (terminal, to_file):
        assert shown.getvalue().count("\x1b[?25l") == 1, "the cursor is hidden once, so the bar never went"
        assert "2/2" in shown.lines()[2]
