"""From job to report: weights, stages, gate, accounting, failures, and the same report every time."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from morphogen import cost
from morphogen.blueprint.diff import changes as changes_between
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import (
    Ancestor,
    Candidate,
    Edit,
    Job,
    ParentRef,
    Report,
    Stage,
    Status,
    StopReason,
    moments_path,
    stream,
)
from morphogen.data.mixture import Mixture, Trained, unique_tokens
from morphogen.data.prepare import PreparedData, prepare
from morphogen.errors import DeviceError, InputError, MemoryShortError
from morphogen.experiment import Experiment
from morphogen.figures import find, known
from morphogen.inherit.checkpoint import load_checkpoint, save_checkpoint
from morphogen.inherit.descent import Moments
from morphogen.inherit.plan import plan
from morphogen.inherit.splice import from_parent, splice
from morphogen.metrics.perplexity import evaluate
from morphogen.network import assemble, build
from morphogen.training import trial
from morphogen.training.midway import Midway
from morphogen.training.needed import needed_bytes
from morphogen.training.range_test import RATES, steps_each
from morphogen.training.trace import StepInfo
from morphogen.training.trainer import Trainer
from morphogen.training.trial import Trial, run_surrogate
from morphogen.variation.operator import edit as make_edit

SEQ, BATCH = 32, 4
STEP = SEQ * BATCH
WORDS = ["the", "a", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "and", "then", "it", "sleeps", "under"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of documents of random words: `a` and `heal`; and the cache."""
    root = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for folder, count in (("a", 120), ("heal", 30)):
        (root / folder).mkdir()
        for k in range(count):
            words = " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=80))
            (root / folder / f"{k}.txt").write_text(f"{folder} {k}: {words}")
    return root


