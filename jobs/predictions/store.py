"""Predictions of many videos on disk: written by `jobs.predictions.job`, one row per video, readable without our code.

    <output>/predictions.json       the data card: what the predictions were made with, and an id of that
    <output>/shards/*.parquet       one row per video, the columns of `SHARD_SCHEMA`
    <output>/failures/*.parquet     one row per video without a prediction, with the reason, as in a feature set

Letters: T sampled frames, C classes.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
from numpy.typing import NDArray

from skipreel.features.batching.collate import Task
from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set import schema
from skipreel.features.feature_set.card import CARD, PREDICTIONS_CARD, clean_up
from skipreel.features.feature_set.card import write_card as write_card_named
from skipreel.features.feature_set.ledger import read_failures
from skipreel.features.feature_set.schema import SHARDS, Source
from skipreel.jobs.closed_loop.prediction import Prediction, Seconds
from skipreel.jobs.predictions import parquet as prediction_parquet
from skipreel.jobs.trained.model import TrainedModel
from skipreel.models import Cost
from skipreel.pipeline import storage
from skipreel.pipeline.video import from_first_frame

SCHEMA_VERSION = 1
_COSTS = (
    "frames_total",
    "frames_wanted",
    "frames_decoded",
    "frames_encoded",
    "state_updates",
    "frames_converted",
)
_STAGES = ("decode", "encode", "recognise")
# The columns of a file of predictions without the error, and those that say which file each was made from.
SHARD_SCHEMA = pa.schema(
    [
        *(field for field in prediction_parquet.SCHEMA if field.name != "error"),
        *(field for field in schema.SHARD_SCHEMA if field.name.startswith("source_")),
    ]
)


@dataclass(frozen=True, slots=True)
class PredictionSpec:
    """Everything that decides a prediction's value.

    Attributes:
        weights_digest: SHA-256 (hex) of the recogniser's weights, the one in its checkpoint.
        config: of the recogniser, with its gate; JSON-able.
        feature_set_id: says backbone, preprocessing and sampling.
        dense: whether the network looked at every frame.
    """

    weights_digest: str
    config: dict[str, Any]
    class_names: tuple[str, ...]
    feature_set_id: str
    dense: bool

    @classmethod
    def of(cls, model: TrainedModel, *, dense: bool) -> Self:
        """The recipe of a model's predictions."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.recognizer.state_dict().items()}
        digest = hashlib.sha256(safetensors.torch.save(state)).hexdigest()
        config = model.recognizer.config.to_json()
        return cls(digest, config, model.class_names, model.spec.feature_set_id, dense)

    @property
    def prediction_id(self) -> str:
        """The first 16 hex digits of a SHA-256 over the recipe and the schema version."""
        content = {**asdict(self), "schema_version": SCHEMA_VERSION}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class PredictionRows:
    """The row of one video; its prediction comes in one piece."""

    def __init__(self, video_id: str, source: Source, *, task: Task) -> None:
        self.video_id = video_id
        self.num_frames = 0
        self.num_bytes = 0
        self._source, self._task = source, task
        self._tables: list[pa.Table] = []

    def append(self, frame_index: NDArray[np.int32], _: NDArray[np.float64], prediction: Prediction, /) -> None:
        """Take the prediction of the whole video."""
        self.num_frames += len(frame_index)
        row = {
            **prediction_parquet.row_of(self.video_id, prediction, self._task),
            "source_digest": self._source.digest,
            "source_bytes": self._source.file_stat.num_bytes,
            "source_modified": schema.time_of(self._source.file_stat),
        }
        self._tables.append(pa.table({field.name: [row[field.name]] for field in SHARD_SCHEMA}, schema=SHARD_SCHEMA))

    def tables(self) -> Iterator[pa.Table]:
        """The row."""
        yield from self._tables

    def discard(self) -> None:
        """Forget the row."""
        self._tables = []


def create(uri: str, spec: PredictionSpec, *, model: str, features: Mapping[str, Any], about: str) -> None:
    """Write the data card of new predictions, or continue those of the same recipe; hold `locked`.

    Args:
        model: where the model is; only its weights are compared.
        features: what the model was trained on, as in the card of a feature set.
        about: one sentence about the backbone.

    Raises:
        FeatureSetError: when ``uri`` already holds something else.
    """
    if storage.exists(storage.join(uri, CARD)):
        raise FeatureSetError(f"{uri} holds features, not predictions: choose another --output")
    if storage.exists(storage.join(uri, PREDICTIONS_CARD)):
        existing = read_card(uri)
        if existing["id"] != spec.prediction_id:
            raise FeatureSetError(
                f"{uri} holds predictions of another model or another way to look (id {existing['id']}, model "
                f"{existing['model']}, dense {existing['dense']}; asked for id {spec.prediction_id}, model {model}, "
                f"dense {spec.dense}): choose another --output"
            )
        clean_up(uri)
        return
    card = {
        "id": spec.prediction_id,
        "model": model,
        "task": spec.config["task"],
        **asdict(spec),
        "recipe": dict(features),
        "about": {"backbone": about},
        **schema.TIMES,
    }
    write_card(uri, card)


