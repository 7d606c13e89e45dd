"""Live sources: real pipes and connections, fed in parts, give the same frames as a file with that content."""

import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import av
import numpy as np
import pytest

from skipreel.pipeline.errors import VideoError
from skipreel.pipeline.video import open_video
from skipreel.pipeline.video.live.stream import open_live
from skipreel.pipeline.video.sampling import Sampling
from tests.support.live_sources import FRAGMENTED, fifo, http, rtsp, send_slowly, tcp, udp, write_stream
from tests.support.videos import frame_number, write_audio_only, write_video

NUM_FRAMES = 48
SAMPLING = Sampling(6.0)


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    return {
        kind: write_stream(folder / f"a.{kind}", num_frames=NUM_FRAMES, fps=20) for kind in ("ts", "mkv", "mp4", "flv")
    }


@contextmanager
def sent(how, content, folder):
    with fifo(folder, content) if how == "fifo" else {"http": http, "tcp": tcp}[how](content) as source:
        yield source


@pytest.mark.parametrize("how", ["fifo", "http", "tcp"])
@pytest.mark.parametrize("kind", ["ts", "mkv", "mp4", "flv"])
def test_a_stream_gives_the_frames_of_the_file(streams, tmp_path, how, kind):
    path = streams[kind]
    with sent(how, path.read_bytes(), tmp_path) as source, open_live(source) as live:
        frames = [(frame.pts_s, frame.to_rgb()) for frame in live]
    with open_video(str(path)) as video:
        np.testing.assert_array_equal([seconds for seconds, _ in frames], video.pts_seconds)
        assert frames[0][0] == 0
        assert live.start_s == video.start_s
        assert (live.start_s > 0) == (kind != "mkv")
        for (_, image), expected in zip(frames, video.iter_frames_at(range(NUM_FRAMES)), strict=True):
            np.testing.assert_array_equal(image, expected)
            assert image.flags.c_contiguous
    assert live.num_arrived == live.num_decoded == live.num_converted == NUM_FRAMES
    assert live.num_damaged == 0
    assert live.decode_s > 0


@pytest.mark.parametrize("kind", ["ts", "mkv"])
def test_sampled_frames_are_those_of_the_file_and_only_pictures_asked_for_are_made(streams, tmp_path, kind):
    with fifo(tmp_path, streams[kind].read_bytes()) as source, open_live(source) as live:
        sampled = list(live.sampled(SAMPLING))
        assert live.num_converted == 0
        images = [frame.to_rgb() for frame in sampled[::3]]
        assert live.num_converted == len(images)
    with open_video(str(streams[kind])) as video:
        chosen = SAMPLING.select(video.pts_seconds)
        np.testing.assert_array_equal([frame.pts_s for frame in sampled], video.pts_seconds[chosen])
    assert [frame_number(image) for image in images] == chosen[::3].tolist()


def test_a_varying_frame_rate_is_sampled_in_time(tmp_path):
    times = np.cumsum([40, 300, 30, 30, 500, 20, 20, 20, 20, 400] * 3).tolist()
    path = write_stream(tmp_path / "a.mkv", num_frames=len(times), times_ms=times)
    with fifo(tmp_path, path.read_bytes()) as source, open_live(source) as live:
        numbers = [frame_number(frame.to_rgb()) for frame in live.sampled(SAMPLING)]
    assert numbers == SAMPLING.select(np.array(times) / 1000).tolist()


def test_standard_input_is_read_too(streams):
    program = (
        "from skipreel.pipeline.video.live.stream import open_live; print([frame.pts_s for frame in open_live('-')])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[4]
    )
    assert process.stdin is not None
    send_slowly(streams["ts"].read_bytes(), process.stdin.write)
    out, _ = process.communicate()
    with open_video(str(streams["ts"])) as video:
        assert out.decode().strip() == str(video.pts_seconds.tolist())


def test_a_camera_is_read_by_rtsp(streams):
    with rtsp(streams["ts"]) as source, open_live(source) as live:
        frames = [(frame.pts_s, frame_number(frame.to_rgb())) for frame in live]
    assert "user:secret@" in source
    assert live.name == source.replace("user:secret@", "")
    # FFmpeg gives the first frame of an RTSP stream no time.
    assert [number for _, number in frames] == list(range(1, NUM_FRAMES))
    np.testing.assert_allclose([seconds for seconds, _ in frames], np.arange(NUM_FRAMES - 1) / 20)
    assert live.start_s == pytest.approx(1 / 20)
    assert (live.num_arrived, live.num_damaged) == (NUM_FRAMES, 1)


