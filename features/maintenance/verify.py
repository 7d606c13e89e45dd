"""Checks a feature set: `verify` reads all of it, `missing_videos` and `changed_sources` compare it with a manifest."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set import shard_list
from skipreel.features.feature_set.card import read_card
from skipreel.features.feature_set.ledger import read_finished, read_state
from skipreel.features.feature_set.schema import FAILURE_SCHEMA, FAILURES
from skipreel.features.feature_set.shard_file import shard_schema
from skipreel.features.feature_set.shard_reader import open_parquet
from skipreel.features.maintenance.verify_shard import check_shard
from skipreel.features.spec import FeatureSpec
from skipreel.pipeline import storage
from skipreel.pipeline.errors import StorageError
from skipreel.pipeline.manifest import iterate_manifest

Watch = Callable[[Sequence[str], str], Iterable[str]]
_NAMED = 3


def verify(uri: str, *, watch: Watch = lambda items, _: items) -> Iterator[str]:
    """Read and check a whole feature set; yields each problem as one line that names the file and says what to do.

    Holds one row group and the ids of the videos in memory.

    Args:
        watch: wraps URIs to show progress; called with them and a description.

    Raises:
        FeatureSetError: if ``uri`` does not hold a feature set, or its data card is damaged.
    """
    dim, schema = FeatureSpec.from_json(read_card(uri)["recipe"]).dim, shard_schema(uri)
    yield from _leftovers(uri)
    found: dict[str, pa.ChunkedArray] = {}  # by file: the videos that it holds
    for shard in watch(shard_list.shard_uris(uri), "checking shards"):
        problems, found[shard] = check_shard(shard, dim=dim, schema=schema)
        yield from problems
    for ledger in watch(storage.list_files(storage.join(uri, FAILURES), ".parquet"), "checking failures"):
        try:
            with open_parquet(ledger) as (_, parquet):
                table = parquet.read()
        except FeatureSetError as error:
            yield str(error)
            continue
        if table.schema.remove_metadata().equals(FAILURE_SCHEMA):
            found[ledger] = table["video_id"]
        else:
            yield f"{ledger} has other columns than a failure ledger: delete it and run skipreel extract again"
    yield from _repeated(found)


def missing_videos(uri: str, manifest: str) -> Iterator[str]:
    """Find videos of a manifest that are neither in the shards nor in the failure ledger; yields one line, if any."""
    stored = read_state(uri)["video_id"].combine_chunks()
    absent = [ids.filter(pc.invert(pc.is_in(ids, value_set=stored))).to_pylist() for ids, _ in _rows(manifest)]
    video_ids = [video_id for batch in absent for video_id in batch]
    if video_ids:
        yield (
            f"{uri} has neither features nor a failure of {_some(video_ids)} of {manifest}: "
            "run skipreel extract with this manifest"
        )


def changed_sources(uri: str, manifest: str, *, watch: Watch = lambda items, _: items) -> Iterator[str]:
    """Find videos of a manifest whose file has changed since its extraction; hashes every file, yields a line each."""
    digests = read_finished(uri)
    expected: dict[str, dict[str, str]] = {}  # by file, since several sequences may come from one
    for ids, uris in _rows(manifest):
        for video_id, source in zip(ids.to_pylist(), uris.to_pylist(), strict=True):
            if video_id in digests:
                expected.setdefault(source, {})[video_id] = digests[video_id]
    for source in watch(list(expected), "hashing sources"):
        try:
            found = storage.sha256(source)
        except StorageError as error:
            yield f"{error} (its features were extracted before)"
            continue
        changed = [video_id for video_id, digest in expected[source].items() if digest != found]
        if changed:
            yield (
                f"{source} has changed since the features of {_some(changed)} were extracted: "
                "run skipreel extract again"
            )


def _leftovers(uri: str) -> Iterator[str]:
    if shard_list.read_journal(uri).new:
        yield f"{uri} has an unfinished compaction: run skipreel features compact to finish it"
    for name in storage.list_tree(uri):
        if name.endswith((".tmp", shard_list.HIDDEN_SUFFIX)):
            yield f"{storage.join(uri, name)} was left by a killed process: the next skipreel extract deletes it"


def _repeated(found: dict[str, pa.ChunkedArray]) -> Iterator[str]:
    """Yield a line for each set of files that hold the same videos."""
    files = list(found)
    tables = [
        pa.table({"video_id": ids, "file": pa.array([number] * len(ids), pa.int32())})
        for number, ids in enumerate(found.values())
    ]
    if not tables:
        return
    places = pa.concat_tables(tables).group_by("video_id").aggregate([("file", "list"), ("file", "count")])
    several: dict[tuple[int, ...], list[str]] = {}
    for row in places.filter(pc.greater(places["file_count"], 1)).to_pylist():
        several.setdefault(tuple(sorted(row["file_list"])), []).append(row["video_id"])
    for numbers, video_ids in several.items():
        where = " and ".join(files[number] for number in dict.fromkeys(numbers))
        verb, which = ("holds", "it") if len(set(numbers)) == 1 else ("hold", "all but one of them")
        yield f"{where} {verb} {_some(video_ids)} {len(numbers)} times: delete {which} and run skipreel extract again"


def _rows(manifest: str) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Yield ids and URIs, batch by batch."""
    return ((batch["video_id"], batch["uri"]) for batch in iterate_manifest(manifest))


def _some(video_ids: Sequence[str]) -> str:
    names = ", ".join(repr(video_id) for video_id in video_ids[:_NAMED])
    return names + (f" and {len(video_ids) - _NAMED} more" if len(video_ids) > _NAMED else "")
