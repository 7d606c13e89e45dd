"""Progress bars and messages, all on standard error: standard output is for data."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

Item = TypeVar("Item")
console = Console(stderr=True, highlight=False, soft_wrap=True)


class NotedProgress(Progress):
    """A progress display with a line of text below it."""

    line = ""

    @contextmanager
    def cleared(self) -> Iterator[None]:
        """Hide the display for a block that prints to standard output on the same terminal."""
        if not (self.console.is_terminal and sys.stdout.isatty()):
            yield
            return
        self.live.transient = True
        self.live.stop()
        try:
            yield
        finally:
            self.live.transient = False
            self.live.start(refresh=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, and the line if there is one."""
        yield from super().get_renderables()
        if self.line:
            yield Text(self.line)


@contextmanager
def progress_bar() -> Iterator[NotedProgress]:
    """A rich progress display; add tasks to it with ``add_task``."""
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with NotedProgress(*columns, console=console) as progress:
        yield progress


def track(items: Iterable[Item], description: str, *, total: int) -> Iterator[Item]:
    """Iterate with a progress bar."""
    with progress_bar() as progress:
        task = progress.add_task(description, total=total, note="")
        for item in items:
            yield item
            progress.advance(task)
