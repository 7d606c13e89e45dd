"""One call of the library: the sizes of its buffers, its inputs as C wants them, and the error where memory ran out.

Letters: H hidden, P = H rounded up to 16, L layers.
"""

import ctypes
from ctypes import Structure, c_void_p
from typing import Final

import torch
from torch import Tensor

from skipreel.models.recurrence.cpp.build import library
from skipreel.models.recurrence.cpp.structures import CForwardInputs, pointer
from skipreel.models.recurrence.interface import CellName, ForwardInputs
from skipreel.models.recurrence.reference import LayerWeights

_CELLS: Final[dict[CellName, int]] = {"lstm": 0, "gru": 1, "gru_reset_after": 2}
_BLOCKS: Final[dict[CellName, tuple[int, int, int, int]]] = {  # GATES, STATES, PRODUCTS and SAVED of cell.h
    "lstm": (4, 2, 4, 4),
    "gru": (3, 1, 2, 3),
    "gru_reset_after": (3, 1, 3, 4),
}
_PAD: Final = 16
_SUM_IN_CACHE: Final = 2 * 1024 * 1024
"""Bytes of all weights up to which every thread sums their gradients while the updates are in its cache. Beyond it the
pre-activation gradients of all updates are kept, for one large product."""
_PROJECT_AHEAD: Final = 512 * 1024
"""Bytes of input weights above which W x is computed for all steps at once: a core's cache does not hold them, and the
rows that update together are too few to pay for reading them."""


class LibraryCall:
    """Keeps alive what the pointers point to."""

    def __init__(self, inputs: ForwardInputs) -> None:
        self.num_steps, self.batch_size, self.input_size = inputs.x.shape
        self.cell, self.dtype, self.element_size = inputs.cell, inputs.x.dtype, inputs.x.element_size()
        self.num_layers, _, self.hidden_size = inputs.state.h.shape
        self.padded = -(-self.hidden_size // _PAD) * _PAD
        self.num_gates, self.num_states, self.num_products, self.num_saved = _BLOCKS[inputs.cell]
        self.projected = self.num_gates * self.padded
        self.projects_ahead = self.input_size * self.projected * self.element_size > _PROJECT_AHEAD
        self._suffix = {torch.float32: "float", torch.float64: "double"}[inputs.x.dtype]
        x = inputs.x if inputs.x.stride(2) == 1 else inputs.x.contiguous()
        dense = [None if tensor is None else tensor.detach().contiguous() for tensor in inputs.state]
        weights = [tensor.detach().contiguous() for layer in inputs.weights.layers for tensor in layer[:4]]
        gate = [tensor.detach().contiguous() for tensor in inputs.weights[1:]]
        choice = [
            None if tensor is None else tensor.to(kind).contiguous()
            for tensor, kind in ((inputs.lengths, torch.int64), (inputs.gates, torch.uint8))
        ]
        self._alive = [x, *dense, *weights, *gate, *choice]
        self._inputs = CForwardInputs(
            torch.get_num_threads(),
            self.num_steps,
            self.batch_size,
            self.input_size,
            self.hidden_size,
            self.num_layers,
            _CELLS[inputs.cell],
            pointer(x),
            x.stride(0),
            x.stride(1),
            *map(pointer, dense),
            (c_void_p * len(weights))(*map(pointer, weights)),
            *map(pointer, gate),
            *map(pointer, choice),
        )

    def _widths(self) -> list[int]:
        """What each layer reads, padded."""
        return [-(-self.input_size // _PAD) * _PAD] + [self.padded] * (self.num_layers - 1)

    @property
    def sums_in_cache(self) -> bool:
        return sum(self._widths()) * self.projected * self.element_size <= _SUM_IN_CACHE

    def sums(self) -> Tensor:
        """Zeros for the gradients of all layers' weights, a row for each block of rows."""
        each = [self.projected * (width + self.padded + 1) + self.padded for width in self._widths()]
        return torch.zeros(min(self._inputs.num_threads, self.batch_size), sum(each), dtype=self.dtype)

    def layer_gradients(self, sums: Tensor) -> tuple[LayerWeights, ...]:
        """The gradients that `sums` holds, laid out as `add_weight_gradients` of backward.h does."""
        layers = []
        hidden = self.hidden_size
        for depth, width in enumerate(self._widths()):
            sizes = [self.projected * width, self.projected * self.padded, self.projected, self.padded]
            *blocks, b_hn = torch.split(sums[: sum(sizes)], sizes)
            sums = sums[sum(sizes) :]
            by_input, by_hidden, bias = (block.view(self.num_gates, self.padded, -1)[:, :hidden] for block in blocks)
            bias_ih = bias.flatten()
            bias_hh = bias_ih.clone()
            if self.cell == "gru_reset_after":
                bias_hh[2 * hidden :] = b_hn[:hidden]
            read = hidden if depth else self.input_size
            layers.append(
                LayerWeights(
                    by_input[:, :, :read].flatten(0, 1), by_hidden[:, :, :hidden].flatten(0, 1), bias_ih, bias_hh
                )
            )
        return tuple(layers)

    def run(self, direction: str, projection: Tensor | None, *others: Structure | None) -> None:
        self._inputs.projection = pointer(projection)
        compiled = library()
        assert compiled is not None, "`unsupported_reason` comes first"
        function = getattr(compiled, f"skip_rnn_{direction}_{self._suffix}")
        structures = [None if each is None else ctypes.byref(each) for each in others]
        if function(ctypes.byref(self._inputs), *structures) != 0:
            raise MemoryError(
                f"not enough memory for the {direction} pass of a Skip RNN: {self.num_layers} layers of "
                f"{self.hidden_size} hidden units, {self.batch_size} rows of {self.num_steps} steps; "
                "use fewer rows or shorter sequences, or raise the memory limit"
            )
