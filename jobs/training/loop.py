"""Training one network: the loop that every worker runs, without Ray in it.

Letters: B batch, T steps, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skipreel.features.batching.buckets import shuffled_batches
from skipreel.features.batching.collate import Batch, Example, Task, collate, feature_statistics
from skipreel.jobs.training.settings import ModelSettings, Schedule
from skipreel.models import Recognizer, budget_loss, task_loss

FINAL_LEARNING_RATE = 0.1  # of the first


@dataclass(frozen=True, slots=True)
class Epoch:
    """One finished pass over the training split, of all workers together.

    Attributes:
        point: name of the network.
        number: 1, 2, …
        loss: task loss + budget loss.
        task_loss: without the budget term; mean over all frames and classes, or over all videos.
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
    """Train in place: any number of workers minimises the same loss over the same batches.

    Args:
        examples: all of them, in every worker.
        num_workers: with more than one, each of them calls this in torch's default process group.
        wrap: makes the module data-parallel, so that the workers' gradients are averaged.
    """
    torch.manual_seed(settings.seed * 10_007 + rank)  # dropout and random skipping differ between workers
    network = wrap(recognizer).train()
    optimizer = torch.optim.Adam([p for p in recognizer.parameters() if p.requires_grad], lr=schedule.learning_rate)
    num_steps = schedule.epochs * -(-len(examples) // schedule.batch_size)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, num_steps, eta_min=schedule.learning_rate * FINAL_LEARNING_RATE
    )
    for number in range(1, schedule.epochs + 1):
        sums = torch.zeros(6, dtype=torch.float64, device=device)
        for places in shuffled_batches(len(examples), batch_size=schedule.batch_size, seed=settings.seed, epoch=number):
            share = places[rank::num_workers]
            # The workers step together: one without a share takes a video that does not count.
            batch = collate([examples[place] for place in (share if len(share) else places[:1])])
            loss, measured = _loss(
                network, batch.to(device), recognizer.config.task, settings.budget_weight, num_workers, len(share) > 0
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(recognizer.parameters(), schedule.max_grad_norm)
            optimizer.step()
            decay.step()
            sums += measured
        task, terms, budget, videos, updates, frames = sums.tolist()
        on_epoch(Epoch(settings.name, number, task / terms + budget / videos, task / terms, updates / frames))


def _loss(
    network: nn.Module, batch: Batch, task: Task, budget_weight: float, num_workers: int, counts: bool
) -> tuple[Tensor, Tensor]:
    """What this worker differentiates: the mean of it over the workers is the loss of the whole batch.

    Args:
        counts: whether the videos of this worker count.

    Returns:
        the loss, and the sums (6,) float64 over all workers: the task's loss and its number of terms, the budget's
        loss and its number of videos, updates, frames.
    """
    logits, gates = network(batch.features, batch.lengths)
    of_task = task_loss(logits, batch.targets, batch.lengths, task=task)
    of_budget = budget_loss(gates, weight=budget_weight)
    values = (of_task.total, of_task.count, of_budget.total, of_budget.count, gates.sum(), batch.lengths.sum())
    sums = counts * torch.stack([torch.as_tensor(value, device=gates.device).detach().double() for value in values])
    if num_workers > 1:
        torch.distributed.all_reduce(sums)
    return counts * num_workers * (of_task.total / sums[1] + of_budget.total / sums[3]), sums
