"""The index of a video's frames: times, key frames, decoding order, droppable frames; built without decoding.

Letters: N frames in the video.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skipreel.pipeline.errors import VideoError
from skipreel.pipeline.video.pyav.bitstream import (
    is_droppable_picture,
    is_hidden,
    is_random_access_point,
    nal_length_size,
    picture_header,
)
from skipreel.pipeline.video.pyav.container import OpenContainer

# Containers whose packets state the presentation time of their frame. Others state it only without B-frames.
_EXACT_FORMATS = {"mov", "mp4", "matroska", "webm"}


class KeyFrame(NamedTuple):
    """A point where decoding can start: this frame and all later ones decode from here.

    Attributes:
        frame: its number in presentation order.
        seek_pts: the time to seek to, in ticks.
        place: position of its packet in decoding order.
    """

    frame: int
    seek_pts: int
    place: int


@dataclass(frozen=True)
class FrameIndex:
    """The N frames of a video in presentation order.

    Attributes:
        pts_seconds: (N,) float64, presentation times in seconds from the first frame.
        duration_s: seconds from the first frame to the end of the last.
        frame_by_pts: frame number by the pts of its packet in ticks; empty if packets do not state it and frames can
            only be counted.
        keys: where decoding can start, ascending.
        order: frame numbers in decoding order, -1 for packets whose frame an edit list hides.
        droppable: numbers of the frames that no other frame needs and that can be dropped exactly.
        delay: how many decoded frames the decoder holds back, by the packets' decoding times; an HEVC decoder returns
            all of them at key frames.
        plain: no edit list hides a frame, and no frame needs one from before its key frame (closed groups).
        start_s: the first frame's time on the file's own clock, in seconds; 0.0 if the file has none.
    """

    pts_seconds: NDArray[np.float64]
    duration_s: float
    frame_by_pts: dict[int, int]
    keys: tuple[KeyFrame, ...] = ()
    order: tuple[int, ...] = ()
    droppable: frozenset[int] = frozenset()
    delay: int = 0
    plain: bool = False
    start_s: float = 0.0

    def key_before(self, index: int) -> KeyFrame | None:
        """The last key frame from which frame `index` decodes, or None if only the start of the file is known."""
        place = bisect_right(self.keys, index, key=lambda key: key.frame)
        return self.keys[place - 1] if place else None

    @cached_property
    def places(self) -> dict[int, int]:
        """Position in decoding order by frame number."""
        return {frame: place for place, frame in enumerate(self.order) if frame >= 0}

    @cached_property
    def key_places(self) -> frozenset[int]:
        """Positions of key frames in decoding order."""
        return frozenset(key.place for key in self.keys)


class _Packet(NamedTuple):
    pts: int
    dts: int | None
    length: int | None  # in ticks; None or 0 if not known
    is_key: bool
    is_cut: bool  # decoded, but hidden by an edit list
    is_random_access: bool  # a key packet; neither it nor later frames need earlier packets
    is_droppable: bool  # no other frame needs it


def index_by_demuxing(uri: str, opened: OpenContainer) -> FrameIndex | None:
    """List the frames from the packets alone.

    Returns:
        The index, or None if the packets do not say which frames the decoder returns.

    Raises:
        VideoError: if reading stops before the end of the file, or there is no frame.
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
    seconds, start_s = _times(pts, stream)
    last_length = packets[decoded.index(pts[-1])].length
    frame_by_pts = dict(zip(pts, range(len(pts)), strict=True))
    return FrameIndex(
        seconds,
        _duration(seconds, stream, last_length),
        frame_by_pts,
        _keys(packets, pts),
        order=tuple(frame_by_pts.get(packet.pts, -1) for packet in packets),
        droppable=frozenset(
            frame_by_pts[packet.pts] for packet in packets if packet.is_droppable and not packet.is_cut
        ),
        delay=_delay(packets, every[0]),
        plain=len(pts) == len(every) and _has_closed_groups(packets),
        start_s=start_s,
    )


def _keys(packets: Sequence[_Packet], pts: Sequence[int]) -> tuple[KeyFrame, ...]:
    places = [place for place, packet in enumerate(packets) if packet.is_key]
    keys = []
    for place, following in pairwise([*places, len(packets)]):
        # If times are uneven, FFmpeg assumes too late a time for key frames of MP4 and seeks to the one before. The
        # last decoding time before the next key frame is late enough for this one and too early for the next.
        seek_pts = max(packets[place].pts, packets[following - 1].dts or 0)
        keys.append(KeyFrame(bisect_left(pts, packets[place].pts), seek_pts, place))
    return tuple(sorted(keys))


