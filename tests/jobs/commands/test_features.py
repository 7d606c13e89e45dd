import json
from pathlib import Path

import numpy as np
import pytest

from skipreel.features.feature_set.ledger import write_failures
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.features.feature_set.schema import Failure
from skipreel.jobs.cli import main
from skipreel.pipeline.manifest import read_manifest
from tests.support.feature_sets import two_class_corpus, write_sequence
from tests.support.imported import modules_after


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[str, str]:
    manifest, features = two_class_corpus(tmp_path)
    write_failures(features, [Failure("video99", "/data/video99.mp4", "/data/video99.mp4 is empty")])
    return manifest, features


def test_show_says_what_there_is(corpus, capsys):
    _, features = corpus
    assert main(["features", "show", features]) == 0
    text = capsys.readouterr().out
    num_frames = int(FeatureSet(features).video_index.num_frames().sum())
    for expected in (FeatureSet(features).id, f"18, {num_frames} frames", "numbers", "1 × … is empty (video99)"):
        assert expected in text


def test_show_as_json_is_one_object(corpus, capsys):
    _, features = corpus
    assert main(["features", "show", features, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["num_videos"], shown["num_failed"]) == (18, 1)
    assert shown["card"]["id"] == FeatureSet(features).id
    assert shown["failures"] == [{"reason": "… is empty", "num_videos": 1, "video_ids": ["video99"]}]


def test_verify_of_a_good_set(corpus, capsys):
    manifest, features = corpus
    assert main(["features", "verify", features, "--manifest", manifest]) == 0
    assert capsys.readouterr().out == f"{features}: no problems\n"


def test_verify_prints_a_line_for_each_problem_and_fails(corpus, capsys):
    manifest, features = corpus
    write_sequence(features, "video99", np.full((2, 5), np.nan))
    (Path(features) / "shards" / ".x.parquet.0.tmp").touch()
    assert main(["features", "verify", features, "--manifest", manifest, "--sources"]) == 1
    lines = capsys.readouterr().out.splitlines()
    kinds = ("left by a killed", "NaN", "hold 'video99' 2 times", *["cannot read video"] * 18, "21 problems")
    assert len(lines) == len(kinds)
    for line, kind in zip(lines, kinds, strict=True):
        assert kind in line
    assert main(["features", "verify", features, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == {"uri": features, "problems": lines[:3]}


def test_verify_cannot_hash_what_it_does_not_know(corpus, capsys):
    assert main(["features", "verify", corpus[1], "--sources"]) == 1
    assert "give --manifest too" in capsys.readouterr().err


def test_compact_merges(corpus, capsys):
    _, features = corpus
    assert main(["features", "compact", features]) == 0
    assert "18 shards, now 1" in capsys.readouterr().err
    assert len(list((Path(features) / "shards").iterdir())) == 1
    assert len(FeatureSet(features).video_ids()) == 18


def test_compact_refuses_a_size_of_nothing(corpus, capsys):
    with pytest.raises(SystemExit):
        main(["features", "compact", corpus[1], "--shard-mb", "0"])
    assert "--shard-mb is 0, it must be at least 1" in capsys.readouterr().err


def test_build_makes_a_feature_set_and_a_manifest(tmp_path, capsys):
    file, classes = tmp_path / "walks.npz", tmp_path / "classes.txt"
    rng = np.random.default_rng(0)
    np.savez(file, features=rng.normal(size=(2, 5, 3)), labels=rng.integers(0, 2, (2, 5)), split=np.array(["p", "q"]))
    classes.write_text("up\ndown\n")
    output, listing = str(tmp_path / "set"), str(tmp_path / "manifest.parquet")
    words = ["--output", output, "--manifest-output", listing, "--rate-hz", "4", "--classes", str(classes)]
    assert main(["features", "build", str(file), *words, "--test-splits", "q"]) == 0
    assert "2 sequences (1 test, 1 train), 2 classes" in capsys.readouterr().err
    assert read_manifest(listing).class_names == ("up", "down")
    assert FeatureSet(output).spec.sampling.rate_hz == 4
    assert FeatureSet(output).spec.backbone == "arrays"
    assert main(["features", "verify", output, "--manifest", listing, "--sources"]) == 0


@pytest.mark.parametrize("action", ["show", "verify", "compact"])
def test_a_folder_that_is_no_feature_set_is_one_line(tmp_path, capsys, action):
    assert main(["features", action, str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "is not a feature set" in error


def test_nothing_to_build_from_is_one_line(tmp_path, capsys):
    assert main(["features", "build", "--output", str(tmp_path / "set"), "--rate-hz", "1"]) == 1
    assert "no file given: no sequence to build from" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_looking_into_a_set_waits_for_no_heavy_import():
    (loaded,) = modules_after("import skipreel.jobs.commands.features")
    assert not {"torch", "ray", "mlflow"} & loaded
