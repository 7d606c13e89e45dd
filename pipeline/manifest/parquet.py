"""The manifest as one Parquet file: its schema, writing, reading whole and reading in batches.

The Arrow schema below is the only definition of that file. Its metadata holds the class names as JSON and a schema
version, so that a manifest is complete in one file.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from skipreel.pipeline import storage
from skipreel.pipeline.errors import ManifestError, StorageError
from skipreel.pipeline.manifest.types import (
    Label,
    Manifest,
    VideoEntry,
    check_classes,
    check_names,
    repetition,
)
from skipreel.pipeline.manifest.validation import first_repeated, suspects

SCHEMA_VERSION = 1
ROWS_PER_GROUP = 16384
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


def from_table(table: pa.Table) -> Manifest:
    """The manifest in an Arrow table; ManifestError if columns, types, version, class names or rows are wrong."""
    class_names = _class_names(table.schema)
    with _damage_explained():
        return Manifest(tuple(_entry(row) for row in table.to_pylist()), class_names)


def write_manifest(manifest: Manifest, uri: str) -> None:
    """Write the manifest as Parquet, whole or not at all; StorageError if that fails."""
    write_rows(manifest.entries, manifest.class_names, uri)


def write_rows(entries: Iterable[VideoEntry], class_names: Sequence[str], uri: str) -> None:
    """Write a manifest from a stream of videos with unique ids; memory holds `ROWS_PER_GROUP` of them.

    Raises:
        ManifestError: if a class name is repeated or empty, or a label's class is out of range.
        StorageError: if the writing fails. No error, also none of `entries`, leaves a file.
    """
    import pyarrow.parquet as pq

    check_names("class name", class_names)
    left = iter(entries)
    with (
        storage.open_atomic(uri) as stream,
        pq.ParquetWriter(stream, _schema(class_names), compression="zstd") as writer,
    ):
        while group := list(islice(left, ROWS_PER_GROUP)):
            for entry in group:
                check_classes(entry, len(class_names))
            writer.write_table(_table(group, class_names))


def read_manifest(uri: str) -> Manifest:
    """Read a manifest; ManifestError if the file is missing, is not Parquet or is not a valid manifest."""
    import pyarrow.parquet as pq

    with _reading(uri), storage.open_input(uri) as stream:
        return from_table(pq.read_table(stream))


def manifest_size(uri: str) -> int:
    """Number of videos in a manifest, read from the end of the file; errors as in `read_manifest`."""
    import pyarrow.parquet as pq

    with _reading(uri), storage.open_input(uri) as stream:
        file = pq.ParquetFile(stream)
        _class_names(file.schema_arrow)
        return int(file.metadata.num_rows)


def iterate_manifest(uri: str, *, batch_rows: int = ROWS_PER_GROUP) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a manifest in order, in batches of at most `batch_rows` with `SCHEMA` and the file's metadata.

    Memory is one row group (`ROWS_PER_GROUP` in files written here), one batch, and 8 bytes per row of the file, by
    which repeated ids are found before the first batch.

    Raises:
        ManifestError: as in `read_manifest`; for a bad row when its batch is reached.
    """
    import pyarrow.parquet as pq

    with _reading(uri), storage.open_input(uri) as stream:
        file = pq.ParquetFile(stream)
        class_names = _class_names(file.schema_arrow)
        repeated = first_repeated(
            lambda: (batch["video_id"] for batch in file.iter_batches(ROWS_PER_GROUP, columns=["video_id"]))
        )
        if repeated is not None:
            raise repetition("video_id", repeated)
        for batch in file.iter_batches(batch_rows):
            with _damage_explained():
                for row in batch.filter(suspects(batch, len(class_names))).to_pylist():
                    check_classes(_entry(row), len(class_names))
            yield batch


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        raise ManifestError(f"{error}, or build a manifest first") from error
    except ManifestError as error:
        raise ManifestError(f"{uri}: {error}") from error
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ManifestError(f"{uri} is not a manifest in Parquet ({reason}); build the manifest again") from error


@contextmanager
def _damage_explained() -> Iterator[None]:
    """Turn errors of unexpected nulls and bad metadata into ManifestError."""
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ManifestError(f"manifest content is damaged ({error}); build the manifest again") from error


def _table(entries: Sequence[VideoEntry], class_names: Sequence[str]) -> pa.Table:
    labels = [label for entry in entries for label in entry.labels]
    ends = np.cumsum([0, *(len(entry.labels) for entry in entries)])
    label_type = SCHEMA.field("labels").type
    columns = [[getattr(entry, name) for entry in entries] for name in SCHEMA.names[:-1]]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=False)]
    fields = [pa.array([getattr(label, field.name) for label in labels], field.type) for field in label_type.value_type]
    structs = pa.StructArray.from_arrays(fields, fields=list(label_type.value_type))
    arrays.append(pa.ListArray.from_arrays(pa.array(ends, pa.int32()), structs, type=label_type))
    return pa.Table.from_arrays(arrays, schema=_schema(class_names))


def _schema(class_names: Sequence[str]) -> pa.Schema:
    names = json.dumps(list(class_names), ensure_ascii=False)
    return SCHEMA.with_metadata({_VERSION_KEY: str(SCHEMA_VERSION), _CLASSES_KEY: names})


def _class_names(schema: pa.Schema) -> tuple[str, ...]:
    """The class names in the metadata of a manifest's schema; ManifestError for any other schema."""
    metadata = schema.metadata or {}
    version = metadata.get(_VERSION_KEY, b"none").decode(errors="replace")
    if version != str(SCHEMA_VERSION):
        raise ManifestError(
            f"manifest schema version is {version}, allowed: {SCHEMA_VERSION}; build the manifest again"
        )
    if not schema.remove_metadata().equals(SCHEMA):
        got = ", ".join(f"{field.name} {field.type}" for field in schema)
        raise ManifestError(f"manifest columns are wrong: got {got}; build the manifest again")
    with _damage_explained():
        names = json.loads(metadata[_CLASSES_KEY])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("class names are not a list of names")
    check_names("class name", names)
    return tuple(names)


def _entry(row: dict[str, Any]) -> VideoEntry:
    labels = tuple(Label(label["class_id"], label["start_s"], label["end_s"]) for label in row["labels"])
    return VideoEntry(row["video_id"], row["uri"], row["split"], row["duration_s"], labels)
