"""What came to be while a model trained: its own rate and warm-up, through several growths and a restart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from morphogen.blueprint.growth import GrowthAction
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Candidate, Edit, Job, ParentRef
from morphogen.experiment import Train
from morphogen.growth.actions import act
from morphogen.growth.surgery import Operated, operate
from morphogen.inherit.checkpoint import load_moments, load_optimizer, save_checkpoint, save_moments
from morphogen.inherit.descent import Moments, splice_job
from morphogen.network import LanguageModel, assemble, build
from morphogen.training.trainer import Trainer
from morphogen.variation.operator import edit as make_edit

ACTION: TypeAdapter[GrowthAction] = TypeAdapter(GrowthAction)
PARENT = Blueprint.model_validate(
    {
        "emb": {"dim": 16, "vocab": 37},
        "blocks": [
            {"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}, "ffn": {"kind": "dense", "hidden": 16}},
            {"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}, "ffn": {"kind": "dense", "hidden": 24}},
        ],
    }
)
WIDEN = {"action": "widen", "factor": 1.5}
DEEPEN = {"action": "deepen"}
TO_MOE = {"action": "to_moe", "blocks": ["b1"]}


def batch(step: int) -> Any:
    return np.random.default_rng(step).integers(37, size=(4, 17))


def trainer(optimizer: str = "adamw") -> Trainer:
    fields = {"warmup": 0, "optimizer": {"name": optimizer}, "instability_threshold": 1e9, "clip": 1e9}
    train = Train.model_validate(fields)
    return Trainer(build(PARENT, seed=1), train, total_steps=40, tokens_per_step=64, seed=0)


def grow(here: Trainer, action: dict[str, Any], warmup: int = 0, multiplier: float = 1.0) -> Operated:
    blueprint = here.model.blueprint
    grown = act(blueprint, ACTION.validate_python(action), np.random.default_rng(0))
    assert grown is not None
    done = operate(grown, blueprint, here.model.state_dict(), here.updater.carried(), 5)
    here.change(assemble(grown.blueprint, done.state), done.moments, warmup=warmup, multiplier=multiplier)
    return done


def moved(here: Trainer, step: int) -> dict[str, Tensor]:
    """By how much each parameter goes in one step."""
    before = {name: p.detach().clone() for name, p in here.model.named_parameters()}
    here.run(batch, step + 1)
    return {name: p.detach() - before[name] for name, p in here.model.named_parameters()}


def masks(done: Operated) -> dict[str, Tensor]:
    return dict(done.moments.fresh)


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
@pytest.mark.parametrize("action", [WIDEN, DEEPEN, TO_MOE], ids=["widen", "deepen", "to_moe"])
def test_new_entries_have_a_rate_of_their_own_and_old_ones_keep_theirs(optimizer: str, action: dict[str, Any]) -> None:
    plain, quick = trainer(optimizer), trainer(optimizer)
    for each, multiplier in ((plain, 1.0), (quick, 3.0)):
        each.run(batch, 3)
        fresh = masks(grow(each, action, multiplier=multiplier))
    assert fresh
    wanted, got = moved(plain, 3), moved(quick, 3)
    for name, by in wanted.items():
        young = fresh.get(name, torch.zeros_like(by, dtype=torch.bool))
        assert torch.equal(got[name][~young], by[~young]), name
        torch.testing.assert_close(got[name][young], 3 * by[young], rtol=1e-3, atol=1e-6, msg=name)


def test_a_rate_is_for_good_and_a_warm_up_is_not() -> None:
    here = trainer()
    here.run(batch, 3)
    grow(here, WIDEN, warmup=3, multiplier=2.0)
    factors = []
    for step in range(3, 9):
        factors.append(here.updater._cohorts[0].factor)
        here.run(batch, step + 1)
    assert factors == [2 / 16, 8 / 16, 18 / 16, 2.0, 2.0, 2.0]
    grow(here, DEEPEN)
    assert [c.multiplier for c in here.updater._cohorts] == [2.0, 1.0]


def test_older_young_entries_keep_their_rate_and_what_is_left_of_their_warm_up() -> None:
    here = trainer()
    here.run(batch, 2)
    first = masks(grow(here, WIDEN, warmup=4, multiplier=2.0))
    here.run(batch, 4)
    second = masks(grow(here, DEEPEN, warmup=2, multiplier=4.0))
    cohorts = here.updater._cohorts
    assert [(c.multiplier, c.warmup, c.taken) for c in cohorts] == [(2.0, 4, 2), (4.0, 2, 0)]
    old = {name.replace("blocks.1.", "blocks.2."): mask for name, mask in first.items()}  # a block came in between
    assert cohorts[0].masks.keys() == old.keys()
    assert all(torch.equal(cohorts[0].masks[name], mask) for name, mask in old.items())
    assert {name for name in second if name.startswith("blocks.1.")} == set(second)
    assert all(bool(mask.all()) for mask in second.values())
    assert all(torch.equal(cohorts[1].masks[name], mask) for name, mask in second.items())
    here.run(batch, 12)
    wider = grow(here, {"action": "widen", "target": "dim"})
    assert [c.multiplier for c in here.updater._cohorts] == [2.0, 4.0, 1.0]
    for name, mask in here.updater._cohorts[0].masks.items():
        assert mask.sum() == old[name].sum(), name
        assert not (mask & wider.moments.fresh.get(name, torch.zeros_like(mask))).any(), name


def test_a_warm_up_that_is_still_running_goes_on_through_a_growth() -> None:
    def begun(moments: Moments | None, model: LanguageModel) -> Trainer:
        train = Train.model_validate({"warmup": 20, "instability_threshold": 1e9, "clip": 1e9})
        return Trainer(model, train, total_steps=60, tokens_per_step=64, seed=0, moments=moments)

    root = begun(None, build(PARENT, seed=1))
    root.run(batch, 5)
    grow(root, DEEPEN)
    assert [root.schedule.scale(step) for step in (5, 12, 20)] == [6 / 21, 13 / 21, 1.0]  # of all that there is
    root.run(batch, 6)
    young = {name: torch.ones_like(p, dtype=torch.bool) for name, p in root.model.named_parameters() if "ffn" in name}
    child = begun(Moments(root.updater.moments(), young), root.model)
    child.run(batch, 5)
    grow(child, WIDEN, warmup=7)
    inherited, new = child.updater._cohorts
    assert (inherited.warmup, inherited.taken, new.warmup, new.taken) == (20, 5, 7, 0)
    assert inherited.masks.keys() == young.keys()
    assert all(int(inherited.masks[name].sum()) == mask.numel() for name, mask in young.items())


def test_the_grown_up_of_one_rate_are_kept_together() -> None:
    here = trainer()
    for step in range(1, 5):
        here.run(batch, step)
        grow(here, WIDEN, multiplier=2.0)
    here.run(batch, 5)
    grow(here, {"action": "widen", "target": "heads"})
    assert [c.multiplier for c in here.updater._cohorts] == [2.0, 1.0]


def test_a_growth_before_the_first_step_makes_only_new_entries_young() -> None:
    here = trainer()
    fresh = masks(grow(here, WIDEN, multiplier=3.0))
    assert here.updater._cohorts[0].multiplier == 3.0
    assert here.updater._cohorts[0].masks.keys() == fresh.keys()
    assert all(torch.equal(mask, fresh[name]) for name, mask in here.updater._cohorts[0].masks.items())


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
def test_a_grown_training_goes_on_bit_for_bit_from_what_it_saved(optimizer: str) -> None:
    here = trainer(optimizer)
    for step, action, warmup, multiplier in ((2, WIDEN, 6, 2.0), (3, DEEPEN, 5, 0.5), (4, TO_MOE, 0, 3.0)):
        here.run(batch, step)
        grow(here, action, warmup, multiplier)
    here.run(batch, 6)
    saved, averages = here.state(), here.averages
    tensors = {name: tensor.clone() for name, tensor in saved.tensors.items()}
    state = {name: tensor.clone() for name, tensor in here.model.state_dict().items()}
    other = Trainer(assemble(here.model.blueprint, state), here.train, total_steps=40, tokens_per_step=64, seed=0)
    other.restore(saved._replace(tensors=tensors), averages)
    for each in (here, other):
        each.run(batch, 14)
    assert here.trace.losses == other.trace.losses
    for name, tensor in here.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_between_two_jobs_of_a_candidate_what_is_young_keeps_its_rate_and_its_warm_up(
    tmp_path: Path, optimizer: str
) -> None:
    here, path = trainer(optimizer), tmp_path / "c.safetensors"
    for step, action, warmup, multiplier in ((2, WIDEN, 6, 2.0), (3, DEEPEN, 5, 0.5)):
        here.run(batch, step)
        grow(here, action, warmup, multiplier)
    here.run(batch, 5)
    blueprint = here.model.blueprint
    save_moments(path, here.updater.moments(), here.updater.young())
    of, young = load_optimizer(path, blueprint)
    assert load_moments(path, blueprint).keys() == of.keys() == here.updater.moments().keys()
    model = assemble(blueprint, {name: tensor.clone() for name, tensor in here.model.state_dict().items()})
    moments = Moments(of=of, fresh={}, young=young)
    there = Trainer(model, here.train, total_steps=40, tokens_per_step=64, seed=0, moments=moments)
    for mine, theirs in zip(here.updater._cohorts, there.updater._cohorts, strict=True):
        assert (mine.multiplier, mine.warmup, mine.taken, mine.squared) == (
            theirs.multiplier,
            theirs.warmup,
            theirs.taken,
            theirs.squared,
        )
        assert mine.masks.keys() == theirs.masks.keys()
        assert all(torch.equal(mask, theirs.masks[name]) for name, mask in mine.masks.items())
    assert [c.multiplier for c in there.updater._cohorts] == [2.0, 0.5]
    plain = trainer(optimizer)
    plain.run(batch, 2)
    assert plain.updater.young() == []


def saved_parent(folder: Path, name: str, multiplier: float) -> Trainer:
    """One that grew while it trained, on disk as a candidate's checkpoint is."""
    here = trainer()
    here.run(batch, 2)
    grow(here, WIDEN, warmup=9, multiplier=multiplier)
    here.run(batch, 4)
    path = folder / f"{name}.safetensors"
    save_moments(path, here.updater.moments(), here.updater.young())
    save_checkpoint(path, here.model.state_dict(), here.model.blueprint, {})
    return here


