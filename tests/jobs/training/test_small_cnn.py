from skipreel.features.backbones.loading import load_backbone
from skipreel.features.backbones.small_cnn import load_small_cnn
from skipreel.jobs.training.small_cnn import train_small_cnn
from skipreel.pipeline.manifest import Label, Manifest, VideoEntry
from tests.support.videos import write_video


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
