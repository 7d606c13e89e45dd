"""Many videos in flight: whose frame it is never gets lost, and what one video does reaches no other."""

import math
import queue
import sys
import threading
import time
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from skipreel.features.backbones.backbone import Backbone
from skipreel.features.spec import FeatureSpec
from skipreel.jobs.closed_loop.queue import Outcome
from skipreel.jobs.closed_loop.scheduler import Scheduler, SchedulerSettings
from skipreel.jobs.closed_loop.session import ClosedLoopSession, Request, ScheduledSession
from skipreel.jobs.trained.model import TrainedModel
from skipreel.models import StridedGate
from skipreel.pipeline.errors import VideoError
from skipreel.pipeline.video import Frame, VideoDecoder
from skipreel.pipeline.video.sampling import Sampling
from tests.support.models import untrained

DIM = 16
MAX_FRAMES = 1000


@dataclass
class World:
    """The videos of a test: what their decoder does, and what was seen of it."""

    seed: int = 0
    delay_s: float = 0.0
    encode_s: float = 0.0
    lengths: dict[str, int] = field(default_factory=dict)
    broken_at: dict[str, int] = field(default_factory=dict)  # -1: cannot be opened
    unencodable: dict[str, int] = field(default_factory=dict)
    blocked_in_open: dict[str, threading.Event] = field(default_factory=dict)
    blocked: dict[str, threading.Event] = field(default_factory=dict)
    blocked_at_end: dict[str, threading.Event] = field(default_factory=dict)
    unclosable: str = ""
    opened: int = 0
    most_opened: int = 0
    waiting_frames: int = 0
    most_waiting_frames: int = 0
    batches: list[int] = field(default_factory=list)
    decoders: set[threading.Thread] = field(default_factory=set)
    now_in_blocked: queue.Queue[str] = field(default_factory=queue.Queue)
    threads_of_torch: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def number(self, uri: str) -> int:
        return list(self.lengths).index(uri)

    def pause(self) -> None:
        if self.delay_s:
            with self.lock:
                seconds = Random(self.seed).uniform(0, self.delay_s)
                self.seed += 1
            time.sleep(seconds)

    def end(self) -> None:
        """Wait until every other thread that was in a decoder has ended, such as those of a closed scheduler."""
        for thread in self.decoders - {threading.current_thread()}:
            thread.join(timeout=20)
            assert not thread.is_alive()


