"""Files by URI (see `pipeline.storage.uris`): the only place in the package that opens them.

Whatever the file system reports surfaces as one `StorageError` line, with the cause kept.
"""

import errno
import hashlib
import io
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.fs as pafs

from skipreel.pipeline.errors import StorageError
from skipreel.pipeline.storage.atomic_write import replace_local, replace_remote
from skipreel.pipeline.storage.uris import explained, has_scheme, join, local_path, resolve

# A remote read is one request and waits as long for its first byte as for some MB more.
_PIECE_BYTES = 4 << 20
_NUM_REQUESTS = 32


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Tells a changed file without reading it: size in bytes and time of change in microseconds since 1970.

    The time is 0 where the file system keeps none; object stores round it to seconds.
    """

    num_bytes: int
    modified_us: int


@dataclass(frozen=True, slots=True)
class LocalCopy:
    """A file to open by its local `path`, the hexadecimal SHA-256 of its content, its stamp from before it was read."""

    path: str
    sha256: str
    stamp: FileStamp


def exists(uri: str) -> bool:
    """Whether a file or a folder is there."""
    filesystem, path = resolve(uri)
    with explained("look for", uri):
        return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def stamps(uris: Sequence[str]) -> list[FileStamp | None]:
    """The stamp of each URI, or None where no file can be had there; remote ones are asked in parallel.

    None stands for a missing file, a folder, a dangling link, a pipe or device, one that may not be looked at, and a
    URI that is not understood or whose place does not answer. StorageError only where no place at all answers: an
    outage must not look like files that vanished.
    """
    with ThreadPoolExecutor(_NUM_REQUESTS) as pool:
        remote = [uri for uri in uris if has_scheme(uri) and local_path(uri) is None]
        answers = dict(zip(remote, pool.map(_remote_stamp, remote), strict=True))
    failed = [answer for answer in answers.values() if isinstance(answer, StorageError)]
    if failed and len(failed) == len(set(uris)):
        raise failed[0]
    found: list[FileStamp | None] = []
    for uri in uris:
        answer = answers[uri] if uri in answers else _local_stamp(uri)
        found.append(None if isinstance(answer, StorageError) else answer)
    return found


@contextmanager
def local_copy(uri: str) -> Iterator[LocalCopy]:
    """A file for readers that need a local path: itself where it is local, else a temporary copy, deleted on exit.

    It is read once, in pieces. StorageError where it is missing, unreadable, a folder, pipe or device.
    """
    path = local_path(uri)
    if path is not None:
        with explained("read", uri), _open_regular(path, uri) as stream:
            stamp = _stamp_of(os.fstat(stream.fileno()))
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        yield LocalCopy(str(path), digest, stamp)
        return
    with explained("copy", uri):
        target = tempfile.NamedTemporaryFile(prefix="skipreel-", suffix=PurePosixPath(resolve(uri)[1]).suffix)  # noqa: SIM115
    with target:
        with explained("copy", uri):
            stamp, digest = _download(uri, cast(BinaryIO, target))
        yield LocalCopy(target.name, digest, stamp)


def list_files(uri: str, suffix: str = "") -> list[str]:
    """URIs of the files directly in folder `uri` whose names end in `suffix`, sorted; [] where the folder is absent."""
    names = [name for name in _names_below(uri, recursive=False) if name.endswith(suffix)]
    return [join(uri, name) for name in names]


def list_tree(uri: str) -> list[str]:
    """Paths relative to folder `uri` (posix) of all files below it, sorted; [] where the folder is absent."""
    return _names_below(uri, recursive=True)


def open_input(uri: str) -> BinaryIO:
    """Open for random-access reading, in large pieces where it is remote; close it, or use it as a context manager."""
    filesystem, path = resolve(uri)
    local = local_path(uri)
    with explained("read", uri):
        if local is not None:
            _check_regular(local.stat().st_mode, "read", uri)
        stream = filesystem.open_input_file(path)
    return cast(BinaryIO, stream if local is not None else io.BufferedReader(stream, _PIECE_BYTES))


def read_bytes(uri: str) -> bytes:
    """The whole content of a file."""
    with explained("read", uri), open_input(uri) as stream:
        return stream.read()


def sha256(uri: str) -> str:
    """Hexadecimal SHA-256 of a file's content, read in pieces."""
    with explained("read", uri), open_input(uri) as stream:
        return hashlib.file_digest(cast(Any, stream), "sha256").hexdigest()


