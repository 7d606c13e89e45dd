"""The host side of the kernels: their arguments, their launches, and what torch's operators do before and after.

Letters: B batch, T steps, H hidden, G gate blocks, K state vectors (LSTM 2: h, c; GRU 1: h), E updates in all rows, S =
B + E segments.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from skipreel.models.recurrence.event.cells import CELLS, Cell, Layer
from skipreel.models.recurrence.event.gate_terms import final_adjoint, gate_terms
from skipreel.models.recurrence.event.jumps import jumps
from skipreel.models.recurrence.interface import ForwardInputs, ForwardOutputs, OutputGrads, PreactivationGrads, Trace
from skipreel.models.recurrence.reference import SkipState
from skipreel.models.recurrence.segments import FlatRows, row_ends, waits

MAX_HIDDEN: Final = 128
"""Recurrent weights of more units do not stay on one multiprocessor."""

_ALIGNED: Final = 4
"""Floats that are loaded at once."""
OPTIONS: Final[dict[str, Any]] = {"num_warps": 8, "num_stages": 1, "enable_fp_fusion": True}


def unsupported_reason(inputs: ForwardInputs) -> str | None:
    """Why this implementation cannot compute these inputs; None if it can."""
    layer, *upper = inputs.weights.layers
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not inputs.x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"tensors on {inputs.x.device}"
    if upper:
        return f"{1 + len(upper)} layers"
    if layer.norm_weight is not None:
        return "layer normalisation"
    if inputs.x.dtype != torch.float32:
        return str(inputs.x.dtype)
    if inputs.state.h.shape[2] > MAX_HIDDEN:
        return f"more than {MAX_HIDDEN} hidden units"
    return None


class Tiling(NamedTuple):
    """How many rows a program owns, and in what matrices are multiplied: a dtype of tensor cores, None for float32."""

    rows: int
    operand: Literal["float16", "bfloat16", "float32"] | None


def tiling(inputs: ForwardInputs) -> Tiling:
    """float32, unless torch may use TF32, with the fraction of which float16 weights fit into the registers."""
    if not inputs.x.is_cuda:
        return Tiling(16, None)
    if torch.backends.cuda.matmul.allow_tf32:
        return Tiling(8, "float16")
    processors = torch.cuda.get_device_properties(inputs.x.device).multi_processor_count
    return Tiling(1 if inputs.x.shape[1] <= 2 * processors else 2, None)


@contextmanager
def _plainly(x: Tensor) -> Iterator[None]:
    """On the device of x, with neither autograd nor autocast."""
    on_device = torch.cuda.device_of(x)  # type: ignore[no-untyped-call]
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False), on_device:
        yield


class _Slots(NamedTuple):
    """What the forward kernel fills in, a place for each row and step; the places of what rows start with come first.

    states (B, T + 1, K, H), h alone without a trace; gates (B, T), last as after the last step; saved (B, T, A, H) and
    prob (B, T + 1) for a trace. projection: W x + b at every step.
    """

    states: Tensor
    gates: Tensor
    last: SkipState
    saved: Tensor | None
    prob: Tensor | None
    projection: FlatRows


def forward(inputs: ForwardInputs, *, save: bool) -> ForwardOutputs:
    """The whole sequence; with a trace if `save`.

    A row whose p is not a number never updates again, and ends with that p.
    """
    with _plainly(inputs.x):
        cell = CELLS[inputs.cell]
        (layer,) = cell.layers(inputs)
        slots = _slots(inputs, cell, layer, save=save)
        _run(inputs, layer, slots)
        trace = _trace(inputs, cell, layer, slots) if save else None
        return ForwardOutputs(_held_output(slots), slots.last, slots.gates.t(), trace)


def _slots(inputs: ForwardInputs, cell: Cell, layer: Layer, *, save: bool) -> _Slots:
    num_steps, batch_size, _ = inputs.x.shape
    h, c, p, a = inputs.state
    vectors = [h[0]] if c is None else [h[0], c[0]]
    first = torch.stack(vectors if save else vectors[:1], 1)
    states = first.new_empty(batch_size, num_steps + 1, *first.shape[1:])
    states[:, 0] = first
    saved = prob = None
    if save:
        saved = first.new_empty(batch_size, num_steps, cell.saved_blocks, first.shape[2])
        prob = first.new_empty(batch_size, num_steps + 1)
        prob[:, 0] = p
    flat = FlatRows.of(inputs.x)
    return _Slots(
        states=states,
        gates=first.new_zeros(batch_size, num_steps),
        last=SkipState(h.clone().contiguous(), None if c is None else c.clone().contiguous(), p.clone(), a.clone()),
        saved=saved,
        prob=prob,
        projection=flat._replace(values=torch.addmm(layer.bias, flat.values, layer.weight_ih.t())),
    )


def _run(inputs: ForwardInputs, layer: Layer, slots: _Slots) -> None:
    num_steps, batch_size, _ = inputs.x.shape
    width = slots.projection.values.shape[1]
    _launch(
        "forward_kernel",
        inputs,
        slots.projection.values,
        slots.projection.per_row * width,
        slots.projection.per_step * width,
        _blocks(layer.weight_hh, transposed=True),
        layer.bias_n,
        inputs.weights.update_weight.contiguous(),
        inputs.weights.update_bias,
        row_ends(inputs).to(torch.int32),
        None if inputs.gates is None else _following(inputs),
        *slots.last,
        slots.states,
        slots.saved,
        slots.prob,
        slots.gates,
        num_steps,
        batch_size,
        SAVE=slots.saved is not None,
    )


def _launch(kernel: str, inputs: ForwardInputs, *arguments: Any, **constants: Any) -> None:
    """One of the two kernels, for all rows."""
    from skipreel.models.recurrence.triton import kernels

    rows, operand = tiling(inputs)
    size = inputs.state.h.shape[2]
    num_programs = -(-inputs.x.shape[1] // rows)
    getattr(kernels, kernel)[(num_programs,)](
        *arguments,
        CELL=inputs.cell,
        H=size,
        WIDTH=_width(size),
        STRIDE=size + -size % _ALIGNED,
        ROWS=rows,
        OPERAND=operand and kernels.OPERANDS[operand],
        GIVEN=inputs.gates is not None,
        **constants,
        **OPTIONS,
    )


def _width(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


def _blocks(weight_hh: Tensor, *, transposed: bool) -> Tensor:
    """weight_hh (G·H, H) as (G, H, H), each block transposed if asked, its rows filled up to whole vectors."""
    size = weight_hh.shape[1]
    blocks = weight_hh.view(-1, size, size)
    return F.pad(blocks.transpose(1, 2) if transposed else blocks, (0, -size % _ALIGNED)).contiguous()


def _following(inputs: ForwardInputs) -> Tensor:
    """(T + 1, B) int32: the first given update from each step on; T or more if there is none."""
    num_steps, batch_size, _ = inputs.x.shape
    place = torch.arange(num_steps * batch_size, device=inputs.x.device)
    jump = jumps(inputs)
    later = jump.following(place % batch_size, place // batch_size, inputs.state.update_prob)
    return torch.cat([jump.first(), later]).view(num_steps + 1, batch_size).to(torch.int32)


def _held_output(slots: _Slots) -> Tensor:
    """(T, B, H): at each step the h of the row's latest update."""
    batch_size, num_places, _, size = slots.states.shape
    place = torch.arange(1, num_places, device=slots.gates.device).expand(batch_size, -1)
    latest = torch.where(slots.gates > 0, place, 0).cummax(1).values
    latest += torch.arange(0, batch_size * num_places, num_places, device=place.device)[:, None]
    h = slots.states[:, :, 0].view(-1, size)
    return h.index_select(0, latest.t().flatten()).view(-1, batch_size, size)


