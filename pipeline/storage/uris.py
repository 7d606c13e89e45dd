"""URIs: their file systems, joining and splitting them, and one-line messages of file system errors. Opens nothing.

A URI is a local path, `file://...`, or anything that `pyarrow.fs.FileSystem.from_uri` understands (`s3://`, `gs://`,
`hdfs://`, `fsspec+<protocol>://`).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pyarrow.fs as pafs

from skipreel.pipeline.errors import StorageError

_SPACE = {"write": " and has space left", "copy": " and the folder of temporary files (TMPDIR) has space left"}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://")
# Their paths are bucket/key, and their folders exist only as parts of keys.
_OBJECT_STORES = {"s3": "s3", "gs": "gcs"}


def resolve(uri: str) -> tuple[Any, str]:
    """The pyarrow file system of `uri` and the path inside it.

    The client of a bucket is cached: to create one takes 10 ms and a request for the bucket's region.

    Raises:
        StorageError: if the scheme is unknown or the URI malformed.
    """
    path = local_path(uri)
    if path is not None:
        return pafs.LocalFileSystem(), str(path)
    try:
        if uri.partition("://")[0] in _OBJECT_STORES and re.fullmatch(r"[!#-;=?-Z_a-z~]+", uri):
            return _client(_bucket(uri)), _key(uri)
        filesystem, inner = pafs.FileSystem.from_uri(uri)
    except (ValueError, NotImplementedError, ImportError, OSError) as error:  # pyarrow's ArrowInvalid is a ValueError
        reason = f"cannot open {uri}: {one_line(error)}; give a local path or a URI such as file:///, s3:// or gs://"
        raise StorageError(reason) from error
    return filesystem, inner


def is_object_store(filesystem: Any) -> bool:
    """Whether the file system has no folders of its own."""
    return filesystem.type_name in _OBJECT_STORES.values()


def local_path(uri: str) -> Path | None:
    """The absolute local path of `uri`, or None if it is on another file system."""
    if not has_scheme(uri):
        return Path(uri).absolute()
    parts = urlsplit(uri)
    if parts.scheme.lower() == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return None


def absolute(uri: str) -> str:
    """`uri`, with a relative local path made absolute, so that it means the same in another process."""
    return uri if has_scheme(uri) else str(Path(uri).absolute())


def join(uri: str, *parts: str) -> str:
    """Append `parts`, names or relative posix paths, to `uri`, quoted as its scheme needs; its query is kept."""
    if not has_scheme(uri):
        return str(Path(uri, *parts))
    base, mark, query = uri.partition("?")
    names = [part.strip("/") for part in parts]
    # pyarrow passes these two on unchanged; in all others it decodes percent codes.
    if not base.startswith(("fsspec+", "hf://")):
        names = [quote(name) for name in names]
    return "/".join([base.rstrip("/"), *names]) + mark + query


def parent(uri: str) -> str:
    """The absolute folder of a file; the query is kept."""
    if not has_scheme(uri):
        return str(Path(uri).absolute().parent)
    base, mark, query = uri.partition("?")
    return base.rpartition("/")[0] + mark + query


def has_scheme(uri: str) -> bool:
    """Whether `uri` starts with a scheme and `://`."""
    return _SCHEME.match(uri) is not None


@contextmanager
def explained(action: str, uri: str) -> Iterator[None]:
    """Turn an OSError inside into a StorageError of one line: "cannot <action> <uri>: why; what to do"."""
    try:
        yield
    except OSError as error:
        text = one_line(error)
        if isinstance(error, FileNotFoundError):
            advice = "check the path"
        elif isinstance(error, PermissionError):
            advice = "check its permissions"
        elif "is a directory" in text.lower():  # pyarrow raises a plain OSError
            advice = "give a file, not a folder"
        else:
            advice = "check that the place is reachable" + _SPACE.get(action, "")
        raise StorageError(f"cannot {action} {uri}: {text}; {advice}") from error


def one_line(error: BaseException) -> str:
    """The message of an exception without line breaks."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


@lru_cache(maxsize=64)
def _client(bucket: str) -> Any:
    return pafs.FileSystem.from_uri(bucket)[0]


def _bucket(uri: str) -> str:
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}" + (f"?{parts.query}" if parts.query else "")


def _key(uri: str) -> str:
    parts = urlsplit(uri)
    return unquote(parts.netloc.rpartition("@")[2] + parts.path).rstrip("/")
