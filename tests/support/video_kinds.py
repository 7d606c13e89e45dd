"""One small generated video of each kind that decoders get wrong, and its frames by the simplest use of PyAV."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path

import av
import numpy as np
import pytest

from skipreel.pipeline.video import Frame, open_video
from tests.support.videos import hide_reordering, join, trim, write_two_streams, write_video

EDGE = Path(__file__).parents[3] / "shared" / "data" / "edge"
CASES = EDGE.parent / "cases"
EDGE_FILES = sorted(path for path in EDGE.glob("*/*") if path.suffix in (".mp4", ".mkv", ".mov", ".avi"))
DAMAGED = "corrupted.mp4"

PYRAMID = {"x264-params": "b-pyramid=normal:ref=4:b-adapt=0"}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
UNEVEN_MS = [n * 33 + n % 3 * 9 for n in range(40)]
LATE_MS = [500 + time_ms for time_ms in UNEVEN_MS]
OPEN_GROUPS = {"x265-params": "log-level=none:pools=none:frame-threads=1:keyint=12:min-keyint=12"}

Kinds = dict[str, Callable[[Path], Path]]

PLAIN: Kinds = {
    "b-frames.mp4": lambda path: write_video(path, num_frames=50),
    "pyramid.mp4": lambda path: write_video(path, num_frames=60, key_distance=30, b_frames=6, options=PYRAMID),
    "no-b-frames.mkv": lambda path: write_video(path, num_frames=40, b_frames=0),
    "variable.mp4": lambda path: write_video(path, num_frames=40, times_ms=UNEVEN_MS),
    "late.mp4": lambda path: write_video(path, num_frames=40, times_ms=LATE_MS),
    "late.mkv": lambda path: write_video(path, num_frames=40, times_ms=LATE_MS),
    "sound.mp4": lambda path: write_video(path, num_frames=40, silence=True),
    "one-frame.mp4": lambda path: write_video(path, num_frames=1),
    "padded-rows.mp4": lambda path: write_video(path, size=(50, 46)),
    "full-range.mp4": lambda path: write_video(path, full_range=True),
    "hevc.mp4": lambda path: write_video(path, codec="libx265"),
    "mpeg4.mkv": lambda path: write_video(path, codec="mpeg4", b_frames=0),
    "odd-width.mkv": lambda path: write_video(path, codec="mpeg4", size=(65, 50), pix_fmt="yuv420p", b_frames=0),
    "fragmented.mp4": lambda path: write_video(path, container_options=FRAGMENTED),
    "no-hints.mp4": lambda path: hide_reordering(
        write_video(path, num_frames=60, b_frames=4, options=PYRAMID, container_options=FRAGMENTED)
    ),
}
REFUSED_BY_DECORD: Kinds = {
    "vp9.webm": lambda path: write_video(path, codec="libvpx-vp9", b_frames=0),
    "grows.mkv": lambda path: join(
        write_video(path.with_name("small.mkv"), codec="libvpx-vp9", size=(64, 48)),
        write_video(path.with_name("large.mkv"), codec="libvpx-vp9", size=(96, 80)),
        path,
    ),
    "av1.mkv": lambda path: write_video(path, codec="libsvtav1"),
    "av1.mp4": lambda path: write_video(path, codec="libsvtav1"),
    "vp8.webm": lambda path: write_video(path, codec="libvpx", b_frames=0),
    "rotated.mp4": lambda path: write_video(path, rotation=-90),
    "rotated-more.mov": lambda path: write_video(path, size=(50, 46), rotation=180),
    "narrow.mp4": lambda path: write_video(path, size=(48, 64)),
}
REFUSED_BY_BOTH: Kinds = {
    "full-range.webm": lambda path: write_video(path, codec="libvpx-vp9", full_range=True),
    "interlaced.mp4": lambda path: write_video(path, size=(64, 64), options={"x264-params": "tff=1"}),
    "odd-size.mp4": lambda path: write_video(path, size=(65, 47)),
    "odd-height.mkv": lambda path: write_video(path, codec="mpeg4", size=(66, 51), pix_fmt="yuv420p", b_frames=0),
    "ten-bit.mp4": lambda path: write_video(path, pix_fmt="yuv420p10le"),
    "hevc-ten-bit.mkv": lambda path: write_video(path, codec="libx265", pix_fmt="yuv420p10le"),
    "open-groups.mp4": lambda path: write_video(path, num_frames=40, options={"x264-params": "open-gop=1"}),
    "hevc-open-groups.mkv": lambda path: write_video(path, num_frames=40, codec="libx265", options=OPEN_GROUPS),
    "mpeg4-b-frames.mkv": lambda path: write_video(path, codec="mpeg4"),
    "intra-refresh.mp4": lambda path: write_video(
        path, num_frames=40, b_frames=0, options={"x264-params": "intra-refresh=1"}
    ),
    "trimmed.mp4": lambda path: trim(write_video(path.with_name("whole.mp4"), num_frames=50), path, 17),
    "two-streams.mp4": lambda path: hide_reordering(write_two_streams(path, PYRAMID)),
    "b-frames.avi": lambda path: write_video(path),
    "no-b-frames.avi": lambda path: write_video(path, b_frames=0),
    "mpeg4.avi": lambda path: write_video(path, codec="mpeg4"),
    "b-frames.ts": lambda path: write_video(path),
    "variable.ts": lambda path: write_video(path, num_frames=40, times_ms=UNEVEN_MS),
    "hevc.ts": lambda path: write_video(path, codec="libx265", b_frames=4),
    "mpeg2.mpg": lambda path: write_video(path, codec="mpeg2video", fps=25),
    "b-frames.flv": lambda path: write_video(path),
}
KINDS = PLAIN | REFUSED_BY_DECORD | REFUSED_BY_BOTH
ACCEPTED = {"pyav": KINDS, "decord": PLAIN, "torchcodec": PLAIN | REFUSED_BY_DECORD}


@cache
def sequential(path: Path, num_frames: int | None = None) -> list[Frame]:
    """The first frames of a video by the simplest use of PyAV."""
    frames: list[Frame] = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        assert stream is not None
        stream.thread_type = "NONE"
        for frame in container.decode(stream):
            turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
            frames.append(np.ascontiguousarray(turned))
            if len(frames) == num_frames:
                break
    return frames


def needs(decoder: str) -> None:
    """Skip the test if `decoder` is an extra that is not installed."""
    if decoder == "torchcodec":
        try:
            import_module("torchcodec.decoders")
        except (ImportError, RuntimeError, OSError) as error:
            pytest.skip(f"torchcodec or FFmpeg's shared libraries are not installed: {str(error).splitlines()[0]}")


def needs_edge_files() -> None:
    """Skip the test if the real awkward files are absent."""
    if not EDGE_FILES:
        pytest.skip("the real awkward files (../shared/data/edge) are absent")


def made(folder: Path, kind: str) -> Path:
    """The video of this kind in `folder`, written on the first call."""
    path = folder / kind
    return path if path.exists() else KINDS[kind](path)


def assert_exact(path: Path, decoder: str, expected: list[Frame], order: list[int], *, one_by_one: bool) -> None:
    """Assert that `decoder` returns the frames `order` as in `expected`."""
    with open_video(str(path), decoder) as video:
        frames = (video.get_frame_at(index) for index in order) if one_by_one else video.iter_frames_at(order)
        for index, frame in zip(order, frames, strict=True):
            assert frame.dtype == np.uint8
            assert frame.flags.c_contiguous
            np.testing.assert_array_equal(frame, expected[index], err_msg=f"frame {index} of {order}")
