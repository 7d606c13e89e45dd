"""The recogniser: standardisation, both tasks, the baseline, the closed loop, and what it refuses.

Letters: B batch, T steps, D features, H hidden, C classes.
"""

import json
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from skipreel.models import LearnedGate, RandomGate, Recognizer, RecognizerConfig, SkipLSTM, StridedGate
from skipreel.models.recognizer import CellName, Task
from tests.support.tolerances import assert_close

B, T, D, C = 3, 7, 4, 2

each_cell = pytest.mark.parametrize("cell", get_args(CellName))
each_task = pytest.mark.parametrize("task", get_args(Task))


def build(cell: str, task: str, **kwargs: Any) -> Recognizer:
    """Evaluation mode, float64; standardisation that is not the identity; gates that open and close."""
    torch.manual_seed(0)
    recognizer = Recognizer(RecognizerConfig(cell, task, D, C, hidden_size=5, **kwargs)).double().eval()  # type: ignore[arg-type]
    recognizer.fit_standardisation(torch.arange(D) / 2.0, 1.0 + torch.arange(D))
    if recognizer.recurrent is not None:
        with torch.no_grad():
            recognizer.recurrent.update_bias.fill_(-1.0)
    return recognizer


def batch(num_rows: int = B) -> tuple[Tensor, Tensor]:
    features = torch.randn(num_rows, T, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return features, torch.tensor([T, 2, 5])[:num_rows]


@each_cell
@each_task
def test_shapes(cell: str, task: str) -> None:
    logits, gates = build(cell, task)(*batch())
    assert logits.shape == ((B, T, C) if task == "frames" else (B, C))
    assert gates.shape == (B, T)


@each_cell
@each_task
def test_padding_and_neighbours_change_nothing(cell: str, task: str) -> None:
    recognizer = build(cell, task)
    features, lengths = batch()
    padded = features.clone()
    for row, length in enumerate(lengths.tolist()):
        padded[row, length:] = torch.nan
    logits, gates = recognizer(padded, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = recognizer(features[row : row + 1, :length], lengths[row : row + 1])
        assert_close(logits[row, :length] if task == "frames" else logits[row], alone.logits[0])
        assert torch.equal(gates[row, :length], alone.gates[0])
        assert gates[row, length:].eq(0).all()


def test_the_pieces_are_put_together_in_order() -> None:
    """Standardise, recur, classify, with the layer and the head called here one by one."""
    recognizer = build("lstm", "frames")
    features, lengths = batch()
    layer = recognizer.recurrent
    assert isinstance(layer, SkipLSTM)
    standardised = (features - torch.arange(D) / 2.0) / (1.0 + torch.arange(D))
    hidden, _, gates = layer(standardised, lengths=lengths)
    recognition = recognizer(features, lengths)
    assert_close(recognition.logits, hidden @ recognizer.head.weight.T + recognizer.head.bias)
    assert torch.equal(recognition.gates, gates)
    video = build("lstm", "video")
    video.load_state_dict(recognizer.state_dict())
    last = torch.stack([recognition.logits[row, length - 1] for row, length in enumerate(lengths.tolist())])
    assert_close(video(features, lengths).logits, last)


def test_the_baseline_classifies_the_mean_of_the_valid_frames() -> None:
    recognizer = build("mean", "video")
    features, lengths = batch()
    recognition = recognizer(features, lengths)
    for row, length in enumerate(lengths.tolist()):
        mean = ((features[row, :length] - torch.arange(D) / 2.0) / (1.0 + torch.arange(D))).mean(0)
        assert_close(recognition.logits[row], recognizer.head(mean))
    assert recognition.gates.sum(1).tolist() == lengths.tolist()


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@each_task
def test_the_closed_loop_reads_what_forward_uses_and_says_the_same(cell: str, task: str) -> None:
    recognizer = build(cell, task, num_layers=2)
    features, _ = batch(1)
    logits, gates = recognizer(features, torch.tensor([T]))
    state, t, used = None, 0, []
    scores = torch.empty(0)
    while t < T:
        used.append(t)
        scores, state, wait = recognizer.step(features[:, t], state, limit=T - t - 1)
        if task == "frames":
            assert_close(scores.expand(int(wait) + 1, -1), logits[0, t : t + int(wait) + 1])
        state = recognizer.skip(state, wait)
        t += int(wait) + 1
    assert used == gates[0].nonzero().flatten().tolist()
    assert 1 < len(used) < T
    if task == "video":
        assert_close(scores, logits)


def test_features_of_another_dtype_are_taken() -> None:
    recognizer = build("gru", "video").float()
    features, lengths = batch()
    half = features.half()
    assert_close(recognizer(half, lengths).logits, recognizer(half.float(), lengths).logits)


def test_dropout_acts_in_training_only() -> None:
    recognizer = build("mean", "video", dropout=0.5)
    assert torch.equal(recognizer(*batch()).logits, recognizer(*batch()).logits)
    recognizer.train()
    assert not torch.equal(recognizer(*batch()).logits, recognizer(*batch()).logits)


def test_gates_can_be_given() -> None:
    recorded = torch.zeros(B, T)
    recorded[:, 0] = 1
    assert torch.equal(build("gru", "video")(*batch(), gates=recorded).gates, recorded.double())
    with pytest.raises(ValueError, match="the mean cell reads every frame and takes no gates"):
        build("mean", "video")(*batch(), gates=recorded)


def test_a_constant_feature_is_only_centred() -> None:
    recognizer = build("mean", "video")
    recognizer.fit_standardisation(torch.ones(D), torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert recognizer.feature_std.tolist() == [1, 1, 2, 3]
    with pytest.raises(ValueError, match=r"mean must have shape \(4,\), the feature dimension, got \(3,\)"):
        recognizer.fit_standardisation(torch.ones(3), torch.ones(D))
    with pytest.raises(ValueError, match="std must be finite"):
        recognizer.fit_standardisation(torch.ones(D), torch.full((D,), torch.inf))
    with pytest.raises(ValueError, match="std must not be negative"):
        recognizer.fit_standardisation(torch.ones(D), -torch.ones(D))


@each_cell
def test_malformed_batches_are_refused(cell: str) -> None:
    recognizer = build(cell, "frames")
    features, lengths = batch()
    with pytest.raises(ValueError, match=r"features of dimension 4, got shape \(3, 7, 5\)"):
        recognizer(torch.zeros(B, T, D + 1), lengths)
    for bad in (torch.nan, torch.inf):
        broken = features.clone()
        broken[2, 4, 1] = bad
        with pytest.raises(ValueError, match="features of row 2 are not finite, first at frame 4"):
            recognizer(broken, lengths)
    with pytest.raises(ValueError, match=r"every row must have 1\.\.7 frames, got lengths \[7, 0, 5\]"):
        recognizer(features, torch.tensor([7, 0, 5]))
    with pytest.raises(ValueError, match=r"every row must have 1\.\.7 frames, got lengths \[7, 8, 5\]"):
        recognizer(features, torch.tensor([7, 8, 5]))
    with pytest.raises(ValueError, match="the batch is empty: 0 rows of 7 frames"):
        recognizer(torch.zeros(0, T, D), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"lengths must be \(3,\) integers"):
        recognizer(features, lengths.float())


def test_a_broken_frame_is_refused_in_the_closed_loop_too() -> None:
    recognizer = build("gru", "frames")
    with pytest.raises(ValueError, match="features of row 1 are not finite"):
        recognizer.step(torch.tensor([[0.0] * D, [torch.nan] * D]))
    for other in (build("mean", "frames"), build("gru", "frames", gate=StridedGate(2))):
        with pytest.raises(ValueError, match="stepping needs a gru or lstm with a learned gate"):
            other.step(torch.zeros(1, D))


configs = st.builds(
    RecognizerConfig,
    cell=st.sampled_from(["gru", "lstm"]),
    task=st.sampled_from(["frames", "video"]),
    feature_dim=st.integers(1, 4096),
    num_classes=st.integers(1, 400),
    hidden_size=st.integers(1, 512),
    num_layers=st.integers(1, 4),
    gate=st.one_of(
        st.just(LearnedGate()),
        st.builds(RandomGate, p_skip=st.floats(0, 1), seed=st.integers(0, 2**40)),
        st.builds(StridedGate, stride=st.floats(1, 1000)),
    ),
    dropout=st.floats(0, 1, exclude_max=True),
)


@given(configs)
def test_a_config_survives_json(config: RecognizerConfig) -> None:
    assert RecognizerConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "rnn"}, "cell must be one of gru, lstm, mean, got 'rnn'"),
        ({"task": "clip"}, "task must be one of frames, video, got 'clip'"),
        ({"feature_dim": 0}, "feature_dim must be a whole number, 1 or more, got 0"),
        ({"num_layers": 1.5}, "num_layers must be a whole number, 1 or more, got 1.5"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"gate": "learned"}, "gate must be an object with a kind, got 'learned'"),
        ({"gate": {"kind": "strided", "stride": 0.5}}, "stride must be a finite number"),
        ({"cell": "mean", "gate": {"kind": "strided", "stride": 2}}, "the mean cell reads every frame"),
        ({"colour": "red"}, "not a recogniser's configuration: .*colour"),
    ],
)
def test_a_malformed_config_is_refused(change: dict[str, Any], message: str) -> None:
    good = RecognizerConfig("gru", "frames", D, C).to_json()
    with pytest.raises(ValueError, match=message):
        RecognizerConfig.from_json({**good, **change})
