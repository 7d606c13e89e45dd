"""The HTML page of a report: its tables, its images and the escaping of values."""

import base64
import re
from html.parser import HTMLParser

import pytest

from skipreel.jobs.reporting.page import MeasuredRow, SummaryRow, TableRow, format_number, render_report

PNG = b"\x89PNG\r\n\x1a\nnot really"


def row(name: str, **changes: object) -> TableRow:
    fields: dict[str, object] = {
        "name": name,
        "family": "skip",
        "setting": "λ=1e-3",
        "seed": 3,
        "metric": 0.8264,
        "updates": 21.75,
        "update_share": 0.289,
        "frames_wanted": 21.7,
        "on_front": False,
    }
    return fields | changes  # type: ignore[return-value]


MEASURED: MeasuredRow = {
    "model": "Skip GRU <λ>",
    "videos": 40,
    "frames_total": 3010,
    "frames_wanted": 880,
    "frames_decoded": 8100,
    "frames_converted": 881,
    "frames_encoded": 879,
    "updates": 878,
    "decode_s": 0.0612,
    "encode_s": 0.0713,
    "rnn_s": 0.0081,
    "speed_up": 2.184,
}


def page(**changes: object) -> str:
    fields: dict[str, object] = {
        "title": "Trade-off",
        "summary_rows": [SummaryRow("frames looked at", "29 %", "of those sampled")],
        "table": [row("Skip GRU", on_front=True), row("Dense & random", family="random", setting="")],
        "metric_name": "mAP",
        "tradeoff_png": PNG,
        "strips": [("Video 4WSJL", PNG + b"1"), ("Video 6QAO1", PNG + b"2")],
        "facts": {"feature set": "tiny-1234", "commands": "make demo\nmake test"},
        "measured": [MEASURED],
    }
    return render_report(**(fields | changes))  # type: ignore[arg-type]


class Outline(HTMLParser):
    """Open tags, attributes and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()


def test_the_page_is_well_formed_and_holds_every_row() -> None:
    outline = Outline(page())
    assert outline.open == []
    head, first, second, measured_head, measured = outline.rows
    assert (head[0], head[4]) == ("model", "mAP")
    assert len(head) == len(first)
    assert first == ["Skip GRU", "learned skipping", "λ=1e-3", "3", "0.826", "21.8", "28.9 %", "21.7"]
    assert second[:3] == ["Dense & random", "random skipping", "–"]
    assert len(measured_head) == len(measured)
    thin = "\u202f"
    assert measured_head[4:6] == ["decoded", "converted"]
    assert measured[:7] == ["Skip GRU <λ>", "40", f"3{thin}010", "880", f"8{thin}100", "881", "879"]
    assert measured[8:] == ["0.0612", "0.0713", "0.0081", "0.1406", "2.18 ×"]


def test_only_rows_on_the_front_are_marked() -> None:
    marked = [attributes.get("class") for tag, attributes in Outline(page()).tags if tag == "tr"]
    assert marked.count("front") == 1


def test_nothing_is_loaded_from_elsewhere_and_no_script_runs() -> None:
    text = page()
    for tag, attributes in Outline(text).tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "srcset", "action"):
            assert name not in attributes
        assert (attributes.get("src") or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?:", text)


def test_images_travel_inside_the_page() -> None:
    sources = [attributes["src"] or "" for tag, attributes in Outline(page()).tags if tag == "img"]
    images = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]
    assert images == [PNG, PNG + b"1", PNG + b"2"]


def page_of(word: str) -> str:
    return page(
        title=word,
        summary_rows=[SummaryRow(word, word, word)],
        table=[row(word, setting=word)],
        metric_name=word,
        strips=[(word, PNG)],
        facts={word: word, "code": word + "\n" + word},
        measured=[MEASURED | {"model": word}],
    )


def test_every_value_is_escaped() -> None:
    bad = '"><script>alert("x")</script>\'&'
    text = page_of(bad)
    assert "<script" not in text
    outline = Outline(text)
    assert [tag for tag, _ in outline.tags] == [tag for tag, _ in Outline(page_of("good")).tags]
    captions = [attributes["alt"] for tag, attributes in outline.tags if tag == "img"]
    assert captions[1] == bad
    assert outline.rows[1][0] == bad


def test_parts_without_content_are_left_out() -> None:
    text = page(measured=(), strips=[], summary_rows=[])
    for words in ("From video files to labels", "Where the network looked", 'class="tiles"'):
        assert words in page()
        assert words not in text


def test_commands_of_several_lines_keep_their_lines() -> None:
    assert "<pre>make demo\nmake test</pre>" in page()


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(None, 1, "–"), (float("nan"), 1, "–"), (1234567.0, 0, "1\u202f234\u202f567"), (0.8264, 3, "0.826")],
)
def test_numbers_read_well(value: float | None, digits: int, text: str) -> None:
    assert format_number(value, digits) == text
