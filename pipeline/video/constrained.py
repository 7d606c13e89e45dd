"""The base of the adapters of decord and torchcodec, which are exact on plain local files and refuse all others.

On some files both silently return other frames or pixels than PyAV: see docs/decoding.md. The packets and the first
frame of a file tell whether it is one of them. They do not tell damage inside frames: use pyav if it may occur.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from skipreel.pipeline import storage
from skipreel.pipeline.errors import VideoError
from skipreel.pipeline.video.decoder import Frame, VideoDecoder
from skipreel.pipeline.video.pyav.container import OpenContainer, open_container
from skipreel.pipeline.video.pyav.frame_index import FrameIndex, index_by_demuxing

_FORMATS = {"mp4", "matroska"}
# FFmpeg interpolates the colours of other pixel formats, and of 4:2:0 at odd heights, and each decoder asks it for
# another filter.
_PIXEL_FORMATS = {"yuv420p", "yuvj420p"}


class ConstrainedDecoder(VideoDecoder):
    """A plain local file read on one thread.

    Raises:
        VideoError: if the file cannot be opened or is not plain.
    """

    _decoder: ClassVar[str]  # its name
    _codecs: ClassVar[frozenset[str]]  # FFmpeg's names of those it decodes exactly
    _rotates: ClassVar[bool]  # whether it applies a rotation by quarter turns; otherwise such files are refused

    def __init__(self, uri: str) -> None:
        self._uri = uri
        path = storage.local_path(uri)
        if path is None:
            raise self._refused("it is not a local file")
        self._index = self._inspect()
        self._reader: Any = self._open(path)
        if len(self._reader) != len(self._index.pts_seconds):
            raise self._refused(
                f"the decoder sees {len(self._reader)} frames in place of {len(self._index.pts_seconds)}"
            )
        self.pts_seconds, self.start_s = self._index.pts_seconds, self._index.start_s
        self.duration_s = self._index.duration_s
        self._num_decoded = 0
        self._position = -1

    @abstractmethod
    def _open(self, path: Path) -> Any:
        """Open the decoder's own reader; its `len` is the number of frames."""

    @abstractmethod
    def _decode(self, index: int) -> Frame | None:
        """Frame `index` as `VideoDecoder.get_frame_at` returns it, or None if the decoder reports an error."""

    @property
    def num_decoded(self) -> int:
        """Computed, as the decoders do not tell: they decode from the last frame read or from a nearer key frame."""
        return self._num_decoded

    def get_frame_at(self, index: int) -> Frame:
        """See `VideoDecoder.get_frame_at`."""
        index = self._checked(index)
        if self._reader is None:
            raise ValueError(f"{self._uri} is closed")
        image = self._decode(index)
        if image is None:
            raise VideoError(
                f"{self._uri}: frame {index} of {len(self.pts_seconds)} could not be decoded; "
                f"the file is damaged or cut off there"
            )
        key = self._index.key_before(index)
        start = key.frame if key is not None else 0
        if start <= self._position < index:
            start = self._position + 1
        self._num_decoded += index - start + 1
        self._position = index
        return image

    def close(self) -> None:
        """See `VideoDecoder.close`."""
        self._reader = None

    def _inspect(self) -> FrameIndex:
        opened = open_container(self._uri, skip_probing=True)
        try:
            if len(opened.container.streams.video) > 1:
                raise self._refused("it has several video streams")
            formats, codec = set(opened.container.format.name.split(",")), opened.stream.codec_context.name
            if not formats & _FORMATS or codec not in self._codecs:
                raise self._refused(f"it does not decode {codec} in {opened.container.format.name} exactly")
            index = index_by_demuxing(self._uri, opened)
            if index is None or not index.plain:
                raise self._refused("it has an edit list, open groups of pictures or unclear frame times")
            reason = _unsupported_picture(_first_frame(self._uri, opened, index), self._rotates)
            if reason is not None:
                raise self._refused(reason)
            return index
        finally:
            opened.close()

    def _refused(self, reason: str) -> VideoError:
        return VideoError(f"{self._uri} is refused with decoder {self._decoder}: {reason}; use decoder pyav")


def _first_frame(uri: str, opened: OpenContainer, index: FrameIndex) -> Any:
    import av

    try:
        opened.container.seek(index.keys[0].seek_pts, stream=opened.stream)
        return next(opened.container.decode(opened.stream))
    except (av.FFmpegError, StopIteration) as error:
        raise VideoError(
            f"{uri}: frame 0 of {len(index.pts_seconds)} could not be decoded; the file is damaged"
        ) from error


def _unsupported_picture(frame: Any, rotates: bool) -> str | None:
    """The property of a picture that the decoders do not handle, or None."""
    from av.video.reformatter import ColorRange

    if frame.format.name not in _PIXEL_FORMATS:
        return f"its pixel format {frame.format.name} is not 8-bit 4:2:0"
    if frame.height % 2:
        return f"its height {frame.height} is odd"
    if frame.interlaced_frame:
        return "its pictures are interlaced"
    if frame.rotation % 90 or (frame.rotation and not rotates):
        return f"its pictures are rotated by {frame.rotation} degrees"
    if frame.format.name == "yuv420p" and frame.color_range == ColorRange.JPEG:
        return "its colours use the full range"
    return None
