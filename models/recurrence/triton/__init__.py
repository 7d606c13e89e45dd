"""The recurrence and its backward on a GPU: what runs in sequence is one Triton kernel each way.

A program of the kernel owns a few rows and takes them from update to update, as models/recurrence/event does with
the whole batch, but launches nothing in between. What is not a sequence, such as W x + b of all steps, which inference
computes too, and what skipped steps do to the gates' gradients, stays with torch's operators.
"""

from skipreel.models.recurrence.triton.launch import backward, forward, unsupported_reason

__all__ = ["backward", "forward", "unsupported_reason"]
