from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.card import create_feature_set
from skipreel.features.feature_set.index import MAX_OPEN_SHARDS, VideoReader, read_index
from skipreel.features.feature_set.reader import FeatureSet
from tests.support.feature_sets import spec, write_sequence

LENGTHS = {"b": 30, "a": 4, "c": 11}


def values(video_id: str, length: int) -> np.ndarray:
    return np.random.default_rng(ord(video_id)).normal(size=(length, 5)).astype(np.float16)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    create_feature_set(str(tmp_path), spec(), about={"backbone": "numbers"})
    for video_id, length in LENGTHS.items():
        write_sequence(str(tmp_path), video_id, values(video_id, length), segment_frames=10)
    return str(tmp_path)


def test_the_index_has_a_row_for_each_video(uri):
    index = FeatureSet(uri).index()
    assert index.column_names == ["video_id", "shard", "first_row", "num_segments", "num_frames"]
    rows = {row["video_id"]: row for row in index.to_pylist()}
    assert {name: row["num_frames"] for name, row in rows.items()} == LENGTHS
    assert {name: row["num_segments"] for name, row in rows.items()} == {"b": 3, "a": 1, "c": 2}
    assert all((Path(uri) / "shards" / row["shard"]).is_file() for row in rows.values())


def test_an_empty_set_has_an_empty_index(tmp_path):
    create_feature_set(str(tmp_path), spec(), about={})
    assert FeatureSet(str(tmp_path)).index().num_rows == 0
    assert FeatureSet(str(tmp_path)).video_ids() == frozenset()
    assert FeatureSet(str(tmp_path)).load([]) == []


def test_a_video_may_be_asked_for_twice(uri):
    sequences = FeatureSet(uri).load(["c", "b", "c"])
    assert [sequence.video_id for sequence in sequences] == ["c", "b", "c"]
    for sequence in sequences:
        expected = values(sequence.video_id, LENGTHS[sequence.video_id])
        np.testing.assert_array_equal(sequence.features, expected)
        np.testing.assert_array_equal(sequence.frame_index, np.arange(len(expected)))
        np.testing.assert_array_equal(sequence.pts_s, np.arange(len(expected)) / 2)


def test_shards_beyond_the_limit_of_open_files_are_closed_and_opened_again(tmp_path):
    count = MAX_OPEN_SHARDS + 3
    create_feature_set(str(tmp_path), spec(), about={})
    for number in range(count):
        write_sequence(str(tmp_path), f"v{number}", np.full((1, 5), number))
    index = read_index(str(tmp_path), dim=5)
    reader, features = VideoReader(index), np.empty((1, 5), np.float16)
    for number in [*range(count), 0, 1]:
        reader.read_features(int(index.positions([f"v{number}"])[0]), features)
        assert (features == number).all()
    opened = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert sum(path.is_relative_to(tmp_path) for path in opened) == MAX_OPEN_SHARDS


def test_a_set_by_uri_reads_as_one_by_path(uri):
    np.testing.assert_array_equal(FeatureSet(f"file://{uri}").load(["c"])[0].features, values("c", 11))


def test_a_set_on_another_machine_reads_in_parallel(uri, monkeypatch):
    # The way of remote files, taken with local ones.
    monkeypatch.setattr("skipreel.features.feature_set.shard_reader.storage.local_path", lambda _: None)
    for name, sequence in zip(LENGTHS, FeatureSet(uri).load(LENGTHS), strict=True):
        np.testing.assert_array_equal(sequence.features, values(name, LENGTHS[name]))


def test_segments_out_of_order_are_refused(uri):
    (name,) = (row["shard"] for row in FeatureSet(uri).index().to_pylist() if row["video_id"] == "b")
    path = Path(uri) / "shards" / name
    table = pq.read_table(path)
    for rows in ([1, 0, 2], [0, 2], [1, 2], [1, 0], [0, 1, 2, 0, 1, 2]):
        pq.write_table(table.take(rows), path)
        with pytest.raises(FeatureSetError, match="holds video 'b' twice or with gaps: extract it again"):
            FeatureSet(uri).video_ids()
    others = pq.read_table(path.parent, filters=[("video_id", "=", "c")])
    pq.write_table(pa.concat_tables([others.take([0]), table.take([1])]), path)  # goes on as if it were another video
    with pytest.raises(FeatureSetError, match="holds video 'b' twice or with gaps"):
        FeatureSet(uri).video_ids()
    pq.write_table(table.take([0, 1]), path)  # a last segment that is missing cannot be told from a shorter video
    assert FeatureSet(uri).video_ids() == set(LENGTHS)


def test_sequences_come_back_bit_equal_and_in_the_order_asked_for(uri):
    for video_id, length in (("b", 3), ("a", 1), ("../c", 7)):
        write_sequence(uri, video_id, values("x", length))
    sequences = FeatureSet(uri).load(["../c", "b"])
    assert [sequence.video_id for sequence in sequences] == ["../c", "b"]
    np.testing.assert_array_equal(sequences[0].features, values("x", 7))
    np.testing.assert_array_equal(sequences[1].features, values("x", 3))
    np.testing.assert_array_equal(sequences[1].pts_s, [0, 0.5, 1])


def test_segments_of_one_video_are_joined(uri):
    write_sequence(uri, "long", values("x", 25), segment_frames=10)
    (sequence,) = FeatureSet(uri).load(["long"])
    np.testing.assert_array_equal(sequence.features, values("x", 25))
    np.testing.assert_array_equal(sequence.frame_index, np.arange(25))


def test_a_video_stored_in_two_shards_is_refused(uri):
    shard = next(iter((Path(uri) / "shards").iterdir()))
    shard.with_name("copy.parquet").write_bytes(shard.read_bytes())
    with pytest.raises(FeatureSetError, match=r"'[abc]' twice or with gaps"):
        FeatureSet(uri).load(["a"])


def test_a_missing_video_is_named(uri):
    with pytest.raises(FeatureSetError, match="no features of video 'nobody'"):
        FeatureSet(uri).load(["nobody"])
