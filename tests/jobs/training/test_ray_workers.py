"""Several workers train the network that one worker would: real processes, joined by gloo, without Ray."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from skipreel.features.batching.collate import Example, collate
from skipreel.features.feature_set.reader import Sequence
from skipreel.jobs.training.loop import build_recognizer, fit
from skipreel.jobs.training.settings import ModelSettings, Schedule

LENGTHS = (100, 3, 90, 12, 10, 41, 7)
# name: (task, videos, settings, batch size): the last batch leaves a worker or two without a video
CASES = {
    "frames": ("frames", 7, ModelSettings(hidden_size=4, budget_weight=0.01), 7),
    "frames in two steps": ("frames", 6, ModelSettings(hidden_size=4, budget_weight=0.01), 5),
    "video": ("video", 7, ModelSettings(model="skip-lstm", hidden_size=4, budget_weight=0.01), 4),
    "dense": ("frames", 4, ModelSettings(model="gru", hidden_size=4), 3),
    "mean": ("frames", 1, ModelSettings(model="mean"), 32),
    "dropout": ("frames", 7, ModelSettings(hidden_size=4, dropout=0.5), 3),
}


def examples(task: str, count: int) -> list[Example]:
    rng = np.random.default_rng(0)
    made = []
    for number, length in enumerate(LENGTHS[:count]):
        features = rng.normal(size=(length, 5)).astype(np.float16)
        sequence = Sequence(f"v{number}", np.arange(length, dtype=np.int32), np.arange(length) / 2, features)
        target = torch.tensor(number % 2) if task == "video" else torch.from_numpy(features[:, :2] > 0.5).float()
        made.append(Example(sequence, target))
    return made


def train(case: str, *, rank: int = 0, num_workers: int = 1) -> dict:
    """The gradients of the last step, the weights after it, and what was seen of the epoch."""
    task, count, settings, batch_size = CASES[case]
    videos = examples(task, count)
    recognizer = build_recognizer(settings, videos, task=task, num_classes=2).double()
    seen = []
    schedule = Schedule(epochs=1, batch_size=batch_size, max_grad_norm=1e9)
    wrap = DistributedDataParallel if num_workers > 1 else lambda module: module
    fit(
        recognizer,
        videos,
        settings=settings,
        schedule=schedule,
        on_epoch=seen.append,
        rank=rank,
        num_workers=num_workers,
        wrap=wrap,
    )
    gradients = {name: p.grad for name, p in recognizer.named_parameters() if p.grad is not None}
    return {"gradients": gradients, "weights": recognizer.state_dict(), "epoch": dataclasses.astuple(seen[0])[1:]}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    for num_workers in (2, 3):
        if rank >= num_workers:
            continue
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/{num_workers}", rank=rank, world_size=num_workers
        )
        results = {case: train(case, rank=rank, num_workers=num_workers) for case in CASES}
        results["dropout again"] = train("dropout", rank=rank, num_workers=num_workers)
        torch.save(results, f"{folder}/{num_workers}-{rank}.pt")
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=3)
    return lambda num_workers, rank: torch.load(folder / f"{num_workers}-{rank}.pt", weights_only=True)


def assert_same(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-7, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("num_workers", [2, 3])
@pytest.mark.parametrize("case", [case for case in CASES if case != "dropout"])
def test_any_number_of_workers_has_the_gradients_of_one(results, case, num_workers):
    alone = train(case)
    assert alone["gradients"]
    for rank in range(num_workers):
        together = results(num_workers, rank)[case]
        assert_same(alone["gradients"], together["gradients"])
        assert_same(alone["weights"], together["weights"])
        assert together["epoch"] == pytest.approx(alone["epoch"], rel=1e-6), "every worker knows the loss of all"


@pytest.mark.parametrize("num_workers", [2, 3])
def test_the_same_number_of_workers_gives_the_same_bits_again(results, num_workers):
    first = results(num_workers, 0)
    for name, value in first["dropout"]["weights"].items():
        assert torch.equal(value, first["dropout again"]["weights"][name])
        assert torch.equal(value, results(num_workers, 1)["dropout"]["weights"][name])
    assert not torch.equal(first["dropout"]["weights"]["head.weight"], train("dropout")["weights"]["head.weight"])


@pytest.mark.parametrize(("batch_size", "sizes"), [(5, [5, 2]), (7, [7]), (64, [7])])
@pytest.mark.parametrize("num_workers", [1, 3, 64])
def test_a_step_takes_the_batch_size_over_all_workers_together(batch_size, sizes, num_workers, monkeypatch):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda sums: sums.add_(1))
    taken = []
    monkeypatch.setattr("skipreel.jobs.training.loop.collate", lambda videos: taken.append(videos) or collate(videos))
    videos = examples("frames", 7)
    settings = ModelSettings(model="mean", seed=3)
    ids = []
    for rank in range(num_workers):
        recognizer = build_recognizer(settings, videos, task="frames", num_classes=2)
        taken.clear()
        fit(
            recognizer,
            videos,
            settings=settings,
            schedule=Schedule(epochs=1, batch_size=batch_size),
            on_epoch=lambda _: None,
            rank=rank,
            num_workers=num_workers,
        )
        ids.append([{video.sequence.video_id for video in videos} for videos in taken])
    assert [len(set.union(*step)) for step in zip(*ids, strict=True)] == sizes
