"""`RayExecutor` on a stub of Ray; a video's name says whether its process is slow, hangs or dies."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from skipreel.features.extraction.actors import Decoded
from skipreel.features.extraction.planner import Planned
from skipreel.features.extraction.ray_executor import PoolConfig, Process, RayExecutor
from skipreel.features.extraction.work import FrameChunk, VideoJob, VideoOutcome
from skipreel.features.feature_set.card import create_feature_set
from skipreel.features.feature_set.ledger import read_finished
from skipreel.features.feature_set.schema import Failure, Source
from skipreel.features.feature_set.shard_writer import ShardWriter
from skipreel.pipeline.storage import FileStat
from tests.support.feature_sets import spec

if TYPE_CHECKING:  # pytest rewrites a plugin's assertions only on its own import
    from tests.support.ray_stub import RayStub

pytest_plugins = ("tests.support.ray_stub",)

LIMIT_S = 300.0
# Larger than the limit of a decoder, so that each holds one video.
BIG = FileStat(3 << 20, 1)


def decoder(stub: "RayStub", *, encodes: bool = True) -> type:
    """A decoder that takes a second for a video, unless its name says ``slow``, ``hang`` or ``die``."""

    class FakeDecoder:
        def ready(self) -> None:
            stub.sleep(2)

        def next_block(self, jobs: list[VideoJob]) -> tuple[Decoded, list[str]]:
            chunks, outcomes = [], []
            for job in jobs:
                stub.sleep(math.inf if "hang" in job.video_id else 100 if "slow" in job.video_id else 1)
                if "die" in job.video_id:
                    raise stub.ProcessDied
                chunks.append(FrameChunk(job, Source("digest", BIG), 0, np.zeros(1, np.int32), np.zeros(1)))
                outcomes.append(VideoOutcome(job, BIG, num_frames=1, duration_s=1.0))
            results = [np.zeros((1, 5), np.float16) for _ in chunks] if encodes else None
            return Decoded(chunks, outcomes, 1.0, 0.0, results), [chunk.job.video_id for chunk in chunks]

    return FakeDecoder


def encoder(stub: "RayStub") -> type:
    """An encoder that takes a second for a block, unless a video's name says ``break``."""

    class FakeEncoder:
        def ready(self) -> None:
            stub.sleep(5)

        def encode(self, sizes: list[int], frames: list[str]) -> tuple[list[np.ndarray], float]:
            stub.sleep(1)
            if any("break" in name for name in frames):
                raise stub.ProcessDied
            return [np.zeros((size, 5), np.float16) for size in sizes], 1.0

    return FakeEncoder


class Run:
    """One pass over videos and its results."""

    def __init__(self, stub: "RayStub", folder, planned, *, decoders=3, encoders=0) -> None:
        uri = str(folder / "features")
        create_feature_set(uri, spec(), about={})
        failures: list[Failure] = []
        self.num_ticks = 0
        self.executor = RayExecutor(
            planned,
            writer=ShardWriter(uri, shard_bytes=1 << 20),
            decoder=Process(decoder(stub, encodes=not encoders), {}),
            encoder=Process(encoder(stub), {}) if encoders else None,
            pools=PoolConfig(decoders, encoders, time_limit_s=LIMIT_S),
            on_failure=failures.append,
        )
        self.executor.run(self._tick)
        self.finished = sorted(read_finished(uri))
        self.failed = {failure.video_id: failure.reason for failure in failures}
        self.restarts = self.executor.progress.restarts

    def _tick(self) -> None:
        self.num_ticks += 1


def videos(*names: str, file_stat: FileStat = BIG) -> Iterator[Planned]:
    return iter([Planned(VideoJob(name, f"{name}.mp4"), file_stat, "") for name in names])


def test_every_video_is_finished_once(ray_stub, tmp_path):
    run = Run(ray_stub, tmp_path, videos(*"abcdefgh"))
    assert (run.finished, run.failed, run.restarts) == (list("abcdefgh"), {}, 0)
    assert len(ray_stub.killed) == 3  # when all was done


