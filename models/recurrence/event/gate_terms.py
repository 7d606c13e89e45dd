"""What the backward needs to carry the adjoints of (ũ, p) through updates and through the steps between them.

Letters: B batch, T steps, H hidden, L layers, K state vectors of a layer, E updates in all rows, S = B + E segments,
W = L·K·H + 3.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from skipreel.models.recurrence.event.skipped import skipped_steps
from skipreel.models.recurrence.interface import ForwardInputs, OutputGrads, Trace
from skipreel.models.recurrence.reference import accumulate
from skipreel.models.recurrence.segments import clamp_slope, wait_under_given_gates, waits


class GateTerms(NamedTuple):
    """Of learned gates. At an update, ũ before rounding has the adjoint e = ⟨G, s_k − s_(k−1)⟩ + ⟨terms, (a, b, 1)⟩.

    terms (E, 3); clamp (E,), κ, by which e goes on to both a and b before the update; waiting (2, S, W), a and b at a
    segment's start by what is behind it (`Skipped`), or None if no step was skipped.
    """

    terms: Tensor
    clamp: Tensor
    waiting: Tensor | None


def gate_terms(inputs: ForwardInputs, trace: Trace, output_grads: OutputGrads, *, reached: Tensor | None) -> GateTerms:
    """reached (T, B, H): the adjoint of the top layer's h at each step from its outputs, there and later."""
    batch_size = inputs.x.shape[1]
    held_for = waits(inputs, trace.index)
    accumulated = torch.zeros_like(trace.prob)
    accumulated[:batch_size] = inputs.state.accumulated
    waiting = None
    if bool((held_for > 0).any()):
        skipped = skipped_steps(inputs, trace, held_for, reached=reached, gates=output_grads.gates)
        accumulated, waiting = skipped.accumulated, skipped.coefficients
    row, step, previous, _ = trace.index[batch_size:].unbind(1)
    p_before, a_before = trace.prob[previous], accumulated[previous]
    change = trace.prob[batch_size:] - p_before
    gradient = torch.zeros_like(change) if output_grads.gates is None else output_grads.gates[step, row]
    terms = torch.stack([-accumulate(p_before, a_before), change, gradient], 1)
    return GateTerms(terms, clamp_slope(p_before, a_before), waiting)


def final_adjoint(inputs: ForwardInputs, trace: Trace, output_grads: OutputGrads) -> Tensor:
    """(B, W): the adjoint of each row's last segment: of its states, of a and b behind it, and a 1.

    With given gates a and b are those at its start, because their way back depends on no other adjoint.
    """
    num_layers, batch_size, size = inputs.state.h.shape
    vectors = [output_grads.h] if inputs.state.c is None else [output_grads.h, output_grads.c]
    states = trace.prob.new_zeros(batch_size, num_layers, len(vectors), size)
    for place, vector in enumerate(vectors):
        if vector is not None:
            states[:, :, place] = vector.transpose(0, 1)
    scalars = trace.prob.new_zeros(batch_size, 3)
    scalars[:, 2] = 1
    for place, scalar in enumerate((output_grads.accumulated, output_grads.update_prob)):
        if scalar is not None:
            scalars[:, place] = scalar
    if inputs.gates is not None and output_grads.accumulated is not None:
        _wait_under_given_gates(inputs, trace, scalars)
    return torch.cat([states.flatten(1), scalars], 1)


def _wait_under_given_gates(inputs: ForwardInputs, trace: Trace, scalars: Tensor) -> None:
    """Takes a and b, the first columns of (B, 3), to the start of each row's last segment."""
    batch_size = inputs.x.shape[1]
    is_last = torch.ones_like(trace.prob, dtype=torch.bool)
    is_last[trace.index[batch_size:, 2]] = False
    last = is_last.nonzero().flatten()
    row = trace.index[last, 0]
    a = inputs.state.accumulated[row].masked_fill(last >= batch_size, 0)
    by_a, by_p = wait_under_given_gates(trace.prob[last], a, waits(inputs, trace.index)[last])
    scalars[row, 1] += by_p * scalars[row, 0]
    scalars[row, 0] *= by_a
