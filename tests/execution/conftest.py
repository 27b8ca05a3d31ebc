"""A tiny experiment, and a run of it in process that all other ways of running it are compared with."""

import pytest

from morphogen.run import evolve, load
from tiny import write_config


@pytest.fixture(scope="package")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("execution")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORPHOGEN_CACHE", str(folder / "cache"))
        # bf16 is said, as commands of their own know nothing of the processor that tests in process are told they have
        changed = {"population: 3": "population: 4", "train: {lr": "train: {bf16: false, lr"}
        yield load(write_config(folder, **changed))


@pytest.fixture(scope="package")
def whole(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    evolve(experiment, folder)
    return folder