def child_of(folder: Path, child: Blueprint, edits: tuple[Edit, ...], parents: dict[str, Blueprint]) -> Trainer:
    candidate = Candidate(id="c", index=1, generation=1, blueprint=child.to_json(), edits=edits)
    refs = tuple(ParentRef(id=p, blueprint=of.to_json(), checkpoint=f"{p}.safetensors") for p, of in parents.items())
    where = {"run_dir": str(folder), "device": "cpu"}
    job = Job(experiment={}, candidate=candidate, parents=refs, ancestors=(), stages=(), seed=0, **where)
    start = splice_job(job, 0, with_moments=True)
    train = Train.model_validate({"warmup": 5, "instability_threshold": 1e9, "clip": 1e9})
    model = assemble(child, start.state)
    return Trainer(model, train, total_steps=40, tokens_per_step=64, seed=0, moments=start.moments)


@pytest.mark.parametrize("operator", ["widen_ffn", "widen_dim", "insert_block", "delete_block"])
def test_what_grew_in_a_parent_keeps_its_rate_and_its_warm_up_in_a_child(tmp_path: Path, operator: str) -> None:
    parent = saved_parent(tmp_path, "p", 2.0)
    before = parent.model.blueprint
    child, edit = make_edit(before, operator, 0)
    there = child_of(tmp_path, child, (edit,), {"p": before})
    (mine,), (theirs, *fresh) = parent.updater._cohorts, there.updater._cohorts
    assert (theirs.multiplier, theirs.warmup, theirs.taken, theirs.squared) == (2.0, 9, 2, True)
    old, kept = ({n: int(x.sum()) for n, x in c.masks.items() if x.any()} for c in (mine, theirs))
    assert sum(kept.values()) == sum(old.values()) or (operator == "delete_block" and kept)
    assert bool(fresh) == (operator != "delete_block")
    for other in fresh:
        assert all(not (mask & theirs.masks[name]).any() for name, mask in other.masks.items() if name in theirs.masks)


