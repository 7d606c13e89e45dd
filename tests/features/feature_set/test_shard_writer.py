from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from skipreel.features.feature_set import shard_writer
from skipreel.features.feature_set.card import create_feature_set
from skipreel.features.feature_set.ledger import read_failures, read_finished, read_state
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.feature_set.schema import Failure, Source
from skipreel.features.feature_set.shard_writer import ShardWriter, VideoRows
from skipreel.pipeline.storage import FileStat
from tests.support.feature_sets import spec

SOURCE = Source("digest", FileStat(1000, 1_700_000_000_123_456))


@pytest.fixture
def uri(tmp_path):
    uri = str(tmp_path / "features")
    create_feature_set(uri, spec(), about={})
    return uri


def rows(video_id: str, length: int, *, dim: int = 5, part: int = 16) -> VideoRows:
    made = VideoRows(video_id, SOURCE)
    values = np.random.default_rng(length).normal(size=(length, dim)).astype(np.float16)
    for first in range(0, length, part):
        index = np.arange(first, min(first + part, length))
        made.append(index.astype(np.int32), index / 4, values[index])
    return made


def shards(uri: str) -> list[Path]:
    return sorted((Path(uri) / "shards").glob("*.parquet"))


def test_nothing_is_written_before_there_is_a_shards_worth(uri):
    out = ShardWriter(uri, shard_bytes=5000)
    for number in range(20):
        out.add(rows(f"v{number}", 30))
        assert all(pq.read_metadata(shard).num_rows > 1 for shard in shards(uri))
    assert shards(uri)
    before = len(read_finished(uri))
    assert before < 20
    out.flush()
    assert len(read_finished(uri)) == 20


def test_what_waits_is_written_after_a_minute(uri, monkeypatch):
    out = ShardWriter(uri, shard_bytes=1 << 30)
    out.add(rows("a", 3))
    assert not shards(uri)
    monkeypatch.setattr(shard_writer, "FLUSH_S", 0.0)
    out.flush_if_due()
    assert set(read_finished(uri)) == {"a"}


@pytest.mark.parametrize("shard_bytes", [1000, 1 << 30])
def test_a_long_video_is_cut_into_segments_that_join_to_the_whole(uri, shard_bytes):
    out = ShardWriter(uri, shard_bytes=shard_bytes)
    out.add(rows("long", 5000, part=48))
    out.add(rows("short", 2))
    out.flush()
    assert len(shards(uri)) == (2 if shard_bytes == 1000 else 1)
    table = pq.ParquetDataset([str(shard) for shard in shards(uri)]).read().to_pylist()
    segments = [row for row in table if row["video_id"] == "long"]
    assert [row["segment"] for row in segments] == list(range(len(segments)))
    assert [len(row["frame_index"]) for row in segments] == [1024, 1024, 1024, 1024, 904]
    assert [i for row in segments for i in row["frame_index"]] == list(range(5000))
    values = np.concatenate([np.asarray(row["features"], np.float16) for row in segments]).reshape(-1, 5)
    np.testing.assert_array_equal(values, np.random.default_rng(5000).normal(size=(5000, 5)).astype(np.float16))


def test_features_of_a_row_group_are_one_plain_page_with_a_checksum(uri):
    out = ShardWriter(uri, shard_bytes=1 << 30)
    for number in range(8):
        out.add(rows(f"v{number}", 1024, dim=1000))
    out.flush()
    (shard,) = shards(uri)
    metadata = pq.read_metadata(shard)
    assert metadata.num_row_groups == 3  # 2 MB a video, groups of 4 MB or a little more
    content = shard.read_bytes()
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(4)
        assert chunk.path_in_schema == "features.list.element"
        assert (chunk.compression, chunk.has_dictionary_page) == ("UNCOMPRESSED", False)
        end = chunk.data_page_offset + chunk.total_compressed_size
        values = np.frombuffer(content[end - 2 * chunk.num_values : end], np.float16)
        expected = pq.ParquetFile(shard).read_row_group(group)["features"].combine_chunks().flatten().to_numpy()
        np.testing.assert_array_equal(values, expected)
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(shard, page_checksum_verification=True)


def test_old_rows_and_failures_go_when_new_ones_come(uri):
    out = ShardWriter(uri, shard_bytes=1 << 30)
    for name in ("a", "b"):
        out.add(rows(name, 4))
    out.fail(Failure("c", "c.mp4", "broken", SOURCE.file_stat))
    out.flush()
    files = dict(zip(*(read_state(uri)[name].to_pylist() for name in ("video_id", "file")), strict=True))
    out.add(rows("c", 2), replaces=files["c"])
    out.fail(Failure("a", "a.mp4", "broken now"), replaces=files["a"])
    assert set(read_finished(uri)) == {"a", "b"}  # nothing goes before what replaces it comes
    out.flush()
    assert set(read_finished(uri)) == {"b", "c"}
    assert [row["video_id"] for row in read_failures(uri)] == ["a"]
    assert read_state(uri).num_rows == 3


def test_a_video_longer_than_a_shard_replaces_its_old_rows(uri):
    out = ShardWriter(uri, shard_bytes=1 << 30)
    out.add(rows("other", 2000))
    out.add(rows("long", 3000))
    out.flush()
    file = read_state(uri)["file"][0].as_py()  # which holds both
    ShardWriter(uri, shard_bytes=1000).add(rows("long", 2500), replaces=file)
    assert sorted(read_state(uri)["video_id"].to_pylist()) == ["long", "other"]  # one row, of several segments
    feature_set = FeatureSet(uri)
    assert {sequence.video_id: len(sequence.features) for sequence in feature_set.load(["long", "other"])} == {
        "long": 2500,
        "other": 2000,
    }


def open_spool_files() -> int:
    """Files of this process that have no name any more."""
    links = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum(link.endswith("(deleted)") for link in links)


def test_the_temporary_file_of_a_long_video_is_closed_when_the_video_is_written_or_discarded(uri):
    before = open_spool_files()
    written, dropped = (rows(name, 1024, dim=4500, part=512) for name in ("long", "dropped"))  # 9 MB each
    assert open_spool_files() == before + 2
    ShardWriter(uri, shard_bytes=1000).add(written)
    dropped.discard()
    assert open_spool_files() == before


def test_a_source_is_noted_to_the_microsecond(uri):
    out = ShardWriter(uri, shard_bytes=1)
    out.add(rows("a", 2))
    out.flush()
    known = read_state(uri)
    assert known["source_modified"][0].value == SOURCE.file_stat.modified_us
    assert known["source_bytes"][0].as_py() == 1000
