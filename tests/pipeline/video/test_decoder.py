"""Decoders: frames read in any order equal sequential decoding pixel for pixel, or end in a VideoError."""

import json
import random
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skipreel.pipeline import storage
from skipreel.pipeline.errors import VideoError
from skipreel.pipeline.video import DECODERS, open_video
from skipreel.pipeline.video.pyav.bitstream import is_hidden
from tests.support.video_kinds import (
    ACCEPTED,
    CASES,
    DAMAGED,
    EDGE_FILES,
    KINDS,
    LATE_MS,
    UNEVEN_MS,
    assert_exact,
    made,
    needs,
    needs_edge_files,
    sequential,
)
from tests.support.videos import frame_number, write_video

MAX_PIXELS = 40 * 640 * 480  # the largest files are compared in part, to keep the tests quick


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.mark.parametrize(("decoder", "kind"), [(decoder, kind) for decoder in DECODERS for kind in ACCEPTED[decoder]])
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_frames_in_any_order_are_exact(folder: Path, decoder: str, kind: str, data: st.DataObject) -> None:
    needs(decoder)
    expected = sequential(made(folder, kind))
    order = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=10))
    order = sorted(set(order)) if data.draw(st.booleans()) else order
    assert_exact(folder / kind, decoder, expected, order, one_by_one=data.draw(st.booleans()))


@pytest.mark.parametrize(("decoder", "kind"), [(decoder, kind) for decoder in DECODERS for kind in ACCEPTED[decoder]])
def test_frames_are_listed_with_their_times(folder: Path, decoder: str, kind: str) -> None:
    needs(decoder)
    expected = sequential(made(folder, kind))
    with open_video(str(folder / kind), decoder) as video:
        assert video.pts_seconds.shape == (len(expected),)
        assert video.pts_seconds.dtype == np.float64
        assert (np.diff(video.pts_seconds) > 0).all()
        assert video.duration_s == pytest.approx(len(expected) / 30, abs=0.21 if kind == "mpeg2.mpg" else 0.05)
    stated = {"variable.mp4": UNEVEN_MS, "late.mp4": LATE_MS, "late.mkv": LATE_MS}
    if kind in stated:
        np.testing.assert_allclose(video.pts_seconds + video.start_s, np.array(stated[kind]) / 1000, atol=1e-3)
        assert video.pts_seconds[0] == 0
    if kind == "variable.ts":  # its clock starts anywhere
        np.testing.assert_allclose(np.diff(video.pts_seconds), np.diff(UNEVEN_MS) / 1000, atol=1e-3)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("rotated.mp4", "rotated-more.mov")])
def test_no_frame_is_missing_and_none_comes_twice(folder: Path, kind: str) -> None:
    with open_video(str(made(folder, kind))) as video:
        count = len(video.pts_seconds)
        numbers = [frame_number(frame) for frame in video.iter_frames_at(range(count))]
    shown = {"trimmed.mp4": range(17, 50), "grows.mkv": [*range(30), *range(30)]}
    assert numbers == list(shown.get(kind, range(count)))


def test_vp8_packets_without_a_picture_are_not_listed() -> None:
    # Encoders write them in two passes only, so none of the videos made here has one.
    assert is_hidden("vp8", av.Packet(b"\x01"))
    assert not is_hidden("vp8", av.Packet(b"\x10"))
    assert not is_hidden("h264", av.Packet(b"\x01"))


@pytest.mark.parametrize("decoder", ["pyav", "torchcodec"])
def test_rotation_is_undone(folder: Path, decoder: str) -> None:
    needs(decoder)
    with open_video(str(made(folder, "rotated.mp4")), decoder) as video:
        frame = video.get_frame_at(13)
    assert frame.shape == (64, 48, 3)
    assert frame_number(np.rot90(frame)) == 13  # the container says: show it turned clockwise


