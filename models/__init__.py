"""Skip RNN layers, the recogniser built on them, its losses, metrics, cost model and checkpoints.

Needs only torch, numpy and safetensors.
"""

from skipreel.models.checkpoint import (
    CheckpointError,
    check_replaceable,
    load_checkpoint,
    pack_checkpoint,
    save_checkpoint,
    write_checkpoint,
)
from skipreel.models.cost import Cost, multiply_accumulates
from skipreel.models.layers import SkipGRU, SkipLSTM
from skipreel.models.losses import Summed, budget_loss, task_loss
from skipreel.models.metrics import accuracy, average_precision, mean_average_precision
from skipreel.models.recognizer import Recognition, Recognizer, RecognizerConfig
from skipreel.models.recurrence.gates import LearnedGate, RandomGate, StridedGate, steps_until_update
from skipreel.models.recurrence.reference import SkipState
from skipreel.models.recurrence.states import rows_of, stack_states

__all__ = [
    "CheckpointError",
    "Cost",
    "LearnedGate",
    "RandomGate",
    "Recognition",
    "Recognizer",
    "RecognizerConfig",
    "SkipGRU",
    "SkipLSTM",
    "SkipState",
    "StridedGate",
    "Summed",
    "accuracy",
    "average_precision",
    "budget_loss",
    "check_replaceable",
    "load_checkpoint",
    "mean_average_precision",
    "multiply_accumulates",
    "pack_checkpoint",
    "rows_of",
    "save_checkpoint",
    "stack_states",
    "steps_until_update",
    "task_loss",
    "write_checkpoint",
]
