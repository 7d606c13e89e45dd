"""Atomic replacement of a file: a stream into a temporary file in its folder, renamed when the context succeeds.

Called by `pipeline/storage/files.py` alone.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from skipreel.pipeline.storage.uris import is_object_store


@contextmanager
def replace_local(path: Path) -> Iterator[BinaryIO]:
    """A stream that replaces a file on this machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary_name(path.name))
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # Without this a power cut can undo the rename. Mounts that cannot sync a folder keep the file anyway.
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def replace_remote(filesystem: Any, path: str) -> Iterator[BinaryIO]:
    """A stream that replaces a file on any other pyarrow file system."""
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/{_temporary_name(name)}"
    if not is_object_store(filesystem):
        filesystem.create_dir(folder, recursive=True)
    try:
        # To close publishes what was written, even half of it. Hence the temporary name, even if uploads are atomic.
        with filesystem.open_output_stream(temporary) as stream:
            yield stream
        filesystem.move(temporary, path)
    except BaseException:
        with suppress(OSError):
            filesystem.delete_file(temporary)
        raise


def _temporary_name(name: str) -> str:
    return f".{name}.{uuid.uuid4().hex[:8]}.tmp"
