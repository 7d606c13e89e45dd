"""Kills processes of an extraction at random moments, and checks that it ends with the rows of an undisturbed one.

`make drill` runs for 15 minutes and prints the table of docs/reliability.md; the tests run each scenario once. The
processes and signals are real: Ray's workers, the command with a cluster of its own, nodes of a cluster. Undisturbed
extractions run in this process, on the cluster that it is connected to. Linux only: processes are found in /proc.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq

from skipreel.features.feature_set.ledger import read_failures
from skipreel.jobs.cli import main as command
from skipreel.jobs.runtime.ray_cluster import ray_cluster
from skipreel.pipeline.manifest import Manifest, VideoEntry, write_manifest
from tests.support.videos import write_video

ROOT = Path(__file__).parents[1]
NUM_VIDEOS = 20
TIMEOUT_S = 180
START_S = 8  # approximate start-up time of the command and its cluster


@dataclass
class Corpus:
    """Slow videos, a long one with several segments, a broken one; the expected rows and the undisturbed duration."""

    folder: Path
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def manifest(self) -> str:
        return str(self.folder / "m.parquet")


def make_corpus(folder: Path) -> Corpus:
    """Write the videos and extract them once, undisturbed."""
    names = [f"slow{number:02d}" for number in range(NUM_VIDEOS)]
    for number, name in enumerate(names):
        write_video(folder / f"{name}.mp4", num_frames=10 + number, fps=10)
    write_video(folder / "long.mp4", num_frames=250, fps=10)
    (folder / "broken.mp4").write_text("not a video")
    names += ["long", "broken"]
    entries = [VideoEntry(name, str(folder / f"{name}.mp4"), "train") for name in names]
    corpus = Corpus(folder)
    write_manifest(Manifest(tuple(entries), ()), corpus.manifest)
    started = time.monotonic()
    finish(corpus, folder / "undisturbed")
    corpus.seconds = time.monotonic() - started
    corpus.rows = rows(folder / "undisturbed")
    assert len(corpus.rows) == NUM_VIDEOS + 1
    return corpus


def rows(output: Path) -> list[tuple[Any, ...]]:
    """All rows of a feature set, bit for bit, sorted."""
    shards = sorted((output / "shards").glob("*.parquet"))
    found = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    return sorted(
        (row["video_id"], row["segment"], *row["frame_index"], *row["pts_s"], *row["features"], row["source_digest"])
        for row in found
    )


def words(corpus: Corpus, output: Path, *flags: str) -> list[str]:
    """The words of the command."""
    places = ["--manifest", corpus.manifest, "--output", str(output), "--backbone", "random:0"]
    decoder = ["--rate-hz", "10", "--decoder", "tests.support.poison:open_video"]
    return ["extract", *places, *decoder, "--shard-mb", "0.02", *flags]


def finish(corpus: Corpus, output: Path, *flags: str) -> None:
    """Run the command to its end, in this process."""
    code = command(words(corpus, output, *flags))
    assert code == 3, f"exit code {code}"  # 3: one video is broken


@contextmanager
def extraction(corpus: Corpus, output: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process group of its own, as a terminal starts it; it is killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "skipreel.jobs.cli", *words(corpus, output)],
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def check(corpus: Corpus, output: Path) -> None:
    """Check that the rows are those of the undisturbed run, none missing or twice, and that one video failed."""
    assert rows(output) == corpus.rows
    assert [row["video_id"] for row in read_failures(str(output))] == ["broken"]
    assert not list(output.rglob("*.tmp"))


def children(driver: int, role: str) -> list[int]:
    """Ids of Ray's processes below `driver` whose title starts with `role`, such as ray::Decoder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and _title(process).startswith(role) and driver in _ancestors(int(process.name)):
            found.append(int(process.name))
    return found


