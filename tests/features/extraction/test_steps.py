import re

import duckdb
import numpy as np
import pytest

from skipreel.features.backbones.loading import load_backbone
from skipreel.features.batching.buckets import BatchPlan
from skipreel.features.batching.collate import load_examples, stream_batches
from skipreel.features.extraction.steps import decode, encode, extract_video
from skipreel.features.extraction.work import FrameBlock, FrameChunk, FrameSettings, VideoJob, VideoOutcome
from skipreel.features.feature_set.card import create_feature_set
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.feature_set.shard_writer import ShardWriter, VideoRows
from skipreel.pipeline.errors import VideoError
from skipreel.pipeline.manifest import Label, Manifest, VideoEntry
from skipreel.pipeline.video import open_video
from skipreel.pipeline.video.pyav.decoder import PyAVDecoder
from skipreel.pipeline.video.sampling import Sampling
from tests.support.feature_sets import spec
from tests.support.videos import write_video


@pytest.fixture
def path(tmp_path):
    return str(write_video(tmp_path / "a.mp4", num_frames=50, fps=25, b_frames=2))


def settings(*, rate_hz: float = 25, batch_size: int = 4, decoder: str = "pyav") -> FrameSettings:
    return FrameSettings(Sampling(rate_hz=rate_hz), batch_size, decoder)


def outcomes(path: str, **changes) -> list[VideoOutcome]:
    return [piece for piece in decode(VideoJob("a", path), settings(**changes)) if isinstance(piece, VideoOutcome)]


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_features_belong_to_the_frames_on_screen_at_the_sampled_times(path, decoder):
    backbone = load_backbone("random:0")
    ((chunk, features),) = extract_video(path, backbone=backbone, sampling=Sampling(rate_hz=5), decoder=decoder)
    assert chunk.frame_index.tolist() == list(range(0, 50, 5))
    np.testing.assert_allclose(chunk.pts_s, np.arange(10) / 5)
    with open_video(path) as video:
        np.testing.assert_array_equal(features, encode(backbone, [video.get_frame_at(i) for i in chunk.frame_index]))


def test_parts_are_whole_batches_of_consecutive_frames(path):
    *pieces, outcome = decode(VideoJob("a", path), settings(batch_size=5))
    chunks = [chunk for chunk, _ in pieces]
    assert [len(frames) for _, frames in pieces] == [15, 15, 15, 5]
    assert [chunk.first for chunk in chunks] == [0, 15, 30, 45]
    assert np.concatenate([chunk.frame_index for chunk in chunks]).tolist() == list(range(50))
    assert (outcome.num_frames, outcome.reason, outcome.duration_s) == (50, "", pytest.approx(2.0))


def test_a_part_of_large_frames_stays_small():
    full_hd = 1920 * 1080 * 3
    assert settings(batch_size=64).frames_per_chunk(full_hd) * full_hd <= 32 << 20
    assert settings(batch_size=4).frames_per_chunk(full_hd) == 4
    assert settings(batch_size=64).frames_per_chunk(320 * 240 * 3) == 64
    assert settings().frames_per_chunk(100 << 20) == 1


def test_a_block_is_full_by_frames_and_by_bytes(path):
    frame = np.zeros((1080, 1920, 3), np.uint8)
    (_, frames), *_ = decode(VideoJob("a", path), settings(batch_size=8))
    block = FrameBlock(frames=[frame] * 2)
    assert not block.is_full
    block.frames += [frame]
    assert block.is_full
    assert FrameBlock(frames=frames * 4).is_full
    assert not FrameBlock(frames=frames * 3).is_full