def test_udp_ends_by_its_silence(streams):
    numbers = []
    with (
        udp(streams["ts"].read_bytes()) as source,
        open_live(source, timeout_s=0.5) as live,
        pytest.raises(VideoError, match=r"has sent nothing for 0.5 s: check that it is sending"),
    ):
        numbers.extend(frame_number(frame.to_rgb()) for frame in live)
    # Without an end, the last frames are never known to be complete.
    assert numbers == list(range(len(numbers)))
    assert NUM_FRAMES - 4 <= len(numbers) < NUM_FRAMES


def test_a_stream_that_is_joined_starts_at_its_next_key_frame(streams, tmp_path):
    content = streams["ts"].read_bytes()
    middle = len(content) // 376 * 188  # whole packets, as a multicast is joined
    with fifo(tmp_path, content[middle:]) as source, open_live(source) as live:
        numbers = [frame_number(frame.to_rgb()) for frame in live]
    assert numbers == list(range(numbers[0], NUM_FRAMES))
    assert numbers[0] in (12, 24, 36)  # every twelfth is a key frame
    assert live.num_damaged > 0
    assert live.num_damaged + live.num_decoded == live.num_arrived


@pytest.mark.parametrize(("kind", "codec"), [("ts", "libx264"), ("mkv", "libx264"), ("mkv", "mpeg4")])
@pytest.mark.parametrize("place", [14, 15, 16])
def test_after_damage_frames_are_left_out_and_counted_up_to_the_next_key_frame(tmp_path, kind, codec, place):
    path = write_stream(tmp_path / f"a.{kind}", num_frames=NUM_FRAMES, size=(320, 240), codec=codec)
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.size, packet.pos or 0) for packet in container.demux(video=0)]
    size, start = packets[place]
    for at in range(start + 200, start + size):
        content[at] ^= 0xFF
    with fifo(tmp_path, bytes(content)) as source, open_live(source) as live:
        images = [frame.to_rgb() for frame in live]
    numbers = [frame_number(image) for image in images]
    missing = sorted(set(range(NUM_FRAMES)) - set(numbers))
    assert set(range(17, 24)) <= set(missing) <= set(range(12, 24))
    # FFmpeg's decoder may also lose the frame that it was about to return.
    assert len(missing) - 1 <= live.num_damaged <= len(missing)
    with open_video(str(path)) as video:
        for image, expected in zip(images, video.iter_frames_at(numbers), strict=True):
            np.testing.assert_array_equal(image, expected)


