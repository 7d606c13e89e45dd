"""`load_hugging_face`: loads ``hf:<hub id or directory>``, image models of the transformers library.

Letters: T frames of one size, L tokens, D feature length, h and w of the input, C channels.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from skipreel.features.backbones.network import Network, choose_preprocessing, reason_of
from skipreel.features.backbones.preprocessing import Interpolation, Preprocessing
from skipreel.features.errors import BackboneError

# Pillow's numbers for filters that torch has on every device.
INTERPOLATIONS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}


def load_hugging_face(source: str) -> Network:
    """Load a model, or the image tower of a two-tower model, with its image processor.

    Raises:
        BackboneError: if the model cannot be loaded, or its file lacks weights.
    """
    try:
        with _quiet():
            model, missing, processor = _load(source)
        settings = processor.to_dict()
        plain = json.loads(json.dumps({key: setting for key, setting in settings.items() if _is_plain(setting)}))
        prepare, preprocessing = choose_preprocessing(translate(settings), partial(_call, processor), plain)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError) as error:
        raise BackboneError(
            f"cannot load backbone hf:{source}: {reason_of(error)} (give a hub id, or a directory with config.json, "
            "model.safetensors and preprocessor_config.json)"
        ) from error
    unfilled = sorted(name for name in missing if not name.startswith("pooler."))
    if unfilled:
        raise BackboneError(
            f"backbone hf:{source}: its file lacks {len(unfilled)} of the model's weights, or has them in another "
            f"shape ({unfilled[0]}, …)"
        )
    if missing:  # only the pooler, which transformers fills with random numbers; the layers before it are trained
        model.pooler = None
    return Network(_Layers(model), prepare, f"{type(model).__name__} with the weights in {source}", preprocessing)


def _load(source: str) -> tuple[Any, set[str], Any]:
    """Load the model, the names of tensors that its file lacks or has in another shape, and the image processor."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    model, report = AutoModel.from_pretrained(
        source,
        config=getattr(config, "vision_config", config),  # only the image tower of CLIP and similar models
        dtype=torch.float32,
        use_safetensors=True,  # with no code from the hub, nothing that is loaded can run
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported in one line by load_hugging_face
    )
    # The Pillow backend, so that the result does not depend on whether torchvision is installed.
    processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False, backend="pil")
    return model, {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}, processor


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch off the library's progress bars and its report on unused tensors."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


class _Layers(nn.Module):
    """Returns all layers of a transformers model.

    pooled: the model's pooled output; the mean over the image for convolutional models without one.
    cls, mean: for models with patch tokens, the first token (if there is one) and the mean of the patches.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map (T, 3, h, w) float to a (T, D) tensor per layer."""
        output = self.model(images)
        pooled, hidden = (getattr(output, name, None) for name in ("pooler_output", "last_hidden_state"))
        layers: dict[str, Tensor] = {}
        if pooled is not None:
            layers["pooled"] = pooled.flatten(1)
        elif hidden is not None and hidden.ndim == 4:  # (T, C, h', w')
            layers["pooled"] = hidden.mean((2, 3))
        patch = getattr(self.model.config, "patch_size", None)
        if hidden is not None and hidden.ndim == 3 and isinstance(patch, int):  # (T, L, D)
            # Tokens before the patches: class, distillation, registers. Negative if the model merges patches.
            others = hidden.shape[1] - (images.shape[2] // patch) * (images.shape[3] // patch)
            if others > 0:
                layers["cls"] = hidden[:, 0]
            if others >= 0:
                layers["mean"] = hidden[:, others:].mean(1)
        return layers


def _call(processor: Any, frames: np.ndarray[Any, Any]) -> Tensor:
    pixels: Tensor = processor(list(frames), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    return pixels


def translate(settings: dict[str, Any]) -> Preprocessing | None:
    """Translate an image processor's settings; `says_all` tells whether the result is complete."""
    interpolation = INTERPOLATIONS.get(settings.get("resample", 2))
    resize = _size(settings.get("size", {})) if settings.get("do_resize") else None
    crop = _size(settings.get("crop_size", {})) if settings.get("do_center_crop") else None
    if isinstance(resize, int) and "crop_pct" in settings:  # ConvNeXt: crop small inputs from larger images
        square = (resize, resize)
        resize, crop = (int(resize / settings["crop_pct"]), square) if resize < 384 else (square, crop)
    if interpolation is None or isinstance(crop, int):
        return None
    scale = settings["rescale_factor"] if settings.get("do_rescale") else 1.0
    if not settings.get("do_normalize"):
        return Preprocessing(resize, interpolation, crop, scale=scale)
    mean, std = (_three(settings[name]) for name in ("image_mean", "image_std"))
    return Preprocessing(resize, interpolation, crop, scale=scale, mean=mean, std=std)


def _size(size: dict[str, int]) -> tuple[int, int] | int | None:
    """(h, w), or the shorter edge; None for other settings, such as an upper limit."""
    if size.keys() == {"shortest_edge"}:
        return size["shortest_edge"]
    return (size["height"], size["width"]) if size.keys() == {"height", "width"} else None


def _three(values: Sequence[float] | float) -> tuple[float, float, float]:
    red, green, blue = values if isinstance(values, Sequence) else (values,) * 3
    return red, green, blue


def _is_plain(setting: object) -> bool:
    if isinstance(setting, dict):
        return all(_is_plain(value) for value in setting.values())
    if isinstance(setting, list | tuple):
        return all(_is_plain(value) for value in setting)
    return setting is None or isinstance(setting, str | int | float | bool)
