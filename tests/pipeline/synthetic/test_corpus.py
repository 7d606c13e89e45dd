"""The generated corpus: its plan, its pictures, its annotations and its videos."""

import csv
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipreel.pipeline.synthetic import (
    CLASS_NAMES,
    CSV_COLUMNS,
    Action,
    CorpusConfig,
    Prop,
    Scene,
    plan_corpus,
    render_frame,
    write_annotations,
    write_video,
)
from skipreel.pipeline.synthetic import corpus as synthetic
from skipreel.pipeline.synthetic.scenes import BALL, CUE_S, DOOR, DURATION_S, FAN, FLAG, GAP_S, LAMP, PLANT

SMALL = CorpusConfig(num_train=6, num_test=4, seed=0, width=96, height=72)


def quiet_scene(kind: int, *, variant: float = 0.9) -> Scene:
    """An idle room with one prop that acts from 2.0 s to 4.0 s, without mirroring so that places are known."""
    prop = Prop(kind, 80.0 if kind != BALL else 40.0, 70.0, (217, 72, 62), variant, Action(kind, 2.0, 4.0))
    return Scene("AAAAA", "train", 160, 120, 25, 150, False, 0, False, 7, (prop,))


def without_action(scene: Scene) -> Scene:
    return replace(scene, props=tuple(replace(prop, action=None) for prop in scene.props))


def differing(one: Scene, other: Scene, times: np.ndarray) -> np.ndarray:
    return np.array([not np.array_equal(render_frame(one, t), render_frame(other, t)) for t in times.tolist()])


def test_a_seed_names_one_corpus_on_every_machine() -> None:
    scenes = plan_corpus(CorpusConfig(num_train=2, num_test=1, seed=0))
    assert [scene.video_id for scene in scenes] == ["4WSJL", "6QAO1", "S69UK"]
    assert [(scene.fps, scene.num_frames) for scene in scenes] == [(24, 242), (25, 286), (30, 443)]
    assert scenes[0].actions == (Action(FLAG, 2.63, 9.36), Action(BALL, 4.9, 6.26))
    assert scenes[1].actions == (Action(DOOR, 3.09, 5.6), Action(PLANT, 3.98, 5.73))
    assert scenes[2].actions == (Action(LAMP, 1.31, 4.45),)


def test_the_same_seed_draws_the_same_pixels_and_another_seed_does_not() -> None:
    scenes = plan_corpus(SMALL)
    scene = next(scene for scene in scenes if scene.busy)
    first = render_frame(scene, 1.25)
    for other in scenes:  # enough others to push this scene out of the cache of what stands still
        if other != scene:
            render_frame(other, 1.25)
    again = next(scene for scene in plan_corpus(SMALL) if scene.busy)
    np.testing.assert_array_equal(render_frame(again, 1.25), first)
    other = replace(again, decor_seed=again.decor_seed + 1)
    assert not np.array_equal(render_frame(other, 1.25), first)


def test_frames_are_fresh_rgb_arrays_of_the_configured_size() -> None:
    scene = next(scene for scene in plan_corpus(SMALL) if not scene.busy)
    frame = render_frame(scene, 0.5)
    assert frame.shape == (72, 96, 3)
    assert frame.dtype == np.uint8
    frame[:] = 0
    assert render_frame(scene, 0.5).any()


def test_a_video_does_not_depend_on_how_many_others_there_are() -> None:
    few = plan_corpus(replace(SMALL, num_train=2))
    many = plan_corpus(SMALL)
    assert few[:2] == many[:2]
    assert [scene.actions for scene in few[2:]] == [scene.actions for scene in many[6:]]


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), overlap=st.floats(0, 1))
def test_every_plan_keeps_to_the_rules(seed: int, overlap: float) -> None:
    scenes = plan_corpus(CorpusConfig(num_train=3, num_test=2, seed=seed, overlap_share=overlap))
    assert [scene.split for scene in scenes] == ["train"] * 3 + ["test"] * 2
    assert len({scene.video_id for scene in scenes}) == 5
    for scene in scenes:
        assert re.fullmatch(r"[A-Z0-9]{5}", scene.video_id)
        assert 24 <= scene.fps <= 30
        assert 9.9 <= scene.duration_s <= 15.1
        assert 1 <= len(scene.actions) <= 3
        assert len({action.class_id for action in scene.actions}) == len(scene.actions)
        assert scene.actions[0].start_s >= GAP_S[0]
        for action in scene.actions:
            shortest, longest = DURATION_S[action.class_id]
            assert shortest - 0.011 <= action.end_s - action.start_s <= longest + 0.011
            assert action.end_s < scene.duration_s
            assert action.start_s - CUE_S[action.class_id] > 0


