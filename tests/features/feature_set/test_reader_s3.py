"""A feature set on a real S3 server is written, read, checked and compacted as one on a local disk."""

from typing import TYPE_CHECKING

import numpy as np
import pytest

from skipreel.features.batching.buckets import BatchPlan
from skipreel.features.batching.stream import stream_features
from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set import shard_list
from skipreel.features.feature_set.card import CARD, create_feature_set
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.maintenance.compact import compact
from skipreel.features.maintenance.summary import summarise
from skipreel.features.maintenance.verify import verify
from skipreel.pipeline import storage
from skipreel.pipeline.errors import StorageError
from tests.support.feature_sets import spec, write_sequence

if TYPE_CHECKING:
    from tests.support.s3 import S3Folder

pytest_plugins = ("tests.support.s3",)
LENGTHS = {"a": 3, "b": 700, "c": 12}
DIM = 64


def values(video_id: str) -> np.ndarray:
    return np.random.default_rng(ord(video_id)).normal(size=(LENGTHS[video_id], DIM)).astype(np.float16)


@pytest.fixture
def uri(s3: "S3Folder") -> str:
    uri = s3.join("set")
    create_feature_set(uri, spec(DIM), about={})
    for video_id in LENGTHS:
        write_sequence(uri, video_id, values(video_id), segment_frames=500)
    return uri


def assert_all_come_back(uri: str) -> None:
    for video_id, sequence in zip(LENGTHS, FeatureSet(uri).load(LENGTHS), strict=True):
        np.testing.assert_array_equal(sequence.features, values(video_id))


def test_sequences_come_back(uri):
    assert_all_come_back(uri)
    names = {f"shards/{row['shard']}" for row in FeatureSet(uri).index().to_pylist()}
    assert names == set(storage.list_tree(uri)) - {CARD}


def test_batches_come_back(uri):
    seen = set()
    for batch in stream_features(FeatureSet(uri), BatchPlan(batch_size=2, seed=0), with_times=True):
        for row, video_id in enumerate(batch.video_ids):
            np.testing.assert_array_equal(batch.features[row, : LENGTHS[video_id]].numpy(), values(video_id))
            seen.add(video_id)
    assert seen == set(LENGTHS)


def test_a_video_costs_one_request_and_not_its_whole_shard(uri, s3):
    feature_set = FeatureSet(uri)
    feature_set.index()
    s3.requests.clear()
    batches = list(stream_features(feature_set, BatchPlan(), ["b"]))
    assert len(batches) == 1
    assert [request.split()[0] for request in s3.requests] == ["HEAD", "GET"]


def test_shards_are_merged(uri):
    assert list(verify(uri)) == []
    assert compact(uri).after == 1
    assert_all_come_back(uri)
    assert list(verify(uri)) == []
    assert summarise(uri).num_frames == sum(LENGTHS.values())
    assert [name for name in storage.list_tree(uri) if not name.endswith((".parquet", ".json"))] == []


def test_a_compaction_that_was_interrupted_is_finished(uri, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shard_list, "rename_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compact(uri)
    assert_all_come_back(uri)
    assert compact(uri).before == 1
    assert_all_come_back(uri)


def test_what_is_not_there_is_named(uri, s3):
    with pytest.raises(FeatureSetError, match="not a feature set"):
        FeatureSet(s3.join("nothing"))
    feature_set = FeatureSet(uri)
    feature_set.index()
    for shard in shard_list.shard_uris(uri):
        storage.delete(shard)
    with pytest.raises(StorageError, match="cannot read s3://"):
        feature_set.load(["a"])
