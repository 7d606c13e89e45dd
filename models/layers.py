"""SkipLSTM and SkipGRU: called like torch.nn.LSTM and torch.nn.GRU, with parameters named and shaped as torch's.

Letters: B batch, T steps, D features, H hidden, L layers, G gate blocks of a cell (LSTM 4, GRU 3), N of them that layer
normalisation acts on (LSTM 4, GRU 2: r and z).
"""

import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Final, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from skipreel.models.recurrence.arguments import check_arguments
from skipreel.models.recurrence.gates import (
    LEARNED,
    MAX_WAIT,
    Gate,
    LearnedGate,
    RandomGate,
    accumulate_steps,
    steps_until_update,
)
from skipreel.models.recurrence.interface import CellName
from skipreel.models.recurrence.operator import CELLS, Backend, check_backend, recurrence
from skipreel.models.recurrence.reference import LayerWeights, SkipState, SkipWeights, accumulate, candidate
from skipreel.models.recurrence.states import rows_of
from skipreel.models.recurrence.transforms import autocast_is_on
from skipreel.models.sequences import Lengths, State, as_lengths, as_state, run_packed, run_unbatched

Fetch = Callable[[Tensor, Tensor], Tensor]
"""(rows (n,) int64, steps (n,) int64) -> their samples (n, D)."""

_BIASES: Final = ("bias_ih", "bias_hh")


