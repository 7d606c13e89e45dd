"""Frame by frame, with frames left out as it says, the online recogniser gives what a pass over all frames gives."""

import dataclasses

import numpy as np
import pytest
import torch

from skipreel.jobs.closed_loop.online import OnlineRecognizer
from skipreel.jobs.closed_loop.recognizer import predict_dense
from skipreel.models import RandomGate, StridedGate
from skipreel.models.recurrence.gates import MAX_WAIT
from skipreel.pipeline.video import open_video
from tests.support.models import BACKBONE
from tests.support.models import make_model as model
from tests.support.videos import write_video

FRAME = np.full((48, 64, 3), 90, np.uint8)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(write_video(tmp_path_factory.mktemp("videos") / "a.mp4", num_frames=60, fps=20))


def mean_model(task):
    network = model(task=task, cell="mean")
    network.recognizer.fit_standardisation(torch.full((BACKBONE.dim,), 0.1), torch.full((BACKBONE.dim,), 0.5))
    return network


def walk(recognizer, path, sampling):
    """Give it a video's frames, but those it waits for: (used (T,), scores at each step (T, C))."""
    used, scores = [], []
    with open_video(path) as video:
        index = sampling.select(video.pts_seconds)
        while recognizer.num_steps < len(index):
            at, looks = recognizer.num_steps, recognizer.num_looks
            wait = recognizer.step(video.get_frame_at(int(index[at])))
            assert recognizer.num_steps == at + 1 + wait
            used += [recognizer.num_looks > looks] + [False] * wait
            scores += [recognizer.scores] * (1 + wait)
    return np.array(used[: len(index)]), np.stack(scores[: len(index)])


def assert_equals_dense(recognizer, network, path):
    """The recogniser's key is to be the file's name."""
    dense = predict_dense(path, model=network, backbone=BACKBONE)
    used, scores = walk(recognizer, path, network.spec.sampling)
    np.testing.assert_array_equal(used, dense.used)
    is_frames = network.recognizer.config.task == "frames"
    np.testing.assert_allclose(scores if is_frames else scores[-1], dense.scores, atol=2e-4)
    assert scores.dtype == np.float32
    assert recognizer.num_looks == dense.used.sum()


