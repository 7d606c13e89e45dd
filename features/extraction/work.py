"""The units of work of an extraction: `VideoJob`, `FrameChunk`, `FrameBlock` and `VideoOutcome`.

A chunk is the smallest one: consecutive sampled frames of one video. A video is always cut at the same places, and
chunks are encoded separately, so features do not depend on what else is running, to the last bit.
Letters: T frames.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from skipreel.features.feature_set.schema import Source
from skipreel.pipeline.storage import FileStat
from skipreel.pipeline.video import Frame
from skipreel.pipeline.video.sampling import Sampling

CHUNK_BYTES, CHUNK_FRAMES = 32 << 20, 16
# A block is full when a chunk takes it to one of these sizes: cheap to send, small enough to hold several.
BLOCK_BYTES, BLOCK_FRAMES = 16 << 20, 64


@dataclass(frozen=True, slots=True)
class VideoJob:
    """A video to decode.

    Attributes:
        known_digest: SHA-256 (hex); a file that still has it is not decoded. "" decodes any file.
        attempt: how often the video was started before.
    """

    video_id: str
    uri: str
    known_digest: str = ""
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class FrameSettings:
    """How videos become chunks.

    Attributes:
        batch_size: the backbone's; chunks hold whole batches, so the chunk size does not change a feature.
        decoder: a registered name, or ``module:class``.
        chunk_frames: frames in a chunk, unless they are too large.
    """

    sampling: Sampling
    batch_size: int
    decoder: str = "pyav"
    chunk_frames: int = CHUNK_FRAMES

    def frames_per_chunk(self, frame_bytes: int) -> int:
        """Frames in a chunk: a multiple of the batch size, unless frames are too large."""
        count = max(1, min(CHUNK_BYTES // frame_bytes, max(self.chunk_frames, self.batch_size)))
        return count - count % self.batch_size if count > self.batch_size else count


@dataclass(frozen=True, slots=True)
class FrameChunk:
    """Consecutive sampled frames of one video.

    Attributes:
        first: number of sampled frames before this chunk.
        frame_index: (T,) int32, positions in presentation order.
        pts_s: (T,) float64, presentation times in seconds from the video's first frame.
    """

    job: VideoJob
    source: Source
    first: int
    frame_index: NDArray[np.int32]
    pts_s: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class VideoOutcome:
    """How the decoding of one video ended.

    Attributes:
        file_stat: the file's size and time of change; None if there is no file.
        num_frames: frames in all its chunks.
        duration_s: length of the video in seconds.
        reason: why it failed; "" if it did not.
        unchanged: whether the file still has the known digest, so that nothing was decoded.
    """

    job: VideoJob
    file_stat: FileStat | None
    num_frames: int = 0
    duration_s: float = 0.0
    reason: str = ""
    unchanged: bool = False


@dataclass(slots=True)
class FrameBlock:
    """What a decoder sends at once: chunks and outcomes of one or more videos, and all frames of the chunks."""

    chunks: list[FrameChunk] = field(default_factory=list)
    outcomes: list[VideoOutcome] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether to send it."""
        return len(self.frames) >= BLOCK_FRAMES or sum(frame.nbytes for frame in self.frames) >= BLOCK_BYTES

    def add(self, piece: "tuple[FrameChunk, list[Frame]] | VideoOutcome") -> None:
        """Append what `steps.decode` yields."""
        if isinstance(piece, VideoOutcome):
            self.outcomes.append(piece)
        else:
            self.chunks.append(piece[0])
            self.frames += piece[1]
