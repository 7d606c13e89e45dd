"""The work of an extraction and what comes of it: videos to decode, chunks of their frames, outcomes.

A part is the smallest piece of work: consecutive sampled frames of one video, cut at the same places whatever else is
going on, and encoded apart from other parts. So features do not depend on what ran beside them, to the last bit.
Letters: T frames.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skipreel.features.feature_set.schema import Source
from skipreel.pipeline.storage import FileStat
from skipreel.pipeline.video import Frame
from skipreel.pipeline.video.sampling import Sampling

if TYPE_CHECKING:  # a process that only decodes does without torch
    pass

PART_BYTES, PART_FRAMES = 32 << 20, 16
# A block closes at the first part that takes it here: enough to make the way cheap, little enough to hold several.
BLOCK_BYTES, BLOCK_FRAMES = 16 << 20, 64


@dataclass(frozen=True, slots=True)
class VideoJob:
    """A video to be decoded; with ``known_digest``, only if its content has another SHA-256."""

    video_id: str
    uri: str
    known_digest: str = ""
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class FrameSettings:
    """How videos become parts.

    Attributes:
        batch_size: the backbone's, so that no batch is cut in two: how many make a part does not change a feature.
        part_frames: frames of a part, where they are small enough.
    """

    sampling: Sampling
    batch_size: int
    decoder: str = "pyav"
    part_frames: int = PART_FRAMES

    def frames_per_part(self, frame_bytes: int) -> int:
        """A multiple of the batch size where frames are small enough."""
        count = max(1, min(PART_BYTES // frame_bytes, max(self.part_frames, self.batch_size)))
        return count - count % self.batch_size if count > self.batch_size else count


@dataclass(frozen=True, slots=True)
class FrameChunk:
    """Consecutive sampled frames of one video.

    Attributes:
        first: how many sampled frames came before.
        frame_index: (T,) int32, places in presentation order.
        pts_s: (T,) float64, presentation times in seconds from the video's first frame on.
    """

    task: VideoJob
    source: Source
    first: int
    frame_index: NDArray[np.int32]
    pts_s: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class VideoOutcome:
    """What became of one video in the decoder.

    Attributes:
        stamp: of the file; None where there was none.
        num_frames: T, of all its parts.
        duration_s: of the video.
        reason: why it failed; "" where it did not.
        unchanged: its content still has the known digest, so nothing was decoded.
    """

    task: VideoJob
    file_stat: FileStat | None
    num_frames: int = 0
    duration_s: float = 0.0
    reason: str = ""
    unchanged: bool = False


@dataclass(slots=True)
class FrameBlock:
    """What a decoder hands on at once: parts and endings of one or more videos, and all frames of the parts."""

    parts: list[FrameChunk] = field(default_factory=list)
    endings: list[VideoOutcome] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether it is worth sending."""
        return len(self.frames) >= BLOCK_FRAMES or sum(frame.nbytes for frame in self.frames) >= BLOCK_BYTES

    def add(self, piece: "tuple[FrameChunk, list[Frame]] | VideoOutcome") -> None:
        """Append what `decode` yields."""
        if isinstance(piece, VideoOutcome):
            self.endings.append(piece)
        else:
            self.parts.append(piece[0])
            self.frames += piece[1]
