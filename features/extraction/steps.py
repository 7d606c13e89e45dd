"""The two steps of an extraction as pure functions: video files become chunks of frames, chunks become features.

Letters: T frames, D feature length.
"""

import errno
from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skipreel.features.extraction.tasks import FrameChunk, FrameSettings, VideoJob, VideoOutcome
from skipreel.features.feature_set.schema import Source
from skipreel.pipeline import storage
from skipreel.pipeline.errors import InputError, VideoError
from skipreel.pipeline.video import Frame, open_video
from skipreel.pipeline.video.sampling import Sampling

if TYPE_CHECKING:  # a process that only decodes does without torch
    from skipreel.features.backbones.backbone import Backbone


def decode(task: VideoJob, settings: FrameSettings) -> Iterator["tuple[FrameChunk, list[Frame]] | VideoOutcome"]:
    """The parts of one video, each with its frames, then its ending; no failure of a decoder gets out of here."""
    file_stat, reason = None, ""
    try:
        with storage.local_copy(task.uri) as copy:
            file_stat = copy.file_stat
            if copy.sha256 == task.known_digest:
                yield VideoOutcome(task, file_stat, unchanged=True)
                return
            ending = yield from _decode(task, copy, settings)
            (now,) = storage.file_stats([task.uri])
            if now not in (None, file_stat):
                raise VideoError(f"{task.uri} changed while it was read; run the extraction again")
            yield ending
    except Exception as error:  # a decoder may be anyone's: none of its failures may end the job
        reason = _reason(error, task)
    if reason:  # out of the handler: there the error would hold on to all memory that the video took
        yield VideoOutcome(task, file_stat, reason=reason)


def _decode(
    task: VideoJob, copy: storage.LocalCopy, settings: FrameSettings
) -> Generator["tuple[FrameChunk, list[Frame]]", None, VideoOutcome]:
    try:
        with open_video(copy.path, decoder=settings.decoder) as video:
            wanted = settings.sampling.select(video.pts_seconds)
            frames = video.iter_frames_at(wanted.tolist())
            first = 0
            while first < len(wanted):
                head = next(frames)
                part = [head, *islice(frames, settings.frames_per_part(head.nbytes) - 1)]
                index = wanted[first : first + len(part)]
                source = Source(copy.sha256, copy.file_stat, video.start_s)
                yield FrameChunk(task, source, first, index.astype(np.int32), video.pts_seconds[index]), part
                first += len(part)
            return VideoOutcome(task, copy.file_stat, len(wanted), video.duration_s)
    except VideoError as error:
        raise VideoError(str(error).replace(copy.path, task.uri)) from error


def _reason(error: Exception, task: VideoJob) -> str:
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
) -> Iterator[tuple[FrameChunk, NDArray[np.float16]]]:
    """One video in this process: each part with its features (T, D), as a feature set would hold them.

    Raises:
        VideoError: when the file cannot be opened, or one of its wanted frames cannot be decoded.
    """
    for piece in decode(VideoJob(uri, uri), FrameSettings(sampling, backbone.batch_size, decoder)):
        if not isinstance(piece, VideoOutcome):
            part, frames = piece
            yield part, encode(backbone, frames)
        elif piece.reason:
            raise VideoError(piece.reason)
