import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    CLIPModel,
    MobileNetV1ImageProcessorPil,
    MobileNetV1Model,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTMAEConfig,
    ViTMAEModel,
)

from skipreel.features.backbones.loading import load_backbone
from skipreel.features.backbones.preprocessing import Preprocessing
from skipreel.features.errors import BackboneError
from skipreel.pipeline.video.sampling import Sampling
from tests.support.backbone_models import FAMILIES, IMAGE, VIT, assert_close, frames, save, saved_models  # noqa: F401

MOBILENET = Path(__file__).parents[4] / "shared" / "data" / "weights" / "mobilenet_v1_0.75_224"


def expected(family, directory):
    """The library's own layers of three frames, by its own preprocessing and forward."""
    model, processor = FAMILIES[family]
    tower = model().from_pretrained(directory).eval()
    tower = getattr(tower, "vision_model", tower)
    with torch.no_grad():
        output = tower(**processor()(frames(3), return_tensors="pt"))
    hidden, pooled = output.last_hidden_state, getattr(output, "pooler_output", None)
    layers = {"pooled": hidden.mean((2, 3)) if pooled is None else pooled.flatten(1)}
    if family in ("ViT", "DINOv2", "CLIP"):
        layers |= {"cls": hidden[:, 0], "mean": hidden[:, 1:].mean(1)}
    if family == "SigLIP":
        layers["mean"] = hidden.mean(1)
    return {name: values.numpy() for name, values in layers.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_the_librarys_own_preprocessing_and_forward(family, saved):
    layers = expected(family, saved(family))
    for layer, wanted in layers.items():
        backbone = load_backbone(f"hf:{saved(family)}", layer=layer)
        assert (backbone.layer, backbone.dim) == (layer, wanted.shape[1])
        assert isinstance(backbone.prepare, Preprocessing) == (family != "MobileViT")  # which wants blue first
        assert_close(backbone.encode(frames(3)), wanted)
    with pytest.raises(BackboneError, match=rf"has no layer 'fc7'; it has: {', '.join(layers)}$"):
        load_backbone(f"hf:{saved(family)}", layer="fc7")


@pytest.mark.skipif(not MOBILENET.exists(), reason="the real MobileNet (../shared/data/weights) is not here")
def test_a_real_mobilenet_is_the_librarys_own():
    processor = MobileNetV1ImageProcessorPil.from_pretrained(MOBILENET)
    with torch.no_grad():
        output = MobileNetV1Model.from_pretrained(MOBILENET).eval()(**processor(frames(3), return_tensors="pt"))
    backbone = load_backbone(f"hf:{MOBILENET}")
    assert backbone.dim == 768
    assert_close(backbone.encode(frames(3)), output.pooler_output.flatten(1).numpy())


def test_an_untrained_pooler_is_no_layer(tmp_path):
    """A classifier's file has no pooler; transformers would fill in random numbers, others each time."""
    save(tmp_path, ViTForImageClassification(ViTConfig(**VIT)), ViTImageProcessorPil(size=IMAGE))
    with pytest.raises(BackboneError, match="no layer 'pooled'; it has: cls, mean"):
        load_backbone(f"hf:{tmp_path}")
    first, again = (load_backbone(f"hf:{tmp_path}", layer="cls") for _ in range(2))
    assert first.weights_digest == again.weights_digest


def test_a_model_that_hides_patches_at_random_has_no_layer(tmp_path):
    save(tmp_path, ViTMAEModel(ViTMAEConfig(**VIT)), ViTImageProcessorPil(size=IMAGE))
    with pytest.raises(BackboneError, match="has no layer 'mean'"):
        load_backbone(f"hf:{tmp_path}", layer="mean")


def test_only_the_image_tower_is_loaded(saved, tmp_path):
    CLIPModel.from_pretrained(saved("CLIP")).vision_model.save_pretrained(tmp_path)
    shutil.copy(saved("CLIP") / "preprocessor_config.json", tmp_path)
    both, tower = (load_backbone(f"hf:{directory}") for directory in (saved("CLIP"), tmp_path))
    assert both.spec(Sampling(2.0)).feature_set_id == tower.spec(Sampling(2.0)).feature_set_id
    np.testing.assert_array_equal(both.encode(frames(2)), tower.encode(frames(2)))


def test_a_hub_id_offline_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        BackboneError, match=r"cannot load backbone hf:nobody/nothing: .*give a hub id, or a dir"
    ) as raised:
        load_backbone("hf:nobody/nothing")
    assert "\n" not in str(raised.value)


def damage(directory, damaged):
    weights = directory / "model.safetensors"
    if damaged == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damaged == "pickled":
        weights.unlink()
        torch.save({}, directory / "pytorch_model.bin")
    elif damaged == "its own code":
        config = json.loads((directory / "config.json").read_text())
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
        (directory / "config.json").write_text(json.dumps(config))
    elif damaged == "of a smaller model":
        ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(directory / "small")
        shutil.copy(directory / "small" / "model.safetensors", weights)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("truncated", "cannot load"),
        ("pickled", "cannot load"),
        ("its own code", "cannot load"),
        ("of a smaller model", r"its file lacks \d+ of the model's weights, .* \(encoder"),
    ],
)
def test_weights_that_are_damaged_or_could_run_code_are_refused(damaged, message, saved, tmp_path):
    shutil.copytree(saved("ResNet"), tmp_path, dirs_exist_ok=True)
    damage(tmp_path, damaged)
    with pytest.raises(BackboneError, match=message) as raised:
        load_backbone(f"hf:{tmp_path}")
    assert "\n" not in str(raised.value)
