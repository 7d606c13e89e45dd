import sys

import numpy as np
import pytest
import torch
from torch import nn

from skipreel.features.backbones.loading import load_backbone
from skipreel.features.backbones.preprocessing import Preprocessing
from skipreel.features.errors import BackboneError
from tests.support.backbone_models import frames


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A function that makes `own:backbone` return what its source says."""

    def write(body):
        (tmp_path / "own.py").write_text(
            "import torch\nfrom torch import nn\nfrom skipreel.features.backbones.preprocessing import Preprocessing\n"
            f"HALF = Preprocessing(resize=(8, 8), mean=(0.5,) * 3)\n{body}"
        )
        monkeypatch.delitem(sys.modules, "own", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        return "own:backbone"

    return write


LINEAR = "def backbone():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), "


def test_ones_own_function_brings_module_and_preprocessing(own_module):
    backbone = load_backbone(own_module(LINEAR + "HALF"))
    pixels = Preprocessing(resize=(8, 8), mean=(0.5,) * 3)(torch.from_numpy(np.stack(frames(2))))
    torch.manual_seed(0)
    with torch.no_grad():
        wanted = nn.Linear(192, 5)(pixels.flatten(1)).numpy()
    np.testing.assert_allclose(backbone.encode(frames(2)), wanted, rtol=1e-3, atol=1e-3)
    assert backbone.preprocessing["resize"] == [8, 8]


def test_ones_own_preprocessing_function_is_recorded_by_name(own_module):
    body = "def corner(frames):\n    return frames[:, :8, :8].permute(0, 3, 1, 2) / 255\n"
    backbone = load_backbone(own_module(body + LINEAR + "corner"))
    assert backbone.preprocessing == {"function": "own:corner"}
    changed = [frame.copy() for frame in frames(2)]
    for frame in changed:
        frame[8:] = 0
    np.testing.assert_array_equal(backbone.encode(changed), backbone.encode(frames(2)))


def test_ones_own_module_may_have_layers(own_module):
    body = (
        "class Net(nn.Module):\n    def forward(self, images):\n"
        "        return {'pooled': images.mean((2, 3)), 'fc7': images.flatten(1)}\n"
        "def backbone():\n    return Net(), HALF\n"
    )
    name = own_module(body)
    assert (load_backbone(name).dim, load_backbone(name, layer="fc7").dim) == (3, 192)
    with pytest.raises(BackboneError, match="no layer 'cls'; it has: pooled, fc7"):
        load_backbone(name, layer="cls")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def backbone():\n    return nn.Flatten()", "returned Flatten: return a torch module and a Preprocessing"),
        (
            "def backbone():\n    return dict()()",
            "backbone own:backbone raised TypeError: 'dict' object is not callable",
        ),
        ("", "cannot import backbone own:backbone: module 'own' has no attribute 'backbone'"),
        ("def backbone():\n    return nn.Linear(8, 3), HALF", r"gives \(2, 3, 8, 3\) for 2 frames"),
        ("def backbone():\n    return nn.Linear(7, 3), HALF", "cannot encode a frame of 128×96"),
        (LINEAR + "lambda frames: torch.rand(len(frames), 3, 8, 8)", "other features for the same frames each time"),
        (LINEAR.replace("nn.Linear(192, 5)", "nn.Dropout(1.0)") + "HALF", None),
    ],
)
def test_ones_own_function_is_checked(own_module, body, message):
    name = own_module(body)
    if message is None:  # eval mode: nothing is dropped
        assert load_backbone(name).encode(frames(1)).any()
    else:
        with pytest.raises(BackboneError, match=message):
            load_backbone(name)


def test_features_beyond_float16_are_an_error(own_module):
    backbone = load_backbone(own_module("def backbone():\n    return nn.Flatten(), Preprocessing((8, 8), scale=1e3)"))
    with pytest.raises(BackboneError, match="not float16 numbers"):
        backbone.encode([np.full((8, 8, 3), 255, np.uint8)])
