"""Extraction through the command, on a real Ray cluster."""

import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import ray

from features import store
from features.reader import FeatureSet
from jobs import cli, extract
from jobs.cli import main
from pipeline.manifest import Label, Manifest, VideoEntry, write_manifest
from videos import write_video


@pytest.fixture
def mixed(tmp_path):
    """Twelve good videos among four that cannot be decoded, and their manifest."""
    names = [f"good{number:02d}" for number in range(12)]
    for number, name in enumerate(names):
        write_video(tmp_path / f"{name}.mp4", num_frames=20 + number, fps=10)
    whole = (tmp_path / "good00.mp4").read_bytes()
    (tmp_path / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("a letter")
    names += ["truncated", "empty", "text", "vanished"]
    entries = [VideoEntry(name, str(tmp_path / f"{name}.mp4"), "train", None, (Label(0),)) for name in names]
    write_manifest(Manifest(tuple(entries), ("thing",)), str(tmp_path / "m.parquet"))
    return tmp_path


def command(folder, *more: str) -> list[str]:
    output = str(folder / "features")
    return ["extract", "--manifest", str(folder / "m.parquet"), "--output", output, "--backbone", "random:0", *more]


def rows(folder) -> list[tuple]:
    shards = sorted((folder / "features" / "shards").glob("*.parquet"))
    return sorted(
        (row["video_id"], row["segment"], *row["frame_index"], *row["features"])
        for shard in shards
        for row in pq.read_table(shard).to_pylist()
    )


def test_every_video_ends_in_exactly_one_place(mixed, cluster, capsys):
    assert main(command(mixed)) == extract.EXIT_SOME_FAILED
    features = str(mixed / "features")
    assert sorted(store.finished(features)) == [f"good{number:02d}" for number in range(12)]
    reasons = {row["video_id"]: row["reason"] for row in store.failures(features)}
    assert sorted(reasons) == ["empty", "text", "truncated", "vanished"]
    assert all(reasons.values())
    output = capsys.readouterr().err
    assert "12 videos with features, 4 failed" in output
    before = rows(mixed)
    assert len(before) == 12
    assert main(command(mixed)) == extract.EXIT_SOME_FAILED
    assert rows(mixed) == before


def test_an_interrupted_extraction_goes_on_where_it_stopped(mixed, cluster):
    main(command(mixed))
    complete = rows(mixed)
    shards = sorted((mixed / "features" / "shards").iterdir())
    shards[0].unlink()
    left = rows(mixed)
    assert 0 < len(left) < len(complete)
    main(command(mixed))
    assert rows(mixed) == complete


def test_a_mended_video_is_extracted_on_the_next_run(mixed, cluster):
    main(command(mixed))
    (mixed / "empty.mp4").write_bytes((mixed / "good00.mp4").read_bytes())
    main(command(mixed))
    assert "empty" in FeatureSet(str(mixed / "features")).video_ids()
    assert "empty" not in {row["video_id"] for row in store.failures(str(mixed / "features"))}


def test_a_changed_video_and_another_recipe_are_refused(mixed, cluster, capsys):
    main(command(mixed))
    before = rows(mixed)
    assert main(command(mixed, "--rate-hz", "2")) == cli.EXIT_ERROR
    assert "another recipe" in capsys.readouterr().err
    write_video(mixed / "good00.mp4", num_frames=9, fps=10)
    assert main(command(mixed)) == cli.EXIT_ERROR
    assert "has changed since" in capsys.readouterr().err
    assert rows(mixed) == before


def test_a_disk_that_refuses_is_one_clear_line_and_leaves_no_part(mixed, cluster, capsys):
    (mixed / "features").mkdir()
    (mixed / "features" / "shards").write_text("in the way of the folder")
    assert main(command(mixed)) == cli.EXIT_ERROR
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipreel extract: ")]
    assert "shards" in line
    assert "unexpected" not in line
    assert not list((mixed / "features").glob("**/*.parquet"))


def test_a_gpu_that_is_not_there_is_refused_instead_of_waited_for(mixed, cluster, capsys):
    if ray.cluster_resources().get("GPU"):
        pytest.skip("this machine has a GPU")
    assert main(command(mixed, "--device", "cuda")) == cli.EXIT_ERROR
    assert "1 GPU(s) are needed and the Ray cluster has 0" in capsys.readouterr().err


def test_ctrl_c_keeps_finished_shards_whole_and_a_rerun_completes_them(mixed, tmp_path):
    words = [sys.executable, "-m", "jobs.cli", *command(mixed, "--num-workers", "1")]
    shards = mixed / "features" / "shards"
    # Its own process group, as a terminal's Ctrl-C would reach it.
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, process_group=0) as process:
        while process.poll() is None and not (shards.is_dir() and list(shards.iterdir())):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
    if process.returncode != extract.EXIT_SOME_FAILED:  # it may have finished just before
        assert process.returncode == cli.EXIT_INTERRUPTED, error
        assert "interrupted" in error
        assert "Traceback" not in error
    assert all(pq.read_table(shard).num_rows for shard in shards.glob("*.parquet"))
    assert main(command(mixed)) == extract.EXIT_SOME_FAILED
    assert len({row[0] for row in rows(mixed)}) == len(rows(mixed)) == 12
    assert all(path.suffix == ".parquet" for path in shards.iterdir())
