"""Seeks and drops of the PyAV decoder: no other plan costs less, and the decoder does what the plan predicts."""

import random
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipreel.pipeline.video.pyav import decoder
from skipreel.pipeline.video.pyav.decoder import PyAVDecoder
from skipreel.pipeline.video.pyav.frame_index import FrameIndex, KeyFrame
from skipreel.pipeline.video.pyav.seek_cost import Costs, Wanted, costs_of, seek_pays
from tests.support.seek_plan import State, Step, advance, follow, frame_index, opened, plan
from tests.support.video_kinds import made, sequential
from tests.support.videos import write_video

Choose = Callable[[int, State, Wanted], bool]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@st.composite
def indexes(draw: st.DrawFn) -> FrameIndex:
    """Closed groups of pictures, with B-frames before the frame that they need."""
    order: list[int] = []
    keys: list[KeyFrame] = []
    droppable: set[int] = set()
    with_b_frames = draw(st.booleans())
    for _ in range(draw(st.integers(1, 5))):
        keys.append(KeyFrame(len(order), 10 * len(order), len(order)))
        order.append(len(order))
        for _ in range(draw(st.integers(0, 4))):
            first, held_back = len(order), draw(st.integers(0, 2)) if with_b_frames else 0
            order += [first + held_back, *range(first, first + held_back)]
            droppable |= set(range(first, first + held_back)) if draw(st.booleans()) else set()
    count = len(order)
    delay = draw(st.integers(1, 2)) if with_b_frames else 0
    frame_by_pts = {10 * number: number for number in range(count)}
    return FrameIndex(
        np.arange(count) / 10, count / 10, frame_by_pts, tuple(keys), tuple(order), frozenset(droppable), delay
    )


costs = st.builds(
    Costs,
    seek_s=st.floats(0, 5),
    key_s=st.floats(0.1, 4),
    frame_s=st.floats(0.1, 2),
    dropped_s=st.floats(0, 0.1),
)


def walk(index: FrameIndex, frames: Sequence[int], costs: Costs, choose: Choose) -> list[Step]:
    """A plan in which `choose` decides wherever both ways are possible."""
    wanted, steps, state = Wanted(frozenset(frames), max(frames)), [], opened(index)
    for frame in frames:
        if frame != state.out:
            seek = state.lacks(frame) or choose(frame, state, wanted)
            step, state = advance(index, frame, wanted, costs, state, seek=seek)
            steps.append(step)
    return steps


def seconds(steps: Sequence[Step]) -> float:
    return sum(step.seconds for step in steps)


def wanted_of(data: st.DataObject, index: FrameIndex, most: int) -> list[int]:
    frames = data.draw(st.lists(st.integers(0, len(index.pts_seconds) - 1), min_size=1, max_size=most))
    return sorted(set(frames)) if data.draw(st.booleans()) else frames


@settings(max_examples=200)
@given(index=indexes(), costs=costs, data=st.data())
def test_no_choice_of_seeks_is_cheaper(index: FrameIndex, costs: Costs, data: st.DataObject) -> None:
    frames = wanted_of(data, index, most=6)
    every = []
    for choices in product((False, True), repeat=len(frames)):
        each = iter(choices)
        every.append(seconds(walk(index, frames, costs, lambda *_, each=each: next(each))))
    assert seconds(plan(index, frames, costs)) == pytest.approx(min(every))


@settings(max_examples=200)
@given(index=indexes(), costs=costs, data=st.data())
def test_a_plan_reaches_all_frames_and_costs_at_most_as_much_as_always_or_never_seeking(
    index: FrameIndex, costs: Costs, data: st.DataObject
) -> None:
    frames = wanted_of(data, index, most=40)
    steps = plan(index, frames, costs)
    assert [step.frame for step in steps] == frames
    always, never = (walk(index, frames, costs, lambda *_, seek=seek: seek) for seek in (True, False))
    assert seconds(steps) <= min(seconds(always), seconds(never)) + 1e-9
    kinds = {step.key for step in steps if step.key is not None}
    assert kinds <= set(index.keys)
    # Between two seeks every packet is fed at most once.
    taken, since = 0, 0
    for step in steps:
        taken = step.decoded + step.dropped + (0 if step.key else taken)
        since = step.key.place if step.key else since
        assert taken <= len(index.order) - since