@pytest.mark.parametrize("decoder", DECODERS)
def test_edge_files_are_complete_and_exact_or_refused(decoder: str) -> None:
    needs_edge_files()
    needs(decoder)
    rng = random.Random(0)
    num_exact = 0
    for path in EDGE_FILES:
        if path.name == DAMAGED:
            continue
        try:
            with open_video(str(path), decoder) as video:
                pixels = video.get_frame_at(0).size // 3
                num_frames = len(video.pts_seconds)
        except VideoError:
            assert decoder != "pyav"
            continue
        num_compared = min(num_frames, max(2, MAX_PIXELS // pixels))
        expected = sequential(path, num_compared)
        if num_compared == num_frames:
            assert len(expected) == num_frames, path.name
        order = sorted(rng.sample(range(num_compared), min(6, num_compared)))
        assert_exact(path, decoder, expected, order, one_by_one=False)
        rng.shuffle(order)
        assert_exact(path, decoder, expected, order[:3], one_by_one=True)
        sequential.cache_clear()
        num_exact += 1
    assert num_exact >= {"pyav": len(EDGE_FILES) - 1, "decord": 8, "torchcodec": 12}[decoder]


def test_returned_frames_are_independent(folder: Path) -> None:
    with open_video(str(made(folder, "b-frames.mp4"))) as video:
        first = video.get_frame_at(3)
        kept = first.copy()
        second = video.get_frame_at(3)
        second[:] = 0
        video.get_frame_at(4)
        np.testing.assert_array_equal(first, kept)


def test_abandoned_iterator_does_not_affect_later_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, num_frames=60, key_distance=60, options={"x264-params": "b-pyramid=none:b-adapt=0"})
    expected = sequential(path)
    with open_video(str(path)) as video:
        frames = video.iter_frames_at([3, 55])
        next(frames)
        for index in (4, 3, 5, 6):
            np.testing.assert_array_equal(video.get_frame_at(index), expected[index])
        np.testing.assert_array_equal(next(frames), expected[55])
        assert video.num_decoded < 50


def test_index_outside_the_video_is_an_index_error(folder: Path) -> None:
    with open_video(str(made(folder, "b-frames.mp4"))) as video:
        for index in (-1, 50):
            with pytest.raises(IndexError, match="0 to 49"):
                video.get_frame_at(index)


@pytest.mark.parametrize("decoder", DECODERS)
def test_closed_video_cannot_be_read(folder: Path, decoder: str) -> None:
    needs(decoder)
    with open_video(str(made(folder, "b-frames.mp4")), decoder) as video:
        video.get_frame_at(0)
    video.close()
    with pytest.raises(ValueError, match="closed"):
        video.get_frame_at(1)


def test_other_file_systems_are_read_too(folder: Path) -> None:
    pytest.importorskip("fsspec")
    expected = sequential(made(folder, "b-frames.mp4"))
    uri = "fsspec+memory:///videos/b-frames.mp4"
    storage.write_atomic(uri, (folder / "b-frames.mp4").read_bytes())
    with open_video(uri) as video:
        for index in (31, 5, 49):
            np.testing.assert_array_equal(video.get_frame_at(index), expected[index])
    with pytest.raises(VideoError, match="check the path"):
        open_video("fsspec+memory:///videos/gone.mp4")


def test_names_that_look_like_protocols_are_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(made(folder, "one-frame.mp4"), tmp_path / "concat:a b%20.mp4")
    monkeypatch.chdir(tmp_path)
    with open_video("concat:a b%20.mp4") as video:
        assert len(video.pts_seconds) == 1


CLOCKS = [("a.mp4", 0), ("a.ts", 1400), ("a.mkv", 3_600_000), ("a.mkv", 100_000_033)]


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize(("name", "first_ms"), CLOCKS)
def test_times_count_from_the_first_frame_whatever_the_clock_of_the_file(
    tmp_path: Path, name: str, first_ms: int, decoder: str
) -> None:
    times_ms = [first_ms + 40 * number for number in range(30)]
    path = write_video(tmp_path / name, times_ms=times_ms, fps=25, b_frames=0)
    if decoder == "decord" and name == "a.ts":
        decoder = "pyav"  # decord refuses it
    with open_video(str(path), decoder) as video:
        assert video.pts_seconds.tolist() == [number * 40 / 1000 for number in range(30)]
        assert video.start_s == pytest.approx(first_ms / 1000, abs=1e-9)
        assert video.duration_s == pytest.approx(1.2, abs=1e-9)


def test_a_users_decoder_may_state_the_times_of_the_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raw_times.py").write_text(
        "import numpy as np\n"
        "from skipreel.pipeline.video.pyav.decoder import PyAVDecoder\n"
        "def opens(uri):\n"
        "    video = PyAVDecoder(uri)\n"
        "    video.pts_seconds = 30001.4 + np.arange(len(video.pts_seconds)) / 25\n"
        "    return video\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with open_video(str(made(folder, "b-frames.mp4")), "raw_times:opens") as video:
        assert video.pts_seconds.tolist() == [number / 25 for number in range(50)]
        assert video.start_s == 30001.4


@pytest.mark.parametrize("name", ["zero.mp4", "hour.mkv", "ts_default.ts", "ts_far.ts"])
def test_one_video_has_the_same_times_in_files_of_any_clock(name: str) -> None:
    path = CASES / name
    if not path.exists():
        pytest.skip("the real awkward files (../shared/data/cases) are absent")
    right = [float(time_s) for time_s in json.loads((CASES / "right.json").read_text())[name]["times_s"]]
    with open_video(str(path)) as video:
        assert video.pts_seconds.tolist() == [number / 25 for number in range(100)]
        assert video.start_s == pytest.approx(right[0], abs=1e-6)
        assert video.duration_s == pytest.approx(4.0, abs=1e-9)
