"""Reading annotation files: CSV rows with their line numbers, class lists, and checked single values."""

import csv
import io
import math
import re
from dataclasses import dataclass

from pipeline import storage
from pipeline.errors import ManifestError, StorageError


@dataclass(frozen=True)
class ClassList:
    """Class names in the order of their ids, and the id of every name or key (such as c000) that means a class."""

    names: tuple[str, ...]
    ids: dict[str, int]


def read_text(uri: str) -> str:
    """A whole UTF-8 file, a byte order mark removed; ManifestError where it is missing, empty or not text."""
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except StorageError as error:
        raise ManifestError(str(error)) from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{uri} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if not text.strip():
        raise ManifestError(f"{uri} is empty; give a file with a row for every video")
    return text


def read_csv(uri: str, required: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header, each with the line it starts on; blank lines are left out.

    Cells are stripped; a cell missing at a row's end is "". ManifestError where the file cannot be read, lacks one of
    the `required` columns or has no row.
    """
    # newline="" leaves line breaks inside quotes to the csv module.
    reader = csv.reader(io.StringIO(read_text(uri), newline=""))
    try:
        header = [name.strip() for name in next(reader)]
        missing = [name for name in required if name not in header]
        if missing:
            raise ManifestError(
                f"{uri} has no column {missing[0]}; needed: {', '.join(required)}, found: {', '.join(header)}"
            )
        rows, line = [], reader.line_num + 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                padded = [*(cell.strip() for cell in cells), *[""] * (len(header) - len(cells))]
                rows.append((line, dict(zip(header, padded, strict=False))))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ManifestError(f"{uri}:{reader.line_num}: not CSV ({error}); save it as CSV") from error
    if not rows:
        raise ManifestError(f"{uri} has a header but no row; give a row for every video")
    return rows


def read_classes(uri: str) -> ClassList:
    """A classes file with one name per line; a line such as `c000 Holding some clothes` gives a key and a name.

    ManifestError where the file cannot be read or a name or key is there twice.
    """
    names: list[str] = []
    ids: dict[str, int] = {}
    for number, line in enumerate(read_text(uri).splitlines(), start=1):
        text = line.strip()
        if not text:
            continue
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