def _delay(packets: Sequence[_Packet], first_pts: int) -> int:
    """Number of packets before the first whose decoding time has reached the first presentation time."""
    return next((at for at, packet in enumerate(packets) if packet.dts is not None and packet.dts >= first_pts), 0)


def _demux(uri: str, opened: OpenContainer) -> list[_Packet]:
    import av

    container, stream = opened.container, opened.stream
    codec, number = stream.codec_context.name, stream.index
    length_size = nal_length_size(stream)
    is_matroska = "matroska" in container.format.name
    packets: list[_Packet] = []
    ends = [0] * len(container.streams)  # in each stream's own ticks
    try:
        # Damage in a Matroska file looks like its end, so all streams are compared with the duration in the header.
        for packet in container.demux() if is_matroska else container.demux(stream):
            if not packet.size:
                continue
            pts, length, is_key = packet.pts, packet.duration, packet.is_keyframe
            if is_matroska and pts is not None:
                ends[packet.stream_index] = max(ends[packet.stream_index], pts + (length or 0))
            if packet.stream_index == number and not is_hidden(codec, packet):
                head = picture_header(codec, packet, length_size)
                is_random_access = is_key and is_random_access_point(codec, head)
                is_droppable = is_droppable_picture(codec, head)
                packets.append(
                    _Packet(pts, packet.dts, length, is_key, packet.is_discard, is_random_access, is_droppable)
                )
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{uri} cannot be read beyond frame {len(packets)}: it is damaged or cut off") from error
    declared_s = (container.duration or 0) / av.time_base
    end_s = max(float(end * other.time_base) for end, other in zip(ends, container.streams, strict=True))
    if is_matroska and end_s + max(1.0, 0.05 * declared_s) < declared_s:
        raise VideoError(f"{uri} cannot be read beyond {end_s:.1f} of {declared_s:.1f} s: it is damaged or cut off")
    if not packets:
        raise VideoError(f"{uri} has a video stream without a frame; copy or record it again")
    return packets


def index_by_counting(uri: str, opened: OpenContainer, decoded_pts: Sequence[int | None]) -> FrameIndex:
    """List the frames from the times (ticks or None) that the decoder returned when it decoded all of them once.

    Raises:
        VideoError: if there is no frame, or neither frame times nor a frame rate.
    """
    stream, num_frames = opened.stream, len(decoded_pts)
    if not num_frames:
        raise VideoError(f"{uri} has a video stream without a frame; copy or record it again")
    times = [pts for pts in decoded_pts if pts is not None]
    if len(times) == num_frames and all(a < b for a, b in pairwise(times)):
        seconds, start_s = _times(times, stream)
    else:
        # AVI numbers packets in decoding order, so times follow from the frame rate alone.
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise VideoError(f"{uri} states neither frame times nor a frame rate; convert it to MP4")
        seconds, start_s = np.arange(num_frames, dtype=np.float64) * rate.denominator / rate.numerator, 0.0
    return FrameIndex(seconds, _duration(seconds, stream, None), {}, start_s=start_s)


def _times(pts: Sequence[int], stream: Any) -> tuple[NDArray[np.float64], float]:
    """(N,) seconds from the first frame, and that frame's own time in seconds.

    Ticks are subtracted as integers, so that a late clock costs no precision.
    """
    base = stream.time_base
    ticks = np.array(pts, dtype=np.int64) - pts[0]
    return ticks.astype(np.float64) * base.numerator / base.denominator, float(pts[0] * base)


def _duration(seconds: NDArray[np.float64], stream: Any, last_length: int | None) -> float:
    """Seconds from the first frame to the end of the last; `last_length` is in ticks if it is known."""
    if last_length:
        last_s = float(last_length * stream.time_base)
    elif len(seconds) > 1:
        last_s = float(np.median(np.diff(seconds)))
    else:
        rate = stream.average_rate or stream.guessed_rate
        last_s = float(1 / rate) if rate else 0.0
    return float(seconds[-1] - seconds[0]) + last_s


def _has_closed_groups(packets: Sequence[_Packet]) -> bool:
    last_key = packets[0].pts
    for packet in packets:
        if packet.is_key:
            last_key = packet.pts
        if packet.pts < last_key or (packet.is_key and not packet.is_random_access):
            return False
    return True
