"""Writes shard files: `write_shard` for new videos, `write_rows` for rows that exist; each file whole or not at all."""

import hashlib
from collections.abc import Iterable
from itertools import chain, islice

import pyarrow as pa

from skipreel.features.feature_set.card import counts_from_first_frame
from skipreel.features.feature_set.schema import (
    ROW_GROUP_BYTES,
    SHARD_SCHEMA,
    SHARDS,
    by_file_clock,
    shard_writer,
    without_start,
)
from skipreel.pipeline import storage


def write_shard(uri: str, tables: Iterable[pa.Table], video_ids: Iterable[str]) -> None:
    """Write rows of whole videos as one shard, named after the videos. Holds one row group in memory.

    Args:
        tables: rows of `SHARD_SCHEMA`; converted for a set of an earlier version, see `TIMES`.
    """
    if not counts_from_first_frame(uri):
        tables = map(by_file_clock, tables)
    write_rows(storage.join(uri, SHARDS, file_name_of(video_ids)), tables)


def shard_schema(uri: str) -> pa.Schema:
    """The schema of a feature set's shards: without ``start_s`` in one of an earlier version, see `TIMES`."""
    return SHARD_SCHEMA if counts_from_first_frame(uri) else without_start(SHARD_SCHEMA)


def write_rows(target: str, tables: Iterable[pa.Table]) -> None:
    """Write rows of one schema, in order, as a shard file. Holds one row group in memory."""
    tables = iter(tables)
    first = list(islice(tables, 1))
    schema = first[0].schema if first else SHARD_SCHEMA
    group: list[pa.Table] = []
    num_bytes = 0
    with storage.open_atomic(target) as stream, shard_writer(stream, schema) as writer:
        for table in chain(first, tables):
            group.append(table)
            num_bytes += table.nbytes
            if num_bytes >= ROW_GROUP_BYTES:
                writer.write_table(pa.concat_tables(group).combine_chunks())
                group, num_bytes = [], 0
        if group:
            writer.write_table(pa.concat_tables(group).combine_chunks())


def file_name_of(video_ids: Iterable[str]) -> str:
    # A digest of the ids, because an id such as ../x must not choose where the file is written.
    return hashlib.sha256("\n".join(sorted(video_ids)).encode()).hexdigest()[:24] + ".parquet"
