"""The training loop of one network, as every worker runs it; without Ray."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skipreel.features.batching.buckets import shuffled_batches
from skipreel.features.batching.collate import Batch, Example, Task, collate, feature_statistics
from skipreel.jobs.training.settings import ModelSettings, Schedule
from skipreel.models import Recognizer, budget_loss, task_loss

FINAL_LEARNING_RATE = 0.1  # as a share of the first


@dataclass(frozen=True, slots=True)
class Epoch:
    """The means over one epoch, of all workers together.

    Attributes:
        point: name of the network.
        number: 1, 2, …
        loss: task loss + budget loss.
        task_loss: mean over all frames and classes (task frames) or over all videos (task video).
        update_share: state updates per frame, 0 to 1.
    """

    point: str
    number: int
    loss: float
    task_loss: float
    update_share: float


def build_recognizer(
    settings: ModelSettings, examples: Sequence[Example], *, task: Task, num_classes: int
) -> Recognizer:
    """Make an untrained network, seeded, with the input standardisation of `examples`."""
    torch.manual_seed(settings.seed)
    dim = examples[0].sequence.features.shape[1]
    recognizer = Recognizer(settings.recognizer_config(task=task, feature_dim=dim, num_classes=num_classes))
    recognizer.fit_standardisation(*feature_statistics(examples))
    if recognizer.recurrent is not None and settings.family != "skip":
        # The gate of a control gets no gradient; data-parallel training would wait for it.
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
    """Train in place. Any number of workers minimises the same loss over the same batches.

    Args:
        examples: the whole training split, in every worker.
        on_epoch: called after each epoch.
        rank: number of this worker, from 0.
        num_workers: if more than one, each worker calls this function in torch's default process group.
        device: where the recogniser is after `wrap`.
        wrap: makes the module data-parallel, so that the gradients are averaged over the workers.
    """
    torch.manual_seed(settings.seed * 10_007 + rank)  # so that dropout and random skipping differ between workers
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
            # All workers take part in every step: one without a share takes a video that does not count.
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
    """The loss of this worker; its mean over the workers is the loss of the whole batch.

    Args:
        counts: whether the videos of this worker count.

    Returns:
        The loss, and sums (6,) float64 over all workers: task loss, number of its terms, budget loss, number of its
        videos, state updates, frames.
    """
    logits, gates = network(batch.features, batch.lengths)
    of_task = task_loss(logits, batch.targets, batch.lengths, task=task)
    of_budget = budget_loss(gates, weight=budget_weight)
    values = (of_task.total, of_task.count, of_budget.total, of_budget.count, gates.sum(), batch.lengths.sum())
    sums = counts * torch.stack([torch.as_tensor(value, device=gates.device).detach().double() for value in values])
    if num_workers > 1:
        torch.distributed.all_reduce(sums)
    return counts * num_workers * (of_task.total / sums[1] + of_budget.total / sums[3]), sums