def _title(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _ancestors(pid: int) -> list[int]:
    chain = []
    while pid > 1:
        chain.append(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return chain


def kill_workers(corpus: Corpus, output: Path, dice: random.Random) -> int:
    """Kill two workers at random moments of one run. After more kills a video may be blamed."""
    return _kill_processes(corpus, output, dice, ["ray::Worker"] * 2)


def kill_decoders_and_encoders(corpus: Corpus, output: Path, dice: random.Random) -> int:
    """Kill decoders and encoders at random moments of one run that has separate ones."""
    roles = ["ray::Decoder", "ray::Encoder"] * 2
    dice.shuffle(roles)
    return _kill_processes(corpus, output, dice, roles, "--encoders", "2")


def _kill_processes(corpus: Corpus, output: Path, dice: random.Random, roles: list[str], *flags: str) -> int:
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        for role in roles:
            while not (victims := children(os.getpid(), role)) or not (output / "feature_set.json").exists():
                if ended.wait(0.05):
                    return
            killed.append(dice.choice(victims))
            os.kill(killed[-1], signal.SIGKILL)
            if ended.wait(dice.uniform(0.3, 2.0)):
                return

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        finish(corpus, output, *flags)
    finally:
        ended.set()
        killer.join()
    assert killed, "the run ended before anything was killed"
    return len(killed)


def kill_driver(corpus: Corpus, output: Path, dice: random.Random) -> int:
    """Kill the command itself at a random moment, then run it again to its end."""
    _stop_driver(corpus, output, dice, signal.SIGKILL)
    finish(corpus, output)
    return 1


def interrupt_driver(corpus: Corpus, output: Path, dice: random.Random) -> int:
    """Interrupt the command by Ctrl-C, then run it again to its end."""
    _stop_driver(corpus, output, dice, signal.SIGINT)
    finish(corpus, output)
    return 1


def _stop_driver(corpus: Corpus, output: Path, dice: random.Random, number: int) -> None:
    with extraction(corpus, output) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(dice.uniform(0.0, 1.0) * (START_S + corpus.seconds))
        process.send_signal(number)
        process.communicate(timeout=TIMEOUT_S)
        assert process.returncode in (-signal.SIGKILL, 130, 3, -signal.SIGINT), process.returncode
    left = [shard for shard in output.rglob("*.parquet") if not pq.read_metadata(shard).num_rows]
    assert not left, f"shards without a row: {left}"


def kill_node(corpus: Corpus, output: Path, dice: random.Random) -> int:
    """Remove a node from a cluster of three, with its processes and its frames, and add a new one."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        with extraction(corpus, output, RAY_ADDRESS=cluster.address) as process:
            while not list(output.glob("shards/*.parquet")) and process.poll() is None:
                time.sleep(0.02)
            time.sleep(dice.uniform(0, 0.3) * corpus.seconds)
            cluster.remove_node(dice.choice(nodes), allow_graceful=False)
            cluster.add_node(num_cpus=2)
            _, error = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 3, error
    finally:
        cluster.shutdown()
    return 1


SCENARIOS: dict[str, Callable[[Corpus, Path, random.Random], int]] = {
    "workers": kill_workers,
    "decoders and encoders": kill_decoders_and_encoders,
    "the driver, SIGKILL": kill_driver,
    "the driver, Ctrl-C": interrupt_driver,
    "a node of three": kill_node,
}


def main() -> None:
    """Run the scenarios in turns until the time is up, then print a table of the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    counts = {name: [0, 0] for name in SCENARIOS}
    with ray_cluster(), TemporaryDirectory() as place:
        corpus = make_corpus(Path(place))
        end = time.monotonic() + 60 * settings.minutes
        number = 0
        while time.monotonic() < end:
            for name, scenario in SCENARIOS.items():
                output = Path(place) / f"run{number}"
                kills = scenario(corpus, output, random.Random(f"{settings.seed}/{number}"))
                check(corpus, output)
                counts[name][0] += 1
                counts[name][1] += kills
                number += 1
                print(f"{number}: {name}: {kills} killed, rows equal", file=sys.stderr)
    print("| killed | extractions | kills | rows equal to the undisturbed run |\n|---|---|---|---|")
    for name, (runs, kills) in counts.items():
        print(f"| {name} | {runs} | {kills} | {runs} of {runs} |")


if __name__ == "__main__":
    main()
