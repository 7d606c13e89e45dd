import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from skipreel.features.backbones.loading import load_backbone
from skipreel.features.backbones.preprocessing import Preprocessing
from skipreel.features.errors import BackboneError
from tests.support.backbone_models import assert_close, frames


def test_timm_that_is_not_installed_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BackboneError, match=r"timm:resnet18 needs the timm library .*pip install 'skipreel\[timm\]'"):
        load_backbone("timm:resnet18")


class Model(nn.Module):
    """A model of a timm that is not there: every feature says which image and which place it is of."""

    num_prefix_tokens = 1

    def forward_features(self, images):
        """(T, 3, 4, 4) to three patch tokens after one of another kind, (T, 4, 2), or for VGG a map (T, 2, 2, 2)."""
        brightness = images.mean((1, 2, 3))
        tokens = torch.tensor([[100.0, 0], [1, 2], [3, 4], [5, 9]])
        return brightness[:, None, None] + tokens

    def forward_head(self, maps):
        return 1000 + maps.flatten(1)[:, :2]


class VGG(Model):
    def forward_features(self, images):
        return super().forward_features(images).transpose(1, 2).reshape(-1, 2, 2, 2)


@pytest.fixture
def stub(monkeypatch):
    """timm's own names, as far as they are used; `model` is what it creates."""
    made = SimpleNamespace(model=Model(), asked=[])

    def create_model(name, *, pretrained, num_classes):
        made.asked.append((name, pretrained, num_classes))
        return made.model

    config = {
        "input_size": (3, 4, 4),
        "crop_pct": 0.5,
        "crop_mode": "center",
        "interpolation": "bilinear",
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
    }
    library = ModuleType("timm")
    library.create_model = create_model
    library.models = SimpleNamespace(vgg=SimpleNamespace(VGG=VGG))
    library.data = SimpleNamespace(
        resolve_model_data_config=lambda _: config,
        create_transform=lambda **_: lambda image: torch.full((3, 4, 4), float(np.asarray(image).mean())),
    )
    monkeypatch.setitem(sys.modules, "timm", library)
    return made


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Model(), {"pooled": [1100, 1000], "cls": [100, 0], "mean": [3, 5]}),
        (VGG(), {"pooled": [27.25, 3.75], "fc7": [1100, 1001]}),
    ],
)
def test_each_layer_is_the_one_of_its_name(stub, model, expected):
    stub.model = model
    images = np.stack([np.full((6, 8, 3), level, np.uint8) for level in (0, 50)])
    for layer, values in expected.items():
        backbone = load_backbone("timm:any", layer=layer)
        np.testing.assert_allclose(backbone.encode(images), np.array([values, np.array(values) + 50]), rtol=1e-3)
    assert stub.asked == [("any", True, 0)] * len(expected)


def test_a_model_that_timm_does_not_have_is_one_clear_line(stub, monkeypatch):
    def unknown(*_args, **_kwargs):
        raise RuntimeError("Unknown model (any)")

    monkeypatch.setattr(sys.modules["timm"], "create_model", unknown)
    with pytest.raises(BackboneError, match=r"cannot load backbone timm:any: Unknown model \(any\)"):
        load_backbone("timm:any")


@pytest.mark.parametrize(
    ("name", "layers"),
    [("resnet18", ("pooled",)), ("vgg11", ("pooled", "fc7")), ("test_vit", ("pooled", "cls", "mean"))],
)
def test_every_layer_is_timms_own(name, layers, monkeypatch):
    try:
        import timm
    except ImportError as error:
        pytest.skip(f"timm is not here ({error})")
    from PIL import Image

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    images = torch.stack([transform(Image.fromarray(frame)) for frame in frames(3, height=250, width=333)])
    monkeypatch.setattr(timm, "create_model", lambda *_args, **_kwargs: model)
    with torch.no_grad():
        pooled, maps = model(images), model.forward_features(images)
    if name == "vgg11":
        wanted = {"pooled": maps.mean((2, 3)), "fc7": pooled}
    else:
        wanted = {"pooled": pooled, "cls": maps[:, 0], "mean": maps[:, 1:].mean(1)}
    for layer in layers:
        backbone = load_backbone(f"timm:{name}", layer=layer)
        assert isinstance(backbone.prepare, Preprocessing)
        assert_close(backbone.encode(frames(3, height=250, width=333)), wanted[layer].numpy())
