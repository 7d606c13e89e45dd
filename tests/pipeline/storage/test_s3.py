"""Storage, videos and manifests on a real S3 server: as on a local disk, in few requests."""

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from skipreel.jobs.cli import main
from skipreel.pipeline import storage
from skipreel.pipeline.errors import ManifestError, StorageError
from skipreel.pipeline.manifest import (
    ROWS_PER_GROUP,
    Label,
    VideoEntry,
    from_table,
    iterate_manifest,
    manifest_size,
    read_manifest,
    write_rows,
)
from skipreel.pipeline.video import open_video
from tests.support.videos import write_video

if TYPE_CHECKING:
    from tests.support.s3 import S3Folder

pytest_plugins = ("tests.support.s3",)


def test_names_bytes_and_lists_are_those_that_were_written(s3: "S3Folder") -> None:
    uri = s3.write("sub/c#? é+%20.bin", b"old")
    storage.write_atomic(uri, b"new")
    s3.write("sub/deep/d.bin")
    assert storage.list_tree(s3.uri) == ["sub/c#? é+%20.bin", "sub/deep/d.bin"]
    assert storage.list_files(s3.join("sub"), ".bin") == [uri]
    assert storage.list_files(s3.join("absent")) == []
    assert storage.read_bytes(uri) == b"new"
    assert storage.sha256(uri) == hashlib.sha256(b"new").hexdigest()
    assert storage.exists(uri)
    assert storage.exists(s3.join("sub"))
    assert not storage.exists(s3.join("absent"))
    storage.delete(uri)
    storage.delete(uri)
    assert storage.list_tree(s3.uri) == ["sub/deep/d.bin"]


def test_bucket_has_one_client_and_its_keys_are_written_as_in_a_uri(s3: "S3Folder") -> None:
    filesystem, path = storage.resolve(s3.join("a+b é"))
    assert path.endswith("/a+b é")
    assert storage.resolve(s3.join("other"))[0] is filesystem
    for raw in ("a b", "é", "a[1]"):
        with pytest.raises(StorageError, match="cannot open"):
            storage.resolve(s3.uri.replace("?", f"/{raw}?"))


def test_writing_touches_no_key_above_the_folder_of_the_file(s3: "S3Folder") -> None:
    start = len(s3.requests)
    s3.write("sub/deep/a.bin")
    written = [request for request in s3.requests[start:] if not request.startswith(("GET", "HEAD"))]
    assert written
    assert all("/sub/deep/" in request for request in written)


def test_stream_that_fails_keeps_the_old_file_and_leaves_no_other(s3: "S3Folder") -> None:
    uri = s3.write("f.bin", b"old")
    with suppress(RuntimeError), storage.open_atomic(uri) as stream:
        stream.write(b"x" * (11 << 20))  # more than one part of an upload
        raise RuntimeError
    assert storage.list_tree(s3.uri) == ["f.bin"]
    assert storage.read_bytes(uri) == b"old"
    with storage.open_atomic(uri) as stream:
        stream.write(b"y" * (11 << 20))
        assert storage.read_bytes(uri) == b"old"
    assert storage.read_bytes(uri) == b"y" * (11 << 20)


def test_file_stats_take_one_request_each_and_a_bad_uri_does_not_affect_others(s3: "S3Folder") -> None:
    uri = s3.write("a.bin", b"12345")
    others = [s3.join("gone.bin"), s3.forbidden, s3.uri, "s3://not a bucket/x", "nope://x/y"]
    file_stat, *none = storage.file_stats([uri, *others])
    assert file_stat is not None
    assert (file_stat.num_bytes, file_stat.modified_us > 1e15) == (5, True)
    assert none == [None] * 5
    start = len(s3.requests)
    assert storage.file_stats([uri] * 100) == [file_stat] * 100
    assert len(s3.requests) - start <= 100
    with pytest.raises(StorageError, match="ACCESS_DENIED"):
        storage.file_stats([s3.forbidden])


