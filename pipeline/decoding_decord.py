"""Reading with decord, for plain local MP4 and MKV files.

decord returns wrong frames without a word on edit lists, open groups of pictures, AVI and MPEG-TS, scrambles rows
when it turns pictures of most widths, rounds other formats than 8-bit 4:2:0 differently and cannot open AV1: all such
files are refused here. It does not always notice damaged frames or periodic intra refresh in place of key frames:
where those may occur, use pyav.
"""

from typing import Any

from pipeline import storage
from pipeline.decoding import Frame, Video
from pipeline.decoding_container import Opened, open_container
from pipeline.decoding_index import FrameIndex, index_by_demuxing
from pipeline.errors import VideoError

_FORMATS = {"mp4", "matroska"}
_CODECS = {"h264", "hevc", "mpeg4", "vp9"}
_PIXEL_FORMATS = {"yuv420p", "yuvj420p"}


class DecordVideo(Video):
    """A video read with decord on one thread; VideoError where it cannot be opened or decord would be wrong on it."""

    def __init__(self, uri: str) -> None:
        import decord

        path = storage.local_path(uri)
        if path is None:
            raise _refused(uri, "it is not a local file")
        self._uri = uri
        self._index = _plain_index(uri)
        try:
            self._reader: Any = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        except (decord.DECORDError, RuntimeError) as error:
            raise _refused(uri, "decord cannot open it") from error
        if len(self._reader) != len(self._index.seconds):
            raise _refused(uri, f"decord sees {len(self._reader)} frames in place of {len(self._index.seconds)}")
        self.pts_seconds = self._index.seconds
        self.duration_s = self._index.duration_s
        self._num_decoded = 0
        self._position = -1

    @property
    def num_decoded(self) -> int:
        """Counted by decord's rule, as it does not tell: all from the last frame read or, if nearer, the key frame."""
        return self._num_decoded

    def read(self, index: int) -> Frame:
        """See `Video.read`."""
        import decord

        index = self._checked(index)
        if self._reader is None:
            raise ValueError(f"{self._uri} is closed")
        try:
            image: Frame = self._reader[index].asnumpy()
        except (decord.DECORDError, RuntimeError) as error:
            raise VideoError(
                f"{self._uri}: frame {index} of {len(self.pts_seconds)} could not be decoded; "
                f"the file is damaged or cut off there"
            ) from error
        key = self._index.key_before(index)
        start = key[0] if key is not None else 0
        if start <= self._position < index:
            start = self._position + 1
        self._num_decoded += index - start + 1
        self._position = index
        return image

    def close(self) -> None:
        """See `Video.close`."""
        self._reader = None


def _plain_index(uri: str) -> FrameIndex:
    opened = open_container(uri)
    try:
        formats, codec = set(opened.container.format.name.split(",")), opened.stream.codec_context.name
        if not formats & _FORMATS or codec not in _CODECS:
            raise _refused(uri, f"{codec} in {opened.container.format.name} is not plain MP4 or MKV")
        if opened.stream.codec_context.pix_fmt not in _PIXEL_FORMATS:
            raise _refused(uri, f"its pixel format {opened.stream.codec_context.pix_fmt} is not 8-bit 4:2:0")
        index = index_by_demuxing(uri, opened)
        if index is not None and _is_rotated(uri, opened, index):
            raise _refused(uri, "it is rotated")
    finally:
        opened.close()
    if index is None or not index.plain:
        raise _refused(uri, "it has an edit list, open groups of pictures or unclear frame times")
    return index


def _is_rotated(uri: str, opened: Opened, index: FrameIndex) -> bool:
    import av

    try:
        opened.container.seek(index.keys[0][1], stream=opened.stream)
        return bool(next(opened.container.decode(opened.stream)).rotation)
    except (av.FFmpegError, StopIteration) as error:
        raise VideoError(f"{uri}: frame 0 of {len(index.seconds)} could not be decoded; the file is damaged") from error


def _refused(uri: str, why: str) -> VideoError:
    return VideoError(f"{uri} is refused with decoder decord: {why}; use decoder pyav")
