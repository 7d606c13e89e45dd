"""What the loaders of ``features.backbones.backbone`` hand over, whatever library a network comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from skipreel.features.backbones.preprocessing import Images, Preprocessing, says_all

Prepare = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Network:
    """A network on the CPU in float32, with what prepares its input. Letters: T frames of one size, D feature length.

    Attributes:
        module: from (T, 3, h, w) float to (T, D), or to a dict of layers' names with one such tensor each.
        prepare: from (T, H, W, 3) uint8 to (T, 3, h, w) float32, both on the module's device.
        about: one sentence for people.
        preprocessing: what ``prepare`` does, JSON-able, for the recipe.
    """

    module: nn.Module
    prepare: Prepare
    about: str
    preprocessing: dict[str, Any]


def preparing(
    translated: Preprocessing | None, library: Callable[[Images], Tensor], settings: dict[str, Any]
) -> tuple[Prepare, dict[str, Any]]:
    """A library's preprocessing on the module's device where ``translated`` is all of it, else the library's own.

    Args:
        library: its own, from (T, H, W, 3) uint8 to (T, 3, h, w) float32 on the CPU.
        settings: what says what it does.

    Returns:
        ``prepare`` and ``preprocessing`` of a Network.
    """
    if translated is not None and says_all(translated, library):
        return translated, translated.to_json()
    return lambda frames: library(frames.cpu().numpy()).to(frames.device), settings


def reason_of(error: Exception) -> str:
    """The first line of what a library says, and no more of it than can be read at a glance."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 200 else f"{lines[0][:200]}…"
