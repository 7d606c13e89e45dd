"""Frame encoders, chosen by name: ``hf:…`` and ``timm:…`` of those libraries, ``module:function`` of one's own,
``small:…`` and ``random:…`` where no weights can be had.

A backbone maps RGB frames to float16 vectors, the precision feature sets are stored in, so that a feature computed
during inference equals the one that training read from a shard. Letters: T frames, H height, W width, D feature length;
h and w are the network's input.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skipreel.features.backbones.hugging_face import load_hugging_face
from skipreel.features.backbones.network import Network, Prepare, reason_of
from skipreel.features.backbones.preprocessing import Preprocessing
from skipreel.features.backbones.small_cnn import INPUT_SIZE, SmallCNN, load_small_cnn
from skipreel.features.backbones.timm import load_timm
from skipreel.features.backbones.user_module import load_module
from skipreel.features.errors import BackboneError
from skipreel.features.feature_set.spec import Dtype, Recipe
from skipreel.pipeline.user_code import is_function_name
from skipreel.pipeline.video.sampling import Sampling

Frames = Sequence[NDArray[np.uint8]]
DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Backbone:
    """A loaded encoder.

    Attributes:
        name: what it was loaded by.
        about: one sentence for people, such as where the weights come from.
        layer: which of its outputs the features are.
        dtype: what its weights and activations are.
        dim: D.
        weights_digest: SHA-256 (hex) over names, shapes, dtypes and bytes of all weights, as they were loaded.
        preprocessing: the image preprocessing as JSON-able settings.
        prepare: from (T, H, W, 3) uint8 to (T, 3, h, w) float32, on the device.
        network: from that to (T, D).
    """

    name: str
    about: str
    layer: str
    dtype: Dtype
    dim: int
    weights_digest: str
    preprocessing: dict[str, Any]
    prepare: Prepare
    network: Callable[[Tensor], Tensor]
    device: torch.device

    @property
    def batch_size(self) -> int:
        """Frames to encode at once."""
        return batch_size_on(self.device.type)

    def recipe(self, sampling: Sampling) -> Recipe:
        """What makes the features of frames that are sampled so."""
        return Recipe(
            self.name, self.weights_digest, self.preprocessing, sampling, self.dim, layer=self.layer, dtype=self.dtype
        )

    def encode(self, frames: Frames) -> NDArray[np.float16]:
        """Encode T frames, each (H, W, 3) uint8 RGB of any size, to (T, D) float16.

        Raises:
            BackboneError: when a feature is not a number, or one beyond float16.
        """
        encoded = np.empty((len(frames), self.dim), np.float16)
        with torch.inference_mode():
            for places, images in self._prepared(frames):
                encoded[places] = self.network(images).to("cpu", torch.float16).numpy()
        if not np.isfinite(encoded).all():
            raise BackboneError(
                f"backbone {self.name} gives features that are no float16 numbers (nan, or above 65504)"
            )
        return encoded

    def _prepared(self, frames: Frames) -> Iterator[tuple[list[int], Tensor]]:
        """Frames of one size are prepared at once; what comes out in one size, (3, h, w), is one batch, with places."""
        batches: dict[torch.Size, list[tuple[list[int], Tensor]]] = {}
        for shape in dict.fromkeys(frame.shape for frame in frames):
            places = [place for place, frame in enumerate(frames) if frame.shape == shape]
            pixels = torch.from_numpy(np.stack([frames[place] for place in places]))
            images = self.prepare(pixels.to(self.device))
            batches.setdefault(images.shape[1:], []).append((places, images))
        for pieces in batches.values():
            images = pieces[0][1] if len(pieces) == 1 else torch.cat([images for _, images in pieces])
            yield [place for places, _ in pieces for place in places], images


def batch_size_on(device: str) -> int:
    """Frames to encode at once on ``cpu`` or ``cuda``: few on a CPU, whose caches large activations overflow
    (MobileNet, one thread: 13 ms a frame in fours, 20 to 30 ms in thirty-twos), many on a GPU.
    """
    return 4 if device == "cpu" else 64


def runs_code(name: str) -> bool:
    """Whether loading this backbone would import a module of somebody's own: only for a name that its user gave."""
    return name.partition(":")[0] not in BACKBONES and is_function_name(name)


