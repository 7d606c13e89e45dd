"""Whatever the order of events: each video gets its own frames and one outcome, and all that was opened is closed.

A video is here a list of chunks of frames. An eager one wants the next chunk as soon as one is decoded, as a schedule
does, another one only when it is encoded, as a gate does.
"""

from types import SimpleNamespace

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from skipreel.jobs.closed_loop.queue import Decode, Encode, Finish, Open, QueuedVideo, VideoQueue
from skipreel.jobs.closed_loop.session import DecodedFrames, Request

NOTHING = np.empty(0, np.int64)
VIDEOS = st.lists(st.tuples(st.booleans(), st.lists(st.integers(1, 3), min_size=1, max_size=4)), min_size=1, max_size=5)


class FakeSession:
    """Which chunks are wanted next, and what came of them."""

    def __init__(self, key: str, chunk_sizes: list[int], *, is_eager: bool) -> None:
        self.key, self.is_eager, self.is_open = key, is_eager, True
        self.chunks = np.split(np.arange(sum(chunk_sizes)), np.cumsum(chunk_sizes)[:-1])
        self.num_asked = 0
        self.is_encoded = np.zeros(sum(chunk_sizes), np.bool_)

    def next_wanted(self) -> np.ndarray:
        self.num_asked += 1
        return self.chunks[self.num_asked - 1] if self.num_asked <= len(self.chunks) else NOTHING

    def encode(self, decoded: DecodedFrames) -> np.ndarray:
        """Takes a chunk, each once."""
        assert decoded.session is self
        assert decoded.frames == [(self.key, step) for step in decoded.steps]
        assert not self.is_encoded[decoded.steps].any()
        self.is_encoded[decoded.steps] = True
        return NOTHING if self.is_eager else self.next_wanted()

    @property
    def is_complete(self) -> bool:
        return bool(self.is_encoded.all())


