"""Draw a sweep: the trade-off figure, its table, film strips of a few test videos, and what skipping saves in seconds
from compressed bytes to labels; all as one self-contained HTML page.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from skipreel.jobs.reporting.sweep_report import write_report
from skipreel.jobs.runtime.terminal import console


@dataclass(frozen=True, slots=True)
class Settings:
    """The sweep to draw.

    Attributes:
        sweep: output folder of skipreel sweep; the page and the pictures go there too.
        num_strips: test videos shown as film strips.
        num_timed: test videos labelled from their files, by the network shown and by a dense pass of it.
        backbone: name of the backbone; default: its name at the extraction.
    """

    sweep: tyro.conf.Positional[str]
    num_strips: int = 4
    num_timed: int = 20
    backbone: str | None = None

    def __post_init__(self) -> None:
        if self.num_strips < 0 or self.num_timed < 1:
            raise ValueError("--num-strips must be at least 0 and --num-timed at least 1")


def run(settings: Settings) -> int:
    """Write the report and print its files."""
    folder = Path(settings.sweep)
    write_report(folder, num_strips=settings.num_strips, num_timed=settings.num_timed, backbone=settings.backbone)
    names = {"report": "report.html", "figure": "tradeoff.png", "table": "tradeoff.csv"}
    console.print("\n".join(f"{what + ':':<7} {folder / name}" for what, name in names.items()))
    return 0
