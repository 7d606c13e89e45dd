"""Files by URI: round trips on local and other file systems, atomic writing, one clear line for every error."""

import errno
import hashlib
import os
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.errors import InputError, StorageError


@pytest.fixture(params=["plain", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        pytest.importorskip("fsspec")
        return f"fsspec+memory:///{uuid.uuid4().hex}"
    return str(tmp_path / "with space") if request.param == "plain" else (tmp_path / "with space").as_uri()


def test_bytes_written_are_read_back_and_listed(folder: str) -> None:
    assert storage.list_files(folder, ".bin") == []
    for name in ("b 1.bin", "a.bin", "c.txt"):
        storage.write_atomic(storage.join(folder, "sub", name), name.encode())
    files = storage.list_files(storage.join(folder, "sub"), ".bin")
    assert [storage.read_bytes(uri) for uri in files] == [b"a.bin", b"b 1.bin"]
    assert storage.list_tree(folder) == ["sub/a.bin", "sub/b 1.bin", "sub/c.txt"]
    assert storage.list_files(folder, "") == []
    assert storage.exists(files[0])
    assert not storage.exists(storage.join(folder, "other"))
    assert storage.sha256(files[0]) == hashlib.sha256(b"a.bin").hexdigest()
    storage.write_atomic(files[0], b"new")
    with storage.open_input(files[0]) as stream:
        stream.seek(1)
        assert stream.read() == b"ew"


def test_table_keeps_rows_schema_and_row_groups(folder: str) -> None:
    table = pa.table({"x": list(range(10))})
    uri = storage.join(folder, "t.parquet")
    storage.write_table_atomic(uri, table, row_group_size=4)
    with storage.open_input(uri) as stream:
        file = pq.ParquetFile(stream)
        assert file.read().equals(table)
        assert file.num_row_groups == 3
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_interrupted_write_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, call: str
) -> None:
    target = tmp_path / "card.json"
    storage.write_atomic(str(target), b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises((StorageError, KeyboardInterrupt)) as caught:
        storage.write_atomic(str(target), b"new")
    if isinstance(error, OSError):
        assert str(target) in str(caught.value)
        assert "No space left" in str(caught.value)
        assert caught.value.__cause__ is error
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_folder_in_the_way_of_a_table_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        storage.write_table_atomic(str(tmp_path / "t.parquet"), pa.table({"x": [1]}))
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_memory_write_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    folder = f"fsspec+memory:///{uuid.uuid4().hex}"

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(StorageError, match="No space left"):
        storage.write_table_atomic(storage.join(folder, "t.parquet"), pa.table({"x": [1]}))
    assert storage.list_tree(folder) == []


@pytest.mark.parametrize("read", [storage.open_input, storage.read_bytes, storage.sha256])
def test_missing_file_is_one_clear_line(tmp_path: Path, read: object) -> None:
    uri = str(tmp_path / "gone.bin")
    with pytest.raises(StorageError) as caught:
        read(uri)  # type: ignore[operator]
    assert "gone.bin" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize("uri", ["nope://x/y", "s3://bucket/a b"])
def test_uri_that_is_not_understood_is_refused(uri: str) -> None:
    with pytest.raises(StorageError, match="local path or a URI"):
        storage.resolve(uri)


def test_local_path_and_join_follow_the_kind_of_uri(tmp_path: Path) -> None:
    assert storage.local_path(str(tmp_path)) == tmp_path
    assert storage.local_path((tmp_path / "a b").as_uri()) == tmp_path / "a b"
    assert storage.local_path("s3://bucket/a") is None
    assert storage.join("s3://bucket/a?region=eu", "b c", "d") == "s3://bucket/a/b%20c/d?region=eu"
    assert storage.join("/data", "b c", "d") == "/data/b c/d"
    assert storage.absolute("x/y") == str(Path.cwd() / "x/y")
    assert storage.absolute("s3://x/y") == "s3://x/y"
