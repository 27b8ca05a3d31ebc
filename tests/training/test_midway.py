"""Checkpoints in the middle of candidates: begun again anywhere, the same report, and few tokens trained twice."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bucket import Bucket
from morphogen.blueprint.diff import changes
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Ancestor, Candidate, Edit, Job, ParentRef, Report, Stage
from morphogen.data.prepare import PreparedData, prepare
from morphogen.errors import InputError, RunError
from morphogen.experiment import Experiment
from morphogen.inherit.checkpoint import load_whole
from morphogen.store.exchange import Exchange
from morphogen.store.outputs import PARTIAL
from morphogen.training.midway import Midway
from morphogen.training.trace import StepInfo
from morphogen.training.trial import run_surrogate
from tiny import write_corpus

SEQ, BATCH = 32, 4
STEP = SEQ * BATCH
GROWS = [
    {"id": "wide", "when": {"trigger": "step", "at": 5}, "do": {"action": "widen", "target": "ffn", "factor": 1.5}}
]


class LostError(Exception):
    """A machine is gone."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("midway")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORPHOGEN_CACHE", str(folder / "cache"))
        yield write_corpus(folder / "corpus")


def job_of(text: Path, folder: Path, **sections: dict[str, Any]) -> Job:
    """Of a root with rungs of 4 and 8 steps."""
    attn = {"kind": "MHA", "heads": 2, "head_dim": 8, "dropout": 0.1}
    block = {"attn": attn, "ffn": {"kind": "dense", "hidden": 32}}
    data = {"tokenizer": "bytes", "seq_len": SEQ, "batch_size": BATCH, "eval_tokens": STEP}
    experiment = {
        "model": {"emb": {"dim": 16}, "blocks": [block], **sections.get("model", {})},
        "train": {"lr": 1e-2, "warmup": 2, "instability_threshold": 1e6, **sections.get("train", {})},
        "data": {
            **data,
            "split": {"train": 0.6, "eval": 0.2},
            "shards": [{"source": str(text)}],
            **sections.get("data", {}),
        },
        "evolution": sections.get("evolution", {}),
    }
    blueprint = Experiment.model_validate(experiment).model.with_vocab(257).to_json()
    return Job(
        experiment=Experiment.model_validate(experiment).model_dump(mode="json"),
        candidate=Candidate(id="c-0", index=0, generation=0, blueprint=blueprint),
        parents=(),
        ancestors=(),
        stages=(Stage(rung=1, budget_tokens=4 * STEP), Stage(rung=2, budget_tokens=8 * STEP)),
        seed=3,
        run_dir=str(folder),
        device="cpu",
        checkpoint_tokens=3 * STEP,
    )


def child_of(job: Job, report: Report) -> Job:
    """One whose splice is not exact, with a twin."""
    blueprint = job.candidate.as_trained(report).blueprint
    before = Blueprint.model_validate(blueprint)
    block = before.blocks[0]
    assert block.ffn is not None
    child = before.evolve(blocks=(block.evolve(ffn=block.ffn.evolve(hidden=24)),))
    assert child is not None
    assert report.checkpoint is not None
    edit = Edit(operator="by_hand", target="b0", preserves=False, changes=changes(before, child))
    return job.replace(
        candidate=Candidate(
            id="c-1", index=1, generation=1, blueprint=child.to_json(), parents=("c-0",), edits=(edit,)
        ),
        parents=(ParentRef(id="c-0", blueprint=blueprint, checkpoint=report.checkpoint),),
        ancestors=(Ancestor(first_token=0, steps=report.steps, tokens=report.tokens.own),),
        first_token=12 * STEP,
        with_twin=True,
    )


def told(report: Report) -> dict[str, Any]:
    return report.model_dump(mode="json", exclude={"timed"})


