"""Decoders: a file that cannot be read, or not exactly by the chosen decoder, is a VideoError of one line."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from skipreel.pipeline.errors import VideoError
from skipreel.pipeline.video import DECODERS, open_video
from tests.support.video_kinds import ACCEPTED, DAMAGED, EDGE_FILES, KINDS, made, needs, needs_edge_files, sequential
from tests.support.videos import frame_number, write_audio_only, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


def test_damaged_frame_ends_in_an_error_that_names_it() -> None:
    needs_edge_files()
    paths = [path for path in EDGE_FILES if path.name == DAMAGED]
    with open_video(str(paths[0])) as video:
        assert len(video.pts_seconds) == 50
        first = video.get_frame_at(10)
        for index in (40, 30):
            with pytest.raises(VideoError, match="frame 28 of 50 could not be decoded"):
                video.get_frame_at(index)
        np.testing.assert_array_equal(video.get_frame_at(10), first)


def test_damage_inside_frames_is_an_error_when_they_are_reached(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=50)
    expected = sequential(path)
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 400):
        content[place] ^= 0xFF
    path.write_bytes(content)
    with open_video(str(path)) as video:
        np.testing.assert_array_equal(video.get_frame_at(0), expected[0])
        with pytest.raises(VideoError, match=r"frame \d+ of 50 could not be decoded"):
            list(video.iter_frames_at(range(50)))


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
def test_anything_but_a_video_is_refused_with_a_reason(
    folder: Path, tmp_path: Path, decoder: str, name: str, reason: str
) -> None:
    needs(decoder)
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
    ("decoder", "kind"),
    [(decoder, kind) for decoder in ("decord", "torchcodec") for kind in KINDS if kind not in ACCEPTED[decoder]],
)
def test_what_a_decoder_gets_wrong_it_refuses(folder: Path, decoder: str, kind: str) -> None:
    needs(decoder)
    with pytest.raises(VideoError, match="use decoder pyav") as caught:
        open_video(str(made(folder, kind)), decoder).get_frame_at(0)
    assert f"{kind} is refused with decoder {decoder}" in str(caught.value)


@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_files_elsewhere_are_refused_by_decoders_that_need_a_path(decoder: str) -> None:
    needs(decoder)
    with pytest.raises(VideoError, match="it is not a local file; use decoder pyav"):
        open_video("s3://bucket/a.mp4", decoder)


def test_a_missing_extra_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)  # as if it could not be imported
    with pytest.raises(VideoError, match=r"install skipreel\[torchcodec\] and FFmpeg") as caught:
        open_video(str(made(folder, "one-frame.mp4")), "torchcodec")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("decoder", "reason"),
    [
        ("ffmpeg", "allowed: pyav, decord"),
        ("tests.support.videos:", "allowed: pyav, decord"),
        (":f", "allowed: pyav, decord"),
        ("tests.support.videos:f(x)", "allowed: pyav, decord"),
        (".tests.support.videos:f", "allowed: pyav, decord"),
        ("tests.support.videos:NUM_BITS", "is not a function"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("tests.support.videos:no_such_function", "no_such_function"),
    ],
)
def test_unknown_decoder_is_refused_in_one_line(decoder: str, reason: str) -> None:
    with pytest.raises(VideoError, match=reason) as caught:
        open_video("a.mp4", decoder)
    assert repr(decoder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_users_decoder_is_imported_by_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_decoding.py").write_text(
        "from skipreel.pipeline.video import open_video\n"
        "from skipreel.pipeline.errors import VideoError\n"
        "def opens(uri):\n    return open_video(uri)\n"
        "def empty(uri):\n    video = open_video(uri)\n    video.pts_seconds = []\n    return video\n"
        "def refuses(uri):\n    raise VideoError(f'{uri} is not to my taste')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = made(folder, "one-frame.mp4")
    with open_video(str(path), "my_decoding:opens") as video:
        assert frame_number(video.get_frame_at(0)) == 0
    with pytest.raises(VideoError, match=r"one-frame\.mp4 is not to my taste"):
        open_video(str(path), "my_decoding:refuses")
    with pytest.raises(VideoError, match=r"one-frame\.mp4 has no frames, says decoder my_decoding:empty"):
        open_video(str(path), "my_decoding:empty")
