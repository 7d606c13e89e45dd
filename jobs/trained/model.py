"""A trained model: a network with the metadata of its checkpoint. Only this module reads that metadata."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.spec import FeatureSpec
from skipreel.models import CheckpointError, Recognizer, load_checkpoint


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A network with the metadata of its checkpoint.

    Attributes:
        recognizer: in evaluation mode.
        feature_set_id: id of the features that it was trained on.
        spec: how those features were made.
        settings: the settings of the network, as in `ModelSettings`.
        budget_curve: pairs (δ, share of the frames looked at) by ascending δ, see `jobs.trained.budget`. None for
            networks without a learned gate and for checkpoints of earlier versions.
        schedule: how it was trained, as in `Schedule`; empty for checkpoints of earlier versions.
    """

    recognizer: Recognizer
    class_names: tuple[str, ...]
    feature_set_id: str
    spec: FeatureSpec
    settings: dict[str, Any]
    budget_curve: tuple[tuple[float, float], ...] | None = None
    schedule: Mapping[str, Any] = field(default_factory=dict)


def load_model(directory: str | Path) -> TrainedModel:
    """Load a checkpoint written by train or sweep.

    Raises:
        CheckpointError: it does not exist, is damaged, or lacks the metadata.
    """
    recognizer, metadata = load_checkpoint(directory)
    try:
        return TrainedModel(
            recognizer=recognizer.eval(),
            class_names=tuple(metadata["class_names"]),
            feature_set_id=metadata["feature_set_id"],
            spec=FeatureSpec.from_json(metadata["recipe"]),
            settings=metadata["settings"],
            budget_curve=_curve(metadata.get("budget_curve")),
            schedule=metadata.get("schedule", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory} was not written by skipreel train or sweep ({error} is missing)") from error


def _curve(pairs: Sequence[Sequence[float]] | None) -> tuple[tuple[float, float], ...] | None:
    return None if pairs is None else tuple((float(delta), float(share)) for delta, share in pairs)


def check_same_spec(model: TrainedModel, feature_set: FeatureSet) -> None:
    """Refuse to run a model on features that were made with another specification.

    Raises:
        FeatureSetError: the ids differ.
    """
    if model.feature_set_id != feature_set.id:
        raise FeatureSetError(
            f"the model was trained on features {model.feature_set_id} (length {model.spec.dim}, backbone "
            f"{model.spec.backbone}), {feature_set.uri} holds {feature_set.id} (length {feature_set.dim}, backbone "
            f"{feature_set.spec.backbone}): extract with the model's backbone, or train on these features"
        )
