import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from skipreel.features.batching.buckets import BatchPlan
from skipreel.features.batching.collate import collate, load_examples, stream_batches
from skipreel.features.batching.stream import stream_features
from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.card import create_feature_set
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.pipeline.manifest import read_manifest
from tests.support.feature_sets import spec, two_class_corpus, write_sequence

DIM = 4


def length_of(number: int) -> int:
    return 1 + (7 * number) % 23


def values(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(length_of(number), DIM)).astype(np.float16)


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory) -> FeatureSet:
    """Twenty videos in as many shards, segments of ten frames."""
    uri = str(tmp_path_factory.mktemp("set"))
    create_feature_set(uri, spec(DIM), about={})
    for number in range(20):
        write_sequence(uri, f"v{number}", values(number), segment_frames=10)
    return FeatureSet(uri)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_batches_hold_every_video_once_padded_with_zeros(feature_set, dtype, monkeypatch):
    empty = torch.empty
    # What is not written would show.
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))
    seen = []
    for batch in stream_features(feature_set, BatchPlan(batch_size=3, seed=1), dtype=dtype, with_times=True):
        assert batch.features.dtype == getattr(torch, dtype)
        assert batch.features.shape == (len(batch.video_ids), int(batch.lengths.max()), DIM)
        for row, video_id in enumerate(batch.video_ids):
            number, length = int(video_id[1:]), int(batch.lengths[row])
            seen.append(number)
            np.testing.assert_array_equal(batch.features[row, :length].numpy(), values(number))
            assert not batch.features[row, length:].any()
            np.testing.assert_array_equal(batch.pts_s[row, :length].numpy(), np.arange(length) / 2)
            assert batch.pts_s[row, length:].isnan().all()
    assert sorted(seen) == list(range(20))


def test_only_the_videos_asked_for(feature_set):
    batches = stream_features(feature_set, BatchPlan(batch_size=2), ["v3", "v11", "v5", "v3"])
    assert sorted(video_id for batch in batches for video_id in batch.video_ids) == ["v11", "v3", "v5"]
    with pytest.raises(FeatureSetError, match="no features of video 'nobody'"):
        stream_features(feature_set, BatchPlan(), ["v3", "nobody"])


def test_times_only_where_asked_for(feature_set):
    assert next(stream_features(feature_set, BatchPlan())).pts_s is None


def test_the_same_seed_and_epoch_give_the_same_batches(feature_set):
    def order(**plan: int) -> list[tuple[str, ...]]:
        return [batch.video_ids for batch in stream_features(feature_set, BatchPlan(batch_size=4, **plan))]

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    assert len({tuple(order(seed=1, epoch=epoch)) for epoch in range(4)}) == 4
    assert order(seed=1, epoch=2) != order(seed=2, epoch=2)


def test_workers_share_the_videos(feature_set):
    shares = []
    for rank in range(3):
        batches = list(stream_features(feature_set, BatchPlan(batch_size=4, seed=0, rank=rank, world_size=3)))
        shares.append((len(batches), {video_id for batch in batches for video_id in batch.video_ids}))
    assert len({count for count, _ in shares}) == 1
    assert sum(len(videos) for _, videos in shares) == 20
    assert set.union(*(videos for _, videos in shares)) == feature_set.video_ids()


def test_a_stream_may_be_left_in_the_middle_and_started_again(feature_set):
    stream = stream_features(feature_set, BatchPlan(batch_size=2, seed=0))
    first = next(stream)
    stream.close()
    again = next(stream_features(feature_set, BatchPlan(batch_size=2, seed=0)))
    assert first.video_ids == again.video_ids
    assert torch.equal(first.features, again.features)


def test_damage_that_comes_while_streaming_is_raised_to_the_caller(tmp_path):
    create_feature_set(str(tmp_path), spec(DIM), about={})
    for number in range(3):
        write_sequence(str(tmp_path), f"v{number}", values(number))
    feature_set = FeatureSet(str(tmp_path))
    feature_set.index()
    for shard in (tmp_path / "shards").iterdir():
        shard.unlink()
    with pytest.raises(Exception, match="cannot read"):
        list(stream_features(feature_set, BatchPlan(batch_size=1)))


@pytest.mark.parametrize("task", ["frames", "video"])
def test_streamed_batches_are_those_of_examples_in_memory(tmp_path: Path, task):
    manifest, features = two_class_corpus(tmp_path)
    listing, feature_set = read_manifest(manifest), FeatureSet(features)
    examples = {e.sequence.video_id: e for e in load_examples(feature_set, listing, split="train", task=task)}
    seen: list[str] = []
    for batch in stream_batches(feature_set, listing, BatchPlan(batch_size=5, seed=3), split="train", task=task):
        expected = collate([examples[video_id] for video_id in batch.video_ids])
        for name in ("features", "lengths", "targets"):
            assert torch.equal(getattr(batch, name), getattr(expected, name)), name
            assert getattr(batch, name).dtype == getattr(expected, name).dtype
        seen += batch.video_ids
    assert sorted(seen) == sorted(examples)


def test_what_is_wrong_with_a_split_is_said_before_the_first_batch(tmp_path: Path):
    manifest, features = two_class_corpus(tmp_path)
    with pytest.raises(FeatureSetError, match=r"no video of split 'validation'.*test, train"):
        stream_batches(FeatureSet(features), read_manifest(manifest), BatchPlan(), split="validation", task="frames")


def test_a_stream_holds_two_batches_besides_the_callers(feature_set, monkeypatch):
    empty, made, alive = torch.empty, [], []

    def counted(*shape: object, **options: object) -> torch.Tensor:
        tensor = empty(*shape, **options)
        made.append(weakref.ref(tensor))
        alive.append(sum(reference() is not None for reference in made))
        return tensor

    monkeypatch.setattr(torch, "empty", counted)
    for batch in stream_features(feature_set, BatchPlan(batch_size=1, seed=0)):
        assert len(batch.video_ids) == 1
    assert len(made) == 20
    assert max(alive) <= 3