@settings(max_examples=100)
@given(index=indexes(), costs=costs, data=st.data())
def test_what_is_decoded_comes_out_once(index: FrameIndex, costs: Costs, data: st.DataObject) -> None:
    frame = data.draw(st.integers(0, len(index.pts_seconds) - 1))
    wanted = Wanted((frame,), frame)
    _, state = advance(index, frame, wanted, costs, opened(index), seek=True)
    assert state.out == frame
    assert all(inside > frame for inside in state.inside)
    assert state.lacks(frame)
    with pytest.raises(ValueError, match="by decoding on"):
        advance(index, frame, wanted, costs, state, seek=False)


def test_a_frame_that_was_dropped_takes_a_seek() -> None:
    index = FrameIndex(np.arange(4) / 10, 0.4, {}, (KeyFrame(0, 0, 0),), (0, 3, 1, 2), frozenset({1, 2}), delay=1)
    cost, start = Costs(seek_s=0.5, key_s=3, frame_s=1, dropped_s=0.1), State(0, out=4)
    step, state = advance(index, 0, Wanted((0,), 0, candidates=(0, 3)), cost, start, seek=True)
    assert (step.decoded, step.dropped, step.seconds) == (2, 0, 4.5)
    step, state = advance(index, 3, Wanted((3,), 3, candidates=(0, 3)), cost, state, seek=False)
    assert (step.decoded, step.dropped, state.inside) == (0, 2, ())
    assert state.lacks(2)
    _, state = advance(index, 1, Wanted((1,), 1, candidates=(0, 3)), cost, start, seek=True)
    assert [frame for frame in range(4) if state.lacks(frame)] == [0, 1]
    _, state = advance(
        index, 0, Wanted((0,), 0, candidates=()), cost, State(0, out=4, dropped=frozenset({2})), seek=True
    )
    assert not state.lacks(2)  # the decoder starts again
    assert State(4, out=1, inside=(3,), dropped=frozenset({2})).lacks(2)


def test_a_seek_pays_by_what_lies_before_the_key_frame_not_by_what_came_out() -> None:
    order = (0, 3, 1, 2, 4, 7, 5, 6)
    index = FrameIndex(
        np.arange(8) / 10, 0.8, {}, (KeyFrame(0, 0, 0), KeyFrame(4, 40, 4)), order, frozenset({1, 2, 5, 6}), delay=1
    )
    cost = Costs(seek_s=0.5, key_s=3, frame_s=1, dropped_s=0.1)
    key, wanted = index.key_before(7), Wanted((7,), 7)
    assert key is not None
    assert seek_pays(index, key, 1, wanted, cost)  # frame 3 lies between
    assert not seek_pays(index, key, 2, wanted, cost)  # two dropped packets lie between
    assert seek_pays(index, key, 2, Wanted((2, 7), 7), cost)  # one of them is wanted
    assert not seek_pays(index, key, 4, wanted, cost)  # the key frame is the next packet
    assert not seek_pays(index, key, 5, wanted, cost)  # it was fed, though it may not have come out
    assert not seek_pays(index, None, 2, wanted, cost)


def test_costs_grow_with_the_picture() -> None:
    small, large = costs_of(320 * 240), costs_of(1920 * 1080)
    assert 0 < small.dropped_s < small.seek_s < small.frame_s < small.key_s
    assert all(getattr(small, name) < getattr(large, name) for name in Costs.__slots__)


PYRAMID = {"x264-params": "b-pyramid=normal:b-adapt=0"}
FLAT = {"x264-params": "b-pyramid=none:b-adapt=2"}
VIDEOS = [(distance, b, opt) for distance in (1, 4, 12, 250) for b, opt in ((0, {}), (2, FLAT), (3, PYRAMID))]


