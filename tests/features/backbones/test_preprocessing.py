import json

import numpy as np
import pytest
import torch
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    DeiTImageProcessorPil,
    EfficientNetImageProcessorPil,
    MobileNetV1ImageProcessorPil,
    MobileViTImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from skipreel.features.backbones.hugging_face import translate
from skipreel.features.backbones.preprocessing import Preprocessing, says_all

LANDSCAPE, PORTRAIT, SMALL = (240, 427), (400, 301), (40, 64)
PROCESSORS = {
    "exact size": ViTImageProcessorPil(),
    "exact size, cubic": SiglipImageProcessorPil(),
    "shorter edge and crop": MobileNetV1ImageProcessorPil(),
    "shorter edge and crop, cubic": CLIPImageProcessorPil(),
    "crop that pads": DeiTImageProcessorPil(size={"height": 50, "width": 90}, crop_size={"height": 64, "width": 64}),
    "crop alone": BitImageProcessorPil(do_resize=False, crop_size={"height": 57, "width": 57}),
    "cut out of a larger one": ConvNextImageProcessorPil(size={"shortest_edge": 224}),
    "squashed": ConvNextImageProcessorPil(size={"shortest_edge": 384}),
    "neither rescaled nor normalised": ViTImageProcessorPil(do_rescale=False, do_normalize=False),
}


def call(processor, frames: np.ndarray) -> torch.Tensor:
    return processor(list(frames), return_tensors="pt", input_data_format="channels_last")["pixel_values"]


def noise(height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("shape", [LANDSCAPE, PORTRAIT, SMALL])
@pytest.mark.parametrize("name", PROCESSORS)
def test_frames_are_prepared_as_by_the_librarys_own_processor(name, shape):
    processor = PROCESSORS[name]
    preprocessing = translate(processor.to_dict())
    ours, theirs = preprocessing(noise(*shape)), call(processor, noise(*shape).numpy())
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float32
    levels = (ours - theirs).abs() * torch.tensor(preprocessing.std)[:, None, None] / preprocessing.scale
    # Both round to whole levels after each axis. Pillow 13 takes the axes in the other order where the height shrinks
    # more than the width; then cubic overshoot is cut off elsewhere, which on noise shows in single pixels.
    assert levels.mean() < 0.5
    if shape != PORTRAIT:
        assert levels.max() < 2.01


@pytest.mark.parametrize(
    "processor",
    [MobileViTImageProcessorPil(), EfficientNetImageProcessorPil(), ViTImageProcessorPil(resample=0)],
    ids=["blue first", "normalised twice", "nearest pixel"],
)
def test_what_the_settings_do_not_say_is_noticed(processor):
    preprocessing = translate(processor.to_dict())
    assert preprocessing is None or not says_all(preprocessing, lambda frames: call(processor, frames))


@pytest.mark.parametrize("change", [{"crop": (224, 222)}, {"resize": 255}, {"mean": (0.0, 0.0, 0.005)}, {"scale": 1.0}])
def test_another_preprocessing_is_not_taken_for_the_same(change):
    def library(frames):
        return Preprocessing(resize=256, crop=(224, 224))(torch.from_numpy(frames))

    assert says_all(Preprocessing(resize=256, crop=(224, 224)), library)
    assert not says_all(Preprocessing(**{"resize": 256, "crop": (224, 224), **change}), library)


@pytest.mark.parametrize(("rounding", "first"), [("floor", 1), ("half_even", 2)])
def test_an_odd_margin_is_rounded_as_asked(rounding, first):
    columns = torch.arange(7, dtype=torch.uint8)[None, None, :, None].expand(1, 4, 7, 3)
    image = Preprocessing(resize=None, crop=(4, 4), crop_rounding=rounding, scale=1.0)(columns)
    assert image[0, 0, 0].tolist() == [first, first + 1, first + 2, first + 3]  # margins of 1.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shape", [LANDSCAPE, PORTRAIT, SMALL])
def test_a_gpu_prepares_frames_within_a_level_of_the_cpu(shape):
    preprocessing = Preprocessing(resize=256, crop=(224, 224), scale=1.0)
    torch.testing.assert_close(
        preprocessing(noise(*shape).cuda()).cpu(), preprocessing(noise(*shape)), rtol=0, atol=1.01
    )


def test_settings_survive_json_and_bad_ones_are_refused():
    settings = Preprocessing(resize=(96, 128), crop=(90, 90)).to_json()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["resize"] == [96, 128]
    with pytest.raises(ValueError, match="'lanczos' is not one of bilinear, bicubic"):
        Preprocessing(resize=8, interpolation="lanczos")
    with pytest.raises(ValueError, match="divide by zero"):
        Preprocessing(resize=8, std=(1.0, 0.0, 1.0))
