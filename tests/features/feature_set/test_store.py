import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skipreel.features.batching.buckets import BatchPlan
from skipreel.features.batching.stream import stream_features
from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.card import CARD, create_feature_set, read_card, write_card
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.feature_set.schema import SHARD_SCHEMA
from skipreel.features.feature_set.shard_file import write_rows
from skipreel.features.maintenance.compact import compact
from skipreel.features.maintenance.verify import verify
from skipreel.pipeline import storage
from tests.support.feature_sets import spec, write_sequence


@pytest.fixture
def uri(tmp_path):
    uri = str(tmp_path / "features")
    create_feature_set(uri, spec(), about={"backbone": "numbers"})
    return uri


def values(length: int) -> np.ndarray:
    return np.random.default_rng(length).normal(size=(length, 5)).astype(np.float16)


def test_sequences_come_back_bit_equal_and_in_the_order_asked_for(uri):
    for video_id, length in (("b", 3), ("a", 1), ("../c", 7)):
        write_sequence(uri, video_id, values(length))
    sequences = FeatureSet(uri).load(["../c", "b"])
    assert [sequence.video_id for sequence in sequences] == ["../c", "b"]
    np.testing.assert_array_equal(sequences[0].features, values(7))
    np.testing.assert_array_equal(sequences[1].features, values(3))
    np.testing.assert_array_equal(sequences[1].pts_s, [0, 0.5, 1])


def test_segments_of_one_video_are_joined(uri):
    write_sequence(uri, "long", values(25), segment_frames=10)
    (sequence,) = FeatureSet(uri).load(["long"])
    np.testing.assert_array_equal(sequence.features, values(25))
    np.testing.assert_array_equal(sequence.frame_index, np.arange(25))


def test_shards_have_the_documented_schema_and_stay_inside_the_folder(uri, tmp_path):
    write_sequence(uri, "../../escape", values(2))
    (shard,) = (tmp_path / "features" / "shards").iterdir()
    assert pq.read_schema(shard).remove_metadata().equals(SHARD_SCHEMA)
    assert not list(tmp_path.parent.glob("*escape*"))


def test_writing_a_shard_again_replaces_it(uri):
    write_sequence(uri, "a", values(4))
    write_sequence(uri, "a", values(4))
    assert len(FeatureSet(uri).load(["a"])[0].features) == 4


def test_a_video_stored_in_two_shards_is_refused(uri):
    write_sequence(uri, "a", values(4))
    shard = next(iter((Path(uri) / "shards").iterdir()))
    shard.with_name("copy.parquet").write_bytes(shard.read_bytes())
    with pytest.raises(FeatureSetError, match="'a' twice or with gaps"):
        FeatureSet(uri).load(["a"])


def test_a_missing_video_is_named(uri):
    with pytest.raises(FeatureSetError, match="no features of video 'nobody'"):
        FeatureSet(uri).load(["nobody"])


def test_another_recipe_is_refused_and_the_same_one_accepted(uri):
    create_feature_set(uri, spec(), about={})
    with pytest.raises(FeatureSetError, match="another recipe"):
        create_feature_set(uri, spec(weights="cd" * 32), about={})


def test_what_a_killed_writer_left_is_removed_and_nothing_else(uri, tmp_path):
    write_sequence(uri, "a", values(2))
    left = tmp_path / "features" / "shards" / ".x.parquet.1234abcd.tmp"
    left.write_bytes(b"PAR1")
    create_feature_set(uri, spec(), about={})
    assert not left.exists()
    assert FeatureSet(uri).video_ids() == {"a"}


def test_id_follows_from_weights_not_from_where_they_lie():
    moved = dataclasses.replace(spec(), backbone="hf:elsewhere")
    assert moved.feature_set_id == spec().feature_set_id
    assert spec(dim=6).feature_set_id != spec().feature_set_id


def test_a_damaged_card_is_one_clear_line(uri, tmp_path):
    card = tmp_path / "features" / CARD
    content = json.loads(card.read_text())
    content["recipe"]["dim"] = 7
    card.write_text(json.dumps(content))
    with pytest.raises(FeatureSetError, match="does not follow from its recipe"):
        FeatureSet(uri)
    card.write_text("{")
    with pytest.raises(FeatureSetError, match="is damaged"):
        FeatureSet(uri)


def test_a_folder_without_card_is_not_a_feature_set(tmp_path):
    with pytest.raises(FeatureSetError, match="not a feature set"):
        FeatureSet(str(tmp_path))


@pytest.fixture
def old(tmp_path):
    """A feature set of an earlier version: times by the clock of an MPEG-TS file, no `start_s`, no word of it."""
    uri = str(tmp_path / "old")
    create_feature_set(uri, spec(), about={})
    card = read_card(uri)
    del card["times"]
    write_card(uri, card)
    table = pa.table(
        {
            "video_id": ["a", "a"],
            "segment": [0, 1],
            "frame_index": [[0, 10], [20]],
            "pts_s": [[1.4, 1.8], [2.4]],
            "features": [values(2).reshape(-1).tolist(), values(1).reshape(-1).tolist()],
            "dim": [5, 5],
            "source_digest": ["d"] * 2,
            "source_bytes": [1] * 2,
            "source_modified": [None] * 2,
        }
    )
    fields = [field for field in SHARD_SCHEMA if field.name != "start_s"]
    write_rows(storage.join(uri, "shards", "a.parquet"), [table.cast(pa.schema(fields))])
    return uri


def test_times_of_a_set_of_an_earlier_version_are_read_from_the_first_frame_on(old):
    (sequence,) = FeatureSet(old).load(["a"])
    assert sequence.pts_s.tolist() == [0, 0.4, 1.0]
    (batch,) = stream_features(FeatureSet(old), BatchPlan(), with_times=True)
    assert batch.pts_s.tolist() == [[0, 0.4, 1.0]]


def test_a_set_of_an_earlier_version_is_gone_on_with_as_it_is(old):
    create_feature_set(old, spec(), about={})
    write_sequence(old, "b", values(3), segment_frames=2, start_s=3600.0)
    stored = pq.read_table(Path(old) / "shards").to_pylist()
    assert all("start_s" not in row for row in stored)
    assert [row["pts_s"] for row in stored if row["video_id"] == "b"] == [[3600, 3600.5], [3601]]
    assert list(verify(old)) == []
    assert compact(old).after == 1
    assert list(verify(old)) == []
    assert [sequence.pts_s.tolist() for sequence in FeatureSet(old).load(["b", "a"])] == [[0, 0.5, 1], [0, 0.4, 1]]
    assert "times" not in read_card(old)


def test_a_shard_of_an_earlier_version_in_a_new_set_is_found(uri, old):
    write_sequence(uri, "b", values(3), start_s=1.4)
    assert list(verify(uri)) == []
    assert pq.read_table(Path(uri) / "shards")["start_s"].to_pylist() == [1.4]
    (shard,) = (Path(old) / "shards").iterdir()
    shutil.copy(shard, Path(uri) / "shards")
    (problem,) = verify(uri)
    assert "other columns than a shard" in problem


def test_what_says_how_times_count_does_not_enter_the_id(uri, old):
    assert read_card(uri)["id"] == read_card(old)["id"] == spec().feature_set_id
