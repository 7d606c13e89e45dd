"""`local_copy`: a local path for readers that need one, with the digest of the content."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, cast

import pyarrow.fs as pafs

from skipreel.pipeline.errors import StorageError
from skipreel.pipeline.storage.file_stat import FileStat, file_stat_of, file_stat_of_info
from skipreel.pipeline.storage.files import PIECE_BYTES, open_regular
from skipreel.pipeline.storage.uris import explained, local_path, resolve


@dataclass(frozen=True, slots=True)
class LocalCopy:
    """A local path, the hexadecimal SHA-256 of the content, and the file stat from before it was read."""

    path: str
    sha256: str
    file_stat: FileStat


@contextmanager
def local_copy(uri: str) -> Iterator[LocalCopy]:
    """The file itself if it is local, else a temporary copy that is deleted on exit; it is read once, in pieces.

    Raises:
        StorageError: if it is missing, unreadable, a folder, pipe or device.
    """
    path = local_path(uri)
    if path is not None:
        with explained("read", uri), open_regular(path, uri) as stream:
            file_stat = file_stat_of(os.fstat(stream.fileno()))
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        yield LocalCopy(str(path), digest, file_stat)
        return
    with explained("copy", uri):
        target = tempfile.NamedTemporaryFile(prefix="skipreel-", suffix=PurePosixPath(resolve(uri)[1]).suffix)  # noqa: SIM115
    with target:
        with explained("copy", uri):
            file_stat, digest = _download(uri, cast(BinaryIO, target))
        yield LocalCopy(target.name, digest, file_stat)


def _download(uri: str, target: BinaryIO) -> tuple[FileStat, str]:
    filesystem, path = resolve(uri)
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if info.type != pafs.FileType.File:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    digest, num_bytes = hashlib.sha256(), 0
    with filesystem.open_input_file(path) as source:
        while piece := source.read(PIECE_BYTES):
            digest.update(piece)
            num_bytes += target.write(piece)
    target.flush()
    if info.size not in (None, num_bytes):
        raise StorageError(f"cannot copy {uri}: it changed from {info.size} to {num_bytes} bytes meanwhile; try again")
    return file_stat_of_info(info), digest.hexdigest()
