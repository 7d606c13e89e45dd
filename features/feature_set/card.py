"""The data card of a feature set (`create_feature_set`, `read_card`) and the lock of its writer (`locked`).

Files appear whole or not at all, one process writes at a time, and a video's old rows are removed before new ones
appear. Whenever that process is killed, each video is stored once or, until the next run, not at all.
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
    """Write the data card of a new feature set, or `clean_up` an existing one of the same spec; hold `locked`.

    Args:
        about: notes for readers, such as the backbone's description.

    Raises:
        FeatureSetError: if ``uri`` holds features of another spec, or predictions.
    """
    if storage.exists(storage.join(uri, PREDICTIONS_CARD)):
        raise FeatureSetError(f"{uri} holds predictions, not features: choose another --output")
    if storage.exists(storage.join(uri, CARD)):
        existing = read_card(uri)
        if existing["id"] != spec.feature_set_id:
            raise FeatureSetError(
                f"{uri} holds features of another spec (id {existing['id']}, backbone "
                f"{existing['recipe']['backbone']}; asked for id {spec.feature_set_id}, backbone {spec.backbone}): "
                "choose another --output"
            )
        clean_up(uri)
        return
    write_card(uri, {"id": spec.feature_set_id, "recipe": spec.to_json(), "about": dict(about), **TIMES})


def clean_up(uri: str) -> None:
    """Remove the unfinished files of a killed writer and finish its compaction; hold `locked`."""
    shard_list.recover(uri)
    for folder in (SHARDS, FAILURES):
        storage.remove_temporaries(storage.join(uri, folder))


def read_card(uri: str) -> dict[str, Any]:
    """Read the data card: ``id``, ``recipe`` (the spec), ``about`` and, after an extraction, its ``summary``.

    Raises:
        FeatureSetError: if there is no data card, or it is damaged.
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
    """Whether the data card, of features or of predictions, has `TIMES`; True if there is no card yet."""
    cards = [storage.join(uri, name) for name in (CARD, PREDICTIONS_CARD)]
    return all(TIMES.items() <= json.loads(storage.read_bytes(card)).items() for card in cards if storage.exists(card))


@contextmanager
def locked(uri: str, *, job: str = "extraction") -> Iterator[None]:
    """Lock a local feature set against a second writer on this machine; the lock ends with the process.

    A feature set on an object store is not locked: the user must run one extraction at a time.

    Args:
        job: name of the other writer in the message.

    Raises:
        FeatureSetError: if another process is writing.
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
