"""The training loop: schedule, clipping, stages, checkpointing, randomness."""

import json
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import StopReason
from morphogen.errors import InputError
from morphogen.experiment import Optimizer, Train
from morphogen.inherit.descent import Moments
from morphogen.inherit.plan import plan
from morphogen.inherit.splice import from_parent, splice
from morphogen.network import LanguageModel, assemble, build
from morphogen.training.device import choose_device
from morphogen.training.guards import CHECK_EVERY
from morphogen.training.losses import Forward, Loss, sequence_losses, token_ids, usual_loss
from morphogen.training.saved import Saved
from morphogen.training.schedule import FINAL_SCALE, Schedule
from morphogen.training.trace import StepInfo
from morphogen.training.trainer import Trainer
from morphogen.variation.operator import edit as make_edit

VOCAB, LENGTH, BATCH = 23, 16, 4


def blueprint(dropout: float = 0.0) -> Blueprint:
    block = {
        "attn": {"kind": "MHA", "heads": 2, "head_dim": 16, "dropout": dropout},
        "ffn": {"kind": "dense", "hidden": 48},
    }
    return Blueprint.model_validate({"emb": {"dim": 32, "vocab": VOCAB, "dropout": dropout}, "blocks": [block, block]})


def counting(step: int) -> NDArray[np.int64]:
    """Sequences that count upwards modulo the vocabulary from random starts: learnable at once."""
    start_B = np.random.default_rng(step).integers(VOCAB, size=BATCH)
    return (start_B[:, None] + np.arange(LENGTH + 1)) % VOCAB


def make(model: LanguageModel, train: Train | None = None, steps: int = 30, seed: int = 0) -> Trainer:
    return Trainer(model, train or Train(warmup=4), total_steps=steps, tokens_per_step=BATCH * LENGTH, seed=seed)


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_constant_rate_warms_up_once_and_wsd_falls_at_its_end() -> None:
    train = Train(warmup=4)
    assert [Schedule.of(train, 10).scale(step) for step in range(10)] == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 6)
    assert {Schedule.of(train, 10, begun=True).scale(step) for step in range(10)} == {1.0}
    wsd = Schedule.of(Train(warmup=2, schedule="wsd", decay_share=0.4), 10)
    scales = [wsd.scale(step) for step in range(10)]
    assert scales == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert Schedule.of(Train(warmup=5, schedule="wsd", decay_share=1.0), 10).scale(5) < 1.0


def test_a_cosine_warms_up_then_falls_to_a_tenth() -> None:
    scales = [Schedule(100, 20, "cosine").scale(step) for step in range(100)]
    assert scales[:21] == sorted(scales[:21])
    assert scales[20] == 1.0
    assert scales[20:] == sorted(scales[20:], reverse=True)
    assert scales[-1] == pytest.approx(FINAL_SCALE)
    assert scales[0] > 0


def test_a_short_run_warms_up_for_at_most_half() -> None:
    assert [Schedule.of(Train(warmup=20), steps).warmup for steps in (1, 10, 100)] == [0, 5, 20]
    assert {Schedule(1, 0, shape).scale(0) for shape in ("constant", "cosine", "wsd")} == {1.0}


def test_training_learns_what_there_is_to_learn() -> None:
    trainer = make(build(blueprint()), Train(lr=1e-2, warmup=4, entropy_threshold=0.0), steps=60)
    assert trainer.run(counting, 60) is None
    assert trainer.trace.losses[0] > 0.9 * math.log(VOCAB)
    assert trainer.trace.losses[-1] < 0.5


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_every_optimizer_lowers_the_loss(name: str) -> None:
    lr = 3e-3 if name == "lion" else 1e-2
    trainer = make(build(blueprint()), Train(warmup=4, optimizer=Optimizer.model_validate({"name": name, "lr": lr})))
    trainer.run(counting, 30)
    assert trainer.trace.losses[-1] < 0.75 * trainer.trace.losses[0]


def test_two_stages_are_one_run() -> None:
    """Same optimizer, schedule, data and dropout wherever the cut is."""
    whole, parts = build(blueprint(0.2)), build(blueprint(0.2))
    make(whole).run(counting, 30)
    trainer = make(parts)
    for until in (7, 30):
        trainer.run(counting, until)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(parts)[name]), name


