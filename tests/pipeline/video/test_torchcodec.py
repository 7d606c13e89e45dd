"""The adapter of torchcodec around a stub, since the extra needs shared libraries of FFmpeg that are often absent."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from skipreel.pipeline.errors import VideoError
from skipreel.pipeline.video import open_video
from tests.support.video_kinds import PLAIN, REFUSED_BY_BOTH, REFUSED_BY_DECORD, assert_exact, made, sequential
from tests.support.videos import write_video


class VideoDecoder:
    """What the adapter uses of torchcodec's decoder: frames by index, as tensors in the requested dimension order."""

    cannot_open: bool = False
    damaged: frozenset[int] = frozenset()
    missing: int = 0

    def __init__(self, path: str, *, dimension_order: str, device: str) -> None:
        assert (dimension_order, device) == ("NHWC", "cpu")
        if self.cannot_open:
            raise RuntimeError("Could not open input file")
        self._frames = sequential(Path(path))

    def __len__(self) -> int:
        return len(self._frames) - self.missing

    def __getitem__(self, index: int) -> SimpleNamespace:
        if index in self.damaged:
            raise RuntimeError("Could not push packet to decoder")
        rows_apart = np.ascontiguousarray(self._frames[index].swapaxes(0, 1))
        return SimpleNamespace(numpy=lambda: rows_apart.swapaxes(0, 1))  # a tensor of any strides


@pytest.fixture
def torchcodec(monkeypatch: pytest.MonkeyPatch) -> type[VideoDecoder]:
    package: Any = ModuleType("torchcodec")
    decoders: Any = ModuleType("torchcodec.decoders")
    stub = type("VideoDecoder", (VideoDecoder,), {})
    decoders.VideoDecoder = stub
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    return stub


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.mark.parametrize("kind", ["b-frames.mp4", "variable.mp4", "vp9.webm", "padded-rows.mp4", "rotated.mp4"])
def test_its_frames_are_handed_on_with_their_times(torchcodec: type[VideoDecoder], folder: Path, kind: str) -> None:
    assert kind in PLAIN | REFUSED_BY_DECORD
    expected = sequential(made(folder, kind))
    order = [7, 2, 2, 19, 0]
    assert_exact(folder / kind, "torchcodec", expected, order, one_by_one=True)
    assert_exact(folder / kind, "torchcodec", expected, sorted(set(order)), one_by_one=False)
    with open_video(str(folder / kind), "torchcodec") as video, open_video(str(folder / kind)) as ours:
        np.testing.assert_array_equal(video.pts_seconds, ours.pts_seconds)
        assert video.duration_s == ours.duration_s


def test_frames_decoded_are_counted_by_its_rule(torchcodec: type[VideoDecoder], tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=40, key_distance=12, b_frames=0)
    with open_video(str(path), "torchcodec") as video:
        counts = []
        for index in (15, 17, 3, 30):
            video.get_frame_at(index)
            counts.append(video.num_decoded)
    assert counts == [4, 6, 10, 17]  # from the key frame 12; on from 15; from 0; from 24


@pytest.mark.parametrize("kind", ["ten-bit.mp4", "open-groups.mp4", "b-frames.avi", "b-frames.ts", "trimmed.mp4"])
def test_what_it_gets_wrong_is_refused(torchcodec: type[VideoDecoder], folder: Path, kind: str) -> None:
    assert kind in REFUSED_BY_BOTH
    with pytest.raises(VideoError, match=r"is refused with decoder torchcodec: .*; use decoder pyav"):
        open_video(str(made(folder, kind)), "torchcodec")


def test_its_errors_are_video_errors(torchcodec: type[VideoDecoder], folder: Path) -> None:
    path = str(made(folder, "b-frames.mp4"))
    torchcodec.damaged = frozenset({5})
    with open_video(path, "torchcodec") as video:
        video.get_frame_at(4)
        with pytest.raises(VideoError, match="frame 5 of 50 could not be decoded"):
            video.get_frame_at(5)
    torchcodec.missing = 1
    with pytest.raises(VideoError, match="the decoder sees 49 frames in place of 50"):
        open_video(path, "torchcodec")
    torchcodec.cannot_open = True
    with pytest.raises(VideoError, match="torchcodec cannot open it"):
        open_video(path, "torchcodec")


def test_without_torchcodec_one_line_says_so(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(VideoError, match=r"decoder torchcodec is not installed: install skipreel\[torchcodec\]"):
        open_video(str(made(folder, "b-frames.mp4")), "torchcodec")
