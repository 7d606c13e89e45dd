"""Tiny real videos for tests: every frame carries its own number in its pixels.

Eight black or white vertical bars (least significant bit first) show the number above a dark drifting texture. So a
frame can be recognised after lossy compression, and the motion makes the encoder use P- and B-frames.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

NUM_BITS = 8


def numbered_frame(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """Frame `number` (0 to 255) as (H, W, 3) uint8 RGB: bars in the upper half, drifting texture below."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    image[..., 0] = (x * 5 + number * 7) % 97
    image[..., 1] = (y * 9 + number * 3) % 89
    edges = np.linspace(0, width, NUM_BITS + 1).astype(int)
    for bit in range(NUM_BITS):
        image[: height // 2, edges[bit] : edges[bit + 1]] = 255 * (number >> bit & 1)
    return image


def frame_number(image: NDArray[np.uint8]) -> int:
    """The number drawn by `numbered_frame`, read back from (H, W, 3) uint8 pixels."""
    height, width = image.shape[:2]
    edges = np.linspace(0, width, NUM_BITS + 1).astype(int)
    bars = [image[: height // 2, edges[bit] : edges[bit + 1]].mean() > 127 for bit in range(NUM_BITS)]
    return sum(int(bar) << bit for bit, bar in enumerate(bars))


def write_video(
    path: Path,
    *,
    num_frames: int = 30,
    fps: int = 30,
    times_ms: Sequence[int] | None = None,
    size: tuple[int, int] = (64, 48),
    pix_fmt: str | None = None,
    full_range: bool = False,
    key_distance: int = 12,
    b_frames: int = 2,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    rotation: int = 0,
    silence: bool = False,
) -> Path:
    """Write numbered frames to `path` (the suffix picks the container) and return it.

    Args:
        times_ms: each frame's presentation time, for a variable frame rate.
        size: (width, height); odd sizes are written as yuv444p if `pix_fmt` is not given.
        rotation: in degrees, counter-clockwise; stated in the container, while pixels are stored unrotated.
        silence: add a sound track.
    """
    width, height = size
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt or ("yuv444p" if width % 2 or height % 2 else "yuv420p")
        if full_range:
            stream.codec_context.color_range = av.video.reformatter.ColorRange.JPEG
        stream.codec_context.gop_size = key_distance
        stream.codec_context.max_b_frames = b_frames
        stream.options = {"threads": "1", **_QUICK.get(codec, {}), **(options or {})}
        time_base = Fraction(1, 1000) if times_ms is not None else Fraction(1, fps)
        stream.time_base = stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=16000) if silence else None
        for number in range(num_frames):
            image = numbered_frame(number, width, height)
            # Converted here, since the encoder's own conversion starts threads.
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=stream.pix_fmt, threads=1)
            frame.pts = number if times_ms is None else times_ms[number]
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _add_silence(container, sound, num_frames / fps)
    return path


_QUICK = {
    "libx264": {"preset": "veryfast", "crf": "20", "sc_threshold": "0"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1:open-gop=0"},
    "libvpx-vp9": {"deadline": "good", "cpu-used": "8", "lag-in-frames": "12", "auto-alt-ref": "1"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
}


def trim(source: Path, target: Path, num_frames: int) -> Path:
    """Copy packets with earlier times, so that an edit list hides the first frames, also inside a group."""
    with av.open(str(source)) as before, av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as after:
        stream = before.streams.video[0]
        copy = after.add_stream_from_template(stream)
        for packet in before.demux(stream):
            if packet.size and packet.pts is not None and packet.dts is not None and stream.average_rate:
                shift = round(num_frames / (stream.average_rate * stream.time_base))  # type: ignore[operator]
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                after.mux(packet)
    return target


def join(first: Path, second: Path, target: Path) -> Path:
    """Copy the packets of two videos one after the other into one stream, which changes its size halfway."""
    with av.open(str(first)) as one, av.open(str(second)) as other, av.open(str(target), "w") as after:
        copy = after.add_stream_from_template(one.streams.video[0])
        shift = 0
        for before in (one, other):
            end = 0
            for packet in before.demux(video=0):
                if packet.size and packet.pts is not None and packet.dts is not None:
                    end = max(end, packet.pts + (packet.duration or 0))
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                    after.mux(packet)
            shift += end
    return target


def write_two_streams(path: Path, options: dict[str, str]) -> Path:
    """Write a fragmented MP4 with two video streams; players choose the second, as the still first has fewer bits."""
    with av.open(str(path), "w", options={"movflags": "frag_keyframe+empty_moov"}) as container:
        streams = [container.add_stream("libx264", rate=30, options={"threads": "1", **options}) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.disposition = av.stream.Disposition.default
        for number in range(30):
            for stream, drawn in zip(streams, (255, number), strict=True):
                frame = av.VideoFrame.from_ndarray(numbered_frame(drawn, 64, 48), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 30)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


def write_audio_only(path: Path) -> Path:
    """Write 0.2 s of silence without any video stream."""
    with av.open(str(path), "w") as container:
        _add_silence(container, container.add_stream("aac", rate=16000), 0.2)
    return path


def _add_silence(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    for start in range(0, round(seconds * 16000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def hide_reordering(path: Path) -> Path:
    """Remove the hints (VUI) from the H.264 header of an MP4, which then no longer says that frames are reordered."""
    content = bytearray(path.read_bytes())
    at = content.index(b"\x67\x64", content.index(b"avcC"))  # the sequence parameter set, of High profile
    end = at + int.from_bytes(content[at - 2 : at], "big")
    bits = "".join(f"{byte:08b}" for byte in content[at:end])
    place = _skip_sequence_parameters(bits)
    assert bits[place] == "1"  # hints follow
    cleared = (bits[:place] + "01").ljust(len(bits), "0")  # no hints, then the stop bit
    content[at:end] = int(cleared, 2).to_bytes(end - at, "big")
    path.write_bytes(content)
    return path


def _skip_sequence_parameters(bits: str) -> int:
    """The position in a sequence parameter set (H.264, 7.3.2.1.1) of the flag that says whether hints (VUI) follow."""
    place = 32  # kind, profile, constraints, level

    def number() -> int:
        nonlocal place
        zeros = bits.index("1", place) - place
        place += 2 * zeros + 1
        return int(bits[place - zeros - 1 : place], 2) - 1

    number()  # id
    assert (number(), number(), number()) == (1, 0, 0)  # 4:2:0 of 8 bits
    place += 2  # no transform bypass, no scaling matrix
    number()  # frame numbers
    if number() == 0:  # order counts
        number()
    number()  # reference frames
    place += 1  # gaps
    number(), number()  # size
    place += 2  # progressive, direct prediction
    if bits[place] == "1":  # cropping
        place += 1
        number(), number(), number(), number()
        return place
    return place + 1