def test_dropout_depends_on_the_seed_and_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    losses = []
    for seed in (1, 1, 2):
        trainer = make(build(blueprint(0.2)), seed=seed)
        trainer.run(counting, 3)
        losses.append(trainer.trace.losses)
    assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1] != losses[2]


def test_gradient_checkpointing_changes_memory_but_no_number() -> None:
    plain, saving = make(build(blueprint(0.2))), make(build(blueprint(0.2)), Train(warmup=4, grad_ckpt=True))
    plain.run(counting, 4)
    saving.run(counting, 4)
    assert saving.trace.losses == plain.trace.losses
    assert saving.memory.bytes < plain.memory.bytes


def test_bf16_trains_as_well_with_fp32_weights() -> None:
    model = build(blueprint())
    trainer = make(model, Train(lr=1e-2, warmup=4, bf16=True), steps=60)
    trainer.run(counting, 60)
    assert trainer.trace.losses[-1] < 0.5
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_norm_on_record_is_that_before_clipping() -> None:
    def first(clip: float) -> tuple[float, dict[str, torch.Tensor]]:
        model = build(blueprint())
        train = Train(lr=1e-2, weight_decay=0.0, warmup=0, clip=clip, optimizer=Optimizer(eps=1.0))
        trainer = make(model, train)
        trainer.run(counting, 1)
        return trainer.trace.grad_norms[0], weights(model)

    start = weights(build(blueprint()))
    (norm, free), (same, clipped) = first(1e6), first(1e-3)
    assert norm == same > 1e-3

    def moved(after: dict[str, torch.Tensor]) -> float:
        return math.sqrt(sum(float((after[name] - start[name]).square().sum()) for name in start))

    assert moved(clipped) < 0.1 * moved(free)  # eps = 1 makes AdamW nearly linear in the gradient


def test_progress_tells_every_step() -> None:
    seen: list[StepInfo] = []
    make(build(blueprint())).run(counting, 2 * CHECK_EVERY, seen.append)
    assert [info.step for info in seen] == list(range(1, 2 * CHECK_EVERY + 1))
    assert [info.tokens for info in seen] == [64 * info.step for info in seen]
    assert [info.step for info in seen if info.entropy is not None] == [CHECK_EVERY, 2 * CHECK_EVERY]
    assert 0 < (seen[CHECK_EVERY - 1].entropy or 0) <= math.log(VOCAB)
    assert all(info.seconds > 0 and info.steps == 30 for info in seen)


def test_a_guard_ends_the_run_where_it_trips() -> None:
    trainer = make(build(blueprint()), Train(warmup=0, instability_threshold=1e-6), steps=50)
    assert trainer.run(counting, 50) is StopReason.HIGH_GRAD
    assert trainer.step == len(trainer.trace.losses) < 50


def test_weights_that_are_not_finite_stop_at_once() -> None:
    model = build(blueprint())
    with torch.no_grad():
        model.get_parameter("blocks.0.ffn.up.weight")[0, 0] = math.inf
    trainer = make(model)
    assert trainer.run(counting, 30) is StopReason.NOT_FINITE
    assert trainer.step == 1
    assert trainer.guards.nan_seen


def test_peak_memory_holds_weights_gradients_and_moments() -> None:
    model = build(blueprint())
    trainer = make(model)
    trainer.run(counting, 3)
    assert trainer.memory.bytes > 16 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:99", ""])
def test_a_device_that_is_not_there_is_bad_input(name: str) -> None:
    with pytest.raises(InputError, match="device: got"):
        choose_device(name)


def test_devices_that_are() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_recurrences_take_more_steps_as_training_goes_on_and_memory_is_measured_at_the_most(name: str) -> None:
    loop = {"start": 0, "end": 1, "adapter": "gated", "max_train_recurrence": 3, "curriculum_fraction": 0.5}
    looping = Blueprint.model_validate({**blueprint().to_json(), "recurrences": [loop]})
    train = Train(warmup=1, optimizer=Optimizer.model_validate({"name": name}))
    trainer = make(model := build(looping), train, steps=8)
    calls: list[int] = []
    model.recurrences[0].register_forward_hook(lambda *_: calls.append(trainer.step))
    trainer.run(counting, 4)
    assert trainer.memory.bytes == 0
    trainer.run(counting, 8)
    assert [calls.count(step) for step in range(8)] == [1, 1, 2, 2, 3, 3, 3, 3]
    flat = make(build(looping.evolve(recurrences=({**loop, "curriculum_fraction": 0.0},)) or looping), train, steps=8)
    flat.run(counting, 2)
    assert trainer.memory.bytes == pytest.approx(flat.memory.bytes, rel=0.02)


