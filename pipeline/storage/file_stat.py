"""File stats: they tell whether a file has changed without reading it."""

import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from skipreel.pipeline.errors import StorageError
from skipreel.pipeline.storage.uris import explained, has_scheme, local_path, resolve

_NUM_REQUESTS = 32


@dataclass(frozen=True, slots=True)
class FileStat:
    """Size in bytes and time of change in microseconds since 1970.

    The time is 0 if the file system does not keep it; object stores round it to seconds.
    """

    num_bytes: int
    modified_us: int


def file_stats(uris: Sequence[str]) -> list[FileStat | None]:
    """The file stat of each URI; remote ones are requested in parallel.

    Returns:
        One item per URI: None for a missing file, a folder, a dangling link, a pipe or device, a file without
        permission, and a URI that is not understood or whose server does not answer.

    Raises:
        StorageError: if every URI failed because its server did not answer: an outage must not look like deleted files.
    """
    with ThreadPoolExecutor(_NUM_REQUESTS) as pool:
        remote = [uri for uri in uris if has_scheme(uri) and local_path(uri) is None]
        answers = dict(zip(remote, pool.map(_remote_file_stat, remote), strict=True))
    failed = [answer for answer in answers.values() if isinstance(answer, StorageError)]
    if failed and len(failed) == len(set(uris)):
        raise failed[0]
    found: list[FileStat | None] = []
    for uri in uris:
        answer = answers[uri] if uri in answers else _local_file_stat(uri)
        found.append(None if isinstance(answer, StorageError) else answer)
    return found


def file_stat_of(status: os.stat_result) -> FileStat:
    return FileStat(status.st_size, status.st_mtime_ns // 1000)


def _local_file_stat(uri: str) -> FileStat | None:
    path = str(local_path(uri)) if has_scheme(uri) else uri
    try:
        status = os.stat(path)  # noqa: PTH116 - creating a Path takes longer than the call
    except (OSError, ValueError):  # ValueError: a null character
        return None
    return file_stat_of(status) if stat.S_ISREG(status.st_mode) else None


def _remote_file_stat(uri: str) -> FileStat | StorageError | None:
    """The file stat; None: no such file; StorageError (returned): the server does not answer."""
    try:
        with explained("look for", uri):
            filesystem, path = resolve(uri)
            info = filesystem.get_file_info(path)
    except StorageError as error:
        return error if isinstance(error.__cause__, OSError) else None
    return file_stat_of_info(info) if info.type == pafs.FileType.File else None


def file_stat_of_info(info: Any) -> FileStat:
    return FileStat(info.size or 0, (info.mtime_ns or 0) // 1000)
