"""What is timed, each against its peer in one process: `python -m benchmarks.NAME`, with skipreel installed or not."""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("skipreel") is None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
