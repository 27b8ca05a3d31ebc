"""Optimizer state: on disk, along the axes of an edit, and into the child's first steps."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.candidate import Candidate, Edit, Job, ParentRef, moments_path
from morphogen.errors import InputError, RunError
from morphogen.experiment import Train
from morphogen.inherit.checkpoint import load_moments, save_checkpoint, save_moments
from morphogen.inherit.descent import Inherited, splice_job
from morphogen.network import assemble, build
from morphogen.runfolder import keep_to_budget, remove_checkpoints
from morphogen.training.trainer import Trainer
from morphogen.variation.operator import edit as make_edit

PARENT = Blueprint.model_validate(
    {
        "emb": {"dim": 16, "vocab": 37},
        "blocks": [
            {"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}, "ffn": {"kind": "dense", "hidden": 16}},
            {"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}, "ffn": {"kind": "dense", "hidden": 24}},
        ],
    }
)
OPTIMIZERS = ["adamw", "lion", "muon"]
STEPS = 3


def batch(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(37, size=(4, 17))


def trainer(blueprint: Blueprint, optimizer: str, start: Inherited | None = None, warmup: int = 0) -> Trainer:
    model = build(blueprint, seed=1) if start is None else assemble(blueprint, start.state)
    train = Train.model_validate({"warmup": warmup, "optimizer": {"name": optimizer}, "instability_threshold": 1e9})
    moments = None if start is None else start.moments
    return Trainer(model, train, total_steps=10, tokens_per_step=64, seed=0, moments=moments)


@pytest.fixture(params=OPTIMIZERS)
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> Trainer:
    """The parent after a few steps, saved as p0."""
    parent = trainer(PARENT, request.param)
    parent.run(batch, STEPS)
    save_checkpoint(tmp_path / "p0.safetensors", parent.model.state_dict(), PARENT, {})
    save_moments(tmp_path / "p0.safetensors", parent.updater.moments())
    return parent


def child_of(folder: Path, child: Blueprint, edits: tuple[Edit, ...]) -> Inherited:
    candidate = Candidate(id="c", index=1, generation=1, blueprint=child.to_json(), edits=edits)
    parents = (ParentRef(id="p0", blueprint=PARENT.to_json(), checkpoint="p0.safetensors"),)
    where = {"run_dir": str(folder), "device": "cpu"}
    job = Job(experiment={}, candidate=candidate, parents=parents, ancestors=(), stages=(), seed=0, **where)
    return splice_job(job, 0, with_moments=True)


def test_a_copy_takes_the_step_that_its_parent_would_have_taken(trained: Trainer, tmp_path: Path) -> None:
    name = trained.train.optimizer.name
    copy = trainer(PARENT, name, child_of(tmp_path, PARENT, ()))
    fresh = trainer(PARENT, name)
    fresh.model.load_state_dict(trained.model.state_dict())
    start = {key: value.detach().clone() for key, value in trained.model.named_parameters()}
    for each in (trained, copy, fresh):
        each.model(torch.from_numpy(batch(5))[:, :-1]).square().mean().backward()
        each.updater.step(1.0)
    wanted = dict(trained.model.named_parameters())

    def off(other: Trainer) -> float:
        """By how much its step differs, relative to the step."""
        both = [
            ((value - wanted[key]).detach(), (wanted[key] - start[key]).detach())
            for key, value in other.model.named_parameters()
        ]
        return math.sqrt(sum(float(d.square().sum()) for d, _ in both) / sum(float(s.square().sum()) for _, s in both))

    assert off(copy) < 0.05  # moments lie on disk in bfloat16
    assert off(fresh) > 0.2


@pytest.mark.parametrize(
    "operator", ["widen_ffn", "widen_dim", "add_heads", "duplicate_block", "insert_block", "untie_head"]
)
def test_moments_are_carried_bit_for_bit_and_start_at_zero(trained: Trainer, tmp_path: Path, operator: str) -> None:
    child, edit = make_edit(PARENT, operator, 0)
    start = child_of(tmp_path, child, (edit,))
    assert start.moments is not None
    theirs, table = load_moments(tmp_path / "p0.safetensors", PARENT), specs(child)
    for kind, of in trained.updater.moments().items():
        assert all(torch.allclose(theirs[kind][name], tensor, rtol=2**-8, atol=0) for name, tensor in of.items())
    carried = {gene.key: gene for gene in PARENT.genes()}
    for kind, of in start.moments.of.items():
        for name, tensor in of.items():
            gene, inner, spec = table[name]
            key = gene.key if gene.key in carried else gene.key.replace(gene.block.id, str(gene.block.origin), 1)
            source = carried[key].tensor("emb.weight" if inner == "head.weight" else inner)
            old = theirs[kind][source]
            if kind == "step":
                assert torch.equal(tensor, old)
                continue
            assert tensor.shape == spec.shape
            corner = tensor[tuple(slice(size) for size in old.shape)] if operator != "add_heads" else None
            if corner is not None:
                assert torch.equal(corner, old), (kind, name)
            assert torch.equal(torch.sort(tensor[tensor != 0]).values, torch.sort(old[old != 0]).values), (kind, name)
            assert name not in start.moments.fresh or not tensor[start.moments.fresh[name]].any(), (kind, name)
    known = {name for of in start.moments.of.values() for name in of}
    new = {name for name, (_, _, spec) in table.items() if spec.trained} - known
    assert {name for name in new if name in start.moments.fresh and bool(start.moments.fresh[name].all())} == new


def test_every_trainable_parameter_stays_in_exactly_one_group_and_none_is_stale(
    trained: Trainer, tmp_path: Path
) -> None:
    for operator in ("widen_dim", "duplicate_block", "delete_block"):
        child, edit = make_edit(PARENT, operator, 0)
        new = trainer(child, trained.train.optimizer.name, child_of(tmp_path, child, (edit,)))
        names = {p: n for n, p in new.model.named_parameters()}
        grouped = [names[p] for p in new.updater.parameters]
        assert sorted(grouped) == sorted(names.values())
        known = {name for of in new.updater.moments().values() for name in of}
        assert known <= set(grouped)
        new.run(batch, 2)
        assert {name for of in new.updater.moments().values() for name in of} == set(grouped)


def test_only_new_entries_warm_up(trained: Trainer, tmp_path: Path) -> None:
    child, edit = make_edit(PARENT, "widen_ffn", 0)
    name = trained.train.optimizer.name
    warming = trainer(child, name, child_of(tmp_path, child, (edit,)), warmup=4)
    at_once = trainer(child, name, child_of(tmp_path, child, (edit,)), warmup=0)
    before = {key: value.clone() for key, value in warming.model.named_parameters()}
    fresh = child_of(tmp_path, child, (edit,)).moments.fresh
    assert fresh
    for step in range(6):
        for each in (warming, at_once):
            each.model.load_state_dict({**each.model.state_dict(), **before})
            each.model(torch.from_numpy(batch(step))[:, :-1]).square().mean().backward()
            each.updater.step(1.0)
        share = min(1.0, (step + 1) / 5)
        for key, old in before.items():
            moved, wanted = (
                dict(warming.model.named_parameters())[key] - old,
                dict(at_once.model.named_parameters())[key] - old,
            )
            young = fresh.get(key, torch.zeros_like(old, dtype=torch.bool))
            assert torch.equal(moved[~young], wanted[~young]), key
            assert torch.allclose(moved[young], share * wanted[young], atol=1e-7, rtol=1e-4), key


def test_a_disk_budget_counts_moments_with_their_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.safetensors").write_bytes(b"x" * 10)
        moments_path(folder / f"{name}.safetensors").write_bytes(b"x" * 20)
    spare, needed = ["checkpoints/a.safetensors", "checkpoints/b.safetensors"], ["checkpoints/c.safetensors"]
    with pytest.raises(RunError, match="take 30 bytes"):
        keep_to_budget(tmp_path, spare, needed, 29)
    assert keep_to_budget(tmp_path, spare, needed, 60) == 1
    assert sorted(p.name[0] for p in folder.iterdir()) == ["b", "b", "c", "c"]


def test_another_optimizers_moments_are_left_alone(tmp_path: Path) -> None:
    parent = trainer(PARENT, "adamw")
    parent.run(batch, 1)
    save_checkpoint(tmp_path / "p0.safetensors", parent.model.state_dict(), PARENT, {})
    save_moments(tmp_path / "p0.safetensors", parent.updater.moments())
    lion = trainer(PARENT, "lion", child_of(tmp_path, PARENT, ()))
    assert lion.updater.moments() == {}
    lion.run(batch, 1)


def test_missing_and_foreign_moments_are_bad_input(trained: Trainer, tmp_path: Path) -> None:
    path = tmp_path / "p0.safetensors"
    other = PARENT.evolve(emb=PARENT.emb.evolve(dim=24))
    with pytest.raises(InputError, match="no moment of a parameter"):
        load_moments(path, other)
    data = moments_path(path).read_bytes()
    moments_path(path).write_bytes(data[:-4] + b"abcd")
    with pytest.raises(InputError, match="checksum"):
        load_moments(path, PARENT)
    moments_path(path).unlink()
    with pytest.raises(InputError, match="no such checkpoint"):
        child_of(tmp_path, PARENT, ())


def test_moments_go_with_their_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.safetensors").touch()
        moments_path(folder / f"{name}.safetensors").touch()
    assert remove_checkpoints(tmp_path, ["checkpoints/a.safetensors"]) == 1
    assert sorted(p.name for p in folder.iterdir()) == ["a.optimizer.safetensors", "a.safetensors"]
