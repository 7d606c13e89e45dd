import re

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from scripts.draw_imports import drawing
from tests.support.imported import modules_after


def test_imports_point_one_way(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    assert lint_imports(no_cache=True) == EXIT_STATUS_SUCCESS


def test_help_waits_for_no_heavy_import():
    (loaded,) = modules_after("import skipreel.jobs.cli")
    assert not {"torch", "ray", "mlflow", "matplotlib"} & loaded


def test_models_and_features_need_no_cluster():
    for loaded in modules_after(
        "import skipreel.models", "import skipreel.features.extraction.work, skipreel.features.backbones.backbone"
    ):
        assert not {"ray", "mlflow"} & loaded


def test_the_tests_of_pipeline_need_neither_torch_nor_ray():
    collect = "pytest.main(['-q', '-p', 'no:cacheprovider', '--collect-only', 'tests/pipeline'])"
    code = f"import contextlib, pytest\nwith contextlib.redirect_stdout(sys.stderr):\n    assert {collect} == 0"
    (loaded,) = modules_after(code)
    assert "pyarrow" in loaded
    assert not {"torch", "ray", "mlflow"} & loaded


def test_the_drawing_shows_the_imports_as_they_are(request):
    page = (request.config.rootpath / "ARCHITECTURE.md").read_text()
    assert f"```mermaid\n{drawing()}\n```" in page, "replace it by what scripts/draw_imports.py prints"


def test_the_page_names_every_folder_and_only_what_is_there(request):
    root = request.config.rootpath
    page = (root / "ARCHITECTURE.md").read_text()
    named = re.findall(r"`((?:pipeline|features|models|jobs|scripts|src)/[\w/.]*)`", page)
    assert [path for path in named if not (root / path).exists()] == []

    package, folders = root, set()
    for is_package, name, first in re.findall(
        r"^\| (\*\*)?`(\w+)/`(?:\*\*)? \|.*\| (?:`([\w.]+)` )?\|$", page, re.MULTILINE
    ):
        package = root / name if is_package else package
        folder = package / name if (package / name).is_dir() else root / name
        folders.add(folder)
        assert (folder / first).exists()
    for package in ("pipeline", "features", "models", "jobs"):
        there = {path.parent for path in (root / package).glob("*/__init__.py")}
        assert there <= folders
