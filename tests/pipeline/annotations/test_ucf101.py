"""UCF-101's split files: classes in the official order, both splits, and problems with file and line."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from skipreel.pipeline.annotations.ucf101 import build_ucf101
from skipreel.pipeline.errors import ManifestError
from skipreel.pipeline.manifest import Label

if TYPE_CHECKING:
    from tests.support.s3 import S3Folder

pytest_plugins = ("tests.support.s3",)

TRAIN = (
    "YoYo/v_YoYo_g08_c01.avi 3\r\nArchery/v_Archery_g08_c01.avi 1\r\n\r\n"
    "BasketballDunk/v_BasketballDunk_g09_c01.avi 2\r\n"
)
TEST = "Archery/v_Archery_g01_c01.avi\r\nYoYo/v_YoYo_g01_c01.avi\r\n"
CLASSES = "1 Archery\r\n2 BasketballDunk\r\n3 YoYo\r\n"


def corpus(
    folder: Path, train: str = TRAIN, test: str = TEST, classes: str = CLASSES, number: int = 1
) -> tuple[str, str]:
    """The folder of the videos that the good lists name, and the folder of these lists."""
    for line in (TRAIN + TEST).split("\r\n"):
        if line:
            video = folder / "UCF-101" / line.split()[0]
            video.parent.mkdir(parents=True, exist_ok=True)
            video.touch()
    lists = folder / "ucfTrainTestlist"
    lists.mkdir(exist_ok=True)
    for name, text in ((f"trainlist{number:02}", train), (f"testlist{number:02}", test), ("classInd", classes)):
        (lists / f"{name}.txt").write_bytes(text.encode())
    return str(folder / "UCF-101"), str(lists)


def test_lists_become_entries_with_the_official_classes(tmp_path: Path) -> None:
    root, lists = corpus(tmp_path)
    built = build_ucf101(root, lists)
    assert built.problems == ()
    assert built.manifest.class_names == ("Archery", "BasketballDunk", "YoYo")
    assert [(entry.video_id, entry.split, entry.labels) for entry in built.manifest.entries] == [
        ("YoYo/v_YoYo_g08_c01", "train", (Label(2),)),
        ("Archery/v_Archery_g08_c01", "train", (Label(0),)),
        ("BasketballDunk/v_BasketballDunk_g09_c01", "train", (Label(1),)),
        ("Archery/v_Archery_g01_c01", "test", (Label(0),)),
        ("YoYo/v_YoYo_g01_c01", "test", (Label(2),)),
    ]
    assert built.manifest.entries[0].uri == f"{root}/YoYo/v_YoYo_g08_c01.avi"


def test_split_number_picks_the_lists(tmp_path: Path) -> None:
    corpus(tmp_path, number=1)
    train = "Archery/v_Archery_g01_c01.avi 1\nYoYo/v_YoYo_g01_c01.avi 3\n"
    root, lists = corpus(tmp_path, train, TRAIN, number=3)
    built = build_ucf101(root, lists, 3)
    assert built.problems == ()
    assert [entry.split for entry in built.manifest.entries] == ["train"] * 2 + ["test"] * 3
    with pytest.raises(ManifestError, match=r"trainlist02\.txt"):
        build_ucf101(root, lists, 2)


def test_mistakes_are_listed_by_file_and_line(tmp_path: Path) -> None:
    train = (
        "YoYo/v_YoYo_g08_c01.avi 3\n"
        "Archery/v_Archery_g08_c01.avi\n"
        "\n"
        "BasketballDunk/v_BasketballDunk_g09_c01.avi 1\n"
        "Bowling/v_Bowling_g09_c01.avi 4\n"
        "YoYo/v_YoYo_g99_c01.avi 3\n"
        "YoYo/v_YoYo_g08_c01.avi 3\n"
    )
    root, lists = corpus(tmp_path, train, "YoYo/v_YoYo_g01_c01.avi\nYoYo/v_YoYo_g08_c01.avi\n")
    (Path(root) / "YoYo" / "notes.txt").touch()
    built = build_ucf101(root, lists)
    expected = [
        (f"{lists}/trainlist01.txt", 2, "number of its class"),
        (f"{lists}/trainlist01.txt", 4, "class number 1"),
        (f"{lists}/trainlist01.txt", 5, "'Bowling'"),
        (f"{lists}/trainlist01.txt", 6, "no video 'YoYo/v_YoYo_g99_c01.avi'"),
        (f"{lists}/trainlist01.txt", 7, "trainlist01.txt:1"),
        (f"{lists}/testlist01.txt", 2, "trainlist01.txt:1"),
        (f"{root}/Archery/v_Archery_g01_c01.avi", 0, "neither list"),
    ]
    assert [(problem.file, problem.line) for problem in built.problems] == [place[:2] for place in expected]
    for problem, (_, _, part) in zip(built.problems, expected, strict=True):
        assert part in problem.reason
    assert [entry.video_id for entry in built.manifest.entries] == ["YoYo/v_YoYo_g08_c01", "YoYo/v_YoYo_g01_c01"]


@pytest.mark.parametrize("classes", ["1 A\n3 Y\n", "1 A\n2 A\n", "1 A\n2\n", "0 A\n", "A\n"])
def test_class_list_with_a_gap_or_a_repetition_is_refused(tmp_path: Path, classes: str) -> None:
    root, lists = corpus(tmp_path, classes=classes)
    with pytest.raises(ManifestError, match=r"classInd\.txt:\d: .* not the next new class"):
        build_ucf101(root, lists)


@pytest.mark.parametrize("name", ["classInd.txt", "trainlist01.txt", "testlist01.txt"])
def test_missing_or_empty_list_is_refused_by_name(tmp_path: Path, name: str) -> None:
    root, lists = corpus(tmp_path)
    (Path(lists) / name).write_text("\n")
    with pytest.raises(ManifestError, match=f"{name} is empty"):
        build_ucf101(root, lists)
    (Path(lists) / name).unlink()
    with pytest.raises(ManifestError, match=name):
        build_ucf101(root, lists)


def test_folder_without_videos_is_refused(tmp_path: Path) -> None:
    _, lists = corpus(tmp_path)
    with pytest.raises(ManifestError, match="no video in"):
        build_ucf101(lists, lists)


def test_videos_and_lists_may_be_on_s3(s3: "S3Folder", tmp_path: Path) -> None:
    root, lists = map(Path, corpus(tmp_path))
    for path in (*root.rglob("*.avi"), *lists.iterdir()):
        s3.write(str(path.relative_to(tmp_path)), path.read_bytes())
    built = build_ucf101(s3.join(root.name), s3.join(lists.name))
    assert built.problems == ()
    assert [entry.video_id for entry in built.manifest.entries] == [
        entry.video_id for entry in build_ucf101(str(root), str(lists)).manifest.entries
    ]
    assert built.manifest.entries[0].uri == s3.join("UCF-101/YoYo/v_YoYo_g08_c01.avi")
