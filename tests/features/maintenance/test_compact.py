"""Compaction does not change features; killed at any step, it neither loses nor doubles a video."""

import json
import os
import queue
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set import index, shard_list
from skipreel.features.feature_set.card import create_feature_set, locked
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.feature_set.shard_file import write_rows
from skipreel.features.maintenance import compact as compact_module
from skipreel.features.maintenance.compact import compact
from skipreel.features.maintenance.verify import verify
from skipreel.pipeline import storage
from tests.support.feature_sets import spec, write_sequence

NAMES = [f"v{number}" for number in range(6)]


def values(name: str) -> np.ndarray:
    """Any bits, NaN among them, and for one video several segments."""
    rng = np.random.default_rng(int(name[1:]))
    return rng.integers(0, 1 << 16, (2500 if name == "v2" else 7, 5), dtype=np.uint16).view(np.float16)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    uri = str(tmp_path / "set")
    create_feature_set(uri, spec(), about={})
    for name in NAMES:
        write_sequence(uri, name, values(name))
    return uri


def shards(uri: str) -> list[Path]:
    return sorted(Path(uri, "shards").glob("*.parquet"))


def assert_whole(uri: str) -> None:
    feature_set = FeatureSet(uri)
    assert sorted(feature_set.index()["video_id"].to_pylist()) == NAMES
    for name, sequence in zip(NAMES, feature_set.load(NAMES), strict=True):
        np.testing.assert_array_equal(sequence.features.view(np.uint16), values(name).view(np.uint16))
        np.testing.assert_array_equal(sequence.pts_s, np.arange(len(values(name))) / 2)


def merge(uri: str, old: list[str]) -> None:
    new = f"{os.urandom(4).hex()}.parquet"
    write_rows(shard_list.hidden_uri(uri, new), [pq.read_table(Path(uri, "shards", name)) for name in old])
    shard_list.replace(uri, old, new)


def test_small_shards_become_one_and_features_keep_every_bit(uri):
    before = pa.concat_tables([pq.read_table(path) for path in shards(uri)]).sort_by(
        [("video_id", "ascending"), ("segment", "ascending")]
    )
    done = compact(uri)
    assert (done.before, done.after) == (6, 1)
    (path,) = shards(uri)
    after = pq.read_table(path).sort_by([("video_id", "ascending"), ("segment", "ascending")])
    assert after.drop(["features"]).equals(before.drop(["features"]))
    assert_whole(uri)
    (layout,) = FeatureSet(uri).video_index.layouts
    assert (layout.offsets >= 0).all()  # still read directly
    assert list(path.parent.iterdir()) == [path]


def test_again_there_is_nothing_to_do(uri):
    compact(uri)
    (path,) = shards(uri)
    assert compact(uri) == compact(uri)
    assert shards(uri) == [path]


def test_only_small_shards_are_merged_and_none_becomes_larger_than_the_target(uri):
    sizes = {path: path.stat().st_size for path in shards(uri)}
    (large,) = (path for path, size in sizes.items() if size > 10_000)
    compact(uri, shard_bytes=3 * min(sizes.values()))
    assert large in shards(uri)
    assert len(shards(uri)) < 6
    assert all(path.stat().st_size <= 3 * min(sizes.values()) for path in shards(uri) if path != large)
    assert_whole(uri)


def test_shards_of_half_the_target_or_more_stay(tmp_path):
    create_feature_set(str(tmp_path), spec(64), about={})
    for name, num_frames in (("a", 800), ("b", 800), ("l3", 1100), ("c", 800), ("d", 800), ("e", 800)):
        write_sequence(str(tmp_path), name, np.zeros((num_frames, 64)))
    (large,) = (path for path in shards(str(tmp_path)) if path.stat().st_size > 130_000)
    assert compact(str(tmp_path), shard_bytes=260_000).after == 4
    assert large in shards(str(tmp_path))
    assert sorted(round(path.stat().st_size, -5) for path in shards(str(tmp_path))) == [1e5, 1e5, 2e5, 2e5]
    assert len(FeatureSet(str(tmp_path)).video_ids()) == 6


class _Killed(BaseException):
    """Like SIGKILL: no cleanup reaches the disk."""


def kill_after(uri: str, steps: int) -> bool:
    """Whether the compaction ends within ``steps`` effects: files written, deleted or renamed, and rows read."""
    left = steps

    def count_down() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise _Killed

    def fatal(function):
        def wrapped(*arguments, **options):
            count_down()
            return function(*arguments, **options)

        return wrapped

    def fatal_write_rows(target, rows, function=compact_module.write_rows):
        count_down()
        function(target, counted(rows))

    def counted(rows):
        for row in rows:
            yield row
            count_down()

    def alive(function):
        def wrapped(*arguments, **options):
            if left < 0:
                raise _Killed
            return function(*arguments, **options)

        return wrapped

    with pytest.MonkeyPatch.context() as patched:
        places = [(storage, "delete"), (storage, "write_atomic"), (shard_list, "rename_file")]
        for module, name in places:
            patched.setattr(module, name, fatal(getattr(module, name)))
        patched.setattr(compact_module, "write_rows", fatal_write_rows)
        for name in ("replace", "unlink"):
            patched.setattr(os, name, alive(getattr(os, name)))
        try:
            compact(uri)
        except _Killed:
            return False
        return True


