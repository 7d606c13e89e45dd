"""`open_live` and `Live`: frames of a pipe or a network stream, read once and in order as they arrive.

Every arriving frame is decoded, since later ones refer to it; only requested ones are converted to RGB. If the reader
is slower than the source, frames wait in the pipe or the connection, and nothing here drops them: a pipe makes its
writer wait, a server may disconnect, and UDP, which cannot wait, ends with an error.
"""

import errno
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from skipreel.pipeline.closeable import Closeable
from skipreel.pipeline.errors import VideoError
from skipreel.pipeline.video.decoder import Frame
from skipreel.pipeline.video.live.pipe import Pipe
from skipreel.pipeline.video.sampling import OnlineSampling, Sampling

SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "tcp", "udp", "srt")
# Neither playlists, which open other addresses, nor protocols that open files.
_FORMATS = "mpegts,matroska,mov,flv,live_flv,ogg,rtsp"
_PROTOCOLS = "rtp,srtp,udp,tcp,tls,http,https,httpproxy,rtmp,rtmps,srt"
_OPTIONS = {
    "format_whitelist": _FORMATS,
    "protocol_whitelist": _PROTOCOLS,
    "rtsp_flags": "prefer_tcp",  # over UDP, a slow network or reader loses frames
    "fpsprobesize": "0",  # FFmpeg would wait for twenty frames to guess a frame rate that is not needed
}
# If time goes back by more, the source's clock restarted; if by less, a frame is out of order.
_CLOCK_JUMP_S = 1.0


@dataclass(frozen=True, slots=True)
class LiveFrame:
    """A decoded frame that is not yet converted to RGB.

    Attributes:
        pts_s: presentation time in seconds from the first frame.
        to_rgb: converts it to a new (H, W, 3) uint8 RGB array, contiguous and upright.
    """

    pts_s: float
    to_rgb: Callable[[], Frame]


class Live(Closeable):
    """An open live source: iterate once over its frames, or over `sampled`; close it, or use it as a context manager.

    Times strictly ascend. The iteration raises VideoError if the source is silent for too long or breaks off.

    Attributes:
        name: the source, without the password of its address.
        start_s: the first frame's time on the source's own clock, in seconds; None before that frame.
        num_arrived: number of frames received, intact or not.
        num_decoded: number of frames decoded intact.
        num_converted: number of frames converted to RGB.
        num_damaged: number of frames left out: those before the first key frame, and those from a damaged frame to the
            next key frame.
        decode_s: seconds spent on decoding and converting, without the wait for the source.
    """

    def __init__(self, name: str, container: Any, pipe: Pipe | None, timeout_s: float) -> None:
        from av.video.reformatter import VideoReformatter

        self.name = name
        self.num_arrived = self.num_decoded = self.num_converted = self.num_damaged = 0
        self.decode_s = 0.0
        self._container, self._pipe, self._timeout_s = container, pipe, timeout_s
        self._is_ending = False
        self._stream = _video_stream(name, container)
        self._reformatter: Any = VideoReformatter()
        # Frames presented from the first of these to before the second are not intact; infinity: not known.
        self._broken_pts, self._intact_pts = -math.inf, math.inf
        self._failed_pts: int | None = None
        self.start_s: float | None = None
        self._first_pts = 0
        self._last_s, self._gap_s, self._shift_s = -math.inf, 0.0, 0.0

    def close(self) -> None:
        """Release the source; calling it again does nothing."""
        self._container.close()
        if self._pipe is not None:
            self._pipe.close()

    def end(self) -> None:
        """End the iteration, also from a signal handler: at once for a pipe, else when the next packet arrives."""
        self._is_ending = True
        if self._pipe is not None:
            self._pipe.is_ending = True

    def sampled(self, sampling: Sampling) -> Iterator[LiveFrame]:
        """Yield the frames that `sampling` selects, each after the next has arrived: the choice depends on its time."""
        online, previous = OnlineSampling(sampling), None
        for frame in self:
            if online.push(frame.pts_s):
                assert previous is not None
                yield previous
            previous = frame
        if previous is not None and online.end():
            yield previous

    def __iter__(self) -> Iterator[LiveFrame]:
        for packet in self._packets():
            if self._is_ending:
                return
            for frame in self._decode(packet):
                seconds = self._seconds(frame) if self._is_intact(frame) else None
                if seconds is None:
                    self.num_damaged += frame.pts is None or frame.pts != self._failed_pts
                    continue
                self.num_decoded += 1
                yield LiveFrame(seconds, partial(self._to_rgb, frame))

    def _packets(self) -> Iterator[Any]:
        """The packets as they arrive, then None to flush the frames that the decoder holds back."""
        with _explained(self.name, self._pipe, f"has sent nothing for {self._timeout_s:g} s", "broke off"):
            try:
                yield from (packet for packet in self._container.demux(self._stream) if packet.size)
            except OSError as error:
                # FFmpeg reports EIO when a server closes a stream of unknown length, as every live stream is.
                if not (error.errno == errno.EIO and self.name.lower().startswith(("http", "rtmp"))):
                    raise
        if self._pipe is not None and self._pipe.stopped is not None:
            raise self._pipe.stopped
        yield None

    def _decode(self, packet: Any) -> list[Any]:
        import av

        if packet is not None:
            self.num_arrived += 1
            if not self._is_decodable(packet):
                self.num_damaged += 1
                return []
        started = time.perf_counter()
        try:
            frames: list[Any] = self._stream.codec_context.decode(packet)
        except (av.FFmpegError, OSError):
            if packet is not None:
                self.num_damaged += 1
                self._failed_pts = packet.pts  # some decoders return a part of the frame nevertheless
                self._break(packet.pts)
            frames = []
        self.decode_s += time.perf_counter() - started
        return frames

    def _is_decodable(self, packet: Any) -> bool:
        """Whether a key frame has arrived since the start or the last damage."""
        if packet.is_corrupt:
            self._break(packet.pts)
        elif self._intact_pts == math.inf and packet.is_keyframe:
            self._intact_pts = -math.inf if packet.pts is None else packet.pts
        return self._intact_pts < math.inf

    def _break(self, pts: int | None) -> None:
        """Leave out the frame of this time and all later ones, which refer to it, up to the next key frame."""
        self._broken_pts = min(self._broken_pts, -math.inf if pts is None else pts)
        self._intact_pts = math.inf

    def _is_intact(self, frame: Any) -> bool:
        if frame.pts is None:
            return False
        if self._broken_pts <= frame.pts < self._intact_pts:
            return False
        if frame.is_corrupt:
            self._break(frame.pts)
            return False
        if frame.pts >= self._intact_pts:
            self._broken_pts = math.inf
        return True

    def _seconds(self, frame: Any) -> float | None:
        """A frame's time, later than the last one's; None for a frame out of order."""
        base = self._stream.time_base
        if self.start_s is None:
            self._first_pts, self.start_s = frame.pts, float(frame.pts * base)
        # Computed as a file's times are, to the last bit.
        seconds: float = float(frame.pts - self._first_pts) * base.numerator / base.denominator + self._shift_s
        if seconds <= self._last_s:
            if seconds > self._last_s - _CLOCK_JUMP_S:
                return None
            following = self._last_s + self._gap_s
            self._shift_s += following - seconds
            seconds = following
        self._gap_s, self._last_s = seconds - self._last_s, seconds
        return seconds

    def _to_rgb(self, frame: Any) -> Frame:
        started = time.perf_counter()
        # By default PyAV starts a pool of threads for every frame.
        picture = self._reformatter.reformat(frame, format="rgb24", threads=1)
        plane, width, height = picture.planes[0], picture.width, picture.height
        rows: Frame = np.ndarray((height, plane.line_size), np.uint8, plane)
        image = np.rot90(rows[:, : width * 3].reshape(height, width, 3), round(frame.rotation / 90) % 4)
        self.num_converted += 1
        self.decode_s += time.perf_counter() - started
        return np.ascontiguousarray(image)


