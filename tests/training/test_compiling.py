"""`train.compile`: the same training but for rounding, compiled once for all of a shape, refused where it cannot be."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from morphogen.blueprint.schema import Blueprint
from morphogen.errors import InputError
from morphogen.experiment import Train
from morphogen.network import build
from morphogen.run import evolve, load
from morphogen.training import compiling
from morphogen.training.trainer import Trainer
from tiny import Cli, write_config

CPU = torch.device("cpu")
MODEL = Blueprint.model_validate(
    {"emb": {"dim": 16, "vocab": 32}, "blocks": [{"ffn": {"kind": "dense", "hidden": 32, "activation": "gelu"}}] * 2}
)


def losses(compile: str, seed: int, **train: object) -> list[float]:
    settings = Train.model_validate({"lr": 1e-2, "warmup": 0, "compile": compile, **train})
    trainer = Trainer(build(MODEL, seed=seed), settings, total_steps=3, tokens_per_step=32, seed=0)
    ids = np.random.default_rng(0).integers(32, size=(3, 2, 17))
    trainer.run(lambda step: ids[step], 3)
    return trainer.trace.losses


def test_blocks_in_the_place_of_a_models_own_give_its_logits() -> None:
    model = build(MODEL, seed=0)
    ids = torch.arange(16)[None]
    calls: list[int] = []

    def watched(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        y: torch.Tensor = block(x)
        return y

    blocks = [lambda x, block=block: watched(block, x) for block in model.blocks]
    assert torch.equal(model.forward_by(ids, blocks), model(ids))
    assert len(calls) == 2
    assert compiling.forward_of(model, "none") is model


def test_what_cannot_be_compiled_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: Cli
) -> None:
    def lacking(device: torch.device) -> None:
        raise RuntimeError("\nFailed to find C++ compiler\nmore")

    monkeypatch.setattr(compiling, "_sample", lacking)
    compiling.trouble.cache_clear()
    try:
        config = write_config(tmp_path)
        config.write_text(config.read_text().replace("{lr:", "{compile: blocks, lr:", 1))
        with pytest.raises(InputError, match=r"train.compile: got 'blocks'.*Failed to find C\+\+ compiler$"):
            evolve(load(config), tmp_path / "run")
        assert not (tmp_path / "run").exists()
        code, _, err = cli("run", config, "--out", tmp_path / "run", "--dry-run")
        assert (code, "nothing can be compiled here" in err) == (2, True)
        compiling.check_compiles(Train(), CPU)
        with pytest.raises(InputError, match="mps"):
            compiling.check_compiles(Train(compile="model"), torch.device("mps"))
    finally:
        compiling.trouble.cache_clear()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_compiled_training_is_the_same_but_for_rounding_and_compiled_once() -> None:
    from torch._dynamo.utils import counters

    plain = losses("none", 0)
    assert losses("blocks", 0) == pytest.approx(plain, rel=1e-5)
    compiled = counters["stats"]["unique_graphs"]
    assert compiled > 0
    assert losses("blocks", 1) == pytest.approx(losses("none", 1), rel=1e-5)  # another candidate of the same shape
    assert counters["stats"]["unique_graphs"] == compiled
    assert losses("model", 0) == pytest.approx(plain, rel=1e-5)
    assert losses("blocks", 0, grad_ckpt=True) == pytest.approx(plain, rel=1e-5)
