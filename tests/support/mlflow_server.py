"""A real MLflow server for tests, on a free port of this machine, with its database and artifacts in a folder."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The server's URI, while it runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/db", "--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # a dozen processes that wait for jobs
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen([*command, *stores], stdout=log, stderr=log, env=environment) as process,
    ):
        uri = f"http://127.0.0.1:{port}"
        try:
            _wait_until_up(uri, process)
            yield uri
        finally:
            process.terminate()


def _wait_until_up(uri: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(120):
        assert process.poll() is None, "the MLflow server ended"
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=1):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the MLflow server did not come up")
