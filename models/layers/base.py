"""What SkipLSTM and SkipGRU share: their parameters, whole sequences, single steps, conversion from and to torch.

Letters: B batch, T steps, D features, H hidden, L layers, G gate blocks of a cell (LSTM 4, GRU 3), N of them that layer
normalisation acts on (LSTM 4, GRU 2: r and z).
"""

import functools
import warnings
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from skipreel.models.layers import stepping
from skipreel.models.layers.parameters import (
    check_dense,
    common_arguments,
    copy_parameters,
    gather_weights,
    initialise,
    parameter_shapes,
)
from skipreel.models.layers.sequences import Lengths, State, as_state, run_sequences
from skipreel.models.recurrence.gates import LEARNED, MAX_WAIT, Gate, LearnedGate, RandomGate
from skipreel.models.recurrence.interface import CellName
from skipreel.models.recurrence.operator import Backend, check_backend, recurrence
from skipreel.models.recurrence.reference import LayerWeights, SkipState, SkipWeights
from skipreel.models.recurrence.transforms import autocast_is_on


class SkipRNNBase(nn.Module, ABC):
    """The counterpart of torch.nn.RNNBase; see `SkipLSTM` for the arguments."""

    gate_blocks: ClassVar[int]  # G
    normalised_blocks: ClassVar[int]  # N
    dense_kind: ClassVar[type[nn.LSTM] | type[nn.GRU]]
    has_cell_state: ClassVar[bool]

    update_weight: nn.Parameter
    update_bias: nn.Parameter
    initial_h: nn.Parameter
    initial_c: nn.Parameter

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        gate: Gate | Literal["learned"] = LEARNED,
        layer_norm: bool = False,
        update_bias: float = 1.0,
        backend: Backend = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shapes = parameter_shapes(
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            gate_blocks=self.gate_blocks,
            normalised_blocks=self.normalised_blocks if layer_norm else 0,
            bias=bias,
            has_cell_state=self.has_cell_state,
        )
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be at least 0 and at most 1, got {dropout}")
        if dropout > 0 and num_layers == 1:
            warnings.warn(f"dropout={dropout} acts between layers, and there is only 1: it does nothing", stacklevel=2)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = dropout
        self.gate = LEARNED if gate == "learned" else gate
        self.layer_norm = layer_norm
        self.initial_update_bias = update_bias
        self.backend = check_backend(backend)
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @property
    @abstractmethod
    def cell(self) -> CellName:
        """What one layer computes."""

    @abstractmethod
    def _open_gates(self, weights: LayerWeights) -> None:
        """Sets the biases of one layer that start at 1; the others are already 0."""

    @classmethod
    def from_dense(cls, dense: nn.RNNBase, *, update_bias: float = 1.0, backend: Backend = "auto") -> Self:
        """A layer with the weights of a torch.nn.LSTM or torch.nn.GRU, which it equals while every gate is open.

        Raises:
            ValueError: For a layer of another kind, a bidirectional one, or one with projections.
        """
        check_dense(dense, kind=cls.dense_kind, name=cls.__name__)
        arguments = common_arguments(dense, like=cast(Tensor, dense.weight_ih_l0))
        if not cls.has_cell_state:
            arguments["reset_after"] = True
        layer = cls(**arguments, update_bias=update_bias, backend=backend)
        copy_parameters(dense, layer, names=dense.state_dict())
        nn.init.zeros_(layer.initial_h)
        if cls.has_cell_state:
            nn.init.zeros_(layer.initial_c)
        return layer

    def to_dense(self) -> nn.LSTM | nn.GRU:
        """torch's layer with these weights; call it with initial_h, or (initial_h, initial_c), for every row.

        Raises:
            ValueError: With layer normalisation, and for a GRU that resets before the recurrent matrix: torch has
                neither.
        """
        if self.layer_norm or self.cell == "gru":
            raise ValueError(
                f"torch has no counterpart of {self}: only without layer_norm, and for a GRU with reset_after"
            )
        dense = self.dense_kind(**common_arguments(self, like=self.initial_h))
        copy_parameters(self, dense, names=dense.state_dict())
        return dense

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As the released code: Glorot-uniform per gate block, biases 0 except the cell's own ones, s_0 ~ N(0, 1)."""
        weights = self.weights()
        initialise(weights, gate_blocks=self.gate_blocks, update_bias=self.initial_update_bias)
        for layer in weights.layers:
            self._open_gates(layer)
        self.initial_h.normal_()
        if self.has_cell_state:
            self.initial_c.normal_()

    def weights(self) -> SkipWeights:
        """The parameters as `models.recurrence` takes them, with zeros for missing biases."""
        return gather_weights(self)

    def initial_state(self, batch_size: int) -> SkipState:
        """The trained s_0 for every row, with (p, a) = (1, 0): the first step is always an update."""
        gate_dtype = torch.promote_types(self.initial_h.dtype, torch.float32)
        ones = torch.ones(batch_size, dtype=gate_dtype, device=self.initial_h.device)
        return SkipState(
            h=self.initial_h.expand(-1, batch_size, -1),
            c=self.initial_c.expand(-1, batch_size, -1) if self.has_cell_state else None,
            update_prob=ones,
            accumulated=torch.zeros_like(ones),
        )

    def forward(
        self,
        x: Tensor | PackedSequence,
        state: State | None = None,
        lengths: Lengths | None = None,
        gates: Tensor | PackedSequence | None = None,
    ) -> tuple[Tensor | PackedSequence, SkipState, Tensor | PackedSequence]:
        """Runs a batch of sequences (eqs. 2–5).

        A float16 or bfloat16 layer computes in float32, the gates above all, and rounds output, h and c at the end;
        a sequence in chunks is rounded where it is cut. Random and strided gates are known beforehand, so skipped
        steps are not computed at all.

        Args:
            x: (T, B, D), or (B, T, D) with batch_first; or one sequence (T, D); or a PackedSequence.
            state: A SkipState continues where an earlier call stopped, so that chunks equal the whole. (h, c) as for
                torch.nn.LSTM, or h as for torch.nn.GRU, starts a sequence from there instead of from the trained
                initial state: p = 1, a = 0, so the first step is an update. For one sequence h is (L, H).
            lengths: (B,) integers in 0..T, the valid steps of each row.
            gates: {0, 1} (T, B), used instead of the layer's own, as recorded ones are.

        Returns:
            output: The top layer's h (T, B, H), held while skipping and in padding; (T, H) for one sequence. Output
                and gates are laid out or packed as x is.
            state: A SkipState, after each row's last valid step.
            gates: (T, B), or (T,) for one sequence; float32 or wider, and 0 in padding. They carry the
                straight-through gradient, except where they are given (unless the given ones do) or known beforehand.

        Raises:
            ValueError: When a shape, a length or a gate is not as above; where a row becomes NaN, through x or a weight
                that is not finite; for a SkipState with a random or strided gate and no `gates`, because a state does
                not say where in the schedule it stands.
        """
        run = functools.partial(self._run, continues=isinstance(state, SkipState))
        start = None if state is None else as_state(state, has_cell_state=self.has_cell_state)
        values = x.data if isinstance(x, PackedSequence) else x
        if values.dim() not in (2, 3) or values.shape[-1] != self.input_size or 0 in values.shape:
            layout = "(B, T, D)" if self.batch_first else "(T, B, D)"
            raise ValueError(
                f"x must be {layout} with D = {self.input_size}, at least 1 step and 1 row, "
                f"got shape {tuple(values.shape)}"
            )
        return run_sequences(run, x, start, lengths, gates, batch_first=self.batch_first)

    def _run(
        self, x: Tensor, state: SkipState | None, lengths: Tensor | None, gates: Tensor | None, *, continues: bool
    ) -> tuple[Tensor, SkipState, Tensor]:
        """As `forward`, for x (T, B, D)."""
        if autocast_is_on(x.device.type):
            x = x.to(self.initial_h.dtype)  # so that the gate decides in float32 here too
        num_steps, batch_size = x.shape[:2]
        if gates is None and not isinstance(self.gate, LearnedGate):
            gates = self._scheduled(num_steps, batch_size=batch_size, continues=continues)
        state = self.initial_state(batch_size) if state is None else state
        return recurrence(
            x,
            state,
            self.weights(),
            cell=self.cell,
            backend=self.backend,
            lengths=lengths,
            gates=None if gates is None else gates.to(x.device, state.update_prob.dtype),
            dropout=self._dropout(),
        )

    def _dropout(self) -> float:
        return self.dropout if self.training and self.num_layers > 1 else 0.0

    def _scheduled(self, num_steps: int, *, batch_size: int, continues: bool) -> Tensor:
        assert not isinstance(self.gate, LearnedGate)
        if continues:
            raise ValueError(
                f"a state does not say where in the schedule of {self.gate} it stands: "
                "pass gates=, the part of gate.schedule(...) that belongs to this chunk"
            )
        if isinstance(self.gate, RandomGate) and self.training:
            return self.gate.sample(num_steps, batch_size=batch_size)
        return self.gate.schedule(num_steps, batch_size=batch_size)

    def step(
        self, x: Tensor, state: SkipState | None = None, *, limit: int = MAX_WAIT
    ) -> tuple[Tensor, SkipState, Tensor]:
        """One update of rows that are all due, and the number of steps each can then skip (eq. 6).

        For `wait` steps nothing needs to be read or computed: `skip(state, wait)`, then step again. The rule is
        `forward`'s; the values are equal to rounding.

        Args:
            x: (B, D), the next sample of each row.
            state: The state of these rows; None at the start of a sequence.
            limit: The wait where no update falls within that many steps. Pass the number of steps that remain.

        Returns:
            output: (B, H).
            state: After the update.
            wait: (B,) int64.

        Raises:
            ValueError: For a wrong shape, for rows that are not due, and for random or strided gates, whose updates are
                known beforehand: run `forward` on the samples that `gate.schedule` marks, with gates all 1.
        """
        self._check_learned("step")
        if x.dim() != 2 or x.shape[-1] != self.input_size or x.shape[0] < 1:
            raise ValueError(f"x must be (B, {self.input_size}) with B of 1 or more, got shape {tuple(x.shape)}")
        if autocast_is_on(x.device.type):
            x = x.to(self.initial_h.dtype)
        state = self.initial_state(x.shape[0]) if state is None else state
        return stepping.step(x, state, self.weights(), cell=self.cell, dropout=self._dropout(), limit=limit)

    def skip(self, state: SkipState, num_steps: int | Tensor) -> SkipState:
        """The state after skipped steps; only a changes (eq. 5).

        Args:
            state: As `step` returned it.
            num_steps: An int, or (B,) int64.

        Raises:
            ValueError: For a negative number, for one that would pass an update, and for gates that are not learned.
        """
        self._check_learned("skip")
        return stepping.skip(state, num_steps, self.weights(), cell=self.cell)

    def _check_learned(self, method: str) -> None:
        if not isinstance(self.gate, LearnedGate):
            raise ValueError(
                f"{method}() follows a learned gate, this layer has {self.gate}: "
                "run forward on the samples that gate.schedule marks, with gates all 1"
            )

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, gate={self.gate}, "
            f"bias={self.bias}, dropout={self.dropout}, layer_norm={self.layer_norm}, backend={self.backend}"
        )