def _trace(inputs: ForwardInputs, cell: Cell, layer: Layer, slots: _Slots) -> Trace:
    """Updates in the order of rows, and of steps within a row."""
    assert slots.saved is not None
    assert slots.prob is not None
    num_steps, batch_size, _ = inputs.x.shape
    update = slots.gates.flatten().nonzero().flatten()
    row = update // num_steps
    index = update.new_full((batch_size + update.shape[0], 4), -1)
    segment = torch.arange(index.shape[0], device=index.device)
    index[:batch_size, 0] = segment[:batch_size]
    index[batch_size:, 0] = row
    index[batch_size:, 1] = update % num_steps
    index[batch_size:, 2] = torch.where(row == index[batch_size - 1 : -1, 0], segment[batch_size - 1 : -1], row)
    place = torch.cat([segment[:batch_size] * (num_steps + 1), update + row + 1])
    states = slots.states.flatten(0, 1).index_select(0, place).unsqueeze(1)
    held = states.new_empty(0, 1, 0)
    if inputs.gates is None:
        waiting = (waits(inputs, index) > 0).nonzero().flatten()
        index[waiting, 3] = segment[: waiting.shape[0]]
        held = states.new_empty(waiting.shape[0], 1, cell.held_blocks * states.shape[3])
        cell.hold(states[:, 0, 0].index_select(0, waiting), layer, held[:, 0])
    return Trace(
        states=states,
        saved=slots.saved.view(batch_size * num_steps, 1, -1).index_select(0, update),
        held=held,
        prob=slots.prob.flatten().index_select(0, place),
        index=index,
        projection=slots.projection.by_step(num_steps),
    )


