"""Weights mean tokens: a checkpoint says which, and how many were behind it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from morphogen.blueprint.diff import changes as changes_between
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Ancestor, Candidate, Edit, Job, ParentRef, Report, Stage, Status
from morphogen.data.prepare import PreparedData, prepare
from morphogen.data.vocabulary import Vocabulary
from morphogen.errors import InputError, MorphogenError
from morphogen.experiment import Experiment
from morphogen.inherit.checkpoint import load_checkpoint, save_checkpoint
from morphogen.inherit.descent import inherit, splice_job
from morphogen.inherit.provenance import NO_TOKENS, Provenance
from morphogen.training.start import from_checkpoint
from morphogen.training.trial import run_surrogate

STEP = 8 * 4
Make = Callable[..., Job]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A job over one of two texts, `a` and `b`, of other words each."""
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name in "ab":
        words = ["".join(chr(97 + i) for i in rng.integers(26, size=5)) for _ in range(40)]
        lines = [" ".join(rng.choice(words, size=20)) for _ in range(60)]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(line + "." * 4096 for line in lines))

    def job(text: str = "a", run: str = "run", tokenizer: object = "bytes", tie: bool = True, **train: object) -> Job:
        experiment = {
            "model": {
                "emb": {"dim": 8},
                "blocks": [{"ffn": {"kind": "dense", "hidden": 8}}],
                "head": {"tie_embeddings": tie},
            },
            "train": {"warmup": 1, "instability_threshold": 1e9, **train},
            "data": {
                "tokenizer": tokenizer,
                "seq_len": 8,
                "batch_size": 4,
                "eval_tokens": STEP,
                "split": {"train": 0.6, "eval": 0.3},
                "shards": [{"source": str(tmp_path / f"{text}.txt")}],
            },
        }
        (tmp_path / run).mkdir(exist_ok=True)
        plain = Experiment.model_validate(experiment)
        return Job(
            experiment=plain.model_dump(mode="json"),
            candidate=Candidate(id="c-0", index=0, generation=0, blueprint=plain.model.to_json()),
            parents=(),
            ancestors=(),
            stages=(Stage(rung=2, budget_tokens=4 * STEP),),
            seed=0,
            run_dir=str(tmp_path / run),
            device="cpu",
        )

    return job


def trained(job: Job) -> tuple[Report, Path]:
    """The report and its checkpoint."""
    report = run_surrogate(job)
    assert report.status is Status.TRAINED, report.reason
    assert report.checkpoint is not None
    return report, Path(job.run_dir) / report.checkpoint


def prepared_of(job: Job) -> PreparedData:
    return prepare(Experiment.model_validate(job.experiment).data)


BPE = {"kind": "bpe", "vocab": 280}


def test_a_checkpoint_says_its_tokenizer_its_vocabulary_and_its_tokens(make: Make) -> None:
    job = make(tokenizer=BPE)
    report, path = trained(job)
    _, _, metadata = load_checkpoint(path)
    behind, prepared = Provenance.from_metadata(metadata, path), prepared_of(job)
    assert (behind.tokenizer, behind.name) == (prepared.tokenizer_digest, "bpe-280")
    assert (behind.tokens, behind.begun) == (report.tokens, NO_TOKENS)
    vocabulary = Vocabulary.unpack(behind.vocabulary, "here")
    assert (len(vocabulary.pieces), vocabulary.eot) == (280, 279)
    assert len(behind.vocabulary) < 4096


def test_weights_of_the_same_tokenizer_are_exact_and_their_tokens_count_in_the_lineage(make: Make) -> None:
    first, path = trained(make())
    job = make(text="b", run="second", init_checkpoint=str(path))
    second, path = trained(job)
    assert second.inheritance is not None
    assert second.inheritance.exact
    assert (second.tokens.own, second.tokens.lineage) == (4 * STEP, 8 * STEP)
    assert second.tokens.unique == 4 * STEP + first.tokens.unique

    child, path = trained(child_of(job, second))
    assert (child.tokens.own, child.tokens.lineage, child.tokens.unique) == (4 * STEP, 12 * STEP, 12 * STEP)
    third, _ = trained(make(run="third", init_checkpoint=str(path)))
    assert third.tokens.lineage == 16 * STEP
    resumed = run_surrogate(job.replace(before=second))
    assert (resumed.tokens.own, resumed.tokens.lineage) == (8 * STEP, 12 * STEP)


def child_of(job: Job, report: Report) -> Job:
    """A job whose candidate has a wider layer than the trained parent."""
    parent = Blueprint.model_validate(job.candidate.blueprint).with_vocab(257)
    block = parent.blocks[0]
    assert block.ffn is not None
    assert report.checkpoint is not None
    child = parent.evolve(blocks=(block.evolve(ffn=block.ffn.evolve(hidden=16)),))
    edit = Edit(operator="by_hand", target="b0", preserves=False, changes=changes_between(parent, child))
    return job.replace(
        candidate=Candidate(
            id="c-1", index=1, generation=1, blueprint=child.to_json(), parents=("c-0",), edits=(edit,)
        ),
        parents=(ParentRef(id="c-0", blueprint=parent.to_json(), checkpoint=report.checkpoint),),
        ancestors=(Ancestor(first_token=0, steps=report.steps, tokens=report.tokens.own),),
        first_token=report.tokens.own,
    )


