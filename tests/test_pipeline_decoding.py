"""Decoding: what is read, in whatever order, equals the plain sequential decode pixel for pixel, or is a VideoError."""

import platform
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.decoding import DECODERS, Frame, open_video
from pipeline.decoding_container import open_container
from pipeline.decoding_index import _is_hidden
from pipeline.errors import VideoError
from videos import frame_number, hide_reordering, trim, write_audio_only, write_video

EDGE = Path(__file__).parents[2] / "shared" / "data" / "edge"
EDGE_FILES = sorted(path for path in EDGE.glob("*/*") if path.suffix in (".mp4", ".mkv", ".mov", ".avi"))
DAMAGED = "corrupted.mp4"
MAX_PIXELS = 120 * 640 * 480  # the largest files are compared in part, to keep the tests quick


@cache
def sequential(path: Path, num_frames: int | None = None) -> list[Frame]:
    """The first frames of a video by the plainest use of PyAV."""
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


PYRAMID = {"x264-params": "b-pyramid=normal:ref=4:b-adapt=0"}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
KINDS: dict[str, Callable[[Path], Path]] = {
    "b-frames.mp4": lambda path: write_video(path, num_frames=50),
    "pyramid.mp4": lambda path: write_video(path, num_frames=60, key_distance=30, b_frames=6, options=PYRAMID),
    "no-b-frames.mkv": lambda path: write_video(path, num_frames=40, b_frames=0),
    "variable.mp4": lambda path: write_video(path, num_frames=40, times_ms=[n * 33 + n % 3 * 9 for n in range(40)]),
    "one-frame.mp4": lambda path: write_video(path, num_frames=1),
    "odd-size.mp4": lambda path: write_video(path, size=(65, 47)),
    "padded-rows.mp4": lambda path: write_video(path, size=(50, 46)),
    "rotated.mp4": lambda path: write_video(path, rotation=-90),
    "open-groups.mp4": lambda path: write_video(path, num_frames=40, options={"x264-params": "open-gop=1"}),
    "intra-refresh.mp4": lambda path: write_video(
        path, num_frames=40, b_frames=0, options={"x264-params": "intra-refresh=1"}
    ),
    "fragmented.mp4": lambda path: write_video(path, container_options=FRAGMENTED),
    "no-hints.mp4": lambda path: hide_reordering(
        write_video(path, num_frames=60, b_frames=4, options=PYRAMID, container_options=FRAGMENTED)
    ),
    "b-frames.avi": lambda path: write_video(path),
    "b-frames.ts": lambda path: write_video(path),
    "mpeg4.mkv": lambda path: write_video(path, codec="mpeg4"),
    "vp8.webm": lambda path: write_video(path, codec="libvpx", b_frames=0),
    "trimmed.mp4": lambda path: trim(write_video(path.with_name("whole.mp4"), num_frames=50), path, 17),
}
PLAIN = ["b-frames.mp4", "pyramid.mp4", "no-b-frames.mkv", "variable.mp4", "one-frame.mp4", "padded-rows.mp4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


def made(folder: Path, kind: str) -> Path:
    path = folder / kind
    return path if path.exists() else KINDS[kind](path)


def assert_exact(path: Path, decoder: str, expected: list[Frame], order: list[int], *, one_by_one: bool) -> None:
    with open_video(str(path), decoder) as video:
        frames = (video.read(index) for index in order) if one_by_one else video.read_many(order)
        for index, frame in zip(order, frames, strict=True):
            assert frame.dtype == np.uint8
            assert frame.flags.c_contiguous
            np.testing.assert_array_equal(frame, expected[index], err_msg=f"frame {index} of {order}")


@pytest.mark.parametrize(
    ("decoder", "kind"), [*(("pyav", kind) for kind in KINDS), *(("decord", kind) for kind in PLAIN)]
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_frames_in_any_order_are_exact(folder: Path, decoder: str, kind: str, data: st.DataObject) -> None:
    expected = sequential(made(folder, kind))
    order = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=10))
    order = sorted(set(order)) if data.draw(st.booleans()) else order
    assert_exact(folder / kind, decoder, expected, order, one_by_one=data.draw(st.booleans()))


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_listed_with_their_times(folder: Path, kind: str) -> None:
    expected = sequential(made(folder, kind))
    with open_video(str(folder / kind)) as video:
        assert video.pts_seconds.shape == (len(expected),)
        assert video.pts_seconds.dtype == np.float64
        assert (np.diff(video.pts_seconds) > 0).all()
        assert video.duration_s == pytest.approx(len(expected) / 30, abs=0.05)
        numbers = [frame_number(frame) for frame in video.read_many(range(len(expected)))]
    if kind not in ("rotated.mp4", "trimmed.mp4"):
        assert numbers == list(range(len(expected)))
    if kind == "trimmed.mp4":
        assert numbers == list(range(17, 50))
    if kind == "variable.mp4":
        np.testing.assert_allclose(video.pts_seconds, [(n * 33 + n % 3 * 9) / 1000 for n in range(40)], atol=1e-3)


