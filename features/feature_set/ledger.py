"""Which videos are in a feature set and which failed: `read_state`, the failure ledger, and `remove_videos`."""

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set import shard_list
from skipreel.features.feature_set.schema import FAILURE_SCHEMA, FAILURES, SHARDS, Failure, failure_table
from skipreel.features.feature_set.shard_file import file_name_of, write_rows
from skipreel.pipeline import storage

_KNOWN = pa.schema(
    [
        ("video_id", pa.string()),
        ("source_digest", pa.string()),  # null for a failure
        ("source_bytes", pa.int64()),
        ("source_modified", pa.timestamp("us", tz="UTC")),
        ("file", pa.string()),  # relative to the feature set
    ]
)


def write_failures(uri: str, failures: Sequence[Failure]) -> None:
    """Add a file to the failure ledger."""
    name = file_name_of(failure.video_id for failure in failures)
    storage.write_table_atomic(storage.join(uri, FAILURES, name), failure_table(failures))


def read_state(uri: str, *, has_segments: bool = True) -> pa.Table:
    """List the videos in the shards and in the failure ledger.

    Args:
        has_segments: whether a video may have several rows, numbered in a column ``segment``.

    Returns:
        A table with a row per video: video_id, source_digest (null for a failure), source_bytes, source_modified, file
        (the file that holds it, relative to the feature set).
    """
    tables = [_KNOWN.empty_table()]
    files = {SHARDS: shard_list.shard_uris(uri), FAILURES: storage.list_files(storage.join(uri, FAILURES), ".parquet")}
    segment = ["segment"] if has_segments else []
    for folder, columns in ((SHARDS, [*segment, "source_digest"]), (FAILURES, [])):
        names = ["video_id", *columns, "source_bytes", "source_modified"]
        for path in files[folder]:
            table = _read(path, names)
            if folder == SHARDS and has_segments:
                table = table.filter(pc.equal(table["segment"], 0))
            if folder == FAILURES:
                table = table.append_column("source_digest", pa.nulls(table.num_rows, pa.string()))
            file = pa.array([f"{folder}/{shard_list.name_of(path)}"] * table.num_rows, pa.string())
            tables.append(table.append_column("file", file).select(_KNOWN.names).cast(_KNOWN))
    return pa.concat_tables(tables).combine_chunks()


def remove_videos(uri: str, video_ids: Sequence[str], *, files: Iterable[str]) -> None:
    """Remove videos from the files that hold them (named as in `read_state`), each file in one step."""
    gone = pa.array(video_ids, pa.string())
    for file in files:
        path = storage.join(uri, *file.split("/"))
        ids = _read(path, ["video_id"])["video_id"]
        stay = pc.invert(pc.is_in(ids, value_set=gone))
        if not pc.any(stay).as_py():
            storage.delete(path)
        elif not pc.all(stay).as_py():
            table = _read(path, None).filter(stay)
            if file.startswith(FAILURES):
                storage.write_table_atomic(path, table)
            else:
                write_rows(path, (table.slice(row, 1) for row in range(table.num_rows)))


def read_finished(uri: str) -> dict[str, str]:
    """Map the id of each video with features to its source digest."""
    table = read_state(uri)
    done = table.filter(pc.is_valid(table["source_digest"]))
    return dict(zip(done["video_id"].to_pylist(), done["source_digest"].to_pylist(), strict=True))


def read_failures(uri: str) -> list[dict[str, Any]]:
    """Read the failure ledger, sorted by video: rows with the columns of `FAILURE_SCHEMA`."""
    paths = storage.list_files(storage.join(uri, FAILURES), ".parquet")
    rows = [row for path in paths for row in _read(path, FAILURE_SCHEMA.names).to_pylist()]
    return sorted(rows, key=lambda row: row["video_id"])


def _read(path: str, columns: list[str] | None) -> pa.Table:
    with storage.open_input(path) as file:
        try:
            return pq.read_table(file, columns=columns)
        except (pa.ArrowInvalid, OSError) as error:
            raise FeatureSetError(
                f"{path} is damaged ({error}): delete it and run the job that wrote it again"
            ) from error
