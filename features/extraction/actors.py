"""The classes that run in the processes of an extraction; `ray_executor` makes Ray actors of them.

`Decoder` does not import torch, `Encoder` holds the model. `Worker` does both, for CPUs: no frames are sent.
"""

import resource
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from skipreel.features.extraction.steps import decode, encode
from skipreel.features.extraction.work import FrameBlock, FrameChunk, FrameSettings, VideoJob, VideoOutcome
from skipreel.pipeline.video import Frame

if TYPE_CHECKING:
    from skipreel.features.backbones.backbone import Backbone

Features = NDArray[np.float16] | str  # (T, D) of a chunk, or why there are none
Result = Any  # the result of a chunk, or a str: why there is none
# Seconds after which a worker returns its results.
BLOCK_S = 1.0


@dataclass(frozen=True, slots=True)
class BackboneSettings:
    """The arguments of `load_backbone`, to send to an encoder."""

    name: str
    device: Literal["cpu", "cuda"] = "cpu"
    layer: str = "pooled"
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False

    def load(self) -> "Backbone":
        """Load the backbone in this process."""
        from skipreel.features.backbones.loading import load_backbone

        return load_backbone(self.name, device=self.device, layer=self.layer, dtype=self.dtype, compile=self.compile)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A block without its frames, which are returned separately.

    Attributes:
        decode_s, encode_s: working time for this block.
        results: from a worker, the result of each chunk, such as `Features`; no frames are returned then.
    """

    chunks: list[FrameChunk]
    outcomes: list[VideoOutcome]
    decode_s: float
    encode_s: float = 0.0
    results: list[Result] | None = None


class Decoder:
    """Decodes videos into blocks of frames, on demand.

    Args:
        memory_bytes: memory that this process may allocate from `ready` on; a video that needs more fails.
        import_path: more folders to import from, for example a user's decoder.
    """

    def __init__(self, settings: FrameSettings, *, memory_bytes: int, import_path: Sequence[str] = ()) -> None:
        self._settings, self._memory_bytes = settings, memory_bytes
        self._jobs: deque[VideoJob] = deque()
        self._pieces: Iterator[tuple[FrameChunk, list[Frame]] | VideoOutcome] = iter(())
        extend_sys_path(import_path)

    def ready(self) -> None:
        """Limit the memory of the process; returns once the process runs."""
        limit_memory(self._memory_bytes)

    def next_block(self, jobs: Sequence[VideoJob]) -> tuple[Decoded, list[Frame]]:
        """Take more videos and decode until a block is full; an empty block says that no video is left."""
        started = time.perf_counter()
        self._jobs.extend(jobs)
        block = FrameBlock()
        while not block.is_full and (piece := self._next_piece()) is not None:
            block.add(piece)
        return Decoded(block.chunks, block.outcomes, time.perf_counter() - started), block.frames

    def _next_piece(self) -> tuple[FrameChunk, list[Frame]] | VideoOutcome | None:
        while (piece := next(self._pieces, None)) is None and self._jobs:
            self._pieces = decode(self._jobs.popleft(), self._settings)
        return piece


class Encoder:
    """Encodes blocks of frames into features.

    Args:
        num_threads: threads of torch.
        import_path: as for `Decoder`.
    """

    def __init__(self, settings: BackboneSettings, *, num_threads: int, import_path: Sequence[str] = ()) -> None:
        self._settings, self._num_threads = settings, num_threads
        self._backbone: Backbone | None = None
        extend_sys_path(import_path)

    def ready(self) -> None:
        """Load the model.

        Raises:
            BackboneError: when that fails.
        """
        import torch

        torch.set_num_threads(self._num_threads)
        self._backbone = self._settings.load()

    def encode(self, sizes: Sequence[int], frames: Sequence[Frame]) -> tuple[list[Features], float]:
        """Encode chunks of ``sizes`` frames; returns the `Features` of each, and the seconds this took."""
        assert self._backbone is not None, "ready() comes first"
        started = time.perf_counter()
        results: list[Features] = []
        first = 0
        for size in sizes:
            try:
                results.append(encode(self._backbone, frames[first : first + size]))
            except Exception as error:  # the backbone may be a user's: one video must not end the extraction
                text = " ".join(str(error).split())[:200]
                results.append(f"the backbone {self._settings.name} raised {type(error).__name__}: {text}")
            first += size
        return results, time.perf_counter() - started


class Worker(Decoder):
    """Decodes and encodes videos, chunk by chunk, in one process.

    Args:
        settings: as for `Decoder`; a chunk is one batch here, so that its frames stay in the processor's cache.
        encoder, num_threads: as for `Encoder`.
        memory_bytes, import_path: as for `Decoder`; the model does not count.
    """

    def __init__(
        self,
        settings: FrameSettings,
        encoder: BackboneSettings,
        *,
        num_threads: int,
        memory_bytes: int,
        import_path: Sequence[str] = (),
    ) -> None:
        settings = replace(settings, chunk_frames=settings.batch_size)
        super().__init__(settings, memory_bytes=memory_bytes, import_path=import_path)
        self._encoder = Encoder(encoder, num_threads=num_threads)

    def ready(self) -> None:
        """Load the model.

        Raises:
            BackboneError: when that fails.
        """
        self._encoder.ready()
        super().ready()

    def next_block(self, jobs: Sequence[VideoJob]) -> tuple[Decoded, list[Frame]]:
        """Decode and encode for a second or until no video is left; see `Decoder.next_block`."""
        started, encode_s = time.perf_counter(), 0.0
        self._jobs.extend(jobs)
        block, results = FrameBlock(), list[Features]()
        while time.perf_counter() - started < BLOCK_S and (piece := self._next_piece()) is not None:
            block.add(piece)
            if block.frames:
                features, seconds = self._encoder.encode([len(block.frames)], block.frames)
                results += features
                encode_s += seconds
                block.frames.clear()
        decode_s = time.perf_counter() - started - encode_s
        return Decoded(block.chunks, block.outcomes, decode_s, encode_s, results), []


def extend_sys_path(places: Sequence[str]) -> None:
    """Append folders to ``sys.path``."""
    sys.path += [place for place in places if place not in sys.path]


def limit_memory(num_bytes: int) -> None:
    """Let allocations beyond ``num_bytes`` fail, on Linux only; shared memory, such as Ray's, does not count."""
    status = Path("/proc/self/status")
    if status.exists():
        (used,) = (int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (used + num_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]))
