"""Open, read, write, list and delete files by URI (see `pipeline/storage/uris.py`).

Errors of the file system become a `StorageError` of one line, with the original as its cause.
"""

import hashlib
import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.fs as pafs

from skipreel.pipeline.errors import StorageError
from skipreel.pipeline.storage.atomic_write import replace_local, replace_remote
from skipreel.pipeline.storage.uris import explained, join, local_path, resolve

# A remote read is one request, which waits as long for its first byte as for some MB more.
PIECE_BYTES = 4 << 20


def exists(uri: str) -> bool:
    """Whether a file or a folder exists."""
    filesystem, path = resolve(uri)
    with explained("look for", uri):
        return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def list_files(uri: str, suffix: str = "") -> list[str]:
    """URIs of the files directly in folder `uri` whose names end in `suffix`, sorted; [] if the folder is absent."""
    names = [name for name in _names_below(uri, recursive=False) if name.endswith(suffix)]
    return [join(uri, name) for name in names]


def list_tree(uri: str) -> list[str]:
    """Posix paths, relative to folder `uri`, of all files below it, sorted; [] if the folder is absent."""
    return _names_below(uri, recursive=True)


def open_input(uri: str) -> BinaryIO:
    """Open for random-access reading, buffered if remote; close it, or use it as a context manager."""
    filesystem, path = resolve(uri)
    local = local_path(uri)
    with explained("read", uri):
        if local is not None:
            _check_regular(local.stat().st_mode, "read", uri)
        stream = filesystem.open_input_file(path)
    return cast(BinaryIO, stream if local is not None else io.BufferedReader(stream, PIECE_BYTES))


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
    """Write a file as a stream; it appears when the context ends, so readers see the old content or all of the new.

    Missing folders are created. If the writing is interrupted (an exception, a full disk, Ctrl-C), no temporary file
    remains. Only a killed process can leave one, whose name starts with a dot and ends in `.tmp`.

    Raises:
        StorageError: if the writing fails, or an OSError is raised inside the context.
    """
    path = local_path(uri)
    with explained("write", uri), replace_remote(*resolve(uri)) if path is None else replace_local(path) as stream:
        yield stream


def write_atomic(uri: str, data: bytes) -> None:
    """Write a whole file like `open_atomic`."""
    with open_atomic(uri) as stream:
        stream.write(data)


def write_table_atomic(uri: str, table: pa.Table, row_group_size: int | None = None) -> None:
    """Write an Arrow table as Parquet (zstd), with `row_group_size` rows per group, like `open_atomic`."""
    import pyarrow.parquet as pq

    with open_atomic(uri) as stream:
        pq.write_table(table, stream, compression="zstd", row_group_size=row_group_size)


def delete(uri: str) -> None:
    """Delete a file if it exists; StorageError for a folder, pipe or device."""
    filesystem, path = resolve(uri)
    local = local_path(uri)
    with explained("delete", uri), suppress(FileNotFoundError):
        if local is not None and not local.is_symlink():
            _check_regular(local.stat().st_mode, "delete", uri)
        filesystem.delete_file(path)


def remove_temporaries(uri: str) -> None:
    """Delete the temporary files of killed writers in a folder (see `open_atomic`), which nobody may be writing to."""
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


def _check_regular(mode: int, action: str, uri: str) -> None:
    """Refuse a pipe, which waits for its writer, and a device, which may not end; the file system refuses folders."""
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise StorageError(f"cannot {action} {uri}: it is a pipe or a device; give a regular file")


def open_regular(path: Path, uri: str) -> Any:
    _check_regular(path.stat().st_mode, "read", uri)
    return path.open("rb")
