"""What runs in the processes of an extraction: decoders, which do without torch, and encoders, which hold the model; or
workers that do both, since on a CPU frames are best used where they are.

Plain classes: `features.extraction.ray_executor` makes Ray actors of them.
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
from skipreel.features.extraction.tasks import FrameBlock, FrameChunk, FrameSettings, VideoJob, VideoOutcome
from skipreel.pipeline.video import Frame

if TYPE_CHECKING:
    from skipreel.features.backbones.backbone import Backbone

Features = NDArray[np.float16] | str  # (T, D) of a part, or why there are none
Result = Any  # what came of a part, or a str: why nothing did
# How long a worker goes on before it hands on what it has.
BLOCK_S = 1.0


@dataclass(frozen=True, slots=True)
class BackboneSettings:
    """How an encoder loads its model: the arguments of `features.backbones.backbone.load_backbone`."""

    name: str
    device: Literal["cpu", "cuda"] = "cpu"
    layer: str = "pooled"
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False

    def load(self) -> "Backbone":
        """Load it in this process."""
        from skipreel.features.backbones.loading import load_backbone

        return load_backbone(self.name, device=self.device, layer=self.layer, dtype=self.dtype, compile=self.compile)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a decoder says of a block; the frames travel beside it.

    Attributes:
        decode_s, encode_s: how long it worked for it.
        results: from a worker, what came of each part, such as `Features`; no frames travel then.
    """

    parts: list[FrameChunk]
    endings: list[VideoOutcome]
    decode_s: float
    encode_s: float = 0.0
    results: list[Result] | None = None


class Decoder:
    """Turns videos into blocks of frames, on demand.

    Args:
        memory_bytes: what this process may allocate from now on; a video that asks for more fails.
        import_path: where else to look for modules, such as a user's decoder.
    """

    def __init__(self, settings: FrameSettings, *, memory_bytes: int, import_path: Sequence[str] = ()) -> None:
        self._settings, self._memory_bytes = settings, memory_bytes
        self._tasks: deque[VideoJob] = deque()
        self._pieces: Iterator[tuple[FrameChunk, list[Frame]] | VideoOutcome] = iter(())
        extend_sys_path(import_path)

    def ready(self) -> None:
        """Return once the process is up."""
        limit_memory(self._memory_bytes)

    def next_block(self, tasks: Sequence[VideoJob]) -> tuple[Decoded, list[Frame]]:
        """Take more videos and go on until a block is full or all are done; an empty block says that they are."""
        started = time.perf_counter()
        self._tasks.extend(tasks)
        block = FrameBlock()
        while not block.is_full and (piece := self._next_piece()) is not None:
            block.add(piece)
        return Decoded(block.parts, block.endings, time.perf_counter() - started), block.frames

    def _next_piece(self) -> tuple[FrameChunk, list[Frame]] | VideoOutcome | None:
        while (piece := next(self._pieces, None)) is None and self._tasks:
            self._pieces = decode(self._tasks.popleft(), self._settings)
        return piece


class Encoder:
    """Turns blocks of frames into features."""

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
        """Features (T, D) of each part, or why there are none, and the seconds it took; parts have ``sizes`` frames."""
        assert self._backbone is not None, "ready() comes first"
        started = time.perf_counter()
        results: list[Features] = []
        first = 0
        for size in sizes:
            try:
                results.append(encode(self._backbone, frames[first : first + size]))
            except Exception as error:  # a backbone may be anyone's: one video's frames must not end the job
                text = " ".join(str(error).split())[:200]
                results.append(f"the backbone {self._settings.name} raised {type(error).__name__}: {text}")
            first += size
        return results, time.perf_counter() - started


class Worker(Decoder):
    """Turns videos into features, part by part, with nothing sent in between.

    Args:
        settings: `Decoder`'s; parts of one batch keep its frames in the processor's cache.
        encoder: given to `Encoder`, as ``num_threads`` is.
        memory_bytes, import_path: `Decoder`'s; the model does not count.
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
        settings = replace(settings, part_frames=settings.batch_size)
        super().__init__(settings, memory_bytes=memory_bytes, import_path=import_path)
        self._encoder = Encoder(encoder, num_threads=num_threads)

    def ready(self) -> None:
        """Load the model.

        Raises:
            BackboneError: when that fails.
        """
        self._encoder.ready()
        super().ready()

    def next_block(self, tasks: Sequence[VideoJob]) -> tuple[Decoded, list[Frame]]:
        """Take more videos and go on for a second or until all are done; an empty block says that they are."""
        started, encode_s = time.perf_counter(), 0.0
        self._tasks.extend(tasks)
        block, results = FrameBlock(), list[Features]()
        while time.perf_counter() - started < BLOCK_S and (piece := self._next_piece()) is not None:
            block.add(piece)
            if block.frames:
                features, seconds = self._encoder.encode([len(block.frames)], block.frames)
                results += features
                encode_s += seconds
                block.frames.clear()
        decode_s = time.perf_counter() - started - encode_s
        return Decoded(block.parts, block.endings, decode_s, encode_s, results), []


def extend_sys_path(places: Sequence[str]) -> None:
    """Look for modules in these places too, after all others."""
    sys.path += [place for place in places if place not in sys.path]


def limit_memory(num_bytes: int) -> None:
    """Let allocations fail beyond this; shared memory, such as Ray's, does not count. Linux alone counts so."""
    status = Path("/proc/self/status")
    if status.exists():
        (used,) = (int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (used + num_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]))
