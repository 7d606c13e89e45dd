"""Forward and backward by the library.

Letters: B batch, T steps, H hidden, P = H rounded up to 16, L layers, E updates, S = B + E segments.
"""

import functools
from ctypes import Structure

import torch
from torch import Tensor

from skipreel.models.recurrence.cpp.build import library
from skipreel.models.recurrence.cpp.library_call import LibraryCall
from skipreel.models.recurrence.cpp.structures import (
    CForwardOutputs,
    COutputGrads,
    CPreactivationGrads,
    CTrace,
    pointer,
)
from skipreel.models.recurrence.interface import ForwardInputs, ForwardOutputs, OutputGrads, PreactivationGrads, Trace
from skipreel.models.recurrence.reference import SkipState


def unsupported_reason(inputs: ForwardInputs) -> str | None:
    """Why this implementation cannot compute these inputs; None if it can."""
    if inputs.weights.layers[0].norm_weight is not None:
        return "layer normalisation"
    if inputs.x.device.type != "cpu":
        return f"tensors on {inputs.x.device}"
    return None if library() is not None else "it could not be built, the log says why"


def forward(inputs: ForwardInputs, *, save: bool) -> ForwardOutputs:
    """The recurrence on CPU tensors, float32 or float64; `save` keeps what `backward` needs."""
    call = LibraryCall(inputs)
    num_steps, batch_size, hidden = call.num_steps, call.batch_size, call.hidden_size
    new = functools.partial(torch.empty, dtype=inputs.x.dtype)
    if inputs.x.stride(0) <= inputs.x.stride(1):  # batch first: the output gets the same layout
        output = new(batch_size, num_steps, hidden).transpose(0, 1)
    else:
        output = new(num_steps, batch_size, hidden)
    state = SkipState(
        new(inputs.state.h.shape),
        None if inputs.state.c is None else new(inputs.state.h.shape),
        new(batch_size),
        new(batch_size),
    )
    gates = new(num_steps, batch_size)
    if not save:
        call.run("forward", None, _c_outputs(output, state, gates), None)
        return ForwardOutputs(output, state, gates, None)
    capacity = batch_size * num_steps
    # Room for an update at every step; memory that is never touched is never really taken.
    states = new(batch_size + capacity, call.num_layers, call.num_states, call.padded)
    saved = new(capacity, call.num_layers, call.num_saved * call.padded)
    held = new(batch_size + capacity, call.num_layers, call.num_products * call.padded)
    prob = new(batch_size + capacity)
    index = torch.empty(batch_size + capacity, 4, dtype=torch.int64)
    projection = new(num_steps, batch_size, call.projected) if call.projects_ahead else None
    written = CTrace(*map(pointer, (states, saved, held, prob, index)), 0, 0)
    call.run("forward", projection, _c_outputs(output, state, gates), written)
    num_updates, num_segments = written.num_updates, batch_size + written.num_updates
    trace = Trace(
        states[:num_segments],
        saved[:num_updates],
        held[: written.num_held],
        prob[:num_segments],
        index[:num_segments],
        projection,
    )
    return ForwardOutputs(output, state, gates, trace)


def _c_outputs(output: Tensor, state: SkipState, gates: Tensor) -> Structure:
    return CForwardOutputs(pointer(output), output.stride(0), output.stride(1), *map(pointer, (*state, gates)))


def backward(inputs: ForwardInputs, trace: Trace, output_grads: OutputGrads, *, needs_x: bool) -> PreactivationGrads:
    """The straight-through gradients of `forward`: those of stepping, to rounding."""
    call = LibraryCall(inputs)
    dtype, num_updates = inputs.x.dtype, len(trace.saved)
    sums = call.sums() if call.sums_in_cache else None
    pre_activation = num_updates, call.num_layers, call.num_gates, call.padded
    grads = PreactivationGrads(
        pre_activation=None if sums is not None and not needs_x else torch.empty(pre_activation, dtype=dtype),
        logit=torch.empty(num_updates, dtype=dtype),
        states=torch.empty(call.batch_size, call.num_layers, call.num_states, call.padded, dtype=dtype),
        update_prob=torch.empty(call.batch_size, dtype=dtype),
        accumulated=torch.empty(call.batch_size, dtype=dtype),
    )
    output = output_grads.output
    if output is not None and output.stride(2) != 1:
        output = output.contiguous()
    others = [None if tensor is None else tensor.contiguous() for tensor in output_grads[1:]]
    c_output_grads = COutputGrads(
        pointer(output), *(output.stride()[:2] if output is not None else (0, 0)), *map(pointer, others)
    )
    c_trace = CTrace(*map(pointer, trace[:5]), num_updates, len(trace.held))
    c_grads = CPreactivationGrads(*map(pointer, (*grads[:5], sums)), 0 if sums is None else sums.shape[1])
    call.run("backward", trace.projection, c_trace, c_output_grads, c_grads)
    return grads if sums is None else grads._replace(layers=call.layer_gradients(sums.sum(0)))
