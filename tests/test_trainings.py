"""One training in a folder of its own: what it leaves, going on with it after kills and interrupts, what it refuses."""

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from growing_kills import killed
from morphogen.beginnings import Asked
from morphogen.candidate import StopReason
from morphogen.errors import InputError, RunError
from morphogen.inherit.checkpoint import load_checkpoint, save_checkpoint
from morphogen.report.growth import picture
from morphogen.store.files import TEMPORARY
from morphogen.training import snapshots
from morphogen.training.news import Evaluated, News, Noted, Stepped
from morphogen.training.terms import Outcome
from morphogen.trainings import train
from tiny import Cli, write_config, write_corpus

pytestmark = pytest.mark.usefixtures("own_cache")
STEPS = 12


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def whole(config: Path, own_cache: None) -> Path:
    """A training that nothing disturbed."""
    folder = config.parent / "whole"
    trained(config, folder)
    return folder


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these trainings."""
    monkeypatch.setattr("morphogen.trainings.picture", lambda folder: b"")


def trained(config: Path, folder: Path, steps: int = STEPS, **options: Any) -> Outcome:
    return train(config, folder, steps=steps, **{"checkpoint_every": 5, "eval_every": 0, **options})


def losses(folder: Path) -> list[tuple[str, ...]]:
    """Every step's number, tokens, losses, rate and size."""
    with (folder / "steps.csv").open() as file:
        return [tuple(row) for row in csv.reader(file)]


def test_a_training_leaves_its_model_its_tables_and_a_picture(whole: Path) -> None:
    rows = losses(whole)
    assert rows[0][:3] == ("step", "tokens", "loss")
    assert [int(row[0]) for row in rows[1:]] == list(range(1, STEPS + 1))
    assert [int(row[1]) for row in rows[1:]] == [128 * step for step in range(1, STEPS + 1)]
    assert float(rows[-1][2]) < float(rows[1][2])
    drawn = (whole / "growth.png").read_bytes()
    assert drawn == picture(whole)
    assert drawn.startswith(b"\x89PNG")
    assert [path.name for _, path in snapshots.found(whole)] == [
        f"step-{step:08}.safetensors" for step in (STEPS, 10, 5)
    ]
    _, blueprint, extra = load_checkpoint(whole / "model.safetensors", measured=True)
    assert extra["steps"] == str(STEPS)
    assert json.loads(extra["tokens"]) == {"own": 1536, "lineage": 1536, "unique": 1536}
    assert json.loads(extra["begun_as"]) == blueprint.to_json()
    assert (whole / "growth.csv").read_text().count("\n") == 1
    assert not list(whole.rglob(f"*{TEMPORARY}"))


def same(one: Path, other: Path) -> None:
    """Whether two trainings took the same steps, grew alike, and ended with the same weights, to the last bit."""
    assert losses(one) == losses(other)
    for name in ("growth.csv", "usage.csv"):
        assert untimed(one / name) == untimed(other / name)
    mine, theirs = (load_checkpoint(folder / "model.safetensors") for folder in (one, other))
    assert mine[1] == theirs[1]
    assert all(mine[0][name].equal(tensor) for name, tensor in theirs[0].items())
    assert not list(one.rglob(f"*{TEMPORARY}"))


