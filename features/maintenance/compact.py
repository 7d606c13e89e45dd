"""`compact`: merges the small shards that many short runs leave into shards of a target size; see `shard_list`."""

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
    """The number of shards before and after."""

    before: int
    after: int


def compact(uri: str, *, shard_bytes: int = 64 << 20, watch: Watch = lambda groups, _: groups) -> Compaction:
    """Merge shards smaller than half of ``shard_bytes`` into shards of at most that size; features keep every bit.

    If it is killed, our readers still see every video once, and the next call continues. Holds one row group in memory.

    Args:
        watch: wraps the groups of shards to show progress; called with them and a description. Each group becomes one
            shard.

    Raises:
        FeatureSetError: if a shard is damaged, a video is stored twice, or another process is writing to the feature
            set; shards merged before that stay merged.
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
    """Group small shards, each group at most ``shard_bytes`` in size."""
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
    """Yield the rows one by one; checksums are verified."""
    for shard in shards:
        with open_parquet(shard) as (_, parquet):
            if not parquet.schema_arrow.remove_metadata().equals(schema):
                raise FeatureSetError(f"{shard} was written by another program: run skipreel features verify")
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group)
                yield from (table.slice(row, 1) for row in range(table.num_rows))