def test_without_overlaps_nothing_begins_right_after_an_action() -> None:
    for scene in plan_corpus(CorpusConfig(num_train=60, num_test=0, seed=3, overlap_share=0)):
        for earlier, later in pairwise(scene.actions):
            assert later.start_s - earlier.end_s >= GAP_S[0] - 0.011


def test_frames_with_no_one_and_several_labels_occur_and_all_classes_do() -> None:
    counts = np.zeros(4, int)
    seen = set()
    for scene in plan_corpus(CorpusConfig()):
        times = np.arange(0, scene.duration_s, 1 / 6)
        active = sum(((a.start_s <= times) & (times < a.end_s)).astype(int) for a in scene.actions)
        counts += np.bincount(active, minlength=4)
        seen |= {action.class_id for action in scene.actions}
    shares = counts / counts.sum()
    assert 0.4 < shares[0] < 0.7
    assert shares[1] > 0.2
    assert shares[2] > 0.04
    assert seen == set(range(len(CLASS_NAMES)))


def test_some_objects_only_stand_around() -> None:
    idle = {prop.kind for scene in plan_corpus(CorpusConfig()) for prop in scene.props if prop.action is None}
    assert idle == set(range(len(CLASS_NAMES)))


@pytest.mark.parametrize("kind", [FLAG, FAN, LAMP])
@pytest.mark.parametrize("variant", [0.1, 0.9])
def test_an_action_changes_the_picture_exactly_inside_its_span(kind: int, variant: float) -> None:
    scene = quiet_scene(kind, variant=variant)
    times = np.arange(scene.num_frames) / scene.fps
    differs = differing(scene, without_action(scene), times)
    inside = (times >= 2.0) & (times < 4.0)
    assert not differs[~inside].any()
    assert differs[inside][0]
    if (kind, variant) == (LAMP, 0.9):  # between two flashes it is as dark as at rest
        assert 0.3 < differs[inside].mean() < 0.7
    else:
        assert differs[inside].all()


def test_only_the_can_announces_and_ends_the_watering() -> None:
    scene = quiet_scene(PLANT)
    times = np.arange(scene.num_frames) / scene.fps
    differs = differing(scene, without_action(scene), times)
    first, last = scene.props[0].moving_span
    assert (first, last) == (1.0, 4.4)
    inside = (times > first) & (times < last)
    np.testing.assert_array_equal(differs, inside)

    def drops(t: float) -> int:
        frame = render_frame(scene, t)[50:66].astype(int)
        return int(((frame[..., 2] - frame[..., 0]) > 90).sum())

    watering = np.array([drops(t) for t in times.tolist()]) > drops(0.0)
    np.testing.assert_array_equal(watering, (times >= 2.0) & (times < 4.0))


def test_the_green_light_announces_the_door_but_the_door_moves_in_its_span_only() -> None:
    scene = quiet_scene(DOOR)
    times = np.arange(scene.num_frames) / scene.fps
    frames = np.stack([render_frame(scene, t) for t in times.tolist()])
    leaf, light = frames[:, 40:], frames[:, 26:34]
    still = np.array([np.array_equal(a, b) for a, b in pairwise(leaf)])
    moving = (times[1:] >= 2.0) & (times[:-1] < 4.0)
    assert still[~moving].all()
    assert (~still)[moving].mean() > 0.9
    assert not np.array_equal(leaf[0], leaf[-1])
    lit = np.array([not np.array_equal(light[0], frame) for frame in light])
    np.testing.assert_array_equal(lit, (times >= 2.0 - CUE_S[DOOR]) & (times < 4.0))


