"""A folder per class: ids, classes, splits, and problems with file and line."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipreel.pipeline import storage
from skipreel.pipeline.annotations.class_folders import build_folder
from skipreel.pipeline.errors import ManifestError
from skipreel.pipeline.manifest import Label

if TYPE_CHECKING:
    from tests.support.s3 import S3Folder

pytest_plugins = ("tests.support.s3",)

DATA = Path(__file__).parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the real clips (../shared/data) are absent")


def touch(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def splits_of(files: list[str], test_fraction: float, seed: int) -> dict[str, str]:
    """The split of each file in a folder that would hold these files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "list_tree", lambda _: files)
        entries = build_folder("/clips", None, test_fraction, seed).manifest.entries
    return {entry.uri.removeprefix("/clips/"): entry.split for entry in entries}


def test_subfolders_are_classes_and_files_are_videos(tmp_path: Path) -> None:
    root = touch(tmp_path, "run/b.MP4", "run/deep/a.webm", "jump/c.avi", "jump/note.txt", "jump/._c.avi", "top.mp4")
    (root / "empty").mkdir()
    built = build_folder(str(root))
    assert built.problems == ()
    assert built.manifest.class_names == ("jump", "run")
    assert [(entry.video_id, entry.labels) for entry in built.manifest.entries] == [
        ("jump/c", (Label(0),)),
        ("run/b", (Label(1),)),
        ("run/deep/a", (Label(1),)),
    ]
    assert built.manifest.entries[1].uri == str(root / "run/b.MP4")
    assert all(entry.duration_s is None for entry in built.manifest.entries)


def test_relative_root_gives_absolute_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "clips/run/a.mp4")
    monkeypatch.chdir(tmp_path)
    assert build_folder("clips").manifest.entries[0].uri == str(tmp_path / "clips/run/a.mp4")


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 40), min_size=1), st.floats(0.01, 0.99), st.integers(0, 9)
)
def test_each_class_is_split_alike(sizes: dict[str, int], test_fraction: float, seed: int) -> None:
    files = [f"{name}/{n}.mp4" for name, size in sizes.items() for n in range(size)]
    split_of = splits_of(files, test_fraction, seed)
    assert set(split_of) == set(files)
    for name, size in sizes.items():
        num_test = sum(split == "test" for file, split in split_of.items() if file.startswith(name))
        assert num_test <= size - 1
        assert size == 1 or num_test >= 1
        assert abs(num_test - test_fraction * size) <= 1 or num_test in (1, size - 1)


def test_split_is_fixed_by_the_seed_on_every_machine() -> None:
    files = [f"a/{n}.mp4" for n in range(10)]
    tests = {seed: [f for f, split in splits_of(files, 0.3, seed).items() if split == "test"] for seed in (0, 1)}
    assert tests[0] == ["a/2.mp4", "a/6.mp4", "a/8.mp4"]  # frozen: a change would mix train and test of old models
    assert tests[0] != tests[1]


def test_splits_file_decides_and_its_mistakes_are_listed(tmp_path: Path) -> None:
    root = touch(tmp_path / "clips", "run/a.mp4", "run/b.mp4", "jump/c.mp4", "jump/d.mp4")
    splits = tmp_path / "splits.csv"
    splits.write_text(
        "split,file,fps\nval,run/a.mp4,3\ntrain,run/gone.mp4,3\n,jump/c.mp4,3\ntest,run/a.mp4,3\ntrain,jump/d.mp4\n"
    )
    built = build_folder(str(root), str(splits))
    assert {entry.video_id: entry.split for entry in built.manifest.entries} == {"run/a": "val", "jump/d": "train"}
    assert [(problem.file, problem.line) for problem in built.problems] == [
        (str(splits), 3),
        (str(splits), 4),
        (str(splits), 5),
        (str(root / "jump/c.mp4"), 0),
        (str(root / "run/b.mp4"), 0),
    ]


def test_two_files_with_one_id_are_a_problem(tmp_path: Path) -> None:
    built = build_folder(str(touch(tmp_path, "run/a.avi", "run/a.mp4")))
    assert [entry.uri for entry in built.manifest.entries] == [str(tmp_path / "run/a.avi")]
    assert [problem.file for problem in built.problems] == [str(tmp_path / "run/a.mp4")]


def test_unusable_folder_or_options_are_refused(tmp_path: Path) -> None:
    for root in (
        tmp_path / "gone",
        touch(tmp_path / "flat", "a.mp4"),
        touch(tmp_path / "texts", "run/a.txt"),
    ):
        with pytest.raises(ManifestError, match="no class folder"):
            build_folder(str(root))
    root = str(touch(tmp_path / "good", "run/a.mp4"))
    with pytest.raises(ManifestError, match="between 0 and 1"):
        build_folder(root, test_fraction=1.0)
    splits = tmp_path / "splits.csv"
    splits.write_text("file\nrun/a.mp4\n")
    with pytest.raises(ManifestError, match="no column split"):
        build_folder(root, str(splits))


def test_folder_on_s3_is_listed_as_one_on_disk(s3: "S3Folder", tmp_path: Path) -> None:
    files = ("clips/run/a b.mp4", "clips/run/b.mp4", "clips/jump/c.avi", "clips/jump/note.txt")
    root = touch(tmp_path, *files) / "clips"
    for file in files:
        s3.write(file)
    local, remote = build_folder(str(root)), build_folder(s3.join("clips"))
    assert [(entry.video_id, entry.split, entry.labels) for entry in remote.manifest.entries] == [
        (entry.video_id, entry.split, entry.labels) for entry in local.manifest.entries
    ]
    assert [entry.uri for entry in remote.manifest.entries] == [
        s3.join("clips", file) for file in ("jump/c.avi", "run/a b.mp4", "run/b.mp4")
    ]
    splits = s3.write("splits.csv", b"file,split\nrun/b.mp4,train\nrun/gone.mp4,test\n")
    built = build_folder(s3.join("clips"), splits)
    assert [str(problem).partition(": ")[0] for problem in built.problems] == [
        f"{splits}:3",
        s3.join("clips/jump/c.avi"),
        s3.join("clips/run/a b.mp4"),
    ]
    with pytest.raises(ManifestError, match="no class folder"):
        build_folder(s3.join("gone"))


@needs_data
def test_real_folders_build_without_problems() -> None:
    fight = build_folder(str(DATA / "fight"), str(DATA / "fight" / "clips.csv"))
    assert fight.problems == ()
    assert (len(fight.manifest.entries), fight.manifest.class_names) == (204, ("fight", "noFight"))
    shapes = build_folder(str(DATA / "shapes_motion"))
    assert shapes.problems == ()
    assert len(shapes.manifest.entries) == 135
    assert shapes.manifest.class_names == ("circular", "horizontal", "vertical")
