"""What the loaders of ``features.backbones`` hand over, whatever library a network comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from features.preprocessing import Preprocessing

Prepare = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Network:
    """A network on the CPU in float32, with what prepares its input. Letters: T frames of one size, D feature length.

    Attributes:
        module: from (T, 3, h, w) float to (T, D), or to a dict of layers' names with one such tensor each.
        prepare: from (T, H, W, 3) uint8 to (T, 3, h, w) float32, both on the module's device.
        about: one sentence for people.
        settings: JSON-able, says what ``prepare`` does where that is no Preprocessing.
    """

    module: nn.Module
    prepare: Prepare
    about: str
    settings: dict[str, Any] | None = None

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What ``prepare`` does, for the recipe."""
        if isinstance(self.prepare, Preprocessing):
            return self.prepare.to_json()
        return self.settings or {}
