"""SkipLSTM and SkipGRU: called like torch.nn.LSTM and torch.nn.GRU, with parameters named and shaped as torch's.

Letters: D features, H hidden, L layers.
"""

from typing import Any

from torch import nn

from skipreel.models.layers.base import SkipRNNBase
from skipreel.models.recurrence.interface import CellName
from skipreel.models.recurrence.reference import LayerWeights


class SkipLSTM(SkipRNNBase):
    """A stack of LSTM layers that share one update gate, which reads the top layer's candidate c̃.

    Called like torch.nn.LSTM. Weights convert both ways by name: `weight_ih_l0` (4H, D), `weight_hh_l0` (4H, H),
    `bias_ih_l0` and `bias_hh_l0` (4H,) in the order i, f, g, o, and likewise for l1, …. In addition there are
    `update_weight` (1, H), `update_bias` (1,), `initial_h` and `initial_c` (L, 1, H).

    Args:
        input_size: D, 1 or more.
        hidden_size: H, 1 or more.
        num_layers: L, 1 or more.
        bias: Without it the cells have no biases; the gate keeps its own.
        batch_first: x, output and gates are (B, T, …), not (T, B, …).
        dropout: In training only, the probability that an output of a layer below the top one is set to 0, as in
            torch.nn.LSTM, drawn again at each step. Only the reference computes it, so such training is slow.
        gate: What decides about updates: "learned", a LearnedGate, a RandomGate or a StridedGate.
        layer_norm: Whether the gates of the cell are normalised.
        update_bias: Initial b_p. A higher one means more updates early in training.
        backend: The implementation; see `skipreel.models.recurrence.operator.recurrence`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: For a size below 1, a dropout outside 0..1, or an unknown backend.
    """

    gate_blocks = 4
    normalised_blocks = 4
    has_cell_state = True
    dense_kind = nn.LSTM
    cell = "lstm"

    def _open_gates(self, weights: LayerWeights) -> None:
        # The forget gate's bias. Layer normalisation would subtract it again, so there it is added afterwards.
        bias = weights.bias_ih if weights.norm_bias is None else weights.norm_bias
        bias.chunk(4)[1].fill_(1)


class SkipGRU(SkipRNNBase):
    """A stack of GRU layers that share one update gate, which reads the top layer's candidate h̃.

    As `SkipLSTM`, but with `weight_ih_l0` (3H, D), … in the order r, z, n, and without `initial_c`.

    Args:
        *args: As for `SkipLSTM`.
        reset_after: Compute torch.nn.GRU's cell, for weights that were trained there. By default the reset gate
            multiplies h before the recurrent matrix, as in the paper.
        **kwargs: As for `SkipLSTM`.
    """

    gate_blocks = 3
    normalised_blocks = 2
    has_cell_state = False
    dense_kind = nn.GRU

    def __init__(self, *args: Any, reset_after: bool = False, **kwargs: Any) -> None:
        self.reset_after = reset_after
        super().__init__(*args, **kwargs)

    @property
    def cell(self) -> CellName:
        return "gru_reset_after" if self.reset_after else "gru"

    def _open_gates(self, weights: LayerWeights) -> None:
        weights.bias_ih[: 2 * self.hidden_size].fill_(1)  # r and z
