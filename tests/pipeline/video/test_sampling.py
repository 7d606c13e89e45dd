"""Sampling, checked against its definition, target by target."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from skipreel.pipeline.errors import InputError
from skipreel.pipeline.video.sampling import OnlineSampling, Sampling

RATES = st.sampled_from([0.1, 1.0, 6.0, 7.3, 30.0, 200.0])


def by_definition(pts: NDArray[np.float64], rate_hz: float) -> list[int]:
    """The frame on screen at every target time, each at most once."""
    chosen: list[int] = []
    for step in range(math.floor((pts[-1] - pts[0] + 1e-6) * rate_hz) + 1):
        on_screen = int(np.searchsorted(pts, pts[0] + step / rate_hz + 1e-6, side="right")) - 1
        if on_screen not in chosen:
            chosen.append(on_screen)
    return chosen


@given(gaps_ms=st.lists(st.integers(1, 400), max_size=60), start_ms=st.integers(0, 5000), rate_hz=RATES)
def test_every_target_gets_the_frame_on_screen(gaps_ms: list[int], start_ms: int, rate_hz: float) -> None:
    # Thirds of a millisecond keep frames clear of the targets, where float rounding may decide either way.
    pts = (start_ms + np.cumsum([0, *gaps_ms]) + np.arange(len(gaps_ms) + 1) % 2 / 3) / 1000
    indices = Sampling(rate_hz).select(pts)
    assert indices.dtype == np.int64
    assert indices.tolist() == by_definition(pts, rate_hz)
    assert (np.diff(indices) > 0).all()
    assert indices[0] == 0


@pytest.mark.parametrize("fps", [24, 25, 29.97, 30, 60])
def test_constant_frame_rate_gives_even_steps_despite_rounding(fps: float) -> None:
    pts = 1.4 + np.arange(600) / fps
    indices = Sampling(6.0).select(pts)
    expected = np.floor(np.arange(len(indices)) * fps / 6.0 + 1e-4)
    assert indices.tolist() == expected.tolist()


def test_variable_frame_rate_is_sampled_in_time_not_in_frames() -> None:
    slow, fast = np.arange(0, 2, 0.5), np.arange(2, 3, 0.01)
    indices = Sampling(2.0).select(np.concatenate([slow, fast]))
    assert indices.tolist() == [0, 1, 2, 3, 4, 54]


def test_video_slower_than_the_rate_gives_each_frame_once() -> None:
    assert Sampling(100.0).select(np.arange(10) / 5).tolist() == list(range(10))


def test_one_frame_no_frame_and_a_stray_far_timestamp() -> None:
    assert Sampling().select(np.array([3.5])).tolist() == [0]
    assert Sampling().select(np.empty(0)).tolist() == []
    assert Sampling().select(np.array([0.0, 0.2, 1e12])).tolist() == [0, 1, 2]


@pytest.mark.parametrize("rate_hz", [0.0, -1.0, math.nan, math.inf])
def test_rate_must_be_positive(rate_hz: float) -> None:
    with pytest.raises(InputError, match="sampling rate"):
        Sampling(rate_hz)


def test_times_must_ascend() -> None:
    with pytest.raises(ValueError, match="ascending"):
        Sampling().select(np.array([0.0, 2.0, 1.0]))


@given(
    gaps_us=st.lists(st.one_of(st.integers(0, 5), st.integers(0, 400_000), st.just(50_000)), max_size=60),
    start_s=st.floats(-10, 1e5),
    rate_hz=RATES,
)
def test_online_sampling_selects_the_same_frames(gaps_us: list[int], start_s: float, rate_hz: float) -> None:
    pts = start_s + np.cumsum([0, *gaps_us]) / 1e6
    online = OnlineSampling(Sampling(rate_hz))
    answers = [online.push(float(seconds)) for seconds in pts]
    chosen = np.flatnonzero([*answers[1:], online.end()])
    assert not answers[0]
    assert chosen.tolist() == Sampling(rate_hz).select(pts).tolist()


@given(pts=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=30).map(sorted), rate_hz=RATES)
def test_online_sampling_takes_any_ascending_times(pts: list[float], rate_hz: float) -> None:
    online = OnlineSampling(Sampling(rate_hz))
    answers = [online.push(seconds) for seconds in pts]
    chosen = np.flatnonzero([*answers[1:], online.end()])
    assert chosen.tolist() == Sampling(rate_hz).select(np.array(pts)).tolist()


def test_online_sampling_without_frames_selects_none() -> None:
    assert not OnlineSampling(Sampling()).end()


@pytest.mark.parametrize("following", [0.9, math.nan, math.inf])
def test_online_sampling_needs_ascending_times(following: float) -> None:
    online = OnlineSampling(Sampling())
    online.push(1.0)
    with pytest.raises(ValueError, match="ascend"):
        online.push(following)