@contextmanager
def open_atomic(uri: str) -> Iterator[BinaryIO]:
    """Write a file as a stream, so that readers see either the old content or all of the new one.

    It appears when the context is left. Missing folders are made. Whatever interrupts the writing (an exception, a full
    disk, Ctrl-C), no temporary file stays behind; only a killed process can leave one, whose name starts with a dot and
    ends in `.tmp`. An OSError inside the context counts as one of the writing: StorageError.
    """
    path = local_path(uri)
    with explained("write", uri), replace_remote(*resolve(uri)) if path is None else replace_local(path) as stream:
        yield stream


def write_atomic(uri: str, data: bytes) -> None:
    """Write a whole file as `open_atomic` does."""
    with open_atomic(uri) as stream:
        stream.write(data)


def write_table_atomic(uri: str, table: pa.Table, row_group_size: int | None = None) -> None:
    """Like `write_atomic`, for an Arrow table as Parquet (zstd) with `row_group_size` rows in a group."""
    import pyarrow.parquet as pq

    with open_atomic(uri) as stream:
        pq.write_table(table, stream, compression="zstd", row_group_size=row_group_size)


def delete(uri: str) -> None:
    """Remove one file; one that is not there is fine, a folder, pipe or device is a StorageError."""
    filesystem, path = resolve(uri)
    local = local_path(uri)
    with explained("delete", uri), suppress(FileNotFoundError):
        if local is not None and not local.is_symlink():
            _check_regular(local.stat().st_mode, "delete", uri)
        filesystem.delete_file(path)


def remove_temporaries(uri: str) -> None:
    """Delete what killed writers left in a folder (see `open_atomic`); nobody else may be writing there."""
    for name in _names_below(uri, recursive=False):
        if name.startswith(".") and name.endswith(".tmp"):
            delete(join(uri, name))


def _names_below(uri: str, *, recursive: bool) -> list[str]:
    filesystem, path = resolve(uri)
    path = path.rstrip("/") or "/"
    with explained("list", uri):
        selector = pafs.FileSelector(path, recursive=recursive, allow_not_found=True)
        files = [info.path for info in filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
    return sorted(file[len(path) :].lstrip("/") for file in files)


def _stamp_of(status: os.stat_result) -> FileStamp:
    return FileStamp(status.st_size, status.st_mtime_ns // 1000)


def _local_stamp(uri: str) -> FileStamp | None:
    path = str(local_path(uri)) if has_scheme(uri) else uri
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path takes longer to make than the question
    except (OSError, ValueError):  # ValueError: a null character
        return None
    return _stamp_of(status) if stat.S_ISREG(status.st_mode) else None


def _remote_stamp(uri: str) -> FileStamp | StorageError | None:
    """The error where the place does not answer."""
    try:
        with explained("look for", uri):
            filesystem, path = resolve(uri)
            info = filesystem.get_file_info(path)
    except StorageError as error:
        return error if isinstance(error.__cause__, OSError) else None
    return _info_stamp(info) if info.type == pafs.FileType.File else None


def _info_stamp(info: Any) -> FileStamp:
    return FileStamp(info.size or 0, (info.mtime_ns or 0) // 1000)


def _check_regular(mode: int, action: str, uri: str) -> None:
    """Opening a pipe would wait for its writer, and a device may have no end; folders are left to the file system."""
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise StorageError(f"cannot {action} {uri}: it is a pipe or a device; give a regular file")


def _open_regular(path: Path, uri: str) -> Any:
    _check_regular(path.stat().st_mode, "read", uri)
    return path.open("rb")


def _download(uri: str, target: BinaryIO) -> tuple[FileStamp, str]:
    filesystem, path = resolve(uri)
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if info.type != pafs.FileType.File:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    digest, num_bytes = hashlib.sha256(), 0
    with filesystem.open_input_file(path) as source:
        while piece := source.read(_PIECE_BYTES):
            digest.update(piece)
            num_bytes += target.write(piece)
    target.flush()
    if info.size not in (None, num_bytes):
        raise StorageError(f"cannot copy {uri}: it changed from {info.size} to {num_bytes} bytes meanwhile; try again")
    return _info_stamp(info), digest.hexdigest()