def test_what_came_in_with_an_edit_goes_on_warming_up_where_a_job_ended_early(tmp_path: Path) -> None:
    parent = trainer()
    parent.run(batch, 2)
    save_moments(tmp_path / "p.safetensors", parent.updater.moments())
    save_checkpoint(tmp_path / "p.safetensors", parent.model.state_dict(), PARENT, {})
    child, edit = make_edit(PARENT, "widen_ffn", 0)
    first = child_of(tmp_path, child, (edit,), {"p": PARENT})
    first.run(batch, 2)
    save_moments(tmp_path / "c.safetensors", first.updater.moments(), first.updater.young())
    of, young = load_optimizer(tmp_path / "c.safetensors", child)
    moments = Moments(of=of, fresh={}, young=young)
    second = Trainer(first.model, first.train, total_steps=40, tokens_per_step=64, seed=0, moments=moments)
    (mine,), (theirs,) = first.updater._cohorts, second.updater._cohorts
    assert (theirs.warmup, theirs.taken, theirs.factor) == (5, 2, mine.factor)
    assert all(torch.equal(mask, theirs.masks[name]) for name, mask in mine.masks.items())


def test_of_two_parents_what_is_young_keeps_the_rate_that_it_had_in_its_own(tmp_path: Path) -> None:
    first, second = saved_parent(tmp_path, "p", 2.0), saved_parent(tmp_path, "q", 4.0)
    before = first.model.blueprint
    assert second.model.blueprint == before
    edit = Edit(operator="crossover", target="", changes=(), preserves=False, sources={"b0": 0, "b1": 1})
    there = child_of(tmp_path, before, (edit,), {"p": before, "q": before})
    rates = {name: c.multiplier for c in there.updater._cohorts for name, mask in c.masks.items() if mask.any()}
    assert {name[:8]: rate for name, rate in rates.items()} == {"blocks.0": 2.0, "blocks.1": 4.0}


