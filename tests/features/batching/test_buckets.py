import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipreel.features.batching.buckets import BatchPlan, shuffled_batches
from skipreel.features.errors import FeatureSetError

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=60).map(lambda lengths: np.array(lengths, np.int64))
PLANS = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 20),
        "max_frames": st.none() | st.integers(1, 2000),
        "seed": st.none() | st.integers(0, 5),
        "epoch": st.integers(0, 5),
    }
)


@given(LENGTHS, PLANS, st.integers(1, 7))
def test_workers_get_equally_many_batches_and_no_video_twice(num_frames, options, world_size):
    if len(num_frames) < world_size:
        with pytest.raises(FeatureSetError, match="cannot be shared"):
            BatchPlan(**options, world_size=world_size).batches(num_frames)
        return
    shares = [BatchPlan(**options, rank=rank, world_size=world_size).batches(num_frames) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    assert all(len(batch) > 0 for batch in batches)
    videos = np.concatenate(batches)
    assert len(set(videos.tolist())) == len(videos)
    if any(len(batch) > 1 for batch in batches):
        assert len(videos) == len(num_frames)
    else:
        assert len(videos) == len(num_frames) - len(num_frames) % world_size


@given(LENGTHS, PLANS)
def test_no_batch_is_larger_than_allowed(num_frames, options):
    for batch in BatchPlan(**options).batches(num_frames):
        assert len(batch) <= options["batch_size"]
        if options["max_frames"] and len(batch) > 1:
            assert len(batch) * num_frames[batch].max() <= options["max_frames"]


@pytest.mark.parametrize("seed", range(20))
def test_nor_is_one_where_a_longer_video_comes_before_a_shorter_one(seed):
    num_frames = np.random.default_rng(seed).integers(95, 106, 200)
    for batch in BatchPlan(batch_size=100, max_frames=1020, seed=seed).batches(num_frames):
        assert len(batch) * num_frames[batch].max() <= 1020


def test_without_a_seed_batches_are_as_full_as_they_may_be():
    batches = BatchPlan(batch_size=3, max_frames=20).batches(np.array([9, 5, 6, 50, 4, 7]))
    assert [batch.tolist() for batch in batches] == [[4, 1, 2], [5, 0], [3]]


def test_videos_of_a_batch_are_of_similar_length_and_meet_others_each_epoch():
    num_frames = np.random.default_rng(0).integers(20, 400, 1000)
    padded = 0
    meetings = []
    for epoch in range(2):
        batches = BatchPlan(batch_size=16, seed=0, epoch=epoch).batches(num_frames)
        padded += sum(len(batch) * num_frames[batch].max() for batch in batches)
        meetings.append({frozenset(batch.tolist()) for batch in batches})
    assert padded / 2 < 1.08 * num_frames.sum()
    assert len(meetings[0] & meetings[1]) < 5


def test_batches_do_not_come_by_length_when_shuffled():
    num_frames = np.arange(1, 1001)
    longest = [num_frames[batch].max() for batch in BatchPlan(batch_size=10, seed=0).batches(num_frames)]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3


def test_at_each_step_the_workers_have_batches_of_similar_length():
    num_frames = np.arange(1, 1001)
    shares = [BatchPlan(batch_size=10, seed=0, rank=rank, world_size=2).batches(num_frames) for rank in range(2)]
    for first, second in zip(*shares, strict=True):
        assert abs(int(num_frames[first].max()) - int(num_frames[second].max())) < 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, it must be at least 1"),
        ({"max_frames": 0}, "max_frames is 0, it must be at least 1"),
        ({"seed": -1}, "seed is -1, it must be at least 0"),
        ({"epoch": -1}, "epoch is -1, it must be at least 0"),
        ({"world_size": 0}, "world_size is 0, it must be at least 1"),
        ({"rank": 2, "world_size": 2}, "rank is 2, it must be 0 to 1"),
    ],
)
def test_numbers_out_of_range_are_named(options, message):
    with pytest.raises(FeatureSetError, match=message):
        BatchPlan(**options)


@given(st.integers(1, 200), st.integers(1, 70), st.integers(0, 5), st.integers(0, 5))
def test_a_shuffled_epoch_has_each_video_once_in_batches_of_the_size_asked_for(num_videos, batch_size, seed, epoch):
    batches = shuffled_batches(num_videos, batch_size=batch_size, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(num_videos))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    again = shuffled_batches(num_videos, batch_size=batch_size, seed=seed, epoch=epoch)
    assert all((one == other).all() for one, other in zip(batches, again, strict=True))


def test_no_two_seeds_or_epochs_share_an_order():
    orders = [
        tuple(np.concatenate(shuffled_batches(20, batch_size=4, seed=seed, epoch=epoch)).tolist())
        for seed in range(5)
        for epoch in range(5)
    ]
    assert len(set(orders)) == len(orders)
