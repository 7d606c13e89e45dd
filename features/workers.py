"""What runs in the processes of an extraction: decoders, which do without torch, and encoders, which hold the model.

Plain classes: `features.stages` makes Ray actors of them.
"""

import resource
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from features.extraction import Block, Ending, FrameSettings, Part, VideoTask, decode, encode
from pipeline.decoding import Frame

if TYPE_CHECKING:
    from features.backbones import Backbone


@dataclass(frozen=True, slots=True)
class BackboneSettings:
    """How an encoder loads its model: the arguments of `features.backbones.load_backbone`."""

    name: str
    device: Literal["cpu", "cuda"] = "cpu"
    layer: str = "pooled"
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False

    def load(self) -> "Backbone":
        """Load it in this process."""
        from features.backbones import load_backbone

        return load_backbone(self.name, device=self.device, layer=self.layer, dtype=self.dtype, compile=self.compile)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a decoder says of a block; the frames travel beside it. ``seconds``: how long it worked for it."""

    parts: list[Part]
    endings: list[Ending]
    num_frames: int
    seconds: float


class Decoder:
    """Turns videos into blocks of frames, on demand.

    Args:
        memory_bytes: what this process may allocate from now on; a video that asks for more fails.
        import_path: where else to look for modules, such as a user's decoder.
    """

    def __init__(self, settings: FrameSettings, *, memory_bytes: int, import_path: Sequence[str] = ()) -> None:
        self._settings = settings
        self._tasks: deque[VideoTask] = deque()
        self._pieces: Iterator[tuple[Part, list[Frame]] | Ending] = iter(())
        _import_from(import_path)
        _limit_memory(memory_bytes)

    def ready(self) -> None:
        """Return once the process is up."""

    def next_block(self, tasks: Sequence[VideoTask]) -> tuple[Decoded, list[Frame]]:
        """Take more videos and go on until a block is full or all are done; an empty block says that they are."""
        started = time.perf_counter()
        self._tasks.extend(tasks)
        block = Block()
        while not block.is_full:
            piece = next(self._pieces, None)
            if piece is not None:
                block.add(piece)
            elif self._tasks:
                self._pieces = decode(self._tasks.popleft(), self._settings)
            else:
                break
        seconds = time.perf_counter() - started
        return Decoded(block.parts, block.endings, len(block.frames), seconds), block.frames


class Encoder:
    """Turns blocks of frames into features."""

    def __init__(self, settings: BackboneSettings, *, num_threads: int, import_path: Sequence[str] = ()) -> None:
        self._settings, self._num_threads = settings, num_threads
        self._backbone: Backbone | None = None
        _import_from(import_path)

    def ready(self) -> None:
        """Load the model.

        Raises:
            BackboneError: when that fails.
        """
        import torch

        torch.set_num_threads(self._num_threads)
        self._backbone = self._settings.load()

    def encode(self, sizes: Sequence[int], frames: Sequence[Frame]) -> tuple[list[NDArray[np.float16] | str], float]:
        """Features (T, D) of each part, or why there are none, and the seconds it took; parts have ``sizes`` frames."""
        assert self._backbone is not None, "ready() comes first"
        started = time.perf_counter()
        results: list[NDArray[np.float16] | str] = []
        first = 0
        for size in sizes:
            try:
                results.append(encode(self._backbone, frames[first : first + size]))
            except Exception as error:  # a backbone may be anyone's: one video's frames must not end the job
                text = " ".join(str(error).split())[:200]
                results.append(f"the backbone {self._settings.name} raised {type(error).__name__}: {text}")
            first += size
        return results, time.perf_counter() - started


def _import_from(places: Sequence[str]) -> None:
    sys.path += [place for place in places if place not in sys.path]


def _limit_memory(num_bytes: int) -> None:
    """Let allocations fail beyond this; shared memory, such as Ray's, does not count. Linux alone counts so."""
    status = Path("/proc/self/status")
    if status.exists():
        (used,) = (int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (used + num_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]))
