import random
from collections import deque

import numpy as np
import pyarrow as pa
import pytest

from skipreel.features.extraction.planner import Planned
from skipreel.features.extraction.progress import Progress
from skipreel.features.extraction.tracker import MAX_DEATHS, MAX_RETRIES, VideoTracker
from skipreel.features.extraction.work import FrameChunk, VideoJob, VideoOutcome
from skipreel.features.feature_set.schema import Failure, Source
from skipreel.features.feature_set.shard_writer import VideoRows
from skipreel.pipeline.storage import FileStat

FILE_STAT = FileStat(1000, 1)


class Writer:
    """Remembers what it was given: frame numbers by video, and failures."""

    def __init__(self):
        self.frames: dict[str, list[int]] = {}
        self.failures: list[Failure] = []
        self.replaced: list[str] = []

    def add(self, rows, *, replaces=""):
        assert rows.video_id not in self.frames
        self.frames[rows.video_id] = [i for table in rows.tables() for i in table["frame_index"][0].as_py()]
        self.replaced.append(replaces)

    def fail(self, failure, *, replaces=""):
        self.failures.append(failure)
        self.replaced.append(replaces)


def tracker_of(*video_ids: str, replaces: str = "") -> tuple[VideoTracker, Writer]:
    writer = Writer()
    planned = [Planned(VideoJob(video_id, f"{video_id}.mp4"), FILE_STAT, replaces) for video_id in video_ids]
    tracker = VideoTracker(iter(planned), writer=writer, progress=Progress(1, 1), on_failure=lambda _: None)
    return tracker, writer


def chunk(job: VideoJob, first: int, count: int) -> tuple[FrameChunk, np.ndarray]:
    numbers = np.arange(first, first + count)
    made = FrameChunk(job, Source("digest", FILE_STAT), first, numbers.astype(np.int32), numbers / 2)
    return made, np.repeat(numbers[:, None], 3, axis=1).astype(np.float16)


def test_parts_and_ending_in_any_order_make_a_whole_video():
    tracker, writer = tracker_of("a", replaces="shards/x.parquet")
    (planned,) = tracker.more([])
    tracker.receive(*chunk(planned.job, 4, 3))
    tracker.end(VideoOutcome(planned.job, FILE_STAT, num_frames=7))
    assert not writer.frames
    tracker.receive(*chunk(planned.job, 0, 4))
    assert writer.frames == {"a": list(range(7))}
    assert writer.replaced == ["shards/x.parquet"]
    assert not list(tracker.more([]))
    assert tracker.is_done


def test_late_results_of_an_abandoned_attempt_do_not_count():
    tracker, writer = tracker_of("a")
    (planned,) = tracker.more([])
    tracker.receive(*chunk(planned.job, 0, 4))
    tracker.retry(planned.job)
    (again,) = tracker.more([])
    assert again.job.attempt == 1
    tracker.receive(*chunk(planned.job, 4, 3))
    tracker.end(VideoOutcome(planned.job, FILE_STAT, reason="too late to matter"))
    tracker.receive(*chunk(again.job, 0, 7))
    tracker.end(VideoOutcome(again.job, FILE_STAT, num_frames=7))
    assert writer.frames == {"a": list(range(7))}
    assert not writer.failures


def test_late_features_do_not_start_a_failed_video_again():
    tracker, writer = tracker_of("a")
    (planned,) = tracker.more([])
    tracker.fail(planned.job, "bad", FILE_STAT)
    tracker.receive(*chunk(planned.job, 0, 4))
    tracker.end(VideoOutcome(planned.job, FILE_STAT, num_frames=4))
    assert [failure.reason for failure in writer.failures] == ["bad"]
    assert not writer.frames


def test_a_video_that_a_decoder_held_alone_is_blamed_at_the_third_death_and_others_never():
    tracker, writer = tracker_of("good", "bad")
    assigned = list(tracker.more([]))
    tracker.decoder_died(assigned, hung_s=None)
    (good,) = tracker.more([])
    tracker.receive(*chunk(good.job, 0, 1))
    tracker.end(VideoOutcome(good.job, FILE_STAT, num_frames=1))
    for _ in range(MAX_DEATHS):
        assert not writer.failures
        (bad,) = tracker.more([])
        tracker.decoder_died([bad], hung_s=None)
    assert "bad.mp4: the process that decoded it died 3 times" in writer.failures[0].reason
    assert writer.failures[0].file_stat == FILE_STAT
    assert tracker.is_done


