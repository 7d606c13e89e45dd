"""CSV, JSON-lines and Parquet tables agree, and problems are listed by line."""

import errno
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skipreel.pipeline import storage
from skipreel.pipeline.annotations.table import build_table
from skipreel.pipeline.errors import ManifestError, StorageError
from skipreel.pipeline.manifest import Label

if TYPE_CHECKING:
    from tests.support.s3 import S3Folder

pytest_plugins = ("tests.support.s3",)


def write_csv(folder: Path, *lines: str) -> str:
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write_jsonl(folder: Path, *rows: Any) -> str:
    path = folder / "table.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def write_parquet(folder: Path, **columns: Any) -> str:
    path = str(folder / "table.parquet")
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(autouse=True)
def _videos(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in "abc":
        (tmp_path / "clips" / f"{name}.mp4").touch()


def test_csv_and_jsonl_say_the_same(tmp_path: Path) -> None:
    absolute = tmp_path / "clips" / "c.mp4"
    from_csv = build_table(
        write_csv(
            tmp_path,
            "uri,split,duration_s,labels,video_id,extra",
            "clips/a.mp4,test,12.5,run fast 1 2.5;jump 3 inf,,x",
            "clips/b.mp4,,,jump,second,x",
            f"{absolute.as_uri()},val,,,third,x",
        )
    )
    from_jsonl = build_table(
        write_jsonl(
            tmp_path,
            {
                "uri": "clips/a.mp4",
                "split": "test",
                "duration_s": 12.5,
                "labels": [{"class": "run fast", "start_s": 1, "end_s": 2.5}, {"class": "jump", "start_s": 3}],
            },
            {"uri": "clips/b.mp4", "labels": ["jump"], "video_id": "second", "duration_s": None},
            {"uri": absolute.as_uri(), "split": "val", "video_id": "third"},
        )
    )
    assert from_csv.manifest == from_jsonl.manifest
    assert from_jsonl.problems == ()
    assert from_csv.problems == ()
    spans = [{"class": "run fast", "start_s": 1.0, "end_s": 2.5}, {"class": "jump", "start_s": 3.0}]
    for labels in (["run fast 1 2.5;jump 3 inf", "jump", None], [spans, [{"class": "jump"}], None]):
        from_parquet = build_table(
            write_parquet(
                tmp_path,
                uri=["clips/a.mp4", "clips/b.mp4", absolute.as_uri()],
                split=pa.array(["test", None, "val"]).dictionary_encode(),
                duration_s=[12.5, None, None],
                labels=labels,
                video_id=[None, "second", "third"],
                extra=[b"x"] * 3,
            )
        )
        assert from_parquet.manifest == from_csv.manifest
        assert from_parquet.problems == ()
    first, second, third = from_csv.manifest.entries
    assert from_csv.manifest.class_names == ("jump", "run fast")
    assert (first.video_id, first.uri) == ("clips/a", str(tmp_path / "clips/a.mp4"))
    assert (first.split, first.duration_s) == ("test", 12.5)
    assert first.labels == (Label(1, 1.0, 2.5), Label(0, 3.0, math.inf))
    assert (second.video_id, second.split, second.duration_s, second.labels) == ("second", "train", None, (Label(0),))
    assert (third.split, third.labels) == ("val", ())


def test_classes_file_sets_order_and_accepts_keys(tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("c000 Walking\nc001 Take 5 10\n")
    table = write_csv(tmp_path, "uri,labels", "clips/a.mp4,c001 1 2;Walking", "clips/b.mp4,Take 5 10;dance 1 2")
    built = build_table(table, str(classes))
    assert built.manifest.class_names == ("Walking", "Take 5 10")
    assert built.manifest.entries[0].labels == (Label(1, 1, 2), Label(0))
    assert built.manifest.entries[1].labels == (Label(1),)
    assert [(problem.line, "'dance'" in problem.reason) for problem in built.problems] == [(3, True)]


def test_bad_csv_rows_and_labels_are_listed_by_line(tmp_path: Path) -> None:
    table = write_csv(
        tmp_path,
        "uri,labels,duration_s,video_id",
        "clips/a.mp4,run 2 1;run 1 2;run -1 2;run nan 3,,",
        ",run,,",
        "clips/gone.mp4,run,,",
        "",
        "clips/b.mp4,run,soon,",
        "clips/b.mp4,run,,clips/a",
        "nope://x/y.mp4,run,,",
        "clips/b.mp4,run,,../../b",
        "clips/c.mp4,run,1,",
    )
    built = build_table(table)
    assert [problem.line for problem in built.problems] == [2, 2, 2, 3, 4, 6, 7, 8, 9]
    assert all(problem.file == table and "\n" not in problem.reason for problem in built.problems)
    assert {entry.video_id: entry.labels for entry in built.manifest.entries} == {
        "clips/a": (Label(0, 1, 2),),
        "clips/c": (Label(0),),
    }


def test_bad_jsonl_rows_are_listed_by_line(tmp_path: Path) -> None:
    table = write_jsonl(
        tmp_path,
        "{not json",
        [1],
        {"uri": 3},
        {"uri": "clips/a.mp4", "labels": 3},
        {"uri": "clips/a.mp4", "labels": [3]},
        {"uri": "clips/a.mp4", "labels": [{"class": "run", "start_s": "x"}, {"class": ""}, "run"]},
        {"uri": "clips/b.mp4", "duration_s": True},
    )
    built = build_table(table)
    assert [problem.line for problem in built.problems] == [1, 2, 3, 4, 5, 6, 6, 7]
    assert [(entry.video_id, entry.labels) for entry in built.manifest.entries] == [("clips/a", (Label(0),))]


def test_bad_parquet_rows_are_listed_by_their_number(tmp_path: Path) -> None:
    rows = {
        "uri": ["clips/a.mp4", None, "clips/gone.mp4", "clips/b.mp4", "clips/a.mp4", "clips/c.mp4", "clips"],
        "labels": [["run"], ["run"], ["run"], ["run"], ["run"], ["run", " "], []],
        "duration_s": [1.0, 1.0, 1.0, math.nan, 1.0, 0.5, None],
    }
    table = write_parquet(tmp_path, **rows)
    built = build_table(table)
    assert [(problem.file, problem.line) for problem in built.problems] == [(table, n) for n in (2, 3, 4, 5, 6, 7)]
    assert {entry.video_id: entry.duration_s for entry in built.manifest.entries} == {"clips/a": 1.0, "clips/c": 0.5}
    built = build_table(write_parquet(tmp_path, uri=[1], labels=[2]))
    assert [problem.line for problem in built.problems] == [1]


def test_rows_are_read_and_their_files_looked_up_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"clips/{'abc'[n % 3]}.mp4,run,v{n}" for n in range(10_000)]
    table = write_csv(tmp_path, "uri,labels,video_id", *rows)
    asked: list[int] = []
    file_stats = storage.file_stats
    monkeypatch.setattr(storage, "file_stats", lambda uris: [asked.append(len(uris)), file_stats(uris)][1])
    built = iter(build_table(table).rows)
    next(built)
    assert 100 < asked[0] < 5000
    assert len(asked) == 1
    assert len([*built]) == 9999
    assert sum(asked) == 10_000


def test_table_on_s3_finds_videos_in_its_bucket_with_one_request_each(s3: "S3Folder") -> None:
    for name in "abc":
        s3.write(f"clips/{name} 1.mp4")
    names = ("../clips/a 1.mp4", "./../clips/b 1.mp4", s3.join("clips/c 1.mp4"), "clips/a 1.mp4", s3.forbidden)
    table = s3.write(
        "lists/table.jsonl", "\n".join(json.dumps({"uri": name, "labels": "run"}) for name in names).encode()
    )
    start = len(s3.requests)
    built = build_table(table)
    assert [entry.uri for entry in built.manifest.entries] == [s3.join("clips", f"{name} 1.mp4") for name in "abc"]
    assert [problem.line for problem in built.problems] == [4, 5]
    assert sum(request.endswith("/clips/b 1.mp4") for request in s3.requests[start:]) == 1


def test_outage_is_an_error(s3: "S3Folder") -> None:
    table = s3.write("table.csv", b"uri\nforbidden/a.mp4\nforbidden/b.mp4\n")
    with pytest.raises(StorageError, match="ACCESS_DENIED"):
        list(build_table(table).rows)


def test_default_id_never_leaves_its_folder(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    inside = tmp_path / "clips" / "b.mp4"
    built = build_table(
        write_csv(tmp_path / "lists", "uri", "../clips/a.mp4", str(inside), (tmp_path / "clips/c.mp4").as_uri())
    )
    assert built.problems == ()
    folder = str(tmp_path).lstrip("/")
    assert [entry.video_id for entry in built.manifest.entries] == ["clips/a", f"{folder}/clips/b", f"{folder}/clips/c"]


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "table.txt").touch()
    (tmp_path / "text.parquet").write_text("uri,labels")
    for path, reason in {
        str(tmp_path / "table.txt"): "allowed: .csv, .jsonl, .parquet",
        str(tmp_path / "gone.csv"): "gone.csv",
        str(tmp_path / "gone.jsonl"): "gone.jsonl",
        str(tmp_path / "gone.parquet"): "gone.parquet",
        str(tmp_path / "text.parquet"): "is not Parquet",
        write_csv(tmp_path, "path,labels", "a,b"): "no column uri",
        write_jsonl(tmp_path, ""): "empty",
    }.items():
        with pytest.raises(ManifestError, match=reason):
            build_table(path)
    for columns, reason in (({"path": ["a"]}, "no column uri"), ({"uri": pa.array([], "str")}, "no row")):
        with pytest.raises(ManifestError, match=reason):
            build_table(write_parquet(tmp_path, **columns))


@pytest.mark.parametrize("text", [b"uri\n\xff\xfe.mp4\n", b"uri\n" + b"a" * 200_000 + b"\n"])
def test_damage_further_down_is_an_error_that_names_the_file(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(text)
    with pytest.raises(ManifestError, match=r"table\.csv.*save it as"):
        list(build_table(str(path)).rows)


def test_file_that_breaks_off_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.BytesIO):
        def read1(self, *_: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(storage, "open_input", lambda *_: Broken(b"uri\n"))
    with pytest.raises(ManifestError, match=r"cannot read .*table\.csv: Input/output error"):
        build_table(write_csv(tmp_path, "uri", "clips/a.mp4"))


def test_class_names_do_not_depend_on_which_files_are_there(tmp_path: Path) -> None:
    built = build_table(write_csv(tmp_path, "uri,labels", "clips/gone.mp4,alpha", "clips/b.mp4,run"))
    assert built.manifest.class_names == ("alpha", "run")
    assert built.manifest.entries[0].labels == (Label(1),)