class _SkipLayer(nn.Module, ABC):
    """What the two layers share: parameters, checks of the arguments, the sequence and the single step."""

    gate_blocks: ClassVar[int]
    normalised_blocks: ClassVar[int]
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
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if size < 1:
                raise ValueError(f"{name} must be 1 or more, got {size}")
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

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        rows = self.gate_blocks * hidden_size
        for layer in range(num_layers):
            setattr(self, f"weight_ih_l{layer}", parameter(rows, input_size if layer == 0 else hidden_size))
            setattr(self, f"weight_hh_l{layer}", parameter(rows, hidden_size))
            if bias:
                setattr(self, f"bias_ih_l{layer}", parameter(rows))
                setattr(self, f"bias_hh_l{layer}", parameter(rows))
            if layer_norm:
                setattr(self, f"norm_weight_l{layer}", parameter(self.normalised_blocks * hidden_size))
                setattr(self, f"norm_bias_l{layer}", parameter(self.normalised_blocks * hidden_size))
        self.update_weight = parameter(1, hidden_size)
        self.update_bias = parameter(1)
        self.initial_h = parameter(num_layers, 1, hidden_size)
        if self.has_cell_state:
            self.initial_c = parameter(num_layers, 1, hidden_size)
        self.reset_parameters()

    @property
    @abstractmethod
    def cell(self) -> CellName:
        """What one layer computes."""

    @classmethod
    def from_dense(cls, dense: nn.RNNBase, *, update_bias: float = 1.0, backend: Backend = "auto") -> Self:
        """A layer with the weights of a torch.nn.LSTM or torch.nn.GRU, which it equals while every gate is open.

        Raises ValueError for a layer of another kind, a bidirectional one, or one with projections.
        """
        foreign = {
            f"the kind {type(dense).__name__}": not isinstance(dense, cls.dense_kind),
            "bidirectional=True": dense.bidirectional,
            "proj_size": dense.proj_size > 0,
        }
        found = [name for name, has in foreign.items() if has]
        if found:
            raise ValueError(
                f"{cls.__name__} takes over a torch.nn.{cls.dense_kind.__name__}, not one with {', '.join(found)}"
            )
        arguments = _arguments(dense, cast(Tensor, dense.weight_ih_l0))
        if not cls.has_cell_state:
            arguments["reset_after"] = True
        layer = cls(**arguments, update_bias=update_bias, backend=backend)
        with torch.no_grad():
            for name, parameter in dense.named_parameters():
                getattr(layer, name).copy_(parameter)
            layer.initial_h.zero_()
            if cls.has_cell_state:
                layer.initial_c.zero_()
        return layer

    def to_dense(self) -> nn.LSTM | nn.GRU:
        """torch's layer with these weights; call it with initial_h, or (initial_h, initial_c), for every row.

        Raises ValueError with layer normalisation, and for a GRU that resets before the recurrent matrix: torch has
        neither.
        """
        if self.layer_norm or self.cell == "gru":
            raise ValueError(
                f"torch has no counterpart of {self}: only without layer_norm, and for a GRU with reset_after"
            )
        dense = self.dense_kind(**_arguments(self, self.initial_h))
        with torch.no_grad():
            for name, parameter in dense.named_parameters():
                parameter.copy_(getattr(self, name))
        return dense

    @abstractmethod
    def _open_biases(self, weights: LayerWeights) -> None:
        """Sets the biases that start at 1; the others are already 0."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As the released code: Glorot-uniform per gate block, zero biases but the cell's own ones, s_0 ~ N(0, 1)."""
        for weights in self._weights().layers:
            for matrix in (weights.weight_ih, weights.weight_hh):
                for block in matrix.chunk(self.gate_blocks):
                    nn.init.xavier_uniform_(block)
            weights.bias_ih.zero_()
            weights.bias_hh.zero_()
            if weights.norm_weight is not None and weights.norm_bias is not None:
                weights.norm_weight.fill_(1)
                weights.norm_bias.zero_()
            self._open_biases(weights)
        nn.init.xavier_uniform_(self.update_weight)
        self.update_bias.fill_(self.initial_update_bias)
        self.initial_h.normal_()
        if self.has_cell_state:
            self.initial_c.normal_()

    def forward(
        self,
        x: Tensor | PackedSequence,
        state: State | None = None,
        lengths: Lengths | None = None,
        gates: Tensor | PackedSequence | None = None,
    ) -> tuple[Tensor | PackedSequence, SkipState, Tensor | PackedSequence]:
        """Runs a batch of sequences (eqs. 2–5).

        x (T, B, D), or (B, T, D) with batch_first, as are output and gates; or one sequence (T, D), with h (L, H) in
        its states, output (T, H) and gates (T,); or a PackedSequence, and then output and gates are packed alike.
        lengths (B,) integers in 0..T, the valid steps of each row. `gates` {0, 1} (T, B) take the place of the layer's
        own, for recorded ones. Random and strided gates are known beforehand, so skipped steps are not computed at all.

        `state`, a SkipState, continues where an earlier call stopped, so that chunks equal the whole. (h, c) as
        torch.nn.LSTM takes it, or h as torch.nn.GRU does, start a sequence from there instead of from the trained
        initial state: p = 1, a = 0, so the first step is an update. What is returned is a SkipState in every case.

        A float16 or bfloat16 layer computes in float32, the gates above all, and rounds output, h and c at the end;
        a sequence in chunks is rounded where it is cut.

        Returns (output, state, gates): the top layer's h (T, B, H), held while skipping and in padding; the state after
        each row's last valid step; the gates (T, B), float32 or wider, which carry the straight-through gradient and
        are 0 in padding. With gates that are given or known beforehand they carry none, unless the given ones do.

        Raises ValueError when a shape, a length or a gate is not as above; where a row becomes NaN, by x or a weight
        that is not finite; for a SkipState with a random or strided gate and no `gates`, because a state does not say
        where in the schedule it stands.
        """
        run = functools.partial(self._run, continues=isinstance(state, SkipState))
        start = None if state is None else as_state(state, has_cell_state=self.has_cell_state)
        packed = isinstance(x, PackedSequence)
        values = x.data if isinstance(x, PackedSequence) else x
        self._check_input(values)
        if lengths is not None and values.dim() == 2:
            raise ValueError(
                "lengths are for a padded batch: a PackedSequence has its own, and one sequence can be cut"
            )
        if gates is not None and isinstance(gates, PackedSequence) != packed:
            raise ValueError(f"gates must be packed where x is, and only there, got a {type(gates).__name__}")
        if isinstance(x, PackedSequence):
            return run_packed(run, x, start, cast(PackedSequence | None, gates))
        gates = cast(Tensor | None, gates)
        if gates is not None and gates.shape != x.shape[:-1]:
            raise ValueError(
                f"gates must have shape {tuple(x.shape[:-1])}, as the input's rows and steps, got {tuple(gates.shape)}"
            )
        if x.dim() == 2:
            return run_unbatched(run, x, start, gates)
        if self.batch_first:
            x = x.transpose(0, 1)
            gates = None if gates is None else gates.transpose(0, 1)
        valid = None if lengths is None else as_lengths(lengths, batch_size=x.shape[1])
        output, last, used = run(x, start, valid, gates)
        if self.batch_first:
            output, used = output.transpose(0, 1), used.transpose(0, 1)
        return output, last, used

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
            self._weights(),
            cell=self.cell,
            backend=self.backend,
            lengths=lengths,
            gates=None if gates is None else gates.to(x.device, state.update_prob.dtype),
            dropout=self._dropout(),
        )

    def step(
        self, x: Tensor, state: SkipState | None = None, *, limit: int = MAX_WAIT
    ) -> tuple[Tensor, SkipState, Tensor]:
        """One update for rows that are all due, and how long each can then be left alone (eq. 6).

        x (B, D), the next sample of each row -> (output (B, H), state, wait (B,) int64). For `wait` steps nothing need
        be read or computed: `skip(state, wait)`, then step again. wait is `limit` where no update falls within that
        many steps: pass the steps that remain. The rule is `forward`'s, the values are equal to rounding.

        Raises ValueError for a wrong shape, for rows not due, and for random or strided gates, whose updates are known
        beforehand: run `forward` on the samples that `gate.schedule` marks, with gates all 1.
        """
        self._check_learned("step")
        if x.dim() != 2 or x.shape[-1] != self.input_size or x.shape[0] < 1:
            raise ValueError(f"x must be (B, {self.input_size}) with B of 1 or more, got shape {tuple(x.shape)}")
        if autocast_is_on(x.device.type):
            x = x.to(self.initial_h.dtype)
        state = self.initial_state(x.shape[0]) if state is None else state
        weights = self._weights()
        check_arguments(x, state, weights, cell=self.cell)
        early = accumulate(state.update_prob, state.accumulated) <= 0.5
        if early.any():
            rows = early.nonzero().flatten().tolist()
            raise ValueError(f"rows {rows} are not due for an update: skip() them first, by the wait that step() gave")
        state = candidate(x, state, weights, cell=CELLS[self.cell], dropout=self._dropout())
        return state.h[-1], state, steps_until_update(state.update_prob, limit=limit) - 1

    @torch.no_grad()
    def read(self, fetch: Fetch, lengths: Tensor) -> tuple[Tensor, SkipState, Tensor]:
        """Inference that asks for its input: fetch(rows, steps) is called for the samples that the gates want alone.

        Update k of all rows is one call, so there are as many calls as the busiest row has updates. lengths (B,) int64,
        1 or more. Returns what `forward` returns for sequences of those lengths; T is the longest.

        Raises ValueError for gates that are not learned, for a length below 1, and for samples of another shape.
        """
        self._check_learned("read")
        if lengths.dim() != 1 or lengths.is_floating_point() or len(lengths) == 0 or (lengths < 1).any():
            raise ValueError(f"lengths must be (B,) integers, 1 or more, got {lengths.tolist()}")
        batch_size, num_steps = len(lengths), int(lengths.max())
        state = self.initial_state(batch_size)
        output = state.h[-1].new_empty(num_steps, batch_size, self.hidden_size)
        h, c, update_prob, accumulated = state
        last = SkipState(h.clone(), None if c is None else c.clone(), update_prob.clone(), accumulated.clone())
        gates = state.update_prob.new_zeros(num_steps, batch_size)
        rows, due = torch.arange(batch_size, device=lengths.device), torch.zeros_like(lengths)
        while len(rows) > 0:
            held, state, wait = self.step(fetch(rows, due), state, limit=num_steps)
            gates[due, rows] = 1
            wait = torch.minimum(wait, lengths[rows] - due - 1)
            ends = torch.where(due + wait + 1 == lengths[rows], num_steps, due + wait + 1)
            for row, first, end, h in zip(rows.tolist(), due.tolist(), ends.tolist(), held, strict=True):
                output[first:end, row] = h
            state = _waited(state, wait)
            last.h[:, rows] = state.h
            if last.c is not None and state.c is not None:
                last.c[:, rows] = state.c
            last.update_prob[rows], last.accumulated[rows] = state.update_prob, state.accumulated
            due = due + 1 + wait
            on = due < lengths[rows]
            rows, due, state = rows[on], due[on], rows_of(state, on)
        if self.batch_first:
            output, gates = output.transpose(0, 1), gates.transpose(0, 1)
        return output, last, gates

    def skip(self, state: SkipState, num_steps: int | Tensor) -> SkipState:
        """The state after num_steps (an int, or (B,) int64) skipped steps; only a changes (eq. 5).

        Raises ValueError for a negative number, for one that would pass an update, and for gates that are not learned.
        """
        self._check_learned("skip")
        check_arguments(None, state, self._weights(), cell=self.cell)
        count = torch.as_tensor(num_steps, device=state.accumulated.device).expand_as(state.accumulated)
        if count.min() < 0:
            raise ValueError(f"num_steps must be 0 or more, got {count.tolist()}")
        skipped = _waited(state, count)
        if ((skipped.accumulated > 0.5) & (count > 0)).any():
            raise ValueError(
                f"skipping {count.tolist()} steps would pass an update: skip at most the wait that step() gave"
            )
        return skipped

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

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, gate={self.gate}, "
            f"bias={self.bias}, dropout={self.dropout}, layer_norm={self.layer_norm}, backend={self.backend}"
        )

    def _weights(self) -> SkipWeights:
        names = LayerWeights._fields if self.layer_norm else LayerWeights._fields[:4]
        zeros = None if self.bias else self.update_weight.new_zeros(self.gate_blocks * self.hidden_size)
        layers = (
            LayerWeights(
                *(zeros if zeros is not None and name in _BIASES else getattr(self, f"{name}_l{i}") for name in names)
            )
            for i in range(self.num_layers)
        )
        return SkipWeights(tuple(layers), self.update_weight, self.update_bias)

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

    def _check_input(self, x: Tensor) -> None:
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size or 0 in x.shape:
            layout = "(B, T, D)" if self.batch_first else "(T, B, D)"
            raise ValueError(
                f"x must be {layout} with D = {self.input_size}, at least 1 step and 1 row, got shape {tuple(x.shape)}"
            )

    def _check_learned(self, method: str) -> None:
        if not isinstance(self.gate, LearnedGate):
            raise ValueError(
                f"{method}() follows a learned gate, this layer has {self.gate}: "
                "run forward on the samples that gate.schedule marks, with gates all 1"
            )


