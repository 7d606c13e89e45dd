"""Manifests as Parquet: validation, round trip, streaming, and refusal of anything else."""

import math
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipreel.pipeline.errors import ManifestError
from skipreel.pipeline.manifest import (
    ROWS_PER_GROUP,
    SCHEMA,
    AnnotationProblem,
    Label,
    Manifest,
    VideoEntry,
    from_table,
    iterate_manifest,
    manifest_size,
    read_manifest,
    write_manifest,
    write_rows,
)
from skipreel.pipeline.manifest.validation import first_repeated, suspects

MANIFEST = Manifest(
    (
        VideoEntry("a/1", "/v/a/1.mp4", "train", 11.9, (Label(1, 0.1, 2.7), Label(0))),
        VideoEntry("b", "s3://v/b.mp4", "test"),
    ),
    ("wave", "größer"),
)


def written(manifest: Manifest) -> pa.Table:
    """The table in the file that `write_manifest` writes."""
    with TemporaryDirectory() as folder:
        write_manifest(manifest, f"{folder}/m.parquet")
        return pq.read_table(f"{folder}/m.parquet")


def stream(uri: str, **options: int) -> list[pa.RecordBatch]:
    return list(iterate_manifest(uri, **options))


times = st.floats(0, 1e6)
labels = st.builds(
    lambda class_id, a, b: Label(class_id, min(a, b), max(a, b)), st.integers(0, 4), times, times | st.just(math.inf)
)
entries = st.builds(
    VideoEntry,
    video_id=st.from_regex(r"[a-z0-9_]{1,8}(/[a-z0-9]{1,4})?", fullmatch=True),
    uri=st.just("/x.mp4"),
    split=st.sampled_from(["train", "test", "val"]),
    duration_s=st.none() | st.floats(0.001, 1e6),
    labels=st.lists(labels, max_size=4).map(tuple),
)


@given(st.lists(entries, max_size=8, unique_by=lambda entry: entry.video_id))
def test_table_round_trip_keeps_everything(videos: list[VideoEntry]) -> None:
    manifest = Manifest(tuple(videos), ("a", "b", "c", "d", "ü"))
    table = written(manifest)
    assert table.schema.remove_metadata().equals(SCHEMA)
    assert from_table(table) == manifest


def test_file_round_trip_and_splits(tmp_path: Path) -> None:
    uri = str(tmp_path / "new folder" / "m.parquet")
    write_manifest(MANIFEST, uri)
    assert read_manifest(uri) == MANIFEST
    assert MANIFEST.splits == ("test", "train")
    assert [entry.video_id for entry in MANIFEST.only("test").entries] == ["b"]
    assert MANIFEST.only("test").class_names == MANIFEST.class_names
    with pytest.raises(ManifestError, match="allowed: test, train"):
        MANIFEST.only("val")


def test_streamed_batches_are_the_rows_in_order(tmp_path: Path) -> None:
    uri = str(tmp_path / "m.parquet")
    num_rows = ROWS_PER_GROUP + 7
    write_rows(
        (VideoEntry(f"v{n}", "/x.mp4", "train", labels=(Label(n % 2),)) for n in range(num_rows)), ("a", "b"), uri
    )
    assert pq.ParquetFile(uri).num_row_groups == 2
    assert manifest_size(uri) == num_rows
    batches = stream(uri, batch_rows=1000)
    assert max(batch.num_rows for batch in batches) == 1000
    assert all(batch.schema.remove_metadata().equals(SCHEMA) for batch in batches)
    assert from_table(pa.Table.from_batches(batches)) == read_manifest(uri)
    write_rows((), (), uri)
    assert (stream(uri), manifest_size(uri), read_manifest(uri)) == ([], 0, Manifest((), ()))


def test_rows_that_fail_while_they_are_written_leave_no_file(tmp_path: Path) -> None:
    def rows():
        yield from MANIFEST.entries
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_rows(rows(), MANIFEST.class_names, str(tmp_path / "m.parquet"))
    with pytest.raises(ManifestError, match="class_id 1 of video a/1"):
        write_rows(MANIFEST.entries, ("one",), str(tmp_path / "m.parquet"))
    with pytest.raises(ManifestError, match="class name 'one' appears more than once"):
        write_rows((), ("one", "one"), str(tmp_path / "m.parquet"))
    assert list(tmp_path.iterdir()) == []


