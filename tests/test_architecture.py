import subprocess
import sys

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


def test_imports_point_one_way(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    assert lint_imports(no_cache=True) == EXIT_STATUS_SUCCESS


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_help_waits_for_no_heavy_import():
    assert not {"torch", "ray", "mlflow", "matplotlib"} & modules_after("import jobs.cli")


@pytest.mark.parametrize("statement", ["import models", "import features.extraction, features.backbones"])
def test_models_and_features_need_no_cluster(statement):
    assert not {"ray", "mlflow"} & modules_after(statement)
