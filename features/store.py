"""Writing a feature set, and knowing what is already in it.

Every file appears whole or not at all, and a shard is named after the videos in it, so that writing it again
replaces it instead of adding to it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import FeatureSetError
from features.recipe import Recipe
from features.schema import FAILURE_SCHEMA, SHARD_SCHEMA, Segment
from pipeline import storage

CARD = "feature_set.json"
# Segments are large (up to 4 MB each at D = 2048): small row groups let a reader take one video without its neighbours.
ROWS_PER_GROUP = 8


def create(uri: str, recipe: Recipe, *, about: Mapping[str, Any]) -> None:
    """Write the data card of a new feature set, or go on with an existing one of the same recipe.

    Half-written files of killed workers are removed: one extraction at a time may write to a feature set.

    Args:
        about: what a reader should know beyond the recipe, such as the backbone's description.

    Raises:
        FeatureSetError: when ``uri`` already holds features of another recipe.
    """
    card_uri = storage.join(uri, CARD)
    if storage.exists(card_uri):
        existing = read_card(uri)
        if existing["id"] != recipe.feature_set_id:
            raise FeatureSetError(
                f"{uri} holds features of another recipe (id {existing['id']}, backbone "
                f"{existing['recipe']['backbone']}; asked for id {recipe.feature_set_id}, backbone {recipe.backbone}): "
                "choose another --output"
            )
        for folder in ("shards", "failures"):
            storage.remove_temporaries(storage.join(uri, folder))
        return
    card = {"id": recipe.feature_set_id, "recipe": recipe.to_json(), "about": dict(about)}
    storage.write_atomic(card_uri, json.dumps(card, indent=2, sort_keys=True).encode())


def read_card(uri: str) -> dict[str, Any]:
    """The data card: ``id``, ``recipe``, ``about``.

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


def write_shard(uri: str, videos: Mapping[str, tuple[str, Sequence[Segment]]]) -> None:
    """Write whole videos as one shard.

    Args:
        videos: for each video id its source digest and its segments.
    """
    rows = [
        {
            "video_id": video_id,
            "segment": segment.number,
            "frame_index": segment.frame_index,
            "pts_s": segment.pts_s,
            "features": segment.features.reshape(-1),
            "dim": segment.features.shape[1],
            "source_digest": digest,
        }
        for video_id, (digest, segments) in videos.items()
        for segment in segments
    ]
    target = storage.join(uri, "shards", _name_for(videos))
    storage.write_table_atomic(target, pa.Table.from_pylist(rows, schema=SHARD_SCHEMA), row_group_size=ROWS_PER_GROUP)


def write_failures(uri: str, failures: Sequence[Mapping[str, str]]) -> None:
    """Write rows of ``video_id``, ``uri`` and ``reason`` to the failure ledger."""
    target = storage.join(uri, "failures", _name_for(row["video_id"] for row in failures))
    storage.write_table_atomic(target, pa.Table.from_pylist([dict(row) for row in failures], schema=FAILURE_SCHEMA))


def finished(uri: str) -> dict[str, str]:
    """Video ids with features in the set, each with its source digest."""
    return {
        row["video_id"]: row["source_digest"] for row in _read_columns(uri, "shards", ["video_id", "source_digest"])
    }


def failures(uri: str) -> list[dict[str, str]]:
    """The failure ledger: rows of ``video_id``, ``uri``, ``reason``, without videos that succeeded later."""
    done = finished(uri)
    latest = {row["video_id"]: row for row in _read_columns(uri, "failures", FAILURE_SCHEMA.names)}
    return [row for video_id, row in sorted(latest.items()) if video_id not in done]


def _read_columns(uri: str, folder: str, columns: list[str]) -> Iterable[dict[str, str]]:
    for path in storage.list_files(storage.join(uri, folder), ".parquet"):
        with storage.open_input(path) as file:
            try:
                yield from pq.read_table(file, columns=columns).to_pylist()
            except (pa.ArrowInvalid, OSError) as error:
                raise FeatureSetError(
                    f"{path} is damaged ({error}): delete it and run skipreel extract again"
                ) from error


def _name_for(video_ids: Iterable[str]) -> str:
    # From the ids' digest, never from the ids themselves: an id such as ../x cannot choose where a file lands.
    return hashlib.sha256("\n".join(sorted(video_ids)).encode()).hexdigest()[:24] + ".parquet"
