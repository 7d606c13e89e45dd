"""Reads one shard: `read_layout` finds the features of each row, `ShardFile` reads them into the caller's memory.

Decoding lists of float16 with Arrow takes several times as long as reading their bytes. `schema.shard_writer` stores
features as plain values, one page per row group, so they are read from the file directly if the Parquet metadata and
the page header prove where they lie. Arrow decodes any other Parquet file.

Letters: R rows of a shard, T frames of a row or a video, D feature length.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.parquet_page import values_offset
from skipreel.pipeline import storage
from skipreel.pipeline.storage.uris import explained, one_line

_VALUE_BYTES = 2


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the rows of a shard lie in its file.

    Attributes:
        num_frames: (R,) int64, T of each row, at least 1.
        groups: (R,) int32, the row group of each row, ascending.
        offsets: (R,) int64, the byte in the file where a row's features begin; -1 if Arrow must decode them.
    """

    uri: str
    num_frames: NDArray[np.int64]
    groups: NDArray[np.int32]
    offsets: NDArray[np.int64]


def read_layout(uri: str, *, dim: int) -> tuple[Layout, pa.Table]:
    """Read the layout of a shard, from its small columns and the beginning of each page of features.

    Returns:
        The layout, and a table of the videos: video_id, first_row int32, num_segments int32, num_frames int64.

    Raises:
        FeatureSetError: if the file is not a shard, its features do not have length ``dim``, or the rows of a video
            are not next to each other and in order.
        StorageError: if the file is missing or cannot be read.
    """
    with open_parquet(uri) as (file, parquet):
        table = parquet.read(columns=["video_id", "segment", "frame_index"])
        num_frames = pc.fill_null(pc.list_value_length(table["frame_index"]), 0).to_numpy().astype(np.int64)
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        ends = np.cumsum([0, *sizes])
        offsets = np.empty(len(num_frames), np.int64)
        for group, rows in enumerate(slice(*pair) for pair in pairwise(ends)):
            found = _row_offsets(file, parquet, group, num_frames[rows] * dim)
            if found is None:
                raise FeatureSetError(
                    f"{uri} has rows whose features are not of length frames × {dim} (row group {group}): "
                    "delete it and run skipreel extract again"
                )
            offsets[rows] = found
        videos = _videos(uri, table, num_frames)
    return Layout(uri, num_frames, np.repeat(np.arange(len(sizes), dtype=np.int32), sizes), offsets), videos


class ShardFile:
    """An open shard; closed when nothing refers to it. Threads may share it."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._is_local = storage.local_path(layout.uri) is not None
        filesystem, path = storage.resolve(layout.uri)
        # Not storage.open_input: its large remote reads would also fetch a video's neighbours.
        with explained("read", layout.uri):
            self._file: Any = filesystem.open_input_file(path)
        self._lock = threading.Lock()
        self._parquet: pq.ParquetFile | None = None
        self._decoded: dict[str, tuple[int, pa.Array]] = {}  # the last row group of each column

    def read_features(self, first_row: int, num_rows: int, out: NDArray[np.float16]) -> None:
        """Read the features of consecutive rows into ``out``, (T, D) float16 and contiguous.

        Raises:
            FeatureSetError, StorageError: if the file has changed since its layout was read.
        """
        values = out.reshape(-1)
        counts = self._layout.num_frames[first_row : first_row + num_rows] * out.shape[1]
        ends = np.cumsum(counts)
        for run in self._runs(first_row, counts):
            target = values[ends[run.start] - counts[run.start] : ends[run.stop - 1]]
            row = first_row + run.start
            if self._layout.offsets[row] >= 0:
                self._read_at(int(self._layout.offsets[row]), target)
                continue
            decoded = self._decode("features", row)
            if len(decoded) != len(target):
                raise FeatureSetError(
                    f"{self._layout.uri}: row {row} has {len(decoded)} values, expected {len(target)}"
                )
            target[:] = decoded

    def read_list(self, column: str, first_row: int, num_rows: int) -> NDArray[Any]:
        """Read ``frame_index`` or ``pts_s``, (T,), of consecutive rows."""
        return np.concatenate([self._decode(column, row) for row in range(first_row, first_row + num_rows)])

    def _runs(self, first_row: int, counts: NDArray[np.int64]) -> Iterator[slice]:
        """Group rows, counted from ``first_row``, whose values are contiguous in the file."""
        offsets = self._layout.offsets[first_row : first_row + len(counts)]
        follows = offsets[:-1] + counts[:-1] * _VALUE_BYTES == offsets[1:]
        starts = np.flatnonzero(np.concatenate([[True], ~follows]))
        for start, stop in zip(starts, [*starts[1:], len(counts)], strict=True):
            yield slice(int(start), int(stop))

    def _read_at(self, offset: int, out: NDArray[np.float16]) -> None:
        target = out.view(np.uint8)
        with explained("read", self._layout.uri):
            if self._is_local:
                with self._lock:  # a file has one position
                    self._file.seek(offset)
                    count = self._file.readinto(target.data)
            else:  # in parallel
                data = self._file.read_at(len(target), offset)
                count = len(data)
                target[:count] = np.frombuffer(data, np.uint8)
            if count != len(target):
                raise OSError("it has become shorter while it was read")

    def _decode(self, column: str, row: int) -> NDArray[Any]:
        """Decode a row's list with Arrow, which decodes whole row groups; the last one is kept for the next row."""
        group = int(self._layout.groups[row])
        with self._lock:
            if self._decoded.get(column, (-1,))[0] != group:
                with damage_explained(self._layout.uri):
                    self._parquet = self._parquet or pq.ParquetFile(self._file)
                    table = self._parquet.read_row_group(group, columns=[column], use_threads=False)
                self._decoded[column] = group, table[column].combine_chunks()
            lists = self._decoded[column][1]
        place = row - int(np.searchsorted(self._layout.groups, group))
        return np.asarray(lists[place].values.to_numpy(zero_copy_only=False))


