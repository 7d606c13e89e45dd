"""The format of a feature set on disk: folders, Parquet schemas, and the rows that fill them.

    <feature set>/feature_set.json      the data card: the feature set's id and its spec
    <feature set>/shards/*.parquet      one row per segment of a video (at most 1,024 frames)
    <feature set>/failures/*.parquet    one row per video that could not be decoded, with the reason

All segments of a video lie in one shard, next to each other and in order, so every shard holds whole videos.
Letters: T frames of a segment, D feature length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skipreel.pipeline.storage import FileStat

MAX_SEGMENT_FRAMES = 1024
# Small, so that a reader of one video reads little of its neighbours; large enough for a scan.
ROW_GROUP_BYTES = 4 << 20


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


_SOURCE = [
    pa.field("source_bytes", pa.int64()),
    pa.field("source_modified", pa.timestamp("us", tz="UTC")),
]
SHARDS, FAILURES = "shards", "failures"  # its folders
SHARD_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("segment", pa.int32(), nullable=False),  # 0, 1, … within the video
        pa.field("frame_index", _list(pa.int32()), nullable=False),  # (T,) positions in presentation order
        pa.field("pts_s", _list(pa.float64()), nullable=False),  # (T,) seconds from the video's first frame
        # (T·D,) frame by frame: a flat list reads everywhere; a list of fixed-size lists fails in Ray's torch batches.
        pa.field("features", _list(pa.float16()), nullable=False),
        pa.field("dim", pa.int32(), nullable=False),  # D
        pa.field("start_s", pa.float64(), nullable=False),  # the first frame's time by the file's own clock, in seconds
        pa.field("source_digest", pa.string(), nullable=False),  # SHA-256 of the video file
        *_SOURCE,  # its file stat, which a rerun compares first
    ]
)
# In the data card if `pts_s` counts from the first frame. The card of a set of an earlier version does not have this
# line: its `pts_s` is the file's own clock and it does not have `start_s`. Such a set stays so.
TIMES = {"times": "from the first frame"}

FAILURE_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        *_SOURCE,  # null if there was no file
    ]
)


@dataclass(frozen=True, slots=True)
class Segment:
    """At most 1,024 consecutive sampled frames of one video.

    Attributes:
        number: 0 for a video's first segment.
        frame_index: (T,) int32, positions in presentation order.
        pts_s: (T,) float64, presentation times in seconds from the video's first frame.
        features: (T, D) float16.
    """

    number: int
    frame_index: NDArray[np.int32]
    pts_s: NDArray[np.float64]
    features: NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Source:
    """The file that features were made from.

    Attributes:
        digest: SHA-256 (hex) of its content.
        file_stat: its size and time of change.
        start_s: the first frame's time by the file's own clock, in seconds.
    """

    digest: str
    file_stat: FileStat
    start_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A video that could not be decoded, and why; ``file_stat`` is None if there was no file."""

    video_id: str
    uri: str
    reason: str
    file_stat: FileStat | None = None


def shard_table(video_id: str, source: Source, segments: Sequence[Segment]) -> pa.Table:
    """Make rows of a shard from segments of one video."""
    count = len(segments)
    columns = [
        pa.array([video_id] * count),
        pa.array([segment.number for segment in segments], pa.int32()),
        _lists("frame_index", [segment.frame_index for segment in segments]),
        _lists("pts_s", [segment.pts_s for segment in segments]),
        _lists("features", [segment.features.reshape(-1) for segment in segments]),
        pa.array([segment.features.shape[1] for segment in segments], pa.int32()),
        pa.array([source.start_s] * count, pa.float64()),
        pa.array([source.digest] * count),
        pa.array([source.file_stat.num_bytes] * count, pa.int64()),
        pa.array([time_of(source.file_stat)] * count, SHARD_SCHEMA.field("source_modified").type),
    ]
    return pa.Table.from_arrays(columns, schema=SHARD_SCHEMA)


def by_file_clock(table: pa.Table) -> pa.Table:
    """Convert rows to the format of an earlier version, see `TIMES`."""
    lists = table["pts_s"].combine_chunks()
    offsets = lists.offsets.to_numpy() - lists.offsets[0].as_py()  # a slice's offsets may begin anywhere
    seconds = lists.flatten().to_numpy() + np.repeat(table["start_s"].to_numpy(), np.diff(offsets))
    times = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(seconds), type=lists.type)
    place = table.schema.get_field_index("pts_s")
    return table.set_column(place, table.schema.field(place), times).drop_columns(["start_s"])


def without_start(schema: pa.Schema) -> pa.Schema:
    """The columns of `by_file_clock`."""
    return schema.remove(schema.get_field_index("start_s"))


def failure_table(failures: Sequence[Failure]) -> pa.Table:
    """Make rows of the failure ledger."""
    rows = [
        {
            "video_id": failure.video_id,
            "uri": failure.uri,
            "reason": failure.reason,
            "source_bytes": failure.file_stat.num_bytes if failure.file_stat else None,
            "source_modified": time_of(failure.file_stat) if failure.file_stat else None,
        }
        for failure in failures
    ]
    return pa.Table.from_pylist(rows, schema=FAILURE_SCHEMA)


def shard_writer(stream: BinaryIO, schema: pa.Schema = SHARD_SCHEMA) -> pq.ParquetWriter:
    """Open a Parquet writer; each ``write_table`` makes one row group.

    Features hardly compress, so they are stored as plain values, one page per row group, with a checksum. Reading
    them is about as fast as reading the file.
    """
    compression = {name: "none" if name == "features.list.element" else "zstd" for name in _leaves(schema)}
    return pq.ParquetWriter(
        stream,
        schema,
        compression=compression,
        use_dictionary=["video_id", "source_digest"],
        write_statistics=["video_id", "segment"],
        data_page_size=1 << 30,
        write_page_checksum=True,
    )


def _leaves(schema: pa.Schema) -> list[str]:
    return [f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in schema]


def _lists(name: str, arrays: Sequence[NDArray[np.generic]]) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(np.concatenate(arrays)), type=SHARD_SCHEMA.field(name).type
    )


def time_of(file_stat: FileStat) -> datetime:
    """Convert the time of change to the type of the column source_modified."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=file_stat.modified_us)