def test_lost_packets_leave_no_damaged_frame_behind(streams, tmp_path):
    content = streams["ts"].read_bytes()
    packets = [content[at : at + 188] for at in range(0, len(content), 188)]
    of_video = [packet for packet in packets if int.from_bytes(packet[1:3]) & 0x1FFF == 0x100]
    lost = {of_video[len(of_video) // 3], of_video[len(of_video) // 2]}  # each has a counter: no two are the same
    kept = b"".join(packet for packet in packets if packet not in lost)
    assert len(kept) == len(content) - 2 * 188
    with fifo(tmp_path, kept) as source, open_live(source) as live:
        frames = [frame.to_rgb() for frame in live]
    assert live.num_damaged > 0
    assert frames
    with open_video(str(streams["ts"])) as video:
        for image in frames:
            np.testing.assert_array_equal(image, video.get_frame_at(frame_number(image)))


def test_after_a_restart_of_the_clock_times_continue(streams, tmp_path):
    content = streams["ts"].read_bytes()
    with fifo(tmp_path, content, content) as source, open_live(source) as live:
        frames = [(frame.pts_s, frame_number(frame.to_rgb())) for frame in live]
    # Where the two join, packet counters have a gap, so the last frames of the first count as damaged.
    first, second = frames[:-NUM_FRAMES], frames[-NUM_FRAMES:]
    assert len(first) >= NUM_FRAMES - 4
    assert [number for _, number in second] == list(range(NUM_FRAMES))
    np.testing.assert_allclose(np.diff([seconds for seconds, _ in second]), 1 / 20, atol=1e-9)
    assert first[-1][0] < second[0][0] < first[-1][0] + 0.2


def test_a_picture_comes_upright_and_can_be_made_later(tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=12, rotation=90, container_options=FRAGMENTED)
    with fifo(tmp_path, path.read_bytes()) as source, open_live(source) as live:
        frames = list(live)
        images = [frame.to_rgb() for frame in reversed(frames)]
    with open_video(str(path)) as video:
        for image, expected in zip(reversed(images), video.iter_frames_at(range(12)), strict=True):
            assert image.shape == (64, 48, 3)
            np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_pipe_that_falls_silent_is_an_error(streams, tmp_path, share):
    content, hold = streams["ts"].read_bytes(), threading.Event()
    with fifo(tmp_path, content[: int(len(content) * share)], hold=hold) as source:
        with pytest.raises(VideoError, match=r"camera has sent nothing for 0.3 s"):  # noqa: SIM117 - hold is set after
            with open_live(source, timeout_s=0.3) as live:
                list(live)
        hold.set()


def test_a_pipe_that_nobody_writes_to_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "camera")
    with pytest.raises(VideoError, match=r"camera has sent nothing for 0.1 s"):
        open_live(str(tmp_path / "camera"), timeout_s=0.1)


@pytest.mark.parametrize(("share", "reason"), [(0.0, "gave no video within"), (0.5, "has sent nothing for")])
def test_a_server_that_falls_silent_is_an_error(streams, share, reason):
    content, hold = streams["ts"].read_bytes(), threading.Event()
    with http(content[: int(len(content) * share)], hold=hold) as source:
        with pytest.raises(VideoError, match=reason + " 0.3 s: check that it is sending"):  # noqa: SIM117 - as above
            with open_live(source, timeout_s=0.3) as live:
                list(live)
        hold.set()


@pytest.mark.parametrize("kind", ["ts", "mkv", "mp4"])
def test_a_stream_that_stops_inside_a_frame_ends_with_whole_ones(streams, tmp_path, kind):
    content = streams[kind].read_bytes()
    with fifo(tmp_path, content[: len(content) * 5 // 6]) as source, open_live(source) as live:
        images = [frame.to_rgb() for frame in live]
    numbers = [frame_number(image) for image in images]
    assert 12 < len(numbers) < NUM_FRAMES
    assert set(range(36)) <= set(numbers)  # the group that is cut off may lack frames in its middle
    with open_video(str(streams[kind])) as video:
        for image, expected in zip(images, video.iter_frames_at(numbers), strict=True):
            np.testing.assert_array_equal(image, expected)


def test_a_playlist_does_not_open_other_addresses():
    requests = []
    content = PLAYLIST.replace(b"file:///etc/hostname", b"more.ts")
    with http(content, requests=requests) as source, pytest.raises(VideoError, match="cannot be opened"):
        open_live(source + ".m3u8")
    assert set(requests) == {"/camera.m3u8"}


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"
CONCATENATION = b"ffconcat version 1.0\nfile /etc/hostname\n"


@pytest.mark.parametrize("content", [b"", b"no video " * 5000, PLAYLIST, CONCATENATION])
@pytest.mark.parametrize("how", ["fifo", "http"])
def test_anything_but_a_video_stream_is_refused(tmp_path, how, content):
    with (
        sent(how, content, tmp_path) as source,
        pytest.raises(VideoError, match=r"cannot be opened as a video stream \(.+\): check the address"),
    ):
        open_live(source, timeout_s=5)


def test_sound_alone_is_refused(tmp_path):
    path = write_audio_only(tmp_path / "a.mkv")
    with (
        fifo(tmp_path, path.read_bytes()) as source,
        pytest.raises(VideoError, match="sends no video that this FFmpeg can decode, only audio"),
    ):
        open_live(source)


def test_a_sound_track_does_not_matter(tmp_path):
    path = write_stream(tmp_path / "a.ts", num_frames=30, silence=True)
    with fifo(tmp_path, path.read_bytes()) as source, open_live(source) as live:
        assert [frame_number(frame.to_rgb()) for frame in live] == list(range(30))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("file:///etc/hostname", "is not a live source; allowed: - .*, a FIFO, and rtsp, "),
        ("concat:a|b", "cannot be read .*: give -, the path of a FIFO or an address"),
        ("/nowhere/camera", "cannot be read .No such file"),
        (__file__, "is not a FIFO"),
        ("tcp://user:secret@127.0.0.1:1", r"tcp://127.0.0.1:1 cannot be opened .*refused"),
    ],
)
def test_what_cannot_be_opened_is_an_error_of_one_line(source, reason):
    with pytest.raises(VideoError, match=reason) as caught:
        open_live(source, timeout_s=2)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_refuses_says_why():
    with (
        http(b"", status=404) as source,
        pytest.raises(VideoError, match=re.escape("cannot be opened as a video stream (Server returned 404")),
    ):
        open_live(source)


def test_nothing_stays_open(streams, tmp_path):
    def is_open(name: str) -> bool:
        found = False
        for link in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # the one that lists the others
                found |= name in str(link.readlink())
        return found

    with fifo(tmp_path, streams["ts"].read_bytes()) as source, open_live(source) as live:
        next(iter(live))
        assert is_open(source)
    assert not is_open(source)
    with fifo(tmp_path, b"no video") as source, pytest.raises(VideoError):
        open_live(source)
    assert not is_open(source)