def test_a_video_that_hangs_alone_fails_at_once():
    tracker, writer = tracker_of("slow", "other")
    tracker.decoder_died(list(tracker.more([])), hung_s=5.0)
    assert not writer.failures
    (slow,) = tracker.more([])
    tracker.decoder_died([slow], hung_s=5.0)
    assert "within 5 seconds (--time-limit-s)" in writer.failures[0].reason


def test_a_video_is_not_retried_for_ever():
    tracker, writer = tracker_of("a")
    for _ in range(MAX_RETRIES + 1):
        assert not writer.failures
        (planned,) = tracker.more([])
        tracker.retry(planned.job)
    assert "were lost 10 times" in writer.failures[0].reason


def test_a_retried_video_goes_alone():
    tracker, _ = tracker_of("a", "b")
    tracker.decoder_died(list(tracker.more([])), hung_s=None)
    (first,) = tracker.more([])
    assert not list(tracker.more([first]))


def test_a_decoder_holds_no_more_videos_than_it_may():
    planned = [Planned(VideoJob(f"v{number}", f"{number}.mp4"), FILE_STAT, "") for number in range(9)]
    limits = {"videos_per_decoder": 3, "bytes_per_decoder": 10**9}
    tracker = VideoTracker(iter(planned), writer=Writer(), progress=Progress(1, 1), on_failure=lambda _: None, **limits)
    assigned = list(tracker.more([]))
    assert len(assigned) == 3
    assert not list(tracker.more(assigned))
    assert len(list(tracker.more(assigned[1:]))) == 1


def test_rows_are_collected_by_what_the_job_says():
    class Sizes(VideoRows):
        def append(self, frame_index, _, values):
            self.num_frames += len(frame_index)
            self.values = values

        def tables(self):
            return iter([pa.table({"frame_index": [[self.values]]})])

    writer = Writer()
    planned = iter([Planned(VideoJob("a", "a.mp4"), FILE_STAT, "")])
    tracker = VideoTracker(planned, writer=writer, progress=Progress(1, 1), on_failure=lambda _: None, new_rows=Sizes)
    (video,) = tracker.more([])
    tracker.receive(chunk(video.job, 0, 7)[0], 42)
    tracker.end(VideoOutcome(video.job, FILE_STAT, num_frames=7))
    assert writer.frames == {"a": [42]}


@pytest.mark.parametrize("seed", range(30))
def test_every_video_ends_once_and_whole_whatever_is_lost_on_the_way(seed):
    """Random decoders and encoders: blocks come late and out of order, processes die, frames vanish."""
    dice = random.Random(seed)
    lengths = {f"v{number}": dice.randint(1, 9) for number in range(12)}
    broken = {f"v{number}" for number in range(12) if dice.random() < 0.2}
    tracker, writer = tracker_of(*lengths)
    hands: list[deque[Planned]] = [deque(), deque()]
    on_the_way: list[tuple[FrameChunk, np.ndarray]] = []
    deaths = 0
    while not tracker.is_done:
        hand = dice.choice(hands)
        hand.extend(tracker.more(list(hand)))
        if on_the_way and dice.random() < 0.6:
            piece = on_the_way.pop(dice.randrange(len(on_the_way)))
            if dice.random() < 0.05 and deaths < 4:
                deaths += 1
                tracker.retry(piece[0].job)
            else:
                tracker.receive(*piece)
        elif hand and dice.random() < 0.15 and deaths < 2:
            deaths += 1
            tracker.decoder_died(list(hand), hung_s=None)
            hand.clear()
        elif hand:
            job = hand.popleft().job
            if job.video_id in broken:
                tracker.end(VideoOutcome(job, FILE_STAT, reason="broken"))
                continue
            length = lengths[job.video_id]
            cut = dice.randint(0, length)
            on_the_way += [chunk(job, first, last - first) for first, last in ((0, cut), (cut, length)) if last > first]
            tracker.end(VideoOutcome(job, FILE_STAT, num_frames=length))
    assert {failure.video_id for failure in writer.failures} == broken
    assert len(writer.failures) == len(broken)
    assert writer.frames == {name: list(range(length)) for name, length in lengths.items() if name not in broken}


def test_the_plan_goes_on_after_a_pause_only_when_it_is_told_to():
    first, second = (Planned(VideoJob(name, f"{name}.mp4"), FILE_STAT, "") for name in "ab")
    planned = iter([None, first, None, second])
    tracker = VideoTracker(planned, writer=Writer(), progress=Progress(1, 1), on_failure=lambda _: None)
    for expected in ([], [first], [second]):
        tracker.plan_paused = False
        assert list(tracker.more([])) == expected
        assert tracker.plan_paused == (expected != [second])
        assert list(tracker.more([])) == []
    assert not tracker.is_done
