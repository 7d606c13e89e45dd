"""Files by URI: the only place in the package that opens them.

A URI is a local path, `file://...`, or anything `pyarrow.fs.FileSystem.from_uri` understands (`s3://`, `gs://`, `hdfs://`,
`fsspec+<protocol>://`). Whatever the file system reports surfaces as one `StorageError` line, with the cause kept.
"""

import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.errors import StorageError

_CHUNK_BYTES = 1 << 20


def resolve(uri: str) -> tuple[Any, str]:
    """The pyarrow file system of `uri` and the path inside it; StorageError for a scheme that is not known."""
    path = local_path(uri)
    if path is not None:
        return pafs.LocalFileSystem(), str(path)
    try:
        filesystem, inner = pafs.FileSystem.from_uri(uri)
    except (ValueError, NotImplementedError, ImportError, OSError) as error:  # pyarrow's ArrowInvalid is a ValueError
        reason = f"cannot open {uri}: {_one_line(error)}; give a local path or a URI such as file:///, s3:// or gs://"
        raise StorageError(reason) from error
    return filesystem, inner


def local_path(uri: str) -> Path | None:
    """The absolute local path of `uri`, or None where it lives on another file system."""
    if not _has_scheme(uri):
        return Path(uri).absolute()
    parts = urlsplit(uri)
    if parts.scheme.lower() == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return None


def absolute(uri: str) -> str:
    """`uri` in a form that means the same in another process: a relative local path becomes absolute."""
    return uri if _has_scheme(uri) else str(Path(uri).absolute())


def join(uri: str, *parts: str) -> str:
    """`parts`, names or relative posix paths, appended to `uri` (quoted as its scheme needs it, its query kept)."""
    if not _has_scheme(uri):
        return str(Path(uri, *parts))
    base, mark, query = uri.partition("?")
    names = [part.strip("/") for part in parts]
    # pyarrow hands these two on as they are; from all others it takes percent codes back out.
    if not base.startswith(("fsspec+", "hf://")):
        names = [quote(name) for name in names]
    return "/".join([base.rstrip("/"), *names]) + mark + query


def exists(uri: str) -> bool:
    """Whether a file or a folder is there."""
    filesystem, path = resolve(uri)
    with _explained("look for", uri):
        return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def list_files(uri: str, suffix: str = "") -> list[str]:
    """URIs of the files directly in folder `uri` whose names end in `suffix`, sorted; [] where the folder is absent."""
    names = [name for name in _names_below(uri, recursive=False) if name.endswith(suffix)]
    return [join(uri, name) for name in names]


def list_tree(uri: str) -> list[str]:
    """Paths relative to folder `uri` (posix) of all files below it, sorted; [] where the folder is absent."""
    return _names_below(uri, recursive=True)


def open_input(uri: str) -> BinaryIO:
    """Open for random-access reading; close it, or use it as a context manager."""
    filesystem, path = resolve(uri)
    with _explained("read", uri):
        stream: BinaryIO = filesystem.open_input_file(path)
        return stream


def read_bytes(uri: str) -> bytes:
    """The whole content of a file."""
    with _explained("read", uri), open_input(uri) as stream:
        return stream.read()


def sha256(uri: str) -> str:
    """Hexadecimal SHA-256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with _explained("read", uri), open_input(uri) as stream:
        while piece := stream.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def write_atomic(uri: str, data: bytes) -> None:
    """Write a file so that readers see either the old content or all of the new one.

    Missing folders are made. Whatever interrupts the writing (a full disk, Ctrl-C), no temporary file stays behind;
    only a killed process can leave one, whose name starts with a dot and ends in `.tmp`.
    """

    def write(stream: BinaryIO) -> None:
        stream.write(data)

    _replace(uri, write)


def write_table_atomic(uri: str, table: pa.Table, row_group_size: int | None = None) -> None:
    """Like `write_atomic`, for an Arrow table as Parquet (zstd) with `row_group_size` rows in a group."""
    import pyarrow.parquet as pq

    _replace(uri, lambda stream: pq.write_table(table, stream, compression="zstd", row_group_size=row_group_size))


def remove_temporaries(uri: str) -> None:
    """Delete what killed writers left in a folder (see `write_atomic`); nobody else may be writing there."""
    for name in _names_below(uri, recursive=False):
        if name.startswith(".") and name.endswith(".tmp"):
            filesystem, path = resolve(join(uri, name))
            filesystem.delete_file(path)


def _replace(uri: str, write: Callable[[BinaryIO], None]) -> None:
    with _explained("write", uri):
        path = local_path(uri)
        if path is not None:
            _replace_local(path, write)
        else:
            _replace_remote(uri, write)


def _replace_local(path: Path, write: Callable[[BinaryIO], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary_name(path.name))
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # Without this the rename itself can be lost in a power cut. Mounts that cannot sync a folder keep the file anyway.
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _replace_remote(uri: str, write: Callable[[BinaryIO], None]) -> None:
    filesystem, path = resolve(uri)
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/{_temporary_name(name)}"
    filesystem.create_dir(folder, recursive=True)
    try:
        with filesystem.open_output_stream(temporary) as stream:
            write(stream)
        filesystem.move(temporary, path)
    except BaseException:
        with suppress(OSError):
            filesystem.delete_file(temporary)
        raise


def _temporary_name(name: str) -> str:
    return f".{name}.{uuid.uuid4().hex[:8]}.tmp"


def _names_below(uri: str, *, recursive: bool) -> list[str]:
    filesystem, path = resolve(uri)
    path = path.rstrip("/") or "/"
    with _explained("list", uri):
        selector = pafs.FileSelector(path, recursive=recursive, allow_not_found=True)
        files = [info.path for info in filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
    return sorted(file[len(path) :].lstrip("/") for file in files)


def _has_scheme(uri: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.\-]+://", uri) is not None


@contextmanager
def _explained(action: str, uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = _one_line(error)
        if isinstance(error, FileNotFoundError):
            advice = "check the path"
        elif isinstance(error, PermissionError):
            advice = "check its permissions"
        elif "is a directory" in text.lower():  # pyarrow raises a plain OSError
            advice = "give a file, not a folder"
        else:
            advice = "check that the place is reachable" + (" and has space left" if action == "write" else "")
        raise StorageError(f"cannot {action} {uri}: {text}; {advice}") from error


def _one_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
