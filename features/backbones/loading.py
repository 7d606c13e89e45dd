"""`load_backbone`: loads a backbone by name, ``hf:…``, ``timm:…``, ``module:function``, ``small:…`` or ``random:…``.

Letters: T frames, D feature length; h and w are the size of the network's input.
"""

import hashlib
from collections.abc import Callable
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from skipreel.features.backbones.backbone import DTYPES, Backbone
from skipreel.features.backbones.hugging_face import load_hugging_face
from skipreel.features.backbones.network import Network, Prepare, reason_of
from skipreel.features.backbones.preprocessing import Preprocessing
from skipreel.features.backbones.small_cnn import INPUT_SIZE, SmallCNN, load_small_cnn
from skipreel.features.backbones.timm import load_timm
from skipreel.features.backbones.user_module import load_module
from skipreel.features.errors import BackboneError
from skipreel.features.spec import Dtype
from skipreel.pipeline.user_code import is_function_name


def runs_code(name: str) -> bool:
    """Whether loading this backbone imports a user's module; load such a name only if the user gave it."""
    return name.partition(":")[0] not in BACKBONES and is_function_name(name)


def load_backbone(
    name: str, *, device: str = "cpu", layer: str = "pooled", dtype: Dtype = "float32", compile: bool = False
) -> Backbone:
    """Load a backbone by name.

    Args:
        name: see above; check a name that comes from a file, such as a checkpoint, with `runs_code` first.
        device: where the network runs.
        layer: the output to use: pooled; cls or mean, if it has patch tokens; fc7 of VGG.
        dtype: type of weights and activations.
        compile: use torch.compile, which makes the first frames slow; not a part of the spec.

    Raises:
        BackboneError: if the kind of name is unknown, the weights cannot be loaded, the layer or the device does not
            exist, or the network is not deterministic.
    """
    if dtype not in DTYPES:
        raise BackboneError(f"dtype {dtype!r} is not one of {', '.join(get_args(Dtype))}")
    on = torch.device(device)
    if on.type == "cuda" and not torch.cuda.is_available():
        raise BackboneError(f"no GPU for backbone {name}: torch sees none here; give device cpu")
    loaded = _load(name)
    module = loaded.module.eval().requires_grad_(False)
    digest = _digest(module)
    # Channels last is faster for convolutions and harmless for other layers.
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
    """Find D by encoding noise; twice, to refuse networks that are not deterministic, such as masked autoencoders."""
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
    """Make an untrained network without a download: enough to try a pipeline, not for real accuracy."""
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
