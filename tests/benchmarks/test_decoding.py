"""The benchmark of the decoders runs, and stops where one of them is wrong; its figures are not tested."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import decoding
from skipreel.pipeline.video import DECODERS, Frame
from skipreel.pipeline.video.pyav.decoder import PyAVDecoder

TINY = decoding.Clip((64, 48), seconds=2)


class OneBrighter(PyAVDecoder):
    """Wrong by one in one pixel of one frame."""

    def iter_frames_at(self, indices):
        return map(self.get_frame_at, indices)

    def get_frame_at(self, index: int) -> Frame:
        image = super().get_frame_at(index)
        image[3, 4, 1] ^= index == 7
        return image


def test_the_table_of_the_decoders_and_its_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decoding, "clips", lambda quick: [TINY] if quick else [])
    monkeypatch.delitem(DECODERS, "torchcodec")  # it may be absent
    decoding.main(decoding.Settings(quick=True, json=tmp_path / "rows.json"))
    rows = json.loads((tmp_path / "rows.json").read_text())
    wanted = [("every", "decord"), ("every", "limit"), ("every", "decode-only")]
    wanted += [(sampling, peer) for sampling in ("6-fps", "1-fps", "8-sparse") for peer in ("decord", "limit")]
    assert [row["name"] for row in rows] == [f"decoding/h264/64x48/48/{sampling}/{peer}" for sampling, peer in wanted]
    assert all(row["ours"] > 0 and row["ratio"] > 0 for row in rows)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4
    assert len({line.count("|") for line in table}) == 1


def test_no_decoder_is_timed_that_returns_other_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = TINY.write(tmp_path)
    monkeypatch.setitem(DECODERS, "decord", f"{__name__}:OneBrighter")
    with pytest.raises(SystemExit, match="decord returns other frames"):
        decoding.usable(TINY, path)


def test_clips_differ_in_what_is_varied(tmp_path: Path) -> None:
    varied = decoding.clips(quick=False)
    assert len(set(map(str, varied))) == len(varied)
    assert {clip.size for clip in varied} == set(decoding.SIZES)
    assert {clip.key_distance for clip in varied} == set(decoding.KEY_DISTANCES)
    path = decoding.Clip((64, 48), "mpeg4", key_distance=12, seconds=1).write(tmp_path)
    with PyAVDecoder(str(path)) as video:
        assert len(video.pts_seconds) == 30
        assert np.ptp(video.get_frame_at(29)) > 50  # a picture, not a blank
    assert decoding.samplings(30)["6 fps"] == [0, 5, 10, 15, 20, 25]
