"""The manifest: validation, round trip through Parquet, and refusal of anything else."""

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ManifestError
from pipeline.manifest import (
    SCHEMA,
    Label,
    Manifest,
    RowProblem,
    VideoEntry,
    from_table,
    read_manifest,
    to_table,
    write_manifest,
)

MANIFEST = Manifest(
    (
        VideoEntry("a/1", "/v/a/1.mp4", "train", 11.9, (Label(1, 0.1, 2.7), Label(0))),
        VideoEntry("b", "s3://v/b.mp4", "test"),
    ),
    ("wave", "größer"),
)

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


@settings(deadline=None)
@given(st.lists(entries, max_size=8, unique_by=lambda entry: entry.video_id))
def test_table_round_trip_keeps_everything(videos: list[VideoEntry]) -> None:
    manifest = Manifest(tuple(videos), ("a", "b", "c", "d", "ü"))
    table = to_table(manifest)
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
    good = to_table(MANIFEST)
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
        with pytest.raises(ManifestError, match=name):  # the file is named
            read_manifest(str(path))


def test_missing_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("id,actions\n")
    (tmp_path / "folder").mkdir()
    write_manifest(MANIFEST, str(tmp_path / "cut"))
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-40])
    for name in ("missing", "empty", "text", "folder", "cut"):
        with pytest.raises(ManifestError, match=name) as caught:
            read_manifest(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_problem_names_file_and_line() -> None:
    assert str(RowProblem("a.csv", 3, "no video")) == "a.csv:3: no video"
    assert str(RowProblem("a.mp4", 0, "not listed")) == "a.mp4: not listed"
