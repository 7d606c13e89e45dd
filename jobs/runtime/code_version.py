"""Which code a run was made with."""

import subprocess
from importlib.metadata import version
from pathlib import Path


def code_version() -> str:
    """The package's version, and the commit when it runs from a checkout of its own repository."""
    package = version("skipreel")
    top = Path(__file__).resolve().parents[2]
    if _git(top, "rev-parse", "--show-toplevel") != str(top):  # installed in another repository, or in none
        return package
    commit = _git(top, "describe", "--always", "--dirty", "--exclude=*")
    return f"{package}+{commit}" if commit else package


def _git(folder: Path, *words: str) -> str:
    """What git says; "" when it is not there or refuses."""
    try:
        said = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""
