"""Checkpoints: what is saved comes back, what is damaged is refused in one line, and a cut-off write loses nothing."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from skipreel.models import CheckpointError, RandomGate, Recognizer, RecognizerConfig, load_checkpoint, save_checkpoint

METADATA = {"class_names": ["läuft", "sitzt"], "feature_set": "abc123", "step": 7}


def build(seed: int = 0, **kwargs: Any) -> Recognizer:
    torch.manual_seed(seed)
    recognizer = Recognizer(RecognizerConfig("lstm", "frames", 3, 2, hidden_size=4, **kwargs))
    recognizer.fit_standardisation(torch.randn(3), torch.rand(3) + 1)
    return recognizer


def same(first: Recognizer, second: Recognizer) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_saved_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    recognizer = build(num_layers=2, gate=RandomGate(0.3, seed=9), dropout=0.1).to(dtype)
    save_checkpoint(tmp_path / "runs" / "best", recognizer, METADATA)
    loaded, metadata = load_checkpoint(str(tmp_path / "runs" / "best"))
    assert same(loaded, recognizer)
    assert loaded.config == recognizer.config
    assert metadata == METADATA
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"best"}


def test_a_loaded_recogniser_answers_the_same_and_can_be_trained_further(tmp_path: Path) -> None:
    recognizer = build().eval()
    save_checkpoint(tmp_path / "c", recognizer, {})
    loaded, _ = load_checkpoint(tmp_path / "c")
    features, lengths = torch.randn(2, 5, 3), torch.tensor([5, 3])
    assert torch.equal(loaded(features, lengths).logits, recognizer(features, lengths).logits)
    loaded(features, lengths).logits.sum().backward()
    torch.optim.SGD(loaded.parameters(), lr=0.1).step()
    assert not same(loaded, recognizer)
    assert same(load_checkpoint(tmp_path / "c")[0], recognizer)


def test_an_older_checkpoint_is_replaced(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", build(0), {"step": 1})
    save_checkpoint(tmp_path / "c", build(1), {"step": 2})
    loaded, metadata = load_checkpoint(tmp_path / "c")
    assert same(loaded, build(1))
    assert metadata == {"step": 2}
    assert {path.name for path in tmp_path.iterdir()} == {"c"}


@pytest.mark.parametrize("call", range(12))
def test_a_write_cut_off_anywhere_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The process dies at its n-th call that touches the disk: every later one fails too, clean-up included."""
    save_checkpoint(tmp_path / "c", build(0), {"step": 1})
    calls = 0

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > call:
                raise InterruptedError("killed")
            return original(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        for owner, name in ((Path, "open"), (Path, "rename"), (os, "fsync"), (shutil, "rmtree")):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        try:
            save_checkpoint(tmp_path / "c", build(1), {"step": 2})
            finished = True
        except InterruptedError:
            finished = False
    loaded, metadata = load_checkpoint(tmp_path / "c")
    assert metadata["step"] in ([2] if finished else [1, 2])
    assert same(loaded, build(metadata["step"] - 1))
    save_checkpoint(tmp_path / "c", build(2), {"step": 3})
    assert same(load_checkpoint(tmp_path / "c")[0], build(2))


def rewrite(path: Path, **changes: Any) -> None:
    description = json.loads(path.read_text())
    path.write_text(json.dumps({**description, **changes}))


def replace_weights(directory: Path, weights: bytes) -> None:
    """Weights that model.json vouches for, so that the digest is not what catches them."""
    (directory / "model.safetensors").write_bytes(weights)
    rewrite(directory / "model.json", weights_sha256=hashlib.sha256(weights).hexdigest())


def wider_config() -> dict[str, Any]:
    return RecognizerConfig("lstm", "frames", 3, 2, hidden_size=10**7).to_json()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda c: (c / "model.safetensors").unlink(), "model.safetensors cannot be read"),
    "no config": (lambda c: (c / "model.json").unlink(), "model.json cannot be read"),
    "cut weights": (lambda c: (c / "model.safetensors").write_bytes(b"\0" * 20), "is not the file that model.json"),
    "cut config": (lambda c: (c / "model.json").write_text('{"config": '), "model.json is not JSON"),
    "bytes for text": (lambda c: (c / "model.json").write_bytes(b"\xff\xfe\x00\x81"), "model.json is not JSON"),
    "a list": (lambda c: (c / "model.json").write_text("[]"), "not a JSON object"),
    "no metadata": (lambda c: rewrite(c / "model.json", metadata=None), "no metadata that is a JSON dict"),
    "newer": (lambda c: rewrite(c / "model.json", format_version=2), "format version 2, this code reads 1"),
    "unknown cell": (lambda c: rewrite(c / "model.json", config={"cell": "rnn"}), "not a recogniser's configuration"),
    "another size": (lambda c: rewrite(c / "model.json", config=wider_config()), "size mismatch"),
    "not safetensors": (lambda c: replace_weights(c, b"\xff" * 64), "is damaged"),
    "another model": (lambda c: replace_weights(c, safetensors.torch.save({"a": torch.zeros(1)})), "Missing key"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    save_checkpoint(tmp_path / "c", build(), METADATA)
    damage(tmp_path / "c")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(tmp_path / "c")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "c") in str(caught.value)


def test_one_flipped_bit_in_the_weights_is_noticed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", build(), {})
    path = tmp_path / "c" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is not the file that"):
        load_checkpoint(tmp_path / "c")


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere: .*give the directory that holds"):
        load_checkpoint(tmp_path / "nowhere")


def test_what_is_not_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for target in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(CheckpointError, match="something else than a checkpoint and is left alone"):
            save_checkpoint(target, build(), {})
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("metadata", [{"model": object()}, {"score": float("nan")}])
def test_metadata_that_json_cannot_hold_is_refused_before_anything_is_touched(
    tmp_path: Path, metadata: dict[str, Any]
) -> None:
    save_checkpoint(tmp_path / "c", build(0), {"step": 1})
    with pytest.raises(CheckpointError, match="cannot be written as JSON"):
        save_checkpoint(tmp_path / "c", build(1), metadata)
    assert same(load_checkpoint(tmp_path / "c")[0], build(0))
