"""The public names are a promise to users' code: a change of them shows up here."""

import subprocess
import sys

from skipreel import jobs

NAMES = (
    "OnlineRecognizer Prediction Request TrainedModel VideoRecognizer "
    "iterate_predictions load_backbone_of load_model open_live_session open_writer with_budget"
)


def test_public_names_are_those_that_were_promised_and_each_can_be_imported():
    assert dir(jobs) == NAMES.split()
    assert [getattr(jobs, name).__name__ for name in NAMES.split()] == NAMES.split()
    assert not hasattr(jobs, "tensorflow")


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, skipreel.jobs; print(*{'torch', 'ray', 'mlflow', 'pyarrow', 'av'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
