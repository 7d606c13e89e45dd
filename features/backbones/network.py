"""`Network`: what every loader returns to `loading.load_backbone`, whatever the library."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from skipreel.features.backbones.preprocessing import Images, Preprocessing, says_all

Prepare = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Network:
    """A network on the CPU in float32 with its preprocessing. Letters: T frames of one size, D feature length.

    Attributes:
        module: maps (T, 3, h, w) float to (T, D), or to a dict from layer names to such tensors.
        prepare: maps (T, H, W, 3) uint8 to (T, 3, h, w) float32, both on the module's device.
        about: one sentence for people.
        preprocessing: description of ``prepare`` for the spec, JSON-able.
    """

    module: nn.Module
    prepare: Prepare
    about: str
    preprocessing: dict[str, Any]


def choose_preprocessing(
    translated: Preprocessing | None, library: Callable[[Images], Tensor], settings: dict[str, Any]
) -> tuple[Prepare, dict[str, Any]]:
    """Use ``translated``, which runs on the module's device, if it does all that ``library`` does; else ``library``.

    Args:
        library: the library's preprocessing, (T, H, W, 3) uint8 to (T, 3, h, w) float32 on the CPU.
        settings: description of ``library``.

    Returns:
        ``prepare`` and ``preprocessing`` of a Network.
    """
    if translated is not None and says_all(translated, library):
        return translated, translated.to_json()
    return lambda frames: library(frames.cpu().numpy()).to(frames.device), settings


def reason_of(error: Exception) -> str:
    """The first line of an error message, cut to 200 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 200 else f"{lines[0][:200]}…"
