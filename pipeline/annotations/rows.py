"""Reading annotation files: CSV rows with their line numbers, class lists, and checked single values."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, TextIO, TypeVar

import pyarrow as pa

from skipreel.pipeline import storage
from skipreel.pipeline.errors import ManifestError, StorageError
from skipreel.pipeline.storage.uris import explained

_BATCH_ROWS = 4096
Row = TypeVar("Row")
Rows = Iterator[tuple[int, dict[str, Any] | str]]


@dataclass(frozen=True)
class ClassList:
    """Class names in the order of their ids, and the id of every name or key (such as c000) that means a class."""

    names: tuple[str, ...]
    ids: dict[str, int]


@contextmanager
def open_text(uri: str, newline: str = "") -> Iterator[TextIO]:
    """Open a UTF-8 file for reading, without its byte order mark; ManifestError where it is missing or not text.

    `newline` is that of `open`: "" leaves line ends to the csv module, a character is the only line end there is.
    """
    try:
        with (
            explained("read", uri),
            storage.open_input(uri) as stream,
            io.TextIOWrapper(stream, "utf-8-sig", newline=newline) as text,
        ):
            yield text
    except StorageError as error:
        raise ManifestError(str(error)) from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{uri} is not UTF-8 text ({error.reason}); save it as UTF-8") from error


def read_lines(uri: str) -> list[tuple[int, str]]:
    """The lines of a text file, stripped, each with its number; blank ones are left out, ManifestError if all are."""
    with open_text(uri) as text:
        lines = [(number, line.strip()) for number, line in enumerate(text.read().splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise _empty(uri)
    return lines


def read_csv(uri: str, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header, each with the line it starts on; blank lines are left out.

    Cells are stripped; a cell missing at a row's end is "". Rows are read when they are asked for; ManifestError at
    once where the file cannot be read, lacks one of the `required` columns or has no row.
    """
    return at_least_one(_csv_rows(uri, required), f"{uri} has a header but no row; give a row for every video")


def at_least_one(rows: Iterator[Row], otherwise: str) -> Iterator[Row]:
    """`rows`, of which the first is read now, so that its errors come now; ManifestError `otherwise` where none is."""
    for first in rows:
        return chain([first], rows)
    raise ManifestError(otherwise)


def read_rows(uri: str, columns: tuple[str, ...]) -> Rows:
    """The rows of a .csv, .jsonl or .parquet table, of which the first of `columns` must be there and others may.

    Each comes with its line (in Parquet its number), read when it is asked for; one that is no JSON object comes as its
    text. ManifestError at once where the table cannot be read or has no row.
    """
    suffix = PurePosixPath(storage.resolve(uri)[1]).suffix.lower()
    if suffix == ".csv":
        return read_csv(uri, columns[:1])
    if suffix == ".jsonl":
        return at_least_one(_json_rows(uri), f"{uri} is empty; give a row for every video")
    if suffix == ".parquet":
        return at_least_one(_parquet_rows(uri, columns), f"{uri} has no row; give a row for every video")
    raise ManifestError(f"{uri} has the suffix {suffix!r}; allowed: .csv, .jsonl, .parquet")


def _csv_rows(uri: str, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    with open_text(uri) as text:
        reader = csv.reader(text)
        try:
            header = next(([name.strip() for name in names] for names in reader if any(map(str.strip, names))), None)
            if header is None:
                raise _empty(uri)
            missing = [name for name in required if name not in header]
            if missing:
                raise ManifestError(
                    f"{uri} has no column {missing[0]}; needed: {', '.join(required)}, found: {', '.join(header)}"
                )
            line = reader.line_num + 1
            for cells in reader:
                if any(map(str.strip, cells)):
                    padded = [*map(str.strip, cells), *[""] * (len(header) - len(cells))]
                    yield line, dict(zip(header, padded, strict=False))
                line = reader.line_num + 1
        except csv.Error as error:
            raise ManifestError(f"{uri}:{reader.line_num}: not CSV ({error}); save it as CSV") from error


def _json_rows(uri: str) -> Rows:
    with open_text(uri, newline="\n") as lines:
        for line, text in enumerate(lines, start=1):
            if text.strip():
                yield line, _json_object(text)


def _json_object(text: str) -> dict[str, Any] | str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _parquet_rows(uri: str, columns: tuple[str, ...]) -> Rows:
    import pyarrow.parquet as pq

    try:
        with storage.open_input(uri) as stream:
            file = pq.ParquetFile(stream)
            found = file.schema_arrow.names
            if columns[0] not in found:
                raise ManifestError(f"{uri} has no column {columns[0]}; found: {', '.join(found)}")
            batches = file.iter_batches(_BATCH_ROWS, columns=[name for name in columns if name in found])
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except StorageError as error:
        raise ManifestError(str(error)) from error
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{uri} is not Parquet ({' '.join(str(error).split())}); write it again") from error


def _empty(uri: str) -> ManifestError:
    return ManifestError(f"{uri} is empty; give a file with a row for every video")


def read_classes(uri: str) -> ClassList:
    """A classes file with one name per line; a line such as `c000 Holding some clothes` gives a key and a name.

    ManifestError where the file cannot be read or a name or key is there twice.
    """
    names: list[str] = []
    ids: dict[str, int] = {}
    for number, text in read_lines(uri):
        keyed = re.fullmatch(r"(c\d{3,})\s+(.+)", text)
        for key in keyed.groups() if keyed else (text,):
            if key in ids:
                raise ManifestError(f"{uri}:{number}: class {key!r} is listed twice; give each class one line")
            ids[key] = len(names)
        names.append(keyed[2] if keyed else text)
    return ClassList(tuple(names), ids)


def seconds(value: object) -> float | None:
    """`value` as a number of seconds that is not negative (it may be infinite), or None where it is no such number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if number >= 0 else None  # NaN is no number of seconds


def duration(value: object) -> float | None:
    """`value` as a positive finite number of seconds, or None where it is no such number."""
    number = seconds(value)
    return number if number and not math.isinf(number) else None
