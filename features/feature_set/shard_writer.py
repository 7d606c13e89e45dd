"""Finished videos become shards of a target size; a video of any length waits in bounded memory until it is whole.

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

# What a killed process may lose: the work since the last shard.
FLUSH_S = 60.0
# From here on the features of an unfinished video go to a temporary file.
_SPOOL_BYTES = 8 << 20


class Rows(Protocol):
    """Collects the rows of one video; `VideoRows` is the one for features.

    Attributes:
        num_frames: that were appended.
        num_bytes: of rows that have left the memory for a temporary file.
    """

    video_id: str
    num_frames: int
    num_bytes: int

    def append(self, frame_index: NDArray[np.int32], pts_s: NDArray[np.float64], values: Any, /) -> None:
        """Add frames in order: (T,) places, (T,) seconds, and what came of them."""

    def tables(self) -> Iterator[pa.Table]:
        """All rows, once, at the end."""
        ...

    def discard(self) -> None:
        """Let go of everything."""


class VideoRows:
    """The rows of one video that is not whole yet: give it frames in order, then hand it to `ShardWriter.add`."""

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
        """Add frames: (T,) int32, (T,) float64 seconds, (T, D) float16; how many come at once decides no segment."""
        self.num_frames += len(frame_index)
        while len(frame_index):
            room = MAX_SEGMENT_FRAMES - sum(len(part[0]) for part in self._waiting)
            self._waiting.append((frame_index[:room], pts_s[:room], features[:room]))
            if len(frame_index) >= room:
                self._end_segment()
            frame_index, pts_s, features = frame_index[room:], pts_s[room:], features[room:]

    def tables(self) -> Iterator[pa.Table]:
        """All rows, segment by segment; call it once, at the end."""
        if self._stream is not None and self._file is not None:
            self._stream.close()
            self._file.seek(0)
            for batch in pa.ipc.open_stream(self._file):
                yield pa.Table.from_batches([batch])
        if self._waiting:
            yield self._segment()
        self.discard()

    def discard(self) -> None:
        """Let go of everything."""
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
        index, pts, features = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        self._segments += 1
        segment = Segment(self._segments - 1, index, pts, features)
        return shard_table(self.video_id, self._source, [segment])


class ShardWriter:
    """Collects whole videos and failures, and writes them when there is a shard's worth or a minute has passed.

    Args:
        uri: a feature set that `create_feature_set` has made; hold `locked`.
        shard_bytes: features of a shard, roughly; a video longer than that gets a shard of its own.
    """

    def __init__(self, uri: str, *, shard_bytes: int) -> None:
        self._uri, self._shard_bytes = uri, shard_bytes
        self._tables: list[pa.Table] = []
        self._video_ids: list[str] = []
        self._failures: list[Failure] = []
        self._stale: dict[str, str] = {}  # video id: the file that holds what is replaced
        self._num_bytes = 0
        self._flushed_at = time.monotonic()

    def add(self, rows: Rows, *, replaces: str = "") -> None:
        """A whole video; ``replaces``: the file of the set with its old rows or failure, as `read_state` names it."""
        self._note(rows.video_id, replaces)
        if rows.num_bytes >= self._shard_bytes:
            self._forget([rows.video_id])
            write_shard(self._uri, rows.tables(), [rows.video_id])
            return
        tables = list(rows.tables())
        self._tables += tables
        self._video_ids.append(rows.video_id)
        self._num_bytes += sum(table.nbytes for table in tables)
        self.flush_if_due()

    def fail(self, failure: Failure, *, replaces: str = "") -> None:
        """A video that has no features, and why."""
        self._note(failure.video_id, replaces)
        self._failures.append(failure)
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Write if enough has come together, or waited long enough."""
        if self._num_bytes >= self._shard_bytes or time.monotonic() - self._flushed_at >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write everything that is there."""
        self._forget([*self._video_ids, *(failure.video_id for failure in self._failures)])
        if self._video_ids:
            write_shard(self._uri, self._tables, self._video_ids)
        if self._failures:
            write_failures(self._uri, self._failures)
        self._tables, self._video_ids, self._failures, self._num_bytes = [], [], [], 0
        self._flushed_at = time.monotonic()

    def _note(self, video_id: str, replaces: str) -> None:
        if replaces:
            self._stale[video_id] = replaces

    def _forget(self, video_ids: list[str]) -> None:
        files = {video_id: self._stale.pop(video_id) for video_id in video_ids if video_id in self._stale}
        remove_videos(self._uri, list(files), files=sorted(set(files.values())))
