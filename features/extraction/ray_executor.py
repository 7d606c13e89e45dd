"""`RayExecutor`: sends videos through actors on a Ray cluster; `Extraction`: the one that decodes and encodes.

Ray starts processes and moves frames. Retries and blame are decided here, because Ray would retry a video that kills
its process without end. Only the driver writes, so no process that outlives it can touch the feature set. This is the
only module of the package that imports Ray.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from skipreel.features.errors import FeatureSetError
from skipreel.features.extraction.actors import BackboneSettings, Decoded, Decoder, Encoder, Result, Worker
from skipreel.features.extraction.planner import Planned
from skipreel.features.extraction.progress import Progress
from skipreel.features.extraction.tracker import (
    BYTES_PER_DECODER,
    MAX_DEATHS,
    VIDEOS_PER_DECODER,
    NewRows,
    VideoTracker,
)
from skipreel.features.extraction.work import FrameSettings
from skipreel.features.feature_set.schema import Failure
from skipreel.features.feature_set.shard_writer import ShardWriter, VideoRows
from skipreel.pipeline.errors import InputError

# Calls that a process has at most: the one it works on, and one more so that it need not wait for the driver.
CALLS_PER_PROCESS = 2
TICK_S = 0.2  # how long to wait for a result


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """The number of processes and their limits.

    Attributes:
        num_decoders, num_encoders: processes of each kind; without encoders, decoders are workers that encode too.
        cpus_per_process, gpus_per_encoder: what a process reserves of the cluster.
        threads_per_encoder: threads of torch, on a CPU.
        time_limit_s: how long a decoder may take for its next block.
        decoder_memory_bytes: memory that a decoder may allocate.
        videos_per_decoder, bytes_per_decoder: the most that a decoder holds: videos, and size of their files.
        flags: the command's flags for the number of processes, for messages.
    """

    num_decoders: int
    num_encoders: int
    cpus_per_process: float = 1.0
    gpus_per_encoder: float = 0.0
    threads_per_encoder: int = 1
    time_limit_s: float = 300.0
    decoder_memory_bytes: int = 2 << 30
    videos_per_decoder: int = VIDEOS_PER_DECODER
    bytes_per_decoder: int = BYTES_PER_DECODER
    flags: str = "--decoders and --encoders"


@dataclass(frozen=True, slots=True)
class Process:
    """What an actor runs: a class with the methods of `Decoder`, `Encoder` or `Worker`, and its arguments."""

    kind: type
    arguments: Mapping[str, Any]


@dataclass(slots=True, eq=False)
class _Block:
    """A decoded block that waits for an encoder or is in one."""

    header: Decoded
    frames: ray.ObjectRef
    deaths: int = 0


@dataclass(slots=True, eq=False)
class _Slot:
    """A place for a process; ``calls`` are its unanswered calls, each with its subject."""

    actor: Any = None
    is_ready: bool = False
    failed_starts: int = 0
    calls: dict[ray.ObjectRef, Any] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _DecoderSlot(_Slot):
    assigned: dict[str, Planned] = field(default_factory=dict)  # without an outcome yet
    waiting_since: float = 0.0


class RayExecutor:
    """One pass over videos on a connected cluster; call `run` once.

    The cluster's object store holds at most 2 blocks of frames per decoder and 3 per encoder. The driver holds one
    shard and the features of unfinished videos (those of a long video in a temporary file).

    Args:
        planned: the videos, from `planner.plan`.
        decoder: runs in decoders; without encoders its results become rows.
        encoder: runs in encoders; None without encoders.
        on_failure: called with every video that fails.
        new_rows: makes the collector of a video's rows.
    """

    def __init__(
        self,
        planned: Iterator[Planned | None],
        *,
        writer: ShardWriter,
        decoder: Process,
        encoder: Process | None = None,
        pools: PoolConfig,
        on_failure: Callable[[Failure], None],
        new_rows: NewRows = VideoRows,
    ) -> None:
        self.progress = Progress(pools.num_decoders, pools.num_encoders or pools.num_decoders)
        self._tracker = VideoTracker(
            planned,
            writer=writer,
            progress=self.progress,
            on_failure=on_failure,
            new_rows=new_rows,
            videos_per_decoder=pools.videos_per_decoder,
            bytes_per_decoder=pools.bytes_per_decoder,
        )
        self._writer, self._decoder, self._encoder, self._pools = writer, decoder, encoder, pools
        self._blocks: deque[_Block] = deque()
        self._handlers: dict[ray.ObjectRef, Callable[[ray.ObjectRef], None]] = {}
        self._decoders = [_DecoderSlot() for _ in range(pools.num_decoders)]
        self._encoders = [_Slot() for _ in range(pools.num_encoders)]

    def run(self, on_tick: Callable[[], None]) -> None:
        """Process all videos. Finished videos are written even if this raises.

        Args:
            on_tick: called several times a second, for example to show ``progress``.

        Raises:
            FeatureSetError: if processes cannot be started.
            BackboneError: if an encoder cannot load its model.
        """
        try:
            for encoder in self._encoders:
                self._start_encoder(encoder)
            for decoder in self._decoders:
                self._start_decoder(decoder)
            while True:
                self._hand_out()
                if self._tracker.is_done:
                    return
                self._handle_answers()
                self._stop_hung_decoders()
                self._writer.flush_if_due()
                on_tick()
        finally:
            for slot in (*self._decoders, *self._encoders):
                if slot.actor is not None:
                    ray.kill(slot.actor)
            self._writer.flush()
            self.progress.stopped = time.monotonic()

    def _handle_answers(self) -> None:
        """Handle all answers that are there; waits a moment for the first, unless the plan is paused."""
        timeout = 0 if self._tracker.plan_paused else TICK_S
        if not self._handlers or not _answered(self._handlers, timeout=timeout):
            return
        for ref in _answered(self._handlers, num_returns=len(self._handlers)):
            handler = self._handlers.pop(ref, None)
            if handler is not None:  # another answer may have shown that its process died
                handler(ref)

    def _hand_out(self) -> None:
        self._tracker.plan_paused = False
        while self._blocks and (free := [slot for slot in self._encoders if _has_room(slot)]):
            self._encode(min(free, key=lambda slot: len(slot.calls)))
        for decoder in self._decoders:
            while _has_room(decoder) and len(self._blocks) < max(1, len(self._encoders)) and self._ask(decoder):
                pass

    def _encode(self, slot: _Slot) -> None:
        block = self._blocks.popleft()
        sizes = [len(chunk.frame_index) for chunk in block.header.chunks]
        self._call(slot, slot.actor.encode.remote(sizes, block.frames), block, self._encoded)

    def _ask(self, slot: _DecoderSlot) -> bool:
        """Ask a decoder for its next block and give it more videos; False if it has none to decode."""
        more = list(self._tracker.more(list(slot.assigned.values())))
        slot.assigned.update((planned.job.video_id, planned) for planned in more)
        if not slot.assigned:
            return False
        if not slot.calls:
            slot.waiting_since = time.monotonic()
        jobs = [planned.job for planned in more]
        header, frames = slot.actor.next_block.options(num_returns=2).remote(jobs)
        self._call(slot, header, frames, self._decoded)
        return True

    def _call(self, slot: Any, ref: ray.ObjectRef, about: Any, handler: Callable[[Any, ray.ObjectRef], None]) -> None:
        slot.calls[ref] = about
        self._handlers[ref] = partial(handler, slot)

    def _decoded(self, slot: _DecoderSlot, ref: ray.ObjectRef) -> None:
        try:
            header: Decoded = ray.get(ref)
        except RayError:
            self._decoder_died(slot)
            return
        frames = slot.calls.pop(ref)
        slot.waiting_since = time.monotonic()
        if header.results is not None:
            self._take(header, header.results, header.encode_s)
        elif header.chunks:
            self._blocks.append(_Block(header, frames))
        for outcome in header.outcomes:
            slot.assigned.pop(outcome.job.video_id, None)
            self._tracker.end(outcome)

    def _encoded(self, slot: _Slot, ref: ray.ObjectRef) -> None:
        try:
            results, seconds = ray.get(ref)
        except (RayActorError, OutOfMemoryError, NodeDiedError):
            self._encoder_died(slot)
            return
        except RayError:  # the machine that held the frames is lost
            for chunk in slot.calls.pop(ref).header.chunks:
                self._tracker.retry(chunk.job)
            return
        block: _Block = slot.calls.pop(ref)
        self._take(block.header, results, seconds)

    def _take(self, header: Decoded, results: list[Result], seconds: float) -> None:
        if results:
            self.progress.count(decode_s=header.decode_s, encode_s=seconds)
        for chunk, result in zip(header.chunks, results, strict=True):
            if isinstance(result, str):
                self._tracker.fail(chunk.job, result, chunk.source.file_stat)
            else:
                self._tracker.receive(chunk, deepcopy(result))  # the copy frees the object store

    def _start_decoder(self, slot: _DecoderSlot) -> None:
        self._start(slot, self._decoder, 0 if self._encoders else self._pools.gpus_per_encoder, self._start_decoder)

    def _start_encoder(self, slot: _Slot) -> None:
        assert self._encoder is not None, "there are encoders, but no class for them"
        self._start(slot, self._encoder, self._pools.gpus_per_encoder, self._start_encoder)

    def _start(self, slot: Any, process: Process, num_gpus: float, restart: Callable[[Any], None]) -> None:
        kind: Any = ray.remote(process.kind)
        options = kind.options(
            num_cpus=self._pools.cpus_per_process,
            num_gpus=num_gpus,
            scheduling_strategy="SPREAD",
            max_restarts=0,
            max_task_retries=0,
        )
        slot.actor, slot.is_ready = options.remote(**process.arguments), False
        self._handlers[slot.actor.ready.remote()] = partial(self._started, slot, restart)

    def _started(self, slot: _Slot, restart: Callable[[Any], None], ref: ray.ObjectRef) -> None:
        try:
            ray.get(ref)
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, InputError):
                raise error.cause from error
            slot.failed_starts += 1
            if slot.failed_starts == MAX_DEATHS:
                text = " ".join(str(error).split())[-300:]
                raise FeatureSetError(
                    f"a process died {MAX_DEATHS} times while it started: give the cluster more memory, or start fewer "
                    f"with {self._pools.flags} ({text})"
                ) from error
            restart(slot)
        else:
            slot.is_ready, slot.failed_starts = True, 0

    def _stop_hung_decoders(self) -> None:
        limit_s = self._pools.time_limit_s
        for slot in self._decoders:
            is_late = slot.calls and time.monotonic() - slot.waiting_since > limit_s
            # The driver may be late, not the decoder: after slow storage it has answers that it has not handled.
            if is_late and not _answered(slot.calls, timeout=TICK_S):
                self._decoder_died(slot, hung_s=limit_s)

    def _decoder_died(self, slot: _DecoderSlot, *, hung_s: float | None = None) -> None:
        self._drop_calls(slot)
        assigned = list(slot.assigned.values())
        slot.assigned.clear()
        self._tracker.decoder_died(assigned, hung_s=hung_s)
        self._start_decoder(slot)

    def _encoder_died(self, slot: _Slot) -> None:
        blocks: list[_Block] = list(slot.calls.values())
        self._drop_calls(slot)
        blocks[0].deaths += 1  # the block it worked on
        if blocks[0].deaths == MAX_DEATHS:
            for chunk in blocks.pop(0).header.chunks:
                died = f"{chunk.job.uri}: the process that encoded its frames died {MAX_DEATHS} times"
                self._tracker.fail(chunk.job, died, chunk.source.file_stat)
        self._blocks.extendleft(reversed(blocks))
        self._start_encoder(slot)

    def _drop_calls(self, slot: _Slot) -> None:
        for ref in slot.calls:
            self._handlers.pop(ref, None)
        slot.calls.clear()
        ray.kill(slot.actor)
        self.progress.restarts += 1


class Extraction(RayExecutor):
    """Extracts features with decoders and encoders or, without encoders, with workers that do both."""

    def __init__(
        self,
        planned: Iterator[Planned | None],
        *,
        writer: ShardWriter,
        frames: FrameSettings,
        backbone: BackboneSettings,
        pools: PoolConfig,
        on_failure: Callable[[Failure], None],
    ) -> None:
        decoding = {"settings": frames, "memory_bytes": pools.decoder_memory_bytes, "import_path": sys.path}
        num_threads = pools.threads_per_encoder
        decoder, encoder = Process(Worker, {**decoding, "encoder": backbone, "num_threads": num_threads}), None
        if pools.num_encoders:
            decoder = Process(Decoder, decoding)
            encoder = Process(Encoder, {"settings": backbone, "num_threads": num_threads, "import_path": sys.path})
        super().__init__(planned, writer=writer, decoder=decoder, encoder=encoder, pools=pools, on_failure=on_failure)


def _answered(refs: Collection[ray.ObjectRef], *, num_returns: int = 1, timeout: float = 0) -> list[ray.ObjectRef]:
    ready: list[ray.ObjectRef]
    ready, _ = ray.wait(list(refs), num_returns=num_returns, timeout=timeout, fetch_local=False)
    return ready


def _has_room(slot: _Slot) -> bool:
    return slot.is_ready and len(slot.calls) < CALLS_PER_PROCESS
