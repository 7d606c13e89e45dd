"""Tiny models of many families, saved in the hub's format, and frames to encode."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    ConvNextConfig,
    ConvNextImageProcessorPil,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    MobileNetV1Config,
    MobileNetV1ImageProcessorPil,
    MobileNetV1Model,
    MobileNetV2Config,
    MobileNetV2ImageProcessorPil,
    MobileNetV2Model,
    MobileViTConfig,
    MobileViTImageProcessorPil,
    MobileViTModel,
    ResNetConfig,
    ResNetModel,
    SegformerConfig,
    SegformerImageProcessorPil,
    SegformerModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

# Relative to the largest feature. Single resized pixels may differ by one level of 255 (see test_preprocessing), and
# float16 rounds by 0.0005; an image shifted by a pixel differs far more.
TOLERANCE = 0.005

IMAGE = {"height": 32, "width": 32}
VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def crop_of(processor):
    return processor(size={"shortest_edge": 36}, crop_size=IMAGE)


FAMILIES = {
    "ResNet": (
        lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
        lambda: ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875),
    ),
    "MobileNetV1": (
        lambda: MobileNetV1Model(MobileNetV1Config(depth_multiplier=0.25, image_size=32)),
        lambda: crop_of(MobileNetV1ImageProcessorPil),
    ),
    "MobileNetV2": (
        lambda: MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.25, image_size=32)),
        lambda: crop_of(MobileNetV2ImageProcessorPil),
    ),
    "ConvNeXt": (
        lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
        lambda: ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875),
    ),
    "ViT": (lambda: ViTModel(ViTConfig(**VIT)), lambda: ViTImageProcessorPil(size=IMAGE)),
    "DINOv2": (lambda: Dinov2Model(Dinov2Config(**VIT)), lambda: crop_of(BitImageProcessorPil)),
    "CLIP": (
        lambda: CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VIT, projection_dim=12)),
        lambda: crop_of(CLIPImageProcessorPil),
    ),
    "SigLIP": (
        lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VIT)),
        lambda: SiglipImageProcessorPil(size=IMAGE),
    ),
    "Swin": (
        lambda: SwinModel(SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2])),
        lambda: ViTImageProcessorPil(size=IMAGE),
    ),
    "SegFormer": (
        lambda: SegformerModel(SegformerConfig(hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4)),
        lambda: SegformerImageProcessorPil(size={"height": 64, "width": 64}),  # gives a map of 2×2
    ),
    "MobileViT": (
        lambda: MobileViTModel(MobileViTConfig(hidden_sizes=[12, 16, 24], neck_hidden_sizes=[8] * 7, image_size=32)),
        lambda: crop_of(MobileViTImageProcessorPil),
    ),
}


def save(directory, model, processor):
    """Save with seeded weights that keep activations near one; the library's initial weights underflow float16."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = math.sqrt(6 / module.weight[0].numel())
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of all batches seen
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        with torch.no_grad():
            model.train()(2 * torch.rand(16, 3, 32, 32, generator=generator) - 1)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session", name="saved")
def saved_models(tmp_path_factory):
    """A function from a family's name to the directory of a tiny model, in the hub's format."""
    directories = {}

    def directory_of(family):
        if family not in directories:
            model, processor = FAMILIES[family]
            directories[family] = save(tmp_path_factory.mktemp(family), model(), processor())
        return directories[family]

    return directory_of


def frames(count, *, height=60, width=80):
    """Coloured squares of 10 pixels."""
    squares = np.random.default_rng(0).integers(0, 256, (count, -(-height // 10), -(-width // 10), 3), dtype=np.uint8)
    return list(squares.repeat(10, axis=1).repeat(10, axis=2)[:, :height, :width])


def assert_close(features, wanted, tolerance=TOLERANCE):
    assert features.dtype == np.float16
    assert features.shape == wanted.shape
    scale = np.abs(wanted).max()
    assert 1e-3 < scale < 1e4  # else float16 would hide differences
    assert np.ptp(wanted, axis=0).max() > 3 * tolerance * scale  # frames differ by more than the tolerance
    np.testing.assert_allclose(features.astype(float) / scale, wanted / scale, rtol=0, atol=tolerance)