def test_a_driver_that_plans_for_long_does_not_call_decoders_hung(ray_stub, tmp_path):
    def planned():
        yield from videos("a", "b", "c")
        ray_stub.sleep(2 * LIMIT_S)
        yield from videos("d", "e", "f")

    run = Run(ray_stub, tmp_path, planned())
    assert (run.finished, run.failed, run.restarts) == (list("abcdef"), {}, 0)


def test_a_driver_that_writes_for_long_does_not_call_decoders_hung(ray_stub, tmp_path, monkeypatch):
    def slow_flush(_writer):
        ray_stub.sleep(2 * LIMIT_S)

    monkeypatch.setattr(ShardWriter, "flush_if_due", slow_flush)
    monkeypatch.setattr(ShardWriter, "add", add := _slow_add(ray_stub, ShardWriter.add))
    run = Run(ray_stub, tmp_path, videos(*"abcdef", "slow"))
    assert add.calls == 7
    assert (run.finished, run.failed, run.restarts) == ([*"abcdef", "slow"], {}, 0)


def _slow_add(stub: "RayStub", add):
    def slow(writer, rows, *, replaces=""):
        slow.calls += 1
        stub.sleep(2 * LIMIT_S)
        add(writer, rows, replaces=replaces)

    slow.calls = 0
    return slow


@pytest.mark.parametrize("encoders", [0, 1])
@pytest.mark.parametrize("name", ["hang", "slow hang"])
def test_a_hung_decoder_is_replaced_and_its_video_fails_alone(ray_stub, tmp_path, name, encoders):
    run = Run(ray_stub, tmp_path, videos("a", name, "b", "c", "slow d", "e"), encoders=encoders)
    assert run.finished == ["a", "b", "c", "e", "slow d"]
    assert list(run.failed) == [name]
    assert "did not come within 300 seconds" in run.failed[name]
    assert run.restarts == 1
    assert ray_stub.calls_to_the_dead == []


def test_videos_held_together_with_a_hung_one_are_not_blamed(ray_stub, tmp_path):
    small = FileStat(1000, 1)
    run = Run(ray_stub, tmp_path, videos("a", "b", "hang", "c", "d", file_stat=small), decoders=1)
    assert run.finished == ["a", "b", "c", "d"]
    assert list(run.failed) == ["hang"]
    assert ray_stub.calls_to_the_dead == []


def test_a_video_that_kills_its_decoder_three_times_fails_and_no_other(ray_stub, tmp_path):
    small = FileStat(1000, 1)
    run = Run(ray_stub, tmp_path, videos("a", "die", "b", "c", file_stat=small), decoders=2)
    assert run.finished == ["a", "b", "c"]
    assert "died 3 times" in run.failed["die"]


def test_all_answers_that_are_there_are_handled_in_one_turn(ray_stub, tmp_path):
    names = [f"v{number:02d}" for number in range(64)]
    run = Run(ray_stub, tmp_path, videos(*names), decoders=16)
    assert run.finished == names
    assert run.num_ticks < 50  # not a turn for each of 16 starts and 64 videos


def test_answers_are_handled_between_pieces_of_the_plan(ray_stub, tmp_path, monkeypatch):
    pieces = []

    def planned():
        yield from videos("a")
        for _ in range(20):
            pieces.append(ray_stub.now)
            ray_stub.sleep(10)
            yield None
        yield from videos("b")

    def add(writer, rows, *, replaces=""):
        added[rows.video_id] = ray_stub.now
        usual(writer, rows, replaces=replaces)

    added, usual = {}, ShardWriter.add
    monkeypatch.setattr(ShardWriter, "add", add)
    run = Run(ray_stub, tmp_path, planned(), decoders=2)
    assert run.finished == ["a", "b"]
    assert added["a"] < pieces[2]  # while finished videos were skipped
    assert pieces[-1] - pieces[0] == 190  # without any other wait


def test_an_encoder_that_dies_is_replaced_and_its_frames_are_encoded_by_the_next(ray_stub, tmp_path):
    run = Run(ray_stub, tmp_path, videos("a", "break", "b", "c"), decoders=2, encoders=1)
    assert run.finished == ["a", "b", "c"]
    assert "the process that encoded its frames died 3 times" in run.failed["break"]
    assert run.restarts == 3