def open_live(source: str, *, timeout_s: float = 10.0) -> Live:
    """Open a live source of MPEG-TS, Matroska (WebM), fragmented MP4, FLV or Ogg, or an RTSP server.

    FFmpeg reads up to five seconds of frames to learn what they are; the iteration yields those frames too.

    Args:
        source: the path of a FIFO, `-` for standard input, or an address with one of `SCHEMES`.
        timeout_s: seconds that the source may be silent, at the start and later.

    Raises:
        VideoError: if the source cannot be opened, is silent, or sends no video.
    """
    import av

    name = re.sub(r"//[^/@]*@", "//", source)
    scheme, is_address, _ = source.partition("://")
    if is_address and scheme.lower() not in SCHEMES:
        raise VideoError(f"{name} is not a live source; allowed: - (standard input), a FIFO, and {', '.join(SCHEMES)}")
    with ExitStack() as opened:
        pipe = None if is_address else opened.enter_context(closing(Pipe(source, timeout_s)))
        with _explained(name, pipe, f"gave no video within {timeout_s:g} s", "cannot be opened as a video stream"):
            container = opened.enter_context(av.open(pipe or source, options=_OPTIONS, timeout=timeout_s))
        live = Live(name, container, pipe, timeout_s)
        opened.pop_all()
    return live


@contextmanager
def _explained(name: str, pipe: Pipe | None, silent: str, failed: str) -> Iterator[None]:
    import av

    try:
        yield
    except (av.FFmpegError, OSError) as error:
        if pipe is not None and pipe.stopped is not None:
            raise pipe.stopped from None
        if isinstance(error, av.error.ExitError):
            raise VideoError(f"{name} {silent}: check that it is sending") from error
        raise VideoError(f"{name} {failed} ({error.strerror}): check the address and what sends there") from error


def _video_stream(name: str, container: Any) -> Any:
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        kinds = ", ".join(sorted({other.type for other in container.streams})) or "nothing"
        raise VideoError(f"{name} sends no video that this FFmpeg can decode, only {kinds}; send for example H.264")
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    # Stop at a corrupt frame instead of returning garbage.
    stream.codec_context.options = {"err_detect": "explode"}
    return stream