# Six videos: begin; 8 rows read; journal; 6 deleted; renamed; journal.
@pytest.mark.parametrize("steps", [0, 3, 9, 10, 12, 16, 17])
def test_killed_at_any_step_nothing_is_lost_or_doubled(uri, steps):
    assert not kill_after(uri, steps)
    assert_whole(uri)
    rows = [row for path in shards(uri) for row in pq.read_table(path, columns=["video_id", "segment"]).to_pylist()]
    assert len({tuple(row.values()) for row in rows}) == len(rows)  # nobody else sees a row twice
    assert compact(uri).after <= 1
    assert_whole(uri)
    assert len(shards(uri)) == 1
    assert [path for path in Path(uri, "shards").iterdir() if path.suffix == ".merged"] == []


def test_it_has_as_many_steps_as_are_tried(uri):
    assert kill_after(uri, 18)


def test_what_was_merged_but_never_counted_is_removed(uri):
    kill_after(uri, 9)
    assert list(Path(uri, "shards").glob(".*.merged"))
    assert any("left by a killed process" in problem for problem in verify(uri))
    shard_list.recover(uri)
    assert not list(Path(uri, "shards").glob(".*.merged"))
    assert_whole(uri)


def test_recovery_brings_a_counted_shard_to_its_place(uri):
    kill_after(uri, 12)
    assert any("has an unfinished compaction" in problem for problem in verify(uri))
    shard_list.recover(uri)
    assert len(shards(uri)) == 1
    assert_whole(uri)


def test_readers_see_every_video_once_while_it_runs(uri):
    """Pairs are compacted one after another; before each, a reader has finished a reading and begun the next."""
    stop, readings = threading.Event(), queue.SimpleQueue()
    seen = []

    def read() -> None:
        while not stop.is_set():
            readings.put(sorted(FeatureSet(uri).index()["video_id"].to_pylist()))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(5):
            for pair in zip(shards(uri)[::2], shards(uri)[1::2], strict=False):
                seen.append(readings.get(timeout=60))
                merge(uri, [path.name for path in pair])
    finally:
        stop.set()
        reader.join()
    while not readings.empty():
        seen.append(readings.get())
    assert len(seen) >= 5
    assert all(names == NAMES for names in seen)


def test_a_listing_during_which_a_compaction_ran_is_not_believed(uri, monkeypatch):
    list_tree, calls = storage.list_tree, []

    def half_listed(folder: str) -> list[str]:
        found = list_tree(folder)
        if not calls:
            calls.append(1)
            merge(uri, found[:3])
            return found[3:]
        return found

    monkeypatch.setattr(storage, "list_tree", half_listed)
    assert_whole(uri)
    assert calls


def test_a_compaction_between_listing_and_opening_is_noticed(uri, monkeypatch):
    read_layout, calls = index.read_layout, []

    def late(shard: str, *, dim: int) -> object:
        if not calls:
            calls.append(1)
            compact(uri)
        return read_layout(shard, dim=dim)

    monkeypatch.setattr(index, "read_layout", late)
    assert_whole(uri)
    assert calls


@pytest.mark.parametrize("what", ["the end is cut off", "a bit of a feature is flipped"])
def test_a_damaged_shard_is_named_and_stays_as_it_is(uri, what):
    layout = FeatureSet(uri).video_index.layouts[3]
    path = Path(layout.uri)
    content = bytearray(path.read_bytes())
    if what == "the end is cut off":
        del content[-20:]
    else:
        content[layout.offsets[0]] ^= 1
    path.write_bytes(content)
    before = {path.name: path.read_bytes() for path in shards(uri)}
    with pytest.raises(FeatureSetError, match=rf"{path.name} cannot be read"):
        compact(uri)
    assert {path.name: path.read_bytes() for path in Path(uri, "shards").iterdir()} == before


def test_a_shard_of_another_program_is_not_merged(uri):
    path = shards(uri)[0]
    pq.write_table(pq.read_table(path).append_column("more", pa.array([1])), path)
    with pytest.raises(FeatureSetError, match=rf"{path.name} was written by another program"):
        compact(uri)


def test_two_at_once_are_refused(uri):
    with locked(uri), pytest.raises(FeatureSetError, match="is writing to"):
        compact(uri)


@pytest.mark.parametrize("name", ["../../victim.parquet", "/etc/victim.parquet", "feature_set.json", ".x.parquet", 7])
def test_a_journal_that_points_elsewhere_deletes_nothing(uri, tmp_path, name):
    victim = tmp_path / "victim.parquet"
    victim.touch()
    Path(uri, shard_list.JOURNAL).write_text(json.dumps({"number": 1, "old": [name], "new": "x.parquet"}))
    with pytest.raises(FeatureSetError, match="which is not a shard"):
        shard_list.recover(uri)
    assert victim.exists()
