"""`load_timm`: loads ``timm:<name>``, image models of the timm library, which is an optional extra.

Letters: T frames of one size, D feature length, h and w of the input.
"""

from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skipreel.features.backbones.network import Network, choose_preprocessing, reason_of
from skipreel.features.backbones.preprocessing import INTERPOLATIONS, Preprocessing
from skipreel.features.errors import BackboneError


def load_timm(name: str) -> Network:
    """Load a pretrained model by its name in timm, with the evaluation transform of its configuration.

    Raises:
        BackboneError: if timm is not installed, or the model cannot be loaded.
    """
    try:
        timm = import_module("timm")
    except ImportError as error:
        raise BackboneError(
            f"backbone timm:{name} needs the timm library ({error}): pip install 'skipreel[timm]'"
        ) from error
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise BackboneError(
            f"cannot load backbone timm:{name}: {reason_of(error)} (timm.list_pretrained() has the names)"
        ) from error
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    prepare, settings = choose_preprocessing(
        translate(config), partial(_call, transform), {"transform": str(transform)}
    )
    module = _Layers(model, has_fc7=isinstance(model, timm.models.vgg.VGG))
    return Network(module, prepare, f"{type(model).__name__} with timm's weights for {name}", settings)


class _Layers(nn.Module):
    """Returns all layers of a timm model.

    pooled: timm's features of an image; the mean over the image for VGG.
    cls, mean: for models with patch tokens, the first token and the mean of the patches.
    fc7: for VGG, the second fully connected layer, rectified.
    """

    def __init__(self, model: nn.Module, *, has_fc7: bool) -> None:
        super().__init__()
        self.model, self.has_fc7 = model, has_fc7

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map (T, 3, h, w) float to a (T, D) tensor per layer."""
        maps: Tensor = self.model.forward_features(images)  # type: ignore[operator]
        embedding: Tensor = self.model.forward_head(maps)  # type: ignore[operator]
        if self.has_fc7:
            return {"pooled": maps.mean((2, 3)), "fc7": embedding.flatten(1)}
        layers = {"pooled": embedding.flatten(1)}
        others = getattr(self.model, "num_prefix_tokens", None)
        if maps.ndim == 3 and isinstance(others, int):
            if others > 0:
                layers["cls"] = maps[:, 0]
            layers["mean"] = maps[:, others:].mean(1)
        return layers


def _call(transform: Any, frames: np.ndarray[Any, Any]) -> Tensor:
    from PIL import Image

    return torch.stack([transform(Image.fromarray(frame)) for frame in frames])


def translate(config: dict[str, Any]) -> Preprocessing | None:
    """Translate timm's data configuration; `says_all` tells whether the result is complete."""
    _, height, width = config["input_size"]
    enlarged = int(height / config["crop_pct"]), int(width / config["crop_pct"])
    squash = config["crop_mode"] == "squash"
    if config["interpolation"] not in INTERPOLATIONS or not (squash or height == width):
        return None
    return Preprocessing(
        resize=enlarged if squash else enlarged[0],
        interpolation=config["interpolation"],
        crop=(height, width),
        crop_rounding="half_even",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
