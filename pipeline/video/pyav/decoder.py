"""The PyAV decoder: exact random access that decodes as little as possible.

Four things save work: to open without probing; to seek to a key frame when that costs less than to decode on; to drop
unwanted non-reference frames before they are decoded; to convert only returned frames to RGB. The first three are
shortcuts that may fail on some file. If a frame does not come out as the index says, the file is reopened with
probing. If that does not help, it is read from its start without shortcuts.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np

from skipreel.pipeline.errors import VideoError
from skipreel.pipeline.video.decoder import Frame, VideoDecoder
from skipreel.pipeline.video.pyav.container import OpenContainer, open_container
from skipreel.pipeline.video.pyav.frame_index import FrameIndex, KeyFrame, index_by_counting, index_by_demuxing
from skipreel.pipeline.video.pyav.seek_cost import Wanted, costs_of, seek_pays

# glibc returns a large freed block to the system, which must clear it again for the next picture. It keeps such blocks
# once it has seen one freed; this is the largest size it takes into account. docs/decoding.md says what that saves.
_LARGEST_KEPT_BYTES = (32 << 20) - (64 << 10)


class PyAVDecoder(VideoDecoder):
    """A video read with PyAV on one thread.

    Raises:
        VideoError: if the file cannot be opened.
    """

    def __init__(self, uri: str) -> None:
        from av.video.reformatter import VideoReformatter

        _keep_freed_memory()
        self._uri = uri
        self._reformatter: Any = VideoReformatter()
        self._num_decoded = self._num_converted = 0
        self._closed = False
        self._packets: Iterator[Any] = iter(())
        self._pending: deque[Any] = deque()  # frames that came out of the decoder after the current one
        self._current: Any = None
        self._position = -1  # the number of the current frame
        self._fed = 0  # position in decoding order of the next packet
        self._dropped: set[int] = set()  # frames that the decoder was told to drop since it started
        self._is_dropping = False
        self._candidates: Collection[int] | None = None
        self._wanted = Wanted((), -1)
        self._opened: OpenContainer = open_container(uri, skip_probing=True)
        try:
            self._index: FrameIndex = self._list_frames()
        except BaseException:
            self.close()
            raise
        self.pts_seconds, self.start_s = self._index.pts_seconds, self._index.start_s
        self.duration_s = self._index.duration_s
        self._shortcuts = bool(self._index.frame_by_pts)
        context = self._opened.stream.codec_context
        self._costs = costs_of(context.width * context.height)
        self._position = len(self.pts_seconds)  # after all frames, so that the first read restarts the decoder

    @property
    def num_decoded(self) -> int:
        """See `VideoDecoder.num_decoded`; dropped frames do not count."""
        return self._num_decoded

    @property
    def num_converted(self) -> int:
        """See `VideoDecoder.num_converted`; only returned frames are converted."""
        return self._num_converted

    def get_frame_at(self, index: int) -> Frame:
        """See `VideoDecoder.get_frame_at`."""
        return self._read(self._checked(index), Wanted((index,), index, self._candidates))

    def iter_frames_at(self, indices: Iterable[int]) -> Iterator[Frame]:
        """See `VideoDecoder.iter_frames_at`; more frames are dropped than with single reads."""
        wanted = [self._checked(index) for index in indices]
        every = Wanted(frozenset(wanted), max(wanted, default=-1), self._candidates)
        return (self._read(index, every) for index in wanted)

    def set_candidates(self, indices: Iterable[int]) -> None:
        """See `VideoDecoder.set_candidates`."""
        self._candidates = frozenset(indices)

    def close(self) -> None:
        """See `VideoDecoder.close`."""
        if not self._closed:
            self._closed = True
            self._current = None
            self._opened.close()

    def _list_frames(self) -> FrameIndex:
        index = index_by_demuxing(self._uri, self._opened)
        if index is not None:
            return index
        self._reopen()
        pts: list[int | None] = []
        try:
            for frame in self._opened.container.decode(self._opened.stream):
                pts.append(frame.pts)
        except _decoding_errors() as error:
            raise _undecodable(self._uri, len(pts), self._opened.stream.frames) from error
        finally:
            self._num_decoded += len(pts)
        return index_by_counting(self._uri, self._opened, pts)

    def _read(self, index: int, wanted: Wanted) -> Frame:
        if self._closed:
            raise ValueError(f"{self._uri} is closed")
        self._wanted = wanted
        if index != self._position or self._current is None:
            found = self._find(index)
            while not found and self._shortcuts:
                self._shortcuts = self._opened.probing_skipped  # after probing, the other shortcuts may work
                self._restart(None)
                found = self._find(index)
            if not found:
                self._current = None
                raise _undecodable(self._uri, self._bad, len(self.pts_seconds))
        return self._to_rgb(self._current)

    def _find(self, index: int) -> bool:
        """Decode up to frame `index` and leave it in `_current`; False if it does not come out intact."""
        self._bad = index
        try:
            self._approach(index)
            while self._position < index:
                if not self._next_frame():
                    return False
        except _decoding_errors():
            self._bad = min(self._position + 1, index)
            self._position = len(self.pts_seconds)  # the next read restarts the decoder
            return False
        return self._position == index and not self._current.is_corrupt

    def _approach(self, index: int) -> None:
        key = self._index.key_before(index) if self._shortcuts else None
        is_gone = index <= self._position or index in self._dropped
        if is_gone or self._seek_pays(key):
            self._restart(key)

    def _seek_pays(self, key: KeyFrame | None) -> bool:
        return seek_pays(self._index, key, self._fed, self._wanted, self._costs)

    def _restart(self, key: KeyFrame | None) -> None:
        """Restart the decoder at a key frame; None: at the start of the file."""
        if key is None:
            self._reopen()
        else:
            self._opened.container.seek(key.seek_pts, stream=self._opened.stream, backward=True, any_frame=False)
        self._packets = self._opened.container.demux(self._opened.stream)
        self._pending = deque()
        self._dropped = set()
        self._is_dropping = False
        self._opened.stream.codec_context.skip_frame = "DEFAULT"
        self._position, self._fed = -1, key.place if key is not None else 0
        self._current = None

    def _reopen(self) -> None:
        self._opened.close()
        self._opened = open_container(self._uri)

    def _next_frame(self) -> bool:
        """Take the next frame out of the decoder and feed it packets as needed; False at the end of the video."""
        while not self._pending:
            packet = next(self._packets, None)
            if packet is None:
                return False
            self._feed(packet)
        self._current = self._pending.popleft()
        # If packets do not state times, frames are counted.
        frame_by_pts = self._index.frame_by_pts
        self._position = frame_by_pts.get(self._current.pts, self._position) if frame_by_pts else self._position + 1
        return True

    def _feed(self, packet: Any) -> None:
        frame = self._index.frame_by_pts.get(packet.pts, -1)
        drop = self._shortcuts and frame in self._index.droppable and self._wanted.may_drop(frame)
        if drop != self._is_dropping:
            self._is_dropping = drop
            self._opened.stream.codec_context.skip_frame = "NONREF" if drop else "DEFAULT"
        if drop:
            self._dropped.add(frame)
        elif packet.size:
            self._num_decoded += 1
        self._fed = self._index.places.get(frame, self._fed) + 1
        self._pending.extend(packet.decode())

    def _to_rgb(self, frame: Any) -> Frame:
        self._num_converted += 1
        # By default PyAV starts a pool of threads for every frame.
        picture = self._reformatter.reformat(frame, format="rgb24", threads=1)
        plane, width, height = picture.planes[0], picture.width, picture.height
        rows: Frame = np.ndarray((height, plane.line_size), np.uint8, plane)
        image = rows[:, : width * 3].reshape(height, width, 3)
        if quarter_turns := round(frame.rotation / 90) % 4:
            image = np.rot90(image, quarter_turns)
        # FFmpeg pads rows to 16 bytes. A picture without padding is returned without a copy.
        return np.ascontiguousarray(image)


@cache
def _keep_freed_memory() -> None:
    """Make the allocator keep up to 64 MB of freed pictures for the next ones; needed once per process."""
    np.empty(_LARGEST_KEPT_BYTES, dtype=np.uint8)  # freed immediately, never touched


def _undecodable(uri: str, index: int, num_frames: int) -> VideoError:
    place = f"frame {index} of {num_frames}" if num_frames else f"frame {index}"
    return VideoError(f"{uri}: {place} could not be decoded; the file is damaged or cut off there")


def _decoding_errors() -> tuple[type[Exception], ...]:
    import av

    return av.FFmpegError, OSError
