"""The two steps of an extraction as functions, `decode` and `encode`; `extract_video` runs both in this process.

Letters: T frames, D feature length.
"""

import errno
from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skipreel.features.extraction.work import FrameChunk, FrameSettings, VideoJob, VideoOutcome
from skipreel.features.feature_set.schema import Source
from skipreel.pipeline import storage
from skipreel.pipeline.errors import InputError, VideoError
from skipreel.pipeline.video import Frame, open_video
from skipreel.pipeline.video.sampling import Sampling

if TYPE_CHECKING:  # a process that only decodes does not import torch
    from skipreel.features.backbones.backbone import Backbone


def decode(job: VideoJob, settings: FrameSettings) -> Iterator["tuple[FrameChunk, list[Frame]] | VideoOutcome"]:
    """Yield the chunks of one video with their frames, then its outcome; a failure is an outcome with a reason."""
    file_stat, reason = None, ""
    try:
        with storage.local_copy(job.uri) as copy:
            file_stat = copy.file_stat
            if copy.sha256 == job.known_digest:
                yield VideoOutcome(job, file_stat, unchanged=True)
                return
            outcome = yield from _decode(job, copy, settings)
            (now,) = storage.file_stats([job.uri])
            if now not in (None, file_stat):
                raise VideoError(f"{job.uri} changed while it was read; run the extraction again")
            yield outcome
    except Exception as error:  # the decoder may be a user's: its failure must not end the extraction
        reason = _reason(error, job)
    if reason:  # outside the handler: inside, the error would keep all memory of the video alive
        yield VideoOutcome(job, file_stat, reason=reason)


def _decode(
    job: VideoJob, copy: storage.LocalCopy, settings: FrameSettings
) -> Generator["tuple[FrameChunk, list[Frame]]", None, VideoOutcome]:
    try:
        with open_video(copy.path, decoder=settings.decoder) as video:
            wanted = settings.sampling.select(video.pts_seconds)
            frames = video.iter_frames_at(wanted.tolist())
            first = 0
            while first < len(wanted):
                head = next(frames)
                chunk = [head, *islice(frames, settings.frames_per_chunk(head.nbytes) - 1)]
                index = wanted[first : first + len(chunk)]
                source = Source(copy.sha256, copy.file_stat, video.start_s)
                yield FrameChunk(job, source, first, index.astype(np.int32), video.pts_seconds[index]), chunk
                first += len(chunk)
            return VideoOutcome(job, copy.file_stat, len(wanted), video.duration_s)
    except VideoError as error:
        raise VideoError(str(error).replace(copy.path, job.uri)) from error


def _reason(error: Exception, job: VideoJob) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or getattr(cause, "errno", None) == errno.ENOMEM:
            return f"{job.uri} needs more memory than a decoder may take; give more with --decoder-memory-mb"
        cause = cause.__cause__
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    return f"{job.uri}: the decoder raised {type(error).__name__}: {text[:200]}"


def encode(backbone: "Backbone", frames: Sequence[Frame]) -> NDArray[np.float16]:
    """Encode the T frames of one chunk to (T, D) float16, batch by batch; raises as `Backbone.encode`."""
    batches = [frames[start : start + backbone.batch_size] for start in range(0, len(frames), backbone.batch_size)]
    return np.concatenate([backbone.encode(batch) for batch in batches])


def extract_video(
    uri: str, *, backbone: "Backbone", sampling: Sampling, decoder: str = "pyav"
) -> Iterator[tuple[FrameChunk, NDArray[np.float16]]]:
    """Extract one video in this process, with the same bits as in a feature set.

    Yields:
        Each chunk with its features, (T, D) float16.

    Raises:
        VideoError: if the file cannot be opened, or a sampled frame cannot be decoded.
        BackboneError: as `Backbone.encode`.
    """
    for piece in decode(VideoJob(uri, uri), FrameSettings(sampling, backbone.batch_size, decoder)):
        if not isinstance(piece, VideoOutcome):
            chunk, frames = piece
            yield chunk, encode(backbone, frames)
        elif piece.reason:
            raise VideoError(piece.reason)
