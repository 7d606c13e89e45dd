"""Exact random access with PyAV that decodes as little as it can.

Four things save work: opening without decoding; starting at a key frame between the last frame read and the wanted one,
where that costs less than decoding on; dropping non-reference frames that nobody wants before they are decoded;
converting to RGB only what is returned. The first three are shortcuts that some file may not bear: the first frame that
does not come out as the index says has the file opened at length; where that does not help either, it is read from its
start.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np

from skipreel.pipeline.errors import VideoError
from skipreel.pipeline.video.decoder import Frame, VideoDecoder
from skipreel.pipeline.video.pyav.container import OpenContainer, open_container
from skipreel.pipeline.video.pyav.frame_index import FrameIndex, Key, index_by_counting, index_by_demuxing
from skipreel.pipeline.video.pyav.seek_cost import Wanted, costs_of, seek_pays

# glibc gives a freed block back to the system, to be cleared anew for the next picture, unless it once saw one as large
# as this freed; it takes no larger ones into account. See docs/decoding.md for what that saves.
_LARGEST_KEPT_BYTES = (32 << 20) - (64 << 10)


class PyAVDecoder(VideoDecoder):
    """A video read with PyAV on one thread; VideoError where it cannot be opened."""

    def __init__(self, uri: str) -> None:
        from av.video.reformatter import VideoReformatter

        _keep_freed_memory()
        self._uri = uri
        self._reformatter: Any = VideoReformatter()
        self._num_decoded = self._num_converted = 0
        self._closed = False
        self._packets: Iterator[Any] = iter(())
        self._pending: deque[Any] = deque()  # frames that came out of the decoder beside the last one
        self._current: Any = None  # the frame that came out last
        self._position = -1  # its number
        self._fed = 0  # packets given to the decoder, counted from the first of the file
        self._dropped: set[int] = set()  # frames among them that it was to drop
        self._is_dropping = False
        self._expected: Collection[int] | None = None
        self._wanted = Wanted((), -1)
        self._opened: OpenContainer = open_container(uri, quick=True)
        try:
            self._index: FrameIndex = self._list_frames()
        except BaseException:
            self.close()
            raise
        self.pts_seconds, self.start_s = self._index.seconds, self._index.start_s
        self.duration_s = self._index.duration_s
        self._shortcuts = bool(self._index.slots)
        context = self._opened.stream.codec_context
        self._costs = costs_of(context.width * context.height)
        self._position = len(self.pts_seconds)  # beyond all frames: the first read starts afresh

    @property
    def num_decoded(self) -> int:
        """Frames that went through the decoder; those that it was to drop do not count."""
        return self._num_decoded

    @property
    def num_converted(self) -> int:
        """Those that were returned: what is decoded for the sake of other frames is never converted."""
        return self._num_converted

    def get_frame_at(self, index: int) -> Frame:
        """See `VideoDecoder.read`."""
        return self._read(self._checked(index), Wanted((index,), index, self._expected))

    def iter_frames_at(self, indices: Iterable[int]) -> Iterator[Frame]:
        """See `VideoDecoder.iter_frames_at`; knowing what is wanted later allows to drop more."""
        wanted = [self._checked(index) for index in indices]
        every = Wanted(frozenset(wanted), max(wanted, default=-1), self._expected)
        return (self._read(index, every) for index in wanted)

    def set_candidates(self, indices: Iterable[int]) -> None:
        """See `VideoDecoder.set_candidates`."""
        self._expected = frozenset(indices)

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
                self._shortcuts = self._opened.quick  # opened at length it may do with the other shortcuts
                self._restart(None)
                found = self._find(index)
            if not found:
                self._current = None
                raise _undecodable(self._uri, self._bad, len(self.pts_seconds))
        return self._to_rgb(self._current)

    def _find(self, index: int) -> bool:
        """Decode up to frame `index` and leave it in `_current`; False where it does not come out intact."""
        self._bad = index
        try:
            self._approach(index)
            while self._position < index:
                if not self._next_frame():
                    return False
        except _decoding_errors():
            self._bad = min(self._position + 1, index)
            self._position = len(self.pts_seconds)  # the next read starts afresh
            return False
        return self._position == index and not self._current.is_corrupt

    def _approach(self, index: int) -> None:
        key = self._index.key_before(index) if self._shortcuts else None
        is_gone = index <= self._position or index in self._dropped
        if is_gone or self._seek_pays(key):
            self._restart(key)

    def _seek_pays(self, key: Key | None) -> bool:
        return seek_pays(self._index, key, self._fed, self._wanted, self._costs)

    def _restart(self, key: Key | None) -> None:
        """Stand before a key frame, or before the first frame of the file for None."""
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
        """Take one frame out of the decoder, giving it packets as needed; False at the end of the video."""
        while not self._pending:
            packet = next(self._packets, None)
            if packet is None:
                return False
            self._feed(packet)
        self._current = self._pending.popleft()
        # Without times to go by, frames are counted.
        slots = self._index.slots
        self._position = slots.get(self._current.pts, self._position) if slots else self._position + 1
        return True

    def _feed(self, packet: Any) -> None:
        slot = self._index.slots.get(packet.pts, -1)
        drop = self._shortcuts and slot in self._index.droppable and self._wanted.spares(slot)
        if drop != self._is_dropping:
            self._is_dropping = drop
            self._opened.stream.codec_context.skip_frame = "NONREF" if drop else "DEFAULT"
        if drop:
            self._dropped.add(slot)
        elif packet.size:
            self._num_decoded += 1
        self._fed = self._index.places.get(slot, self._fed) + 1
        self._pending.extend(packet.decode())

    def _to_rgb(self, frame: Any) -> Frame:
        self._num_converted += 1
        # Left alone PyAV starts a pool of threads for every frame.
        picture = self._reformatter.reformat(frame, format="rgb24", threads=1)
        plane, width, height = picture.planes[0], picture.width, picture.height
        rows: Frame = np.ndarray((height, plane.line_size), np.uint8, plane)
        image = rows[:, : width * 3].reshape(height, width, 3)
        if quarter_turns := round(frame.rotation / 90) % 4:
            image = np.rot90(image, quarter_turns)
        # FFmpeg pads rows to 16 bytes. Where it did not, its picture, made for this call, is handed out as it is.
        return np.ascontiguousarray(image)


@cache
def _keep_freed_memory() -> None:
    """Have the allocator keep freed pictures, up to 64 MB of them, for the next ones; once in a process is enough."""
    np.empty(_LARGEST_KEPT_BYTES, dtype=np.uint8)  # freed at once, untouched


def _undecodable(uri: str, index: int, num_frames: int) -> VideoError:
    place = f"frame {index} of {num_frames}" if num_frames else f"frame {index}"
    return VideoError(f"{uri}: {place} could not be decoded; the file is damaged or cut off there")


def _decoding_errors() -> tuple[type[Exception], ...]:
    import av

    return av.FFmpegError, OSError
