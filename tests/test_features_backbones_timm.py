import sys

import pytest
import torch

from backbone_models import assert_close, frames
from features.backbones import load_backbone
from features.errors import BackboneError
from features.preprocessing import Preprocessing


def test_timm_that_is_not_installed_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BackboneError, match=r"timm:resnet18 needs the timm library .*pip install 'skipreel\[timm\]'"):
        load_backbone("timm:resnet18")


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