def test_local_copy_has_the_content_and_is_deleted_when_its_context_ends(s3: "S3Folder") -> None:
    data = np.random.default_rng(0).bytes(9 << 20)
    uri = s3.write("clip.mp4", data)
    with storage.local_copy(uri) as copy:
        assert Path(copy.path).read_bytes() == data
        assert copy.path.endswith(".mp4")
        assert copy.sha256 == hashlib.sha256(data).hexdigest()
        assert [copy.file_stat] == storage.file_stats([uri])
    assert not Path(copy.path).exists()
    with pytest.raises(RuntimeError), storage.local_copy(uri) as copy:
        raise RuntimeError
    assert not Path(copy.path).exists()


def test_local_copy_that_fails_leaves_no_file(s3: "S3Folder", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for uri in (s3.join("gone"), s3.uri, s3.forbidden):
        with pytest.raises(StorageError, match="cannot copy") as caught, storage.local_copy(uri):
            pass
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_large_file_is_read_at_random_in_few_requests(s3: "S3Folder") -> None:
    data = np.random.default_rng(0).bytes(9 << 20)
    uri = s3.write("data.bin", data)
    start = len(s3.requests)
    with storage.open_input(uri) as stream:
        for place in range(0, len(data), 4096):
            assert stream.read(4096) == data[place : place + 4096]
        assert stream.seek(-3, 2) == len(data) - 3
        assert stream.read() == data[-3:]
        assert stream.seek(5) == 5
        assert (stream.read(2), stream.tell()) == (data[5:7], 7)
        stream.seek(1 << 20, 1)
        assert stream.read(9) == data[(1 << 20) + 7 :][:9]
    assert len(s3.requests) - start < 10


def test_video_decodes_as_from_disk_in_few_requests(s3: "S3Folder", tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", num_frames=60, size=(640, 480))
    uri = s3.write("v.mp4", path.read_bytes())
    wanted = [50, 3, 4, 31]
    with open_video(str(path)) as video:
        expected = list(video.iter_frames_at(wanted))
    start = len(s3.requests)
    with open_video(uri) as video:
        for frame, right in zip(video.iter_frames_at(wanted), expected, strict=True):
            np.testing.assert_array_equal(frame, right)
    assert len(s3.requests) - start < 12


def test_manifest_is_written_and_streamed_in_few_requests(s3: "S3Folder") -> None:
    uri, num_rows = s3.join("m.parquet"), 3 * ROWS_PER_GROUP
    write_rows((VideoEntry(f"v{n}", "/x.mp4", "train", labels=(Label(0),)) for n in range(num_rows)), ("run",), uri)
    assert storage.list_tree(s3.uri) == ["m.parquet"]
    assert manifest_size(uri) == num_rows
    start = len(s3.requests)
    batches = list(iterate_manifest(uri))
    assert len(s3.requests) - start < 15
    assert [batch.num_rows for batch in batches] == [ROWS_PER_GROUP] * 3
    assert from_table(pa.Table.from_batches(batches)) == read_manifest(uri)
    with pytest.raises(ManifestError, match=r"gone\.parquet.*or build a manifest first"):
        next(iterate_manifest(s3.join("gone.parquet")))


def test_command_lists_a_folder_of_the_bucket_into_the_bucket(s3: "S3Folder") -> None:
    for name in ("run/a b.mp4", "run/c.mp4", "jump/d.mp4"):
        s3.write(f"clips/{name}")
    output = s3.join("lists/m.parquet")
    assert main(["manifest", "folder", s3.join("clips"), "--output", output]) == 0
    assert [entry.video_id for entry in read_manifest(output).entries] == ["jump/d", "run/a b", "run/c"]
    table = s3.write("table.csv", b"uri,labels\nclips/run/a b.mp4,run\nclips/gone.mp4,run\n")
    assert main(["manifest", "table", table, "--output", s3.join("lists/t.parquet")]) != 0
    assert storage.list_tree(s3.join("lists")) == ["m.parquet"]
