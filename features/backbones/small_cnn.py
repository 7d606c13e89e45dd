"""`SmallCNN`: a network for machines without pretrained weights; random from a seed, or trained by the demo.

Letters: N frames, H height, W width.
"""

import json

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from skipreel.features.errors import BackboneError
from skipreel.pipeline import storage
from skipreel.pipeline.errors import StorageError

INPUT_SIZE = (96, 128)  # H, W
CHANNELS = (16, 32, 64, 64)
DIM = 2 * CHANNELS[-1]
WEIGHTS, ABOUT = "small_cnn.safetensors", "small_cnn.json"


class SmallCNN(nn.Module):
    """Four convolutions, then the mean and maximum of each channel over the image."""

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(zip((3, *CHANNELS), CHANNELS, strict=False)):
            stride = 2 if number < 3 else 1
            layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        generator = torch.Generator().manual_seed(seed)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, 96, 128) float in [-1, 1] to (N, 128)."""
        maps = self.body(images)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)


def resize(frames: Tensor) -> Tensor:
    """Resize (N, H, W, 3) uint8 to (N, 3, 96, 128) uint8."""
    return functional.interpolate(frames.permute(0, 3, 1, 2), size=INPUT_SIZE, mode="bilinear", antialias=True)


def normalise(images: Tensor) -> Tensor:
    """Map uint8 to float in [-1, 1]."""
    return images.float() / 127.5 - 1


def load_small_cnn(directory: str) -> tuple[SmallCNN, str]:
    """Load a trained network and the sentence about it.

    Raises:
        BackboneError: if the directory does not hold one.
    """
    network = SmallCNN()
    try:
        network.load_state_dict(load(storage.read_bytes(storage.join(directory, WEIGHTS))))
        about: str = json.loads(storage.read_bytes(storage.join(directory, ABOUT)))["about"]
    except (StorageError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise BackboneError(f"{directory} does not hold a small CNN: {str(error).splitlines()[0]}") from error
    return network.eval(), about


def save_small_cnn(network: SmallCNN, directory: str, *, about: str) -> None:
    """Save a trained network as small_cnn.safetensors and small_cnn.json, for `load_small_cnn`."""
    storage.write_atomic(storage.join(directory, WEIGHTS), save(network.state_dict()))
    storage.write_atomic(storage.join(directory, ABOUT), json.dumps({"about": about}).encode())
