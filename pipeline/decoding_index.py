"""Opening a video file and listing its frames without decoding them.

Letters: N frames in the video.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.errors import StorageError, VideoError

# FFmpeg guesses the format from the content. Left to itself it would read a playlist, which opens further files and
# addresses, or draw a text file as pictures.
_FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg"
# Containers whose packets state when their frame is presented. Elsewhere that holds only without B-frames.
_EXACT_FORMATS = {"mov", "mp4", "matroska", "webm"}
_EBML_ID, _SEGMENT_ID = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_BULKY = {b"mdat", b"moov", b"moof", b"RIFF", _SEGMENT_ID}


@dataclass
class Opened:
    """An open container, its video stream, and the Python file under it for URIs that FFmpeg does not read itself."""

    container: Any
    stream: Any
    file: Any = None

    def close(self) -> None:
        """Close container and file; an unclosed container holds a thread and a descriptor."""
        self.container.close()
        if self.file is not None:
            self.file.close()


@dataclass(frozen=True)
class FrameIndex:
    """The N frames of a video in presentation order.

    Attributes:
        seconds: (N,) float64 presentation times.
        duration_s: seconds from the first frame to the end of the last.
        slots: frame number by the pts of its packet; empty where packets do not tell and frames can only be counted.
        keys: (frame number, pts) of the points where decoding can start, ascending: that frame and all later ones
            decode from there.
        plain: no frame is cut off by an edit list, none needs a frame from before the key frame that it follows.
    """

    seconds: NDArray[np.float64]
    duration_s: float
    slots: dict[int, int]
    keys: tuple[tuple[int, int], ...] = ()
    plain: bool = False

    def key_before(self, index: int) -> tuple[int, int] | None:
        """The last point from where frame `index` decodes, or None where only the start of the file is known."""
        place = bisect_right(self.keys, index, key=lambda key: key[0])
        return self.keys[place - 1] if place else None


def open_container(uri: str) -> Opened:
    """Open a video file for one decoding thread; VideoError, with a reason a person understands, where it is none."""
    import av

    file = None
    try:
        path = storage.local_path(uri)
        with storage.open_input(uri) as probe:
            head = probe.read(16)
            size = probe.seek(0, 2)
            missing = _missing_bytes(probe, size)
        if not size:
            raise VideoError(f"{uri} is empty (0 bytes); copy or record it again")
        if missing:
            raise VideoError(
                f"{uri} is cut off: {missing} of {size + missing} bytes are missing; copy or record it again"
            )
        file = None if path is not None else storage.open_input(uri)
        container = av.open(file or str(path), options={"format_whitelist": _FORMATS})
    except StorageError as error:
        raise VideoError(str(error)) from error
    except (av.FFmpegError, OSError) as error:
        if file is not None:
            file.close()
        raise VideoError(f"{uri} {_why_unreadable(head)}") from error
    opened = Opened(container, container.streams.best("video"), file)
    try:
        _prepare(uri, opened)
    except BaseException:
        opened.close()
        raise
    return opened


def _why_unreadable(head: bytes) -> str:
    if head[4:8] == b"ftyp":
        return "is cut off: the index at the end of this MP4/MOV file is missing; copy or record it again"
    return "is not a video, or is damaged at its start; give a file such as MP4, MKV, AVI or MPEG"


def _prepare(uri: str, opened: Opened) -> None:
    import av

    stream = opened.stream
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        kinds = ", ".join(sorted({other.type for other in opened.container.streams})) or "nothing"
        raise VideoError(f"{uri} has no video stream, only {kinds}; give a file with pictures")
    if stream.codec_context is None:
        raise VideoError(f"{uri} uses a codec that this FFmpeg cannot decode; convert it, for example to H.264")
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    # Stop at the first corrupt frame instead of handing out garbage.
    stream.codec_context.options = {"err_detect": "explode"}


def _missing_bytes(file: BinaryIO, size: int) -> int:
    """How many bytes the outermost elements of an MP4, Matroska or AVI file claim beyond its end: 0 for an intact file.

    FFmpeg plays a file that was cut off as if it were a shorter one.
    """
    at, end = 0, 0
    while at + 16 <= size:
        file.seek(at)
        kind, length = _element(file.read(16))
        if length is None:
            break
        at += length
        end = at if kind in _BULKY else end
    return max(end - size, 0)


def _element(head: bytes) -> tuple[bytes, int | None]:
    """Kind and whole length in bytes of the element that starts with these 16 bytes; None where that is left open."""
    if head[:4] in (_EBML_ID, _SEGMENT_ID):
        width = 9 - head[4].bit_length()  # the leading zero bits give the number of bytes of the length
        open_ended = (1 << 7 * width) - 1  # all ones: a live recording
        length = int.from_bytes(head[4 : 4 + width], "big") & open_ended
        return head[:4], None if length == open_ended else 4 + width + length
    if head[:4] == b"RIFF":
        length = int.from_bytes(head[4:8], "little")
        return head[:4], 8 + length + length % 2 if 0 < length < 0xFFFFFFF0 else None
    length = int.from_bytes(head[:4], "big")
    if length == 1:
        length = int.from_bytes(head[8:16], "big")
    return head[4:8], length if length >= 8 else None


class _Packet(NamedTuple):
    pts: int
    length: int  # in ticks, 0 where it is not known
    is_key: bool
    is_cut: bool  # decoded, but hidden by an edit list


def index_by_demuxing(uri: str, opened: Opened) -> FrameIndex | None:
    """List the frames from the packets alone, or None where those do not say what comes out of the decoder.

    VideoError where reading stops before the end, or there is no frame.
    """
    stream = opened.stream
    formats = set(opened.container.format.name.split(","))
    if not formats & _EXACT_FORMATS and stream.codec_context.has_b_frames:
        return None
    packets = _demux(uri, opened)
    if any(packet.pts is None for packet in packets):
        return None
    every = sorted(packet.pts for packet in packets)
    pts = sorted(packet.pts for packet in packets if not packet.is_cut)
    starts_clean = packets[0].is_key and packets[0].pts == every[0]
    if len(set(every)) != len(every) or not pts or not starts_clean:
        return None
    seconds = np.array(pts, dtype=np.float64) * stream.time_base.numerator / stream.time_base.denominator
    last_length = next(packet.length for packet in packets if packet.pts == pts[-1])
    return FrameIndex(
        seconds,
        _duration(seconds, stream, last_length),
        {at: slot for slot, at in enumerate(pts)},
        tuple(sorted((bisect_left(pts, packet.pts), packet.pts) for packet in packets if packet.is_key)),
        plain=len(pts) == len(every) and not _has_open_groups(packets),
    )


def _demux(uri: str, opened: Opened) -> list[_Packet]:
    import av

    container, stream = opened.container, opened.stream
    is_matroska = "matroska" in container.format.name
    packets, end_s = [], 0.0
    try:
        # Damage in a Matroska file looks like its end; its header tells how long the longest of all streams is.
        for packet in container.demux() if is_matroska else container.demux(stream):
            if not packet.size:
                continue
            length = packet.duration or 0
            if is_matroska and packet.pts is not None:
                end_s = max(end_s, float((packet.pts + length) * packet.time_base))
            if packet.stream_index == stream.index and not _is_hidden(stream.codec_context.name, packet):
                packets.append(_Packet(packet.pts, length, packet.is_keyframe, packet.is_discard))
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{uri} cannot be read beyond frame {len(packets)}: it is damaged or cut off") from error
    declared_s = (container.duration or 0) / av.time_base
    if is_matroska and end_s + max(1.0, 0.05 * declared_s) < declared_s:
        raise VideoError(f"{uri} cannot be read beyond {end_s:.1f} of {declared_s:.1f} s: it is damaged or cut off")
    if not packets:
        raise VideoError(f"{uri} has a video stream without a frame; copy or record it again")
    return packets


def index_by_counting(uri: str, opened: Opened, decoded_pts: Sequence[int | None]) -> FrameIndex:
    """List the frames from the times they had when all were decoded once; VideoError where that tells nothing."""
    stream, num_frames = opened.stream, len(decoded_pts)
    if not num_frames:
        raise VideoError(f"{uri} has a video stream without a frame; copy or record it again")
    times = [pts for pts in decoded_pts if pts is not None]
    if len(times) == num_frames and all(a < b for a, b in pairwise(times)):
        seconds = np.array(times, dtype=np.float64) * stream.time_base.numerator / stream.time_base.denominator
    else:
        # AVI numbers packets in decoding order: only the frame rate tells the time.
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise VideoError(f"{uri} states neither frame times nor a frame rate; convert it to MP4")
        seconds = np.arange(num_frames, dtype=np.float64) * rate.denominator / rate.numerator
    return FrameIndex(seconds, _duration(seconds, stream, 0), {})


def _duration(seconds: NDArray[np.float64], stream: Any, last_length: int) -> float:
    """Seconds from the first frame to the end of the last, whose length is in ticks or 0 where it is not known."""
    if last_length:
        last_s = float(last_length * stream.time_base)
    elif len(seconds) > 1:
        last_s = float(np.median(np.diff(seconds)))
    else:
        rate = stream.average_rate or stream.guessed_rate
        last_s = float(1 / rate) if rate else 0.0
    return float(seconds[-1] - seconds[0]) + last_s


def _is_hidden(codec: str, packet: Any) -> bool:
    """Whether a packet only helps to decode others; VP8 is the one codec that gives such a frame its own packet."""
    return codec in ("vp8", "libvpx") and not memoryview(packet)[0] & 0x10


def _has_open_groups(packets: Sequence[_Packet]) -> bool:
    last_key: int | None = None
    for packet in packets:
        if packet.is_key:
            last_key = packet.pts
        elif last_key is not None and packet.pts < last_key:
            return True
    return False
