"""Each kind of kill once, seeded; `make drill` goes on for a quarter of an hour."""

import random

import pytest

from scripts.drill import SCENARIOS, check, make_corpus


@pytest.fixture(scope="module")
def corpus(cluster, tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("drill"))


# Ctrl-C is test_extract's as well, and gentler than SIGKILL.
SLOW = {"the driver, Ctrl-C"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SCENARIOS]
)
def test_whatever_is_killed_the_rows_are_those_of_an_undisturbed_run(corpus, tmp_path, name):
    SCENARIOS[name](corpus, tmp_path / "features", random.Random(0))
    check(corpus, tmp_path / "features")
