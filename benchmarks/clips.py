"""Generated videos for the benchmarks: a panning scene with moving objects and grain."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_clip(
    path: Path,
    *,
    size: tuple[int, int] = (854, 480),
    seconds: float = 30,
    fps: int = 30,
    key_distance: int = 250,
    codec: str = "libx264",
    seed: int = 0,
) -> Path:
    """Write a clip of (width, height) `size`; the same arguments and encoder give the same bytes."""
    width, height = size
    rng = np.random.default_rng(seed)
    scene = _texture(rng, height + 128, width + 128)
    things = [
        (_texture(rng, height // 6, width // 6), rng.uniform(0, 1, 2), rng.uniform(-0.3, 0.3, 2)) for _ in range(5)
    ]
    grain = rng.integers(-4, 5, (4, height, width, 3), dtype=np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = key_distance, 2
        stream.options = {"preset": "veryfast", "crf": "23", "sc_threshold": "0"} if codec == "libx264" else {}
        time_base = stream.time_base = stream.codec_context.time_base = Fraction(1, fps)
        for number in range(round(seconds * fps)):
            time_s = number / fps
            x, y = (int(64 + 60 * np.sin(time_s * rate)) for rate in (0.5, 0.37))
            image = scene[y : y + height, x : x + width].astype(np.int16)
            for thing, start, speed in things:
                top, left = ((start + speed * time_s) % 1 * (height * 5 // 6, width * 5 // 6)).astype(int)
                image[top : top + thing.shape[0], left : left + thing.shape[1]] = thing
            frame = av.VideoFrame.from_ndarray(
                (image + grain[number % 4]).clip(0, 255).astype(np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = number, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def repeat(source: Path, target: Path, times: int) -> Path:
    """Repeat the packets of a clip `times` times, without encoding."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = before.streams.video[0]
        copy = after.add_stream_from_template(stream)
        packets = [packet for packet in before.demux(stream) if packet.size]
        length = stream.duration
        assert length is not None, "write_clip states the duration"
        moments = [(packet.pts, packet.dts, bytes(packet), packet.is_keyframe) for packet in packets]
        for number in range(times):
            for pts, dts, content, is_key in moments:
                packet = av.Packet(content)
                packet.pts, packet.dts = pts + number * length, dts + number * length
                packet.is_keyframe, packet.time_base, packet.stream = is_key, stream.time_base, copy
                after.mux(packet)
    return target


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: noise of several scales."""
    image = np.zeros((height, width, 3))
    for scale in (4, 16, 64):
        coarse = rng.normal(0, scale, (height // scale + 2, width // scale + 2, 3))
        image += np.kron(coarse, np.ones((scale, scale, 1)))[:height, :width]
    return (128 + image).clip(0, 255).astype(np.uint8)
