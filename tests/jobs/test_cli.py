"""What a user can get wrong: one clear line on standard error, a non-zero exit code, nothing half-written."""

import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest

from skipreel.jobs import cli
from skipreel.jobs.cli import COMMANDS, main
from skipreel.jobs.commands import demo, extract, sweep
from skipreel.jobs.runtime.command_line import parse
from tests.support.feature_sets import two_class_corpus
from tests.support.videos import write_video


def words(text: str, folder: Path) -> list[str]:
    return text.replace("TMP", str(folder)).split()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("extract --manifest TMP/no.parquet --output TMP/out --backbone random:0", "no.parquet"),
        ("extract --manifest TMP/m/manifest.parquet --output TMP/out --backbone vgg16", "unknown backbone 'vgg16'"),
        ("manifest folder TMP/empty --output TMP/out", "empty"),
        ("manifest folder TMP/nowhere --output TMP/out", "nowhere"),
        ("manifest table TMP/no.csv --output TMP/out", "no.csv"),
        ("train --manifest TMP/m/manifest.parquet --features TMP/empty --output TMP/out", "not a feature set"),
        (
            "train --manifest TMP/m/manifest.parquet --features TMP/m/features --output TMP/out --test-split x",
            "split 'x'",
        ),
        ("evaluate --model TMP/no --manifest TMP/m/manifest.parquet --features TMP/m/features", "no"),
        ("predict TMP/a.mp4 --model TMP/no", "no"),
        ("report TMP/empty", "holds no finished sweep"),
    ],
)
def test_a_wrong_input_is_one_line_and_leaves_nothing(tmp_path, capsys, command, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "m").mkdir()
    two_class_corpus(tmp_path / "m")
    assert main(words(command, tmp_path)) == cli.EXIT_ERROR
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    assert message in error[0]
    assert error[0].startswith(f"skipreel {command.split()[0]}: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command",
    [
        "train --manifest m --features f --output o --model transformer",
        "sweep --manifest m --features f --output o --cell vanilla",
        "extract --manifest m --output o",
        "predict",
    ],
)
def test_wrong_settings_are_refused_before_any_work(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == cli.EXIT_USAGE
    assert not list(tmp_path.iterdir())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"skipreel {command.split()[0]}: ")


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (
            "extract --manifest m --output o --backbone b --rate 2",
            "Unrecognized options: --rate, 2; Perhaps you meant: --rate-hz FLOAT; For full helptext, run skipreel "
            "extract --help",
        ),
        (
            "extract --manifest m",
            "Missing from skipreel extract: --output STR, --backbone STR; For full helptext, run: skipreel extract "
            "--help",
        ),
        (
            "manifest folder --output o",
            "Missing from skipreel manifest folder: STR the folder that holds the class folders. (required); For full "
            "helptext, run: skipreel manifest folder --help",
        ),
        (
            "sweep --manifest m --features f --output o --num-seeds 0",
            "Error parsing Settings: --num-seeds is 0, it must be at least 1; For full helptext, see skipreel sweep "
            "--help",
        ),
    ],
)
def test_wrong_settings_are_told_in_a_line_without_gaps(command, line, capsys):
    with pytest.raises(SystemExit):
        main(command.split())
    assert capsys.readouterr().err == f"skipreel {command.split()[0]}: {line}\n"


def test_an_unknown_command_is_told_the_known_ones(capsys):
    assert main(["trian"]) == cli.EXIT_USAGE
    assert "use one of manifest, extract, features, train" in capsys.readouterr().err


def test_the_demo_prints_its_commands_as_they_can_be_given(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(demo, "run_command", lambda name, words: given.append((name, words)) or 3)
    words = demo.sweep_words(demo.Settings(output="my demo"), Path("m.parquet"), Path("f"))
    assert demo.give_command("sweep", *words) == 3
    ((name, words),) = given
    assert shlex.split(capsys.readouterr().err) == ["skipreel", name, *words]
    settings = parse(sweep, name, words)
    assert (settings.hidden_size, settings.schedule.learning_rate, settings.output) == (96, 6e-3, "my demo")


def test_help_names_every_command_in_the_order_of_the_job(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    places = [page.index(f"  {command} ") for command in COMMANDS]
    assert places == sorted(places)


def test_ctrl_c_is_one_line_and_code_130(monkeypatch, capsys, tmp_path):
    two_class_corpus(tmp_path)

    def interrupted(_settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(extract, "run", interrupted)
    command = "extract --manifest TMP/manifest.parquet --output TMP/out --backbone random:0"
    assert main(words(command, tmp_path)) == cli.EXIT_INTERRUPTED
    assert "interrupted" in capsys.readouterr().err


def test_sigterm_ends_a_command_as_ctrl_c_does_with_code_143(monkeypatch, capsys, tmp_path):
    tidied = []

    def terminated(_settings):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(15)
        finally:
            tidied.append(True)

    monkeypatch.setattr(extract, "run", terminated)
    before = signal.getsignal(signal.SIGTERM)
    assert main(words("extract --manifest m --output TMP/out --backbone random:0", tmp_path)) == cli.EXIT_TERMINATED
    assert "interrupted; finished files are kept" in capsys.readouterr().err
    assert tidied
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_unexpected_error_is_named_and_shown_whole_with_debug(monkeypatch, capsys, tmp_path):
    def broken(_settings):
        raise RuntimeError("wires crossed")

    monkeypatch.setattr(extract, "run", broken)
    monkeypatch.setenv("SKIPREEL_DEBUG", "")
    command = words("extract --manifest m --output TMP/out --backbone random:0", tmp_path)
    assert main(command) == cli.EXIT_ERROR
    assert "unexpected RuntimeError: wires crossed" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="wires crossed"):
        main(["--debug", *command])


def test_bad_rows_are_listed_by_line_and_fatal_unless_skipped(tmp_path, capsys):
    write_video(tmp_path / "a.mp4", num_frames=2)
    (tmp_path / "list.csv").write_text("uri,labels\na.mp4,run\na.mp4,run\nmissing.mp4,run\n")
    command = words("manifest table TMP/list.csv --output TMP/m.parquet", tmp_path)
    assert main(command) == cli.EXIT_ERROR
    error = capsys.readouterr().err
    assert "list.csv:3: " in error
    assert "list.csv:4: " in error
    assert "2 bad rows" in error
    assert not (tmp_path / "m.parquet").exists()
    assert main([*command, "--skip-bad"]) == 0
    assert (tmp_path / "m.parquet").exists()


def test_evaluate_prints_json_for_scripts(swept, capsys):
    command = ["evaluate", "--model", swept.checkpoint("gru-dense"), "--manifest", swept.manifest]
    assert main([*command, "--features", swept.features]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["update_share"] == 1
    assert result["num_videos"] == 2
    assert 0 < result["mAP"] <= 1


def test_a_model_refuses_features_of_another_length(swept, tmp_path, capsys):
    manifest, features = two_class_corpus(tmp_path)
    command = ["evaluate", "--model", swept.checkpoint("gru-dense"), "--manifest", manifest, "--features", features]
    assert main(command) == cli.EXIT_ERROR
    error = capsys.readouterr().err
    assert "length 128" in error
    assert "length 5" in error