def untimed(path: Path) -> list[dict[str, str]]:
    """The rows of a table without when they were written."""
    with path.open() as file:
        return [{name: cell for name, cell in row.items() if name != "time"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("grows", [False, True])
def test_a_training_that_is_killed_again_and_again_gives_what_it_would_have_given(
    config: Path, whole: Path, tmp_path: Path, grows: bool
) -> None:
    moments = (
        ["change:2", "step:6", "grew:1", "restore:1"] if grows else ["rename:2", "step:7", "rename:9", "restore:1"]
    )
    chosen = growing(config, tmp_path) if grows else config
    assert killed(chosen, tmp_path / "killed", STEPS, moments) == [-9] * len(moments) + [0]
    if grows:
        whole = tmp_path / "whole"
        trained(chosen, whole)
    same(tmp_path / "killed", whole)
    rows = untimed(tmp_path / "killed" / "growth.csv")
    assert [row["action"] for row in rows] == (["widen", "deepen", "to_moe", "split"] if grows else [])


#: In the order in which they act; every step after those before is one at which a training may be killed.
RULES = """
    - {id: wide, when: {trigger: step, at: 2}, do: {action: widen, target: dim, factor: 1.5, warmup: 3}}
    - {id: deep, when: {trigger: step, at: 4}, do: {action: deepen, new_param_lr_multiplier: 0.5, warmup: 4}}
    - {id: moe, when: {trigger: step, at: 6}, do: {action: to_moe, blocks: [b0], n_experts: 2, k: 1}}
    - {id: split, when: {trigger: step, at: 8}, do: {action: split_experts}}
"""
MORE_RULES = """
    - {id: prune, when: {trigger: step, at: 12}, do: {action: prune_experts}}
    - {id: cross, when: {trigger: step, at: 14}, do: {action: cross_experts, loss_budget: 100.0}}
    - {id: drop, when: {trigger: step, at: 16}, do: {action: drop_layer}}
"""
WATCHING_RULES = """
    - id: flat
      when: {trigger: plateau, window: 4, tolerance: 1.0}
      do: {action: widen, factor: 1.2}
      limits: {cooldown_steps: 5}
    - id: used
      when: {trigger: utilization, measure: gradient, threshold: 0.1, window: 4}
      do: {action: widen, target: heads}
      limits: {cooldown_steps: 3, max_times: 2}
"""


def growing(config: Path, folder: Path, rules: str = RULES, anchoring: str = "") -> Path:
    """The experiment with rules of growth."""
    text = config.read_text().replace("\ntrain:", f"\n  growth:{rules}train:")
    path = folder / "growing.yaml"
    path.write_text(text.replace("train: {", f"train: {{{anchoring}"))
    return path


#: What every rule of the first two lists does, in the log's words.
ALL_RULES = {
    "wide": "widen",
    "deep": "deepen",
    "moe": "to_moe",
    "split": "split",
    "prune": "prune",
    "cross": "cross",
    "drop": "drop_layer",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "anchoring",
    [
        "anchoring: {rehearsal: {share: 0.5}}, ",
        "anchoring: {self_distillation: {weight: 0.5}}, ",
        "anchoring: {freeze_expand_tune: {freeze_steps: 2, tune_steps: 2}}, ",
    ],
)
def test_ten_kills_leave_every_loss_as_it_was(config: Path, tmp_path: Path, anchoring: str) -> None:
    chosen = growing(config, tmp_path, RULES.rstrip() + MORE_RULES.rstrip() + WATCHING_RULES, anchoring)
    moments = ["change:1", "grew:2", "step:5", "change:3", "restore:1", "step:3", "checkpoint:2", "grew:1", "step:7"]
    moments.append("rename:9")
    assert killed(chosen, tmp_path / "killed", 30, moments) == [-9] * len(moments) + [0]
    trained(chosen, tmp_path / "whole", 30)
    same(tmp_path / "killed", tmp_path / "whole")
    assert acted(tmp_path / "whole") == ALL_RULES | {"flat": "widen", "used": "widen"}


def acted(folder: Path) -> dict[str, str]:
    """Rule -> what it did."""
    return {row["rule"]: row["action"] for row in untimed(folder / "growth.csv")}


@pytest.mark.slow
def test_kills_before_and_after_growth_of_each_sort_leave_every_loss_as_it_was(config: Path, tmp_path: Path) -> None:
    """With a checkpoint of each step, every trial comes as far as the next growth: once before it, once after."""
    chosen = growing(config, tmp_path, RULES.rstrip() + MORE_RULES)
    moments = ["change:1", *["grew:1", "change:2"] * (len(ALL_RULES) - 1), "grew:1"]
    assert killed(chosen, tmp_path / "killed", 18, moments, every=1) == [-9] * len(moments) + [0]
    trained(chosen, tmp_path / "whole", 18)
    same(tmp_path / "killed", tmp_path / "whole")
    assert acted(tmp_path / "whole") == ALL_RULES


def test_more_steps_go_on_where_fewer_ended(config: Path, whole: Path, tmp_path: Path) -> None:
    trained(config, tmp_path / "short", 7)
    trained(config, tmp_path / "short", resume=True)
    assert losses(tmp_path / "short") == losses(whole)


def test_a_damaged_checkpoint_is_passed_over_with_a_line(config: Path, whole: Path, tmp_path: Path) -> None:
    folder, told = tmp_path / "damaged", list[News]()
    trained(config, folder, 10)
    latest = snapshots.path_at(folder, 10)
    latest.write_bytes(latest.read_bytes()[:-100])
    trained(config, folder, resume=True, observer=told.append)
    lines = [news.text for news in told if isinstance(news, Noted)]
    assert any("passed over" in line and "step-00000010" in line for line in lines)
    assert "goes on from step 5" in lines
    assert losses(folder) == losses(whole)
    for _, path in snapshots.found(folder):
        path.write_bytes(b"nothing")
    with pytest.raises(RunError, match="none of its checkpoints is sound"):
        trained(config, folder, 20, resume=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_checkpoint_of_the_step_it_came_to(
    config: Path, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    def interrupt(news: News) -> None:
        if isinstance(news, Stepped) and news.step.step == 3:
            os.kill(os.getpid(), number)

    outcome = trained(config, tmp_path / "run", observer=interrupt)
    assert outcome.interrupted
    assert next(step for step, _ in snapshots.found(tmp_path / "run")) == outcome.step
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not trained(config, tmp_path / "run", resume=True).interrupted
    assert losses(tmp_path / "run") == losses(whole)


def test_checkpoints_are_kept_as_many_as_asked_for(config: Path, tmp_path: Path) -> None:
    trained(config, tmp_path / "one", 8, checkpoint_every=1, keep=1)
    assert [step for step, _ in snapshots.found(tmp_path / "one")] == [8]
    trained(config, tmp_path / "all", 4, checkpoint_every=1, keep=0)
    assert [step for step, _ in snapshots.found(tmp_path / "all")] == [4, 3, 2, 1]


def test_batches_that_make_a_step_together_train_as_one_large_batch(config: Path, tmp_path: Path) -> None:
    trained(config, tmp_path / "large", 8, asked=Asked(batch_size=8))
    trained(config, tmp_path / "several", 8, asked=Asked(batch_size=2, accumulate=4))
    large, several = ([list(map(float, row)) for row in losses(tmp_path / name)[1:]] for name in ("large", "several"))
    for mine, other in zip(large, several, strict=True):
        assert mine[:2] == other[:2]
        assert mine[2] == pytest.approx(other[2], rel=1e-4)


def test_held_out_text_is_measured_at_intervals_and_at_the_end(config: Path, tmp_path: Path) -> None:
    told: list[News] = []
    outcome = trained(config, tmp_path / "run", 7, eval_every=3, observer=told.append)
    found = [(news.step, news.bpb) for news in told if isinstance(news, Evaluated)]
    assert [step for step, _ in found] == [3, 6, 7]
    assert outcome.bpb == found[-1][1]
    assert (tmp_path / "run" / "evals.csv").read_text().splitlines()[0] == "step,tokens,bpb"


def test_a_checkpoint_brings_its_architecture_its_weights_and_its_text(whole: Path, tmp_path: Path) -> None:
    on = tmp_path / "on"
    told: list[News] = []
    trained(whole / "model.safetensors", on, 3, observer=told.append)
    first = next(news for news in told if isinstance(news, Stepped))
    assert first.step.loss < float(losses(whole)[1][2]) - 0.5
    _, _, extra = load_checkpoint(on / "model.safetensors")
    assert json.loads(extra["tokens"])["lineage"] == 1536 + 3 * 128
    assert json.loads(extra["begun"])["lineage"] == 1536
    trained(snapshots.path_at(whole, 10), tmp_path / "earlier", 3)
    other = write_corpus(tmp_path / "other", 30)
    trained(whole / "model.safetensors", tmp_path / "data", 3, asked=Asked(data=str(other)))
    trained(whole / "model.safetensors", tmp_path / "data", 5, resume=True)  # --data is remembered
    assert str(other) in (tmp_path / "data" / "experiment.yaml").read_text()


def test_a_checkpoint_of_a_trained_tokenizer_brings_it_along(tmp_path: Path) -> None:
    config = write_config(tmp_path, **{"tokenizer: bytes": "tokenizer: {kind: bpe, vocab: 300}"})
    trained(config, tmp_path / "bpe", 2)
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    (lonely / "model.safetensors").write_bytes((tmp_path / "bpe" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="name its text with --data"):
        trained(lonely / "model.safetensors", tmp_path / "on", 2)
    other = write_corpus(tmp_path / "other", 60)
    asked = Asked(data=str(other), batch_size=4, seq_len=32)
    for source, out in ((lonely / "model.safetensors", "a"), (tmp_path / "bpe" / "model.safetensors", "b")):
        trained(source, tmp_path / out, 2, asked=asked)
        _, _, theirs = load_checkpoint(source)
        _, _, mine = load_checkpoint(tmp_path / out / "model.safetensors")
        assert mine["tokenizer"] == theirs["tokenizer"]


def refused(cli: Cli, *args: object) -> str:
    code, _, err = cli("train", *args)
    assert code == 2, err
    assert "Traceback" not in err
    return " ".join(err.split())


def test_what_cannot_be_gone_on_with_is_refused_in_one_message(
    cli: Cli, config: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    trained(config, folder, 6)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    on = ("--output-dir", folder, "--steps")
    assert "add --resume" in refused(cli, config, *on, 20)
    assert "--steps: got 6, but the training" in refused(cli, config, *on, 6, "--resume")
    assert "--steps: got 5, but the training" in refused(cli, config, *on, 5, "--resume")
    assert "train.lr is 0.01 there and 0.5 here" in refused(cli, config, *on, 20, "--resume", "--lr", 0.5)
    other = write_corpus(tmp_path / "other", 30)
    assert "holds another training" in refused(cli, config, *on, 20, "--resume", "--data", other)
    wider = tmp_path / "wider.yaml"
    wider.write_text(config.read_text().replace("hidden: 32", "hidden: 40"))
    assert "model.blocks.b0.ffn.hidden is 32 there and 40 here" in refused(cli, wider, *on, 20, "--resume")
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(config.read_text().replace("tokenizer: bytes", "tokenizer: {kind: bpe, vocab: 300}"))
    assert "data.tokenizer" in refused(cli, tokens, *on, 20, "--resume")
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    snapshots.path_at(folder, 99).write_bytes(snapshots.path_at(whole, 10).read_bytes())
    trained(config, tmp_path / "stranger", 2, asked=Asked(seed=7))
    snapshots.path_at(folder, 99).write_bytes(snapshots.path_at(tmp_path / "stranger", 2).read_bytes())
    assert "a checkpoint of another training" in refused(cli, config, *on, 200, "--resume")


def test_folders_that_are_no_training_s_are_left_alone(cli: Cli, config: Path, tmp_path: Path) -> None:
    file, strange, run = tmp_path / "file", tmp_path / "strange", tmp_path / "run"
    file.write_text("mine")
    strange.mkdir()
    (strange / "thesis.tex").write_text("mine")
    run.mkdir()
    (run / "ledger.sqlite").write_text("")
    assert "is a file" in refused(cli, config, "--steps", 2, "--output-dir", file)
    assert "thesis.tex" in refused(cli, config, "--steps", 2, "--output-dir", strange)
    assert "holds a run of a search" in refused(cli, config, "--steps", 2, "--output-dir", run)
    inside = config.parent / "corpus" / "out"
    assert "lies in the text" in refused(cli, config, "--steps", 2, "--output-dir", inside)
    assert not inside.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lr", "-1"], "--lr: got -1.0"),
        (["--steps", "0"], "--steps"),
        (["--seq-len", "4"], "--seq-len"),
        (["--accumulate", "0"], "--accumulate"),
        (["--data", "nowhere.txt"], "nowhere.txt"),
        (["--data", "nowhere.yaml"], "nowhere.yaml"),
        (["--data", ""], "--data: empty, expected"),
        (["--data", " "], "--data: empty, expected"),
        (["--data", "a\0b"], "--data: got"),
        (["--data", "a\0b.yaml"], "--data: got"),
        (["--data", "~nobody-here/text"], "--data: got '~nobody-here/text', but nobody has that home folder"),
        (["--data", "probe:mqar:x"], "--data: got 'probe:mqar:x'"),
        (["--data", "probe:mqar"], "--data: shards: there are only probes"),
        (["--lr", "inf"], "lr"),
        (["--device", "gpu"], "device: got 'gpu'"),
        (["--keep", "-1"], "--keep"),
    ],
)
def test_options_out_of_range_are_told_by_name(
    cli: Cli, config: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    steps = [] if "--steps" in options else ["--steps", 2]
    assert said in refused(cli, config, *steps, "--output-dir", tmp_path / "out", *options)


@pytest.mark.parametrize(
    ("name", "least"), [("steps", 1), ("nproc", 1), ("keep", 0), ("checkpoint_every", 1), ("eval_every", 0)]
)
def test_options_out_of_range_are_told_from_python_too(name: str, least: int, config: Path, tmp_path: Path) -> None:
    for value in (least - 1, -7):
        with pytest.raises(InputError, match=f"^{name}: got {value}, expected at least {least}$"):
            train(config, tmp_path / "out", **{"steps": 2, name: value})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["below a file", "a link to nowhere", "a name that is too long"])
def test_a_folder_that_cannot_be_made_is_told_from_python_too(kind: str, config: Path, tmp_path: Path) -> None:
    folder = {"below a file": config / "out", "a link to nowhere": tmp_path / "link"}.get(kind, tmp_path / ("x" * 300))
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(RunError, match=r"(out|link|xxx): cannot be the training's folder: "):
        train(config, folder, steps=2)


def test_sources_that_are_none_are_told(cli: Cli, config: Path, tmp_path: Path) -> None:
    out = ("--steps", 2, "--output-dir", tmp_path / "out")
    assert "no such checkpoint" in refused(cli, tmp_path / "no.safetensors", *out)
    assert "no such file" in refused(cli, tmp_path / "no.yaml", *out)
    assert "is a folder" in refused(cli, config.parent, *out)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"{}")
    assert "not a readable checkpoint" in refused(cli, broken, *out)
    assert not (tmp_path / "out").exists()


def test_rules_that_cannot_be_meant_are_told_with_their_line(cli: Cli, tmp_path: Path) -> None:
    out = ("--steps", 2, "--output-dir", tmp_path / "out")
    for when, do, said in (
        ("step, at: 9", "widen", ".when: never fires: it waits for 9 steps, but there are 2 in all"),
        ("step, at: 1", "merge_experts", ".do: merge_experts has nothing to act on: there is no mixture"),
    ):
        rule = f"  growth: [{{when: {{trigger: {when}}}, do: {{action: {do}}}}}]\n  blocks:"
        config = write_config(tmp_path, **{"  blocks:": rule})
        told = refused(cli, config, *out)
        assert f"{config}:4:" in told
        assert f"model.growth[0]{said}" in told
    assert not (tmp_path / "out").exists()


def test_only_one_process_trains_in_a_folder(config: Path, tmp_path: Path) -> None:
    def again(news: News) -> None:
        if isinstance(news, Stepped) and news.step.step == 2:
            with pytest.raises(RunError, match="another writer has this training open"):
                trained(config, tmp_path / "run", resume=True)

    trained(config, tmp_path / "run", 3, observer=again)


def test_json_lines_tell_every_step_and_a_summary(cli: Cli, config: Path, tmp_path: Path) -> None:
    code, out, _ = cli("train", config, "--steps", 3, "--output-dir", tmp_path / "run", "--json")
    assert code == 0
    lines, _, summary = out.partition("\n{\n")
    steps = [told for line in lines.splitlines() if (told := json.loads(line))["event"] == "step"]
    assert [told["step"] for told in steps] == [1, 2, 3]
    assert json.loads("{" + summary)["steps"] == 3


def test_tensorboard_is_asked_for_by_name_where_it_is_missing(
    cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: Callable[[str], object] = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tensorboard" else found(name))
    told = refused(cli, config, "--steps", 2, "--output-dir", tmp_path / "run", "--tensorboard")
    assert "install morphogen[tensorboard]" in told
    assert not (tmp_path / "run").exists()


def test_status_tells_of_a_training_and_of_its_checkpoints(cli: Cli, config: Path, whole: Path) -> None:
    code, out, _ = cli("status", whole)
    assert code == 0
    told = dict(line.split("  ", 1) for line in out.splitlines())
    assert told["state"].strip() == "finished"
    assert told["step"].strip() == str(STEPS)
    assert "1 layers, dim 16" in told["now"]
    assert told["at the start"].strip() == told["now"].strip()
    for path in (whole / "model.safetensors", snapshots.path_at(whole, 10)):
        code, out, _ = cli("status", path, "--json")
        assert code == 0
        found = json.loads(out)
        assert (found["step"], found["tokens"]) in {(STEPS, 1536), (10, 1280)}
        assert found["now"]["experts_per_layer"] == [0]
        assert found["growth"] == []
    code, _, err = cli("status", config.parent / "nothing.safetensors")
    assert (code, "no such checkpoint" in err) == (2, True)


def test_a_first_checkpoint_that_holds_other_weights_by_now_is_not_gone_on_from(
    cli: Cli, config: Path, whole: Path, tmp_path: Path
) -> None:
    first, chosen, out = tmp_path / "first.safetensors", tmp_path / "from.yaml", tmp_path / "run"
    first.write_bytes((whole / "model.safetensors").read_bytes())
    chosen.write_text(config.read_text().replace("train: {", f"train: {{init_checkpoint: {first}, "))
    trained(chosen, out, 3)
    first.write_bytes(snapshots.path_at(whole, 5).read_bytes())
    again = (chosen, "--steps", 6, "--output-dir", out, "--resume")
    assert f"train.init_checkpoint: {first} does not hold what it held then" in refused(cli, *again)
    first.unlink()  # what is gone cannot be mistaken for other weights: its own checkpoints have all that is needed
    assert trained(chosen, out, 6, resume=True).step == 6


def test_a_training_leaves_the_tokenizer_of_another_alone(cli: Cli, tmp_path: Path) -> None:
    config = write_config(tmp_path, **{"tokenizer: bytes": "tokenizer: {kind: bpe, vocab: 300}"})
    trained(config, tmp_path / "bpe", 2)
    model, other = tmp_path / "bpe" / "model.safetensors", write_corpus(tmp_path / "other", 60)
    options = ("--data", other, "--batch-size", 4, "--seq-len", 32)
    out = tmp_path / "bpe2"
    assert "--steps" in refused(cli, model, "--steps", 0, "--output-dir", out, *options)
    assert "no rule is manual" in refused(cli, model, "--steps", 2, "--output-dir", out, *options, "--grow", "x")
    assert not out.exists()
    out.mkdir()
    (out / "tokenizer.json").write_text("{}")
    assert "is the tokenizer of something else" in refused(cli, model, "--steps", 2, "--output-dir", out, *options)
    assert (out / "tokenizer.json").read_text() == "{}"
    (out / "tokenizer.json").unlink()
    asked = Asked(data=str(other), batch_size=4, seq_len=32)
    trained(model, out, 2, asked=asked)
    laid = (out / "tokenizer.json").read_bytes()
    larger = write_config(tmp_path, **{"tokenizer: bytes": "tokenizer: {kind: bpe, vocab: 290}"})
    trained(larger, tmp_path / "larger", 2)
    strange = (tmp_path / "larger" / "model.safetensors", "--steps", 4, "--output-dir", out)
    refused(cli, *strange, *options)
    assert "holds another training" in refused(cli, *strange, *options, "--resume")
    assert (out / "tokenizer.json").read_bytes() == laid
    (out / "tokenizer.json").unlink()  # a checkpoint brings it again
    trained(model, out, 4, asked=asked, resume=True)
    assert (out / "tokenizer.json").read_bytes() == laid


def test_a_training_on_other_text_is_gone_on_with_from_anywhere_and_wherever_both_were_moved(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write_corpus(here / "other", 30)
    (here / "elsewhere").mkdir()
    (here / "more.yaml").write_text(config.read_text())
    (here / "own.yaml").write_text(config.read_text().replace(str(config.parent / "corpus"), str(here / "other")))
    monkeypatch.chdir(here)
    for name, data in (("text", "other"), ("yaml", "own.yaml")):
        trained(here / "more.yaml", here / name, 2, asked=Asked(data=data))
    monkeypatch.chdir(here / "elsewhere")
    for name in ("text", "yaml"):
        trained(here / "more.yaml", here / name, 3, resume=True)
        trained(here / name / "experiment.yaml", here / name, 4, resume=True)
    here.rename(there)
    monkeypatch.chdir(there / "elsewhere")
    trained(there / "text" / "experiment.yaml", there / "text", 5, resume=True)
    trained(there / "more.yaml", there / "text", 6, resume=True)
    (there / "own.yaml").unlink()  # its own experiment has all of it
    trained(there / "yaml" / "experiment.yaml", there / "yaml", 5, resume=True)
    assert losses(there / "yaml")[:3] == losses(there / "text")[:3]  # the same text, whoever named it


def test_a_training_with_a_tokenizer_of_its_own_is_gone_on_with_where_it_was_moved(cli: Cli, tmp_path: Path) -> None:
    config = write_config(tmp_path, **{"tokenizer: bytes": "tokenizer: {kind: bpe, vocab: 300}"})
    trained(config, tmp_path / "bpe", 2)
    other = write_corpus(tmp_path / "other", 60)
    asked = Asked(data=str(other), batch_size=4, seq_len=32)
    trained(tmp_path / "bpe" / "model.safetensors", tmp_path / "run", 2, asked=asked)
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    trained(moved / "experiment.yaml", moved, 3, resume=True)
    trained(moved / "model.safetensors", tmp_path / "on", 2)
    assert cli("generate", moved / "model.safetensors", "--max-tokens", 3)[0] == 0


def test_a_checkpoint_keeps_its_tokenizer_whatever_the_experiment_with_its_new_text_says(
    config: Path, whole: Path, tmp_path: Path
) -> None:
    other = write_corpus(tmp_path / "other", 60)
    text = config.read_text().replace(str(config.parent / "corpus"), str(other))
    (tmp_path / "other.yaml").write_text(text.replace("tokenizer: bytes", "tokenizer: {kind: bpe, vocab: 300}"))
    model = whole / "model.safetensors"
    trained(model, tmp_path / "on", 2, asked=Asked(data=str(tmp_path / "other.yaml")))
    assert (
        load_checkpoint(tmp_path / "on" / "model.safetensors")[2]["tokenizer"] == load_checkpoint(model)[2]["tokenizer"]
    )


def test_a_training_that_a_guard_has_ended_stays_ended_until_it_is_asked_to_go_on(
    cli: Cli, config: Path, tmp_path: Path
) -> None:
    guarded, out = tmp_path / "guarded.yaml", tmp_path / "run"
    # no entropy is as high as this, so that the first check ends it
    guarded.write_text(
        config.read_text().replace("train: {", "train: {entropy_threshold: 100.0, entropy_patience: 1, ")
    )
    outcome = trained(guarded, out, 30, early_stop=True)
    assert (outcome.step, outcome.stop, outcome.interrupted) == (10, StopReason.LOW_ENTROPY, False)
    assert trained(guarded, tmp_path / "free", 12).step == 12
    again = (guarded, "--steps", 30, "--output-dir", out, "--resume")
    assert "ended early already, at step 10 (low_entropy)" in refused(cli, *again, "--early-stop")
    for place in (out, out / "model.safetensors"):
        code, told, _ = cli("status", place, "--json")
        assert (code, json.loads(told)["ended_early"]) == (0, "low_entropy")
    assert json.loads(cli("status", out, "--json")[1])["state"] == "finished"
    (out / "model.safetensors").unlink()  # as though it had been killed before it was written
    assert json.loads(cli("status", out, "--json")[1])["state"] == "stopped; --resume goes on"
    outcome = trained(guarded, out, 30, early_stop=True, resume=True)
    assert (outcome.step, outcome.stop) == (10, StopReason.LOW_ENTROPY)
    patient = tmp_path / "patient.yaml"
    patient.write_text(guarded.read_text().replace("entropy_patience: 1", "entropy_patience: 2"))
    outcome = trained(patient, out, 30, early_stop=True, resume=True)
    assert (outcome.step, outcome.stop) == (20, StopReason.LOW_ENTROPY)
    assert trained(guarded, out, 22, resume=True).step == 22
    assert "ended_early" not in json.loads(cli("status", out, "--json")[1])


def test_a_picture_that_is_missing_is_drawn_again(cli: Cli, config: Path, tmp_path: Path) -> None:
    trained(config, tmp_path / "run", 3)
    (tmp_path / "run" / "growth.png").unlink()
    trained(config, tmp_path / "run", 3, resume=True)
    assert (tmp_path / "run" / "growth.png").exists()
    again = ("--steps", 3, "--output-dir", tmp_path / "run", "--resume")
    assert "has done 3 already" in refused(cli, config, *again)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data", {}),
        ("data", {"corpora": 3}),
        ("data", {"corpora": {"shards": [{}]}, "tokenizer": {}}),
        ("data", {"corpora": {"shards": 3}, "tokenizer": {}}),
        ("data", []),
        ("experiment", {}),
        ("experiment", {"model": 3}),
        ("asked", {"data": 3}),
        ("asked", None),
        ("begun", {"own": -1}),
        ("memory", "{"),
        ("memory", "[]"),
        ("memory", '{"rules": 3}'),
        ("memory", '{"format": 2, "rules": 3}'),
        ("threads", 0),
        ("threads", 10**12),
        ("paths", []),
        ("versions", None),
        ("format", "morphogen-training-9"),
        ("steps", 0),
        ("id", "another"),
        (None, b""),
        (None, b"[1, 2"),
        (None, b"\xff\xfe"),
        (None, b"3"),
        (None, b"[" * 100_000),
    ],
)
def test_a_damaged_record_is_told_in_one_message(cli: Cli, damaged: Path, field: str | None, value: Any) -> None:
    path = damaged / "training.json"
    whole = path.read_bytes()
    told = value if field is None else json.dumps(json.loads(whole) | {field: value}).encode()
    path.write_bytes(told)
    try:
        said = refused(cli, damaged / "experiment.yaml", "--steps", 6, "--output-dir", damaged, "--resume")
        assert json.loads(path.read_bytes())[field] == value if field == "memory" else path.read_bytes() == told
    finally:
        path.write_bytes(whole)
    assert str(damaged) in said
    assert field != "memory" or "what is remembered of growth" in said


@pytest.fixture(scope="module")
def damaged(config: Path, own_cache: None) -> Path:
    """A training to damage."""
    trained(config, config.parent / "damaged", 3)
    return config.parent / "damaged"


def test_what_else_lies_damaged_in_a_training_is_made_anew(cli: Cli, config: Path, damaged: Path) -> None:
    names = ("steps.csv", "evals.csv", "usage.csv", "growth.csv", "growth.log", "experiment.yaml")
    for steps, content in enumerate((b"", b"\xff\x00\n,,,\n", b"step\n1\n2\n"), start=4):
        for name in names:
            (damaged / name).write_bytes(content)
        code, _, err = cli("train", config, "--steps", steps, "--output-dir", damaged, "--resume")
        assert (code, "Traceback" in err) == (0, False), err
        assert [row[0] for row in losses(damaged)] == ["step", str(steps)]


def test_a_checkpoint_that_says_too_little_is_told(cli: Cli, config: Path, tmp_path: Path) -> None:
    trained(config, tmp_path / "run", 2)
    _, path = snapshots.found(tmp_path / "run")[0]
    found = snapshots.read(path)
    for part in ("trainer", "growing", "journal", "figures"):
        plain = {name: value for name, value in found.saved.plain.items() if name != part}
        extra = {name: value for name, value in found.metadata.items() if name != snapshots.KEY}
        saved = found.saved._replace(plain=plain)
        snapshots.write(path, found.id, 2, found.blueprint, found.state, found.averages, saved, extra)
        told = refused(cli, config, "--steps", 4, "--output-dir", tmp_path / "run", "--resume")
        assert f"{path}: what it says of its training cannot be read" in told


def test_generate_writes_on_from_a_prompt(cli: Cli, whole: Path, tmp_path: Path) -> None:
    model = whole / "model.safetensors"
    ask = ("--prompt", "alpha ", "--max-tokens", 20)
    first, again, other = (cli("generate", model, *ask, "--seed", seed) for seed in (1, 1, 2))
    assert first[0] == 0
    assert first[1].startswith("alpha ")
    assert first == again
    assert first != other
    likeliest = [cli("generate", model, *ask, "--temperature", 0, "--seed", seed)[1] for seed in (1, 2)]
    assert likeliest[0] == likeliest[1] == cli("generate", model, *ask, "--top-k", 1)[1]
    code, out, _ = cli("generate", model, "--max-tokens", 5, "--json")
    assert (code, json.loads(out)["prompt"]) == (0, "")
    for option, said in (
        (("--top-k", 0), "--top-k"),
        (("--temperature", -1), "temperature"),
        (("--temperature", "nan"), "temperature"),
        (("--max-tokens", -1), "--max-tokens"),
        (("--prompt", "\udcff"), "--prompt"),
        (("--seed", 2**70), "--seed"),
    ):
        code, _, err = cli("generate", model, *option)
        assert (code, said in err, "Traceback" in err) == (2, True, False), err
    state, blueprint, _ = load_checkpoint(model)
    state["emb.weight"] = state["emb.weight"].clone().fill_(float("nan"))
    save_checkpoint(tmp_path / "broken.safetensors", state, blueprint, {"tokenizer_name": "bytes"})
    code, _, err = cli("generate", tmp_path / "broken.safetensors", *ask)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "not finite" in err


@pytest.mark.parametrize("anchor", ["rehearsal: {share: 0.5}", "self_distillation: {weight: 0.5}"])
def test_what_keeps_a_model_from_forgetting_goes_on_too(config: Path, tmp_path: Path, anchor: str) -> None:
    anchored = tmp_path / "anchored.yaml"
    text = config.read_text().replace("train: {", f"train: {{anchoring: {{{anchor}}}, ")
    anchored.write_text(text)
    trained(anchored, tmp_path / "whole", 8)
    trained(anchored, tmp_path / "parts", 3)
    trained(anchored, tmp_path / "parts", 8, resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_what_was_rehearsed_from_is_rehearsed_from_in_the_next_training_too(config: Path, tmp_path: Path) -> None:
    def kept(folder: Path) -> tuple[set[tuple[int, ...]], int]:
        saved = snapshots.read(snapshots.found(folder)[0][1]).saved.part("growing").part("anchoring")
        return {tuple(row) for row in saved.tensors["rows"].tolist()}, saved.plain["seen"]

    anchored, other = tmp_path / "anchored.yaml", write_corpus(tmp_path / "other", 30)
    anchored.write_text(config.read_text().replace("train: {", "train: {anchoring: {rehearsal: {share: 0.5}}, "))
    trained(anchored, tmp_path / "first", 4)
    first, seen = kept(tmp_path / "first")
    for name in ("model.safetensors", "checkpoints/step-00000004.safetensors"):
        out = tmp_path / name.replace("/", "-")
        trained(tmp_path / "first" / name, out, 3, asked=Asked(data=str(other)))
        then, seen_then = kept(out)
        assert first < then
        assert seen_then > seen


def test_it_is_told_where_there_is_nothing_to_rehearse_from(config: Path, whole: Path, tmp_path: Path) -> None:
    anchored, told = tmp_path / "anchored.yaml", list[News]()
    anchors = f"train: {{init_checkpoint: {whole / 'model.safetensors'}, anchoring: {{rehearsal: {{share: 0.5}}}}, "
    anchored.write_text(config.read_text().replace("train: {", anchors))
    trained(anchored, tmp_path / "out", 2, observer=told.append)
    assert any("nothing is kept" in news.text for news in told if isinstance(news, Noted))


def test_a_rule_by_hand_acts_when_it_is_asked_for(cli: Cli, config: Path, tmp_path: Path) -> None:
    rules = """
    - {id: now, when: {trigger: manual}, do: {action: widen, factor: 2.0}}
    - {id: later, when: {trigger: step, at: 1000}, do: {action: deepen}}
"""
    chosen = growing(config, tmp_path, rules)
    trained(chosen, tmp_path / "run", 3)
    assert untimed(tmp_path / "run" / "growth.csv") == []
    out = ("--output-dir", tmp_path / "run", "--resume", "--steps", 6)
    assert "'nou'" in refused(cli, chosen, *out, "--grow", "nou")
    assert "is not manual" in refused(cli, chosen, *out, "--grow", "later")
    trained(chosen, tmp_path / "run", 6, resume=True, grow=("now",))
    (row,) = untimed(tmp_path / "run" / "growth.csv")
    assert (row["step"], row["action"], row["rule"]) == ("3", "widen", "now")
    assert float(row["loss_ce"]) == float(losses(tmp_path / "run")[3][2])  # of a step before the restart
    code, told, _ = cli("status", tmp_path / "run", "--json")
    assert code == 0
    found = json.loads(told)
    assert found["now"]["params"] > found["at_start"]["params"]
    assert [event["rule"] for event in found["growth"]] == ["now"]
    other = tmp_path / "other.yaml"
    other.write_text(chosen.read_text().replace("at: 1000", "at: 900"))
    assert "model.growth" in refused(cli, other, "--output-dir", tmp_path / "run", "--resume", "--steps", 9)
    assert cli("generate", tmp_path / "run" / "model.safetensors", "--max-tokens", 5)[0] == 0
    trained(tmp_path / "run" / "model.safetensors", tmp_path / "on", 3)  # goes on as what it grew into
    assert untimed(tmp_path / "on" / "growth.csv") == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["growth_depth_small", "growth_morph_small", "growth_experts_small"])
def test_a_small_configuration_runs_by_the_command_in_its_comment(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root = Path(__file__).parent.parent
    text = (root / "configs" / f"{name}.yaml").read_text()
    (command,) = (line.removeprefix("#").split() for line in text.splitlines() if "morphogen train configs" in line)
    monkeypatch.chdir(root)
    place = command.index("--output-dir") + 1
    assert command[place] == f"runs/{name}"
    command[place] = str(tmp_path / name)
    code, _, err = cli(*command[1:])
    assert code == 0, err
    assert untimed(tmp_path / name / "growth.csv") != []


def test_a_training_of_an_older_version_is_no_damaged_one(cli: Cli, damaged: Path) -> None:
    path = damaged / "training.json"
    whole = path.read_bytes()
    older = {name: value for name, value in json.loads(whole).items() if name != "memory"}
    path.write_text(json.dumps({**older, "format": "morphogen-training-1"}))
    try:
        said = refused(cli, damaged / "experiment.yaml", "--steps", 6, "--output-dir", damaged, "--resume")
    finally:
        path.write_bytes(whole)
    assert f"{path}: is of an older format, 'morphogen-training-1'" in said
    assert "take it away" not in said