def test_a_sequence_weighs_the_same_however_many_targets_are_scored() -> None:
    logits_BTV = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets_BT = torch.tensor([[1, 2, 3, 4, 5], [-1, -7, 6, -2, -3], [0, 1, -1, -1, 2]])
    loss = sequence_losses(logits_BTV, targets_BT).mean()
    logp = logits_BTV.log_softmax(-1)
    rows = [[(b, t) for t in range(5) if targets_BT[b, t] >= 0] for b in range(3)]
    want = sum(sum(-logp[b, t, targets_BT[b, t]] for b, t in row) / len(row) for row in rows) / 3
    assert torch.allclose(loss, want)
    loss.backward()
    assert logits_BTV.grad is not None
    assert not logits_BTV.grad[1, [0, 1, 3, 4]].any()
    whole = targets_BT.clamp_min(0)
    flat = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), whole.flatten())
    assert torch.allclose(sequence_losses(logits_BTV, whole).mean(), flat)


def test_unscored_tokens_are_read_as_what_they_are() -> None:
    seen: list[torch.Tensor] = []
    model = build(blueprint())
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))

    def half(step: int) -> NDArray[np.int64]:
        ids_BT1 = counting(step)
        ids_BT1[:, ::2] = -1 - ids_BT1[:, ::2]
        return ids_BT1

    make(model).run(half, 1)
    assert torch.equal(seen[0], torch.from_numpy(counting(0)[:, :-1]))


def test_the_trace_tells_the_loss_of_text_and_probes_train_too() -> None:
    def with_probe(step: int) -> NDArray[np.int64]:
        ids_BT1 = counting(step)
        ids_BT1[0, :-1] = -1 - ids_BT1[0, :-1]  # of the first sequence only the last target is scored
        ids_BT1[0, -1] = 0
        return ids_BT1

    plain, probed, only = make(build(blueprint())), make(build(blueprint())), make(build(blueprint()))
    plain.run(lambda step: counting(step)[1:], 1)
    probed.run(with_probe, 1)
    assert probed.trace.losses == pytest.approx(plain.trace.losses)
    assert probed.trace.grad_norms != pytest.approx(plain.trace.grad_norms, rel=1e-3)
    only.run(lambda step: with_probe(step)[:1], 1)
    assert math.isfinite(only.trace.losses[0])


def loss_now(model: LanguageModel, step: int) -> float:
    """The loss of a batch, in eval mode."""
    ids_BT1 = torch.from_numpy(counting(step))
    with torch.no_grad():
        loss = float(sequence_losses(model.eval()(ids_BT1[:, :-1]), ids_BT1[:, 1:]).mean())
    model.train()
    return loss


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_a_model_that_grows_between_two_steps_computes_the_same_keeps_its_moments_and_trains_on(name: str) -> None:
    train = Train.model_validate({"warmup": 4, "optimizer": {"name": name}, "instability_threshold": 1e9})
    trainer = make(build(blueprint()), train, steps=20)
    trainer.run(counting, 10)
    before, theirs = loss_now(trainer.model, 99), trainer.updater.moments()
    wider, _ = make_edit(blueprint(), "widen_ffn", 0)
    state = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    grown = splice(plan(wider, [blueprint()]), [from_parent(state, moments=theirs)], seed=5)
    trainer.change(assemble(wider, grown.state), Moments.carried(grown), warmup=4)
    assert loss_now(trainer.model, 99) == pytest.approx(before, rel=1e-6)
    for kind, of in trainer.updater.moments().items():
        for key, tensor in of.items():
            old = theirs[kind][key]
            assert torch.equal(tensor[tuple(slice(size) for size in old.shape)], old), (kind, key)
    start = weights(trainer.model)
    trainer.run(counting, 20)
    assert len(trainer.trace.losses) == trainer.step == 20
    assert trainer.trace.losses[-1] < trainer.trace.losses[9]
    young = {key: value for key, value in Moments.carried(grown).fresh.items() if bool(value.any())}
    assert young
    moved = [(weights(trainer.model)[key] != start[key])[new].float().mean() for key, new in young.items()]
    assert min(float(share) for share in moved) > 0.9