def test_what_is_saved_while_old_entries_are_held_can_be_written(tmp_path: Path) -> None:
    """A file holds no tensor twice, and what is held is often the very mask of what is young."""
    here = trainer()
    here.run(batch, 1)
    done = grow(here, WIDEN, warmup=6)
    here.updater.hold(masks(done), freeze_steps=3, tune_steps=2)
    here.run(batch, 2)
    save_file(here.state().tensors, tmp_path / "saved.safetensors")
    assert any(name.startswith("updater/new/") for name in load_file(tmp_path / "saved.safetensors"))


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
@pytest.mark.parametrize(
    "action",
    [WIDEN, DEEPEN, TO_MOE, {"action": "widen", "target": "dim"}, {"action": "widen", "target": "heads"},
     {"action": "drop_layer"}, {"action": "narrow"}, {"action": "grow_vocabulary", "tokens": 41}],
    ids=lambda a: "-".join(map(str, a.values())),
)  # fmt: skip
def test_every_parameter_is_in_one_group_none_is_stale_and_old_moments_stay(
    optimizer: str, action: dict[str, Any]
) -> None:
    here = trainer(optimizer)
    here.run(batch, 3)
    before = {kind: {name: x.clone() for name, x in of.items()} for kind, of in here.updater.moments().items()}
    done = grow(here, action)
    names = {parameter: name for name, parameter in here.model.named_parameters()}
    assert sorted(names[p] for p in here.updater.parameters) == sorted(names.values())
    after = here.updater.moments()
    assert after.keys() == before.keys()
    # experts are no matrices, which Muon takes alone
    some_go = action["action"] in ("drop_layer", "narrow") or (optimizer == "muon" and action == TO_MOE)
    for kind, of in after.items():
        assert set(of) <= set(names.values())
        olds = [x.flatten() for x in before[kind].values() if x.dim()]
        news = list[Tensor]()
        for name, x in of.items():
            young = done.moments.fresh.get(name, torch.zeros_like(x, dtype=torch.bool))
            if not x.dim():
                assert x == 3 or young.all(), (kind, name)
                continue
            copied = action == DEEPEN and not name.endswith(("o.weight", "down.weight"))
            assert copied or not x[young].any(), (kind, name)
            news.append(x[~young])
        if not olds:
            continue  # counts of steps
        were, are = torch.cat(olds).unique(), torch.cat(news).unique()
        assert torch.isin(are, were).all(), kind
        assert len(are) == len(were) or (some_go and len(are) > len(were) / 3), kind
    here.run(batch, 5)
    known = {name for of in here.updater.moments().values() for name in of}
    assert known == set(names.values())
