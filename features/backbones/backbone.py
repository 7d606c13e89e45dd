"""`Backbone`: a network that encodes RGB frames to feature vectors, with its preprocessing.

Features are float16, as in shards, so that inference computes exactly what training reads.
Letters: T frames, H height, W width, D feature length; h and w are the size of the network's input.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skipreel.features.backbones.network import Prepare
from skipreel.features.errors import BackboneError
from skipreel.features.spec import Dtype, FeatureSpec
from skipreel.pipeline.video.sampling import Sampling

Frames = Sequence[NDArray[np.uint8]]
DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Backbone:
    """A loaded backbone.

    Attributes:
        name: the name that loaded it.
        about: one sentence for people, such as where the weights come from.
        layer: the output that the features are taken from.
        dtype: type of its weights and activations.
        dim: D.
        weights_digest: SHA-256 (hex) over names, shapes, dtypes and bytes of all loaded weights.
        preprocessing: the image preprocessing as JSON-able settings.
        prepare: maps (T, H, W, 3) uint8 to (T, 3, h, w) float32, on the device.
        network: maps the result of ``prepare`` to (T, D).
        device: where the network runs.
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
        """Number of frames to encode at once."""
        return batch_size_on(self.device.type)

    def spec(self, sampling: Sampling) -> FeatureSpec:
        """Describe the features of frames sampled with ``sampling``."""
        return FeatureSpec(
            self.name, self.weights_digest, self.preprocessing, sampling, self.dim, layer=self.layer, dtype=self.dtype
        )

    def encode(self, frames: Frames) -> NDArray[np.float16]:
        """Encode T frames, each (H, W, 3) uint8 RGB of any size, to (T, D) float16.

        Raises:
            BackboneError: if a feature is NaN or too large for float16.
        """
        encoded = np.empty((len(frames), self.dim), np.float16)
        with torch.inference_mode():
            for places, images in self._prepared(frames):
                encoded[places] = self.network(images).to("cpu", torch.float16).numpy()
        if not np.isfinite(encoded).all():
            raise BackboneError(
                f"backbone {self.name} gives features that are not float16 numbers (nan, or above 65504)"
            )
        return encoded

    def _prepared(self, frames: Frames) -> Iterator[tuple[list[int], Tensor]]:
        """Prepare frames of one size at once; yields batches of one prepared size, with positions in ``frames``."""
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
    """Number of frames to encode at once on ``cpu`` or ``cuda``: few on a CPU, where activations must fit the caches
    (MobileNet, one thread: 13 ms per frame in batches of 4, 20 to 30 ms in batches of 32), many on a GPU.
    """
    return 4 if device == "cpu" else 64
