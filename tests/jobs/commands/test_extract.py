"""Extraction through the command, on a real Ray cluster."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from skipreel.features.feature_set.card import locked, read_card
from skipreel.features.feature_set.ledger import read_failures, read_finished
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.jobs import cli
from skipreel.jobs.cli import main
from skipreel.jobs.commands import extract
from skipreel.pipeline.manifest import Label, Manifest, VideoEntry, write_manifest
from tests.support.videos import write_audio_only, write_video

pytest_plugins = ("tests.support.ray_stub",)

EDGE = Path(__file__).parents[4] / "shared" / "data" / "edge"


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
    listing(tmp_path, names)
    return tmp_path


def listing(folder, names) -> None:
    entries = [VideoEntry(name, str(folder / f"{name}.mp4"), "train", None, (Label(0),)) for name in names]
    write_manifest(Manifest(tuple(entries), ("thing",)), str(folder / "m.parquet"))


def command(folder, *more: str) -> list[str]:
    output = str(folder / "features")
    return ["extract", "--manifest", str(folder / "m.parquet"), "--output", output, "--backbone", "random:0", *more]


def shard_rows(folder) -> list[dict]:
    shards = sorted((folder / "features" / "shards").glob("*.parquet"))
    return [row for shard in shards for row in pq.read_table(shard).to_pylist()]


def rows(folder) -> list[tuple]:
    found = shard_rows(folder)
    return sorted((row["video_id"], row["segment"], *row["frame_index"], *row["features"]) for row in found)


def test_every_video_ends_in_exactly_one_place(mixed, cluster, capsys):
    assert main(command(mixed)) == extract.EXIT_SOME_FAILED
    features = str(mixed / "features")
    assert sorted(read_finished(features)) == [f"good{number:02d}" for number in range(12)]
    reasons = {row["video_id"]: row["reason"] for row in read_failures(features)}
    assert sorted(reasons) == ["empty", "text", "truncated", "vanished"]
    assert all(reasons.values())
    output = capsys.readouterr().err
    assert "12 videos with features, 4 failed" in output
    before = rows(mixed)
    assert len(before) == 12
    assert main(command(mixed)) == extract.EXIT_SOME_FAILED
    assert rows(mixed) == before


def test_an_interrupted_extraction_goes_on_where_it_stopped(mixed, ray_stub):
    main(command(mixed, "--shard-mb", "0.005"))
    complete = rows(mixed)
    shards = sorted((mixed / "features" / "shards").iterdir())
    assert len(shards) > 2
    shards[0].unlink()
    left = rows(mixed)
    assert 0 < len(left) < len(complete)
    main(command(mixed))
    assert rows(mixed) == complete


def test_a_failed_video_is_left_alone_until_it_is_mended_or_asked_for(mixed, ray_stub, capsys):
    main(command(mixed))
    capsys.readouterr()
    assert main(command(mixed)) == extract.EXIT_SOME_FAILED
    assert "failed: " not in capsys.readouterr().err  # nothing was tried
    assert main(command(mixed, "--retry-failed")) == extract.EXIT_SOME_FAILED
    assert capsys.readouterr().err.count("failed: ") == 4
    assert len(read_failures(str(mixed / "features"))) == 4
    (mixed / "empty.mp4").write_bytes((mixed / "good00.mp4").read_bytes())
    main(command(mixed))
    assert "empty" in FeatureSet(str(mixed / "features")).video_ids()
    assert "empty" not in {row["video_id"] for row in read_failures(str(mixed / "features"))}


def test_a_changed_video_is_extracted_anew_and_a_touched_one_is_not(mixed, ray_stub, capsys):
    main(command(mixed))
    before = {row[0]: row for row in rows(mixed)}
    (mixed / "good01.mp4").touch()
    write_video(mixed / "good00.mp4", num_frames=9, fps=10)
    (mixed / "good02.mp4").write_text("no video any more")
    capsys.readouterr()
    assert main(command(mixed, "--json")) == extract.EXIT_SOME_FAILED
    summary = json.loads(capsys.readouterr().out)
    assert (summary["finished"], summary["failed"]) == (11, 5)
    assert (summary["this_run"]["finished"], summary["this_run"]["failed"]) == (1, 1)
    after = {row[0]: row for row in rows(mixed)}
    assert len(after) == len(rows(mixed)) == 11
    assert after["good00"] != before["good00"]
    assert all(after[name] == before[name] for name in after if name != "good00")
    assert "good02" in {row["video_id"] for row in read_failures(str(mixed / "features"))}


def test_another_recipe_is_refused_and_nothing_is_touched(mixed, ray_stub, capsys):
    main(command(mixed))
    before = rows(mixed)
    assert main(command(mixed, "--rate-hz", "2")) == cli.EXIT_ERROR
    assert "another spec" in capsys.readouterr().err
    assert rows(mixed) == before


def test_a_second_extraction_into_the_same_set_is_kept_out(mixed, ray_stub, capsys):
    with locked(str(mixed / "features")):
        assert main(command(mixed)) == cli.EXIT_ERROR
    assert "another extraction is writing to" in capsys.readouterr().err
    assert not (mixed / "features" / "shards").exists()


def test_the_summary_is_one_json_object_and_stands_in_the_card(mixed, ray_stub, capsys):
    assert main(command(mixed, "--json")) == extract.EXIT_SOME_FAILED
    summary = json.loads(capsys.readouterr().out)
    assert (summary["videos"], summary["finished"], summary["failed"]) == (16, 12, 4)
    run = summary["this_run"]
    frames = sum(len(row["frame_index"]) for row in shard_rows(mixed))
    assert run["frames"] == frames
    assert run["video_hours"] == pytest.approx(sum(2.0 + number / 10 for number in range(12)) / 3600, rel=0.02)
    assert 0 < run["startup_seconds"] < run["seconds"]
    card = read_card(str(mixed / "features"))
    assert card["summary"] == {key: value for key, value in summary.items() if key != "output"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--decoder", "vlc"), "no decoder 'vlc'"),
        (("--decoders", "-1"), "--decoders is -1"),
        (("--shard-mb", "0"), "--shard-mb is 0"),
        (("--backbone", "hf:/nowhere"), "hf:/nowhere"),
    ],
)
def test_a_wrong_setting_is_one_line_before_anything_is_made(mixed, capsys, flags, words):
    with contextlib.suppress(SystemExit):
        assert main(command(mixed, *flags)) == cli.EXIT_ERROR
    assert words in capsys.readouterr().err
    assert not (mixed / "features").exists()


def test_what_a_decoder_does_to_its_process_is_that_videos_failure_alone(tmp_path, cluster, capsys):
    names = ["abort", "hang", "spin", "allocate", "vanish", *(f"good{number}" for number in range(6))]
    limits = ["--time-limit-s", "8", "--decoder-memory-mb", "600", "--decoder", "tests.support.poison:open_video"]
    reasons = failures_among(tmp_path, names, limits)
    assert "the process that decoded it died 3 times" in reasons["abort"]
    assert "did not come within 8 seconds" in reasons["hang"]
    assert "did not come within 8 seconds" in reasons["spin"]
    assert "needs more memory than a decoder may take" in reasons["allocate"]
    capsys.readouterr()
    assert main(command(tmp_path, *limits)) == extract.EXIT_SOME_FAILED
    tried = capsys.readouterr().err.count("failed: ")
    assert tried <= 1  # the one whose file is gone since; a video that kills is not tried again by itself
    main(command(tmp_path, "--retry-failed"))  # with a decoder that bears them
    assert [row["video_id"] for row in read_failures(str(tmp_path / "features"))] == ["vanish"]


def test_so_it_is_where_encoders_are_apart(tmp_path, cluster):
    names = ["abort", "allocate", "vanish", "good0", "good1"]
    limits = ["--decoder-memory-mb", "600", "--decoder", "tests.support.poison:open_video", "--encoders", "1"]
    reasons = failures_among(tmp_path, names, limits)
    assert "the process that decoded it died 3 times" in reasons["abort"]
    assert "needs more memory than a decoder may take" in reasons["allocate"]


def failures_among(folder, names: list[str], limits: list[str]) -> dict[str, str]:
    """Extract videos of these names, each of which ends in one place, the good ones in the set: why the others fail."""
    for name in names:
        write_video(folder / f"{name}.mp4", num_frames=20, fps=10)
    listing(folder, names)
    assert main(command(folder, *limits)) == extract.EXIT_SOME_FAILED
    reasons = {row["video_id"]: row["reason"] for row in read_failures(str(folder / "features"))}
    done = set(read_finished(str(folder / "features")))
    assert done | set(reasons) == set(names)
    assert not done & set(reasons)
    assert done >= {name for name in names if name.startswith("good")}
    return reasons


def test_decoders_and_encoders_apart_store_the_same_bits(mixed, cluster):
    main(command(mixed))
    together = rows(mixed)
    for shard in (mixed / "features" / "shards").iterdir():
        shard.unlink()
    assert main(command(mixed, "--decoders", "1", "--encoders", "2")) == extract.EXIT_SOME_FAILED
    assert rows(mixed) == together


def test_every_awkward_file_ends_in_one_place_with_a_reason_people_understand(tmp_path, ray_stub):
    write_video(tmp_path / "one_frame.mp4", num_frames=1)
    write_video(tmp_path / "odd.mp4", size=(63, 47))
    write_audio_only(tmp_path / "audio.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere.mp4")
    names = ["one_frame", "odd", "audio", "folder", "dangling"]
    videos = {name: tmp_path / f"{name}.mp4" for name in names}
    suffixes = (".mp4", ".mkv", ".mov", ".avi")
    videos |= {f"{path.parent.name}/{path.stem}": path for path in EDGE.rglob("*") if path.suffix in suffixes}
    entries = [VideoEntry(name, str(path), "train") for name, path in videos.items()]
    write_manifest(Manifest(tuple(entries), ()), str(tmp_path / "m.parquet"))
    assert main(command(tmp_path)) == extract.EXIT_SOME_FAILED
    failures = {row["video_id"]: row["reason"] for row in read_failures(str(tmp_path / "features"))}
    done = set(read_finished(str(tmp_path / "features")))
    assert done | set(failures) == set(videos)
    assert not done & set(failures)
    assert done >= {"one_frame", "odd"}
    assert "no video stream" in failures["audio"]
    for name, reason in failures.items():
        assert videos[name].name in reason
        assert "raised" not in reason
        assert "\n" not in reason
    if EDGE.exists():
        assert set(failures) - set(names) == {"decord/corrupted"}


def test_a_disk_that_refuses_is_one_clear_line_and_leaves_no_part(mixed, ray_stub, capsys):
    (mixed / "features").mkdir()
    (mixed / "features" / "shards").write_text("in the way of the folder")
    assert main(command(mixed)) == cli.EXIT_ERROR
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipreel extract: ")]
    assert "shards" in line
    assert "unexpected" not in line
    assert not list((mixed / "features").glob("**/*.parquet"))


def test_a_gpu_that_is_not_there_is_refused_instead_of_waited_for(mixed, ray_stub, capsys):
    assert main(command(mixed, "--device", "cuda")) == cli.EXIT_ERROR
    assert "1 GPU(s) are needed and the Ray cluster has 0" in capsys.readouterr().err


def test_ctrl_c_keeps_finished_shards_whole_and_a_rerun_completes_them(mixed, cluster):
    address = ray.get_runtime_context().gcs_address  # a second driver on the cluster of this session
    words = [sys.executable, "-m", "skipreel.jobs.cli", *command(mixed, "--shard-mb", "0.001")]
    shards = mixed / "features" / "shards"
    # Its own process group, as a terminal's Ctrl-C would reach it.
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, process_group=0, env={**os.environ, "RAY_ADDRESS": address}
    ) as process:
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