BAD_CELLS: dict[str, tuple[str, Any]] = {
    "blank id": ("video_id", " "),
    "absolute id": ("video_id", "/etc/x"),
    "escaping id": ("video_id", "a/../../x"),
    "dots only": ("video_id", ".."),
    "control character": ("video_id", "a\u200bb"),
    "blank uri": ("uri", " "),
    "empty split": ("split", ""),
    "no duration": ("duration_s", 0.0),
    "endless": ("duration_s", math.inf),
    "not a duration": ("duration_s", math.nan),
    "class too high": ("labels", [{"class_id": 2, "start_s": 0, "end_s": 1}]),
    "class negative": ("labels", [{"class_id": -1, "start_s": 0, "end_s": 1}]),
    "class null": ("labels", [{"class_id": None, "start_s": 0, "end_s": 1}]),
    "label null": ("labels", [None]),
    "start negative": (
        "labels",
        [{"class_id": 0, "start_s": 0, "end_s": 1}, {"class_id": 0, "start_s": -1, "end_s": 1}],
    ),
    "start not a number": ("labels", [{"class_id": 0, "start_s": math.nan, "end_s": 1}]),
    "start infinite": ("labels", [{"class_id": 0, "start_s": math.inf, "end_s": math.inf}]),
    "end first": ("labels", [{"class_id": 0, "start_s": 2, "end_s": 1}]),
    "end null": ("labels", [{"class_id": 0, "start_s": 2, "end_s": None}]),
}


@pytest.mark.parametrize("name", BAD_CELLS)
def test_bad_row_is_found_in_a_stream_as_in_a_whole_file(tmp_path: Path, name: str) -> None:
    uri = str(tmp_path / "m.parquet")
    column, value = BAD_CELLS[name]
    rows = written(MANIFEST).to_pylist()
    bad = {**rows[1], "video_id": "bad", column: value}
    write_manifest(MANIFEST, uri)
    schema = pq.read_schema(uri)
    pq.write_table(pa.Table.from_pylist([*rows, bad, {**rows[0], "video_id": "c"}], schema=schema), uri)
    with pytest.raises(ManifestError) as whole:
        read_manifest(uri)
    with pytest.raises(ManifestError) as streamed:
        stream(uri)
    assert str(streamed.value) == str(whole.value)
    batches = iterate_manifest(uri, batch_rows=2)
    assert next(batches)["video_id"].to_pylist() == ["a/1", "b"]
    with pytest.raises(ManifestError):
        next(batches)


@given(st.lists(entries, min_size=1, max_size=8, unique_by=lambda entry: entry.video_id))
def test_good_rows_are_not_suspects(videos: list[VideoEntry]) -> None:
    (batch,) = written(Manifest(tuple(videos), ("a", "b", "c", "d", "e"))).to_batches()
    assert suspects(batch, 5).to_pylist() == [False] * len(videos)


def test_ids_that_share_a_hash_are_not_repeated() -> None:
    class Shared(str):
        def __hash__(self) -> int:
            return 1

    class Ids(list):
        def to_pylist(self) -> list[str]:
            return list(map(Shared, self))

    assert first_repeated(lambda: [Ids(["a", "b"]), Ids(["c"])]) is None
    assert first_repeated(lambda: [Ids(["a", "b"]), Ids(["c", "b"])]) == "b"
    assert first_repeated(list) is None


STREAM = """
import pathlib, re, sys
from skipreel.pipeline.manifest import iterate_manifest
rows = sum(batch.num_rows for batch in iterate_manifest(sys.argv[1]))
print(rows, re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
"""


