"""The word that a run says where bf16 is slow."""

import json
from pathlib import Path

import pytest
import torch

from morphogen.notices import Notice, Warned
from morphogen.run import evolve, load
from morphogen.training import precision
from morphogen.training.precision import bf16_slowdown, bf16_warning
from tiny import Cli, write_config

CPU = torch.device("cpu")


def test_the_ratio_is_measured() -> None:
    assert 0.05 < bf16_slowdown(CPU) < 5000


@pytest.mark.parametrize(("ratio", "bf16", "told"), [(72.4, True, "72 times"), (0.6, True, ""), (72.4, False, "")])
def test_only_slow_bf16_that_is_asked_for_is_told(
    monkeypatch: pytest.MonkeyPatch, ratio: float, bf16: bool, told: str
) -> None:
    monkeypatch.setattr(precision, "bf16_slowdown", lambda device: ratio)
    warning = bf16_warning(bf16, CPU)
    assert told in warning
    assert bool(warning) == bool(told)


@pytest.mark.usefixtures("own_cache")
def test_a_run_says_so_before_it_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: Cli) -> None:
    monkeypatch.setattr(precision, "bf16_slowdown", lambda device: 72.4)
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("{lr:", "{bf16: true, lr:", 1))
    heard: list[Notice] = []

    def stop(notice: Notice) -> None:
        heard.append(notice)
        if isinstance(notice, Warned):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(load(config), tmp_path / "run", observer=stop)
    assert "72 times slower" in heard[-1].text
    assert "warning: train.bf16" in (tmp_path / "run" / "run.log").read_text()
    code, out, _ = cli("run", config, "--out", tmp_path / "other", "--dry-run", "--json")
    assert code == 0
    assert "72 times slower" in json.loads(out)["warnings"][0]
