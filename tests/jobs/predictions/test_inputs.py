"""Files, folders, URIs and manifests become videos, each once and in a fixed order."""

import os
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from skipreel.jobs.predictions import inputs as module
from skipreel.jobs.predictions.inputs import VideoInput, require_distinct_ids, video_inputs
from skipreel.pipeline.errors import InputError, ManifestError, StorageError
from skipreel.pipeline.manifest import Manifest, VideoEntry, write_manifest, write_rows

if TYPE_CHECKING:
    from tests.support.s3 import S3Folder

pytest_plugins = ("tests.support.s3",)


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def keys(videos):
    return [video.key for video in videos]


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """A folder of videos and other files, seen from its parent."""
    touch(tmp_path / "clips", "b.mp4", "a.MKV", "sub/c d.webm", "notes.txt", ".hidden.mp4", ".cache/e.mp4", "a%20b.mov")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "clips"


@pytest.fixture
def manifest(clips):
    entries = (
        VideoEntry("one", str(clips / "b.mp4"), "train"),
        VideoEntry("two", "s3://bucket/two.mp4", "test"),
        VideoEntry("three", "/elsewhere/three.mp4", "test"),
    )
    write_manifest(Manifest(entries, ()), "m.parquet")
    return "m.parquet"


def test_a_folder_is_all_its_videos_sorted_and_nothing_else(clips):
    found = video_inputs(["clips"])
    assert keys(found) == ["clips/a%20b.mov", "clips/a.MKV", "clips/b.mp4", "clips/sub/c d.webm"]
    assert len(found) == 4
    assert all(os.path.exists(video.uri) for video in found)  # noqa: PTH110


def test_files_keep_their_names_and_order_whatever_they_are_called_and_whether_they_are_there(clips):
    given = ["clips/notes.txt", "missing.mp4", "clips/b.mp4"]
    assert list(video_inputs(given)) == [VideoInput(name, name) for name in given]


def test_a_file_named_twice_is_there_once(clips):
    absolute = str(clips / "b.mp4")
    spellings = ["./clips/b.mp4", absolute, f"file://{absolute}", "clips", "clips/"]
    found = keys(video_inputs(spellings))
    assert found == ["./clips/b.mp4", "clips/a%20b.mov", "clips/a.MKV", "clips/sub/c d.webm"]


def test_two_files_with_one_id_are_refused_where_ids_must_tell_them_apart(clips):
    touch(clips, "sub/b.mp4")
    require_distinct_ids(video_inputs(["clips/b.mp4", "clips/a.MKV"]))
    both = r"clips/b\.mp4 and clips/sub/b\.mp4 would both be 'b' in the file: .* give a manifest with an id for each"
    with pytest.raises(InputError, match=both):
        require_distinct_ids(video_inputs(["clips"]))


def test_a_folder_as_a_uri_quotes_what_a_uri_must(clips):
    found = keys(video_inputs([f"file://{clips}"]))
    assert [name.removeprefix(f"file://{clips}/") for name in found] == [
        "a%2520b.mov",
        "a.MKV",
        "b.mp4",
        "sub/c%20d.webm",
    ]


def test_a_manifest_gives_its_ids_for_all_or_one_split(manifest):
    assert keys(video_inputs([], manifest=manifest)) == ["one", "two", "three"]
    found = video_inputs([], manifest=manifest, split="test")
    wanted = [VideoInput("two", "s3://bucket/two.mp4"), VideoInput("three", "/elsewhere/three.mp4")]
    assert list(found) == list(found) == wanted
    assert len(found) == 2


def test_mixed_videos_come_first_and_once(manifest):
    found = video_inputs(["clips/b.mp4", "s3://bucket/x.mp4"], manifest=manifest)
    assert keys(found) == ["clips/b.mp4", "s3://bucket/x.mp4", "two", "three"]
    assert len(found) == 4


def test_another_video_under_a_name_that_is_given_is_refused(manifest):
    with pytest.raises(ManifestError, match="has a video two other than"):
        video_inputs(["two"], manifest=manifest)


def test_a_large_manifest_is_read_as_it_is_needed(tmp_path, monkeypatch):
    path = str(tmp_path / "m.parquet")
    write_rows((VideoEntry(str(i), f"/{i}.mp4", "train") for i in range(50_000)), (), path)
    found = video_inputs([], manifest=path)
    assert len(found) == 50_000
    read = []

    def counting(uri):
        for batch in iterate(uri):
            read.append(len(batch))
            yield batch

    iterate = module.iterate_manifest
    monkeypatch.setattr(module, "iterate_manifest", counting)
    assert keys(islice(found, 2)) == ["0", "1"]
    assert sum(read) < 20_000


@pytest.mark.parametrize(
    ("videos", "options", "words"),
    [
        ([], {}, "no video given: name files"),
        (["empty"], {}, r"folder empty has no video: allowed are files that end in \.mp4"),
        (["clips/b.mp4"], {"split": "test"}, "give the manifest"),
        ([], {"manifest": "m.parquet", "split": "tset"}, r"no split 'tset' in m\.parquet; allowed: test, train"),
        ([], {"manifest": "absent.parquet"}, r"absent\.parquet.*build a manifest first"),
        (["a\udcff.mp4"], {}, r"'a\\udcff\.mp4' is not UTF-8 text"),
    ],
)
def test_what_makes_no_videos_is_told_in_one_line(clips, manifest, videos, options, words):
    (clips.parent / "empty").mkdir()
    with pytest.raises(InputError, match=words) as stop:
        video_inputs(videos, **options)
    assert "\n" not in str(stop.value)


def test_a_folder_of_a_bucket_is_listed_and_a_video_of_it_is_not_asked_for(s3: "S3Folder"):
    for name in ("sub/b.mp4", "a.mp4", "notes.txt"):
        s3.write(f"clips/{name}")
    found = list(video_inputs([s3.join("clips")]))
    assert [video.uri for video in found] == [s3.join("clips", "a.mp4"), s3.join("clips", "sub/b.mp4")]
    del s3.requests[:]
    assert list(video_inputs([found[1].uri, found[0].uri])) == found[::-1]
    assert s3.requests == []
    s3.write("none/notes.txt")
    with pytest.raises(InputError, match="has no video"):
        video_inputs([s3.join("none")])
    with pytest.raises(StorageError, match="cannot look for"):
        video_inputs([s3.forbidden])