def backward(
    inputs: ForwardInputs,
    trace: Trace,
    output_grads: OutputGrads,
    *,
    needs_x: bool,  # noqa: ARG001 - what it takes is always made
) -> PreactivationGrads:
    """The straight-through gradients of `forward`: those of stepping, to rounding."""
    with _plainly(inputs.x):
        return _backward(inputs, trace, output_grads)


def _backward(inputs: ForwardInputs, trace: Trace, output_grads: OutputGrads) -> PreactivationGrads:
    batch_size, size = inputs.x.shape[1], inputs.state.h.shape[2]
    num_segments, _, vectors, _ = trace.states.shape
    cell = CELLS[inputs.cell]
    reached = None if output_grads.output is None else _segment_sums(output_grads.output, trace.index)
    gate = gate_terms(inputs, trace, output_grads, reached=reached) if inputs.gates is None else None
    waiting = None if gate is None else gate.waiting
    adjoints = final_adjoint(inputs, trace, output_grads)
    pre = trace.states.new_empty(num_segments - batch_size, 1, cell.blocks, size)
    logit = torch.empty_like(trace.prob[batch_size:])
    segments = torch.arange(num_segments, device=trace.index.device)
    last = segments.new_zeros(batch_size).scatter_reduce_(0, trace.index[:, 0], segments, "amax")
    _launch(
        "backward_kernel",
        inputs,
        trace.index.contiguous(),
        last,
        trace.states.contiguous(),
        trace.saved.contiguous(),
        trace.prob.contiguous(),
        _blocks(inputs.weights.layers[0].weight_hh, transposed=False),
        inputs.weights.update_weight.contiguous(),
        reached,
        gate and gate.terms,
        gate and gate.clamp,
        *((None, None) if waiting is None else waiting),
        adjoints,
        pre,
        logit,
        batch_size,
        WAITED=waiting is not None,
        OUTPUTS=reached is not None,
    )
    return PreactivationGrads(
        pre_activation=pre,
        logit=logit,
        states=adjoints[:, :-3].reshape(batch_size, 1, vectors, size),
        update_prob=adjoints[:, -2],
        accumulated=adjoints[:, -3],
    )


def _segment_sums(grad: Tensor, index: Tensor) -> Tensor:
    """(T, B, H): at each step, the sum of grad (T, B, H) over it and the later ones of its segment."""
    from skipreel.models.recurrence.triton import kernels

    num_steps, batch_size, size = grad.shape
    row, step, _, _ = index[batch_size:].unbind(1)
    number = index.new_zeros(num_steps, batch_size)
    number[step, row] = 1
    total = torch.empty_like(grad, memory_format=torch.contiguous_format)
    kernels.segment_sums_kernel[(batch_size,)](
        grad, *grad.stride(), number.cumsum(0), total, num_steps, batch_size, H=size, WIDTH=_width(size), STEPS=16
    )
    return total
