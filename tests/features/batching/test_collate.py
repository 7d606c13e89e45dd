from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipreel.features.batching.collate import Example, collate, feature_statistics, load_examples
from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.reader import FeatureSet, Sequence
from skipreel.pipeline.manifest import Label, read_manifest
from skipreel.pipeline.manifest.frame_labels import frame_targets
from tests.support.feature_sets import two_class_corpus


def example(length: int, *, classes: int = 2, seed: int = 0) -> Example:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(length, 3)).astype(np.float16)
    sequence = Sequence(f"v{length}", np.arange(length, dtype=np.int32), np.arange(length) / 2, features)
    return Example(sequence, torch.ones(length, classes))


def test_a_class_is_positive_from_its_start_to_its_end_both_included():
    pts = np.array([0.0, 1.0, 2.0, 3.0])
    targets = frame_targets([Label(1, 1.0, 2.0), Label(0, 0.0, float("inf"))], pts, num_classes=3)
    np.testing.assert_array_equal(targets, [[1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0]])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_padding_keeps_every_value_and_adds_only_zeros(lengths):
    examples = [example(length, seed=number) for number, length in enumerate(lengths)]
    batch = collate(examples)
    assert batch.lengths.tolist() == lengths
    for row, original in enumerate(examples):
        length = lengths[row]
        np.testing.assert_array_equal(batch.features[row, :length].numpy(), original.sequence.features)
        assert not batch.features[row, length:].any()
        assert not batch.targets[row, length:].any()
        assert batch.targets[row, :length].all()


def test_statistics_are_those_of_all_frames_together():
    examples = [example(4, seed=1), example(9, seed=2)]
    frames = np.concatenate([e.sequence.features for e in examples]).astype(np.float64)
    mean, deviation = feature_statistics(examples)
    np.testing.assert_allclose(mean, frames.mean(0), rtol=1e-5)
    np.testing.assert_allclose(deviation, frames.std(0), rtol=1e-5)


def test_a_constant_feature_is_not_blown_up():
    constant = example(6)
    constant.sequence.features[:, 1] = 3
    assert feature_statistics([constant])[1][1] == 1


def test_examples_follow_the_split_and_the_task(tmp_path):
    manifest, features = two_class_corpus(tmp_path)
    frames = load_examples(FeatureSet(features), read_manifest(manifest), split="test", task="frames")
    videos = load_examples(FeatureSet(features), read_manifest(manifest), split="test", task="video")
    assert [e.sequence.video_id for e in frames] == [f"video{n}" for n in range(12, 18)]
    assert frames[0].target.shape == (len(frames[0].sequence.pts_s), 2)
    assert [int(e.target) for e in videos] == [0, 1, 0, 1, 0, 1]


def test_an_unknown_split_is_named_with_those_there_are(tmp_path):
    manifest, features = two_class_corpus(tmp_path)
    with pytest.raises(FeatureSetError, match=r"'validation'.*test, train"):
        load_examples(FeatureSet(features), read_manifest(manifest), split="validation", task="frames")


@given(
    st.lists(st.floats(0, 20), min_size=1, max_size=30).map(sorted),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20), st.integers(0, 20) | st.just(float("inf"))), max_size=6),
)
def test_targets_are_what_the_rule_says_of_each_time(times, spans):
    labels = [Label(class_id, min(ends), max(ends)) for class_id, *ends in spans]
    pts = np.array(times)
    expected = [
        [any(label.class_id == c and label.start_s <= t <= label.end_s for label in labels) for c in range(3)]
        for t in times
    ]
    np.testing.assert_array_equal(frame_targets(labels, pts, num_classes=3), expected)


@pytest.mark.parametrize("classes", [(), (0, 1)])
def test_task_video_wants_one_class_for_each_video(tmp_path, classes):
    listing, features = two_class_corpus(tmp_path)
    manifest = read_manifest(listing)
    labels = tuple(Label(class_id) for class_id in classes)
    entries = (*manifest.entries[:-1], replace(manifest.entries[-1], labels=labels))
    with pytest.raises(FeatureSetError, match=rf"'video17' has {len(classes)}: use --task frames"):
        load_examples(FeatureSet(features), replace(manifest, entries=entries), split="test", task="video")
