"""The console script `skipreel`: picks a command, and turns errors and signals into messages and exit codes.

Every command is a module of `jobs.commands` with a frozen dataclass `Settings`, which defines the flags, their help and
their checks, and a function `run(settings)` that returns the exit code.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from skipreel.jobs.runtime.command_line import run_command
from skipreel.pipeline.errors import InputError

# In the order in which they are used; the help lists them so.
COMMANDS = {
    "manifest": "list the videos of a corpus with their splits and labels",
    "extract": "decode sampled frames and store their CNN features as Parquet shards",
    "features": "look into features, check them, merge small shards, build them from arrays",
    "train": "train one Skip RNN, dense RNN or baseline on them with Ray Train",
    "sweep": "train a whole trade-off curve: several λ, and the controls at matched budgets",
    "evaluate": "measure a checkpoint: the task's metric and the updates per video",
    "predict": "label video files, decoding only the frames that the network asks for",
    "report": "draw a sweep's figure, table and film strips as one HTML page",
    "demo": "do all of this on a generated corpus, in minutes",
}
EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Every error that a user can cause becomes one line on standard error.

    Args:
        arguments: the words after `skipreel`; default: those of the process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else EXIT_USAGE
    command, *rest = words
    if command not in COMMANDS:
        print(f"skipreel: unknown command {command!r}: use one of {', '.join(COMMANDS)}", file=sys.stderr)
        return EXIT_USAGE
    if debug:
        os.environ["SKIPREEL_DEBUG"] = "1"  # read by jobs.runtime.ray_cluster: prints the logs of workers
    terminated = threading.Event()
    try:
        with _sigterm_as_ctrl_c(terminated):
            return run_command(command, rest)
    except KeyboardInterrupt:
        print("\nskipreel: interrupted; finished files are kept, nothing is left half-written", file=sys.stderr)
        return EXIT_TERMINATED if terminated.is_set() else EXIT_INTERRUPTED
    except Exception as error:
        if debug:
            raise
        print(f"skipreel {command}: {_one_line(error)}", file=sys.stderr)
        return EXIT_ERROR


@contextlib.contextmanager
def _sigterm_as_ctrl_c(terminated: threading.Event) -> Iterator[None]:
    """Let SIGTERM, which batch systems and `ray job stop` send, end a command as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        terminated.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, InputError | ValueError | OSError) or type(error).__name__ == "CheckpointError":
        return text
    return f"unexpected {type(error).__name__}: {text[:300]} (the same command with --debug shows where)"


def _help() -> str:
    lines = ["usage: skipreel [--debug] COMMAND …   (skipreel COMMAND --help shows a command's settings)", ""]
    lines += ["From video files to a trade-off curve, in the order of the job:", ""]
    lines += [f"  {command:<9} {sentence}" for command, sentence in COMMANDS.items()]
    lines += ["", "--debug shows a traceback instead of one line when something goes wrong."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
