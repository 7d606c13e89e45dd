"""`check_shard`: reads every byte of a shard and checks it against `feature_set.schema`.

Letters: R rows of a row group, T frames of a row, D feature length.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.schema import MAX_SEGMENT_FRAMES
from skipreel.features.feature_set.shard_reader import open_parquet, read_layout

_FLOAT16_EXPONENT = 0x7C00  # all its bits are set in infinity and NaN, and in nothing else


def check_shard(uri: str, *, dim: int, schema: pa.Schema) -> tuple[list[str], pa.ChunkedArray]:
    """Check a shard against the result of `shard_schema`. Holds one row group in memory.

    Returns:
        Each problem as one line that names the shard; and the ids of its videos.
    """
    try:
        _, videos = read_layout(uri, dim=dim)
    except FeatureSetError as error:
        return [str(error)], pa.chunked_array([], pa.string())
    try:
        return list(_content_problems(uri, dim=dim, schema=schema)), videos["video_id"]
    except FeatureSetError as error:
        return [str(error)], videos["video_id"]


def _content_problems(uri: str, *, dim: int, schema: pa.Schema) -> Iterator[str]:
    with open_parquet(uri) as (_, parquet):
        found = parquet.schema_arrow.remove_metadata()
        if not found.equals(schema):
            differing = [str(pa.schema([field])) for field in found if field not in schema]
            what = ", ".join(differing) or "some are missing or in another order"
            yield f"{uri} has other columns than a shard ({what}): delete it and run skipreel extract again"
            return
        last = schema.empty_table()
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group)
            if not table.num_rows:
                continue
            for bad, what in [*_row_faults(table, dim=dim), *_order_faults(last, table)]:
                if bad.any():
                    video_id = table["video_id"][int(np.argmax(bad))].as_py()
                    count = f"{bad.sum()} rows" if bad.sum() > 1 else "a row"
                    yield (
                        f"{uri} has {what} in {count}, first in one of video {video_id!r} (row group {group}): "
                        "delete it and run skipreel extract again"
                    )
            last = table.slice(table.num_rows - 1)


def _row_faults(table: pa.Table, *, dim: int) -> Iterator[tuple[NDArray[np.bool_], str]]:
    """Check rows one by one; yields which rows (R,) have a problem, and the problem."""
    num_frames = _lengths(table, "frame_index")
    yield num_frames > MAX_SEGMENT_FRAMES, f"more than {MAX_SEGMENT_FRAMES} frames"
    yield _lengths(table, "pts_s") != num_frames, "another number of times than of frames"
    yield _lengths(table, "features") != num_frames * dim, f"another number of features than frames × {dim}"
    yield table["dim"].to_numpy() != dim, f"a dim that is not {dim}"
    offsets, values = _flat(table["features"])
    bits = values.view(np.uint16)
    yield _rows_of((bits & _FLOAT16_EXPONENT) == _FLOAT16_EXPONENT, offsets), "NaN or infinity among the features"


def _order_faults(last: pa.Table, table: pa.Table) -> Iterator[tuple[NDArray[np.bool_], str]]:
    """Check consecutive rows of a video; ``last`` is the row before the table's, if any."""
    small = ["video_id", "source_digest", "frame_index", "pts_s"]
    rows = pa.concat_tables([last.select(small), table.select(small)])
    ids, digests = (rows[name].to_numpy() for name in ("video_id", "source_digest"))
    same_video = np.concatenate([[False], ids[1:] == ids[:-1]])
    same_digest = np.concatenate([[True], digests[1:] == digests[:-1]])
    skipped = last.num_rows
    yield (same_video & ~same_digest)[skipped:], "another source_digest than the segment before"
    for name, what in (
        ("frame_index", "frame numbers that do not increase"),
        ("pts_s", "times that decrease or are not finite"),
    ):
        offsets, values = _flat(rows[name])
        steps = np.diff(values, prepend=values[:1])
        steps[offsets[:-1][~same_video & (np.diff(offsets) > 0)]] = 1  # a video's first value does not follow another
        wrong = steps <= 0 if name == "frame_index" else ~((steps >= 0) & np.isfinite(values))
        yield _rows_of(wrong, offsets)[skipped:], what


def _lengths(table: pa.Table, column: str) -> NDArray[np.int64]:
    return np.asarray(pc.list_value_length(table[column]).to_numpy(), np.int64)


def _flat(lists: pa.ChunkedArray) -> tuple[NDArray[np.int32], NDArray[np.generic]]:
    """Offsets of the lists (one more than lists), and all values."""
    whole = lists.combine_chunks()
    return whole.offsets.to_numpy(), whole.values.to_numpy()


def _rows_of(wrong: NDArray[np.bool_], offsets: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Find the rows (R,) that have a wrong value."""
    if not wrong.any():  # the usual case; counting takes longer than all other checks
        return np.zeros(len(offsets) - 1, np.bool_)
    before = np.concatenate([[0], np.cumsum(wrong)])
    return np.asarray(before[offsets[1:]] > before[offsets[:-1]])
