import pytest

from skipreel.features.extraction import progress
from skipreel.features.extraction.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """The time that `Progress` sees; set its first element."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def after(clock, seconds: float, *, decode_s: float, encode_s: float) -> Progress:
    """Two decoders and two encoders that have worked for so long."""
    made = Progress(2, 2)
    made.count(decode_s=decode_s, encode_s=encode_s)
    clock[0] = made.working_since + seconds
    made.frames = 100
    return made


def test_the_time_before_the_first_block_is_no_working_time(clock):
    made = Progress(1, 1)
    assert (made.working_s, made.frames_per_s, made.line()) == (0.0, 0.0, "starting processes")
    clock[0] += 7
    made.count(decode_s=1.5, encode_s=0.5)
    assert made.working_s == 2.0
    clock[0] += 3
    made.stopped = clock[0]
    clock[0] += 100
    made.frames = 50
    assert made.working_s == 5.0
    assert made.frames_per_s == 10.0


@pytest.mark.parametrize(
    ("decode_s", "encode_s", "words"),
    [(18, 1, "decoding is the bottleneck"), (4, 15, "encoding is the bottleneck"), (2, 1, "the processes wait")],
)
def test_the_bottleneck_is_the_stage_that_works_most(clock, decode_s, encode_s, words):
    assert words in after(clock, 10, decode_s=decode_s, encode_s=encode_s).advice()


def test_nothing_is_advised_in_the_first_seconds(clock):
    assert after(clock, 4, decode_s=8, encode_s=1).advice() == ""


def test_a_line_says_rates_shares_and_what_died(clock):
    made = after(clock, 10, decode_s=18, encode_s=2)
    made.video_s, made.restarts = 5400.0, 2
    first, second = made.line().split("\n")
    assert first == "1.50 hours of video, 10 frames/s; decoding 90%, encoding 10% of the time; 2 restarts"
    assert second.startswith("decoding is the bottleneck")
