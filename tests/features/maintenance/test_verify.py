"""Each way in which a feature set can be wrong is found, in one line that names the file and says what to do."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.card import create_feature_set
from skipreel.features.feature_set.ledger import write_failures
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.feature_set.schema import Failure, Segment, Source, shard_table, shard_writer
from skipreel.features.maintenance.verify import changed_sources, missing_videos, verify
from skipreel.pipeline.manifest import Manifest, VideoEntry, write_manifest
from skipreel.pipeline.storage import FileStat
from tests.support.feature_sets import spec

DIM = 5


def table_of(video_id: str, lengths: tuple[int, ...] = (4, 3), **changes: np.ndarray) -> pa.Table:
    """A video in segments; ``changes`` replace the times, frame numbers or features of the last one."""
    segments, start = [], 0
    for number, length in enumerate(lengths):
        parts = {
            "frame_index": np.arange(start, start + length, dtype=np.int32),
            "pts_s": np.arange(start, start + length) / 2,
            "features": np.ones((length, DIM), np.float16),
        }
        if number == len(lengths) - 1:
            parts |= changes
        segments.append(Segment(number, **parts))
        start += length
    digest = hashlib.sha256(video_id.encode()).hexdigest()
    return shard_table(video_id, Source(digest, FileStat(1, 1)), segments)


def write(uri: str, *tables: pa.Table, name: str = "shard", groups: bool = False) -> None:
    """A shard of these tables in one row group, or each in its own."""
    path = Path(uri, "shards", f"{name}.parquet")
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as stream, shard_writer(stream) as writer:
        for table in tables if groups else [pa.concat_tables(tables).combine_chunks()]:
            writer.write_table(table.combine_chunks())


@pytest.fixture
def uri(tmp_path: Path) -> str:
    uri = str(tmp_path / "set")
    create_feature_set(uri, spec(DIM), about={})
    write(uri, table_of("a"), table_of("b", (1,)), table_of("c", (1024, 1)))
    return uri


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), table.schema.field(name), values)


def test_a_good_set_has_no_problems(uri):
    write_failures(uri, [Failure("d", "d.mp4", "empty")])
    assert list(verify(uri)) == []


def test_every_shard_and_ledger_is_shown_on_the_way(uri):
    write_failures(uri, [Failure("d", "d.mp4", "empty")])
    seen = []
    assert list(verify(uri, watch=lambda items, what: seen.append((what, len(items))) or items)) == []
    assert seen == [("checking shards", 1), ("checking failures", 1)]


def nan(place: tuple[int, int], value: float = np.nan) -> np.ndarray:
    features = np.ones((3, DIM), np.float16)
    features[place] = value
    return features


BAD_ROWS: dict[str, tuple[pa.Table, str]] = {
    "NaN": (table_of("x", features=nan((1, 4))), "NaN or infinity among the features in a row, .*'x'"),
    "infinity": (table_of("x", features=nan((0, 0), -np.inf)), "NaN or infinity among the features"),
    "frames back": (table_of("x", frame_index=np.array([4, 6, 5], np.int32)), "frame numbers that do not increase"),
    "a frame twice": (table_of("x", frame_index=np.array([3, 4, 5], np.int32)), "frame numbers that do not increase"),
    "time back": (table_of("x", pts_s=np.array([1.0, 2, 3])), "times that decrease"),
    "no time": (table_of("x", pts_s=np.array([2.0, np.nan, 3])), "times that decrease or are not finite"),
    "endless": (table_of("x", pts_s=np.array([2.0, 3, np.inf])), "times that decrease or are not finite"),
    "times missing": (table_of("x", pts_s=np.array([2.0, 3])), "another number of times than of frames"),
    "long": (table_of("x", (1025,)), "more than 1024 frames"),
    "dim": (with_column(table_of("x"), "dim", pa.array([5, 4], pa.int32())), "a dim that is not 5"),
    "digest": (
        with_column(table_of("x"), "source_digest", pa.array(["0" * 64, "1" * 64])),
        "another source_digest than the segment before",
    ),
}


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_found(uri, name, groups):
    table, message = BAD_ROWS[name]
    rows = [table.slice(row, 1) for row in range(table.num_rows)]
    write(uri, table_of("y"), *rows, table_of("z"), name="bad", groups=groups)
    (problem,) = verify(uri)
    assert problem.startswith(f"{uri}/shards/bad.parquet has ")
    assert problem.endswith("delete it and run skipreel extract again")
    assert re.search(message, problem)


def test_features_moved_from_one_row_to_the_next_are_found(uri):
    table = table_of("x")
    lists = table["features"].combine_chunks()
    offsets = pa.array([0, 3 * DIM, 7 * DIM], pa.int32())
    moved = pa.ListArray.from_arrays(offsets, lists.values, type=lists.type)
    write(uri, with_column(table, "features", moved), name="bad")
    (problem,) = verify(uri)
    assert "another number of features than frames × 5 in 2 rows" in problem


def test_a_segment_missing_in_the_middle_is_found(uri):
    write(uri, table_of("x", (3, 3, 3)).take([0, 2]), name="bad")
    (problem,) = verify(uri)
    assert problem == f"{uri}/shards/bad.parquet holds video 'x' twice or with gaps: extract it again"


def test_a_flipped_bit_is_found(uri):
    (layout,) = FeatureSet(uri).video_index.layouts
    path = Path(layout.uri)
    content = bytearray(path.read_bytes())
    content[layout.offsets[1] + 3] ^= 1
    path.write_bytes(content)
    (problem,) = verify(uri)
    assert problem.startswith(f"{path} cannot be read (")
    assert "CRC" in problem


def test_a_file_that_is_no_shard_is_found(uri):
    Path(uri, "shards", "odd.parquet").write_text("odd")
    (problem,) = verify(uri)
    assert problem.startswith(f"{uri}/shards/odd.parquet cannot be read")


def test_other_columns_are_found(uri):
    path = Path(uri, "shards", "shard.parquet")
    pq.write_table(pq.read_table(path).append_column("more", pa.array([1] * 5)), path)
    (problem,) = verify(uri)
    assert "other columns than a shard (more: int64)" in problem


def test_videos_that_are_there_twice_are_found_and_named(uri):
    path = Path(uri, "shards", "shard.parquet")
    copy = path.with_name("copy.parquet")
    copy.write_bytes(path.read_bytes())
    (problem,) = verify(uri)
    assert problem.startswith(f"{copy} and {path} hold 'a', 'b', 'c' 2 times: delete all but one of them")
    copy.unlink()
    write(uri, table_of("a"), table_of("b"), table_of("a"), name="shard")
    (problem,) = verify(uri)
    assert problem.startswith(f"{path} holds 'a' 2 times: delete it")


def test_a_video_both_with_features_and_failed_is_found(uri):
    write_failures(uri, [Failure("b", "b.mp4", "empty")])
    (problem,) = verify(uri)
    assert "/failures/" in problem
    assert "hold 'b' 2 times" in problem


def test_a_damaged_ledger_is_found(uri):
    folder = Path(uri, "failures")
    folder.mkdir()
    (folder / "x.parquet").write_text("odd")
    pq.write_table(pa.table({"video_id": ["q"]}), folder / "y.parquet")
    first, second = verify(uri)
    assert first.startswith(f"{folder}/x.parquet cannot be read")
    assert second.startswith(f"{folder}/y.parquet has other columns than a failure ledger")


def test_what_killed_writers_left_is_found(uri):
    left = Path(uri, "shards", ".x.parquet.12345678.tmp")
    left.touch()
    (problem,) = verify(uri)
    assert problem.startswith(f"{left} was left by a killed process")


def test_without_a_card_there_is_nothing_to_check(tmp_path):
    with pytest.raises(FeatureSetError, match="not a feature set"):
        list(verify(str(tmp_path)))


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., str]:
    """Writes a manifest of these videos, each with a file that its id is the content of."""

    def make(*video_ids: str) -> str:
        for video_id in video_ids:
            (tmp_path / f"{video_id}.mp4").write_text(video_id)
        entries = tuple(VideoEntry(video_id, str(tmp_path / f"{video_id}.mp4"), "train") for video_id in video_ids)
        write_manifest(Manifest(entries, ()), str(tmp_path / "manifest.parquet"))
        return str(tmp_path / "manifest.parquet")

    return make


def test_videos_missing_from_both_places_are_named(uri, manifest):
    write_failures(uri, [Failure("d", "d.mp4", "empty")])
    assert list(missing_videos(uri, manifest("a", "d"))) == []
    (problem,) = missing_videos(uri, manifest("a", "m1", "d", "m2", "m3", "m4"))
    assert "'m1', 'm2', 'm3' and 1 more" in problem
    assert problem.endswith("run skipreel extract with this manifest")


def test_changed_and_vanished_sources_are_named(uri, manifest, tmp_path):
    listing = manifest("a", "b", "c")
    assert list(changed_sources(uri, listing)) == []
    (tmp_path / "b.mp4").write_text("new")
    (tmp_path / "c.mp4").unlink()
    changed, vanished = changed_sources(uri, listing)
    assert changed.startswith(f"{tmp_path}/b.mp4 has changed since the features of 'b' were extracted")
    assert vanished.startswith(f"cannot read {tmp_path}/c.mp4")