def test_a_million_rows_are_streamed_in_256_mib(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    num_rows, uri = 1_000_000, str(tmp_path / "m.parquet")
    ids = pc.binary_join_element_wise(
        "some-class/a-video-with-a-long-name", pa.array(np.arange(num_rows)).cast("str"), "-"
    )
    label = written(Manifest((VideoEntry("a", "b", "c", labels=(Label(0),)),), ("x",)))
    columns = [
        ids,
        pc.binary_join_element_wise("s3://bucket/folder", ids, "/"),
        pa.array(["train", "test"] * (num_rows // 2)),
        pa.array(np.linspace(1, 100, num_rows)),
        label["labels"].combine_chunks().take(pa.array(np.zeros(num_rows, np.int64))),
    ]
    pq.write_table(pa.Table.from_arrays(columns, schema=label.schema), uri, row_group_size=ROWS_PER_GROUP)
    del columns, ids
    done = subprocess.run([sys.executable, "-c", STREAM, uri], capture_output=True, text=True, check=True)
    rows, peak_kib = map(int, done.stdout.split())
    assert rows == num_rows
    assert peak_kib < 256 << 10  # of which Python with Arrow takes 120


def test_whole_video_label_spans_everything() -> None:
    assert (Label(0).start_s, Label(0).end_s) == (0.0, math.inf)


@pytest.mark.parametrize(("start_s", "end_s"), [(2, 1), (-1, 1), (math.nan, 1), (0, math.nan), (1e39, 1e39)])
def test_label_times_are_checked(start_s: float, end_s: float) -> None:
    with pytest.raises(ManifestError, match="0 <= start <= end"):
        Label(0, start_s, end_s)


@pytest.mark.parametrize(
    "change",
    [
        {"video_id": " "},
        {"uri": ""},
        {"split": ""},
        {"video_id": "/etc/x"},
        {"video_id": "a/../../x"},
        {"video_id": "a\nb"},
        {"duration_s": 0.0},
        {"duration_s": math.nan},
    ],
)
def test_entry_fields_are_checked(change: dict[str, object]) -> None:
    with pytest.raises(ManifestError):
        VideoEntry(**{"video_id": "a", "uri": "a.mp4", "split": "train", **change})  # type: ignore[arg-type]


def test_manifest_is_checked_as_a_whole() -> None:
    entry = VideoEntry("a", "a.mp4", "train", labels=(Label(1),))
    with pytest.raises(ManifestError, match="video_id 'a' appears more than once"):
        Manifest((entry, entry), ("x", "y"))
    with pytest.raises(ManifestError, match="class name 'x' appears more than once"):
        Manifest((), ("x", "x"))
    with pytest.raises(ManifestError, match=r"class_id 1 of video a is not allowed: 0 to 0"):
        Manifest((entry,), ("x",))
    with pytest.raises(ManifestError, match="class_id -1"):
        Manifest((VideoEntry("a", "a.mp4", "train", labels=(Label(-1),)),), ("x",))


def test_anything_but_a_manifest_is_refused(tmp_path: Path) -> None:
    good = written(MANIFEST)
    metadata = dict(good.schema.metadata)
    wrong = {
        "no metadata": good.replace_schema_metadata(None),
        "other version": good.replace_schema_metadata({**metadata, b"skipreel.manifest_version": b"99"}),
        "bad classes": good.replace_schema_metadata({**metadata, b"skipreel.class_names": b"{"}),
        "classes no list": good.replace_schema_metadata({**metadata, b"skipreel.class_names": b"3"}),
        "no classes": good.replace_schema_metadata({b"skipreel.manifest_version": b"1"}),
        "missing column": good.drop_columns(["split"]),
        "other type": good.set_column(3, "duration_s", pa.array([1, 2])),
        "repeated id": pa.concat_tables([good, good]),
    }
    for name, table in wrong.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(table, path)
        for read in (read_manifest, stream):
            with pytest.raises(ManifestError, match=name):  # the file is named
                read(str(path))
        if name != "repeated id":
            with pytest.raises(ManifestError, match=name):
                manifest_size(str(path))


def test_missing_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("id,actions\n")
    (tmp_path / "folder").mkdir()
    write_manifest(MANIFEST, str(tmp_path / "cut"))
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-40])
    for name in ("missing", "empty", "text", "folder", "cut"):
        for read in (read_manifest, stream, manifest_size):
            with pytest.raises(ManifestError, match=name) as caught:
                read(str(tmp_path / name))
            assert "\n" not in str(caught.value)


def test_problem_names_file_and_line() -> None:
    assert str(AnnotationProblem("a.csv", 3, "no video")) == "a.csv:3: no video"
    assert str(AnnotationProblem("a.mp4", 0, "not listed")) == "a.mp4: not listed"
