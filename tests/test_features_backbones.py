import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetModel, ViTImageProcessorPil

from feature_sets import two_class_corpus  # noqa: F401
from features.backbones import load_backbone
from features.errors import BackboneError
from features.small_cnn import load_small_cnn, train_small_cnn
from pipeline.manifest import Label, Manifest, VideoEntry
from videos import write_video


def frames(count: int, *, height: int = 60, width: int = 80) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A tiny transformers model with its image processor, saved as a hub directory is."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("resnet")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(directory)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(directory)
    return directory


def test_random_weights_follow_from_the_seed():
    first, again, other = (load_backbone(name) for name in ("random:0", "random:0", "random:1"))
    assert first.weights_digest == again.weights_digest != other.weights_digest
    np.testing.assert_array_equal(first.encode(frames(3)), again.encode(frames(3)))


def test_a_frame_is_encoded_the_same_alone_and_in_a_batch():
    backbone = load_backbone("random:0")
    together = backbone.encode(frames(5))
    assert together.shape == (5, backbone.dim)
    assert together.dtype == np.float16
    alone = np.concatenate([backbone.encode([frame]) for frame in frames(5)])
    np.testing.assert_allclose(alone.astype(float), together.astype(float), rtol=2e-3, atol=1e-3)


def test_hugging_face_features_are_the_librarys_own(resnet):
    backbone = load_backbone(f"hf:{resnet}")
    model, processor = ResNetModel.from_pretrained(resnet).eval(), ViTImageProcessorPil.from_pretrained(resnet)
    with torch.no_grad():
        expected = model(**processor(frames(3), return_tensors="pt")).pooler_output.flatten(1)
    assert backbone.dim == 16
    np.testing.assert_allclose(backbone.encode(frames(3)), expected.numpy(), rtol=1e-3, atol=1e-3)


def test_a_trained_small_cnn_is_saved_and_learns_its_frames(tmp_path):
    write_video(tmp_path / "a.mp4", num_frames=40, fps=10)
    labels = (Label(0, 0.0, 1.9), Label(1, 2.0, 4.0))
    manifest = Manifest((VideoEntry("a", str(tmp_path / "a.mp4"), "train", 4.0, labels),), ("first", "second"))
    losses = []
    for name in ("one", "two"):
        train_small_cnn(manifest, str(tmp_path / name), epochs=6, on_epoch=lambda _, loss: losses.append(loss))
    assert losses[5] < 0.7 * losses[0]
    assert losses[:6] == losses[6:]
    network, about = load_small_cnn(str(tmp_path / "one"))
    assert "6 epochs on 12 frames" in about
    first, again = (load_backbone(f"small:{tmp_path / name}") for name in ("one", "two"))
    assert first.weights_digest == again.weights_digest
    assert not network.training


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50", "give one of hf:…, timm:…, small:…, random:…, module:function"),
        ("random:x", "whole number"),
        ("hf:/nowhere", "cannot load backbone hf:/nowhere"),
        ("small:/nowhere", "/nowhere holds no small CNN"),
    ],
)
def test_a_backbone_that_is_not_there_is_one_clear_line(name, message):
    with pytest.raises(BackboneError, match=message):
        load_backbone(name)