def test_vp8_packets_without_a_picture_are_not_listed() -> None:
    # Encoders write them in two passes only, so none of the videos made here has one.
    assert _is_hidden("vp8", av.Packet(b"\x01"))
    assert not _is_hidden("vp8", av.Packet(b"\x10"))
    assert not _is_hidden("h264", av.Packet(b"\x01"))


def test_rotation_is_undone(folder: Path) -> None:
    with open_video(str(made(folder, "rotated.mp4"))) as video:
        frame = video.read(13)
    assert frame.shape == (64, 48, 3)
    assert frame_number(np.rot90(frame)) == 13  # the container says: show it turned clockwise


def test_edge_files_are_complete_and_exact() -> None:
    if not EDGE_FILES:
        pytest.skip("real awkward files (../shared/data/edge) are not here")
    rng = random.Random(0)
    for path in EDGE_FILES:
        if path.name == DAMAGED:
            continue
        with open_video(str(path)) as video:
            pixels = video.read(0).size // 3
            num_frames = len(video.pts_seconds)
            num_compared = min(num_frames, max(2, MAX_PIXELS // pixels))
        expected = sequential(path, num_compared)
        if num_compared == num_frames:
            assert len(expected) == num_frames, path.name
        order = sorted(rng.sample(range(num_compared), min(6, num_compared)))
        assert_exact(path, "pyav", expected, order, one_by_one=False)
        rng.shuffle(order)
        assert_exact(path, "pyav", expected, order[:3], one_by_one=True)
        with suppress(VideoError):  # decord refuses many of them
            assert_exact(path, "decord", expected, order, one_by_one=False)
        sequential.cache_clear()


def test_damaged_frame_ends_in_an_error_that_names_it() -> None:
    paths = [path for path in EDGE_FILES if path.name == DAMAGED]
    if not paths:
        pytest.skip("real awkward files (../shared/data/edge) are not here")
    with open_video(str(paths[0])) as video:
        assert len(video.pts_seconds) == 50
        first = video.read(10)
        for index in (40, 30):
            with pytest.raises(VideoError, match="frame 28 of 50 could not be decoded"):
                video.read(index)
        np.testing.assert_array_equal(video.read(10), first)


def test_damage_inside_frames_is_an_error_when_they_are_reached(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=50)
    expected = sequential(path)
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 400):
        content[place] ^= 0xFF
    path.write_bytes(content)
    with open_video(str(path)) as video:
        np.testing.assert_array_equal(video.read(0), expected[0])
        with pytest.raises(VideoError, match=r"frame \d+ of 50 could not be decoded"):
            list(video.read_many(range(50)))


def test_damage_that_hides_the_rest_of_a_file_is_an_error_at_once(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", num_frames=60, fps=10)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(VideoError, match=r"cannot be read beyond \d\.\d of 6\.0 s"):
        open_video(str(path))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.mp4", "check the path"),
        ("folder.mp4", "not a folder"),
        ("empty.mp4", "is empty"),
        ("text.mp4", "not a video"),
        ("playlist.mp4", "not a video"),
        ("audio.mp4", "no video stream, only audio"),
        ("cut-at-end.mp4", "is cut off"),
        ("cut-index-first.mp4", "is cut off"),
        ("cut.mkv", "is cut off"),
        ("cut.avi", "is cut off"),
    ],
)
def test_what_is_no_video_is_refused_with_a_reason(
    folder: Path, tmp_path: Path, decoder: str, name: str, reason: str
) -> None:
    path = tmp_path / name
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("Not a video at all.\n" * 50)
    (tmp_path / "playlist.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    shutil.copy(made(folder, "one-frame.mp4"), tmp_path / "other.mp4")
    if name == "audio.mp4":
        write_audio_only(path)
    if name.startswith("cut"):
        index_first = {"movflags": "faststart"} if "index-first" in name else None
        write_video(path, container_options=index_first)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    with pytest.raises(VideoError, match=reason) as caught:
        open_video(str(path), decoder)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind",
    ["b-frames.avi", "b-frames.ts", "odd-size.mp4", "rotated.mp4", "open-groups.mp4", "trimmed.mp4", "mpeg4.mkv"],
)
def test_decord_refuses_what_it_gets_wrong(folder: Path, kind: str) -> None:
    with pytest.raises(VideoError, match="use decoder pyav"):
        open_video(str(made(folder, kind)), "decord")