@pytest.fixture(autouse=True)
def _cache(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHOGEN_CACHE", str(text / "cache"))


@pytest.fixture
def make(text: Path, tmp_path: Path) -> Callable[..., Job]:
    def job(index: int = 0, steps: tuple[int, ...] = (4, 6), **sections: dict[str, Any]) -> Job:
        attn = {"kind": "MHA", "heads": 2, "head_dim": 8, "dropout": 0.1}
        experiment = {
            "model": {"emb": {"dim": 16}, "blocks": [{"attn": attn, "ffn": {"kind": "dense", "hidden": 32}}]},
            "train": {"lr": 1e-2, "warmup": 2, **sections.get("train", {})},
            "data": {
                "seq_len": SEQ,
                "batch_size": BATCH,
                "eval_tokens": 20 * STEP,
                "split": {"train": 0.7, "eval": 0.2},
                "shards": [{"source": str(text / "a")}],
                **sections.get("data", {}),
            },
            "evolution": sections.get("evolution", {}),
        }
        blueprint = Experiment.model_validate(experiment).model.with_vocab(257).to_json()
        return Job(
            experiment=experiment,
            candidate=Candidate(id=f"c-{index}", index=index, generation=0, blueprint=blueprint),
            parents=(),
            ancestors=(),
            stages=tuple(Stage(rung=k + 1, budget_tokens=n * STEP) for k, n in enumerate(steps)),
            seed=3,
            run_dir=str(tmp_path),
            device="cpu",
        )

    return job


def data_of(job: Job) -> PreparedData:
    return prepare(Experiment.model_validate(job.experiment).data)


def trial_of(job: Job) -> Trial:
    return Trial(job, Midway(job), None)


def seed_of(job: Job) -> int:
    """Of the order in which all candidates of the run read its text."""
    return int(stream(job.seed, 0, "data").integers(2**63))


def child_of(job: Job, report: Report, index: int = 1, **changes: Any) -> Job:
    """A job whose candidate changes the FFN of the trained parent."""
    parent = Blueprint.model_validate(job.candidate.blueprint)
    block = parent.blocks[0]
    assert block.ffn is not None
    child = parent.evolve(blocks=(block.evolve(ffn=block.ffn.evolve(**changes)),))
    assert child is not None
    assert report.checkpoint is not None
    first, each = job.first_token, sum(stage.budget_tokens for stage in job.stages)
    edit = Edit(operator="by_hand", target="b0", preserves=False, changes=changes_between(parent, child))
    return job.replace(
        candidate=Candidate(
            id=f"c-{index}", index=index, generation=1, blueprint=child.to_json(), parents=(report.id,), edits=(edit,)
        ),
        parents=(ParentRef(id=report.id, blueprint=parent.to_json(), checkpoint=report.checkpoint),),
        ancestors=(Ancestor(first_token=first, steps=report.steps, tokens=report.tokens.own),),
        first_token=first + each,
    )


def repeatable(report: Report) -> dict[str, Any]:
    return report.model_dump(mode="json", exclude={"timed"})


def test_a_candidate_is_trained_measured_and_saved(make: Callable[..., Job], tmp_path: Path) -> None:
    job = make()
    seen: list[StepInfo] = []
    report = run_surrogate(job, seen.append)
    assert (report.status, report.stop_reason) == (Status.TRAINED, StopReason.FULL_RUN)
    assert (report.rung, report.steps) == (2, 10)
    assert [info.step for info in seen] == list(range(1, 11))
    assert report.losses == tuple((info.step, float(f"{info.loss:.5g}")) for info in seen)
    always = {name for name, figure in known().items() if figure.sort == "metric" and not figure.needs}
    of_family = {name for name in report.metrics if (figure := find(name)) and figure.name != name and not figure.needs}
    assert set(report.metrics) == {name for name in always if "<" not in name} | of_family
    assert of_family >= {f"{name}_{data_of(job).shards[0].name}" for name in ("ppl", "bpb")}
    assert set(report.timed) == {
        name for name, figure in known().items() if figure.sort == "timed" and not figure.needs
    }
    assert all(value > 0 for value in report.timed.values())
    blueprint = Blueprint.model_validate(job.candidate.blueprint)
    settings = Experiment.model_validate(job.experiment)
    assert report.costs == cost.costs(blueprint, SEQ, cost.Step.of(settings.train, settings.data.batch_size))
    assert report.flops == cost.train_flops(blueprint, SEQ, 10 * STEP)
    assert report.tokens.own == report.tokens.lineage == report.tokens.unique == 10 * STEP
    files = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert files == ["c-0.optimizer.safetensors", "c-0.safetensors"]


@pytest.mark.trained_before
def test_the_report_measures_the_checkpoint_on_the_eval_split(make: Callable[..., Job], tmp_path: Path) -> None:
    job = make()
    report = run_surrogate(job)
    assert report.checkpoint is not None
    state, blueprint, _ = load_checkpoint(tmp_path / report.checkpoint, measured=True)
    again = evaluate(assemble(blueprint, state), Mixture(data_of(job), seed=99), 20 * STEP)
    assert again == {name: report.metrics[name] for name in again}
    plain, _, _ = load_checkpoint(tmp_path / report.checkpoint)  # what a child inherits
    assert evaluate(assemble(blueprint, plain), Mixture(data_of(job), seed=99), 20 * STEP)["bpb"] != again["bpb"]
    cosine = make(index=1, train={"schedule": "cosine"})
    report = run_surrogate(cosine)
    both = [load_checkpoint(tmp_path / str(report.checkpoint), measured=measured)[0] for measured in (False, True)]
    assert all(torch.equal(tensor, both[1][name]) for name, tensor in both[0].items())
    assert report.metrics["bpb"] < 8.0  # 8 bits per byte is to know nothing


def test_the_same_job_gives_the_same_report_whatever_ran_before(make: Callable[..., Job]) -> None:
    first = run_surrogate(make())
    run_surrogate(make(index=1))
    torch.manual_seed(1234)
    assert repeatable(run_surrogate(make())) == repeatable(first)


@pytest.mark.slow
def test_the_same_report_in_another_process_under_another_hash_seed(make: Callable[..., Job]) -> None:
    job = make(train={"bf16": False})  # `auto` is timed by each process, where a processor has bf16
    here = repeatable(run_surrogate(job))
    script = (
        "import sys\nfrom morphogen.candidate import Job\nfrom morphogen.training.trial import run_surrogate\n"
        "print(run_surrogate(Job.model_validate_json(sys.stdin.read())).model_dump_json(exclude={'timed'}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", script], input=job.model_dump_json(), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == here


@pytest.mark.trained_before
def test_seeds_make_different_candidates(make: Callable[..., Job]) -> None:
    bpb = {run_surrogate(job).metrics["bpb"] for job in (make(), make(index=1), make(train={"seed": 1}))}
    assert len(bpb) == 3


@pytest.mark.trained_before
def test_an_exact_child_starts_where_its_parent_ended(make: Callable[..., Job]) -> None:
    job = make()
    parent = run_surrogate(job)
    child = run_surrogate(child_of(job, parent, hidden=48))
    assert child.inheritance is not None
    assert child.inheritance.exact
    assert child.inheritance.fresh > 0
    assert child.metrics["bpb_inherited"] == pytest.approx(parent.metrics["bpb_sample"], rel=1e-5)
    assert child.metrics["bpb"] < parent.metrics["bpb"]
    assert child.tokens.lineage == 20 * STEP
    assert child.tokens.own == 10 * STEP


@pytest.mark.trained_before
def test_unique_tokens_are_the_windows_that_child_and_ancestors_saw(make: Callable[..., Job]) -> None:
    job = make()
    parent = run_surrogate(job)
    child = run_surrogate(child_of(job, parent, hidden=48))
    prepared = data_of(job)
    both = {(int(shard), int(window)) for shard, window in Mixture(prepared, seed_of(job)).windows(0, 20)}
    assert child.tokens.unique == len(both) * SEQ


def test_a_lossy_child_is_healed_first_and_an_exact_one_is_not(make: Callable[..., Job], text: Path) -> None:
    job = make(data={"healing_shards": [{"source": str(text / "heal")}], "healing_tokens": 3 * STEP})
    parent = run_surrogate(job)
    assert parent.steps == 10  # nothing inherited, nothing to heal
    lossy = run_surrogate(child_of(job, parent, activation="gelu"))
    exact = run_surrogate(child_of(job, parent, index=3, hidden=48))
    assert lossy.inheritance is not None
    assert not lossy.inheritance.exact
    assert (lossy.steps, lossy.tokens.own) == (7, 10 * STEP)
    assert (exact.steps, exact.tokens.own) == (10, 10 * STEP)
    heirs = child_of(job, parent, activation="gelu")
    grandchild = child_of(heirs, lossy, index=2, hidden=40)
    report = run_surrogate(grandchild.replace(ancestors=(*heirs.ancestors, *grandchild.ancestors)))
    assert report.tokens.lineage == 30 * STEP
    assert report.tokens.unique == unique_tokens(
        data_of(job), [Trained(seed_of(job), 27), Trained(seed_of(job), 0, 3, 10)]
    )


def test_the_teacher_goes_along_while_a_child_heals(
    make: Callable[..., Job], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heals = {"healing_shards": [{"source": str(text / "heal")}], "healing_tokens": 3 * STEP}
    job = make(data=heals, train={"anchoring": {"self_distillation": {"weight": 0.5}}})
    parent = run_surrogate(job)
    child, at = trial_of(child_of(job, parent, activation="gelu")), list[int]()
    assert child.growing.anchoring is not None
    teacher = child.growing.anchoring.teacher
    assert teacher is not None
    follow = teacher.follow
    monkeypatch.setattr(teacher, "follow", lambda student: (at.append(child.trainer.step), follow(student)))
    assert child.healing_steps == 3
    child.run(None, keep=False)
    assert at == list(range(1, 10))  # after each step but the last one, on whatever text


@pytest.mark.trained_before
def test_the_gate_after_rung_one(make: Callable[..., Job], tmp_path: Path) -> None:
    strict = run_surrogate(make(train={"ppl_stop_threshold": 1.5}))
    assert (strict.status, strict.stop_reason, strict.rung, strict.steps) == (Status.GATED, StopReason.PPL_GATE, 1, 4)
    assert strict.metrics["ppl"] > 1.5
    assert "1.5" in strict.reason
    assert strict.checkpoint is None
    assert not (tmp_path / "checkpoints").exists()
    lenient, none = run_surrogate(make(train={"ppl_stop_threshold": 1e6})), run_surrogate(make())
    assert lenient.status is Status.TRAINED
    assert lenient.metrics == none.metrics


def test_max_tokens_caps_the_candidates_own(make: Callable[..., Job]) -> None:
    report = run_surrogate(make(train={"max_tokens": 5 * STEP + 1}))
    assert (report.status, report.steps, report.tokens.own, report.rung) == (Status.TRAINED, 5, 5 * STEP, 2)
    capped = run_surrogate(make(train={"max_tokens": 3 * STEP}))
    assert (capped.status, capped.steps, capped.rung) == (Status.TRAINED, 3, 1)


def test_a_guard_stops_and_the_candidate_is_measured_as_it_is(make: Callable[..., Job]) -> None:
    report = run_surrogate(make(steps=(30, 30), train={"instability_threshold": 1e-6}))
    assert (report.status, report.stop_reason, report.rung) == (Status.TRAINED, StopReason.HIGH_GRAD, 1)
    assert report.steps < 30
    assert math.isfinite(report.metrics["bpb"])


@pytest.mark.trained_before
def test_weight_inheritance_decides_what_a_child_starts_from(make: Callable[..., Job], tmp_path: Path) -> None:
    job = make()
    parent = run_surrogate(job)
    seed_weights = tmp_path / "seed.safetensors"
    blueprint = Blueprint.model_validate(job.candidate.blueprint)
    save_checkpoint(seed_weights, build(blueprint, seed=5).state_dict(), blueprint, {})

    def child(mode: str, path: Path | None) -> Report:
        train = {"init_checkpoint": str(path) if path else None}
        return run_surrogate(child_of(make(evolution={"weight_inheritance": mode}, train=train), parent, hidden=48))

    scratch = child("scratch", seed_weights)
    assert scratch.inheritance is not None
    assert scratch.inheritance.inherited + scratch.inheritance.resized == 0
    assert "bpb_inherited" not in scratch.metrics
    assert scratch.tokens.lineage == scratch.tokens.own
    init = child("init", seed_weights)
    assert init.inheritance is not None
    assert not init.inheritance.exact  # it does not say which tokenizer it was trained with
    assert init.metrics["bpb_inherited"] > parent.metrics["bpb_sample"] + 0.5
    assert child("parent", None).metrics["bpb_inherited"] < init.metrics["bpb_inherited"]
    with pytest.raises(InputError, match=r"train.init_checkpoint"):
        child("init", None)


def test_moments_are_handed_on_where_that_is_asked_for(make: Callable[..., Job], tmp_path: Path) -> None:
    parent = run_surrogate(make())
    assert parent.checkpoint is not None
    moments = moments_path(tmp_path / parent.checkpoint)
    assert moments.is_file()
    job = child_of(make(), parent, hidden=48)
    child = run_surrogate(job)
    assert child.inheritance is not None
    assert child.inheritance.exact
    assert [origin.parent for origin in child.inheritance.genes] == [parent.id] * 2
    assert repeatable(run_surrogate(job)) == repeatable(child)
    without = run_surrogate(child_of(make(evolution={"inherit_optimizer": False}), parent, hidden=48))
    assert without.metrics["bpb_inherited"] == child.metrics["bpb_inherited"]
    assert without.metrics["bpb"] != child.metrics["bpb"]
    moments.unlink()
    with pytest.raises(InputError, match=r"c-0.optimizer.safetensors: no such checkpoint"):
        run_surrogate(job)


def test_what_is_wrong_around_a_candidate_is_raised_and_no_failure_of_its_own(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make()
    with pytest.raises(InputError, match="device: got 'cuda:9'"):
        run_surrogate(job.replace(device="cuda:9"))
    gone = {**job.candidate.blueprint, "blocks": [{"ffn": {"kind": "custom", "name": "gone"}}]}
    with pytest.raises(InputError, match="cannot be read where it is to be trained"):
        run_surrogate(job.replace(candidate=job.candidate.replace(blueprint=gone)))
    monkeypatch.setattr(trial, "answers", lambda device: False)
    with pytest.raises(DeviceError, match="device cpu does not answer"):
        run_surrogate(job)


def test_a_device_that_stops_answering_in_training_is_told_from_a_mistake(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter((True, False))
    monkeypatch.setattr(trial, "answers", lambda device: next(said))
    with pytest.raises(DeviceError, match="device cpu no longer answers: CUDA error"):
        run_surrogate(make(), _raising(RuntimeError("CUDA error: unspecified launch failure")))


def test_bad_input_that_comes_up_in_training_is_the_candidate_s_own(make: Callable[..., Job]) -> None:
    report = run_surrogate(make(), _raising(InputError("its layer wants an even number of heads")))
    assert (report.status, report.reason) == (Status.FAILED, "its layer wants an even number of heads")


@pytest.mark.trained_before
def test_a_damaged_parent_is_raised_in_one_line(make: Callable[..., Job], tmp_path: Path) -> None:
    job = make()
    parent = run_surrogate(job)
    child = child_of(job, parent, hidden=48)
    path = tmp_path / "checkpoints" / "c-0.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"c-0.safetensors") as error:
        run_surrogate(child)
    assert "\n" not in str(error.value)


def test_divergence_fails_the_candidate(make: Callable[..., Job]) -> None:
    report = run_surrogate(make(train={"optimizer": {"lr": 1e30}}))
    assert (report.status, report.stop_reason, report.nan_seen) == (Status.FAILED, StopReason.NOT_FINITE, True)
    assert report.tokens.own > 0
    assert report.checkpoint is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:125] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_running_out_of_memory_fails_the_candidate(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    report = run_surrogate(make(), _raising(error))
    assert report.status is Status.FAILED
    assert report.reason.startswith("out of memory on cpu: ")
    assert report.tokens.own == STEP


def test_where_an_accelerators_memory_is_short_batches_go_in_parts(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("trial", "assignment"):
        monkeypatch.setattr(f"morphogen.training.{module}.choose_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr("morphogen.training.trial.answers", lambda name: True)
    job = make().replace(device="cuda")
    tried: list[int] = []
    real = Trainer._passed

    def passed(self: Trainer, ids_BT1: torch.Tensor, *rest: Any) -> Any:
        if not tried or tried[-1] != len(ids_BT1):
            tried.append(len(ids_BT1))
        if len(ids_BT1) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(self, ids_BT1, *rest)

    monkeypatch.setattr(Trainer, "_passed", passed)
    most = batch = job.experiment["data"]["batch_size"]
    whole = run_surrogate(job)
    most = batch // 2
    parts = run_surrogate(job)
    assert (whole.micro_batches, parts.micro_batches) == (1, 2)
    assert tried == [batch, batch // 2]
    assert parts.metrics["bpb"] == pytest.approx(whole.metrics["bpb"], abs=0.05)  # dropout differs
    with pytest.raises(MemoryShortError, match="candidate c-0: out of memory on cuda: CUDA out of memory"):
        run_surrogate(job.replace(shares=True))
    assert tried[-1] == batch
    most = 0
    failed = run_surrogate(job)
    assert failed.status is Status.FAILED
    assert failed.reason.startswith("out of memory on cuda: ")
    assert tried[-1] == 1


def test_the_memory_that_a_job_needs_is_what_explain_says_of_what_it_becomes(make: Callable[..., Job]) -> None:
    job = make(train={"bf16": False})
    data, step = data_of(job), cost.Step(BATCH)
    model = Blueprint.model_validate(job.candidate.blueprint)
    now = cost.train_memory_bytes(model, SEQ, step)
    assert needed_bytes(job, data) == now
    assert needed_bytes(job.replace(candidate=job.candidate.replace(blueprint={"blocks": []})), data) == 0.0
    grows = {"when": {"trigger": "step", "every": 4}, "do": {"action": "widen", "target": "ffn", "factor": 2.0}}
    bounds = {"limits": {"max_params": 10**6}}
    for rule, steps, wider in ((grows, 3, False), (grows, 9, True), ({**grows, **bounds}, 9, True)):
        growing = Blueprint.model_validate({**model.to_json(), "growth": [rule]})
        found = make(steps=(steps,), train={"bf16": False})
        found = found.replace(candidate=found.candidate.replace(blueprint=growing.to_json()))
        assert (needed_bytes(found, data) > 1.1 * now) == wider


def test_mistakes_of_the_program_and_interrupts_are_raised(make: Callable[..., Job]) -> None:
    for error in (RuntimeError("shapes do not match"), KeyboardInterrupt(), KeyError("x")):
        with pytest.raises(type(error)):
            run_surrogate(make(), _raising(error))


def test_a_budget_below_one_batch_is_bad_input(make: Callable[..., Job]) -> None:
    job = make(steps=()).replace(stages=(Stage(rung=1, budget_tokens=STEP - 1),))
    report = run_surrogate(job)
    assert report.status is Status.FAILED
    assert f"expected at least one batch of {STEP}" in report.reason


def _raising(error: BaseException) -> Callable[[StepInfo], None]:
    def progress(info: StepInfo) -> None:
        raise error

    return progress


@pytest.mark.trained_before
def test_training_is_what_the_candidate_s_edits_made_of_it(make: Callable[..., Job]) -> None:
    """A job whose candidate overrides bf16 gives the very numbers of one whose experiment says so."""
    plain, said = make(), make(train={"bf16": True})
    edited = plain.replace(candidate=plain.candidate.replace(train={"bf16": True}))
    assert run_surrogate(edited).metrics == run_surrogate(said).metrics != run_surrogate(plain).metrics


# ----------------------------------------------------------------------------------------- going on, and other gates


def test_a_job_goes_on_from_its_checkpoint_on_the_text_that_follows(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make(steps=(4,)).replace(budget_tokens=10 * STEP)
    read: list[int] = []
    batch = Mixture.batch
    monkeypatch.setattr(Mixture, "batch", lambda self, step: read.append(step) or batch(self, step))
    first = run_surrogate(job)
    on = job.replace(before=first, stages=(Stage(rung=2, budget_tokens=6 * STEP),))
    second, again = run_surrogate(on), run_surrogate(on)
    assert read[:10] == list(range(10))
    assert (first.steps, first.tokens.own, first.metrics["budget_share"]) == (4, 4 * STEP, 0.4)
    assert (second.steps, second.tokens.own, second.metrics["budget_share"]) == (10, 10 * STEP, 1.0)
    assert (second.rung, second.status, second.inheritance) == (2, Status.TRAINED, first.inheritance)
    assert second.metrics["bpb"] < first.metrics["bpb"]
    assert second.metrics == again.metrics
    assert second.checkpoint != first.checkpoint
    whole = run_surrogate(job.replace(stages=(Stage(rung=1, budget_tokens=10 * STEP),)))
    assert (second.tokens, second.flops) == (whole.tokens, whole.flops)


def test_a_job_without_the_checkpoint_it_goes_on_from_fails(make: Callable[..., Job]) -> None:
    job = make(steps=(4,))
    lost = run_surrogate(job).replace(checkpoint=None)
    with pytest.raises(InputError, match="of which no checkpoint is left"):
        run_surrogate(job.replace(before=lost, stages=(Stage(rung=2, budget_tokens=STEP),)))


@pytest.mark.parametrize(
    ("gates", "reason"),
    [
        ({"bpb": {"max": 0.5}}, "bpb is "),
        ({"layers": {"min": 2}}, "layers is 1, below rung1_gates.layers 2"),
        ({"router_entropy": {"min": 0.1}}, "router_entropy was not measured"),
        ({"bpb": {"max": 50.0}}, ""),
        ({"twice": {"max": 0.5}}, "twice is "),
        ({"twice": {"max": 100.0}}, ""),
    ],
)
def test_gates_after_rung_1_end_a_candidate_that_is_outside(
    make: Callable[..., Job], gates: dict[str, Any], reason: str
) -> None:
    made = {"twice": {"op": "weighted_sum", "of": {"bpb": 2.0}}}
    report = run_surrogate(make(evolution={"rung1_gates": gates, "composite_metrics": made}))
    assert report.reason.startswith(reason)
    assert report.status is (Status.GATED if reason else Status.TRAINED)
    assert report.stop_reason is (StopReason.METRIC_GATE if reason else StopReason.FULL_RUN)
    assert report.rung == (1 if reason else 2)


def in_tokens(job: Job, *budgets: int) -> Job:
    """The job with rungs of so many tokens."""
    return job.replace(stages=tuple(Stage(rung=k, budget_tokens=n) for k, n in enumerate(budgets, start=1)))


def test_a_rung_1_of_less_than_a_batch_has_one_where_gates_follow(make: Callable[..., Job]) -> None:
    strict = {"budget": "flops", "rung1_gates": {"layers": {"min": 2}}}
    report = run_surrogate(in_tokens(make(evolution=strict), STEP // 3, 3 * STEP))
    assert (report.status, report.rung, report.steps, report.tokens.own) == (Status.GATED, 1, 1, STEP)
    threshold = run_surrogate(in_tokens(make(train={"ppl_stop_threshold": 1.5}), STEP // 3, 3 * STEP))
    assert (threshold.status, threshold.stop_reason, threshold.steps) == (Status.GATED, StopReason.PPL_GATE, 1)
    lenient = {"budget": "flops", "rung1_gates": {"layers": {"min": 1}}}
    passed = run_surrogate(in_tokens(make(evolution=lenient), STEP // 3, 3 * STEP))
    assert (passed.status, passed.rung, passed.steps) == (Status.TRAINED, 2, 3)  # rung 2 makes up for it
    only = run_surrogate(in_tokens(make(evolution=lenient), STEP // 3, STEP))
    assert (only.status, only.rung, only.steps) == (Status.TRAINED, 1, 1)
    none = run_surrogate(in_tokens(make(evolution=lenient), STEP // 3, STEP // 3))
    assert none.status is Status.FAILED
    assert f"got {2 * (STEP // 3)} tokens in all for as many FLOPs as the root has" in none.reason


def test_a_candidate_that_changes_in_training_is_told_as_what_it_became(
    make: Callable[..., Job], tmp_path: Path
) -> None:
    """Costs, FLOPs, checkpoint and children are those of the architecture that was trained, the first steps' apart."""
    job = make()
    asked = Blueprint.model_validate(job.candidate.blueprint)
    grown = trial_of(job)
    wider, _ = make_edit(asked, "widen_ffn", 0)

    def grow(step: StepInfo) -> None:
        """After rung 1, as a rule for growth would."""
        if step.step != 4:
            return
        parts = from_parent(grown.trainer.model.state_dict(), moments=grown.trainer.updater.moments())
        spliced = splice(plan(wider, [asked]), [parts], seed=1)
        grown.growing.become(wider, spliced.state, Moments.carried(spliced))

    report = grown.run(grow)
    assert (report.status, report.steps) == (Status.TRAINED, 10)
    assert report.blueprint == wider.to_json() != job.candidate.blueprint
    assert report.flops == cost.train_flops(asked, SEQ, 4 * STEP) + cost.train_flops(wider, SEQ, 6 * STEP)
    assert report.costs["params"] == cost.costs(wider, SEQ)["params"]
    assert report.checkpoint is not None
    assert load_checkpoint(tmp_path / report.checkpoint)[1] == wider
    trained = job.candidate.as_trained(report)
    assert trained.blueprint == wider.to_json()
    child = run_surrogate(child_of(job.replace(candidate=trained), report, hidden=80))
    assert child.inheritance is not None
    assert child.inheritance.exact
    assert child.metrics["bpb_inherited"] == pytest.approx(report.metrics["bpb_sample"], rel=1e-5)
    on = job.replace(before=report, stages=(Stage(rung=3, budget_tokens=2 * STEP),))
    later = run_surrogate(on)
    assert later.blueprint == wider.to_json()
    assert later.flops == pytest.approx(report.flops + cost.train_flops(wider, SEQ, 2 * STEP))
    assert "blueprint" not in run_surrogate(make(index=2)).model_dump()


def test_a_rate_that_is_to_be_found_is_found_by_short_trainings_that_count(make: Callable[..., Job]) -> None:
    report = run_surrogate(make(train={"lr": "auto"}))
    found = report.metrics["lr"]
    assert found in RATES
    assert found > RATES[0]  # 8 steps at 5e-4 hardly move
    plain = run_surrogate(make(train={"lr": found}))
    assert {**plain.metrics, "lr": found} == report.metrics
    assert report.tokens == plain.tokens
    blueprint = Blueprint.model_validate(make().candidate.blueprint)
    tests = steps_each(10) * len(RATES) * STEP
    assert report.flops == pytest.approx(plain.flops + cost.train_flops(blueprint, SEQ, tests))
    none = run_surrogate(make(train={"lr": "auto", "instability_threshold": 1e-6, "warmup": 0}, steps=(80, 80)))
    assert none.status is Status.FAILED
    assert "'auto' found none" in none.reason


ANCHORS: dict[str, Any] = {
    "rehearsal": {"share": 0.5, "buffer_tokens": 16 * (SEQ + 1)},
    "self_distillation": {"decay": 0.9},
    "freeze_expand_tune": {"freeze_steps": 2, "tune_steps": 1},
}


@pytest.mark.trained_before
def test_a_child_rehearses_its_lineage_s_text_and_holds_what_it_inherited(make: Callable[..., Job]) -> None:
    parent = make()
    job = child_of(make(train={"anchoring": ANCHORS}), run_surrogate(parent), hidden=48)
    child = trial_of(job)
    anchoring = child.growing.anchoring
    assert anchoring is not None
    assert anchoring.rehearsal is not None
    mixture = Mixture(data_of(parent), seed_of(parent))
    behind = {row.tobytes() for step in range(10) for row in mixture.batch(step)}
    kept = [row.tobytes() for row in anchoring.rehearsal.buffer.rows]
    assert len(kept) == len(set(kept)) == 16
    assert set(kept) <= behind
    assert anchoring.rehearsal.buffer.seen == 10 * BATCH
    old = child.trainer.model.emb.weight.detach().clone()
    child.growing.run(child.mixture.batch, 2)
    assert torch.equal(child.trainer.model.emb.weight, old)
    child.growing.run(child.mixture.batch, 3)
    assert not torch.equal(child.trainer.model.emb.weight, old)


@pytest.mark.parametrize("source", ["data", "generations"])
def test_an_anchored_trial_repeats_and_its_flops_count(make: Callable[..., Job], source: str) -> None:
    anchors = {**ANCHORS, "rehearsal": {**ANCHORS["rehearsal"], "source": source}}
    parent = make()
    report = run_surrogate(parent)
    plain = run_surrogate(child_of(parent, report, hidden=48))
    job = child_of(make(train={"anchoring": anchors}), report, hidden=48)
    one, other = run_surrogate(job), run_surrogate(job)
    assert one.status is Status.TRAINED
    assert one.replace(timed={}) == other.replace(timed={})
    forward = cost.total(Blueprint.model_validate(job.candidate.blueprint), SEQ).flops
    sampled = 16 * SEQ if source == "generations" else 0
    assert one.flops - plain.flops == pytest.approx(forward * (10 * STEP + sampled))
    assert one.costs["train_memory_bytes"] > plain.costs["train_memory_bytes"]
