"""Listing the frames of a video without decoding them.

Letters: N frames in the video.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.decoding_container import Opened
from pipeline.errors import VideoError

# Containers whose packets state when their frame is presented. Elsewhere that holds only without B-frames.
_EXACT_FORMATS = {"mov", "mp4", "matroska", "webm"}


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


class _Packet(NamedTuple):
    pts: int
    length: int | None  # in ticks, None or 0 where it is not known
    is_key: bool
    is_cut: bool  # decoded, but hidden by an edit list
    is_clean: bool  # a key packet after which nothing needs what came before it


def index_by_demuxing(uri: str, opened: Opened) -> FrameIndex | None:
    """List the frames from the packets alone, or None where those do not say what comes out of the decoder.

    VideoError where reading stops before the end, or there is no frame.
    """
    stream = opened.stream
    formats = set(opened.container.format.name.split(","))
    if not formats & _EXACT_FORMATS and stream.codec_context.has_b_frames:
        return None
    packets = _demux(uri, opened)
    decoded = [packet.pts for packet in packets]
    if None in decoded:
        return None
    every = sorted(decoded)
    pts = sorted(packet.pts for packet in packets if not packet.is_cut)
    starts_clean = packets[0].is_key and decoded[0] == every[0]
    if len(set(every)) != len(every) or not pts or not starts_clean:
        return None
    seconds = np.array(pts, dtype=np.float64) * stream.time_base.numerator / stream.time_base.denominator
    last_length = packets[decoded.index(pts[-1])].length
    return FrameIndex(
        seconds,
        _duration(seconds, stream, last_length),
        dict(zip(pts, range(len(pts)), strict=True)),
        tuple(sorted((bisect_left(pts, packet.pts), packet.pts) for packet in packets if packet.is_key)),
        plain=len(pts) == len(every) and _has_closed_groups(packets),
    )


def _demux(uri: str, opened: Opened) -> list[_Packet]:
    import av

    container, stream = opened.container, opened.stream
    codec, number = stream.codec_context.name, stream.index
    length_bytes = _length_bytes(stream)
    is_matroska = "matroska" in container.format.name
    packets: list[_Packet] = []
    ends = [0] * len(container.streams)  # in each stream's own ticks
    try:
        # Damage in a Matroska file looks like its end; its header tells how long the longest of all streams is.
        for packet in container.demux() if is_matroska else container.demux(stream):
            if not packet.size:
                continue
            pts, length, is_key = packet.pts, packet.duration, packet.is_keyframe
            if is_matroska and pts is not None:
                ends[packet.stream_index] = max(ends[packet.stream_index], pts + (length or 0))
            if packet.stream_index == number and not _is_hidden(codec, packet):
                is_clean = is_key and _starts_afresh(codec, packet, length_bytes)
                packets.append(_Packet(pts, length, is_key, packet.is_discard, is_clean))
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{uri} cannot be read beyond frame {len(packets)}: it is damaged or cut off") from error
    declared_s = (container.duration or 0) / av.time_base
    end_s = max(float(end * other.time_base) for end, other in zip(ends, container.streams, strict=True))
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
    return FrameIndex(seconds, _duration(seconds, stream, None), {})


def _duration(seconds: NDArray[np.float64], stream: Any, last_length: int | None) -> float:
    """Seconds from the first frame to the end of the last, whose length is in ticks where it is known."""
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


def _length_bytes(stream: Any) -> int:
    """How many bytes state the length of each unit inside the packets of an H.264 or HEVC stream; 0: not known."""
    place = {"h264": 4, "hevc": 21}.get(stream.codec_context.name)
    header = stream.codec_context.extradata or b""
    return 0 if place is None or len(header) <= place or header[0] != 1 else header[place] % 4 + 1


def _starts_afresh(codec: str, packet: Any, length_bytes: int) -> bool:
    """Whether decoding can begin at a key packet with nothing before it; periodic intra refresh only seems so."""
    if codec not in ("h264", "hevc"):
        return True
    data, at = memoryview(packet), 0
    while length_bytes and at + length_bytes < len(data):
        kind = data[at + length_bytes] & 31 if codec == "h264" else data[at + length_bytes] >> 1 & 63
        if codec == "h264" and kind in (1, 5):
            return kind == 5
        if codec == "hevc" and kind < 32:
            return 16 <= kind <= 21
        at += length_bytes + int.from_bytes(data[at : at + length_bytes], "big")
    return False


def _has_closed_groups(packets: Sequence[_Packet]) -> bool:
    last_key = packets[0].pts
    for packet in packets:
        if packet.is_key:
            last_key = packet.pts
        if packet.pts < last_key or (packet.is_key and not packet.is_clean):
            return False
    return True
