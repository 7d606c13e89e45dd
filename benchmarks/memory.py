"""The memory that the processes of an extraction take at their peak. Linux alone."""

import os
import threading
from contextlib import suppress
from pathlib import Path

PROCESSES = {"driver": "driver", "worker": "ray::Worker"}
MEMORY_COLUMNS = "".join(f"{f'{kind}, MB':>12}" for kind in (*PROCESSES, "shared"))


class PeakMemory:
    """Peak bytes that the largest process of each kind has for itself, and what they share through Ray. Linux alone."""

    def __init__(self) -> None:
        self._peaks = dict.fromkeys((*PROCESSES, "shared"), 0)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def total(self) -> int:
        """All of it together."""
        return sum(self._peaks.values())

    def __str__(self) -> str:
        return "".join(f"{peak / 1e6:12.0f}" for peak in self._peaks.values())

    def _watch(self) -> None:
        while not self._stopped.wait(0.1):
            for process in Path("/proc").iterdir():
                if process.name.isdecimal():
                    with suppress(OSError):  # it may end meanwhile
                        self._note(process)

    def _note(self, process: Path) -> None:
        title = "driver" if int(process.name) == os.getpid() else (process / "cmdline").read_text()
        for kind, start in PROCESSES.items():
            if title.startswith(start):
                lines = (line.split() for line in (process / "status").read_text().splitlines())
                sizes = {line[0]: int(line[1]) << 10 for line in lines if line[0] in ("RssAnon:", "RssShmem:")}
                self._peaks[kind] = max(self._peaks[kind], sizes["RssAnon:"])
                self._peaks["shared"] = max(self._peaks["shared"], sizes["RssShmem:"])
