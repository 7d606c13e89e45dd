"""The data card of a feature set, and who may write to it.

Every file appears whole or not at all, one process writes at a time, and a video's old rows are gone before new ones
appear: whenever that process is killed, each video is in one place or, until the next run, in none.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set import shard_list
from skipreel.features.feature_set.schema import FAILURES, SHARDS, TIMES
from skipreel.features.spec import FeatureSpec
from skipreel.pipeline import storage

CARD, PREDICTIONS_CARD = "feature_set.json", "predictions.json"


def create_feature_set(uri: str, spec: FeatureSpec, *, about: Mapping[str, Any]) -> None:
    """Write the data card of a new feature set, or go on with an existing one of the same recipe.

    What a killed writer left is tidied up (`clean_up`): hold `locked` while calling.

    Args:
        about: what a reader should know beyond the recipe, such as the backbone's description.

    Raises:
        FeatureSetError: when ``uri`` already holds features of another recipe, or predictions.
    """
    if storage.exists(storage.join(uri, PREDICTIONS_CARD)):
        raise FeatureSetError(f"{uri} holds predictions, not features: choose another --output")
    if storage.exists(storage.join(uri, CARD)):
        existing = read_card(uri)
        if existing["id"] != spec.feature_set_id:
            raise FeatureSetError(
                f"{uri} holds features of another recipe (id {existing['id']}, backbone "
                f"{existing['recipe']['backbone']}; asked for id {spec.feature_set_id}, backbone {spec.backbone}): "
                "choose another --output"
            )
        clean_up(uri)
        return
    write_card(uri, {"id": spec.feature_set_id, "recipe": spec.to_json(), "about": dict(about), **TIMES})


def clean_up(uri: str) -> None:
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
        spec = FeatureSpec.from_json(card["recipe"])
        if card["id"] != spec.feature_set_id:
            raise ValueError(f"its id {card['id']} does not follow from its recipe ({spec.feature_set_id})")
    except (ValueError, KeyError, TypeError) as error:
        raise FeatureSetError(f"{card_uri} is damaged: {error}") from error
    return card


def write_card(uri: str, card: Mapping[str, Any], name: str = CARD) -> None:
    """Replace the data card."""
    storage.write_atomic(storage.join(uri, name), json.dumps(card, indent=2, sort_keys=True).encode())


def counts_from_first_frame(uri: str) -> bool:
    """Whether a data card, of features or of predictions, has `TIMES`; also true before there is a card."""
    cards = [storage.join(uri, name) for name in (CARD, PREDICTIONS_CARD)]
    return all(TIMES.items() <= json.loads(storage.read_bytes(card)).items() for card in cards if storage.exists(card))


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