def test_a_change_may_bring_its_own_schedule() -> None:
    trainer = make(model := build(blueprint()), steps=20)
    trainer.run(counting, 10)
    flat = Schedule(20, warmup=0)
    trainer.change(model, Moments(of=trainer.updater.moments(), fresh={}), warmup=0, schedule=flat)
    seen: list[StepInfo] = []
    trainer.run(counting, 12, seen.append)
    assert [info.lr_scale for info in seen] == [flat.scale(10), flat.scale(11)]


def test_another_loss_changes_the_gradients_by_its_own_and_what_is_told_stays_the_text_s() -> None:
    """Self-distillation: the usual loss and the divergence from a teacher's predictions."""
    teacher, train = build(blueprint(), seed=7), Train(warmup=0, clip=1e9, optimizer=Optimizer(name="lion"))

    def divergence(forward: Forward) -> torch.Tensor:
        with torch.no_grad():
            wanted_BTV = teacher(token_ids(forward.ids_BT1)[:, :-1]).log_softmax(-1)
        return torch.nn.functional.kl_div(
            forward.logits_BTV.log_softmax(-1), wanted_BTV, log_target=True, reduction="batchmean"
        )

    usual = usual_loss(train)

    def gradient(loss: Loss) -> torch.Tensor:
        """Of the head, which a hook on the weight sees before the optimizer drops it."""
        model = build(blueprint())
        found: list[torch.Tensor] = []
        model.emb.weight.register_hook(lambda grad: found.append(grad.clone()))
        trainer = Trainer(model, train, total_steps=4, tokens_per_step=BATCH * LENGTH, seed=0, loss=loss)
        trainer.run(counting, 1)
        told.append(trainer.trace.losses[0])
        return sum(found)

    told: list[float] = []
    plain, kl, both = (gradient(loss) for loss in (usual, divergence, lambda it: usual(it) + 0.5 * divergence(it)))
    assert told[0] == told[1] == told[2]
    assert float(kl.abs().max()) > 1e-4
    assert torch.allclose(both, plain + 0.5 * kl, atol=1e-6)


@pytest.mark.parametrize("kinds", [{"kind": "dense", "hidden": 48}, {"kind": "moe", "hidden": 16, "n_experts": 4}])
def test_gradients_of_several_batches_make_the_step_of_one_large_batch(kinds: dict[str, object]) -> None:
    block = {"attn": {"kind": "MHA", "heads": 2, "head_dim": 16}, "ffn": kinds}
    model = Blueprint.model_validate({"emb": {"dim": 32, "vocab": VOCAB}, "blocks": [block]})

    def trained(accumulate: int, sequences: int, micro: int = 1) -> Trainer:
        train = Train(warmup=2, accumulate=accumulate, router_lb_coeff=0.0)
        trainer = Trainer(build(model), train, total_steps=5, tokens_per_step=8 * LENGTH, seed=0, micro_batches=micro)
        seen: list[int] = []

        def batches(step: int) -> NDArray[np.int64]:
            return np.concatenate([counting(2 * step), counting(2 * step + 1)])

        trainer.model.blocks[0].register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
        trainer.run(batches, 5)
        assert seen == [sequences] * accumulate * micro * 5
        return trainer

    whole, parts, single = trained(1, 8), trained(4, 2), trained(8, 1)
    for other in (parts, single, trained(1, 2, micro=4), trained(2, 2, micro=2)):
        assert other.trace.losses == pytest.approx(whole.trace.losses, rel=1e-4)
        assert other.trace.grad_norms == pytest.approx(whole.trace.grad_norms, rel=1e-3)
        for name, values in whole.trace.figures.items():
            assert len(other.trace.figures[name]) == len(values)


MIXED = {
    "emb": {"dim": 32, "vocab": VOCAB, "dropout": 0.1},
    "blocks": [
        {"attn": {"kind": "MHA", "heads": 2, "head_dim": 16}, "ffn": {"kind": "moe", "hidden": 8, "n_experts": 4}}
    ],
}


