"""Models by folder, by run and by registered name, on a real MLflow server and on a database file."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from skipreel.jobs.runtime.mlflow_runs import Tracking, start_run
from skipreel.jobs.trained.location import local_model
from skipreel.jobs.trained.model import load_model
from skipreel.pipeline.errors import InputError
from tests.support.feature_sets import spec
from tests.support.models import save_model, untrained


def checkpoint(folder: Path, *, seed: int) -> Path:
    model = untrained(spec(5), class_names=("low", "high"), seed=seed)
    save_model(folder / f"net-{seed}", model, settings={"seed": seed})
    return folder / f"net-{seed}"


@pytest.fixture(scope="module", params=["server", "database"])
def store(request, tmp_path_factory):
    """Runs with one checkpoint, with two and with none; the first is registered twice."""
    folder = tmp_path_factory.mktemp("mlflow")

    def fill(uri: str) -> SimpleNamespace:
        figure = folder / "figures"
        figure.mkdir()
        (figure / "a.png").write_bytes(b"png")
        runs = {}
        for name, paths in {
            "one": [checkpoint(folder, seed=1), figure],
            "two": [checkpoint(folder, seed=2), checkpoint(folder, seed=3)],
            "none": [figure],
        }.items():
            with start_run(Tracking(uri), name=name, output=folder) as run:
                run.log_files(*paths)
                runs[name] = run.id
                if name == "one":
                    versions = [run.register("net", paths[0]), run.register("net", paths[0])]
        assert versions == ["1", "2"]
        mlflow.MlflowClient(uri).set_registered_model_alias("net", "best", "2")
        return SimpleNamespace(uri=uri, folder=folder, **runs)

    if request.param == "server":
        return fill(request.getfixturevalue("mlflow_uri"))
    return fill(f"sqlite:///{folder}/mlflow.db")


def seed_of(uri: str, store: SimpleNamespace) -> int:
    model = load_model(local_model(uri, tracking_uri=store.uri))
    return model.settings["seed"]


def test_a_run_with_one_checkpoint_needs_no_path(store):
    assert seed_of(f"runs:/{store.one}", store) == seed_of(f"runs:/{store.one}/", store) == 1


def test_a_checkpoint_is_found_by_its_path_in_the_run(store):
    assert seed_of(f"runs:/{store.two}/net-2", store) == 2
    assert seed_of(f"runs:/{store.two}/net-3", store) == 3


def test_a_registered_model_is_found_by_version_and_by_alias(store):
    assert seed_of("models:/net/1", store) == seed_of("models:/net/2", store) == seed_of("models:/net@best", store) == 1


def test_the_copy_is_the_checkpoint_bit_for_bit(store):
    copy = local_model(f"runs:/{store.two}/net-3", tracking_uri=store.uri)
    for file in (store.folder / "net-3").iterdir():
        assert (copy / file.name).read_bytes() == file.read_bytes()


def test_what_is_not_there_is_one_clear_line(store):
    for uri, message in {
        "runs:/0123456789abcdef0123456789abcdef": "run 0123456789abcdef0123456789abcdef cannot be read from MLflow at",
        f"runs:/{store.none}": f"run {store.none} holds no checkpoint: give a run of train",
        f"runs:/{store.two}": f"holds 2 checkpoints: give one of runs:/{store.two}/net-2, runs:/{store.two}/net-3",
        f"runs:/{store.one}/net-7": "net-7 cannot be read from MLflow at",
        f"runs:/{store.one}/figures": "figures in MLflow at .* is not a checkpoint of skipreel",
        "models:/net/7": "model net, version 7, cannot be read from MLflow at",
        "models:/net@worst": "model net, alias worst, cannot be read from MLflow at",
        "models:/other/1": "model other, version 1, cannot be read from MLflow at",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            local_model(uri, tracking_uri=store.uri)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["runs:/", "runs:abc", "models:/net", "models:/net/latest", "models:/net@", "models:/"])
def test_a_uri_of_another_form_is_refused(uri):
    with pytest.raises(InputError, match=f"the model is {uri}, allowed are a folder, runs:/RUN_ID,"):
        local_model(uri, tracking_uri="http://127.0.0.1:9")


def test_the_environment_says_where_mlflow_is_unless_the_flag_does(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    assert load_model(local_model("models:/net/1")).settings == {"seed": 1}
    with pytest.raises(InputError, match=r"no MLflow database .*absent\.db"):
        local_model("models:/net/1", tracking_uri=f"sqlite:///{store.folder}/absent.db")
    assert not (store.folder / "absent.db").exists()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(InputError, match="Give --tracking-uri, or set MLFLOW_TRACKING_URI"):
        local_model("models:/net/1")


def test_a_server_or_a_database_that_is_none_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at as if it were one " * 20)
    for where in ("http://127.0.0.1:9", f"sqlite:///{tmp_path}/text.db", "nonsense://here"):
        for uri in ("runs:/abc", "runs:/abc/net", "models:/net/1", "models:/net@best"):
            with pytest.raises(InputError, match=f"cannot be read from MLflow at {where}") as caught:
                local_model(uri, tracking_uri=where)
            assert "\n" not in str(caught.value)


def test_a_folder_is_itself_and_needs_no_mlflow():
    asked = "print(local_model('a/b'), 'mlflow' in sys.modules)"
    code = f"import sys; from skipreel.jobs.trained.location import local_model; {asked}"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["a/b", "False"]


@pytest.mark.parametrize("store", ["database"], indirect=True)
def test_a_copy_goes_with_the_process(store):
    asked = f"print(local_model('models:/net/1', tracking_uri={store.uri!r}))"
    code = f"from skipreel.jobs.trained.location import local_model; {asked}"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(printed.stdout.strip()).name == "net-1"
    assert not Path(printed.stdout.strip()).parent.exists()
    assert printed.stderr == ""
