from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

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
