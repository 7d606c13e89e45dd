"""The settings of one network (`ModelSettings`) and of its training (`Schedule`); both are flags of train."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from skipreel.features.batching.collate import Task
from skipreel.models import LearnedGate, RandomGate, RecognizerConfig, StridedGate

ModelName = Literal["skip-gru", "skip-lstm", "gru", "lstm", "mean"]


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The network.

    Attributes:
        model: skip-gru and skip-lstm learn which frames to skip; gru and lstm read every frame, or a random or strided
            part of them; mean is a linear classifier without recurrence.
        budget_weight: λ, the cost of one state update in the loss (skip models only).
        p_skip: gru and lstm only: probability that an update is skipped at random.
        stride: gru and lstm only: update every this many frames (2.5: alternately 2 and 3).
        hidden_size: number of hidden units.
        num_layers: stacked recurrent layers.
        dropout: dropout before the classifier, while training.
        seed: seed of initial weights, order of batches, dropout and random skipping.
    """

    model: ModelName = "skip-gru"
    budget_weight: float = 0.0
    p_skip: float = 0.0
    stride: float = 1.0
    hidden_size: int = 128
    num_layers: int = 1
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.budget_weight < 0:
            raise ValueError(f"--budget-weight is {self.budget_weight}, it must not be negative")
        if not self.model.startswith("skip-") and self.budget_weight:
            raise ValueError(f"--budget-weight needs a skip model, {self.model} has no gate to train")
        if self.model not in ("gru", "lstm") and (self.p_skip or self.stride != 1):
            raise ValueError(f"--p-skip and --stride are controls of gru and lstm, not of {self.model}")
        if self.p_skip and self.stride != 1:
            raise ValueError("give --p-skip or --stride, not both")
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}, it must not be negative")

    @property
    def family(self) -> str:
        """How the network chooses its frames: one of `tradeoff.FAMILIES`."""
        if self.model.startswith("skip-"):
            return "skip"
        if self.model == "mean":
            return "mean"
        return "random" if self.p_skip else "stride" if self.stride != 1 else "dense"

    @property
    def setting(self) -> str:
        """Its place within the family, in figures and tables."""
        return {
            "skip": f"λ={self.budget_weight:g}",
            "random": f"p_skip={self.p_skip:.2f}",
            "stride": f"every {self.stride:.3g}",
            "dense": "every frame",
            "mean": "mean of frames",
        }[self.family]

    @property
    def name(self) -> str:
        """A file-safe name, unique within a sweep."""
        part = {
            "skip": f"lambda-{self.budget_weight:g}",
            "random": f"random-{self.p_skip:.4f}",
            "stride": f"stride-{self.stride:.4f}",
            "dense": "dense",
            "mean": "linear",
        }[self.family]
        return f"{self.model}-{part}-seed-{self.seed}"

    def recognizer_config(self, *, task: Task, feature_dim: int, num_classes: int) -> RecognizerConfig:
        """The configuration of the recogniser."""
        gate: LearnedGate | RandomGate | StridedGate = LearnedGate()
        if self.family == "random":
            gate = RandomGate(self.p_skip, seed=self.seed)
        elif self.family in ("dense", "stride"):
            gate = StridedGate(self.stride)
        return RecognizerConfig(
            cell=self.model.removeprefix("skip-"),  # type: ignore[arg-type]
            task=task,
            feature_dim=feature_dim,
            num_classes=num_classes,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            gate=gate,
            dropout=self.dropout,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for checkpoints and MLflow."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a network is trained (Adam, β 0.9/0.999).

    Attributes:
        epochs: passes over the training split.
        batch_size: videos per step, of all workers together; the last step of an epoch may have fewer.
        learning_rate: first learning rate of Adam; it falls to a tenth along a cosine.
        max_grad_norm: gradients are clipped to this global norm.
    """

    epochs: int = 40
    batch_size: int = 32
    learning_rate: float = 1e-3
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"--epochs and --batch-size must be at least 1, got {self.epochs} and {self.batch_size}")
        if self.learning_rate <= 0 or self.max_grad_norm <= 0:
            raise ValueError("--learning-rate and --max-grad-norm must be above 0")
