"""Any CSV or JSON-lines table of videos as a manifest.

Columns or keys: `uri` (relative to the table's folder, or absolute), `labels`, and optionally `video_id` (default: the
uri without suffix), `split` (default "train") and `duration_s`. Labels in CSV are `fight` (the whole video) or
`name start end;name start end` in seconds; in JSON a list of names and of `{"class": name, "start_s": , "end_s": }`.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from pipeline import storage
from pipeline.errors import InputError, ManifestError
from pipeline.manifest import Built, Label, RowProblem, VideoEntry
from pipeline.rows import ClassList, duration, read_classes, read_csv, read_text, seconds


class _BadRowError(InputError):
    """Why a row is left out."""


@dataclass(frozen=True)
class _Span:
    """A label as written: the class by name, times in seconds, and what is wrong with it."""

    name: str
    start_s: float
    end_s: float
    problem: str | None


@dataclass(frozen=True)
class _Video:
    line: int
    entry: VideoEntry
    spans: list[_Span]


def build_table(path: str, classes_file: str | None = None) -> Built:
    """The videos of a .csv or .jsonl table.

    Classes come from `classes_file` (one per line; in a line such as `c000 Text` both count as names) or else are the
    names seen, sorted. A bad row (no uri, repeated id, missing video, unreadable duration) is left out whole, of a bad
    label (unknown class, unreadable times, an end at or before the start) only that label; both are listed as problems.
    ManifestError where a file as a whole cannot be used.
    """
    classes = read_classes(classes_file) if classes_file is not None else None
    videos: dict[str, _Video] = {}
    problems: list[RowProblem] = []
    for line, row in _rows(path):
        try:
            video = _video(path, line, row, classes)
            if video.entry.video_id in videos:
                raise _BadRowError(f"video_id {video.entry.video_id!r} is there already; ids must be unique")
        except InputError as error:
            problems.append(RowProblem(path, line, str(error)))
        else:
            videos[video.entry.video_id] = video
    if classes is None:
        names = sorted({span.name for video in videos.values() for span in video.spans if not span.problem})
        classes = ClassList(tuple(names), {name: number for number, name in enumerate(names)})
    entries = []
    for video in videos.values():
        labels = []
        for span in video.spans:
            if span.problem:
                problems.append(RowProblem(path, video.line, span.problem))
            elif span.name not in classes.ids:
                reason = f"label {span.name!r} has a class that is not in the classes file"
                problems.append(RowProblem(path, video.line, reason))
            else:
                labels.append(Label(classes.ids[span.name], span.start_s, span.end_s))
        entries.append(replace(video.entry, labels=tuple(labels)))
    problems.sort(key=lambda problem: problem.line)
    return Built(classes.names, (*entries, *problems))


def _rows(path: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line and row; a row that is no JSON object comes as its text."""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix == ".csv":
        yield from read_csv(path, ("uri",))
    elif suffix == ".jsonl":
        for line, text in enumerate(read_text(path).split("\n"), start=1):
            if text.strip():
                yield line, _json_object(text)
    else:
        raise ManifestError(f"{path} has the suffix {suffix!r}; allowed: .csv, .jsonl")


def _json_object(text: str) -> dict[str, Any] | str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _video(path: str, line: int, row: dict[str, Any] | str, classes: ClassList | None) -> _Video:
    if isinstance(row, str):
        raise _BadRowError(f"not a JSON object: {row.strip()[:60]!r}")
    written = _text(row, "uri")
    if not written:
        raise _BadRowError("no uri; give every row the place of its video")
    uri = _absolute(path, written)
    if not storage.exists(uri):
        raise _BadRowError(f"no video {written!r} (looked for {uri})")
    length = row.get("duration_s")
    duration_s = duration(length)
    if duration_s is None and length not in (None, ""):
        raise _BadRowError(f"duration_s {length!r} is not a positive number of seconds")
    video_id = _text(row, "video_id") or _default_id(written)
    labels = row.get("labels")
    spans = list(_text_spans(labels, classes) if isinstance(labels, str) else _listed_spans(labels))
    return _Video(line, VideoEntry(video_id, uri, _text(row, "split") or "train", duration_s), spans)


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise _BadRowError(f"{key} must be text, got {value!r}")
    return (value or "").strip()


def _absolute(path: str, written: str) -> str:
    if "://" in written or written.startswith("/"):
        return written
    folder = storage.absolute(path).rpartition("/")[0]
    return storage.join(folder, written)


def _default_id(written: str) -> str:
    place = PurePosixPath(re.sub(r"^[^/]+://|[?#].*$", "", written) if "://" in written else written)
    return "/".join(part for part in place.with_suffix("").parts if part not in ("/", "..")) if place.name else written


def _text_spans(labels: str, classes: ClassList | None) -> Iterator[_Span]:
    for text in filter(None, (part.strip() for part in labels.split(";"))):
        name, *times = text.rsplit(maxsplit=2)
        if (classes is not None and text in classes.ids) or len(times) < 2 or None in map(_number, times):
            yield _span(text)
        else:
            yield _span(name, *times)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _listed_spans(labels: Any) -> Iterator[_Span]:
    if labels is not None and not isinstance(labels, list):
        raise _BadRowError(f"labels must be a list or text, got {labels!r}")
    for label in labels or ():
        if isinstance(label, str):
            yield _span(label)
        elif isinstance(label, dict) and isinstance(label.get("class"), str):
            yield _span(label["class"], label.get("start_s", 0.0), label.get("end_s", math.inf))
        else:
            raise _BadRowError(f"label {label!r} must be a class name or an object with class, start_s and end_s")


def _span(name: str, start: object = 0.0, end: object = math.inf) -> _Span:
    name, start_s, end_s = name.strip(), seconds(start), seconds(end)
    if start_s is None or end_s is None:
        return _Span(name, 0.0, math.inf, f"label {name!r} has times {start!r} to {end!r}, allowed: seconds from 0 on")
    problem = None
    if not name:
        problem = "a label has an empty class name"
    elif end_s <= start_s:
        problem = f"label {name!r} ends at or before its start ({start_s} to {end_s} s)"
    return _Span(name, start_s, end_s, problem)
