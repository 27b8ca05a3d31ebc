import random
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from morphogen.experiment import Data, Shard, Split


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and no network."""
    import huggingface_hub.constants

    def refuse(*_: object) -> None:
        raise AssertionError("a test of the data layer went to the network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., str]:
    """Writes a folder of small distinct documents; returns it as a source."""

    def write(name: str = "docs", documents: int = 60, words: int = 60, seed: int = 0) -> str:
        rng = random.Random(f"{name}{seed}")
        target = tmp_path / name
        target.mkdir(exist_ok=True)
        for i in range(documents):
            text = " ".join(f"{rng.choice(('al', 'bet', 'δέλ', chr(10)))}{rng.randrange(10**5)}" for _ in range(words))
            (target / f"{i:04}.txt").write_text(f"{name} {i} {text}", encoding="utf-8")
        return str(target)

    return write


@pytest.fixture
def data(folder: Callable[..., str]) -> Callable[..., Data]:
    """A small `data` section over one folder, with `changes`."""

    def make(**changes: object) -> Data:
        fields: dict[str, object] = {"seq_len": 16, "batch_size": 4, "split": Split(train=0.6, eval=0.2)}
        if "shards" not in changes:
            fields["shards"] = (Shard(source=folder()),)
        return Data.model_validate({**fields, **changes})

    return make
