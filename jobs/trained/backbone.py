"""The backbone that a trained model's features were made with."""

from skipreel.features.backbones.backbone import Backbone
from skipreel.features.backbones.loading import load_backbone, runs_code
from skipreel.features.errors import BackboneError
from skipreel.jobs.trained.model import TrainedModel


def load_backbone_of(model: TrainedModel, *, name: str | None = None, device: str = "cpu") -> Backbone:
    """The backbone that a model's features were made with, checked by its weights and its preprocessing.

    Args:
        name: where it is found now, if not where the training found it. Only a name given here may be
            module:function: one that a checkpoint brings along must not run code.

    Raises:
        BackboneError: when it cannot be loaded or is another.
    """
    spec = model.spec
    if name is None and runs_code(spec.backbone):
        raise BackboneError(
            f"the model was trained with backbone {spec.backbone}, which is code and is run only when it is asked "
            f"for: give --backbone {spec.backbone} (in Python, the argument backbone)"
        )
    backbone = load_backbone(name or spec.backbone, device=device, layer=spec.layer, dtype=spec.dtype)
    if backbone.weights_digest != spec.weights_digest:
        raise BackboneError(
            f"backbone {backbone.name} has other weights than the one the model was trained with "
            f"({backbone.weights_digest[:12]} against {spec.weights_digest[:12]}): give it with --backbone"
        )
    if backbone.preprocessing != spec.preprocessing:
        raise BackboneError(
            f"backbone {backbone.name} prepares frames otherwise than the one the model was trained with "
            f"({backbone.preprocessing} against {spec.preprocessing}): give it with --backbone"
        )
    return backbone
