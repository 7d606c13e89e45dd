"""Training of the demo's backbone: a small CNN that predicts the labels of single frames.

N frames, C classes.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from skipreel.features.backbones.small_cnn import DIM, SmallCNN, normalise, resize, save_small_cnn
from skipreel.pipeline.manifest import Manifest
from skipreel.pipeline.manifest.frame_labels import frame_targets
from skipreel.pipeline.video import open_video
from skipreel.pipeline.video.sampling import Sampling

TRAINING_RATE_HZ = 3.0
BATCH = 64
LEARNING_RATE = 3e-3


def train_small_cnn(
    manifest: Manifest,
    directory: str,
    *,
    split: str = "train",
    epochs: int = 8,
    seed: int = 0,
    on_epoch: Callable[[int, float], None],
) -> None:
    """Train the network to predict the labels of each frame, and save it.

    Args:
        directory: folder for small_cnn.safetensors and small_cnn.json.
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
    save_small_cnn(network, directory, about=about)


def _labelled_frames(manifest: Manifest) -> tuple[Tensor, Tensor]:
    """Frames (N, 3, 96, 128) uint8, at the network's input size (36 kB each), and targets (N, C) float32."""
    images, targets = [], []
    for entry in manifest.entries:
        with open_video(entry.uri) as video:
            index = Sampling(rate_hz=TRAINING_RATE_HZ).select(video.pts_seconds)
            images.append(resize(torch.from_numpy(np.stack(list(video.iter_frames_at(index.tolist()))))))
            labels = frame_targets(entry.labels, video.pts_seconds[index], num_classes=len(manifest.class_names))
            targets.append(torch.from_numpy(labels))
    return torch.cat(images), torch.cat(targets)
