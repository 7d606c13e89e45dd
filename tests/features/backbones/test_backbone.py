import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from skipreel.features.backbones.loading import load_backbone
from skipreel.features.backbones.preprocessing import Preprocessing
from skipreel.features.errors import BackboneError
from skipreel.features.spec import FeatureSpec
from skipreel.pipeline.video.sampling import Sampling
from tests.support.backbone_models import frames, saved_models  # noqa: F401

TRAINED = Path(__file__).parents[4] / "shared" / "data" / "weights" / "mobilenet_v1_0.75_224"
BFLOAT16_TOLERANCE = 0.05  # a share of the features' norm: 8 bits of mantissa, through a few layers


def test_random_weights_follow_from_the_seed():
    first, again, other = (load_backbone(name) for name in ("random:0", "random:0", "random:1"))
    assert first.weights_digest == again.weights_digest != other.weights_digest
    np.testing.assert_array_equal(first.encode(frames(3)), again.encode(frames(3)))


@pytest.mark.parametrize("family", [None, "ResNet", "CLIP"])
def test_a_frame_is_encoded_the_same_alone_and_in_a_batch_of_any_sizes(family, saved):
    backbone = load_backbone(f"hf:{saved(family)}" if family else "random:0")
    mixed = [*frames(2), *frames(2, height=48, width=64), *frames(1)]
    together = backbone.encode(mixed)
    assert together.shape == (5, backbone.dim)
    alone = np.concatenate([backbone.encode([frame]) for frame in mixed])
    np.testing.assert_allclose(alone.astype(float), together.astype(float), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["small", "ResNet", "trained MobileNet"])
def test_frames_of_other_sizes_share_a_batch_and_keep_every_bit(family, saved):
    if family == "trained MobileNet" and not TRAINED.exists():
        pytest.skip("real weights (../shared/data/weights) are not here")
    backbone = load_backbone(
        {"small": "random:0", "trained MobileNet": f"hf:{TRAINED}"}.get(family) or f"hf:{saved(family)}"
    )
    sizes = []
    watched = replace(backbone, network=lambda images: sizes.append(len(images)) or backbone.network(images))
    mixed = [*frames(2), *frames(3, height=48, width=64), *frames(1, height=70, width=40), *frames(1)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        together = watched.encode(mixed)
        for shape in {frame.shape for frame in mixed}:
            places = [place for place, frame in enumerate(mixed) if frame.shape == shape]
            np.testing.assert_array_equal(together[places], backbone.encode([mixed[place] for place in places]))
    finally:
        torch.set_num_threads(threads)
    assert sizes == [7]


def test_images_prepared_to_different_sizes_are_batches_of_their_own():
    backbone = load_backbone("random:0")
    prepare = Preprocessing(resize=16)  # the shorter edge
    shapes = []
    watched = replace(
        backbone, prepare=prepare, network=lambda images: shapes.append(tuple(images.shape)) or backbone.network(images)
    )
    mixed = [*frames(2, height=32, width=64), *frames(1, height=64, width=64), *frames(1, height=16, width=32)]
    together = watched.encode(mixed)
    assert shapes == [(3, 3, 16, 32), (1, 3, 16, 16)]
    alone = np.concatenate([replace(backbone, prepare=prepare).encode([frame]) for frame in mixed])
    np.testing.assert_allclose(alone.astype(float), together.astype(float), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["ResNet", "ViT"])
def test_bfloat16_is_close_and_another_spec(family, saved):
    exact, rounded = (load_backbone(f"hf:{saved(family)}", dtype=dtype) for dtype in ("float32", "bfloat16"))
    wanted = exact.encode(frames(3)).astype(float)
    difference = np.linalg.norm(rounded.encode(frames(3)) - wanted) / np.linalg.norm(wanted)
    assert 1e-3 < difference < BFLOAT16_TOLERANCE  # float16 alone would be below a thousandth
    assert rounded.weights_digest == exact.weights_digest
    specs = [backbone.spec(Sampling(rate_hz=2.0)) for backbone in (exact, rounded)]
    assert specs[0].feature_set_id != specs[1].feature_set_id


def test_compiled_features_are_the_same(saved, monkeypatch):
    graphs = []
    # Traced, but not turned into C++, which takes most of a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=lambda graph, _: graphs.append(1) or graph))
    eager, compiled = (load_backbone(f"hf:{saved('ResNet')}", compile=compile) for compile in (False, True))
    np.testing.assert_allclose(compiled.encode(frames(3)), eager.encode(frames(3)), rtol=2e-3, atol=1e-3)
    assert graphs
    assert compiled.spec(Sampling(2.0)) == eager.spec(Sampling(2.0))


def test_a_layer_is_part_of_the_spec_and_survives_json(saved):
    backbones = [load_backbone(f"hf:{saved('ViT')}", layer=layer) for layer in ("pooled", "cls")]
    specs = [backbone.spec(Sampling(rate_hz=2.0)) for backbone in backbones]
    assert specs[0].feature_set_id != specs[1].feature_set_id
    assert specs[1].layer == "cls"
    assert [FeatureSpec.from_json(json.loads(json.dumps(spec.to_json()))) for spec in specs] == specs


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50", "give one of hf:…, timm:…, small:…, random:…, module:function"),
        ("resnet:50", "unknown backbone 'resnet:50'"),
        ("no_such_module:function", "cannot import backbone no_such_module:function: No module named"),
        ("random:x", "whole number"),
        ("hf:/nowhere", "cannot load backbone hf:/nowhere"),
        ("small:/nowhere", "/nowhere does not hold a small CNN"),
    ],
)
def test_a_backbone_that_is_not_there_is_one_clear_line(name, message):
    with pytest.raises(BackboneError, match=message) as raised:
        load_backbone(name)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_or_dtype_that_is_not_there_is_one_clear_line():
    with pytest.raises(BackboneError, match="torch sees none here; give device cpu"):
        load_backbone("random:0", device="cuda")
    with pytest.raises(BackboneError, match="'float16' is not one of float32, bfloat16"):
        load_backbone("random:0", dtype="float16")
