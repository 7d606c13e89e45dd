"""The recurrence and its backward in plain torch operators, from update to update.

Update k of all rows that have one is a batch, each row at a step of its own. So what runs in sequence, forward and
backward, is as long as the largest number of updates of a row, not as T; skipped steps are left out of the forward, and
go into the backward all at once (models/recurrence/event/skipped.py).
"""

import torch

from skipreel.models.recurrence.event.backward_pass import Backward
from skipreel.models.recurrence.event.forward_pass import Forward
from skipreel.models.recurrence.interface import ForwardInputs, ForwardOutputs, OutputGrads, PreactivationGrads, Trace


def forward(inputs: ForwardInputs, *, save: bool) -> ForwardOutputs:
    """The whole sequence; with a trace if `save`.

    A row whose p is not a number never updates again, and ends with that p.
    """
    with torch.no_grad(), torch.autocast(inputs.x.device.type, enabled=False):
        run = Forward(inputs, save=save)
        run.run()
        return run.outputs(save=save)


def backward(
    inputs: ForwardInputs,
    trace: Trace,
    output_grads: OutputGrads,
    *,
    needs_x: bool,  # noqa: ARG001 - what it takes is always made
) -> PreactivationGrads:
    """The straight-through gradients of `forward`: those of stepping, to rounding."""
    with torch.no_grad(), torch.autocast(inputs.x.device.type, enabled=False):
        return Backward(inputs, trace, output_grads).run()
