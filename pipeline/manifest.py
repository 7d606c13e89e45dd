"""The manifest: one row per video with its split and labels, kept as one Parquet file.

The Arrow schema below is the only definition of that file. Class names travel in the schema's metadata as JSON, beside
a schema version, so that a manifest is complete in one file.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.errors import ManifestError, StorageError

SCHEMA_VERSION = 1
SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("duration_s", pa.float64()),
        pa.field(
            "labels",
            pa.list_(pa.struct([("class_id", pa.int32()), ("start_s", pa.float32()), ("end_s", pa.float32())])),
            nullable=False,
        ),
    ]
)
_VERSION_KEY = b"skipreel.manifest_version"
_CLASSES_KEY = b"skipreel.class_names"


@dataclass(frozen=True)
class Label:
    """One action: `class_id` and the time it spans in seconds from the video's start; a whole-video label is (0, inf).

    Times are rounded to float32, as stored, so that a manifest means the same before and after it was written.
    ManifestError where the times are not 0 <= start_s <= end_s.
    """

    class_id: int
    start_s: float = 0.0
    end_s: float = math.inf

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):
            start_s, end_s = float(np.float32(self.start_s)), float(np.float32(self.end_s))
        if not 0 <= start_s <= end_s or math.isinf(start_s):  # NaN fails the comparison too
            raise ManifestError(f"label times must be 0 <= start <= end in seconds, got {self.start_s} to {self.end_s}")
        object.__setattr__(self, "start_s", start_s)
        object.__setattr__(self, "end_s", end_s)


@dataclass(frozen=True)
class VideoEntry:
    """One video: where it is, which split it belongs to, how long it is (None where unknown) and its labels.

    ManifestError for an empty or path-escaping `video_id`, an empty `uri` or `split`, or a duration that is not
    positive.
    """

    video_id: str
    uri: str
    split: str
    duration_s: float | None = None
    labels: tuple[Label, ...] = ()

    def __post_init__(self) -> None:
        for field in ("video_id", "uri", "split"):
            if not getattr(self, field).strip():
                raise ManifestError(f"{field} is empty for video {self.video_id or self.uri!r}; give every video one")
        # Others build file names from ids: none may point out of their folder.
        if self.video_id.startswith("/") or ".." in self.video_id.split("/") or not self.video_id.isprintable():
            raise ManifestError(
                f"video_id {self.video_id!r} is absolute, has '..' or control characters; use a plain name"
            )
        if self.duration_s is not None and not 0 < self.duration_s < math.inf:
            raise ManifestError(f"duration_s of {self.video_id} must be a positive number, got {self.duration_s}")


@dataclass(frozen=True)
class Manifest:
    """All videos and the names of their classes; `class_id` counts from 0 in the order of `class_names`.

    ManifestError where two videos share an id, two classes share a name, or a label's class is out of range.
    """

    entries: tuple[VideoEntry, ...]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        for what, values in (("video_id", [e.video_id for e in self.entries]), ("class name", self.class_names)):
            repeated = [value for value, count in Counter(values).items() if count > 1]
            if repeated:
                raise ManifestError(f"{what} {repeated[0]!r} appears more than once; each must be unique")
        if not all(self.class_names):
            raise ManifestError("a class name is empty; give every class one")
        for entry in self.entries:
            for label in entry.labels:
                if not 0 <= label.class_id < len(self.class_names):
                    allowed = (
                        f"0 to {len(self.class_names) - 1}" if self.class_names else "none, as there are no classes"
                    )
                    raise ManifestError(
                        f"class_id {label.class_id} of video {entry.video_id} is not allowed: {allowed}"
                    )

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, sorted."""
        return tuple(sorted({entry.split for entry in self.entries}))

    def only(self, split: str) -> "Manifest":
        """The videos of one split, with the same classes; ManifestError for a split that is not there."""
        if split not in self.splits:
            raise ManifestError(f"no split {split!r} in the manifest; allowed: {', '.join(self.splits) or 'none'}")
        return Manifest(tuple(entry for entry in self.entries if entry.split == split), self.class_names)


@dataclass(frozen=True)
class RowProblem:
    """Something left out while a manifest was built: `file`, `line` (from 1; 0 where the file has no lines) and why."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}" if self.line else f"{self.file}: {self.reason}"


@dataclass(frozen=True)
class Built:
    """A manifest and what was left out of it; the caller decides whether problems are fatal."""

    manifest: Manifest
    problems: tuple[RowProblem, ...] = ()


def to_table(manifest: Manifest) -> pa.Table:
    """The manifest as an Arrow table with `SCHEMA`, one row per video in order."""
    rows = [
        {
            "video_id": entry.video_id,
            "uri": entry.uri,
            "split": entry.split,
            "duration_s": entry.duration_s,
            "labels": [vars(label) for label in entry.labels],
        }
        for entry in manifest.entries
    ]
    metadata = {_VERSION_KEY: str(SCHEMA_VERSION), _CLASSES_KEY: json.dumps(manifest.class_names, ensure_ascii=False)}
    return pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))


def from_table(table: pa.Table) -> Manifest:
    """The manifest in an Arrow table; ManifestError where columns, types, version, class names or rows are wrong."""
    metadata = table.schema.metadata or {}
    version = metadata.get(_VERSION_KEY, b"none").decode(errors="replace")
    if version != str(SCHEMA_VERSION):
        raise ManifestError(
            f"manifest schema version is {version}, allowed: {SCHEMA_VERSION}; build the manifest again"
        )
    if not table.schema.remove_metadata().equals(SCHEMA):
        got = ", ".join(f"{field.name} {field.type}" for field in table.schema)
        raise ManifestError(f"manifest columns are wrong: got {got}; build the manifest again")
    try:
        return Manifest(tuple(_entry(row) for row in table.to_pylist()), _class_names(metadata[_CLASSES_KEY]))
    except (KeyError, ValueError, TypeError, AttributeError) as error:  # nulls, or metadata that is not a list of names
        raise ManifestError(f"manifest content is damaged ({error}); build the manifest again") from error


def write_manifest(manifest: Manifest, uri: str) -> None:
    """Write the manifest as Parquet, whole or not at all; StorageError where that fails."""
    storage.write_table_atomic(uri, to_table(manifest))


def read_manifest(uri: str) -> Manifest:
    """Read a manifest; ManifestError where the file is missing, is not Parquet or is not a manifest."""
    import pyarrow.parquet as pq

    try:
        with storage.open_input(uri) as stream:
            return from_table(pq.read_table(stream))
    except StorageError as error:
        raise ManifestError(f"{error}, or build a manifest first") from error
    except ManifestError as error:
        raise ManifestError(f"{uri}: {error}") from error
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ManifestError(f"{uri} is not a manifest in Parquet ({reason}); build the manifest again") from error


def _entry(row: dict[str, Any]) -> VideoEntry:
    labels = tuple(Label(label["class_id"], label["start_s"], label["end_s"]) for label in row["labels"])
    return VideoEntry(row["video_id"], row["uri"], row["split"], row["duration_s"], labels)


def _class_names(encoded: bytes) -> tuple[str, ...]:
    names = json.loads(encoded)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("class names are not a list of names")
    return tuple(names)
