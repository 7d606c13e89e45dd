"""A CSV, JSON-lines or Parquet table of videos as a manifest.

Columns or keys: `uri` (relative to the table's folder, or absolute), `labels`, and optionally `video_id` (default: the
uri without suffix), `split` (default "train") and `duration_s`. Labels are text, `fight` (the whole video) or
`name start end;name start end` in seconds, or a list of names and of `{"class": name, "start_s": , "end_s": }`.
"""

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from skipreel.pipeline import storage
from skipreel.pipeline.annotations.rows import ClassList, Rows, duration, read_classes, read_rows, seconds
from skipreel.pipeline.errors import InputError, ManifestError
from skipreel.pipeline.manifest import AnnotationProblem, Label, ManifestBuild, VideoEntry

_CHUNK_ROWS = 4096
_COLUMNS = ("uri", "labels", "video_id", "split", "duration_s")


class _BadRowError(InputError):
    """Why a row is left out."""


@dataclass(frozen=True)
class _Span:
    """A label with its class by name, times in seconds, and what is wrong with it."""

    name: str
    start_s: float
    end_s: float
    problem: str | None


@dataclass(frozen=True, slots=True)
class _Video:
    """A valid row; `written` is its uri in the table."""

    line: int
    video_id: str
    uri: str
    written: str
    split: str
    duration_s: float | None
    spans: tuple[_Span, ...]


def build_table(path: str, classes_file: str | None = None) -> ManifestBuild:
    """Read the videos of a .csv, .jsonl or .parquet table in pieces.

    Problems are bad rows (no uri, repeated id, missing video, bad duration), left out whole, and bad labels (unknown
    class, bad times, an end at or before the start). In Parquet they have a row number instead of a line.

    Args:
        path: the table; any URI.
        classes_file: a class per line; in a line such as `c000 Text` both words are names. None: the sorted names in
            valid rows.

    Raises:
        ManifestError: if a file cannot be used as a whole.
        StorageError: while rows are read, if no server of a piece's videos answers.
    """
    rows = read_rows(path, _COLUMNS)
    if classes_file is not None:
        classes = read_classes(classes_file)
        return ManifestBuild(classes.names, _outcomes(path, rows, classes, declared=classes))
    names = sorted(_names(rows))
    classes = ClassList(tuple(names), {name: number for number, name in enumerate(names)})
    return ManifestBuild(classes.names, _outcomes(path, read_rows(path, _COLUMNS), classes, declared=None))


def _names(rows: Rows) -> set[str]:
    names: set[str] = set()
    for _, row in rows:
        with suppress(_BadRowError):  # becomes a problem in the second reading
            labels = row.get("labels") if isinstance(row, dict) else None
            names.update(span.name for span in _spans(labels, None) if not span.problem)
    return names


def _outcomes(
    path: str, rows: Rows, classes: ClassList, *, declared: ClassList | None
) -> Iterator[VideoEntry | AnnotationProblem]:
    folder, seen = storage.parent(path), set[str]()
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        read = [_read(path, folder, line, row, declared) for line, row in chunk]
        file_stats = iter(storage.file_stats([video.uri for video in read if isinstance(video, _Video)]))
        for video in read:
            if isinstance(video, AnnotationProblem):
                yield video
            elif next(file_stats) is None:
                yield AnnotationProblem(path, video.line, f"no video {video.written!r} (looked for {video.uri})")
            elif video.video_id in seen:
                reason = f"video_id {video.video_id!r} is listed already; ids must be unique"
                yield AnnotationProblem(path, video.line, reason)
            else:
                seen.add(video.video_id)
                yield from _labelled(path, video, classes)


def _labelled(path: str, video: _Video, classes: ClassList) -> Iterator[VideoEntry | AnnotationProblem]:
    labels = []
    for span in video.spans:
        if span.problem:
            yield AnnotationProblem(path, video.line, span.problem)
        elif span.name not in classes.ids:
            yield AnnotationProblem(
                path, video.line, f"label {span.name!r} has a class that is not in the classes file"
            )
        else:
            labels.append(Label(classes.ids[span.name], span.start_s, span.end_s))
    try:
        yield VideoEntry(video.video_id, video.uri, video.split, video.duration_s, tuple(labels))
    except ManifestError as error:  # an id that escapes its folder
        yield AnnotationProblem(path, video.line, str(error))


def _read(
    path: str, folder: str, line: int, row: dict[str, Any] | str, declared: ClassList | None
) -> _Video | AnnotationProblem:
    try:
        if isinstance(row, str):
            raise _BadRowError(f"not a JSON object: {row.strip()[:60]!r}")
        spans = tuple(_spans(row.get("labels"), declared))
        written = _text(row, "uri")
        if not written:
            raise _BadRowError("no uri; give every row the place of its video")
        length = row.get("duration_s")
        duration_s = duration(length)
        if duration_s is None and length not in (None, ""):
            raise _BadRowError(f"duration_s {length!r} is not a positive number of seconds")
        video_id, split = _text(row, "video_id") or _default_id(written), _text(row, "split") or "train"
        return _Video(line, video_id, _absolute(folder, written), written, split, duration_s, spans)
    except InputError as error:
        return AnnotationProblem(path, line, str(error))


def _spans(labels: Any, declared: ClassList | None) -> Iterator[_Span]:
    return _text_spans(labels, declared) if isinstance(labels, str) else _listed_spans(labels)


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise _BadRowError(f"{key} must be text, got {value!r}")
    return (value or "").strip()


def _absolute(folder: str, written: str) -> str:
    if "://" in written or written.startswith("/"):
        return written
    if storage.local_path(folder) is None:  # object stores do not resolve ".."
        written = str(PurePosixPath(written))
        while written.startswith("../"):
            folder, written = storage.parent(folder), written.removeprefix("../")
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
            start, end = label.get("start_s"), label.get("end_s")  # Parquet has a null where JSON has no key
            yield _span(label["class"], 0.0 if start is None else start, math.inf if end is None else end)
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