class FakeVideo(VideoDecoder):
    """Frames that carry the number of their video and their own; one user at a time, as with a real decoder."""

    def __init__(self, world: World, uri: str) -> None:
        world.decoders.add(threading.current_thread())
        world.pause()
        if event := world.blocked_in_open.get(uri):
            event.wait(20)
        if world.broken_at.get(uri) == -1:
            raise VideoError(f"{uri} cannot be opened")
        self.world, self.uri = world, uri
        self.pts_seconds = np.arange(world.lengths[uri]) / 10
        self.duration_s = len(self.pts_seconds) / 10
        self.count = 0
        self.in_use = threading.Lock()
        self.is_closed = False
        with world.lock:
            world.opened += 1
            world.most_opened = max(world.most_opened, world.opened)

    @property
    def num_decoded(self) -> int:
        return self.count

    def get_frame_at(self, index: int) -> Frame:
        assert self.in_use.acquire(blocking=False), "two threads in one decoder"
        assert not self.is_closed
        world = self.world
        world.decoders.add(threading.current_thread())
        if event := world.blocked.get(self.uri):
            world.now_in_blocked.put(self.uri)
            event.wait(20)
        world.pause()
        if world.broken_at.get(self.uri) == index:
            if self.uri == "exits":
                sys.exit("no")
            if self.uri == "interrupted":
                raise KeyboardInterrupt
            raise VideoError(f"{self.uri}: frame {index} could not be decoded")
        self.count += 1
        with world.lock:
            world.waiting_frames += 1
            world.most_waiting_frames = max(world.most_waiting_frames, world.waiting_frames)
        self.in_use.release()
        return np.full((1, 1, 3), [world.number(self.uri), index // 256, index % 256], np.uint8)

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            if event := self.world.blocked_at_end.get(self.uri):
                event.wait(20)
            with self.world.lock:
                self.world.opened -= 1
            if self.uri == self.world.unclosable:
                raise OSError("cannot be closed")


def code(video: int, index: int) -> np.ndarray:
    """The feature (DIM,) of a frame: noise that only this frame of this video has."""
    return np.random.default_rng(video * MAX_FRAMES + index).normal(size=DIM).astype(np.float16)


class FakeBackbone(Backbone):
    """Knows a frame by its pixel."""

    def encode(self, frames):
        world = worlds["now"]
        time.sleep(world.encode_s)
        with world.lock:
            world.waiting_frames -= len(frames)
            world.batches.append(len(frames))
            world.threads_of_torch.add(torch.get_num_threads())
        numbers = [(int(f[0, 0, 0]), 256 * int(f[0, 0, 1]) + int(f[0, 0, 2])) for f in frames]
        names = list(world.lengths)
        if any(world.unencodable.get(names[video]) == index for video, index in numbers):
            raise RuntimeError("cannot encode this")
        return np.stack([code(*number) for number in numbers])


worlds: dict[str, World] = {}


def decode(uri: str) -> VideoDecoder:
    return FakeVideo(worlds["now"], uri)


def backbone(device: str = "cpu") -> FakeBackbone:
    nothing = {"prepare": lambda x: x, "network": lambda x: x}
    return FakeBackbone("fake", "", "pooled", "float32", DIM, "0", {}, **nothing, device=torch.device(device))


def model(gate=None, *, task="frames", cell="gru", seed=0) -> TrainedModel:
    spec = FeatureSpec("fake", "0", {}, Sampling(10.0), DIM)
    return untrained(spec, gate=gate, task=task, cell=cell, seed=seed, spread=0.5)


def make_scheduler(
    network: TrainedModel | None = None, *, device: str = "cpu", num_workers: int = 1, **settings
) -> Scheduler:
    how = SchedulerSettings(**{"decoder": f"{__name__}:decode", "in_flight": 16, "time_limit_s": math.inf} | settings)
    return Scheduler(network or model(), backbone(device), how, num_workers=num_workers)


def label(world: World, network: TrainedModel, *, device: str = "cpu", **settings) -> dict[str, Outcome]:
    worlds["now"] = world
    with make_scheduler(network, device=device, **settings) as scheduler:
        outcomes = list(scheduler.run(Request(uri, uri) for uri in world.lengths))
    assert len(outcomes) == len(world.lengths)
    world.end()
    assert world.opened == 0
    return {outcome.request.key: outcome for outcome in outcomes}


def alone(world: World, uri: str, network: TrainedModel) -> tuple[np.ndarray, np.ndarray]:
    """Scores and gates of one video by the layers' forward pass over all its features."""
    features = np.stack([code(world.number(uri), index) for index in range(world.lengths[uri])])
    with torch.inference_mode():
        logits, gates = network.recognizer(torch.from_numpy(features)[None], torch.tensor([len(features)]))
    scores = logits[0].sigmoid() if network.recognizer.config.task == "frames" else logits[0].softmax(-1)
    return scores.numpy(), gates[0].numpy() > 0.5


def many(count: int, *, seed: int = 0, longest: int = 60) -> dict[str, int]:
    random = Random(seed)
    return {f"v{number}": random.randint(1, longest) for number in range(count)}


def assert_right(outcome: Outcome, world: World, network: TrainedModel, uri: str) -> None:
    scores, used = alone(world, uri, network)
    np.testing.assert_array_equal(outcome.prediction.used, used, err_msg=uri)
    np.testing.assert_allclose(outcome.prediction.scores, scores, atol=1e-5, err_msg=uri)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("gate", "dense", "task", "cell"),
    [
        (None, False, "frames", "gru"),
        (None, False, "video", "lstm"),
        (None, True, "frames", "lstm"),
        (StridedGate(3.5), False, "frames", "gru"),
    ],
)
def test_every_frame_comes_back_to_its_own_video_whatever_the_order(seed, gate, dense, task, cell):
    world = World(seed=seed, delay_s=0.002, lengths=many(60, seed=seed))
    network = model(gate, task=task, cell=cell, seed=seed)
    outcomes = label(world, network, num_workers=5, in_flight=20, dense=dense)
    for uri in world.lengths:
        assert_right(outcomes[uri], world, network, uri)


def test_only_what_the_gate_asks_for_is_decoded_and_encoded():
    world, network = World(lengths=many(20, longest=200)), model()
    for outcome in label(world, network, num_workers=3).values():
        cost = outcome.prediction.cost
        looks = outcome.prediction.used.sum()
        counts = (cost.frames_wanted, cost.frames_decoded, cost.frames_converted, cost.frames_encoded)
        assert counts == (looks,) * 4
        assert cost.state_updates == looks < cost.frames_total or cost.frames_total < 5
    assert max(world.batches) > 1, "nothing was gathered across videos"


@pytest.mark.parametrize("dense", [True, False])
def test_a_gpu_has_a_thread_of_its_own_that_takes_what_is_there(dense):
    world, network = World(delay_s=0.001, lengths={**many(80), "bad": 30}, broken_at={"bad": 0}), model()
    world.encode_s = 0.02  # decoders are ahead
    outcomes = label(world, network, device="cuda", num_workers=4, in_flight=60, dense=dense)
    assert "frame 0" in outcomes.pop("bad").reason
    for uri, outcome in outcomes.items():
        assert_right(outcome, world, network, uri)
    assert 4 < max(world.batches) <= 64
    assert world.most_waiting_frames <= 2 * 64 + 4 * 64


def test_results_do_not_depend_on_what_runs_beside_them_to_the_last_bit():
    network = model()
    runs = [
        label(World(seed=seed, delay_s=delay_s, lengths=many(30)), network, num_workers=workers, in_flight=in_flight)
        for seed, (delay_s, workers, in_flight) in enumerate([(0, 0, 1), (0, 1, 30), (0.002, 4, 9)])
    ]
    for other in runs[1:]:
        for uri, outcome in runs[0].items():
            np.testing.assert_array_equal(outcome.prediction.scores, other[uri].prediction.scores)


def test_a_broken_video_fails_alone_and_says_why():
    world = World(delay_s=0.001, lengths={**many(40), "v3": 30, "v7": 30, "v8": 30, "v11": 30})
    world.broken_at |= {"v3": -1, "v7": 0}
    world.unencodable["v11"] = 0
    network = model(StridedGate(1.0))
    world.broken_at["v8"] = 17
    outcomes = label(world, network, num_workers=4, in_flight=10)
    bad = {"v3": "v3 cannot be opened", "v7": "frame 0 could not", "v8": "frame 17 could not"}
    bad["v11"] = "v11: the backbone raised RuntimeError: cannot encode this"
    for uri, outcome in outcomes.items():
        if uri in bad:
            assert bad[uri] in outcome.reason
            assert outcome.prediction is None
        else:
            assert_right(outcome, world, network, uri)


def test_a_video_that_fails_twice_at_once_has_one_outcome():
    names = many(60)
    world = World(delay_s=0.002, lengths=dict.fromkeys(names, 30), broken_at=dict.fromkeys(names, 5))
    world.unencodable |= dict.fromkeys(names, 0)
    outcomes = label(world, model(StridedGate(1.0)), num_workers=6, in_flight=12)
    assert all(outcome.prediction is None for outcome in outcomes.values())


def test_a_network_that_fails_for_one_video_spares_the_other_of_its_batch(monkeypatch):
    world, network = World(lengths={"a": 2, "b": 2}), model(StridedGate(1.0))
    prediction = ScheduledSession.prediction

    def fail_for_a(session):
        if session.request.key == "a":
            raise RuntimeError("out of luck")
        return prediction(session)

    monkeypatch.setattr(ScheduledSession, "prediction", fail_for_a)
    outcomes = label(world, network)
    assert world.batches == [4], "both were in one batch"
    assert outcomes["a"].reason == "a: the network raised RuntimeError: out of luck"
    assert_right(outcomes["b"], world, network, "b")


def test_an_error_after_the_look_leaves_the_other_videos_of_its_batch_alone(monkeypatch):
    world, network = World(lengths={"v0": 40, "v1": 40, "v2": 40, "v3": 40}), model()
    update_of, looks = ClosedLoopSession.update_of, []

    def run_out_of_memory(session, *answer):
        update = update_of(session, *answer)
        looks.append(session.request.key)
        if looks.count("v1") >= 3 and session.request.key == "v1":
            raise MemoryError
        return update

    monkeypatch.setattr(ClosedLoopSession, "update_of", run_out_of_memory)
    outcomes = label(world, network, num_workers=0)
    assert max(world.batches) == 4, "all were in one batch"
    assert outcomes.pop("v1").reason == "v1: the backbone raised MemoryError: "
    for uri, outcome in outcomes.items():
        assert_right(outcome, world, network, uri)
        assert outcome.prediction.cost.frames_encoded == outcome.prediction.used.sum()


def test_a_waiting_video_keeps_its_own_row_of_the_states_alone(monkeypatch):
    commit, states = ClosedLoopSession.commit, []
    monkeypatch.setattr(
        ClosedLoopSession, "commit", lambda session, update: (states.append(update.state), commit(session, update))
    )
    label(World(lengths=many(4)), model(cell="lstm"), num_workers=0)
    parts = [part for state in states for part in state]
    assert {part.untyped_storage().nbytes() == part.nbytes for part in parts} == {True}


@pytest.mark.parametrize("gate", [None, StridedGate(2.0)])
def test_a_video_without_frames_fails(gate):
    world, network = World(lengths={"empty": 0, "b": 5}), model(gate)
    outcomes = label(world, network, num_workers=0)
    assert outcomes["empty"].reason == f"empty has no frames, says decoder {__name__}:decode"
    assert_right(outcomes["b"], world, network, "b")


@pytest.mark.parametrize("pts_seconds", [[0.0, 0.2, 0.1], [0.0, float("nan")]])
def test_a_video_that_is_refused_once_it_is_open_is_closed(monkeypatch, pts_seconds):
    world = World(lengths={"bad": 3})
    worlds["now"] = world
    video = FakeVideo(world, "bad")
    video.pts_seconds = np.array(pts_seconds)
    monkeypatch.setattr("skipreel.jobs.closed_loop.scheduler.open_video", lambda *_, **__: video)
    with make_scheduler(num_workers=0) as scheduler:
        (outcome,) = scheduler.run([Request("bad", "bad")])
    assert "ascending" in outcome.reason
    assert video.is_closed


def test_a_decoder_that_cannot_close_its_video_is_only_complained_about(caplog, monkeypatch):
    monkeypatch.setattr(
        "skipreel.jobs.closed_loop.scheduler._LOGGER.disabled", False
    )  # whatever ran before in this process
    world, network = World(lengths=many(6), unclosable="v2"), model()
    outcomes = label(world, network)
    assert_right(outcomes["v2"], world, network, "v2")
    assert "v2 could not be closed: OSError: cannot be closed" in caplog.text


def test_workers_leave_the_threads_of_torch_to_others_as_they_were():
    def of_a_new_thread() -> int:
        found = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        world = World(lengths=many(20))
        worlds["now"] = world
        with make_scheduler(num_workers=4) as scheduler:
            assert len(list(scheduler.run(Request(uri, uri) for uri in world.lengths))) == 20
        assert world.threads_of_torch == {1}
        assert (of_a_new_thread(), torch.get_num_threads()) == (3, 3)
    finally:
        torch.set_num_threads(before)


def test_a_decoder_that_exits_fails_its_video_alone():
    world, network = World(lengths={"exits": 5, "b": 20}, broken_at={"exits": 0}), model()
    outcomes = label(world, network)
    assert outcomes["exits"].reason == "exits: the decoder raised SystemExit: no"
    assert_right(outcomes["b"], world, network, "b")


def test_a_backbone_that_fails_for_one_frame_spares_the_other_videos_of_its_batch():
    world, network = World(lengths=dict.fromkeys(many(12), 20), unencodable={"v5": 0}), model()
    outcomes = label(world, network)
    assert world.batches[0] == 4
    for uri in world.lengths:
        if uri == "v5":
            assert outcomes[uri].prediction is None
        else:
            assert_right(outcomes[uri], world, network, uri)


def test_slow_videos_delay_themselves_alone(monkeypatch):
    monkeypatch.setattr("skipreel.jobs.closed_loop.decoder_calls.SLOW_S", 0.05)
    slow = {"v0": threading.Event(), "v1": threading.Event()}
    world, network = World(lengths=many(20), blocked=slow), model()
    worlds["now"] = world
    with make_scheduler(network, num_workers=2, in_flight=6) as scheduler:
        scheduler.add(Request(uri, uri) for uri in world.lengths)
        others = _outcomes(scheduler, 18)
        assert not set(slow) & set(others)
        for event in slow.values():
            event.set()
        outcomes = others | _outcomes(scheduler, 2)
    world.end()
    for uri in world.lengths:
        assert_right(outcomes[uri], world, network, uri)


def test_slow_videos_get_as_many_substitutes_as_there_are_workers_and_no_more(monkeypatch):
    monkeypatch.setattr("skipreel.jobs.closed_loop.decoder_calls.SLOW_S", 0.0)
    event = threading.Event()
    world, network = World(lengths=many(12), blocked=dict.fromkeys(many(12), event)), model()
    worlds["now"] = world
    with make_scheduler(network, num_workers=2) as scheduler:
        scheduler.add(Request(uri, uri) for uri in world.lengths)
        while world.now_in_blocked.qsize() < 4:
            assert scheduler.wait(timeout_s=0.01) == []
        for _ in range(10):
            assert scheduler.wait(timeout_s=0.01) == []
        assert len(world.decoders) == 4
        event.set()
        outcomes = _outcomes(scheduler, 12)
    for uri in world.lengths:
        assert_right(outcomes[uri], world, network, uri)


def test_videos_after_more_that_hang_than_there_are_workers_are_labelled(monkeypatch):
    hung = {f"hung{number}": threading.Event() for number in range(5)}
    world, network = World(lengths=dict.fromkeys(hung, 5) | many(6), blocked=hung), model()
    outcomes = hang(world, network, monkeypatch)
    for uri in hung:
        assert outcomes[uri].reason == f"{uri}: its next frame did not come within 100 seconds"
    for uri in many(6):
        assert_right(outcomes[uri], world, network, uri)


def test_a_video_that_takes_long_to_close_holds_nobody_up():
    event = threading.Event()
    world, network = World(lengths=many(20), blocked_at_end={"v3": event}), model()
    worlds["now"] = world
    with make_scheduler(network, num_workers=2) as scheduler:
        scheduler.add(Request(uri, uri) for uri in world.lengths)
        others = _outcomes(scheduler, 19)
        assert not event.is_set()
        event.set()
        outcomes = others | _outcomes(scheduler, 1)
    for uri in world.lengths:
        assert_right(outcomes[uri], world, network, uri)


def test_a_video_whose_decoder_hangs_fails_and_its_late_frame_changes_nothing(monkeypatch):
    world, network = World(lengths=many(6), blocked={"v2": threading.Event()}), model()
    outcomes = hang(world, network, monkeypatch)
    assert "v2: its next frame did not come within 100 seconds" in outcomes["v2"].reason
    assert all(outcomes[uri].prediction is not None for uri in world.lengths if uri != "v2")


def hang(world: World, network: TrainedModel, monkeypatch: pytest.MonkeyPatch) -> dict[str, Outcome]:
    """The outcomes where time stands still for all but the decoders of blocked videos, which return only afterwards."""
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr("skipreel.jobs.closed_loop.decoder_calls.time", SimpleNamespace(monotonic=lambda: now.s))
    worlds["now"] = world
    with make_scheduler(network, time_limit_s=100) as scheduler:
        scheduler.add(Request(uri, uri) for uri in world.lengths)
        outcomes: dict[str, Outcome] = {}
        for _ in world.blocked:
            world.now_in_blocked.get(timeout=20)  # with the one worker there is
            now.s += 101
            outcomes |= _outcomes(scheduler, 1)
        outcomes |= _outcomes(scheduler, len(world.lengths) - len(outcomes))
        for event in world.blocked.values():
            event.set()
        assert scheduler.wait(timeout_s=0.1) == []
    world.end()
    assert world.opened == 0
    return outcomes


def _outcomes(scheduler: Scheduler, count: int) -> dict[str, Outcome]:
    """As many outcomes or more, as they come."""
    found: dict[str, Outcome] = {}
    deadline = time.monotonic() + 20
    while len(found) < count and time.monotonic() < deadline:
        found |= {outcome.request.key: outcome for outcome in scheduler.wait(timeout_s=0.02)}
    assert len(found) >= count
    return found


@pytest.mark.parametrize("dense", [True, False])
def test_memory_is_bounded_by_what_is_in_flight(dense):
    world = World(delay_s=0.0005, lengths=dict.fromkeys(many(50), 60))
    label(world, model(), num_workers=3, in_flight=8, dense=dense)
    assert world.most_opened <= 8
    # Two batches of four, and the request of each worker: a part of four frames in a dense pass, else one.
    assert world.most_waiting_frames <= 2 * 4 + 3 * 4


def test_a_long_video_does_not_hold_up_short_ones():
    world = World(lengths={"long": 900, **many(40, longest=10)})
    worlds["now"] = world
    with make_scheduler(in_flight=8) as scheduler:
        order = [outcome.request.key for outcome in scheduler.run(Request(uri, uri) for uri in world.lengths)]
    assert order.index("long") > 10


def test_without_workers_the_caller_does_all_while_it_waits(monkeypatch):
    world, network = World(lengths=dict.fromkeys(["a", "b"], 60)), model(StridedGate(1.0))
    worlds["now"] = world
    now = SimpleNamespace(s=0.0)
    clock = SimpleNamespace(monotonic=lambda: now.s, perf_counter=time.perf_counter)
    for module in ("scheduler", "decoder_calls"):
        monkeypatch.setattr(f"skipreel.jobs.closed_loop.{module}.time", clock)
    monkeypatch.setattr(world, "pause", lambda: setattr(now, "s", now.s + 0.04))
    with make_scheduler(network, num_workers=0) as scheduler:
        scheduler.add(Request(uri, uri) for uri in world.lengths)
        assert world.opened == 0
        assert scheduler.wait(timeout_s=0.5) == []
        assert 0.5 < now.s < 0.7, "it went on for as long as one decoding, of four frames, takes at most"
        assert world.opened > 0
        outcomes = _outcomes(scheduler, 2)
    assert world.decoders == {threading.current_thread()}
    for uri in world.lengths:
        assert_right(outcomes[uri], world, network, uri)


@pytest.mark.parametrize("num_workers", [0, 3])
def test_closing_ends_the_workers_and_closes_the_videos_that_are_under_way(num_workers):
    world = World(delay_s=0.001, lengths=many(200))
    worlds["now"] = world
    with make_scheduler(num_workers=num_workers) as scheduler:
        scheduler.add(Request(uri, uri) for uri in world.lengths)
        assert scheduler.wait(timeout_s=20)
        assert world.opened
    assert world.opened == 0
    world.end()


@pytest.mark.parametrize("method", ["blocked", "blocked_in_open"])
def test_a_video_in_a_decoder_that_hangs_is_closed_once_it_returns(monkeypatch, method):
    monkeypatch.setattr("skipreel.jobs.closed_loop.scheduler.LAST_CALL_S", 0.0)
    event = threading.Event()
    world = World(lengths=many(8), **{method: {"v1": event}})
    worlds["now"] = world
    with make_scheduler(num_workers=2) as scheduler:
        scheduler.add(Request(uri, uri) for uri in world.lengths)
        _outcomes(scheduler, 7)
    assert world.opened == (method == "blocked")
    event.set()
    world.end()
    assert world.opened == 0


def test_an_interruption_of_the_caller_leaves_no_video_open():
    world = World(lengths={**many(8), "interrupted": 5}, broken_at={"interrupted": 0})
    worlds["now"] = world
    with (
        pytest.raises(KeyboardInterrupt),
        make_scheduler(num_workers=0) as scheduler,
    ):
        list(scheduler.run(Request(uri, uri) for uri in world.lengths))
    assert world.opened == 0


def test_a_path_in_place_of_the_video_is_not_named_in_messages():
    worlds["now"] = World(lengths={"copy-of-a": 5}, broken_at={"copy-of-a": 0})
    with make_scheduler() as scheduler:
        (outcome,) = scheduler.run([Request("a", "s3://there/a.mp4", "copy-of-a")])
    assert outcome.reason == "s3://there/a.mp4: frame 0 could not be decoded"


assert __name__ in sys.modules  # the decoder is found by this name
