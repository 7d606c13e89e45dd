"""One video from its file to scores, decoding and encoding only the frames that the network asks for."""

from functools import partial

from skipreel.features.backbones.backbone import Backbone
from skipreel.features.backbones.loading import load_backbone, runs_code
from skipreel.features.errors import BackboneError
from skipreel.jobs.closed_loop.prediction import Prediction
from skipreel.jobs.closed_loop.scheduler import Scheduler
from skipreel.jobs.closed_loop.session import Request
from skipreel.jobs.training.evaluation import TrainedModel
from skipreel.pipeline.errors import VideoError


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


def predict(
    uri: str, *, model: TrainedModel, backbone: Backbone, decoder: str = "pyav", dense: bool = False
) -> Prediction:
    """Look at one video only where the gate says, or, if ``dense``, at every frame.

    Raises:
        VideoError: when the file cannot be opened or a wanted frame cannot be decoded.
    """
    with Scheduler(model, backbone, dense=dense, decoder=decoder, num_workers=0) as scheduler:
        (outcome,) = scheduler.run([Request(uri, uri)])
    if outcome.prediction is None:
        raise VideoError(outcome.reason)
    return outcome.prediction


predict_dense = partial(predict, dense=True)
