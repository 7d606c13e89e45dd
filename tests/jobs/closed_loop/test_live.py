"""Watching a live source gives the looks and the scores that the same content gives as a file, and a ledger."""

import dataclasses
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from skipreel.jobs.closed_loop.live import describe_end, describe_look, follow, open_live_session
from skipreel.jobs.closed_loop.recognizer import predict, predict_dense
from skipreel.models import StridedGate
from skipreel.pipeline.errors import VideoError
from tests.support.live_sources import fifo, http, write_stream
from tests.support.models import BACKBONE
from tests.support.models import make_model as model

ENDED = {"video", "start_s", "damaged", "cost", "seconds"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_stream(tmp_path_factory.mktemp("streams") / "a.ts", num_frames=60, fps=20)


@pytest.mark.parametrize("task", ["frames", "video"])
@pytest.mark.parametrize("gate", [None, StridedGate(2.5)])
def test_a_stream_is_looked_at_as_its_file_is(path, tmp_path, task, gate):
    network = model(task=task, gate=gate)
    with (
        fifo(tmp_path, path.read_bytes()) as source,
        open_live_session(source, model=network, backbone=BACKBONE) as session,
    ):
        looks = list(session)
    filed = predict(str(path), model=network, backbone=BACKBONE)
    dense = predict_dense(str(path), model=network, backbone=BACKBONE)
    used = np.flatnonzero(dense.used)
    assert 1 < len(used) < len(dense.used)
    assert [look.step for look in looks] == used.tolist()
    assert [look.time_s for look in looks] == dense.pts_s[used].tolist()
    assert looks[0].time_s == filed.pts_s[0] == 0
    assert session.start_s == filed.start_s > 0  # as in any MPEG-TS
    scores = np.stack([look.scores for look in looks])
    np.testing.assert_allclose(
        scores if task == "frames" else scores[-1],
        (dense.scores[used] if task == "frames" else dense.scores),
        atol=2e-4,
    )
    ends = [look.step + 1 + look.wait for look in looks]
    assert ends[:-1] == used[1:].tolist()
    assert ends[-1] >= len(dense.used)
    counts = dataclasses.replace(session.cost, frames_decoded=0)
    assert counts == dataclasses.replace(filed.cost, frames_decoded=0)
    assert session.cost.frames_decoded == 60
    assert session.num_damaged == 0


def test_what_is_said_of_a_look_and_of_the_end_is_plain(path):
    with http(path.read_bytes()) as source:
        source = source.replace("//", "//user:secret@")
        with open_live_session(source, model=model(), backbone=BACKBONE, threshold=0.4) as session:
            looks = [(look, describe_look(look)) for look in session]
        end = describe_end(session)
    for look, described in looks:
        assert json.loads(json.dumps(described)) == described
        assert described == {"time_s": round(look.time_s, 3), "labels": look.labels, "wait": look.wait}
        assert [label["class"] for label in look.labels] == [
            "abc"[place] for place in np.argsort(-look.scores) if look.scores[place] >= 0.4
        ]
    assert json.loads(json.dumps(end)) == end
    assert set(end) == ENDED
    assert end["video"] == source.replace("user:secret@", "")
    assert end["cost"]["frames_wanted"] == end["cost"]["frames_encoded"] == len(looks)
    assert end["cost"]["frames_total"] == 30
    assert min(end["seconds"].values()) > 0


def test_the_ledger_comes_at_the_end_of_the_stream(path, tmp_path):
    written = []
    with fifo(tmp_path, path.read_bytes()) as source:
        follow(open_live_session(source, model=model(), backbone=BACKBONE), written.append)
    assert set(written[-1]) == ENDED
    assert written[-1]["cost"]["frames_wanted"] == len(written) - 1 > 1


def test_the_ledger_comes_when_the_source_falls_silent(path, tmp_path):
    written, hold = [], threading.Event()
    content = path.read_bytes()
    with fifo(tmp_path, content[: len(content) * 2 // 3], hold=hold) as source:
        session = open_live_session(source, model=model(), backbone=BACKBONE, timeout_s=0.3)
        with pytest.raises(VideoError, match="has sent nothing for"):
            follow(session, written.append)
        hold.set()
    assert set(written[-1]) == ENDED
    assert 0 < written[-1]["cost"]["frames_wanted"] == len(written) - 1


def test_the_ledger_comes_on_an_interruption_while_labels_are_written(path, tmp_path):
    written = []

    def write(described):
        written.append(described)
        if len(written) == 3:
            raise KeyboardInterrupt

    with fifo(tmp_path, path.read_bytes()) as source:
        follow(open_live_session(source, model=model(), backbone=BACKBONE), write)
    assert len(written) == 4
    assert written[-1]["cost"]["frames_wanted"] == 3


PROGRAM = """
import json
from skipreel.jobs.closed_loop.live import follow, open_live_session
from tests.support.models import BACKBONE
from tests.support.models import make_model as model
print("ready", flush=True)
session = open_live_session("-", model=model(), backbone=BACKBONE)
follow(session, lambda described: print(json.dumps(described), flush=True))
"""


def test_an_interruption_while_nothing_arrives_ends_at_once_with_the_ledger(path):
    root = Path(__file__).parents[3]
    program = f"import sys; sys.path.insert(0, {str(root)!r}){PROGRAM}"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdin.write(path.read_bytes())
    process.stdin.flush()
    looks = [json.loads(process.stdout.readline()) for _ in range(3)]
    assert [set(look) for look in looks] == [{"time_s", "labels", "wait"}] * 3
    process.send_signal(signal.SIGINT)
    *_, last = process.stdout.read().splitlines()
    assert set(json.loads(last)) == ENDED
    assert process.wait(15) == 0
    process.stdin.close()


def test_a_source_that_is_none_is_one_clear_error():
    with pytest.raises(VideoError, match="not a live source"):
        open_live_session("file:///etc/hostname", model=model(), backbone=BACKBONE)