@contextmanager
def open_parquet(uri: str) -> Iterator[tuple[BinaryIO, pq.ParquetFile]]:
    """Open a Parquet file; its reader verifies the checksums of the pages that it decodes.

    Raises:
        FeatureSetError: if data that is read inside the ``with`` block are damaged.
        StorageError: if the file is missing.
    """
    with storage.open_input(uri) as file, damage_explained(uri):
        yield file, pq.ParquetFile(file, page_checksum_verification=True)


@contextmanager
def damage_explained(uri: str) -> Iterator[None]:
    """Turn Arrow's errors into a FeatureSetError of one line."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError) as error:
        raise FeatureSetError(
            f"{uri} cannot be read ({one_line(error)}): if it is damaged, delete it and run skipreel extract again"
        ) from error


def _row_offsets(
    file: BinaryIO, parquet: pq.ParquetFile, group: int, num_values: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """Find `Layout.offsets` of a row group with ``num_values`` (R,) values per row; None if their sum is wrong."""
    metadata = parquet.metadata.row_group(group)
    paths = [metadata.column(number).path_in_schema for number in range(metadata.num_columns)]
    (number,) = (number for number, path in enumerate(paths) if path.startswith("features."))
    column = metadata.column(number)
    total = int(num_values.sum())
    if column.num_values != total:
        return None
    start = values_offset(file, column, num_values=total, value_bytes=_VALUE_BYTES)
    if start is None:
        return np.full(len(num_values), -1, np.int64)
    return np.asarray(start + (np.cumsum(num_values) - num_values) * _VALUE_BYTES)


def _videos(uri: str, table: pa.Table, num_frames: NDArray[np.int64]) -> pa.Table:
    """Make the table of videos that `read_layout` returns."""
    ids, segments = table["video_id"].combine_chunks(), table["segment"].to_numpy()
    before = np.roll(np.arange(len(segments)), 1)
    same_video = pc.equal(ids, ids.take(pa.array(before))).to_numpy(zero_copy_only=False)
    in_order = (segments == 0) | (same_video & (segments == segments[before] + 1))
    in_order[:1] &= segments[:1] == 0
    if not in_order.all():
        video_id = ids[int(np.argmin(in_order))].as_py()
        raise FeatureSetError(f"{uri} holds video {video_id!r} twice or with gaps: extract it again")
    first = np.flatnonzero(segments == 0)
    return pa.table(
        {
            "video_id": ids.take(pa.array(first)),
            "first_row": pa.array(first, pa.int32()),
            "num_segments": pa.array(np.diff(first, append=len(segments)), pa.int32()),
            "num_frames": pa.array(np.diff(np.cumsum([0, *num_frames])[[*first, len(segments)]]), pa.int64()),
        }
    )
