"""Reads annotation files: rows with their line numbers, class lists, and checks of single values."""

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
    """Class names in the order of their ids, and the id of each name or key (such as c000)."""

    names: tuple[str, ...]
    ids: dict[str, int]


@contextmanager
def open_text(uri: str, newline: str = "") -> Iterator[TextIO]:
    """Open a UTF-8 file for reading, without its byte order mark; ManifestError if it is missing or not text.

    `newline` is as in `open`: "" leaves line ends to the csv module, a character is the only line end.
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
    """The stripped lines of a text file without blank ones, each with its number; ManifestError if there is none."""
    with open_text(uri) as text:
        lines = [(number, line.strip()) for number, line in enumerate(text.read().splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise _empty(uri)
    return lines


def read_csv(uri: str, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Iterate over the rows of a CSV file with a header, each with its first line number; blank lines are left out.

    Cells are stripped; cells missing at the end of a row are "". Rows are read lazily, errors of the first at once.

    Raises:
        ManifestError: if the file cannot be read, lacks one of the `required` columns or has no row.
    """
    return at_least_one(_csv_rows(uri, required), f"{uri} has a header but no row; give a row for every video")


def at_least_one(rows: Iterator[Row], otherwise: str) -> Iterator[Row]:
    """Read the first of `rows` at once, with its errors; ManifestError `otherwise` if there is none."""
    for first in rows:
        return chain([first], rows)
    raise ManifestError(otherwise)


def read_rows(uri: str, columns: tuple[str, ...]) -> Rows:
    """Iterate over the rows of a .csv, .jsonl or .parquet table, each with its line number (in Parquet its row number).

    The first of `columns` is required, the others are optional. Rows are read lazily, errors of the first at once. A
    line that is not a JSON object comes as its text.

    Raises:
        ManifestError: if the table cannot be read or has no row.
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
    """Read a classes file with one name per line, or a key and a name as in `c000 Holding some clothes`.

    Raises:
        ManifestError: if the file cannot be read, or a name or key is repeated.
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
    """`value` as seconds >= 0, possibly infinite; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if number >= 0 else None  # False for NaN too


def duration(value: object) -> float | None:
    """`value` as positive finite seconds; None for anything else."""
    number = seconds(value)
    return number if number and not math.isinf(number) else None
