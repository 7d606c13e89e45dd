"""Frame encoders, chosen by name: ``hf:<directory or hub id>``, ``small:<directory>`` and ``random:<seed>``.

A backbone maps RGB frames to float16 vectors, the precision feature sets are stored in, so that a feature computed
during inference equals the one that training read from a shard. Letters: T frames, H height, W width, D feature length.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from features.errors import BackboneError
from features.recipe import Recipe
from features.small_cnn import DIM, INPUT_SIZE, SmallCNN, load_small_cnn, normalise, resize
from pipeline.sampling import Sampling

Dtype = Literal["float32", "bfloat16"]
Frames = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Backbone:
    """A loaded encoder.

    Attributes:
        name: what it was loaded by.
        about: one sentence for people, such as where the weights come from.
        dim: D.
        weights_digest: SHA-256 (hex) over names, shapes, dtypes and bytes of all weights.
        preprocessing: the image preprocessing as JSON-able settings.
    """

    name: str
    about: str
    dim: int
    weights_digest: str
    preprocessing: dict[str, Any]
    prepare: Callable[[Frames], Tensor]
    network: Callable[[Tensor], Tensor]
    device: torch.device
    layer: str = "pooled"
    dtype: Dtype = "float32"

    def recipe(self, sampling: Sampling) -> Recipe:
        """What makes the features of frames that are sampled so."""
        return Recipe(
            self.name, self.weights_digest, self.preprocessing, sampling, self.dim, layer=self.layer, dtype=self.dtype
        )

    @property
    def batch_size(self) -> int:
        """Frames to encode at once: few on a CPU, whose caches large activations overflow (MobileNet, one thread:
        16 ms a frame in fours, 47 ms in thirty-twos), many on a GPU.
        """
        return 4 if self.device.type == "cpu" else 64

    def encode(self, frames: Frames) -> NDArray[np.float16]:
        """Encode T frames, each (H, W, 3) uint8 RGB of any size, to (T, D) float16."""
        with torch.inference_mode():
            features = self.network(self.prepare(frames).to(self.device))
        encoded: NDArray[np.float16] = features.to("cpu", torch.float16).numpy()
        return encoded


def load_backbone(
    name: str, *, device: str = "cpu", layer: str = "pooled", dtype: Dtype = "float32", compile: bool = False
) -> Backbone:
    """Load a backbone by name.

    Args:
        layer: which of its outputs.
        dtype: what it computes in.
        compile: whether torch.compile is worth its start.

    Raises:
        BackboneError: when the name's kind is unknown or the weights cannot be loaded.
    """
    if layer != "pooled" or dtype != "float32" or compile:
        raise BackboneError(f"backbone {name}: only layer pooled in float32, not compiled, is there yet")
    kind, _, argument = name.partition(":")
    if kind not in BACKBONES or not argument:
        allowed = ", ".join(f"{known}:…" for known in BACKBONES)
        raise BackboneError(f"unknown backbone {name!r}: give one of {allowed} (for example random:0)")
    return BACKBONES[kind](argument, torch.device(device))


def _load_random(argument: str, device: torch.device) -> Backbone:
    """No download and no training: enough to try a pipeline, not to tell subtle things apart."""
    if not argument.isdecimal():
        raise BackboneError(f"random:{argument} needs a whole number as its seed, for example random:0")
    about = f"a small CNN with random weights (seed {argument}), not trained on anything"
    return _small(f"random:{argument}", about, SmallCNN(seed=int(argument)), device)


def _load_small(directory: str, device: torch.device) -> Backbone:
    network, about = load_small_cnn(directory)
    return _small(f"small:{directory}", about, network, device)


def _small(name: str, about: str, network: SmallCNN, device: torch.device) -> Backbone:
    return Backbone(
        name=name,
        about=about,
        dim=DIM,
        weights_digest=_digest(network),
        preprocessing={"resize": list(INPUT_SIZE), "interpolation": "bilinear, antialiased", "scale": "x / 127.5 - 1"},
        prepare=lambda frames: normalise(resize(torch.from_numpy(np.stack(frames)))),
        network=network.eval().to(device),
        device=device,
    )


def _load_hugging_face(source: str, device: torch.device) -> Backbone:
    """Any image model of the transformers library that has a pooled output, with its own image processor."""
    from transformers import AutoImageProcessor, AutoModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        processor = AutoImageProcessor.from_pretrained(source)
        # Safetensors only, and no code from the hub: nothing that is loaded can run.
        model = AutoModel.from_pretrained(source, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackboneError(f"cannot load backbone hf:{source}: {reason}") from error
    model = model.eval().to(device)

    def prepare(frames: Frames) -> Tensor:
        pixels: Tensor = processor(list(frames), return_tensors="pt")["pixel_values"]
        return pixels

    def pooled(images: Tensor) -> Tensor:
        output: Tensor = model(images).pooler_output
        return output.flatten(1)

    probe = prepare([np.zeros((64, 64, 3), np.uint8)])
    with torch.inference_mode():
        dim = pooled(probe.to(device)).shape[1]
    settings = processor.to_dict()
    return Backbone(
        name=f"hf:{source}",
        about=f"{type(model).__name__} with the weights in {source}",
        dim=dim,
        weights_digest=_digest(model),
        preprocessing={key: settings[key] for key in sorted(settings) if _is_plain(settings[key])},
        prepare=prepare,
        network=pooled,
        device=device,
    )


def _is_plain(setting: object) -> bool:
    if isinstance(setting, dict):
        return all(_is_plain(part) for part in setting.values())
    if isinstance(setting, list | tuple):
        return all(_is_plain(part) for part in setting)
    return setting is None or isinstance(setting, str | int | float | bool)


def _digest(module: nn.Module) -> str:
    hasher = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        hasher.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        hasher.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


BACKBONES: dict[str, Callable[[str, torch.device], Backbone]] = {
    "hf": _load_hugging_face,
    "small": _load_small,
    "random": _load_random,
}
