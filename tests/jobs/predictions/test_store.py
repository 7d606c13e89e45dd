"""Predictions on disk, without processes."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.card import PREDICTIONS_CARD, create_feature_set
from skipreel.features.feature_set.ledger import read_state
from skipreel.features.feature_set.schema import Failure, Source
from skipreel.features.feature_set.shard_writer import ShardWriter
from skipreel.jobs.closed_loop.prediction import Prediction, Seconds
from skipreel.jobs.predictions import store as prediction_store
from skipreel.jobs.predictions.store import PredictionRows, PredictionSpec
from skipreel.models import Cost
from skipreel.pipeline.storage import FileStat
from tests.support.feature_sets import spec as feature_recipe
from tests.support.models import make_model

if TYPE_CHECKING:
    from tests.support.s3 import S3Folder

pytest_plugins = ("tests.support.s3",)
SOURCE = Source("digest", FileStat(1000, 1_700_000_000_123_456))


def prediction(name: str, *, length: int = 7, task: str = "frames") -> Prediction:
    """Three classes; the length is the seed."""
    dice = np.random.default_rng(length)
    shape = (length, 3) if task == "frames" else (3,)
    used = dice.random(length) < 0.5
    return Prediction(
        uri=f"{name}.mp4",
        duration_s=length / 10,
        frame_index=np.arange(length) * 3,
        pts_s=np.arange(length) / 10,
        used=used,
        scores=dice.random(shape).astype(np.float32),
        cost=Cost(length, int(used.sum()), 2 * length, int(used.sum()), int(used.sum()), length),
        seconds=Seconds(0.5, 0.25, 0.125),
        start_s=1.4,
    )


def make(uri: str, *, task="frames", seed=0, dense=False) -> PredictionSpec:
    spec = PredictionSpec.of(make_model(task=task, seed=seed), dense=dense)
    prediction_store.create(uri, spec, model="here", features={}, about="numbers")
    return spec


def add(writer: ShardWriter, video_id: str, made: Prediction, *, task="frames", replaces="") -> None:
    rows = PredictionRows(video_id, SOURCE, task=task)
    rows.append(made.frame_index.astype(np.int32), made.pts_s, made)
    writer.add(rows, replaces=replaces)


def same(left: Prediction, right: Prediction) -> bool:
    pairs = [(getattr(left, field.name), getattr(right, field.name)) for field in dataclasses.fields(Prediction)]
    return all(np.array_equal(a, b) and a.dtype == b.dtype if isinstance(a, np.ndarray) else a == b for a, b in pairs)


@pytest.fixture
def uri(tmp_path):
    return str(tmp_path / "predictions")


@pytest.mark.parametrize("task", ["frames", "video"])
def test_predictions_come_back_as_they_were(uri, task):
    make(uri, task=task)
    writer = ShardWriter(uri, shard_bytes=100)
    made = {f"../{length}": prediction(f"v{length}", length=length, task=task) for length in (1, 7, 2000)}
    for video_id, one in made.items():
        add(writer, video_id, one, task=task)
    writer.flush()
    assert len(list(Path(uri, "shards").iterdir())) > 1
    assert [path.name for path in Path(uri).parent.iterdir()] == ["predictions"]
    back = dict(prediction_store.iterate_predictions(uri))
    assert back.keys() == made.keys()
    assert all(same(back[name], made[name]) for name in made)
    cost, seconds = prediction_store.total_cost(uri)
    assert (cost.frames_total, cost.frames_decoded, seconds.total) == (2008, 4016, 3 * 0.875)


def test_predictions_of_an_earlier_version_are_gone_on_with_and_read_from_the_first_frame_on(uri):
    make(uri)
    card = prediction_store.read_card(uri)
    del card["times"]
    prediction_store.write_card(uri, card)
    make(uri)
    writer = ShardWriter(uri, shard_bytes=1 << 20)
    for name in ("a", "b"):
        add(writer, name, prediction(name))
    writer.flush()
    stored = pq.read_table(f"{uri}/shards")
    assert "start_s" not in stored.column_names
    assert stored["pts_s"].to_pylist() == [[1.4 + number / 10 for number in range(7)]] * 2
    back = dict(prediction_store.iterate_predictions(uri))
    assert [same(back[name], prediction(name)) for name in ("a", "b")] == [True, True]


@pytest.mark.parametrize("task", ["frames", "video"])
def test_anyone_reads_them(uri, task):
    make(uri, task=task)
    writer = ShardWriter(uri, shard_bytes=1 << 20)
    made = prediction("v", task=task)
    add(writer, "v", made, task=task)
    writer.flush()
    files = f"{uri}/shards/*.parquet"
    names = "video_id, num_classes, frame_index, used, scores, video_scores, frames_encoded, decode_s, source_digest"
    (found,) = duckdb.sql(f"select {names} from '{files}'").fetchall()
    (polars,) = pl.read_parquet(files).select(names.split(", ")).rows()
    assert found == polars
    assert found[:2] == ("v", 3)
    assert found[2:4] == (made.frame_index.tolist(), made.used.tolist())
    assert found[6:] == (made.cost.frames_encoded, 0.5, "digest")
    whole = made.scores.mean(0) if task == "frames" else made.scores
    np.testing.assert_allclose(found[5], whole, rtol=1e-6)
    if task == "frames":
        np.testing.assert_array_equal(np.reshape(found[4], (-1, 3)), made.scores)
    else:
        assert found[4] is None
    assert pd.read_parquet(f"{uri}/shards")["duration_s"].tolist() == [0.7]


def test_a_new_prediction_takes_the_place_of_an_old_one_and_of_a_failure(uri):
    make(uri)
    writer = ShardWriter(uri, shard_bytes=1 << 20)
    for name in ("a", "b"):
        add(writer, name, prediction(name))
    writer.fail(Failure("c", "c.mp4", "broken", SOURCE.file_stat))
    writer.flush()
    known = read_state(uri, has_segments=False).to_pylist()
    assert {row["video_id"]: row["source_digest"] for row in known} == {"a": "digest", "b": "digest", "c": None}
    files = {row["video_id"]: row["file"] for row in known}
    add(writer, "a", prediction("a", length=9), replaces=files["a"])
    add(writer, "c", prediction("c"), replaces=files["c"])
    writer.flush()
    back = list(prediction_store.iterate_predictions(uri))
    assert sorted(name for name, _ in back) == ["a", "b", "c"]
    assert len(dict(back)["a"].used) == 9
    assert same(dict(back)["b"], prediction("b"))
    assert prediction_store.failures(uri) == []


def test_predictions_of_another_model_or_way_to_look_are_refused(uri):
    make(uri)
    make(uri)
    for other in ({"seed": 1}, {"dense": True}, {"task": "video"}):
        with pytest.raises(FeatureSetError, match="another model or another way to look"):
            make(uri, **other)


def test_the_id_follows_from_weights_gate_classes_and_features(uri):
    spec = make(uri)
    changes = {"weights_digest": "0" * 64, "class_names": ("a",), "feature_set_id": "x", "dense": True, "config": {}}
    assert {field.name for field in dataclasses.fields(spec)} == set(changes)
    ids = {dataclasses.replace(spec, **{name: value}).prediction_id for name, value in changes.items()}
    assert len(ids | {spec.prediction_id}) == len(changes) + 1


def test_features_and_predictions_do_not_mix(tmp_path):
    create_feature_set(str(tmp_path / "features"), feature_recipe(), about={})
    with pytest.raises(FeatureSetError, match="holds features, not predictions"):
        make(str(tmp_path / "features"))
    make(str(tmp_path / "predictions"))
    with pytest.raises(FeatureSetError, match="holds predictions, not features"):
        create_feature_set(str(tmp_path / "predictions"), feature_recipe(), about={})


def test_what_is_damaged_is_one_clear_line(uri):
    with pytest.raises(FeatureSetError, match="holds no predictions"):
        prediction_store.failures(uri)
    make(uri)
    shard = Path(uri, "shards", "x.parquet")
    shard.parent.mkdir()
    shard.write_bytes(b"PAR1 no more")
    with pytest.raises(FeatureSetError, match=r"x\.parquet is damaged .* run skipreel predict again"):
        list(prediction_store.iterate_predictions(uri))
    card = Path(uri, PREDICTIONS_CARD)
    card.write_text(json.dumps({**json.loads(card.read_text()), "dense": True}))
    with pytest.raises(FeatureSetError, match="does not follow from what it says"):
        prediction_store.read_card(uri)
    card.write_text("[]")
    with pytest.raises(FeatureSetError, match="is damaged"):
        prediction_store.read_card(uri)


def test_what_a_killed_writer_left_is_removed(uri):
    make(uri)
    left = Path(uri, "shards", ".x.parquet.1234abcd.tmp")
    left.parent.mkdir()
    left.write_bytes(b"PAR1")
    make(uri)
    assert not left.exists()


def test_predictions_live_on_s3_too(s3: "S3Folder") -> None:
    uri = s3.join("predictions")
    make(uri)
    writer = ShardWriter(uri, shard_bytes=1 << 20)
    for name in ("a", "b"):
        add(writer, name, prediction(name))
    writer.flush()
    (file,) = set(read_state(uri, has_segments=False)["file"].to_pylist())
    writer.fail(Failure("a", "a.mp4", "broken now"), replaces=file)
    writer.flush()
    make(uri)
    assert [name for name, _ in prediction_store.iterate_predictions(uri)] == ["b"]
    assert [row["video_id"] for row in prediction_store.failures(uri)] == ["a"]
    with pytest.raises(FeatureSetError, match="another model"):
        make(uri, seed=1)
