"""Malformed files, flags and folders: exit 2, one clear message, no traceback, nothing on disk damaged."""

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from morphogen.blueprint.yaml import loads
from morphogen.candidate import Candidate
from morphogen.cli import main
from morphogen.cli.launch import execute
from morphogen.errors import InputError, RunError
from morphogen.experiment import Experiment
from morphogen.run import evolve, load
from morphogen.runfolder import resolved_yaml
from morphogen.store.ledger import Ledger
from tiny import CONFIG, events, run_live, write_config, write_corpus

Failure = Callable[..., str]


pytestmark = [pytest.mark.usefixtures("own_cache"), pytest.mark.trained_before]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run; tests get a copy of it."""
    folder = tmp_path_factory.mktemp("bad")
    evolve(load(write_config(folder)), folder / "run", generations=1)
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A folder with a good experiment, its corpus and a finished run of it."""
    shutil.copytree(finished, tmp_path / "place")
    return tmp_path / "place"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, but SQLite's side files, which are not the ledger."""
    ignored = (".sqlite-wal", ".sqlite-shm", ".lock")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(ignored)
    }


@pytest.fixture
def failure(capsys: pytest.CaptureFixture[str]) -> Failure:
    """Runs a command that must fail with exit code 2; its message."""

    def call(*args: object) -> str:
        with pytest.raises(SystemExit) as end:
            main([str(arg) for arg in args])
        err = capsys.readouterr().err
        assert end.value.code == 2, err
        assert err.startswith("morphogen: ")
        assert "Traceback" not in err
        assert len(err) < 1500
        return err.removeprefix("morphogen: ").rstrip("\n")

    return call


