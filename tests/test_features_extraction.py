import numpy as np
import pytest

import features.extraction
from features.backbones import load_backbone
from features.extraction import extract_video
from pipeline.decoding import open_video
from pipeline.errors import VideoError
from pipeline.sampling import Sampling
from videos import write_video


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_features_belong_to_the_frames_on_screen_at_the_sampled_times(tmp_path, decoder):
    path = tmp_path / "a.mp4"
    write_video(path, num_frames=50, fps=25, b_frames=2)
    backbone = load_backbone("random:0")
    (segment,) = extract_video(str(path), backbone=backbone, sampling=Sampling(rate_hz=5), decoder=decoder)
    assert segment.frame_index.tolist() == list(range(0, 50, 5))
    np.testing.assert_allclose(segment.pts_s, np.arange(10) / 5)
    with open_video(str(path)) as video:
        np.testing.assert_array_equal(segment.features, backbone.encode([video.read(i) for i in segment.frame_index]))


def test_a_long_video_comes_in_segments(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    write_video(path, num_frames=30, fps=10)
    backbone, sampling = load_backbone("random:0"), Sampling(rate_hz=10)
    (whole,) = extract_video(str(path), backbone=backbone, sampling=sampling)
    monkeypatch.setattr(features.extraction, "MAX_SEGMENT_FRAMES", 12)
    parts = list(extract_video(str(path), backbone=backbone, sampling=sampling))
    assert [part.number for part in parts] == [0, 1, 2]
    assert [len(part.pts_s) for part in parts] == [12, 12, 6]
    np.testing.assert_array_equal(np.concatenate([part.frame_index for part in parts]), whole.frame_index)


def test_a_file_that_is_no_video_is_a_video_error(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("not a video")
    with pytest.raises(VideoError, match=r"a\.mp4"):
        list(extract_video(str(path), backbone=load_backbone("random:0"), sampling=Sampling()))
