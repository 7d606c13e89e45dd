"""Videos through processes on a Ray cluster: actors that decode and encode, one driver that feeds them and writes.

Ray moves frames and starts processes; what is tried again, and what a death is blamed on, is decided here, since Ray
would run a video that kills its process without end. Only the driver writes, so nothing that outlives it can touch the
feature set. The only module of this package that knows Ray.
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
from skipreel.features.extraction.tasks import FrameSettings
from skipreel.features.extraction.tracker import BYTES_IN_HAND, MAX_DEATHS, VIDEOS_IN_HAND, NewRows, VideoTracker
from skipreel.features.feature_set.schema import Failure
from skipreel.features.feature_set.shard_writer import ShardWriter, VideoRows
from skipreel.pipeline.errors import InputError

# Calls that a process has been given: one that it works on, and one so that it need not wait for the driver.
CALLS_IN_HAND = 2
TICK_S = 0.2


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """How many processes, and what each may take.

    Attributes:
        num_decoders, num_encoders: how many; without encoders, every decoder is a worker that encodes too.
        cpus_per_process: what each reserves of the cluster.
        gpus_per_encoder: likewise.
        threads_per_encoder: of torch, on a CPU.
        time_limit_s: how long a decoder may take for its next block of frames.
        decoder_memory_bytes: what a decoder may allocate.
        videos_in_hand, bytes_in_hand: what a decoder is given of videos before it has ended others.
        flags: the command's that say how many, for messages.
    """

    num_decoders: int
    num_encoders: int
    cpus_per_process: float = 1.0
    gpus_per_encoder: float = 0.0
    threads_per_encoder: int = 1
    time_limit_s: float = 300.0
    decoder_memory_bytes: int = 2 << 30
    videos_in_hand: int = VIDEOS_IN_HAND
    bytes_in_hand: int = BYTES_IN_HAND
    flags: str = "--decoders and --encoders"


@dataclass(frozen=True, slots=True)
class Process:
    """What a process runs: a class with the methods of `Decoder`, `Encoder` or `Worker`, and its arguments."""

    kind: type
    arguments: Mapping[str, Any]


@dataclass(slots=True, eq=False)
class _Work:
    """A decoded block on its way through an encoder."""

    header: Decoded
    frames: ray.ObjectRef
    deaths: int = 0


@dataclass(slots=True, eq=False)
class _Slot:
    """A place for a process; ``calls`` are those that it has not answered, each with what it is about."""

    actor: Any = None
    is_ready: bool = False
    failed_starts: int = 0
    calls: dict[ray.ObjectRef, Any] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _DecoderSlot(_Slot):
    in_hand: dict[str, Planned] = field(default_factory=dict)  # given and not ended
    waiting_since: float = 0.0


class RayExecutor:
    """One pass over videos on a connected cluster; `run` it once.

    Args:
        planned: the videos, as `features.extraction.planner.plan` yields them.
        decoder: what turns videos into frames for encoders or, where there are none, into all that becomes rows.
        encoder: only where there are any.
        on_failure: called with every video that fails.
        new_rows: makes what collects the rows of a video.

    Memory: at a time, frames of at most 2 blocks per decoder and 3 per encoder are in the cluster's object store. The
    driver holds one shard, and the features of the videos that are under way (a long one's in a temporary file).
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
        self._books = VideoTracker(
            planned,
            writer=writer,
            progress=self.progress,
            on_failure=on_failure,
            new_rows=new_rows,
            videos_in_hand=pools.videos_in_hand,
            bytes_in_hand=pools.bytes_in_hand,
        )
        self._writer, self._decoder, self._encoder, self._pools = writer, decoder, encoder, pools
        self._blocks: deque[_Work] = deque()
        self._handlers: dict[ray.ObjectRef, Callable[[ray.ObjectRef], None]] = {}
        self._decoders = [_DecoderSlot() for _ in range(pools.num_decoders)]
        self._encoders = [_Slot() for _ in range(pools.num_encoders)]

    def run(self, on_tick: Callable[[], None]) -> None:
        """Work on all videos; whatever ends it, the videos that are whole by then are written.

        Args:
            on_tick: called several times a second; look at ``progress``.

        Raises:
            FeatureSetError: when processes cannot be started.
            BackboneError: when an encoder cannot load its model.
        """
        try:
            for encoder in self._encoders:
                self._start_encoder(encoder)
            for decoder in self._decoders:
                self._start_decoder(decoder)
            while True:
                self._hand_out()
                if self._books.is_done:
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
        """Wait a moment for an answer, unless there are videos to look for; then handle all that are there."""
        timeout = 0 if self._books.plan_paused else TICK_S
        if not self._handlers or not _answered(self._handlers, timeout=timeout):
            return
        for ref in _answered(self._handlers, num_returns=len(self._handlers)):
            handler = self._handlers.pop(ref, None)
            if handler is not None:  # its process may have been given up over another answer
                handler(ref)

    # Handing out

    def _hand_out(self) -> None:
        self._books.plan_paused = False
        while self._blocks and (free := [slot for slot in self._encoders if _has_room(slot)]):
            self._encode(min(free, key=lambda slot: len(slot.calls)))
        for decoder in self._decoders:
            while _has_room(decoder) and len(self._blocks) < max(1, len(self._encoders)) and self._ask(decoder):
                pass

    def _encode(self, slot: _Slot) -> None:
        work = self._blocks.popleft()
        sizes = [len(part.frame_index) for part in work.header.parts]
        self._call(slot, slot.actor.encode.remote(sizes, work.frames), work, self._encoded)

    def _ask(self, slot: _DecoderSlot) -> bool:
        """Ask for the next block, with more videos where they run out; False where there is nothing to ask for."""
        more = list(self._books.more(list(slot.in_hand.values())))
        slot.in_hand.update((planned.task.video_id, planned) for planned in more)
        if not slot.in_hand:
            return False
        if not slot.calls:
            slot.waiting_since = time.monotonic()
        tasks = [planned.task for planned in more]
        header, frames = slot.actor.next_block.options(num_returns=2).remote(tasks)
        self._call(slot, header, frames, self._decoded)
        return True

    def _call(self, slot: Any, ref: ray.ObjectRef, about: Any, handler: Callable[[Any, ray.ObjectRef], None]) -> None:
        slot.calls[ref] = about
        self._handlers[ref] = partial(handler, slot)

    # What comes back

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
        elif header.parts:
            self._blocks.append(_Work(header, frames))
        for ending in header.endings:
            slot.in_hand.pop(ending.task.video_id, None)
            self._books.end(ending)

    def _encoded(self, slot: _Slot, ref: ray.ObjectRef) -> None:
        try:
            results, seconds = ray.get(ref)
        except (RayActorError, OutOfMemoryError, NodeDiedError):
            self._encoder_died(slot)
            return
        except RayError:  # the frames are lost with the machine that held them
            for part in slot.calls.pop(ref).header.parts:
                self._books.retry(part.task)
            return
        work: _Work = slot.calls.pop(ref)
        self._take(work.header, results, seconds)

    def _take(self, header: Decoded, results: list[Result], seconds: float) -> None:
        if results:
            self.progress.count(decode_s=header.decode_s, encode_s=seconds)
        for part, result in zip(header.parts, results, strict=True):
            if isinstance(result, str):
                self._books.fail(part.task, result, part.source.file_stat)
            else:
                self._books.receive(part, deepcopy(result))  # the copy lets go of the object store

    # Processes that start, hang and die

    def _start_decoder(self, slot: _DecoderSlot) -> None:
        self._start(slot, self._decoder, 0 if self._encoders else self._pools.gpus_per_encoder, self._start_decoder)

    def _start_encoder(self, slot: _Slot) -> None:
        assert self._encoder is not None, "encoders without what they run"
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
            # This process may be the late one: held up by storage, it has not looked at answers that are there.
            if is_late and not _answered(slot.calls, timeout=TICK_S):
                self._decoder_died(slot, hung_s=limit_s)

    def _decoder_died(self, slot: _DecoderSlot, *, hung_s: float | None = None) -> None:
        self._drop_calls(slot)
        in_hand = list(slot.in_hand.values())
        slot.in_hand.clear()
        self._books.decoder_died(in_hand, hung_s=hung_s)
        self._start_decoder(slot)

    def _encoder_died(self, slot: _Slot) -> None:
        works: list[_Work] = list(slot.calls.values())
        self._drop_calls(slot)
        works[0].deaths += 1  # the one it worked on
        if works[0].deaths == MAX_DEATHS:
            for part in works.pop(0).header.parts:
                died = f"{part.task.uri}: the process that encoded its frames died {MAX_DEATHS} times"
                self._books.fail(part.task, died, part.source.file_stat)
        self._blocks.extendleft(reversed(works))
        self._start_encoder(slot)

    def _drop_calls(self, slot: _Slot) -> None:
        for ref in slot.calls:
            self._handlers.pop(ref, None)
        slot.calls.clear()
        ray.kill(slot.actor)
        self.progress.restarts += 1


class Extraction(RayExecutor):
    """Videos into features: by decoders and encoders or, without encoders, by workers that do both."""

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
    return slot.is_ready and len(slot.calls) < CALLS_IN_HAND