class SkipLSTM(_SkipLayer):
    """A stack of LSTM layers that share one update gate, read from the top layer's candidate c̃.

    Called like torch.nn.LSTM; weights convert both ways by name: `weight_ih_l0` (4H, D), `weight_hh_l0` (4H, H),
    `bias_ih_l0`, `bias_hh_l0` (4H,) in order i, f, g, o, and so for l1, …; beside them `update_weight` (1, H),
    `update_bias` (1,), `initial_h` and `initial_c` (L, 1, H).

    `update_bias` is where b_p starts: higher means more updates early in training. With `bias=False` the cells have no
    biases; the gate keeps its own. `dropout`, in training alone, sets outputs of all layers but the top one to 0 as
    torch.nn.LSTM does, drawn again at each step; only the reference computes it, so such training is as slow as that.
    Raises ValueError for a size below 1, and for a dropout outside 0..1.
    """

    gate_blocks = 4
    normalised_blocks = 4
    has_cell_state = True
    dense_kind = nn.LSTM
    cell = "lstm"

    def _open_biases(self, weights: LayerWeights) -> None:
        # The forget gate's; layer normalisation would take it away again, so there it is added after.
        bias = weights.bias_ih if weights.norm_bias is None else weights.norm_bias
        bias.chunk(4)[1].fill_(1)


class SkipGRU(_SkipLayer):
    """A stack of GRU layers that share one update gate, read from the top layer's candidate h̃.

    As `SkipLSTM`, with `weight_ih_l0` (3H, D), … in order r, z, n and no `initial_c`. The reset gate multiplies h
    before the recurrent matrix, as in the paper; `reset_after=True` is torch.nn.GRU's cell, for weights trained there.
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

    def _open_biases(self, weights: LayerWeights) -> None:
        weights.bias_ih[: 2 * self.hidden_size].fill_(1)  # r and z


def _waited(state: SkipState, count: Tensor) -> SkipState:
    """After `count` (B,) steps of waiting (eq. 5)."""
    return state._replace(accumulated=accumulate_steps(state.update_prob, state.accumulated, count))


def _arguments(layer: Any, like: Tensor) -> dict[str, Any]:
    """What torch's constructors and ours have in common."""
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout")
    return {**{name: getattr(layer, name) for name in names}, "device": like.device, "dtype": like.dtype}
