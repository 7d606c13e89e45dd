"""`VideoRows` collects the rows of one video in bounded memory; `ShardWriter` writes whole videos as shards.

Letters: T frames, D feature length.
"""

import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skipreel.features.feature_set.ledger import remove_videos, write_failures
from skipreel.features.feature_set.schema import MAX_SEGMENT_FRAMES, SHARD_SCHEMA, Failure, Segment, Source, shard_table
from skipreel.features.feature_set.shard_file import write_shard

# A killed process loses at most the videos it finished in this time.
FLUSH_S = 60.0
# The rows of an unfinished video go to a temporary file from this size on.
_SPOOL_BYTES = 8 << 20


class Rows(Protocol):
    """Collects the rows of one video; `VideoRows` is the implementation for features.

    Attributes:
        num_frames: frames that were appended.
        num_bytes: size of the rows that are in a temporary file instead of memory.
    """

    video_id: str
    num_frames: int
    num_bytes: int

    def append(self, frame_index: NDArray[np.int32], pts_s: NDArray[np.float64], values: Any, /) -> None:
        """Add frames in order: (T,) positions, (T,) seconds, and their results."""

    def tables(self) -> Iterator[pa.Table]:
        """Return all rows; call it once, at the end."""
        ...

    def discard(self) -> None:
        """Drop all rows."""


class VideoRows:
    """Collects the rows of one video for `ShardWriter.add`."""

    def __init__(self, video_id: str, source: Source) -> None:
        self.video_id = video_id
        self.num_frames = 0
        self.num_bytes = 0
        self._source = source
        self._segments = 0
        self._waiting: list[tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float16]]] = []
        self._file: IO[bytes] | None = None
        self._stream: pa.RecordBatchStreamWriter | None = None

    def append(self, frame_index: NDArray[np.int32], pts_s: NDArray[np.float64], features: NDArray[np.float16]) -> None:
        """Add the next T frames, features (T, D); segments do not depend on how many come at once."""
        self.num_frames += len(frame_index)
        while len(frame_index):
            room = MAX_SEGMENT_FRAMES - sum(len(index) for index, _, _ in self._waiting)
            self._waiting.append((frame_index[:room], pts_s[:room], features[:room]))
            if len(frame_index) >= room:
                self._end_segment()
            frame_index, pts_s, features = frame_index[room:], pts_s[room:], features[room:]

    def tables(self) -> Iterator[pa.Table]:
        """Yield all rows, segment by segment; call it once, at the end."""
        if self._stream is not None and self._file is not None:
            self._stream.close()
            self._file.seek(0)
            for batch in pa.ipc.open_stream(self._file):
                yield pa.Table.from_batches([batch])
        if self._waiting:
            yield self._segment()
        self.discard()

    def discard(self) -> None:
        """Drop all rows."""
        self._waiting = []
        if self._file is not None:
            self._file.close()

    def _end_segment(self) -> None:
        if self._stream is None:
            self._file = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115 - closed by discard
            self._stream = pa.ipc.new_stream(self._file, SHARD_SCHEMA)
        table = self._segment()
        self.num_bytes += table.nbytes
        self._stream.write_table(table)

    def _segment(self) -> pa.Table:
        index, pts, features = (np.concatenate(arrays) for arrays in zip(*self._waiting, strict=True))
        self._waiting = []
        self._segments += 1
        segment = Segment(self._segments - 1, index, pts, features)
        return shard_table(self.video_id, self._source, [segment])


class ShardWriter:
    """Collects whole videos and failures; writes them when they fill a shard or `FLUSH_S` seconds have passed.

    Args:
        uri: a feature set with a data card; hold `card.locked`.
        shard_bytes: approximate size of a shard; a larger video gets a shard of its own.
    """

    def __init__(self, uri: str, *, shard_bytes: int) -> None:
        self._uri, self._shard_bytes = uri, shard_bytes
        self._tables: list[pa.Table] = []
        self._video_ids: list[str] = []
        self._failures: list[Failure] = []
        self._stale: dict[str, str] = {}  # video id: the file that holds its old rows or failure
        self._num_bytes = 0
        self._flushed_at = time.monotonic()

    def add(self, rows: Rows, *, replaces: str = "") -> None:
        """Add a whole video; ``replaces`` is the file with its old rows or failure, named as in `read_state`."""
        self._note_stale(rows.video_id, replaces)
        if rows.num_bytes >= self._shard_bytes:
            self._remove_stale([rows.video_id])
            write_shard(self._uri, rows.tables(), [rows.video_id])
            return
        tables = list(rows.tables())
        self._tables += tables
        self._video_ids.append(rows.video_id)
        self._num_bytes += sum(table.nbytes for table in tables)
        self.flush_if_due()

    def fail(self, failure: Failure, *, replaces: str = "") -> None:
        """Add a failed video; ``replaces`` as for `add`."""
        self._note_stale(failure.video_id, replaces)
        self._failures.append(failure)
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Write if there is a full shard, or the last write was `FLUSH_S` seconds ago."""
        if self._num_bytes >= self._shard_bytes or time.monotonic() - self._flushed_at >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write all videos and failures."""
        self._remove_stale([*self._video_ids, *(failure.video_id for failure in self._failures)])
        if self._video_ids:
            write_shard(self._uri, self._tables, self._video_ids)
        if self._failures:
            write_failures(self._uri, self._failures)
        self._tables, self._video_ids, self._failures, self._num_bytes = [], [], [], 0
        self._flushed_at = time.monotonic()

    def _note_stale(self, video_id: str, replaces: str) -> None:
        if replaces:
            self._stale[video_id] = replaces

    def _remove_stale(self, video_ids: list[str]) -> None:
        files = {video_id: self._stale.pop(video_id) for video_id in video_ids if video_id in self._stale}
        remove_videos(self._uri, list(files), files=sorted(set(files.values())))
