"""What is installed: one top-level name, with all files that are needed, beside whatever else there is."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "features", "models", "jobs")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel's files, built from a copy: setuptools would put into a wheel what an earlier build left behind."""
    copy, wheels, installed = (tmp_path_factory.mktemp(name) for name in ("copy", "wheels", "installed"))
    for folder in (*PACKAGES, "src"):
        shutil.copytree(
            ROOT / folder,
            copy / folder,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
        )
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", str(wheels), str(copy)], check=True)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(installed)
    return installed


def test_a_wheel_holds_one_top_level_name_and_every_file(installed):
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"skipreel"}
    for folder in PACKAGES:
        tracked = {
            path.relative_to(ROOT)
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        there = {path.relative_to(installed / "skipreel") for path in (installed / "skipreel" / folder).rglob("*.*")}
        assert tracked <= there
    assert (installed / "skipreel" / "py.typed").exists()


def test_it_works_beside_a_projects_own_models_and_jobs(installed, tmp_path):
    for folder in PACKAGES:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("raise AssertionError('this is the project's own')")
    code = "import sys\n" + "\n".join(f"import skipreel.{folder} as p; print(p.__file__)" for folder in PACKAGES)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", str(installed)])}
    run = {"env": environment, "cwd": tmp_path, "capture_output": True, "text": True, "check": True}
    imported = subprocess.run([sys.executable, "-c", code], **run).stdout.split()
    assert all(Path(file).is_relative_to(installed) for file in imported)
    said = subprocess.run([sys.executable, "-m", "skipreel.jobs.cli", "--help"], **run).stdout
    assert "extract" in said
