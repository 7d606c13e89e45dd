"""The benchmark of the plan runs, goes the ways it says, and stops where frames differ; its figures are not tested."""

import json
from dataclasses import astuple
from pathlib import Path

import pytest

from benchmarks import decode_plan
from benchmarks.clips import write_clip
from skipreel.pipeline.video import Frame


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "a.mp4", size=(64, 48), seconds=4, key_distance=12)


def test_the_table_and_its_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        decode_plan,
        "write_clip",
        lambda path, **settings: write_clip(path, **{**settings, "size": (64, 48), "seconds": 2}),
    )
    decode_plan.main(decode_plan.Settings(quick=True, json=tmp_path / "rows.json"))
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["name"] for row in rows] == [
        f"decode-plan/480p/12/{share}" for share in ("100%/even", "25%/even", "25%/random", "3%/even", "3%/random")
    ]
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in rows)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1


def test_both_ways_are_gone_where_both_are_open(path: Path) -> None:
    decoded = {}
    for way in (True, False):
        with decode_plan.Measured(str(path), always_seek=way) as video:
            for index in (0, 30, 31, 100):
                assert video.cost(index) > 0
            decoded[way] = video.num_decoded
    assert decoded[True] < 40 < decoded[False]


def test_nothing_is_timed_where_frames_differ(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OneBrighter(decode_plan.PyAVDecoder):
        def get_frame_at(self, index: int) -> Frame:
            image = super().get_frame_at(index)
            image[3, 4, 1] ^= index == 40
            return image

    monkeypatch.setattr(decode_plan, "PyAVDecoder", OneBrighter)
    with pytest.raises(SystemExit, match="frame 40 differs"):
        decode_plan.compare("wrong", [path], 1, [1.0])


def test_costs_are_fitted_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_plan, "write_clip", lambda _, *, size, **__: size)
    monkeypatch.setattr(
        decode_plan, "_costs", lambda size: [part + (5 + part) * size[0] * size[1] / 1e6 for part in (1, 2, 3, 4)]
    )
    fixed, sloped = decode_plan.fit(tmp_path, quick=False)
    assert astuple(fixed) == pytest.approx((1, 2, 3, 4))
    assert astuple(sloped) == pytest.approx((6, 7, 8, 9))


def test_every_kind_of_cost_is_measured(path: Path) -> None:
    costs = decode_plan._costs(path)
    assert len(costs) == 4
    assert all(cost > 0 for cost in costs)
