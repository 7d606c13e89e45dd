"""Video files become parts of frames, parts become features: the pure functions under every way of extracting.

A part is the smallest piece of work: consecutive sampled frames of one video, cut at the same places whatever else is
going on, and encoded apart from other parts. So features do not depend on what ran beside them, to the last bit.
Letters: T frames, D feature length.
"""

import errno
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skipreel.features.feature_set.schema import Source
from skipreel.pipeline import storage
from skipreel.pipeline.errors import InputError, VideoError
from skipreel.pipeline.storage import FileStamp
from skipreel.pipeline.video import Frame, open_video
from skipreel.pipeline.video.sampling import Sampling

if TYPE_CHECKING:  # a process that only decodes does without torch
    from skipreel.features.backbones.backbone import Backbone

PART_BYTES, PART_FRAMES = 32 << 20, 16
# A block closes at the first part that takes it here: enough to make the way cheap, little enough to hold several.
BLOCK_BYTES, BLOCK_FRAMES = 16 << 20, 64


@dataclass(frozen=True, slots=True)
class VideoTask:
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
class Part:
    """Consecutive sampled frames of one video.

    Attributes:
        first: how many sampled frames came before.
        frame_index: (T,) int32, places in presentation order.
        pts_s: (T,) float64, presentation times in seconds from the video's first frame on.
    """

    task: VideoTask
    source: Source
    first: int
    frame_index: NDArray[np.int32]
    pts_s: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ending:
    """What became of one video in the decoder.

    Attributes:
        stamp: of the file; None where there was none.
        num_frames: T, of all its parts.
        duration_s: of the video.
        reason: why it failed; "" where it did not.
        unchanged: its content still has the known digest, so nothing was decoded.
    """

    task: VideoTask
    stamp: FileStamp | None
    num_frames: int = 0
    duration_s: float = 0.0
    reason: str = ""
    unchanged: bool = False


@dataclass(slots=True)
class Block:
    """What a decoder hands on at once: parts and endings of one or more videos, and all frames of the parts."""

    parts: list[Part] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether it is worth sending."""
        return len(self.frames) >= BLOCK_FRAMES or sum(frame.nbytes for frame in self.frames) >= BLOCK_BYTES

    def add(self, piece: "tuple[Part, list[Frame]] | Ending") -> None:
        """Append what `decode` yields."""
        if isinstance(piece, Ending):
            self.endings.append(piece)
        else:
            self.parts.append(piece[0])
            self.frames += piece[1]


def decode(task: VideoTask, settings: FrameSettings) -> Iterator["tuple[Part, list[Frame]] | Ending"]:
    """The parts of one video, each with its frames, then its ending; no failure of a decoder gets out of here."""
    stamp, reason = None, ""
    try:
        with storage.local_copy(task.uri) as copy:
            stamp = copy.stamp
            if copy.sha256 == task.known_digest:
                yield Ending(task, stamp, unchanged=True)
                return
            ending = yield from _decode(task, copy, settings)
            (now,) = storage.stamps([task.uri])
            if now not in (None, stamp):
                raise VideoError(f"{task.uri} changed while it was read; run the extraction again")
            yield ending
    except Exception as error:  # a decoder may be anyone's: none of its failures may end the job
        reason = _reason(error, task)
    if reason:  # out of the handler: there the error would hold on to all memory that the video took
        yield Ending(task, stamp, reason=reason)


def _decode(
    task: VideoTask, copy: storage.LocalCopy, settings: FrameSettings
) -> Generator["tuple[Part, list[Frame]]", None, Ending]:
    try:
        with open_video(copy.path, decoder=settings.decoder) as video:
            wanted = settings.sampling.select(video.pts_seconds)
            frames = video.read_many(wanted.tolist())
            first = 0
            while first < len(wanted):
                head = next(frames)
                part = [head, *islice(frames, settings.frames_per_part(head.nbytes) - 1)]
                index = wanted[first : first + len(part)]
                source = Source(copy.sha256, copy.stamp, video.start_s)
                yield Part(task, source, first, index.astype(np.int32), video.pts_seconds[index]), part
                first += len(part)
            return Ending(task, copy.stamp, len(wanted), video.duration_s)
    except VideoError as error:
        raise VideoError(str(error).replace(copy.path, task.uri)) from error


def _reason(error: Exception, task: VideoTask) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or getattr(cause, "errno", None) == errno.ENOMEM:
            return f"{task.uri} needs more memory than a decoder may take; give more with --decoder-memory-mb"
        cause = cause.__cause__
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    return f"{task.uri}: the decoder raised {type(error).__name__}: {text[:200]}"


def encode(backbone: "Backbone", frames: Sequence[Frame]) -> NDArray[np.float16]:
    """Features (T, D) of the T frames of one part."""
    batches = [frames[start : start + backbone.batch_size] for start in range(0, len(frames), backbone.batch_size)]
    return np.concatenate([backbone.encode(batch) for batch in batches])


def extract_video(
    uri: str, *, backbone: "Backbone", sampling: Sampling, decoder: str = "pyav"
) -> Iterator[tuple[Part, NDArray[np.float16]]]:
    """One video in this process: each part with its features (T, D), as a feature set would hold them.

    Raises:
        VideoError: when the file cannot be opened, or one of its wanted frames cannot be decoded.
    """
    for piece in decode(VideoTask(uri, uri), FrameSettings(sampling, backbone.batch_size, decoder)):
        if not isinstance(piece, Ending):
            part, frames = piece
            yield part, encode(backbone, frames)
        elif piece.reason:
            raise VideoError(piece.reason)
