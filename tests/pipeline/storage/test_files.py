"""Files by URI: round trips on local and other file systems, atomic writing, one clear line for every error."""

import errno
import hashlib
import os
import uuid
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skipreel.pipeline import storage
from skipreel.pipeline.errors import InputError, StorageError


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


def test_file_stat_has_size_and_time_and_is_none_without_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "a b.bin"
    path.write_bytes(b"12345")
    os.utime(path, ns=(0, 1_700_000_000_123_456_789))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(path)
    none = ["gone", "pipe", "dangling", "loop", "a b.bin/below", "x" * 300, "null\0character", ""]
    file_stat = storage.FileStat(5, 1_700_000_000_123_456)
    assert storage.file_stats([str(path), path.as_uri(), str(tmp_path / "link")]) == [file_stat] * 3
    uris = [*(str(tmp_path / name) for name in none), "nope://x/y", "s3://bucket/a b"]
    assert storage.file_stats([*uris, str(path)]) == [None] * len(uris) + [file_stat]
    assert storage.file_stats(uris) == [None] * len(uris)
    assert storage.file_stats([]) == []


def test_file_stat_of_a_file_system_without_times_has_the_size() -> None:
    pytest.importorskip("fsspec")
    uri = f"fsspec+memory:///{uuid.uuid4().hex}/a.bin"
    storage.write_atomic(uri, b"123")
    assert storage.file_stats([uri]) == [storage.FileStat(3, 0)]


def test_outage_is_not_a_deleted_file(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")

    class Down(fsspec.AbstractFileSystem):
        def info(self, *_: object, **__: object) -> object:
            raise ConnectionError("no route to host")

    fsspec.register_implementation("down", Down, clobber=True)
    down, here = "fsspec+down://host/a", tmp_path / "here"
    here.touch()
    with pytest.raises(StorageError, match="cannot look for fsspec\\+down://host/a: no route"):
        storage.file_stats([down, down])
    found = storage.file_stats([down, str(here)])
    assert [file_stat is None for file_stat in found] == [True, False]


def test_local_file_is_its_own_copy(tmp_path: Path) -> None:
    path = tmp_path / "a b.bin"
    path.write_bytes(b"x" * 3_000_000)
    with storage.local_copy(path.as_uri()) as copy:
        assert copy.path == str(path)
        assert copy.sha256 == hashlib.sha256(b"x" * 3_000_000).hexdigest()
        assert [copy.file_stat] == storage.file_stats([str(path)])
    assert path.exists()


def test_remote_copy_is_whole_or_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    uri = f"fsspec+memory:///{uuid.uuid4().hex}/a.bin"
    storage.write_atomic(uri, b"123")
    with storage.local_copy(uri) as copy:
        assert Path(copy.path).read_bytes() == b"123"
        with pytest.raises(StorageError, match=r"gone.bin.*check the path"), storage.local_copy(uri[:-5] + "gone.bin"):
            pass
    memory = type(fsspec.filesystem("memory"))
    info = memory.info
    monkeypatch.setattr(memory, "info", lambda *args, **options: {**info(*args, **options), "size": 4})
    with pytest.raises(StorageError, match="changed from 4 to 3 bytes"), storage.local_copy(uri):
        pass
    assert list(tmp_path.iterdir()) == []


def _enter(uri: str) -> None:
    with storage.local_copy(uri):
        pass


def test_copy_without_disk_space_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    uri = f"fsspec+memory:///{uuid.uuid4().hex}/a.bin"
    storage.write_atomic(uri, b"123")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    with pytest.raises(StorageError, match=r"cannot copy .*No space left.*TMPDIR"):
        _enter(uri)


@pytest.mark.parametrize("read", [storage.open_input, storage.sha256, storage.delete, _enter])
def test_pipe_and_device_are_refused_without_waiting(tmp_path: Path, read: object) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="is a pipe or a device"):
        read(str(tmp_path / "pipe"))  # type: ignore[operator]
    assert (tmp_path / "pipe").exists()


def test_folder_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for call in (storage.open_input, storage.sha256, storage.delete, _enter):
        with pytest.raises(StorageError, match="give a file, not a folder"):
            call(str(tmp_path / "sub"))
    assert (tmp_path / "sub").is_dir()


def test_deleted_file_is_gone_and_a_missing_one_is_fine(folder: str) -> None:
    uri = storage.join(folder, "sub", "a.bin")
    storage.write_atomic(uri, b"")
    storage.delete(uri)
    storage.delete(uri)
    assert storage.list_tree(folder) == []


def test_deleted_link_keeps_its_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    storage.delete(str(tmp_path / "link"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_stream_appears_whole_when_its_context_ends(folder: str) -> None:
    uri = storage.join(folder, "sub", "a.bin")
    with storage.open_atomic(uri) as stream:
        stream.write(b"one ")
        assert not storage.exists(uri)
        stream.write(b"two")
    assert storage.read_bytes(uri) == b"one two"
    with suppress(RuntimeError), storage.open_atomic(uri) as stream:
        stream.write(b"three")
        raise RuntimeError
    assert storage.read_bytes(uri) == b"one two"
    assert storage.list_tree(folder) == ["sub/a.bin"]


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
