"""The version of the code, for MLflow's tags and reports."""

import subprocess
from importlib.metadata import version
from pathlib import Path


def code_version() -> str:
    """The version of the package, with the commit if it runs from a checkout of its own repository."""
    package = version("skipreel")
    top = Path(__file__).resolve().parents[2]
    if _git(top, "rev-parse", "--show-toplevel") != str(top):  # installed in another repository, or in none
        return package
    commit = _git(top, "describe", "--always", "--dirty", "--exclude=*")
    return f"{package}+{commit}" if commit else package


def _git(folder: Path, *words: str) -> str:
    """Git's output; "" when git is not installed or fails."""
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
