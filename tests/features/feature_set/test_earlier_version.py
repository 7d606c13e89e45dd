"""A feature set of an earlier version: times by the file's own clock, no `start_s`, and no word of it in the card."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skipreel.features.batching.buckets import BatchPlan
from skipreel.features.batching.stream import stream_features
from skipreel.features.feature_set.card import create_feature_set, read_card, write_card
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