@pytest.mark.parametrize(
    ("decoder", "reason"),
    [
        ("ffmpeg", "allowed: pyav, decord"),
        ("videos:", "allowed: pyav, decord"),
        (":f", "allowed: pyav, decord"),
        ("videos:f(x)", "allowed: pyav, decord"),
        (".videos:f", "allowed: pyav, decord"),
        ("videos:NUM_BITS", "is no function"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("videos:no_such_function", "no_such_function"),
    ],
)
def test_unknown_decoder_is_refused_in_one_line(decoder: str, reason: str) -> None:
    with pytest.raises(VideoError, match=reason) as caught:
        open_video("a.mp4", decoder)
    assert repr(decoder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_decoder_of_ones_own_is_imported_by_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_decoding.py").write_text(
        "from pipeline.decoding import open_video\n"
        "from pipeline.errors import VideoError\n"
        "def opens(uri):\n    return open_video(uri)\n"
        "def refuses(uri):\n    raise VideoError(f'{uri} is not to my taste')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = made(folder, "one-frame.mp4")
    with open_video(str(path), "my_decoding:opens") as video:
        assert frame_number(video.read(0)) == 0
    with pytest.raises(VideoError, match=r"one-frame\.mp4 is not to my taste"):
        open_video(str(path), "my_decoding:refuses")


@pytest.mark.parametrize("decoder", DECODERS)
def test_sparse_reading_decodes_few_frames(folder: Path, decoder: str) -> None:
    path = folder / "groups.mp4"
    write_video(path, num_frames=120, key_distance=12, b_frames=2, options={"x264-params": "b-pyramid=none"})
    with open_video(str(path), decoder) as video:
        assert video.num_decoded == 0
        for index in (0, 60, 108):
            video.read(index)
        assert 3 <= video.num_decoded <= 3 * 8
    with open_video(str(path), decoder) as video:
        list(video.read_many(range(120)))
        assert video.num_decoded == 120


def test_unwanted_frames_are_dropped_but_none_that_may_be_wanted_next(folder: Path) -> None:
    path = folder / "long-group.mp4"
    write_video(path, num_frames=100, key_distance=100, b_frames=2, options={"x264-params": "b-pyramid=none:b-adapt=0"})
    wanted = list(range(0, 100, 6))
    with open_video(str(path)) as video:
        list(video.read_many(wanted))
        assert video.num_decoded < 60
    with open_video(str(path)) as video:
        for index in (0, 50, 51, 52, 53):
            video.read(index)
        assert video.num_decoded < 30  # each further frame is one step, not a new start from the key frame


def test_abandoned_iterator_does_not_spoil_what_is_read_next(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, num_frames=60, key_distance=60, options={"x264-params": "b-pyramid=none:b-adapt=0"})
    expected = sequential(path)
    with open_video(str(path)) as video:
        frames = video.read_many([3, 55])
        next(frames)
        for index in (4, 3, 5, 6):
            np.testing.assert_array_equal(video.read(index), expected[index])
        np.testing.assert_array_equal(next(frames), expected[55])
        assert video.num_decoded < 50


def test_opening_an_mp4_decodes_nothing(folder: Path) -> None:
    path = str(made(folder, "b-frames.mp4"))
    for quick, pixel_format in ((True, None), (False, "yuv420p")):
        opened = open_container(path, quick=quick)
        assert opened.stream.codec_context.pix_fmt == pixel_format
        opened.close()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc's allocator")
def test_memory_of_pictures_is_used_again(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=60, size=(640, 480), key_distance=60)
    script = (
        "import resource, sys\n"
        "from pipeline.decoding import open_video\n"
        "with open_video(sys.argv[1]) as video:\n"
        "    for index, frame in enumerate(video.read_many(range(60))):\n"
        "        if index == 20:\n"
        "            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    root = Path(__file__).parents[1]  # a new process: its allocator has not learnt from other tests
    words = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True)
    pages_of_a_picture = 640 * 480 * 3 // resource.getpagesize()
    assert int(done.stdout) < 39 * pages_of_a_picture // 10


def test_returned_frames_are_independent(folder: Path) -> None:
    with open_video(str(made(folder, "b-frames.mp4"))) as video:
        first = video.read(3)
        kept = first.copy()
        second = video.read(3)
        second[:] = 0
        video.read(4)
        np.testing.assert_array_equal(first, kept)


def test_index_outside_the_video_is_an_index_error(folder: Path) -> None:
    with open_video(str(made(folder, "b-frames.mp4"))) as video:
        for index in (-1, 50):
            with pytest.raises(IndexError, match="0 to 49"):
                video.read(index)


@pytest.mark.parametrize("decoder", DECODERS)
def test_closed_video_reads_no_more(folder: Path, decoder: str) -> None:
    with open_video(str(made(folder, "b-frames.mp4")), decoder) as video:
        video.read(0)
    video.close()
    with pytest.raises(ValueError, match="closed"):
        video.read(1)


def test_no_file_stays_open_and_no_thread_is_started(folder: Path, tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc")
    (tmp_path / "text.mp4").write_text("text" * 100)
    made(folder, "b-frames.mp4")
    tasks = Path("/proc/self/task")
    open_video(str(folder / "b-frames.mp4")).close()  # what is made once per process is made here
    num_descriptors, num_threads = len(list(descriptors.iterdir())), len(list(tasks.iterdir()))
    for _ in range(3):
        with open_video(str(folder / "b-frames.mp4")) as video:
            list(video.read_many([0, 30, 2]))
            assert len(list(tasks.iterdir())) == num_threads
        with pytest.raises(VideoError):
            open_video(str(tmp_path / "text.mp4"))
    assert len(list(descriptors.iterdir())) == num_descriptors


def test_other_file_systems_are_read_too(folder: Path) -> None:
    pytest.importorskip("fsspec")
    expected = sequential(made(folder, "b-frames.mp4"))
    uri = "fsspec+memory:///videos/b-frames.mp4"
    storage.write_atomic(uri, (folder / "b-frames.mp4").read_bytes())
    with open_video(uri) as video:
        for index in (31, 5, 49):
            np.testing.assert_array_equal(video.read(index), expected[index])
    with pytest.raises(VideoError, match="not a local file"):
        open_video(uri, "decord")
    with pytest.raises(VideoError, match="check the path"):
        open_video("fsspec+memory:///videos/gone.mp4")


def test_names_that_look_like_protocols_are_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(made(folder, "one-frame.mp4"), tmp_path / "concat:a b%20.mp4")
    monkeypatch.chdir(tmp_path)
    with open_video("concat:a b%20.mp4") as video:
        assert len(video.pts_seconds) == 1
