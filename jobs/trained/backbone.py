"""Loads the backbone that a trained model needs, and checks that it is the same as in training."""

from skipreel.features.backbones.backbone import Backbone
from skipreel.features.backbones.loading import load_backbone, runs_code
from skipreel.features.errors import BackboneError
from skipreel.jobs.trained.model import TrainedModel


def load_backbone_of(model: TrainedModel, *, name: str | None = None, device: str = "cpu") -> Backbone:
    """Load the backbone of a model's features.

    Args:
        name: name of the backbone; default: the name in the checkpoint. Only a name given here may be module:function,
            because a checkpoint must not run code.
        device: where to run it.

    Raises:
        BackboneError: it cannot be loaded, or has other weights or another preprocessing than in training.
    """
    spec = model.spec
    if name is None and runs_code(spec.backbone):
        raise BackboneError(
            f"the model was trained with backbone {spec.backbone}, which is code and is run only on request: "
            f"give --backbone {spec.backbone} (in Python, the argument backbone)"
        )
    backbone = load_backbone(name or spec.backbone, device=device, layer=spec.layer, dtype=spec.dtype)
    if backbone.weights_digest != spec.weights_digest:
        raise BackboneError(
            f"backbone {backbone.name} has other weights than the one the model was trained with "
            f"({backbone.weights_digest[:12]} against {spec.weights_digest[:12]}): give it with --backbone"
        )
    if backbone.preprocessing != spec.preprocessing:
        raise BackboneError(
            f"backbone {backbone.name} prepares frames differently from the one the model was trained with "
            f"({backbone.preprocessing} against {spec.preprocessing}): give it with --backbone"
        )
    return backbone
