"""Speed of a backbone from frames in host memory, against its forward pass alone: part of `benchmarks.gpu`."""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.timing import Row, paired, ratio
from skipreel.features.backbones.backbone import batch_size_on
from skipreel.features.backbones.loading import load_backbone
from skipreel.features.spec import Dtype

FRAME = (480, 854, 3)
TARGET = 0.9
# Relative to the largest feature: sums have another order, and a GPU resizes in floats, a CPU in integers.
TOLERANCE = {"float32": 2e-2, "bfloat16": 1e-1}


def write_resnet50(directory: Path) -> Path:
    """Save a ResNet-50 with random weights and ImageNet's preprocessing as a hub directory."""
    from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetModel

    torch.manual_seed(0)
    ResNetModel(ResNetConfig()).save_pretrained(directory)
    ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875).save_pretrained(directory)
    return directory


def thumbnail() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Make a backbone that takes almost no time: mean colours of a 4×4 grid over every 16th pixel."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()), _every_16th_pixel


def _every_16th_pixel(frames: Tensor) -> Tensor:
    return frames[:, ::16, ::16].permute(0, 3, 1, 2).float() / 255


def compare(name: str, device: str, *, rounds: int, label: str) -> list[Row]:
    """Print and return, by dtype, the rate from frame to feature as a share of the forward pass's rate.

    Raises:
        SystemExit: if features differ from those of the CPU in float32.
    """
    rng = np.random.default_rng(0)
    frames = list(rng.integers(0, 256, (batch_size_on(device), *FRAME), np.uint8))
    expected = load_backbone(name).encode(frames[:4]).astype(np.float32)
    rows = []
    for dtype in get_args(Dtype):
        backbone = load_backbone(name, device=device, dtype=dtype)
        found = backbone.encode(frames).astype(np.float32)[:4]
        worst = float(np.abs(found - expected).max() / np.abs(expected).max())
        print(f"{name} {dtype}: largest difference from the CPU's float32 {worst:.4f}")
        if not worst <= TOLERANCE[dtype]:
            raise SystemExit(f"{name} in {dtype} differs from the CPU: nothing is timed")
        pixels = torch.from_numpy(np.stack(frames)).to(device)
        functions: dict[str, Callable[[], object]] = {
            "forward": partial(_inference, backbone.network, backbone.prepare(pixels)),
            "prepare": partial(_inference, backbone.prepare, pixels),
            "encode": partial(backbone.encode, frames),
        }
        times = paired(functions, rounds=rounds, wait=torch.cuda.synchronize if device == "cuda" else lambda: None)
        rates = {part: len(frames) / statistics.median(seconds) for part, seconds in times.items()}
        share, low, high = ratio(times["forward"], times["encode"])
        print(
            f"  frames/s: {rates['encode']:.0f} from host memory, {rates['forward']:.0f} forward alone, "
            f"{rates['prepare']:.0f} resized alone; share {share:.2f} ({low:.2f}–{high:.2f}), target {TARGET}",
            flush=True,
        )
        key = f"gpu/{label}/{name.rpartition('/')[2]}/{dtype}"
        rows.append(Row(key, "frames/s", rates["encode"], rates["forward"], share, TARGET, label))
    return rows


def _inference(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.inference_mode():
        return function(images)
