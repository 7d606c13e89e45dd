"""Training one network: the loop that every worker runs, without Ray in it.

Letters: B batch, T steps, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from features.batches import Batch, Example, Task, collate, feature_statistics
from jobs.points import ModelSettings, Schedule
from models import Recognizer, budget_loss, task_loss

FINAL_LEARNING_RATE = 0.1  # of the first


@dataclass(frozen=True, slots=True)
class Epoch:
    """One finished pass over the training split, as seen by one worker.

    Attributes:
        point: name of the network.
        number: 1, 2, …
        loss: task loss + budget loss, mean over batches.
        task_loss: without the budget term.
        update_share: updates per frame, 0 to 1.
    """

    point: str
    number: int
    loss: float
    task_loss: float
    update_share: float


def build_recognizer(
    settings: ModelSettings, examples: Sequence[Example], *, task: Task, num_classes: int
) -> Recognizer:
    """A seeded, untrained network whose input standardisation fits ``examples``."""
    torch.manual_seed(settings.seed)
    dim = examples[0].sequence.features.shape[1]
    recognizer = Recognizer(settings.recognizer_config(task=task, feature_dim=dim, num_classes=num_classes))
    recognizer.fit_standardisation(*feature_statistics(examples))
    if recognizer.recurrent is not None and settings.family != "skip":
        # A control's gate is not learned: data-parallel training waits for the gradient of every trainable parameter.
        recognizer.recurrent.update_weight.requires_grad_(False)
        recognizer.recurrent.update_bias.requires_grad_(False)
    return recognizer


def fit(
    recognizer: Recognizer,
    examples: Sequence[Example],
    *,
    settings: ModelSettings,
    schedule: Schedule,
    on_epoch: Callable[[Epoch], None],
    rank: int = 0,
    num_workers: int = 1,
    device: str = "cpu",
    wrap: Callable[[Recognizer], nn.Module] = lambda module: module,
) -> None:
    """Train in place. ``wrap`` makes the module data-parallel; the batch is split evenly over the workers."""
    torch.manual_seed(settings.seed * 10_007 + rank)  # dropout and random skipping differ between workers
    network = wrap(recognizer).train()
    # Padding the last batch would repeat videos; the sampler does so only to make the workers' shares equal.
    sampler: DistributedSampler[Example] = DistributedSampler(
        examples,  # type: ignore[arg-type]
        num_replicas=num_workers,
        rank=rank,
        seed=settings.seed,
    )
    loader: DataLoader[Batch] = DataLoader(
        examples,  # type: ignore[arg-type]
        batch_size=max(1, schedule.batch_size // num_workers),
        sampler=sampler,
        collate_fn=collate,
    )
    optimizer = torch.optim.Adam([p for p in recognizer.parameters() if p.requires_grad], lr=schedule.learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, schedule.epochs * len(loader), eta_min=schedule.learning_rate * FINAL_LEARNING_RATE
    )
    for number in range(1, schedule.epochs + 1):
        sampler.set_epoch(number)
        sums = torch.zeros(3)
        frames = 0
        for batch in loader:
            losses, updates = _step(network, recognizer, batch, settings, schedule, optimizer, device)
            decay.step()
            sums += torch.stack([*losses, updates]).detach().cpu()
            frames += int(batch.lengths.sum())
        count = len(loader)
        on_epoch(Epoch(settings.name, number, float(sums[0]) / count, float(sums[1]) / count, float(sums[2]) / frames))


def _step(
    network: nn.Module,
    recognizer: Recognizer,
    batch: Batch,
    settings: ModelSettings,
    schedule: Schedule,
    optimizer: torch.optim.Optimizer,
    device: str,
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    lengths = batch.lengths.to(device)
    logits, gates = network(batch.features.to(device), lengths)
    of_task = task_loss(logits, batch.targets.to(device), lengths, task=recognizer.config.task)
    loss = of_task + budget_loss(gates, weight=settings.budget_weight)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(recognizer.parameters(), schedule.max_grad_norm)
    optimizer.step()
    return (loss, of_task), gates.sum()
