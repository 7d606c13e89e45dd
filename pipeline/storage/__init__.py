"""Files by URI, local or on an object store; nothing else in the package opens files."""

from skipreel.pipeline.storage.file_stat import FileStat, file_stats
from skipreel.pipeline.storage.files import (
    delete,
    exists,
    list_files,
    list_tree,
    open_atomic,
    open_input,
    read_bytes,
    remove_temporaries,
    sha256,
    write_atomic,
    write_table_atomic,
)
from skipreel.pipeline.storage.local_copy import LocalCopy, local_copy
from skipreel.pipeline.storage.uris import absolute, join, local_path, parent, resolve

__all__ = [
    "FileStat",
    "LocalCopy",
    "absolute",
    "delete",
    "exists",
    "file_stats",
    "join",
    "list_files",
    "list_tree",
    "local_copy",
    "local_path",
    "open_atomic",
    "open_input",
    "parent",
    "read_bytes",
    "remove_temporaries",
    "resolve",
    "sha256",
    "write_atomic",
    "write_table_atomic",
]
