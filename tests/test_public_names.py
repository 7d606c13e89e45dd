"""The public names are a promise to users' code: a change of them shows up here."""

from importlib import import_module
from pathlib import Path

from tests.support.imported import modules_after

NAMES = Path(__file__).with_name("public_names.txt")
HEAVY = {"torch", "ray", "mlflow", "pyarrow", "av"}


def test_public_names_are_those_that_were_promised_and_each_is_there():
    found = []
    for package in ("pipeline", "features", "models", "jobs"):
        module = import_module(f"skipreel.{package}")
        assert all(hasattr(module, name) for name in module.__all__)
        assert not hasattr(module, "tensorflow")
        found.append(f"{package}: {' '.join(sorted(module.__all__))}")
    assert found == NAMES.read_text().splitlines()


def test_importing_a_package_loads_nothing_heavy_before_a_name_is_used():
    for loaded in modules_after(*(f"import skipreel.{package}" for package in ("pipeline", "features", "jobs"))):
        assert not HEAVY & loaded
    before, after = modules_after("import skipreel.pipeline", "skipreel.pipeline.open_video")
    assert "numpy" in after - before