def read_card(uri: str) -> dict[str, Any]:
    """The data card: ``id``, ``model``, ``task``, ``class_names`` and so on and, once a job has ended, its ``summary``.

    Raises:
        FeatureSetError: when there is none, or it is damaged.
    """
    card_uri = storage.join(uri, PREDICTIONS_CARD)
    if not storage.exists(card_uri):
        raise FeatureSetError(
            f"{uri} holds no predictions (no {PREDICTIONS_CARD}): make them with skipreel predict --manifest"
        )
    try:
        card: dict[str, Any] = json.loads(storage.read_bytes(card_uri))
        fields = {name: card[name] for name in PredictionSpec.__dataclass_fields__}
        spec = PredictionSpec(**{**fields, "class_names": tuple(fields["class_names"])})
        if card["id"] != spec.prediction_id or card["task"] != spec.config["task"]:
            raise ValueError(f"its id {card['id']} does not follow from what it says ({spec.prediction_id})")
        card["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise FeatureSetError(f"{card_uri} is damaged: {error}") from error
    return card


def write_card(uri: str, card: Mapping[str, Any]) -> None:
    """Replace the data card."""
    write_card_named(uri, card, PREDICTIONS_CARD)


def iterate_predictions(uri: str) -> Iterator[tuple[str, Prediction]]:
    """Each video's id and prediction, in the order of the files; holds one row group of them.

    Raises:
        FeatureSetError: when there are no predictions, or a file is damaged.
    """
    task: Task = read_card(uri)["task"]
    for table in _tables(uri):
        for row in range(table.num_rows):
            yield _prediction(table.slice(row, 1), task)


def failures(uri: str) -> list[dict[str, Any]]:
    """The failure ledger by video: rows with the columns of `features.feature_set.schema.FAILURE_SCHEMA`.

    Raises:
        FeatureSetError: when there are no predictions, or a file is damaged.
    """
    read_card(uri)
    return read_failures(uri)


def total_cost(uri: str) -> tuple[Cost, Seconds]:
    """The sum over all predictions."""
    cost, seconds = Cost(0, 0, 0, 0, 0, 0), Seconds()
    for table in _tables(uri, [*_COSTS, *(f"{stage}_s" for stage in _STAGES)]):
        for row in table.to_pylist():
            cost += Cost(*(row[name] for name in _COSTS))
            for stage in _STAGES:
                setattr(seconds, stage, getattr(seconds, stage) + row[f"{stage}_s"])
    return cost, seconds


def _tables(uri: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    for path in storage.list_files(storage.join(uri, SHARDS), ".parquet"):
        with storage.open_input(path) as stream:
            try:
                shard = pq.ParquetFile(stream)
                for group in range(shard.num_row_groups):
                    yield shard.read_row_group(group, columns=columns)
            except (pa.ArrowInvalid, OSError) as error:
                again = "delete it and run skipreel predict again"
                raise FeatureSetError(f"{path} is damaged ({error}): {again}") from error


def _prediction(row: pa.Table, task: Task) -> tuple[str, Prediction]:
    def value(name: str) -> Any:
        return row[name][0].as_py()

    def values(name: str) -> NDArray[Any]:
        return np.array(row[name].combine_chunks().flatten().to_numpy(zero_copy_only=False))

    pts_s = values("pts_s")
    frames = task == "frames"
    scores = values("scores" if frames else "video_scores")
    prediction = Prediction(
        uri=value("uri"),
        duration_s=value("duration_s"),
        frame_index=values("frame_index").astype(np.int64),
        pts_s=from_first_frame(pts_s),
        used=values("used").astype(np.bool_),
        scores=scores.reshape(-1, value("num_classes")) if frames else scores,
        cost=Cost(*(value(name) for name in _COSTS)),
        seconds=Seconds(*(value(f"{stage}_s") for stage in _STAGES)),
        start_s=value("start_s") if "start_s" in row.column_names else float(pts_s[0]),
    )
    return value("video_id"), prediction
