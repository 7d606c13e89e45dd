"""A small CNN for where no pretrained weights can be had: seeded random, or trained on the frames of a manifest.

Letters: N frames, H height, W width, D feature length, C classes.
"""

import json
from collections.abc import Callable

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from skipreel.features.errors import BackboneError
from skipreel.pipeline import storage
from skipreel.pipeline.errors import StorageError
from skipreel.pipeline.manifest import Manifest
from skipreel.pipeline.manifest.frame_labels import frame_targets
from skipreel.pipeline.video import open_video
from skipreel.pipeline.video.sampling import Sampling

INPUT_SIZE = (96, 128)  # H, W
CHANNELS = (16, 32, 64, 64)
DIM = 2 * CHANNELS[-1]
WEIGHTS, ABOUT = "small_cnn.safetensors", "small_cnn.json"

TRAINING_RATE_HZ = 3.0
BATCH = 64
LEARNING_RATE = 3e-3


class SmallCNN(nn.Module):
    """Four convolutions, then each channel's mean and maximum over the image."""

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
        """(N, 3, 96, 128) float in [-1, 1] to (N, 128)."""
        maps = self.body(images)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)


def resize(frames: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 of any size to (N, 3, 96, 128) uint8."""
    return functional.interpolate(frames.permute(0, 3, 1, 2), size=INPUT_SIZE, mode="bilinear", antialias=True)


def normalise(images: Tensor) -> Tensor:
    """uint8 to float in [-1, 1]."""
    return images.float() / 127.5 - 1


def load_small_cnn(directory: str) -> tuple[SmallCNN, str]:
    """A trained network and what is known about it.

    Raises:
        BackboneError: when the directory holds none.
    """
    network = SmallCNN()
    try:
        network.load_state_dict(load(storage.read_bytes(storage.join(directory, WEIGHTS))))
        about: str = json.loads(storage.read_bytes(storage.join(directory, ABOUT)))["about"]
    except (StorageError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise BackboneError(f"{directory} holds no small CNN: {str(error).splitlines()[0]}") from error
    return network.eval(), about


def train_small_cnn(
    manifest: Manifest,
    directory: str,
    *,
    split: str = "train",
    epochs: int = 8,
    seed: int = 0,
    on_epoch: Callable[[int, float], None],
) -> None:
    """Train the network to name each frame's labels, and save it.

    Args:
        directory: receives small_cnn.safetensors and small_cnn.json.
        on_epoch: called with the epoch (1, 2, …) and the mean loss of its batches.
    """
    images, targets = _labelled_frames(manifest.only(split))
    torch.manual_seed(seed)
    network = SmallCNN(seed=seed)
    head = nn.Linear(DIM, targets.shape[1])
    steps = epochs * -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], lr=LEARNING_RATE)
    warm_up = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for epoch in range(1, epochs + 1):
        losses = []
        for batch in torch.split(torch.randperm(len(images)), BATCH):
            pixels = normalise(images[batch])
            if torch.rand(()) < 0.5:  # a mirrored scene shows the same actions
                pixels = pixels.flip(3)
            loss = functional.binary_cross_entropy_with_logits(head(network(pixels)), targets[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            warm_up.step()
            losses.append(loss.item())
        on_epoch(epoch, float(np.mean(losses)))
    about = f"a small CNN trained for {epochs} epochs on {len(images)} frames of the split {split!r}"
    storage.write_atomic(storage.join(directory, WEIGHTS), save(network.state_dict()))
    storage.write_atomic(storage.join(directory, ABOUT), json.dumps({"about": about}).encode())


def _labelled_frames(manifest: Manifest) -> tuple[Tensor, Tensor]:
    """(N, 3, 96, 128) uint8 and (N, C) float32: frames are kept at the network's own size, 36 kB each."""
    images, targets = [], []
    for entry in manifest.entries:
        with open_video(entry.uri) as video:
            index = Sampling(rate_hz=TRAINING_RATE_HZ).select(video.pts_seconds)
            images.append(resize(torch.from_numpy(np.stack(list(video.read_many(index.tolist()))))))
            labels = frame_targets(entry.labels, video.pts_seconds[index], num_classes=len(manifest.class_names))
            targets.append(torch.from_numpy(labels))
    return torch.cat(images), torch.cat(targets)