@pytest.mark.parametrize(("key_distance", "b_frames", "options"), VIDEOS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_as_many_frames_are_decoded_as_predicted(
    folder: Path, key_distance: int, b_frames: int, options: dict[str, str], suffix: str
) -> None:
    path = folder / f"{key_distance}-{b_frames}.{suffix}"
    write_video(path, num_frames=72, key_distance=key_distance, b_frames=b_frames, options=options)
    assert_predicted(path, Costs(seek_s=2.5, key_s=3, frame_s=1, dropped_s=0.1))


@pytest.mark.parametrize("kind", ["mpeg4.mkv", "vp9.webm", "late.mkv", "variable.mp4", "trimmed.mp4"])
def test_as_many_frames_of_other_codecs_and_times_are_decoded_as_predicted(folder: Path, kind: str) -> None:
    assert_predicted(made(folder, kind), costs_of(320 * 240))


@pytest.mark.parametrize("kind", ["b-frames.mp4", "pyramid.mp4", "hevc.mp4", "mpeg4-b-frames.mkv", "ten-bit.mp4"])
def test_droppable_frames_are_those_that_ffmpeg_drops_as_non_reference_frames(folder: Path, kind: str) -> None:
    index = frame_index(made(folder, kind))
    with av.open(str(folder / kind)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.skip_frame = "NONREF"
        kept = {index.frame_by_pts[frame.pts] for frame in container.decode(stream)}
    assert index.droppable
    assert kept == set(range(len(index.pts_seconds))) - index.droppable


@pytest.mark.parametrize("kind", ["no-b-frames.mkv", "mpeg4.mkv", "av1.mp4", "vp9.webm"])
def test_no_frame_is_droppable_without_b_frames_or_where_dropping_is_not_exact(folder: Path, kind: str) -> None:
    assert not frame_index(made(folder, kind)).droppable


def assert_predicted(path: Path, costs: Costs) -> None:
    rng = random.Random(0)
    index = frame_index(path)
    expected = sequential(path)
    count = len(expected)
    choices = [sorted(rng.sample(range(count), size)) for size in (1, 3, 9, 20)]
    for frames in [*choices, [40, 41, 12, 12, 49, 3], range(count), range(0, count, 5)]:
        frames = [frame for frame in frames if frame < count]
        for grid in (None, range(0, count, 2)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(decoder, "costs_of", lambda _: costs)
                video = PyAVDecoder(str(path))
            with video:
                if grid is not None:
                    video.set_candidates(grid)
                steps = plan(index, frames, costs, candidates=grid)
                done = []
                for frame, picture in zip(frames, video.iter_frames_at(frames), strict=True):
                    np.testing.assert_array_equal(picture, expected[frame])
                    done.append(video.num_decoded)
                assert done == list(np.cumsum([step.decoded for step in steps]))


def test_only_candidates_are_kept_and_any_other_frame_is_still_exact(folder: Path) -> None:
    path = folder / "flat.mp4"
    write_video(path, num_frames=120, key_distance=30, b_frames=2, options={"x264-params": "b-adapt=0:b-pyramid=1"})
    expected, wanted, decoded = sequential(path), range(0, 120, 7), []
    for grid in (None, range(0, 120, 7), range(0, 120, 7)):
        with PyAVDecoder(str(path)) as video:
            if grid is not None:
                video.set_candidates(grid)
            for index in wanted:
                np.testing.assert_array_equal(video.get_frame_at(index), expected[index])
            decoded.append(video.num_decoded)
            for index in (118, 7, 8, 9, 10, 4, 61):
                np.testing.assert_array_equal(video.get_frame_at(index), expected[index])
            assert video.num_decoded - decoded[-1] < 60  # one reading of the file from its start is more
    assert decoded[1] == decoded[2] < decoded[0]


def test_dropped_frames_come_back_by_one_seek(folder: Path) -> None:
    path = made(folder, "b-frames.mp4")
    index, expected, costs, lost = frame_index(path), sequential(path), costs_of(64 * 48), 0
    for first in range(14, 22):
        reads = [(first, [first]), *((frame, range(50)) for frame in [*range(first, 24), *range(12, 24)])]
        steps, state = [], opened(index)
        with PyAVDecoder(str(path)) as video:
            for frame, candidates in reads:
                video.set_candidates(candidates)
                np.testing.assert_array_equal(video.get_frame_at(frame), expected[frame])
                step, state = follow(index, frame, Wanted((frame,), frame, candidates), costs, state)
                if not steps:
                    behind = {frame for frame in state.dropped if frame > first}
                    lost += len(behind)
                steps.append(step)
                assert video.num_decoded == sum(step.decoded for step in steps)
        assert [step.frame for step in steps if step.key][-1] == 12
        assert sum(step.key is not None for step in steps) == 2 + bool(behind)
    assert lost > 1
