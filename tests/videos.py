"""Tiny real videos for tests: every frame carries its own number in its pixels.

The number is drawn as eight black or white vertical bars (least significant bit first) above a dark drifting texture:
a frame can be recognised after lossy compression, and the motion makes the encoder use P- and B-frames.
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
    key_distance: int = 12,
    b_frames: int = 2,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    rotation: int = 0,
) -> Path:
    """Write numbered frames to `path` (the suffix picks the container) and return it.

    `times_ms` gives each frame's presentation time for a variable frame rate; `size` is (width, height), and odd sizes
    are written as yuv444p because yuv420p cannot hold them; `rotation` is in degrees, counter-clockwise, and only
    marked in the container, so pixels are stored unrotated.
    """
    width, height = size
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        stream.codec_context.gop_size = key_distance
        stream.codec_context.max_b_frames = b_frames
        x264 = {"preset": "veryfast", "crf": "20", "sc_threshold": "0"} if codec == "libx264" else {}
        stream.options = {"threads": "1", **x264, **(options or {})}
        time_base = Fraction(1, 1000) if times_ms is not None else Fraction(1, fps)
        stream.time_base = stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, width, height), format="rgb24")
            frame.pts = number if times_ms is None else times_ms[number]
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def trim(source: Path, target: Path, num_frames: int) -> Path:
    """Copy packets with earlier times: an edit list then hides the first frames, down to the middle of a group."""
    with av.open(str(source)) as before, av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as after:
        stream = before.streams.video[0]
        copy = after.add_stream_from_template(stream)
        for packet in before.demux(stream):
            if packet.size and packet.pts is not None and packet.dts is not None and stream.average_rate:
                shift = round(num_frames / (stream.average_rate * stream.time_base))  # type: ignore[operator]
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                after.mux(packet)
    return target


def write_audio_only(path: Path) -> Path:
    """Write 0.2 s of silence without any video stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for start in range(0, 3200, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def hide_reordering(path: Path) -> Path:
    """Take the hints from the H.264 header of an MP4 that x264 wrote: it no longer says that frames are reordered."""
    content = bytearray(path.read_bytes())
    at = content.index(b"\x67\x64", content.index(b"avcC"))  # the sequence parameter set, of High profile
    end = at + int.from_bytes(content[at - 2 : at], "big")
    bits = "".join(f"{byte:08b}" for byte in content[at:end])
    place = _skip_sequence_parameters(bits)
    assert bits[place] == "1"  # hints follow
    cleared = (bits[:place] + "01").ljust(len(bits), "0")  # none, then the stop bit
    content[at:end] = int(cleared, 2).to_bytes(end - at, "big")
    path.write_bytes(content)
    return path


def _skip_sequence_parameters(bits: str) -> int:
    """Where in a sequence parameter set (H.264, 7.3.2.1.1) the flag stands that says whether hints (VUI) follow."""
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
