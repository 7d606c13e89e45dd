"""The recogniser: from frame features to class scores and the frames that it asked for.

Letters: B batch, T steps, D features, H hidden, C classes.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from skipreel.models.layers import SkipGRU, SkipLSTM
from skipreel.models.recurrence.gates import LEARNED, MAX_WAIT, Gate, LearnedGate, gate_from_json, gate_to_json
from skipreel.models.recurrence.reference import SkipState, valid_steps

CellName = Literal["gru", "lstm", "mean"]
Task = Literal["frames", "video"]

_LAYERS: Final[dict[str, type[SkipGRU] | type[SkipLSTM]]] = {"gru": SkipGRU, "lstm": SkipLSTM}


@dataclass(frozen=True)
class RecognizerConfig:
    """What a recogniser is made of.

    Attributes:
        cell: "gru" and "lstm" are Skip RNNs. "mean" is the baseline without recurrence: a linear classifier on the mean
            of all frames ("video") or on each frame ("frames"), without hidden_size, num_layers and gate.
        task: "frames" scores every step, with several labels at once; "video" the whole, with one label.
        feature_dim: D.
        num_classes: C.
        hidden_size: H.
        num_layers: Of the Skip RNN.
        gate: What decides about updates.
        dropout: Before the classifier, at least 0 and below 1.

    Raises:
        ValueError: When a value is not allowed.
    """

    cell: CellName
    task: Task
    feature_dim: int
    num_classes: int
    hidden_size: int = 128
    num_layers: int = 1
    gate: Gate = LEARNED
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, value, allowed in (("cell", self.cell, CellName), ("task", self.task, Task)):
            if value not in get_args(allowed):
                raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {value!r}")
        for name in ("feature_dim", "num_classes", "hidden_size", "num_layers"):
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} must be a whole number, 1 or more, got {size!r}")
        if not isinstance(self.gate, Gate):
            raise ValueError(f"gate must be a LearnedGate, RandomGate or StridedGate, got {self.gate!r}")
        if self.cell == "mean" and self.gate != LEARNED:
            raise ValueError(f"the mean cell reads every frame and has no gate, leave gate out; got {self.gate}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain values that json can write; `from_json` makes an equal config of them."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "gate": gate_to_json(self.gate)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RecognizerConfig":
        """The config of `to_json`; ValueError for unknown or missing fields and for values not allowed."""
        fields = dict(data)
        if "gate" in fields:
            if not isinstance(fields["gate"], Mapping):
                raise ValueError(f"gate must be an object with a kind, got {fields['gate']!r}")
            fields["gate"] = gate_from_json(fields["gate"])
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"not a recogniser's configuration: {error}") from None


class Recognition(NamedTuple):
    """What a recogniser returns.

    Attributes:
        logits: (B, T, C) for task "frames", (B, C) for "video".
        gates: (B, T), 1 where a frame was used, 0 in padding.
    """

    logits: Tensor
    gates: Tensor


class Recognizer(nn.Module):
    """Standardised features, a Skip RNN, dropout, a linear classifier.

    The buffers `feature_mean` and `feature_std` (D,) are saved with the weights. They start at 0 and 1, so features
    stay as they are until `fit_standardisation`.
    """

    feature_mean: Tensor
    feature_std: Tensor
    recurrent: SkipGRU | SkipLSTM | None

    def __init__(self, config: RecognizerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("feature_mean", torch.zeros(config.feature_dim))
        self.register_buffer("feature_std", torch.ones(config.feature_dim))
        if config.cell == "mean":
            self.recurrent = None
            head_size = config.feature_dim
        else:
            self.recurrent = _LAYERS[config.cell](
                config.feature_dim, config.hidden_size, config.num_layers, batch_first=True, gate=config.gate
            )
            head_size = config.hidden_size
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(head_size, config.num_classes)

    @torch.no_grad()
    def fit_standardisation(self, mean: Tensor, std: Tensor) -> None:
        """Sets the training features' mean and standard deviation, each (D,); a feature with std 0 is only centred.

        Raises:
            ValueError: For another shape, a value that is not finite, or a negative std.
        """
        dim = self.config.feature_dim
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != (dim,):
                raise ValueError(f"{name} must have shape ({dim},), the feature dimension, got {tuple(value.shape)}")
            if not value.isfinite().all():
                raise ValueError(f"{name} must be finite, got NaN or infinity")
        if (std < 0).any():
            raise ValueError("std must not be negative")
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(torch.where(std > 0, std, torch.ones_like(std)))

    def forward(self, features: Tensor, lengths: Tensor, *, gates: Tensor | None = None) -> Recognition:
        """Scores a batch of sequences.

        For "frames" the logits of skipped steps come from the held output, and those of padded steps have no meaning.
        For "video" they come from the last valid step.

        Args:
            features: (B, T, D) of any float dtype; padding is never read.
            lengths: (B,) int64 in 1..T.
            gates: {0, 1} (B, T), used in place of the config's.

        Raises:
            ValueError: For an empty batch or row, another feature dimension, or NaN or infinity in a valid frame.
        """
        x, valid = self._prepare(features, lengths)
        if self.recurrent is not None:
            hidden, _, used = self.recurrent(x, lengths=lengths, gates=gates)
            # The output is held through padding, so the last step of all is each row's last valid one.
            hidden = hidden if self.config.task == "frames" else hidden[:, -1]
        elif gates is not None:
            raise ValueError("the mean cell reads every frame and takes no gates")
        else:
            used = valid.to(x.dtype)
            hidden = x if self.config.task == "frames" else x.sum(1) / valid.sum(1, keepdim=True)
        return Recognition(self.head(self.dropout(hidden)), used)

    def step(
        self, feature: Tensor, state: SkipState | None = None, *, limit: int = MAX_WAIT
    ) -> tuple[Tensor, SkipState, Tensor]:
        """One frame of rows that are all due: feature (B, D) -> (logits (B, C), state, wait (B,) int64).

        The next `wait` frames need not be decoded or encoded: `skip(state, wait)`, then step again. See `SkipLSTM.step`
        for `limit` and for what is raised; the mean cell cannot step.
        """
        if feature.dim() != 2 or feature.shape[-1] != self.config.feature_dim:
            raise ValueError(f"a step takes (B, {self.config.feature_dim}), got shape {tuple(feature.shape)}")
        finite = feature.isfinite()
        if not finite.all():
            raise ValueError(f"features of row {int(finite.logical_not().nonzero()[0, 0])} are not finite")
        x = (feature.to(self.feature_mean.dtype) - self.feature_mean) / self.feature_std
        output, state, wait = self._stepping().step(x, state, limit=limit)
        return self.head(self.dropout(output)), state, wait

    def skip(self, state: SkipState, num_steps: int | Tensor) -> SkipState:
        """The state after num_steps skipped frames, an int or (B,) int64; see `SkipLSTM.skip`."""
        return self._stepping().skip(state, num_steps)

    def _stepping(self) -> SkipGRU | SkipLSTM:
        if self.recurrent is None or not isinstance(self.config.gate, LearnedGate):
            raise ValueError(
                f"stepping needs a gru or lstm with a learned gate, "
                f"this is a {self.config.cell} with {self.config.gate}: call forward"
            )
        return self.recurrent

    def _prepare(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Checked, standardised features with zeros in padding (B, T, D), and where they are valid (B, T) bool."""
        dim = self.config.feature_dim
        if features.dim() != 3 or features.shape[-1] != dim:
            raise ValueError(f"the recogniser takes features of dimension {dim}, got shape {tuple(features.shape)}")
        batch_size, num_steps = features.shape[:2]
        if batch_size < 1 or num_steps < 1:
            raise ValueError(f"the batch is empty: {batch_size} rows of {num_steps} frames")
        if lengths.shape != (batch_size,) or lengths.is_floating_point():
            raise ValueError(f"lengths must be ({batch_size},) integers, got {tuple(lengths.shape)} of {lengths.dtype}")
        if ((lengths < 1) | (lengths > num_steps)).any():
            raise ValueError(f"every row must have 1..{num_steps} frames, got lengths {lengths.tolist()}")
        valid = valid_steps(lengths, num_steps=num_steps, batch_size=batch_size, device=features.device).T
        bad = (~features.isfinite()).any(-1) & valid
        if bad.any():
            row, step = bad.nonzero()[0].tolist()
            raise ValueError(f"features of row {row} are not finite, first at frame {step}")
        x = (features.to(self.feature_mean.dtype) - self.feature_mean) / self.feature_std
        return x.masked_fill(~valid[:, :, None], 0), valid
