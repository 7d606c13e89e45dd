"""What a prediction cost: counts that are always reported together, and the work of one update."""

import dataclasses
from dataclasses import dataclass
from typing import Final, Literal

_GATE_BLOCKS: Final = {"lstm": 4, "gru": 3}


@dataclass(frozen=True)
class Cost:
    """Counts for one sequence, or summed over several with `+`. None means not measured, in a sum too.

    Attributes:
        frames_total: All frames on the sampling grid.
        frames_wanted: Those that the gate asked for.
        frames_decoded: More than wanted where the codec needs a frame's neighbours.
        frames_encoded: Those that went through the CNN.
        state_updates: Updates of the recurrent state.
        frames_converted: Decoded frames that were converted to RGB.

    Raises:
        ValueError: For a negative count, or more frames wanted than there are.
    """

    frames_total: int
    frames_wanted: int
    frames_decoded: int | None
    frames_encoded: int | None
    state_updates: int
    frames_converted: int | None = None

    def __post_init__(self) -> None:
        for name, count in dataclasses.asdict(self).items():
            if count is not None and count < 0:
                raise ValueError(f"{name} must be 0 or more, got {count}")
        if self.frames_wanted > self.frames_total:
            raise ValueError(f"frames_wanted {self.frames_wanted} is more than frames_total {self.frames_total}")

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            frames_total=self.frames_total + other.frames_total,
            frames_wanted=self.frames_wanted + other.frames_wanted,
            frames_decoded=_add(self.frames_decoded, other.frames_decoded),
            frames_encoded=_add(self.frames_encoded, other.frames_encoded),
            state_updates=self.state_updates + other.state_updates,
            frames_converted=_add(self.frames_converted, other.frames_converted),
        )


def _add(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second


def multiply_accumulates(
    cell: Literal["gru", "lstm"], *, input_size: int, hidden_size: int, num_layers: int = 1
) -> int:
    """Multiply-accumulates of one update, matrix products only, as the paper counts "inference FLOPs".

    4·H·(H + I) for each LSTM layer, 3·H·(H + I) for a GRU; I is input_size in the first layer and H above.

    Raises:
        ValueError: For another cell or a size below 1.
    """
    if cell not in _GATE_BLOCKS:
        raise ValueError(f"cell must be one of {', '.join(_GATE_BLOCKS)}, got {cell!r}")
    if min(input_size, hidden_size, num_layers) < 1:
        raise ValueError(
            f"sizes must be 1 or more, got input_size={input_size}, hidden_size={hidden_size}, num_layers={num_layers}"
        )
    inputs = input_size + (num_layers - 1) * hidden_size
    return _GATE_BLOCKS[cell] * hidden_size * (num_layers * hidden_size + inputs)
