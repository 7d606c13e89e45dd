"""Checks of many manifest rows at once, in bounded memory; `Label` and `VideoEntry` hold the exact rules."""

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def suspects(batch: pa.RecordBatch, num_classes: int) -> pa.Array:
    """(rows,) boolean: every row that breaks a rule and perhaps some others, for `VideoEntry` to check one by one."""
    ids, duration_s = batch["video_id"], batch["duration_s"]
    bad = pc.match_substring_regex(ids, r"^/|(^|/)\.\.(/|$)")
    bad = pc.or_(bad, pc.invert(pc.utf8_is_printable(ids)))
    for name in ("video_id", "uri", "split"):
        bad = pc.or_(bad, pc.equal(pc.utf8_trim_whitespace(batch[name]), ""))
    positive = pc.and_(pc.greater(duration_s, 0.0), pc.is_finite(duration_s))
    bad = pc.or_(bad, pc.invert(pc.fill_null(positive, True)))
    flags: NDArray[np.bool_] = pc.fill_null(bad, True).to_numpy(zero_copy_only=False)
    flags[_rows_of_bad_labels(batch["labels"], num_classes)] = True
    return pa.array(flags)


def first_repeated(read_ids: Callable[[], Iterable[pa.Array]]) -> str | None:
    """A repeated id, or None; each call of `read_ids` returns all ids in pieces.

    Memory is one hash per id: 8 bytes a row, sorted in place.
    """
    hashes = [np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids)) for ids in read_ids()]
    sorted_hashes = np.concatenate([np.empty(0, np.int64), *hashes])
    del hashes
    sorted_hashes.sort()
    repeated = set(sorted_hashes[1:][sorted_hashes[1:] == sorted_hashes[:-1]].tolist())
    seen = set()
    for ids in read_ids() if repeated else ():
        for video_id in ids.to_pylist():
            if video_id in seen:
                return str(video_id)
            if hash(video_id) in repeated:  # two different ids may share a hash
                seen.add(video_id)
    return None


def _rows_of_bad_labels(labels: pa.ListArray, num_classes: int) -> NDArray[np.int64]:
    flat = labels.flatten()
    class_id, start_s, end_s = (pc.struct_field(flat, name) for name in ("class_id", "start_s", "end_s"))
    good = pc.and_(pc.greater_equal(class_id, 0), pc.less(class_id, num_classes))
    good = pc.and_(good, pc.and_(pc.greater_equal(start_s, 0.0), pc.is_finite(start_s)))
    good = pc.and_(good, pc.less_equal(start_s, end_s))
    bad = ~pc.fill_null(good, False).to_numpy(zero_copy_only=False)
    rows: NDArray[np.int64] = pc.list_parent_indices(labels).filter(pa.array(bad)).to_numpy(zero_copy_only=False)
    return rows
