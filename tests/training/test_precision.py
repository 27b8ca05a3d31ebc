"""In which precision a run computes: what `auto` comes to, where that is recorded, and what is said where bf16 is slow.
No test here computes in bf16 for long: not every processor can."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from morphogen.errors import RunError
from morphogen.experiment import Train
from morphogen.network import build
from morphogen.notices import Notice, Warned
from morphogen.reading import read_experiment
from morphogen.run import evolve, load
from morphogen.training import precision, processor
from morphogen.training.precision import bf16_slowdown, bf16_warning, chosen
from morphogen.training.processor import bf16_instructions
from morphogen.training.trainer import Trainer
from tiny import Cli, write_config

CPU = torch.device("cpu")


def test_the_ratio_is_measured() -> None:
    assert 0.05 < bf16_slowdown(CPU) < 5000


@pytest.mark.parametrize(("ratio", "bf16", "told"), [(72.4, True, "72 times"), (0.6, True, ""), (72.4, False, "")])
def test_only_slow_bf16_that_is_asked_for_is_told(
    monkeypatch: pytest.MonkeyPatch, ratio: float, bf16: bool, told: str
) -> None:
    monkeypatch.setattr(precision, "bf16_slowdown", lambda device: ratio)
    warning = bf16_warning(Train(bf16=bf16), CPU)
    assert told in warning
    assert bool(warning) == bool(told)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Fakes what the processor has, and how long its bf16 takes."""

    def fake(flags: tuple[str, ...], ratio: float) -> None:
        monkeypatch.setattr(precision, "bf16_instructions", lambda: flags)
        monkeypatch.setattr(precision, "bf16_slowdown", lambda device: ratio)

    return fake


@pytest.mark.parametrize(
    ("flags", "ratio", "on"),
    [((), 0.4, False), (("avx512_bf16",), 0.4, True), (("amx_bf16",), 0.95, False), ((), 72.4, False)],
)
def test_auto_on_a_cpu_needs_instructions_that_are_measured_to_be_faster(
    machine: Callable[..., None], flags: tuple[str, ...], ratio: float, on: bool
) -> None:
    machine(flags, ratio)
    assert chosen(Train(), CPU).bf16 is on
    assert all(chosen(Train(bf16=asked), CPU).bf16 is asked for asked in (False, True))


@pytest.mark.parametrize("native", [False, True])
def test_auto_on_cuda_asks_whether_bf16_is_native_and_mps_never_has_it(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    emulated: list[bool] = []
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: emulated.append(including_emulation) or native
    )
    assert chosen(Train(), torch.device("cuda")).bf16 is native
    assert emulated == [False]
    assert not chosen(Train(), torch.device("mps")).bf16


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor: 0\nflags\t\t: fpu avx2 avx512_bf16 amx_bf16 amx_tile\n", ("amx_bf16", "avx512_bf16")),
        ("processor: 0\nFeatures\t: fp asimd bf16 i8mm\n", ("bf16",)),
        ("flags\t\t: fpu avx2 avx512f bf16like\n", ()),
        (None, ()),
    ],
)
def test_instructions_are_read_off_the_processors_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, flags: tuple[str, ...]
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert bf16_instructions() == flags


def test_a_trainer_settles_auto_by_its_own_device(machine: Callable[..., None], tmp_path: Path) -> None:
    model = build(read_experiment(write_config(tmp_path)).model, vocab=8)
    for flags, ratio, on in (((), 72.4, False), (("amx_bf16",), 0.3, True)):
        machine(flags, ratio)
        assert Trainer(model, Train(), total_steps=1, tokens_per_step=1, seed=0).train.bf16 is on


@pytest.mark.usefixtures("own_cache")
def test_what_auto_came_to_is_recorded_and_kept_by_whoever_goes_on(
    machine: Callable[..., None], tmp_path: Path, cli: Cli
) -> None:
    machine(("avx512_bf16",), 0.4)
    config, run = write_config(tmp_path), tmp_path / "run"

    def stop(notice: Notice) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(load(config), run, observer=stop)
    machine((), 72.4)  # on another machine
    assert read_experiment(run / "experiment.yaml").train.bf16 is True
    recorded = json.loads((run / "environment.json").read_text())["precision"]
    assert (recorded["asked"], recorded["bf16"]) == ("auto", True)
    assert "avx512_bf16" in recorded["why"]
    assert "flex_attention" in json.loads((run / "environment.json").read_text())["kernels"]["kinds"]["MHA"]
    with pytest.raises(KeyboardInterrupt):
        evolve(load(config), run, resume=True, observer=stop)
    assert json.loads((run / "environment.json").read_text())["precision"] == recorded
    err = cli("doctor", run)[2]
    assert "72 times slower" in err
    config.write_text(config.read_text().replace("{lr:", "{bf16: false, lr:", 1))
    with pytest.raises(RunError, match=r"train.bf16 is true there and false here"):
        evolve(load(config), run, resume=True)


@pytest.mark.usefixtures("own_cache")
def test_explain_and_validate_tell_the_precision_and_warn(
    machine: Callable[..., None], tmp_path: Path, cli: Cli
) -> None:
    machine((), 72.4)
    config = write_config(tmp_path)
    code, out, _ = cli("explain", config, "--no-measure", "--json")
    assert "fp32 (auto: this processor has no instructions" in json.loads(out)["precision"]
    assert "flex_attention is for cuda" in json.loads(out)["kernels"]["MHA"]
    assert "kernel of MHA" in cli("explain", config, "--no-measure")[1]
    config.write_text(config.read_text().replace("{lr:", "{bf16: true, lr:", 1))
    for command in (("explain", config, "--no-measure"), ("validate", config, "--measure")):
        code, out, err = cli(*command)
        assert code == 0
        assert "72 times slower" in out + err
    assert "slower" not in "".join(cli("validate", config)[1:])


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