def load_backbone(
    name: str, *, device: str = "cpu", layer: str = "pooled", dtype: Dtype = "float32", compile: bool = False
) -> Backbone:
    """Load a backbone by name.

    Args:
        name: see above; a name out of a file, such as a checkpoint, has to pass `runs_code` first.
        layer: which of its outputs, where there are several: pooled, or cls and mean (of patch tokens), or fc7.
        dtype: of weights and activations.
        compile: use torch.compile, which takes its time at the first frames; no part of the recipe.

    Raises:
        BackboneError: when the name's kind is unknown, the weights cannot be loaded, the layer or the device is not
            there, or the network gives other features for the same frames each time.
    """
    if dtype not in DTYPES:
        raise BackboneError(f"dtype {dtype!r} is not one of {', '.join(get_args(Dtype))}")
    on = torch.device(device)
    if on.type == "cuda" and not torch.cuda.is_available():
        raise BackboneError(f"no GPU for backbone {name}: torch sees none here; give device cpu")
    loaded = _load(name)
    module = loaded.module.eval().requires_grad_(False)
    digest = _digest(module)
    # Channels last: what convolutions want; to others it makes no difference.
    module.to(on, DTYPES[dtype], memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = torch.compile(module) if compile else module

    def network(images: Tensor) -> Tensor:
        outputs = run(images.to(DTYPES[dtype], memory_format=torch.channels_last))
        layers: dict[str, Tensor] = {"pooled": outputs} if isinstance(outputs, Tensor) else outputs
        if layer not in layers:
            allowed = ", ".join(layers) or "none that could be used"
            raise BackboneError(f"backbone {name} has no layer {layer!r}; it has: {allowed}")
        return layers[layer]

    return Backbone(
        name=name,
        about=loaded.about,
        layer=layer,
        dtype=dtype,
        dim=_dim(name, network, loaded.prepare, on),
        weights_digest=digest,
        preprocessing=loaded.preprocessing,
        prepare=loaded.prepare,
        network=network,
        device=on,
    )


def _load(name: str) -> Network:
    kind, _, argument = name.partition(":")
    if kind in BACKBONES and argument:
        return BACKBONES[kind](argument)
    if is_function_name(name):
        return load_module(name)
    allowed = ", ".join(f"{known}:…" for known in BACKBONES)
    raise BackboneError(f"unknown backbone {name!r}: give one of {allowed}, module:function (for example random:0)")


def _dim(name: str, network: Callable[[Tensor], Tensor], prepare: Prepare, device: torch.device) -> int:
    """D, found by encoding noise, twice: what differs each time (a masked autoencoder's) is no feature."""
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)).to(device)
    try:
        with torch.inference_mode():
            first, again = (network(prepare(noise)) for _ in range(2))
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise BackboneError(f"backbone {name} cannot encode a frame of 128×96: {reason_of(error)}") from error
    if first.ndim != 2 or len(first) != len(noise):
        raise BackboneError(
            f"backbone {name} gives {tuple(first.shape)} for {len(noise)} frames, not (frames, features)"
        )
    if (first - again).abs().max() > 0.05 * first.abs().max():
        raise BackboneError(f"backbone {name} gives other features for the same frames each time")
    return first.shape[1]


def _load_random(argument: str) -> Network:
    """No download and no training: enough to try a pipeline, not to tell subtle things apart."""
    if not argument.isdecimal():
        raise BackboneError(f"random:{argument} needs a whole number as its seed, for example random:0")
    about = f"a small CNN with random weights (seed {argument}), not trained on anything"
    return Network(SmallCNN(seed=int(argument)), SMALL_INPUT, about, SMALL_INPUT.to_json())


def _load_small(directory: str) -> Network:
    network, about = load_small_cnn(directory)
    return Network(network, SMALL_INPUT, about, SMALL_INPUT.to_json())


def _digest(module: nn.Module) -> str:
    hasher = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        hasher.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        hasher.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


SMALL_INPUT = Preprocessing(resize=INPUT_SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
BACKBONES: dict[str, Callable[[str], Network]] = {
    "hf": load_hugging_face,
    "timm": load_timm,
    "small": _load_small,
    "random": _load_random,
}