def test_a_file_that_is_not_a_video_is_a_video_error(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("not a video")
    with pytest.raises(VideoError, match=r"a\.mp4"):
        list(extract_video(str(path), backbone=load_backbone("random:0"), sampling=Sampling()))


def test_known_content_is_not_decoded_again(path):
    (chunk, _), *_ = decode(VideoJob("a", path), settings())
    (again,) = decode(VideoJob("a", path, known_digest=chunk.source.digest), settings())
    assert isinstance(again, VideoOutcome)
    assert again.unchanged
    assert len(list(decode(VideoJob("a", path, known_digest="0" * 64), settings()))) > 1


def test_a_file_that_changes_while_it_is_read_is_not_stored_under_the_old_digest(path):
    pieces = decode(VideoJob("a", path), settings())
    assert isinstance(next(pieces)[0], FrameChunk)
    with open(path, "ab") as file:  # noqa: PTH123
        file.write(b"more")
    *_, outcome = pieces
    assert "changed while it was read" in outcome.reason


def test_a_file_deleted_after_it_was_opened_is_still_whole(path, tmp_path):
    pieces = decode(VideoJob("a", path), settings())
    next(pieces)
    (tmp_path / "a.mp4").unlink()
    *_, outcome = pieces
    assert (outcome.num_frames, outcome.reason) == (50, "")


class Raising(PyAVDecoder):
    error: Exception = ValueError("no such\nthing")

    def iter_frames_at(self, *_):
        raise self.error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no such\nthing"), r"a\.mp4: the decoder raised ValueError: no such thing"),
        (MemoryError(), r"a\.mp4 needs more memory than a decoder may take; give more with --decoder-memory-mb"),
        (OSError(12, "Cannot allocate memory"), "--decoder-memory-mb"),
    ],
)
def test_whatever_a_decoder_raises_becomes_the_reason(path, monkeypatch, error, words):
    monkeypatch.setattr(Raising, "error", error)
    (outcome,) = outcomes(path, decoder=f"{__name__}:Raising")
    assert re.search(words, outcome.reason)
    assert outcome.file_stat is not None


def test_a_missing_file_has_a_reason_and_no_file_stat(tmp_path):
    (outcome,) = outcomes(str(tmp_path / "nowhere.mp4"))
    assert "nowhere.mp4" in outcome.reason
    assert outcome.file_stat is None


@pytest.mark.parametrize(("name", "first_ms"), [("a.mp4", 0), ("a.ts", 1400), ("a.mkv", 3_600_000)])
def test_labels_mark_the_same_frames_whatever_the_clock_of_the_file(tmp_path, name, first_ms):
    times_ms = [first_ms + 40 * number for number in range(100)]
    path = str(write_video(tmp_path / name, num_frames=100, fps=25, times_ms=times_ms, b_frames=0))
    uri = str(tmp_path / "features")
    create_feature_set(uri, spec(2), about={})
    (chunk, _), *pieces = decode(VideoJob("a", path), settings(rate_hz=6, batch_size=64))
    assert isinstance(pieces[-1], VideoOutcome)
    rows = VideoRows("a", chunk.source)
    rows.append(chunk.frame_index, chunk.pts_s, np.zeros((len(chunk.pts_s), 2), np.float16))
    writer = ShardWriter(uri, shard_bytes=1 << 20)
    writer.add(rows)
    writer.flush()
    manifest = Manifest((VideoEntry("a", path, "train", 4.0, (Label(0, 1.0, 3.0),)),), ("act",))
    ((example,), (batch,)) = (
        load_examples(FeatureSet(uri), manifest, split="train", task="frames"),
        stream_batches(FeatureSet(uri), manifest, BatchPlan(), split="train", task="frames"),
    )
    shown = np.flatnonzero(example.target[:, 0].numpy())
    assert chunk.frame_index[shown].tolist() == [25, 29, 33, 37, 41, 45, 50, 54, 58, 62, 66, 70, 75]
    np.testing.assert_array_equal(batch.targets[0].numpy(), example.target.numpy())
    (start_s,) = duckdb.sql(f"SELECT DISTINCT start_s FROM '{uri}/shards/*.parquet'").fetchall()[0]
    assert start_s == pytest.approx(first_ms / 1000, abs=1e-9)