class QueueMachine(RuleBasedStateMachine):
    """Jobs that were taken end in any order, and well or not."""

    @initialize(videos=VIDEOS, in_flight=st.integers(1, 5), batch_size=st.integers(3, 6))
    def begin(self, videos: list[tuple[bool, list[int]]], in_flight: int, batch_size: int) -> None:
        self.in_flight, self.batch_size = in_flight, batch_size
        self.queue = VideoQueue(in_flight=in_flight, batch_size=batch_size)
        self.videos: dict[str, tuple[bool, list[int]]] = {}
        self.jobs: list[Open | Decode | Encode | Finish] = []  # taken, not ended
        self.to_close: list[QueuedVideo] = []
        self.sessions: list[FakeSession] = []
        self.begun: set[str] = set()
        self.outcomes: dict[str, bool] = {}  # whether there is a prediction
        self.is_closed = False
        self.add(videos)

    @rule(videos=VIDEOS)
    @precondition(lambda self: not self.is_closed)
    def add(self, videos: list[tuple[bool, list[int]]]) -> None:
        new = {f"v{len(self.videos) + number}": video for number, video in enumerate(videos)}
        self.videos |= new
        self.queue.add(Request(key, key) for key in new)

    @rule(count=st.integers(1, 6), kind=st.sampled_from(["job", "decoding", "encoding"]))
    @precondition(lambda self: len(self.jobs) < 6)
    def take_jobs(self, count: int, kind: str) -> None:
        for _ in range(count):
            self.take(kind)

    def take(self, kind: str) -> None:
        job = getattr(self.queue, f"next_{kind}")()
        if job is None:
            return
        assert not self.is_closed
        if isinstance(job, Encode):
            assert 0 < sum(len(frames.frames) for _, frames in job.batch) <= self.batch_size
        else:
            assert job.video not in [other.video for other in self.decoding], "two workers in one decoder"
        if isinstance(job, Open):
            self.begun.add(job.video.request.key)
        elif isinstance(job, Decode):
            assert job.video.session.is_open
        self.jobs.append(job)

    @property
    def decoding(self) -> list[Open | Decode]:
        return [job for job in self.jobs if isinstance(job, Open | Decode)]

    @rule(data=st.data(), goes_well=st.sampled_from([True] * 3 + [False]))
    @precondition(lambda self: self.jobs)
    def end_a_job(self, data: st.DataObject, goes_well: bool) -> None:
        self.end(self.jobs.pop(data.draw(st.integers(0, len(self.jobs) - 1))), goes_well)

    def end(self, job: Open | Decode | Encode | Finish, goes_well: bool) -> None:
        if isinstance(job, Encode):
            for video, frames in job.batch:
                if goes_well:
                    wanted = video.session.encode(frames)
                    self.queue.encoded(video, wanted, is_complete=video.session.is_complete)
                else:
                    self.tell(video, self.queue.ended(video, None, "backbone"))
            return
        video = job.video
        if isinstance(job, Finish):
            assert video.session.is_complete
            self.tell(video, self.queue.ended(video, SimpleNamespace(key=video.session.key) if goes_well else None))
        elif not goes_well:
            self.tell(video, self.queue.decoder_failed(video, "decoder"))
        elif isinstance(job, Open):
            key = video.request.key
            is_eager, chunk_sizes = self.videos[key]
            session = FakeSession(key, chunk_sizes, is_eager=is_eager)
            self.sessions.append(session)
            self.tell(video, self.queue.opened(video, session, session.next_wanted()))
        else:
            session = video.session
            frames = DecodedFrames(session, job.steps, [(session.key, step) for step in job.steps])
            wanted = session.next_wanted() if session.is_eager else NOTHING
            self.tell(video, self.queue.decoded(video, frames, wanted))

    def tell(self, video: QueuedVideo, must_close: bool) -> None:
        if must_close:
            self.to_close.append(video)

    @rule(data=st.data())
    @precondition(lambda self: len(self.decoding) > 1)
    def give_up(self, data: st.DataObject) -> None:
        video = data.draw(st.sampled_from(self.decoding)).video
        assert not self.queue.ended(video, None, "late"), "its worker is to close it"

    @rule()
    @precondition(lambda self: self.to_close)
    def close_a_video(self) -> None:
        video = self.to_close.pop()
        assert video not in [job.video for job in self.decoding], "it is in a decoder"
        assert video.session.is_open, "it is closed already"
        video.session.is_open = False
        self.queue.closed(video)

    @rule()
    def take_outcomes(self) -> None:
        for outcome in self.queue.take_outcomes():
            assert outcome.request.key not in self.outcomes, "two outcomes"
            assert outcome.prediction is None or outcome.prediction.key == outcome.request.key
            self.outcomes[outcome.request.key] = outcome.prediction is not None

    @rule()
    @precondition(lambda self: not self.is_closed and len(self.begun) > 4)
    def close(self) -> None:
        self.is_closed = True
        self.to_close += self.queue.close()

    @invariant()
    def no_more_are_open_than_may_be(self) -> None:
        has_outcome = set(self.outcomes) | {outcome.request.key for outcome in self.queue.outcomes}
        assert len(self.begun - has_outcome) <= self.in_flight
        held = {video.request.key for video in [*self.to_close, *(job.video for job in self.decoding)]}
        assert {session.key for session in self.sessions if session.is_open} & has_outcome <= held

    def teardown(self) -> None:
        """What was begun comes to its end, and nothing is left."""
        while True:
            if not self.jobs and not self.to_close:
                self.take("job")
                if not self.jobs:
                    break
            while self.jobs:
                self.end(self.jobs.pop(), goes_well=True)
            while self.to_close:
                self.close_a_video()
        self.take_outcomes()
        assert not any(session.is_open for session in self.sessions)
        if not self.is_closed:
            assert set(self.outcomes) == set(self.videos)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=300, stateful_step_count=80, deadline=None)


def test_nothing_more_is_decoded_while_two_batches_wait_for_the_encoder() -> None:
    queue = VideoQueue(in_flight=9, batch_size=4)
    queue.add(Request(f"v{number}", "") for number in range(9))
    for _ in range(8):
        video = queue.next_decoding().video
        queue.opened(video, None, np.array([0]))
        job = queue.next_decoding()
        queue.decoded(video, DecodedFrames(None, job.steps, [None]), NOTHING)
    assert queue.next_decoding() is None
    assert len(queue.next_job().batch) == 4
    assert isinstance(queue.next_decoding(), Open)


def test_a_video_that_has_failed_fails_once_and_is_not_decoded_further() -> None:
    queue = VideoQueue(in_flight=1, batch_size=1)
    queue.add([Request("v", "")])
    video, session = queue.next_decoding().video, FakeSession("v", [1, 1, 1], is_eager=True)
    queue.opened(video, session, session.next_wanted())
    for _ in range(2):
        job = queue.next_decoding()
        queue.decoded(video, DecodedFrames(session, job.steps, [None]), session.next_wanted())
    assert len(queue.next_encoding().batch) == len(queue.next_encoding().batch) == 1
    assert queue.ended(video, None, "first"), "it is to be closed"
    assert not queue.ended(video, None, "second"), "it is being closed"
    assert queue.next_decoding() is None
    queue.closed(video)
    assert [outcome.reason for outcome in queue.take_outcomes()] == ["first"]
