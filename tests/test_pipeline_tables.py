"""CSV and JSON-lines tables: the two forms agree, and problems are listed by line."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ManifestError
from pipeline.manifest import Label
from pipeline.tables import build_table


def write_csv(folder: Path, *lines: str) -> str:
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write_jsonl(folder: Path, *rows: Any) -> str:
    path = folder / "table.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


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
    for path, reason in {
        str(tmp_path / "table.txt"): "allowed: .csv, .jsonl",
        str(tmp_path / "gone.csv"): "gone.csv",
        write_csv(tmp_path, "path,labels", "a,b"): "no column uri",
        write_jsonl(tmp_path, ""): "empty",
    }.items():
        with pytest.raises(ManifestError, match=reason):
            build_table(path)
