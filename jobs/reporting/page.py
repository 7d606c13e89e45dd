"""The HTML page of a report: self-contained, without scripts, every value escaped."""

import base64
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple, TypedDict

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from skipreel.jobs.training.tradeoff import FAMILIES

MISSING = "–"


class SummaryRow(NamedTuple):
    """One fact at the top of the page: its label, its value in large type, and a remark (may be empty)."""

    label: str
    value: str
    note: str = ""


class TableRow(TypedDict):
    """One trained model; updates and frames are means per video."""

    name: str
    family: str
    setting: str
    seed: int
    metric: float
    updates: float
    update_share: float
    frames_wanted: float
    on_front: bool


class MeasuredRow(TypedDict):
    """One model, run from video files to labels; frames and updates are totals, seconds are medians over videos."""

    model: str
    videos: int
    frames_total: int
    frames_wanted: int
    frames_decoded: int
    frames_converted: int
    frames_encoded: int
    updates: int
    decode_s: float
    encode_s: float
    rnn_s: float
    speed_up: float | None


def render_report(
    *,
    title: str,
    summary_rows: Sequence[SummaryRow],
    table: Sequence[TableRow],
    metric_name: str,
    tradeoff_png: bytes,
    strips: Sequence[tuple[str, bytes]],
    facts: Mapping[str, str],
    measured: Sequence[MeasuredRow] = (),
) -> str:
    """Render the page.

    Args:
        title: heading of the page.
        summary_rows: the main results.
        table: all trained models, in the order of the table.
        metric_name: column name of `metric`.
        tradeoff_png: the bytes of the trade-off figure.
        strips: (caption, PNG bytes) of each film strip.
        facts: how the results were made; values of several lines are shown as code.
        measured: closed-loop runs; without any, the section is left out.

    Returns:
        The whole page as UTF-8 text.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=format_number, percent=_format_percent, png=_data_uri)
    source = files("skipreel.jobs.reporting").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        title=title,
        summary_rows=summary_rows,
        table=table,
        metric_name=metric_name,
        tradeoff_png=tradeoff_png,
        strips=strips,
        facts=facts,
        measured=measured,
        families=FAMILIES,
    )


def format_number(value: float | None, digits: int = 1) -> str:
    """A number with a thin space between thousands; a dash for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.{digits}f}".replace(",", "\u202f")


def _format_percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _data_uri(png: bytes) -> Markup:
    return Markup("data:image/png;base64,") + base64.b64encode(png).decode("ascii")