def same_weights(a: Path, b: Path) -> None:
    one, other = load_whole(a), load_whole(b)
    assert one.metadata == other.metadata
    for mine, theirs in ((one.state, other.state), (one.averages, other.averages)):
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def carried_out(job: Job, prepared: PreparedData, losses: tuple[int, ...]) -> tuple[Report, int]:
    """The report, and how many steps were trained, where the machine is lost after so many steps of each attempt."""
    done = 0

    def attempt(lost_after: int) -> Report:
        nonlocal done
        here = 0

        def watch(step: StepInfo) -> None:
            nonlocal done, here
            done, here = done + 1, here + 1
            if here == lost_after:
                raise LostError

        return run_surrogate(job, watch, prepared)

    for lost_after in losses:
        with pytest.raises(LostError):
            attempt(lost_after)
    return attempt(0), done


KINDS: dict[str, dict[str, Any]] = {
    "gated, with an average": {"train": {"ppl_stop_threshold": 1e6}},
    "wsd, rate searched": {"train": {"schedule": "wsd", "lr": "auto"}},
    "grows": {"model": {"growth": GROWS}, "evolution": {"budget": "flops"}},
    "anchored": {
        "model": {"growth": GROWS},
        "train": {"anchoring": {"rehearsal": {"share": 0.25, "buffer_tokens": 2 * STEP}, "self_distillation": {}}},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_candidate_goes_on_where_it_was_lost(kind: str, text: Path, tmp_path: Path) -> None:
    job = job_of(text, tmp_path / "whole", **KINDS[kind])
    prepared = prepare(Experiment.model_validate(job.experiment).data)
    (tmp_path / "whole").mkdir()
    (tmp_path / "run").mkdir()
    whole = run_surrogate(job.replace(checkpoint_tokens=0), None, prepared)
    found, done = carried_out(job.replace(run_dir=str(tmp_path / "run")), prepared, (2, 5, 4))
    assert Midway(job).reached() == -1
    assert told(found) == told(whole)
    assert found.checkpoint is not None
    same_weights(tmp_path / "run" / found.checkpoint, tmp_path / "whole" / found.checkpoint)
    assert done - whole.steps <= 2 + 2 + 2  # of each loss fewer than an interval's
    assert list((tmp_path / "run" / PARTIAL).iterdir()) == []


@pytest.mark.parametrize("where", ["s3://bucket/run", "mounted"])
def test_a_child_with_healing_and_a_twin_goes_on_elsewhere_through_a_shared_place(
    where: str, text: Path, tmp_path: Path
) -> None:
    Bucket.put_up()
    place = where if "://" in where else str(tmp_path / where)
    heals = {"healing_shards": [{"source": str(text)}], "healing_tokens": 2 * STEP}
    root = job_of(text, tmp_path, data=heals, evolution={"rank_by": "both"})
    prepared = prepare(Experiment.model_validate(root.experiment).data)
    report = run_surrogate(root.replace(checkpoint_tokens=0), None, prepared)
    job = child_of(root, report)
    whole = run_surrogate(job.replace(checkpoint_tokens=0), None, prepared)
    assert whole.twin is not None
    done, came = 0, []
    for k, lost_after in enumerate((4, 8, 7, 0)):  # the third in the middle of the twin
        elsewhere = tmp_path / f"node{k}"
        (elsewhere / "checkpoints").mkdir(parents=True)
        for path in (tmp_path / "checkpoints").glob("c-0.*"):
            shutil.copy(path, elsewhere / "checkpoints")
        there = job.replace(run_dir=str(elsewhere), partial_at=place)
        if lost_after:
            with pytest.raises(AssertionError, match="lost"):
                carried_out_until(there, prepared, lost_after)
            done += lost_after
            came.append(Midway(there).reached())
        else:
            found, steps = carried_out(there, prepared, ())
            done += steps
    assert told(found) == told(whole)
    assert found.checkpoint is not None
    same_weights(elsewhere / found.checkpoint, tmp_path / found.checkpoint)
    assert done - (whole.tokens.own // STEP + whole.twin.steps) <= 6
    assert came == sorted({*came})
    assert Exchange(place).names() == []
    assert not (elsewhere / PARTIAL).exists() or list((elsewhere / PARTIAL).iterdir()) == []


def carried_out_until(job: Job, prepared: PreparedData, lost_after: int) -> None:
    left = lost_after

    def watch(step: StepInfo) -> None:
        nonlocal left
        left -= 1
        assert left, "lost"

    run_surrogate(job, watch, prepared)


def test_a_checkpoint_that_was_cut_or_is_of_another_job_is_not_gone_on_from(text: Path, tmp_path: Path) -> None:
    job = job_of(text, tmp_path)
    prepared = prepare(Experiment.model_validate(job.experiment).data)
    with pytest.raises(AssertionError, match="lost"):
        carried_out_until(job, prepared, 5)
    (earlier,) = (tmp_path / PARTIAL).iterdir()
    sound = earlier.read_bytes()
    with pytest.raises(AssertionError, match="lost"):
        carried_out_until(job, prepared, 4)
    assert Midway(job).reached() == 6
    (later,) = (tmp_path / PARTIAL).iterdir()
    assert Midway(job.replace(seed=4)).reached() == Midway(job.replace(checkpoint_tokens=0)).reached() == -1
    assert Midway(job.replace(micro_batches=2, checkpoint_tokens=STEP)).reached() == 6
    earlier.write_bytes(sound)
    later.write_bytes(later.read_bytes()[:-5])
    with pytest.warns(RuntimeWarning, match=rf"passed over, to go on from an earlier one: {later}"):
        snapshot = Midway(job).latest()
    assert snapshot is not None
    assert snapshot.step == 3
    earlier.write_bytes(b"nothing")
    with pytest.warns(RuntimeWarning, match="passed over"):
        assert carried_out(job, prepared, ())[1] == 12


def test_batches_that_went_in_parts_go_on_so(text: Path, tmp_path: Path) -> None:
    job = job_of(text, tmp_path, train={"router_entropy_coeff": 0.0})
    prepared = prepare(Experiment.model_validate(job.experiment).data)
    whole = run_surrogate(job.replace(checkpoint_tokens=0, micro_batches=2), None, prepared)
    with pytest.raises(AssertionError, match="lost"):
        carried_out_until(job.replace(micro_batches=2), prepared, 5)
    assert told(run_surrogate(job, None, prepared)) == told(whole)
    assert whole.micro_batches == 2


def test_whoever_is_taken_for_dead_and_goes_on_takes_nothing_from_who_came_after(text: Path, tmp_path: Path) -> None:
    job = job_of(text, tmp_path)
    prepared = prepare(Experiment.model_validate(job.experiment).data)
    with pytest.raises(AssertionError, match="lost"):
        carried_out_until(job, prepared, 4)
    late, snapshot = Midway(job), Midway(job).latest()
    assert snapshot is not None
    with pytest.raises(AssertionError, match="lost"):
        carried_out_until(job, prepared, 4)
    late.save(4, snapshot.blueprint, snapshot.state, snapshot.averages, snapshot.saved)
    assert late.reached() == 6
    late.clear()
    assert Midway(job).latest() is None


def test_a_place_that_cannot_be_written_is_told(text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, said in ((str(tmp_path / "file" / "below"), "file"), (str(tmp_path / "file"), "file")):
        job = job_of(text, tmp_path).replace(partial_at=place)
        with pytest.raises(RunError, match=said):
            carried_out(job, prepare(Experiment.model_validate(job.experiment).data), ())
    with pytest.raises(InputError, match="--shared: got 'nowhere://x'"):
        Midway(job.replace(partial_at="nowhere://x"))


def test_on_an_accelerator_checkpoints_are_due_where_losses_are_read_anyway(text: Path, tmp_path: Path) -> None:
    job = job_of(text, tmp_path)
    assert [Midway(job).due(step, STEP) for step in (0, 2, 3, 4)] == [3, 3, 6, 6]
    assert Midway(job).due(0, 100 * STEP) == 1
    assert Midway(job.replace(device="cuda:1")).due(10, STEP) == 20
    assert Midway(job.replace(checkpoint_tokens=0)).due(0, STEP) is None
