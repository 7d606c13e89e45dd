"""`Preprocessing`: resizes, crops, scales and normalises frames on the backbone's device; `says_all` checks one.

Letters: T frames of one size, H height and W width of a frame, h and w of the network's input.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Interpolation = Literal["bilinear", "bicubic"]
INTERPOLATIONS = get_args(Interpolation)
Images = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """The preprocessing of most image models; the steps run in the order of the fields.

    Attributes:
        resize: (h, w); or the shorter edge in pixels, which keeps the aspect ratio; or None.
        interpolation: the filter of the resize, antialiased like Pillow's.
        crop: (h, w) around the centre, padded with black if the image is smaller; or None.
        crop_rounding: ``floor`` puts the larger half of an odd margin to the bottom and right, as transformers does;
            ``half_even`` makes the offset even, as torchvision and timm do.
        scale: factor of the pixels, 0 … 255.
        mean: of red, green and blue; subtracted from the scaled pixels.
        std: of red, green and blue; divides the result.

    Raises:
        ValueError: if the interpolation is unknown or ``std`` has a zero.
    """

    resize: tuple[int, int] | int | None
    interpolation: Interpolation = "bilinear"
    crop: tuple[int, int] | None = None
    crop_rounding: Literal["floor", "half_even"] = "floor"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r} is not one of {', '.join(INTERPOLATIONS)}")
        if not all(self.std):
            raise ValueError(f"std {self.std} would divide by zero")

    def __call__(self, frames: Tensor) -> Tensor:
        """Map (T, H, W, 3) uint8 to (T, 3, h, w) float32 on the same device."""
        images = self._resized(frames.permute(0, 3, 1, 2))
        if self.crop is not None:
            images = _crop(images, self.crop, half_even=self.crop_rounding == "half_even")
        mean, std = (torch.tensor(values, device=frames.device)[:, None, None] for values in (self.mean, self.std))
        return images.float().mul_(self.scale).sub_(mean).div_(std)

    def to_json(self) -> dict[str, Any]:
        """Convert to a dict as ``json`` reads it back: with lists instead of tuples."""
        fields: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return fields

    def _resized(self, images: Tensor) -> Tensor:
        """Resize uint8 to uint8: in integers on a CPU, like Pillow; in floats on a GPU, which has no other filters."""
        if self.resize is None:
            return images
        size = self.resize if isinstance(self.resize, tuple) else _shorter_edge(self.resize, *images.shape[2:])
        if images.device.type == "cpu":
            return functional.interpolate(images, size=size, mode=self.interpolation, antialias=True)
        resized = functional.interpolate(images.float(), size=size, mode=self.interpolation, antialias=True)
        return resized.round_().clamp_(0, 255).to(torch.uint8)


def _shorter_edge(edge: int, height: int, width: int) -> tuple[int, int]:
    if height < width:
        return edge, int(edge * width / height)
    return int(edge * height / width), edge


def _crop(images: Tensor, size: tuple[int, int], *, half_even: bool) -> Tensor:
    margins: list[int] = []
    for have, want in zip(images.shape[2:], size, strict=True):
        before = round((have - want) / 2) if half_even else (have - want) // 2
        margins = [-before, -(have - want - before), *margins]  # pad takes the last dimension first
    return functional.pad(images, margins)


def says_all(preprocessing: Preprocessing, library: Callable[[Images], Tensor]) -> bool:
    """Whether ``preprocessing``, translated from a library's settings, does all that the library does.

    Both run on noise. An offset of a pixel, another channel order or another crop differ by tens of levels of 255; the
    rounding of Pillow and of torch differ by less than half a level on average.

    Args:
        library: the library's preprocessing, (T, H, W, 3) uint8 to (T, 3, h, w) float32.
    """
    generator = np.random.default_rng(0)
    level = torch.tensor(preprocessing.std)[:, None, None] / preprocessing.scale
    for shape in ((301, 400), (459, 300), (40, 64)):
        frame = generator.integers(0, 256, (1, *shape, 3), dtype=np.uint8)
        ours, theirs = preprocessing(torch.from_numpy(frame)), library(frame)
        if ours.shape != theirs.shape or ((ours - theirs) * level).abs().mean((0, 2, 3)).max() > 1:
            return False
    return True