#: What is wrong -> (text in the good file, what stands there instead, what the message says)
BAD_FILES = {
    "unknown field": ("lr: 0.01", "lrr: 0.01", ":7:9 train.lrr: unknown field, did you mean 'lr'?"),
    "unknown field of a part": ("heads: 2", "heads: 2, spasity: block", "model.blocks[0].attn.spasity: unknown field"),
    "wrong type": ("lr: 0.01", "lr: fast", "train.lr: got 'fast', expected"),
    "wrong kind": ("kind: dense", "kind: dens", "model.blocks[0].ffn.kind: got 'dens', expected one of dense"),
    "no kind": ("kind: dense, ", "", "model.blocks[0].ffn: got"),
    "negative size": ("hidden: 32", "hidden: -32", "model.blocks[0].ffn.hidden: got -32, expected"),
    "heads that cannot be shared out": ("kind: MHA, heads: 2", "kind: GQA, heads: 6, kv_groups: 4", "kv_groups 4"),
    "an odd head_dim under rope": ("head_dim: 8", "head_dim: 7", "rotates pairs"),
    "a sequence beyond all memory": ("seq_len: 32", "seq_len: 1000000000000", "data.seq_len: got 1000000000000"),
    "a moment that never moves": ("lr: 0.01", "lr: 0.01, optimizer: {betas: [0.9, 1]}", "optimizer.betas[1]: got 1"),
    "a number that Lion does not have": (
        "lr: 0.01",
        "lr: 0.01, optimizer: {name: lion, eps: 1.0e-6}",
        ":7:19 train.optimizer: eps is 1e-06, but lion has none",
    ),
    "a weight of a probe that is only measured": (
        "  eval_tokens: 128",
        "  eval_shards: [{source: x, weight: 2}, {source: 'probe:mqar', weight: 2}]\n  eval_tokens: 128",
        "data.eval_shards[1]: weight is 2, but a probe that is only measured has no part in any mean",
    ),
    "a split of local text": (
        "{source: CORPUS}",
        "{source: CORPUS, split: test}",
        ":13:12 data.shards[0]: split is 'test', but the source is 'CORPUS' and only hf: sources have one",
    ),
    "a revision of local text": (
        "{source: CORPUS}",
        "{source: stdlib-code, revision: v1}",
        "data.shards[0]: revision is 'v1', but the source is 'stdlib-code'",
    ),
    "a head of a probe": (
        "{source: CORPUS}",
        "{source: CORPUS}, {source: 'probe:mqar', max_documents: 3}",
        "data.shards[1]: max_documents is 3, but the source is 'probe:mqar' and only text has one",
    ),
    "a weight beyond all sums": (
        "topk_keep: 2",
        "weights: {bpb: 1.0e+308}",
        "evolution.weights.bpb: got 1e+308, expected less than or equal to 1000000",
    ),
    "an operator drawn beyond all sums": (
        "topk_keep: 2",
        "mutation_weights: {widen_ffn: 1.0e+308}",
        "evolution.mutation_weights.widen_ffn: got 1e+308, expected less than or equal to 1000000",
    ),
    "text mixed beyond all sums": ("{source: CORPUS}", "{source: x, weight: 1.0e+308}", "data.shards[0].weight: got"),
    "a rung longer than all numbers": (
        "topk_keep: 2",
        "promotion_prob: 1.0, promotion_steps_multiplier: 1.0e+308",
        "evolution.promotion_steps_multiplier: got 1e+308",
    ),
    "weights that grow beyond all numbers": (
        "topk_keep: 2",
        "adaptive_mutation_eta: 1.0e+308",
        "evolution.adaptive_mutation_eta: got 1e+308",
    ),
    "bins of no width": (
        "topk_keep: 2",
        "map_elites: {bpb: {scale: log, width: 1}}",
        "evolution.map_elites.bpb: width is 1, expected more than 1 with log",
    ),
    "a plug-in that cannot be": (
        "ffn: {",
        "extras: [{kind: custom, name: '..a:B'}]\n      ffn: {",
        "extras[0]: plug-in ..a:B: cannot import ..a",
    ),
    "YAML syntax": ("{dim: 16}", "{dim: 16", "not valid YAML"),
    "no model": ("model:", "modle:", "model: required field is missing"),
    "no blocks": (
        "  blocks:\n    - attn: {kind: MHA, heads: 2, head_dim: 8}\n      ffn",
        "  blocks: []\n  ffn",
        "blocks",
    ),
    "an empty block": ("kind: MHA", "id: x, kind: MHA", "unknown field"),
    "a repeated gene id": (
        "- attn: {kind: MHA",
        "- {id: g, ffn: {kind: dense, hidden: 8}}\n    - id: g\n      attn: {kind: MHA",
        "blocks share the id g",
    ),
    "no tokens to train on": (
        "rung1_tokens: 128, rung2_tokens: 256",
        "rung1_tokens: 0, rung2_tokens: 0",
        "nothing would",
    ),
    "an unknown selection": ("topk_keep: 2", "parent_selection: lexicas", "did you mean 'lexicase'?"),
    "an unknown direction": ("topk_keep: 2", "objectives: {bpb: minimum}", "expected one of min, max"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_malformed_file_is_refused_by_line_and_column(what: str, failure: Failure, tmp_path: Path) -> None:
    old, new, said = BAD_FILES[what]
    assert old in CONFIG
    bad = tmp_path / "bad.yaml"
    bad.write_text(CONFIG.replace(old, new, 1))
    message = failure("run", bad, "--out", tmp_path / "run")
    assert said in message
    assert all(line.startswith(f"{bad}:") for line in message.splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_defaults_that_a_resolved_experiment_spells_out_are_not_refused(tmp_path: Path) -> None:
    text = CONFIG.replace("lr: 0.01", "lr: 0.01, optimizer: {name: lion}")
    text = text.replace(
        "  eval_tokens: 128", "  eval_shards: [{source: x}, {source: 'probe:mqar'}]\n  eval_tokens: 128"
    )
    experiment = loads(text).parse(Experiment)
    resolved = resolved_yaml(experiment.model_dump(mode="json"))
    assert "eps" in resolved
    assert loads(resolved).parse(Experiment) == experiment


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "the file is empty"),
        (b"# nothing but a comment\n", "the file is empty"),
        (b"- a\n- b\n", "found a list, expected a mapping with at least 'model'"),
        (b"just words", "found a text, expected a mapping with at least 'model'"),
        (b"model: \xff\xfe", "not UTF-8 text"),
        (b"a: 1\na: 2\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_experiment(raw: bytes, said: str, failure: Failure, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(raw)
    message = failure("validate", bad)
    assert said in message
    assert "\n" not in message


def test_a_missing_file_and_its_nearest_name(failure: Failure, place: Path) -> None:
    assert "no such file; did you mean" in failure("run", place / "tinny.yaml")
    assert "no such file" in failure("explain", place / "elsewhere" / "x.yaml")


#: What is wrong -> (arguments after `run FILE`, what the message says)
BAD_FLAGS: dict[str, tuple[list[str], str]] = {
    "unknown flag": (["--generatons", "3"], "--generations"),
    "not a number": (["--steps", "many"], "--steps"),
    "no steps": (["--steps", "0"], "--steps: got 0, expected at least 1"),
    "a negative seed": (["--seed", "-1"], "--seed"),
    "a negative seed of a rehearsal": (["--seed", "-1", "--dry-run"], "--seed"),
    "a negative number of edits": (["--mutation-steps", "-1"], "evolution.mutation_steps: got -1, expected"),
    "endless patience": (["--timeout", "inf"], "--timeout: got inf, expected at most"),
    "patience beyond what can be waited for": (["--timeout", "1e10"], "--timeout: got 1e+10, expected at most"),
    "a size beyond all numbers": (["--disk-budget", "9" * 400], "expected a size such as"),
    "a folder whose name is too long": (["--out", "a" * 300], "File name too long"),
    "no eval batches": (["--eval-batches", "0"], "--eval-batches: got 0"),
    "negative generations": (["--generations=-1"], "evolution.generations: got -1"),
    "unknown selection": (["--parent-selection", "lexicas"], "evolution.parent_selection: got 'lexicas'"),
    "unknown device": (["--device", "cdua"], "did you mean 'cuda'?"),
    "a device that is not there": (["--device", "cuda:99"], "CUDA devices"),
    "unknown operator": (["--mutation-weight", "widen_fnn=1"], "did you mean 'widen_ffn'?"),
    "a weight without a name": (["--mutation-weight", "3"], "got '3', expected NAME=WEIGHT"),
    "a weight that is no number": (["--mutation-weight", "widen_ffn=x"], "expected NAME=WEIGHT"),
    "a negative weight": (["--mutation-weight", "widen_ffn=-1"], "mutation_weights"),
    "one argument too many": (["again"], "again"),
}


@pytest.mark.parametrize("what", BAD_FLAGS)
def test_a_malformed_flag_is_refused_by_name(what: str, failure: Failure, place: Path) -> None:
    before = contents(place)
    args, said = BAD_FLAGS[what]
    message = failure("run", place / "tiny.yaml", "--out", place / "new", *args)
    assert said in message
    assert "\n" not in message
    assert contents(place) == before


#: What is asked of the evolution besides -> (arguments, what the message says)
BAD_TOGETHER: dict[str, tuple[str, list[str], str]] = {
    "steps of halving": ("rungs: asha", ["--steps", "5"], "--steps: sets the budgets of rungs 1 and 2"),
    "steps of halving without rung 1": (
        "rungs: asha, rung1_tokens: 0, rung2_tokens: 0",
        ["--steps", "5"],
        "--steps: sets the budgets of rungs 1 and 2",
    ),
    "gates without rung 1": (
        "rung1_gates: {bpb: {max: 9.0}}, rung1_tokens: 0, rung2_tokens: 256",
        [],
        "evolution.rung1_gates: gates stand after rung 1, but evolution.rung1_tokens is 0",
    ),
    "gates after less than a batch": (
        "rung1_gates: {bpb: {max: 9.0}}, rung1_tokens: 127, rung2_tokens: 256",
        [],
        "less than one batch of 128",
    ),
    "a composite by the name of a figure": (
        "composite_metrics: {bpb: {op: product, of: [bpb, params]}}, rung1_tokens: 128, rung2_tokens: 256",
        [],
        "evolution.composite_metrics.bpb: there is a figure of that name",
    ),
}


@pytest.mark.parametrize("what", BAD_TOGETHER)
def test_what_would_be_ignored_or_lost_together_is_refused(what: str, failure: Failure, place: Path) -> None:
    asked, args, said = BAD_TOGETHER[what]
    config = place / "tiny.yaml"
    config.write_text(config.read_text().replace("rung1_tokens: 128, rung2_tokens: 256", asked))
    message = failure("run", config, "--out", place / "new", "--dry-run", *args)
    assert said in message
    assert "\n" not in message


def test_a_perplexity_gate_needs_a_rung_1(failure: Failure, place: Path) -> None:
    config = place / "tiny.yaml"
    config.write_text(config.read_text().replace("lr: 0.01", "lr: 0.01, ppl_stop_threshold: 50.0"))
    run = ("run", config, "--out", place / "new", "--dry-run", "--steps")
    assert "train.ppl_stop_threshold: gates stand after rung 1" in failure(*run, 1)
    with pytest.raises(SystemExit) as end:
        main([str(arg) for arg in (*run, 2)])
    assert end.value.code == 0


def test_unknown_commands_and_names_come_with_the_nearest(failure: Failure, place: Path) -> None:
    assert "validate" in failure("vaildate", "x")
    assert "did you mean 'lineage'?" in failure("schema", "linage")
    assert "did you mean 'run'?" in failure("status", place / "rum")
    assert "File name too long" in failure("status", "a" * 300)
    assert "expected one of .svg, .png" in failure("lineage", place / "run", "--out", place / "a.gif")


def test_what_is_not_measured_cannot_be_weighed_or_sought(
    failure: Failure, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = place / "tiny.yaml"
    good = config.read_text()
    config.write_text(good.replace("topk_keep: 2", "objectives: {bbp: min}"))
    assert "did you mean 'bpb'?" in failure("run", config, "--out", place / "new")
    config.write_text(good.replace("topk_keep: 2", "rung0_thresholds: {parms: 100}"))
    assert "did you mean 'params'?" in failure("run", config, "--out", place / "new")
    config.write_text(good)
    for flags, said in ((["--score-weight-long-recall", "1"], "evolution.weights.long_recall"),):
        with pytest.raises(SystemExit) as end:
            execute(run_live().app, "run_live.py", [str(config), "--out", str(place / "new"), *flags])
        assert end.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith("run_live.py: ")
        assert said in err
        assert err.count("\n") == 1
    assert not (place / "new").exists()


def test_what_is_measured_of_recurrences_can_be_sought_where_there_are_some(failure: Failure, place: Path) -> None:
    config = place / "tiny.yaml"
    good = config.read_text().replace("topk_keep: 2", "objectives: {ppl_rec_3: min}")
    looped = good.replace("train: {lr", "  recurrences: [{start: 0, end: 1, test_recurrences: [3]}]\ntrain: {lr")
    config.write_text(looped)
    main_ends_well("validate", config)
    config.write_text(looped.replace("ppl_rec_3", "ppl_rec_2"))
    assert "evolution.objectives.ppl_rec_2" in failure("validate", config)
    config.write_text(good)
    assert "evolution.objectives.ppl_rec_3" in failure("validate", config)


def main_ends_well(*args: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(arg) for arg in args])
    assert end.value.code == 0


def test_text_that_is_missing_or_too_little(failure: Failure, place: Path) -> None:
    config = place / "tiny.yaml"
    good = config.read_text()
    source = next(line for line in good.splitlines() if "source" in line)
    config.write_text(good.replace(source, "  shards: [{source: stdlib-cod}]"))
    assert "did you mean 'stdlib-code'?" in failure("run", config, "--out", place / "new")
    few = write_corpus(place / "few", documents=1)
    config.write_text(good.replace(source, f"  shards: [{{source: {few}}}]"))
    assert "split has 0 of 1 distinct documents" in failure("run", config, "--out", place / "new")
    config.write_text(good.replace("seq_len: 32", "seq_len: 100000"))
    assert "less than one step of 400,000 tokens" in failure("run", config, "--out", place / "new")
    assert not (place / "new").exists()


def test_a_checkpoint_to_start_from_is_checked_before_anything_begins(failure: Failure, place: Path) -> None:
    good = next((place / "run" / "checkpoints").glob("root-*-????.safetensors"))
    other = place / "other.safetensors"
    config = place / "tiny.yaml"
    text = config.read_text().replace("lr: 0.01", f"lr: 0.01, init_checkpoint: {other}")
    text = text.replace("survivors: rest", "survivors: train")  # nobody trains on without the run's weights
    config.write_text(text.replace("topk_keep: 2", "weight_inheritance: init"))

    assert "no such checkpoint" in failure("run", config, "--out", place / "new")
    other.write_bytes(good.read_bytes()[:-100])
    assert "not a readable checkpoint" in failure("run", config, "--out", place / "new")
    damaged = bytearray(good.read_bytes())
    damaged[-1] ^= 1
    other.write_bytes(damaged)
    assert "do not match their checksum" in failure("run", config, "--out", place / "new")
    state = load_file(good)
    save_file(state, other)
    assert "was not written by morphogen" in failure("run", config, "--out", place / "new")
    assert not (place / "new").exists()


def test_paths_that_no_file_system_takes(failure: Failure, place: Path) -> None:
    config, long = place / "tiny.yaml", "x" * 5000
    good = config.read_text()
    for old, new in (
        ("lr: 0.01", f"lr: 0.01, init_checkpoint: {long}"),
        ("tokenizer: bytes", f"tokenizer: {long}"),
        ("seq_len: 32", f"seq_len: 32\n  healing_shards: [{{source: {long}}}]"),
    ):
        config.write_text(good.replace(old, new))
        with pytest.raises(InputError, match="name too long"):
            evolve(load(config), place / "new")
    assert not (place / "new").exists()


def test_a_checkpoint_of_another_blueprint_is_refused(failure: Failure, place: Path) -> None:
    from morphogen.inherit.checkpoint import load_checkpoint, save_checkpoint

    good = next((place / "run" / "checkpoints").glob("root-*-????.safetensors"))
    state, blueprint, _ = load_checkpoint(good)
    wider = blueprint.evolve(emb=blueprint.emb.evolve(dim=32))
    assert wider is not None
    save_checkpoint(place / "other.safetensors", state, wider, {})
    config = place / "tiny.yaml"
    config.write_text(config.read_text().replace("lr: 0.01", f"lr: 0.01, init_checkpoint: {place}/other.safetensors"))
    assert "the weights are not those of its blueprint" in failure("run", config, "--out", place / "new")


def test_folders_that_hold_something_else(failure: Failure, place: Path) -> None:
    config, before = place / "tiny.yaml", contents(place)
    assert "holds a run already; add --resume" in failure("run", config, "--out", place / "run")
    assert "not empty (000.txt, ...) and not a run" in failure("run", config, "--out", place / "corpus")
    assert "not empty" in failure("run", config, "--out", place / "corpus", "--resume")
    assert "is a file, expected a folder" in failure("run", config, "--out", config)
    assert "cannot make the run folder" in failure("run", config, "--out", config / "below")
    assert "train.lr is 0.01 there and 0.02 here" in _with(failure, config, "lr: 0.01", "lr: 0.02", place / "run")
    assert contents(place) == before


def _with(failure: Failure, config: Path, old: str, new: str, out: Path) -> str:
    """The failure of resuming `out` with a changed experiment, which is put back."""
    good = config.read_text()
    config.write_text(good.replace(old, new))
    message = failure("run", config, "--out", out, "--resume")
    config.write_text(good)
    return message


def test_a_run_that_another_process_is_writing(failure: Failure, place: Path) -> None:
    with Ledger.open(place / "run"):
        message = failure("run", place / "tiny.yaml", "--out", place / "run", "--resume", "--generations", 2)
    assert f"another writer has this run open (process {os.getpid()}" in message


@pytest.mark.parametrize("damage", ["truncated", "foreign", "edited"])
def test_a_damaged_ledger_is_left_as_it_is(damage: str, failure: Failure, place: Path) -> None:
    ledger = place / "run" / "ledger.sqlite"
    raw = ledger.read_bytes()
    if damage == "truncated":
        ledger.write_bytes(raw[: len(raw) // 2])
    elif damage == "foreign":
        ledger.write_bytes(b"this is no database " * 500)
    else:
        ledger.write_bytes(raw.replace(b'"population":3', b'"population":4'))
    before = contents(place)
    for command in (("status", place / "run"), ("run", place / "tiny.yaml", "--out", place / "run", "--resume")):
        assert str(ledger) in failure(*command)
    assert contents(place) == before


def test_damaged_files_of_a_run_are_named(failure: Failure, place: Path) -> None:
    lineage = place / "run" / "lineage.json"
    lineage.write_bytes(lineage.read_bytes()[:500])
    assert f"{lineage}:" in failure("lineage", place / "run")
    resume = ("run", place / "tiny.yaml", "--out", place / "run", "--resume")
    for text in ("{}", "[]", "null", '{"data": {}, "versions": {}, "threads": 0, "device": "cpu", "commit": null}'):
        (place / "run" / "environment.json").write_text(text)
        assert "environment.json: cannot be read" in failure(*resume)
    (place / "run" / "environment.json").unlink()
    assert "environment.json: cannot be read" in failure(*resume)
    assert "no run here" in failure("status", place / "corpus")


def test_damaged_parents_stop_the_run_until_they_are_mended(place: Path) -> None:
    checkpoints = {path: path.read_bytes() for path in (place / "run" / "checkpoints").iterdir()}
    for path, whole in checkpoints.items():
        path.write_bytes(whole[:-10])
    with pytest.raises(RunError, match=r"not a readable checkpoint.*--resume goes on once that is mended"):
        evolve(load(place / "tiny.yaml"), place / "run", resume=True, generations=2)
    for path, whole in checkpoints.items():
        path.write_bytes(whole)
    run = evolve(load(place / "tiny.yaml"), place / "run", resume=True, generations=2)
    newborn = [node for node in run.lineage.nodes if node.generation == 2]
    assert newborn
    assert not any("checkpoint" in node.reason for node in newborn)


def test_a_folder_that_cannot_be_written(failure: Failure, place: Path) -> None:
    if os.geteuid() == 0:
        folder = Path("/sys")  # root may write everywhere but in such file systems
    else:
        folder = place / "locked"
        folder.mkdir(mode=0o555)
    assert "cannot make the run folder" in failure("run", place / "tiny.yaml", "--out", folder / "run")


@pytest.mark.parametrize("writes", [1, 2, 3, 5, 9])
def test_a_full_disk_ends_the_run_and_leaves_it_resumable(
    writes: int, failure: Failure, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up at the N-th file: experiment, environment, checkpoint, lineage, picture ..."""
    left, sync = writes, os.fsync

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    args = ("run", place / "tiny.yaml", "--generations", 1, "--out", place / "new")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        message = failure(*args)
    assert "No space left on device" in message
    assert "\n" not in message
    half = [path for path in (place / "new").rglob("*") if path.name.startswith(".")]
    assert half == []
    evolve(load(place / "tiny.yaml"), place / "new", generations=1, resume=True)
    assert events(place / "new")[1:] == events(place / "run")[1:]


@pytest.mark.parametrize("beginnings", ["", "PRAGMA journal_mode = WAL"])
def test_a_ledger_that_was_only_just_being_made_is_made(beginnings: str, place: Path) -> None:
    (place / "new").mkdir()
    connection = sqlite3.connect(place / "new" / "ledger.sqlite")
    connection.execute(beginnings)
    connection.close()
    (place / "new" / "ledger.lock").touch()
    evolve(load(place / "tiny.yaml"), place / "new", generations=1, resume=True)
    assert events(place / "new")[1:] == events(place / "run")[1:]


def test_the_real_command_prints_one_line_and_exits_2(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from morphogen.cli import main; main()",
        "run",
        str(tmp_path / "nothing.yaml"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"morphogen: {tmp_path}/nothing.yaml: no such file\n"


def test_a_candidates_record_refuses_unknown_fields() -> None:
    with pytest.raises(ValueError, match="extra"):
        Candidate.model_validate({"id": "a", "index": 0, "generation": 0, "blueprint": {}, "color": "red"})