@pytest.mark.parametrize(("was", "now"), [(BPE, BPE), ("bytes", BPE), (BPE, "bytes")])
def test_weights_of_another_tokenizer_are_refused(make: Make, was: object, now: object) -> None:
    _, path = trained(make(tokenizer=was))
    with pytest.raises(
        InputError, match=r"train.init_checkpoint .*: its weights were trained with the tokenizer .*remap"
    ):
        run_surrogate(make(text="b", run="second", tokenizer=now, init_checkpoint=str(path)))


@pytest.mark.parametrize("tie", [True, False])
def test_remapped_tokens_are_carried_by_their_text_and_never_exact(make: Make, tie: bool) -> None:
    _, path = trained(make(tokenizer=BPE, tie=tie))
    settings = {"tokenizer": BPE, "tie": tie, "init_checkpoint": str(path), "init_tokenizer": "remap"}
    job = make(text="b", run="second", **settings)
    prepared, experiment = prepared_of(job), Experiment.model_validate(job.experiment)
    blueprint = experiment.model.with_vocab(prepared.vocab_size)
    start = from_checkpoint(blueprint, experiment, prepared, seed=0)
    old_state, _, metadata = load_checkpoint(path, measured=True)
    old = Vocabulary.unpack(metadata["vocabulary"], "here")
    new = Vocabulary.unpack(prepared.vocabulary(), "here")
    known = [i for i, piece in enumerate(new.pieces) if piece in old.pieces]
    assert 257 <= len(known) < 280
    for name in ["emb.weight"] if tie else ["emb.weight", "head.weight"]:
        mean = torch.stack([old_state[name][old.pieces.index(new.pieces[i])] for i in known]).mean(0)
        for i, piece in enumerate(new.pieces):
            row = start.state[name][i]
            if i in known:
                assert torch.equal(row, old_state[name][old.pieces.index(piece)])
            else:
                assert torch.allclose(row, mean, atol=1e-6)
    assert not start.report.exact
    assert any(f"{len(known)} of 280 tokens carried" in note for note in start.report.notes)
    assert start.report.fresh == (280 - len(known)) * 8 * (1 if tie else 2)
    report, _ = trained(job)
    assert report.inheritance == start.report
    assert report.tokens.lineage == 8 * STEP


@pytest.mark.parametrize(("was", "now"), [("bytes", BPE), (BPE, "bytes")])
def test_vocabularies_of_other_sizes_can_be_mapped(make: Make, was: object, now: object) -> None:
    _, path = trained(make(tokenizer=was))
    job = make(run="second", tokenizer=now, init_checkpoint=str(path), init_tokenizer="remap")
    report, _ = trained(job)
    assert report.inheritance is not None
    assert not report.inheritance.exact
    assert any("257 of " in note for note in report.inheritance.notes)  # every byte, and end of text


def test_a_checkpoint_that_does_not_say_its_tokenizer_is_never_exact(make: Make, tmp_path: Path) -> None:
    _, path = trained(make())
    state, blueprint, _ = load_checkpoint(path)
    old = tmp_path / "old.safetensors"
    save_checkpoint(old, state, blueprint, {})
    report, _ = trained(make(run="second", init_checkpoint=str(old)))
    assert report.inheritance is not None
    assert (report.inheritance.exact, report.inheritance.fresh) == (False, 0)
    assert report.inheritance.notes == ("init_checkpoint does not say which tokenizer it was trained with",)
    assert report.tokens.lineage == report.tokens.own  # what was behind it nobody knows
    with pytest.raises(InputError, match="does not say its tokenizer, so that"):
        run_surrogate(make(run="second", init_checkpoint=str(old), init_tokenizer="remap"))
    with pytest.raises(InputError, match="has 257 tokens and does not say its tokenizer, expected the 280"):
        run_surrogate(make(run="second", init_checkpoint=str(old), tokenizer=BPE))
    save_checkpoint(old, state, blueprint, {"tokens": "[]"})
    with pytest.raises(InputError, match="its counts of tokens cannot be read"):
        run_surrogate(make(run="second", init_checkpoint=str(old)))


def test_splices_across_tokenizers_are_refused(make: Make) -> None:
    job = make()
    report, path = trained(job)
    state, blueprint, metadata = load_checkpoint(path)
    save_checkpoint(path, state, blueprint, {**metadata, "tokenizer": "another"})
    with pytest.raises(InputError, match="was trained with the tokenizer another, this run with bytes-256-eot"):
        run_surrogate(child_of(job, report))
    splice_job(child_of(job, report), 0)  # nobody says which tokenizer the run has
    parents: list[Any] = [(blueprint, state)] * 2
    inherit(blueprint, parents, tokenizers=["x", None])
    with pytest.raises(MorphogenError, match="parent 1 was trained with the tokenizer y, parent 0 with x"):
        inherit(blueprint, parents, tokenizers=["x", "y"])


def test_remapping_nothing_is_told() -> None:
    with pytest.raises(ValueError, match="there is no init_checkpoint whose tokens to map"):
        Experiment.model_validate({"model": {"blocks": []}, "train": {"init_tokenizer": "remap"}})