@pytest.mark.parametrize("task", ["frames", "video"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_learned_gate_gives_what_the_dense_pass_gives(path, task, cell):
    for seed in range(2):
        network = model(task=task, cell=cell, seed=seed)
        recognizer = OnlineRecognizer(network, BACKBONE)
        assert_equals_dense(recognizer, network, path)
        assert 1 < recognizer.num_looks < recognizer.num_steps


@pytest.mark.parametrize("task", ["frames", "video"])
@pytest.mark.parametrize("gate", [StridedGate(2.5), RandomGate(0.6, seed=1), StridedGate(1.0)])
def test_a_control_gives_what_the_dense_pass_gives(path, gate, task):
    network = model(gate=gate, task=task)
    assert_equals_dense(OnlineRecognizer(network, BACKBONE, key="a"), network, path)


@pytest.mark.parametrize("task", ["frames", "video"])
def test_the_mean_reads_every_frame(path, task):
    network = mean_model(task)
    assert_equals_dense(OnlineRecognizer(network, BACKBONE), network, path)


@pytest.mark.parametrize("gate", [None, StridedGate(3.0)])
def test_a_reset_begins_a_new_sequence(path, gate):
    network = model(gate=gate)
    recognizer = OnlineRecognizer(network, BACKBONE)
    first = walk(recognizer, path, network.spec.sampling)
    recognizer.reset()
    assert (recognizer.num_steps, recognizer.num_looks) == (0, 0)
    with pytest.raises(ValueError, match="before the first frame"):
        _ = recognizer.scores
    again = walk(recognizer, path, network.spec.sampling)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_frame_after_the_longest_wait_is_left_alone_where_it_is_not_needed_yet():
    network = model()
    # An update in about 25,000 steps: each adds a probability of 2e-5 until they pass 0.5.
    torch.nn.init.zeros_(network.recognizer.recurrent.update_weight)
    torch.nn.init.constant_(network.recognizer.recurrent.update_bias, float(np.log(2e-5)))
    recognizer = OnlineRecognizer(network, BACKBONE)
    assert [recognizer.step(FRAME) for _ in range(2)] == [MAX_WAIT, MAX_WAIT]
    assert recognizer.num_looks == 1
    held = recognizer.scores
    rest = recognizer.step(FRAME)
    assert 4000 < rest < 6000
    assert recognizer.num_looks == 1
    np.testing.assert_array_equal(recognizer.scores, held)
    due = recognizer.num_steps
    recognizer.step(FRAME)
    assert recognizer.num_looks == 2
    # The recurrence itself, step by step in float32.
    probability = torch.sigmoid(network.recognizer.recurrent.update_bias.detach())[0].numpy()
    accumulated, steps = np.float32(0), 0
    while accumulated <= 0.5:
        accumulated, steps = accumulated + probability, steps + 1
    assert due == steps


@pytest.mark.parametrize("gate", [RandomGate(1.0), StridedGate(1e9)])
def test_a_control_that_looks_once_waits_on_and_on(gate):
    recognizer = OnlineRecognizer(model(gate=gate), BACKBONE)
    assert [recognizer.step(FRAME) for _ in range(3)] == [MAX_WAIT] * 3
    assert recognizer.num_looks == 1
    assert recognizer.num_steps == 3 * (MAX_WAIT + 1)


@pytest.mark.parametrize("key", [None, "a"])
@pytest.mark.parametrize("gate", [RandomGate(0.999, seed=5), RandomGate(0.3), StridedGate(7.3)])
def test_a_control_follows_its_schedule_for_thousands_of_steps(gate, key):
    quick = dataclasses.replace(BACKBONE, prepare=lambda x: x, network=lambda x: torch.zeros(len(x), BACKBONE.dim))
    recognizer = OnlineRecognizer(model(gate=gate), quick, key=key)
    looks = []
    while recognizer.num_steps < 1500:
        looks.append(recognizer.num_steps)
        recognizer.step(FRAME)
    expected = np.flatnonzero(gate.schedule(1500, key=key)[:, 0].numpy())
    np.testing.assert_array_equal(looks, expected)


def test_labels_are_the_classes_from_the_threshold_on_or_the_best_one():
    recognizer = OnlineRecognizer(model(), BACKBONE)
    recognizer.step(FRAME)
    scores = recognizer.scores
    order = np.argsort(-scores)
    between = float(scores[order[:2]].mean())
    assert recognizer.labels(between) == [{"class": "abc"[order[0]], "score": round(float(scores[order[0]]), 4)}]
    assert [label["class"] for label in recognizer.labels(0.0)] == ["abc"[place] for place in order]
    video = OnlineRecognizer(model(task="video"), BACKBONE)
    video.step(FRAME)
    assert [label["class"] for label in video.labels(0.99)] == ["abc"[int(video.scores.argmax())]]


@pytest.mark.parametrize(
    ("frame", "given"),
    [
        (FRAME.astype(np.float32), r"shape .* of float32"),
        (FRAME[..., 0], r"shape \(48, 64\)"),
        (np.zeros((48, 64, 4), np.uint8), r"shape \(48, 64, 4\)"),
        (FRAME[:0], r"shape \(0, 64, 3\)"),
        (FRAME.tolist(), "list"),
        (torch.from_numpy(FRAME), "Tensor"),
    ],
)
def test_what_is_no_frame_is_refused_and_costs_no_step(frame, given):
    recognizer = OnlineRecognizer(model(), BACKBONE)
    with pytest.raises(ValueError, match=f"must be a numpy array .* uint8, in RGB, got {given}"):
        recognizer.step(frame)
    assert (recognizer.num_steps, recognizer.num_looks) == (0, 0)
    recognizer.step(FRAME[:, ::-1])


def test_seconds_are_those_of_the_looks():
    recognizer = OnlineRecognizer(model(), BACKBONE)
    recognizer.step(FRAME)
    assert recognizer.seconds.encode > 0
    assert recognizer.seconds.recognise > 0
    assert recognizer.seconds.decode == 0
