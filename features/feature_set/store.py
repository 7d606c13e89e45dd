"""Writing a feature set, and knowing what is already in it.

Every file appears whole or not at all, one process writes at a time, and a video's old rows are gone before new ones
appear: whenever that process is killed, each video is in one place or, until the next run, in none.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set import shard_list
from skipreel.features.feature_set.schema import (
    FAILURE_SCHEMA,
    ROW_GROUP_BYTES,
    SHARD_SCHEMA,
    TIMES,
    Failure,
    by_file_clock,
    failure_table,
    shard_writer,
    without_start,
)
from skipreel.features.feature_set.spec import Recipe
from skipreel.pipeline import storage

CARD, PREDICTIONS_CARD = "feature_set.json", "predictions.json"
SHARDS, FAILURES = "shards", "failures"
_KNOWN = pa.schema(
    [
        ("video_id", pa.string()),
        ("source_digest", pa.string()),  # null for a failure
        ("source_bytes", pa.int64()),
        ("source_modified", pa.timestamp("us", tz="UTC")),
        ("file", pa.string()),  # relative to the feature set
    ]
)


def create(uri: str, recipe: Recipe, *, about: Mapping[str, Any]) -> None:
    """Write the data card of a new feature set, or go on with an existing one of the same recipe.

    What a killed writer left is tidied up (`tidy`): hold `locked` while calling.

    Args:
        about: what a reader should know beyond the recipe, such as the backbone's description.

    Raises:
        FeatureSetError: when ``uri`` already holds features of another recipe, or predictions.
    """
    if storage.exists(storage.join(uri, PREDICTIONS_CARD)):
        raise FeatureSetError(f"{uri} holds predictions, not features: choose another --output")
    if storage.exists(storage.join(uri, CARD)):
        existing = read_card(uri)
        if existing["id"] != recipe.feature_set_id:
            raise FeatureSetError(
                f"{uri} holds features of another recipe (id {existing['id']}, backbone "
                f"{existing['recipe']['backbone']}; asked for id {recipe.feature_set_id}, backbone {recipe.backbone}): "
                "choose another --output"
            )
        tidy(uri)
        return
    write_card(uri, {"id": recipe.feature_set_id, "recipe": recipe.to_json(), "about": dict(about), **TIMES})


def tidy(uri: str) -> None:
    """Remove what a killed writer left half-written, and end its compaction; hold `locked` while calling."""
    shard_list.recover(uri)
    for folder in (SHARDS, FAILURES):
        storage.remove_temporaries(storage.join(uri, folder))


def read_card(uri: str) -> dict[str, Any]:
    """The data card: ``id``, ``recipe``, ``about`` and, once an extraction has ended, its ``summary``.

    Raises:
        FeatureSetError: when there is none, or it is damaged.
    """
    card_uri = storage.join(uri, CARD)
    if not storage.exists(card_uri):
        raise FeatureSetError(f"{uri} is not a feature set (no {CARD}): make one with skipreel extract")
    try:
        card: dict[str, Any] = json.loads(storage.read_bytes(card_uri))
        recipe = Recipe.from_json(card["recipe"])
        if card["id"] != recipe.feature_set_id:
            raise ValueError(f"its id {card['id']} does not follow from its recipe ({recipe.feature_set_id})")
    except (ValueError, KeyError, TypeError) as error:
        raise FeatureSetError(f"{card_uri} is damaged: {error}") from error
    return card


def write_card(uri: str, card: Mapping[str, Any], name: str = CARD) -> None:
    """Replace the data card."""
    storage.write_atomic(storage.join(uri, name), json.dumps(card, indent=2, sort_keys=True).encode())


@contextmanager
def locked(uri: str, *, job: str = "extraction") -> Iterator[None]:
    """Keep a second writer on this machine out of a local feature set; the lock ends with its process.

    A feature set on an object store has no lock: there, starting one extraction at a time is the user's part.

    Args:
        job: what a writer is called in the message.

    Raises:
        FeatureSetError: when another process is writing.
    """
    from filelock import FileLock, Timeout

    folder = storage.local_path(uri)
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise FeatureSetError(f"another {job} is writing to {uri}: wait for its end, or stop it") from error


def write_shard(uri: str, tables: Iterable[pa.Table], video_ids: Iterable[str]) -> None:
    """Write rows of whole videos as one shard named after the videos; holds one row group of them in memory.

    The rows have times from the first frame on; in a set whose card does not say so they get the file's clock.
    """
    if not _counts_from_first_frame(uri):
        tables = map(by_file_clock, tables)
    write_rows(storage.join(uri, SHARDS, _name_for(video_ids)), tables)


def shard_schema(uri: str) -> pa.Schema:
    """The columns of the shards of a feature set: without ``start_s`` in one of an earlier version, see `TIMES`."""
    return SHARD_SCHEMA if _counts_from_first_frame(uri) else without_start(SHARD_SCHEMA)


def _counts_from_first_frame(uri: str) -> bool:
    """Whether a data card, of features or of predictions, has `TIMES`; also true before there is a card."""
    cards = [storage.join(uri, name) for name in (CARD, PREDICTIONS_CARD)]
    return all(TIMES.items() <= json.loads(storage.read_bytes(card)).items() for card in cards if storage.exists(card))


def write_failures(uri: str, failures: Sequence[Failure]) -> None:
    """Add a file to the failure ledger."""
    name = _name_for(failure.video_id for failure in failures)
    storage.write_table_atomic(storage.join(uri, FAILURES, name), failure_table(failures))


def known(uri: str, *, has_segments: bool = True) -> pa.Table:
    """One row per video that is in the set or in its failure ledger, with the file of the set that holds it.

    Columns: video_id, source_digest (null for a failure), source_bytes, source_modified, file.

    Args:
        has_segments: whether a video may have several rows, numbered in a column ``segment``.
    """
    tables = [_KNOWN.empty_table()]
    files = {SHARDS: shard_list.shard_uris(uri), FAILURES: storage.list_files(storage.join(uri, FAILURES), ".parquet")}
    segment = ["segment"] if has_segments else []
    for folder, columns in ((SHARDS, [*segment, "source_digest"]), (FAILURES, [])):
        names = ["video_id", *columns, "source_bytes", "source_modified"]
        for path in files[folder]:
            table = _read(path, names)
            if folder == SHARDS and has_segments:
                table = table.filter(pc.equal(table["segment"], 0))
            if folder == FAILURES:
                table = table.append_column("source_digest", pa.nulls(table.num_rows, pa.string()))
            file = pa.array([f"{folder}/{shard_list.name_of(path)}"] * table.num_rows, pa.string())
            tables.append(table.append_column("file", file).select(_KNOWN.names).cast(_KNOWN))
    return pa.concat_tables(tables).combine_chunks()


def forget(uri: str, video_ids: Sequence[str], *, files: Iterable[str]) -> None:
    """Take these videos out of the files (as `known` names them) that hold them, from each in one step."""
    gone = pa.array(video_ids, pa.string())
    for file in files:
        path = storage.join(uri, *file.split("/"))
        ids = _read(path, ["video_id"])["video_id"]
        stay = pc.invert(pc.is_in(ids, value_set=gone))
        if not pc.any(stay).as_py():
            storage.delete(path)
        elif not pc.all(stay).as_py():
            table = _read(path, None).filter(stay)
            if file.startswith(FAILURES):
                storage.write_table_atomic(path, table)
            else:
                write_rows(path, (table.slice(row, 1) for row in range(table.num_rows)))


def finished(uri: str) -> dict[str, str]:
    """Video ids with features in the set, each with its source digest."""
    table = known(uri)
    done = table.filter(pc.is_valid(table["source_digest"]))
    return dict(zip(done["video_id"].to_pylist(), done["source_digest"].to_pylist(), strict=True))


def failures(uri: str) -> list[dict[str, Any]]:
    """The failure ledger, by video: rows with the columns of `FAILURE_SCHEMA`."""
    paths = storage.list_files(storage.join(uri, FAILURES), ".parquet")
    rows = [row for path in paths for row in _read(path, FAILURE_SCHEMA.names).to_pylist()]
    return sorted(rows, key=lambda row: row["video_id"])


def write_rows(target: str, tables: Iterable[pa.Table]) -> None:
    """Write a shard file of rows in order, all of one schema; holds one row group of them in memory."""
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


def _read(path: str, columns: list[str] | None) -> pa.Table:
    with storage.open_input(path) as file:
        try:
            return pq.read_table(file, columns=columns)
        except (pa.ArrowInvalid, OSError) as error:
            raise FeatureSetError(
                f"{path} is damaged ({error}): delete it and run the job that wrote it again"
            ) from error


def _name_for(video_ids: Iterable[str]) -> str:
    # From the ids' digest, never from the ids themselves: an id such as ../x cannot choose where a file lands.
    return hashlib.sha256("\n".join(sorted(video_ids)).encode()).hexdigest()[:24] + ".parquet"