@pytest.mark.parametrize("schedule", ["constant", "wsd"])
@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
def test_a_trainer_goes_on_from_its_state_bit_for_bit(schedule: str, optimizer: str) -> None:
    if optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    train = Train.model_validate({"warmup": 4, "lr": 2e-3, "schedule": schedule, "optimizer": {"name": optimizer}})
    model = Blueprint.model_validate(MIXED)
    whole = make(build(model), train)
    whole.run(counting, 12)
    saved, averages = whole.state(), whole.averages
    tensors = {name: tensor.clone() for name, tensor in saved.tensors.items()}
    weights = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    plain = json.loads(json.dumps(saved.plain, allow_nan=False))
    whole.run(counting, 30)
    other = make(assemble(model, weights), train)
    other.restore(Saved(tensors, plain), averages)
    other.run(counting, 30)
    assert other.trace.losses == whole.trace.losses
    assert other.trace.grad_norms == whole.trace.grad_norms
    assert other.trace.figures == whole.trace.figures
    assert other.guards.state() == whole.guards.state()
    assert all(torch.equal(mine, whole.model.state_dict()[name]) for name, mine in other.model.state_dict().items())
    assert all(torch.equal(mine, whole.averages[name]) for name, mine in other.averages.items())


def test_what_is_young_when_a_state_is_taken_warms_up_to_its_end() -> None:
    first = make(build(blueprint()), Train(warmup=0))
    first.run(counting, 3)
    moments = Moments(of=first.updater.moments(), fresh={"emb.weight": torch.rand(VOCAB, 32) < 0.5})

    def grown() -> Trainer:
        return Trainer(build(blueprint()), Train(warmup=8), total_steps=20, tokens_per_step=64, seed=0, moments=moments)

    whole = grown()
    whole.run(counting, 4)
    saved, averages = whole.state(), whole.averages
    kept = Saved({name: tensor.clone() for name, tensor in saved.tensors.items()}, saved.plain)
    weights = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    whole.run(counting, 20)
    other = make(assemble(blueprint(), weights), Train(warmup=8), steps=20)
    other.restore(kept, averages)
    other.run(counting, 20)
    assert other.trace.losses == whole.trace.losses


def test_a_step_tells_what_balancing_adds_to_the_loss() -> None:
    told: list[StepInfo] = []
    make(build(Blueprint.model_validate(MIXED))).run(counting, 3, told.append)
    assert all(step.balance > 0.0 for step in told)
    told.clear()
    make(build(blueprint())).run(counting, 3, told.append)
    assert {step.balance for step in told} == {0.0}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_frozen_embedding_and_head_stay_bit_for_bit_and_all_else_learns(tied: bool, name: str) -> None:
    emb = {"dim": 32, "vocab": VOCAB, "positions": LENGTH, "freeze": True}
    head = {"tie_embeddings": tied} | ({} if tied else {"bias": True, "freeze": True})
    frozen = Blueprint.model_validate({**blueprint().to_json(), "emb": emb, "head": head})
    optimizer = Optimizer.model_validate({"name": name, "lr": 1e-2, "weight_decay": 0.1})
    model = build(frozen)
    before = weights(model)
    make(model, Train(warmup=4, optimizer=optimizer)).run(counting, 20)
    stem = {"emb.weight", "positions.weight"} | (set() if tied else {"head.weight", "head.bias"})
    for tensor, now in weights(model).items():
        assert torch.equal(before[tensor], now) == (tensor in stem), tensor
    thawed = Blueprint.model_validate({**frozen.to_json(), "emb": {**emb, "freeze": False}})
    assert plan(thawed, [frozen]).exact


def test_a_batch_that_is_fetched_ahead_is_the_one_of_its_step() -> None:
    """As on CUDA, where it is sent while the device computes; none is fetched that is not trained on."""
    asked: list[int] = []

    def batches(step: int) -> NDArray[np.int64]:
        asked.append(step)
        return counting(step)

    plain, ahead = make(build(blueprint(), seed=0)), make(build(blueprint(), seed=0))
    plain.run(counting, 6)
    ahead._fetches = True
    ahead.run(batches, 4)
    ahead.run(batches, 6)
    assert asked == [0, 1, 2, 3, 4, 5]
    assert ahead.trace.losses == plain.trace.losses
