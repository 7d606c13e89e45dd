"""The PyAV decoder's effort: how few frames it decodes, and which memory, files and threads it uses."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from skipreel.pipeline.errors import VideoError
from skipreel.pipeline.video import DECODERS, open_video
from skipreel.pipeline.video.pyav import decoder as pyav_decoder
from skipreel.pipeline.video.pyav.container import open_container
from tests.support.video_kinds import made, needs
from tests.support.videos import write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.mark.parametrize("decoder", DECODERS)
def test_sparse_reading_decodes_few_frames(folder: Path, decoder: str) -> None:
    needs(decoder)
    path = folder / "groups.mp4"
    write_video(path, num_frames=120, key_distance=12, b_frames=2, options={"x264-params": "b-pyramid=none"})
    with open_video(str(path), decoder) as video:
        assert video.num_decoded == 0
        for index in (0, 60, 108):
            video.get_frame_at(index)
        assert 3 <= video.num_decoded <= 3 * 8
    with open_video(str(path), decoder) as video:
        list(video.iter_frames_at(range(120)))
        assert video.num_decoded == 120


def test_frames_lost_without_probing_cost_one_more_try(folder: Path) -> None:
    with open_video(str(made(folder, "no-hints.mp4"))) as video:
        for index in (1, 50, 20):
            video.get_frame_at(index)
        assert video.num_decoded < 30  # not all 60 again


def test_unwanted_frames_are_dropped_but_none_that_may_be_wanted_next(folder: Path) -> None:
    path = folder / "long-group.mp4"
    write_video(path, num_frames=100, key_distance=100, b_frames=2, options={"x264-params": "b-pyramid=none:b-adapt=0"})
    wanted = list(range(0, 100, 6))
    with open_video(str(path)) as video:
        list(video.iter_frames_at(wanted))
        assert video.num_decoded < 60
    with open_video(str(path)) as video:
        for index in (0, 50, 51, 52, 53):
            video.get_frame_at(index)
        assert video.num_decoded < 30  # each further frame is one step, not a new start from the key frame


def test_opening_an_mp4_decodes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(made(folder, "b-frames.mp4"))
    for skip_probing, pixel_format in ((True, None), (False, "yuv420p")):
        opened = open_container(path, skip_probing=skip_probing)
        assert opened.stream.codec_context.pix_fmt == pixel_format
        opened.close()
    calls = []
    monkeypatch.setattr(
        pyav_decoder,
        "open_container",
        lambda *args, **options: [calls.append(options), open_container(*args, **options)][1],
    )
    with open_video(path) as video:
        list(video.iter_frames_at([3, 40]))
    assert calls == [{"skip_probing": True}]  # it was not opened again with probing


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc's allocator")
def test_memory_of_pictures_is_used_again(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=60, size=(640, 480), key_distance=60)
    script = (
        "import resource, sys\n"
        "from skipreel.pipeline.video import open_video\n"
        "with open_video(sys.argv[1]) as video:\n"
        "    for index, frame in enumerate(video.iter_frames_at(range(60))):\n"
        "        if index == 20:\n"
        "            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    root = Path(__file__).parents[4]  # a new process, as other tests change the allocator
    words = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True)
    pages_of_a_picture = 640 * 480 * 3 // resource.getpagesize()
    assert int(done.stdout) < 39 * pages_of_a_picture // 10


def test_no_file_stays_open_and_no_thread_is_started(folder: Path, tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc")
    (tmp_path / "text.mp4").write_text("text" * 100)
    made(folder, "b-frames.mp4")
    tasks = Path("/proc/self/task")
    open_video(str(folder / "b-frames.mp4")).close()  # creates what a process has once
    num_descriptors, num_threads = len(list(descriptors.iterdir())), len(list(tasks.iterdir()))
    for _ in range(3):
        with open_video(str(folder / "b-frames.mp4")) as video:
            list(video.iter_frames_at([0, 30, 2]))
            assert len(list(tasks.iterdir())) == num_threads
        with pytest.raises(VideoError):
            open_video(str(tmp_path / "text.mp4"))
    assert len(list(descriptors.iterdir())) == num_descriptors
