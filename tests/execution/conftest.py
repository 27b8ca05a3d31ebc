"""A tiny experiment, and a run of it in process that all other ways of running it are compared with."""

import pytest

from morphogen.run import evolve, load
from tiny import write_config


@pytest.fixture(scope="package")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("execution")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORPHOGEN_CACHE", str(folder / "cache"))
        yield load(write_config(folder, **{"population: 3": "population: 4"}))


@pytest.fixture(scope="package")
def whole(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    evolve(experiment, folder)
    return folder