def test_a_ball_lies_still_before_and_after_it_rolls() -> None:
    scene = quiet_scene(BALL)
    times = np.arange(scene.num_frames) / scene.fps
    frames = [render_frame(scene, t) for t in times.tolist()]
    changes = np.array([not np.array_equal(a, b) for a, b in pairwise(frames)])
    np.testing.assert_array_equal(changes, (times[1:] >= 2.0) & (times[:-1] < 4.0))
    assert not np.array_equal(frames[0], frames[-1])


def test_busy_rooms_move_all_the_time_and_idle_rooms_do_not() -> None:
    idle = without_action(quiet_scene(FLAG))
    busy = replace(idle, busy=True)
    assert np.array_equal(render_frame(idle, 1.0), render_frame(idle, 1.04))
    assert not np.array_equal(render_frame(busy, 1.0), render_frame(busy, 1.04))


def test_annotations_read_as_charades(tmp_path: Path) -> None:
    scenes = plan_corpus(SMALL)
    write_annotations(scenes, tmp_path)
    names = {"Charades_v1_train.csv", "Charades_v1_test.csv", "Charades_v1_classes.txt"}
    assert {path.name for path in tmp_path.iterdir()} == names
    classes = (tmp_path / "Charades_v1_classes.txt").read_text().splitlines()
    assert classes[0] == "c000 Rolling a ball"
    assert [line.split(" ", 1)[1] for line in classes] == list(CLASS_NAMES)
    for split, expected in (("train", scenes[:6]), ("test", scenes[6:])):
        with (tmp_path / f"Charades_v1_{split}.csv").open(newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        assert tuple(reader.fieldnames or ()) == CSV_COLUMNS
        assert [row["id"] for row in rows] == [scene.video_id for scene in expected]
        for row, scene in zip(rows, expected, strict=True):
            parts = [part.split() for part in row["actions"].split(";")]
            actions = tuple(Action(int(c.removeprefix("c")), float(start), float(end)) for c, start, end in parts)
            assert actions == scene.actions
            assert float(row["length"]) == pytest.approx(scene.duration_s, abs=0.006)


def test_a_video_decodes_to_its_frames_at_their_times(tmp_path: Path) -> None:
    scene = replace(plan_corpus(SMALL)[0], num_frames=100)
    path = tmp_path / f"{scene.video_id}.mp4"
    write_video(scene, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        frames = list(container.decode(stream))
    assert len(frames) == 100
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(100) / scene.fps, atol=1e-4)
    assert [i for i, frame in enumerate(frames) if frame.key_frame] == [0, 48, 96]
    assert any(frame.pict_type == av.video.frame.PictureType.B for frame in frames)
    for index in (0, 57, 99):
        drawn = render_frame(scene, index / scene.fps).astype(int)
        assert np.abs(frames[index].to_ndarray(format="rgb24").astype(int) - drawn).mean() < 6


def test_a_scene_always_encodes_to_the_same_bytes(tmp_path: Path) -> None:
    scene = replace(plan_corpus(SMALL)[1], num_frames=50)
    write_video(scene, tmp_path / "a.mp4")
    write_video(scene, tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_an_interrupted_video_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(scene: Scene, t_seconds: float) -> np.ndarray:
        if t_seconds > 0.5:
            raise KeyboardInterrupt
        return render_frame(scene, t_seconds)

    monkeypatch.setattr(synthetic, "render_frame", stop)
    with pytest.raises(KeyboardInterrupt):
        write_video(plan_corpus(SMALL)[0], tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_train": 0, "num_test": 0}, "at least one video"),
        ({"width": 161}, "even"),
        ({"seed": -1}, "negative"),
        ({"busy_share": 1.5}, "busy_share"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CorpusConfig(**changes)  # type: ignore[arg-type]
