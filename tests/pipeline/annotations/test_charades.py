"""Charades annotations: the entries, and the problems with file and line."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from skipreel.pipeline.annotations.charades import build_charades
from skipreel.pipeline.errors import ManifestError
from skipreel.pipeline.manifest import Label, ManifestBuild

if TYPE_CHECKING:
    from tests.support.s3 import S3Folder

pytest_plugins = ("tests.support.s3",)

HEADER = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
CLASSES = "c000 Holding some clothes\nc001 Putting clothes somewhere\nc002 Taking a bath\n"


def row(video_id: str, actions: str = "", length: str = "30.5", script: str = "A person, sitting.") -> str:
    return f'{video_id},S1,Kitchen,6,7,Yes,"{script}",a;b,"text",{actions},{length}\n'


def build(folder: Path, train: str, test: str = "", videos: str = "A B C D E F G H T") -> ManifestBuild:
    (folder / "videos").mkdir(exist_ok=True)
    for video_id in videos.split():
        (folder / "videos" / f"{video_id}.mp4").touch()
    (folder / "train.csv").write_text(HEADER + train)
    (folder / "test.csv").write_text(HEADER + (test or row("T")))
    (folder / "classes.txt").write_text(CLASSES)
    files = (str(folder / name) for name in ("train.csv", "test.csv", "classes.txt", "videos"))
    return build_charades(*files)


def test_good_rows_become_entries(tmp_path: Path) -> None:
    built = build(tmp_path, row("A", "c002 11.90 21.20;c000 0.00 12.60") + row("B"), row("T", "c001 1 2", "7"))
    assert built.problems == ()
    assert built.manifest.class_names == ("Holding some clothes", "Putting clothes somewhere", "Taking a bath")
    first, second, third = built.manifest.entries
    assert (first.video_id, first.split, first.duration_s) == ("A", "train", 30.5)
    assert first.uri == str(tmp_path / "videos" / "A.mp4")
    assert first.labels == (Label(2, 11.9, 21.2), Label(0, 0.0, 12.6))
    assert second.labels == ()
    assert (third.split, third.labels) == ("test", (Label(1, 1.0, 2.0),))


def test_action_after_the_length_is_kept_as_it_is(tmp_path: Path) -> None:
    built = build(tmp_path, row("A", "c000 20.0 35.0", "30.0"))
    assert built.problems == ()
    assert built.manifest.entries[0].labels[0].end_s == 35.0


def test_bad_rows_and_actions_are_listed_by_file_and_line(tmp_path: Path) -> None:
    train = (
        row("A", script="two\nlines")  # lines 2 and 3
        + row("A")
        + row("X")
        + row("B", "c000 5 5;c000 1 2;c001 3 1")
        + row("C", "c009 1 2")
        + row("D", "c000 one 2;c001;c002 nan 1")
        + row("E", length="long")
        + row("F", length="-1")
        + row("..")
    )
    built = build(tmp_path, train, row("T") + row("B"))
    train_csv, test_csv = str(tmp_path / "train.csv"), str(tmp_path / "test.csv")
    found = [(problem.file, problem.line, problem.reason) for problem in built.problems]
    expected = [
        (train_csv, 4, "already"),
        (train_csv, 5, "no video X.mp4"),
        (train_csv, 6, "'c000 5 5' ends at or before"),
        (train_csv, 6, "'c001 3 1' ends at or before"),
        (train_csv, 7, "not in the classes file"),
        (train_csv, 8, "'c000 one 2'"),
        (train_csv, 8, "'c001'"),
        (train_csv, 8, "'c002 nan 1'"),
        (train_csv, 9, "length 'long'"),
        (train_csv, 10, "length '-1'"),
        (train_csv, 11, "no video"),
        (test_csv, 3, "already"),
    ]
    assert [(file, line) for file, line, _ in found] == [(file, line) for file, line, _ in expected]
    for (_, _, reason), (_, _, part) in zip(found, expected, strict=True):
        assert part in reason
    labels = {entry.video_id: entry.labels for entry in built.manifest.entries}
    assert labels == {"A": (), "B": (Label(0, 1, 2),), "C": (), "D": (), "T": ()}


@pytest.mark.parametrize("content", ["", "\n\n", HEADER, "id,actions\nA,\n", "\xff\xfe"])
def test_unusable_csv_is_refused(tmp_path: Path, content: str) -> None:
    build(tmp_path, row("A"))
    (tmp_path / "train.csv").write_bytes(content.encode("latin-1"))
    files = [str(tmp_path / name) for name in ("train.csv", "test.csv", "classes.txt", "videos")]
    with pytest.raises(ManifestError, match=r"train\.csv"):
        build_charades(*files)


@pytest.mark.parametrize("name", ["train.csv", "test.csv", "classes.txt", "videos"])
def test_missing_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    build(tmp_path, row("A"))
    files = [
        str(tmp_path / ("gone-" * (part == name) + part)) for part in ("train.csv", "test.csv", "classes.txt", "videos")
    ]
    with pytest.raises(ManifestError, match=f"gone-{name}"):
        build_charades(*files)


def test_class_listed_twice_is_refused(tmp_path: Path) -> None:
    build(tmp_path, row("A"))
    (tmp_path / "classes.txt").write_text(CLASSES + "c000 Something else\n")
    files = (str(tmp_path / name) for name in ("train.csv", "test.csv", "classes.txt", "videos"))
    with pytest.raises(ManifestError, match=r"classes\.txt:4: class 'c000'"):
        build_charades(*files)


def test_infinite_end_is_a_label_to_the_end(tmp_path: Path) -> None:
    built = build(tmp_path, row("A", "c000 3 inf"))
    assert built.manifest.entries[0].labels == (Label(0, 3.0, math.inf),)


def test_annotations_and_videos_may_be_on_s3(s3: "S3Folder") -> None:
    files = {
        "train.csv": HEADER + row("A", "c002 11.90 21.20") + row("X"),
        "test.csv": HEADER + row("T"),
        "classes.txt": CLASSES,
        "videos/A.mp4": "",
        "videos/T.mp4": "",
    }
    for name, text in files.items():
        s3.write(name, text.encode())
    built = build_charades(*(s3.join(name) for name in ("train.csv", "test.csv", "classes.txt", "videos")))
    assert [(entry.uri, entry.labels) for entry in built.manifest.entries] == [
        (s3.join("videos/A.mp4"), (Label(2, 11.9, 21.2),)),
        (s3.join("videos/T.mp4"), ()),
    ]
    assert [(problem.file, problem.line) for problem in built.problems] == [(s3.join("train.csv"), 3)]
