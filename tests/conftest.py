"""Settings for every test."""

import gc
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Drawn blueprints name the plug-in of tests/plugins.py as code; tests of what is refused take this away.
os.environ["MORPHOGEN_ALLOW_CODE"] = "1"

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.internal.conjecture import engine

from examples import PROFILES, up_to
from morphogen.cli import main
from tiny import Cli

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as jobs in a shell's background have it; runs keep to that
    signal.signal(signal.SIGINT, signal.default_int_handler)
gc.disable()  # until tests are collected, which stay
# Timings are not what these tests are about, and the machine may be shared; the same examples every time.
for name, count in PROFILES.items():
    settings.register_profile(
        name,
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
        phases=set(Phase) - {Phase.explain},
    )
settings.load_profile("fast")
# What fails is told soon, if not at its smallest: no setting bounds this, and five minutes for each test stop CI.
assert hasattr(engine, "MAX_SHRINKING_SECONDS"), "hypothesis bounds shrinking by another name now"
engine.MAX_SHRINKING_SECONDS = 20


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Corpora and tokenizers are cached in a folder of the module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORPHOGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Trainings:
    """What tests change in trainings: a plug-in of processes that run some, as what hands them out needs no torch."""

    def __init__(self) -> None:
        from morphogen.blueprint import yaml
        from morphogen.metrics import decoding
        from morphogen.training import processor, trial
        from read_before import Reading
        from trained_before import Remembering

        decoding.DECODED_TOKENS = 2
        # No processor has bf16 here, so that `train.bf16: auto` gives the same numbers on all of them.
        processor.CPUINFO = Path(os.devnull)
        self.trial = trial
        #: All that was trained by this process where tests asked for that.
        self.remembered = Remembering(trial._attempt)
        self.yaml = yaml
        self.read = Reading(yaml.compose)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """In the fast suite, what was read before is not parsed again, nor is what was trained before trained again
        below a mark `trained_before`, except where that is marked `anew`."""
        fast = up_to(1, fast=0) == 0
        self.yaml.compose = self.read if fast else self.read.compose
        marked = item.get_closest_marker("trained_before") and not item.get_closest_marker("anew")
        self.trial._attempt = self.remembered if marked and fast else self.remembered.attempt


def pytest_configure(config: pytest.Config) -> None:
    """Where tests run, rather than in other processes."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.register(Trainings())


def pytest_collection_finish() -> None:
    """Modules and tests, a million objects, are not looked through again whenever garbage is collected; and that is
    seldom, as a model makes more objects than the usual 700 after which some are."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture
def no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that data names is refused, as it is for users."""
    monkeypatch.delenv("MORPHOGEN_ALLOW_CODE")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process."""

    def call(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(arg) for arg in args])
        assert isinstance(end.value.code, int)
        return (end.value.code, *capsys.readouterr())

    return call
