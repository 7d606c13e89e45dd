"""Merging small shards, which many short runs leave behind, into shards of a target size; see `shard_list`."""

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set import shard_list
from skipreel.features.feature_set.card import locked
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.feature_set.shard_file import shard_schema, write_rows
from skipreel.features.feature_set.shard_reader import open_parquet
from skipreel.pipeline import storage

Group = tuple[str, ...]
Watch = Callable[[Sequence[Group], str], Iterable[Group]]


@dataclass(frozen=True, slots=True)
class Compaction:
    """How many shards there were, and how many there are."""

    before: int
    after: int


def compact(uri: str, *, shard_bytes: int = 64 << 20, watch: Watch = lambda groups, _: groups) -> Compaction:
    """Merge shards smaller than half of ``shard_bytes`` into shards of at most that size; features keep every bit.

    Whenever it is killed, our readers see every video once, and the next call goes on. Holds one row group in memory.

    Args:
        watch: passes on the groups of shards that become one each, to show how far this is.

    Raises:
        FeatureSetError: when a shard is damaged, a video is there twice, or another process is writing to the feature
            set; what was merged before stays so.
    """
    with locked(uri):
        shard_list.recover(uri)
        FeatureSet(uri).index()
        shards = shard_list.shard_uris(uri)
        groups = _groups(shards, shard_bytes)
        for group in watch(groups, "merging shards"):
            new = f"{uuid.uuid4().hex[:24]}.parquet"
            write_rows(shard_list.hidden_uri(uri, new), _rows(group, shard_schema(uri)))
            shard_list.replace(uri, [shard_list.name_of(shard) for shard in group], new)
        return Compaction(len(shards), len(shards) - sum(len(group) - 1 for group in groups))


def _groups(shards: Sequence[str], shard_bytes: int) -> list[Group]:
    """Small shards, each group together as large as allowed."""
    groups: list[list[str]] = [[]]
    total = 0
    for shard, file_stat in zip(shards, storage.file_stats(shards), strict=True):
        size = file_stat.num_bytes if file_stat else shard_bytes
        if size >= shard_bytes / 2:
            continue
        if total + size > shard_bytes:
            groups.append([])
            total = 0
        groups[-1].append(shard)
        total += size
    return [tuple(group) for group in groups if len(group) > 1]


def _rows(shards: Iterable[str], schema: pa.Schema) -> Iterator[pa.Table]:
    """One row after the other, checksums verified."""
    for shard in shards:
        with open_parquet(shard) as (_, parquet):
            if not parquet.schema_arrow.remove_metadata().equals(schema):
                raise FeatureSetError(f"{shard} was written by another program: run skipreel features verify")
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group)
                yield from (table.slice(row, 1) for row in range(table.num_rows))
