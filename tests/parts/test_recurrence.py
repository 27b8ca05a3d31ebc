"""Recurrence: the adapter by its equation, steps in training and after, exact insertion, costs, edits around it.

B batch, T tokens, D model dim
"""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from examples import up_to
from morphogen.blueprint.diff import apply, changes, digest, distance
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.yaml import dumps, loads
from morphogen.cost import TRAIN_FACTOR, costs, train_flops
from morphogen.errors import InputError
from morphogen.inherit.descent import inherit
from morphogen.inherit.plan import plan
from morphogen.network import LanguageModel, assemble, build, cache_bytes, initial_state
from morphogen.ops.naive_recurrence import looped
from morphogen.parts.recurrence.recurrence import Recurrence, follow
from morphogen.parts.recurrence.recurrence_layer import Loop
from morphogen.variation.crossover import crossover
from morphogen.variation.operator import apply_operator, edit
from strategies import VOCAB, blueprints

DIM = 12


def blueprint(*loops: dict[str, Any], blocks: int = 4, norm: str = "rmsnorm", attn: bool = True) -> Blueprint:
    part = {"kind": "GQA", "heads": 3, "head_dim": 4, "kv_groups": 3}
    rest = {"attn": part} if attn else {}
    layers = [{"ffn": {"kind": "dense", "hidden": 20}, **rest} for _ in range(blocks)]
    emb = {"dim": DIM, "vocab": VOCAB}
    return Blueprint.model_validate({"emb": emb, "norm": norm, "blocks": layers, "recurrences": list(loops)})


def stirred(model: Blueprint, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """A state in which no weight is at its special starting value."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (t if name.endswith("eps") else t + 0.1 * torch.randn(t.shape, generator=generator)).to(dtype)
        for name, t in initial_state(model, seed).items()
    }


def ids_of(tokens: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def logits(model: LanguageModel, ids_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids_BT)


def rel(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).square().mean().sqrt() / want.square().mean().sqrt().clamp_min(1e-30))


# ------------------------------------------------------------------------------------------------------- the maths


@pytest.mark.parametrize("tokens", [1, 7, 63, 130])
@pytest.mark.parametrize("adapter", ["linear", "gated"])
@pytest.mark.parametrize("concat", [True, False])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_outputs_and_all_gradients_are_those_of_the_equation(
    tokens: int, adapter: str, concat: bool, dtype: torch.dtype, bound: float
) -> None:
    part = Recurrence(start=0, end=1, adapter=adapter, concat_prelude=concat)
    model = blueprint({"start": 0, "end": 1, "adapter": adapter, "concat_prelude": concat}, blocks=1)
    state = stirred(model, 3, dtype)
    weights = {n.removeprefix("recurrences.0."): t for n, t in state.items() if n.startswith("recurrences")}
    loop = Loop(part, model.context()).to(dtype)
    loop.load_state_dict(weights)
    generator = torch.Generator().manual_seed(tokens)
    prelude_TD, mix_DD, dy_TD = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((tokens, DIM), (DIM, DIM), (tokens, DIM))
    )
    outcomes = []
    for naive in (True, False):
        leaves = {
            n: t.detach().clone().requires_grad_(n != "norm.eps" and n != "prelude_norm.eps")
            for n, t in weights.items()
        }
        e_TD, w_DD = prelude_TD.clone().requires_grad_(), mix_DD.clone().requires_grad_()

        def core(x_TD: torch.Tensor, w_DD: torch.Tensor = w_DD) -> torch.Tensor:
            return x_TD + torch.tanh(x_TD @ w_DD / DIM**0.5)

        if naive:
            out_TD = looped(core, e_TD, torch.zeros_like(e_TD), 3, leaves)
        else:
            out_TD = torch.zeros_like(e_TD)
            for _ in range(3):
                out_TD = core(torch.func.functional_call(loop, leaves, (out_TD[None], e_TD[None]))[0])
        (out_TD * dy_TD).sum().backward()
        grads = {n: t.grad for n, t in leaves.items() if t.requires_grad}
        outcomes.append({"y": out_TD.detach(), "de": e_TD.grad, "dw": w_DD.grad, **grads})
    assert set(outcomes[0]) - {"y", "de", "dw"} == {n for n in weights if not n.endswith("eps")}
    for name, want in outcomes[0].items():
        assert rel(outcomes[1][name], want) <= bound, name


def test_the_model_runs_prelude_core_and_coda_as_described() -> None:
    """Against the same blocks called by hand."""
    model = assemble(looping := blueprint({"start": 1, "end": 3, "max_train_recurrence": 3}), stirred(looping)).eval()
    ids_BT = ids_of(9)
    with torch.no_grad():
        prelude_BTD = model.blocks[0](model.emb(ids_BT))
        state_BTD = torch.zeros_like(prelude_BTD)
        for _ in range(3):
            state_BTD = model.blocks[2](model.blocks[1](model.recurrences[0](state_BTD, prelude_BTD)))
        want_BTD = model.norm(model.blocks[3](state_BTD))
        assert torch.equal(model.hidden(ids_BT), want_BTD)


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("tokens", [1, 7, 63, 130])
def test_bf16_autocast_and_double_give_what_fp32_gives(norm: str, tokens: int) -> None:
    looping = blueprint({"start": 0, "end": 2, "adapter": "gated"}, norm=norm)
    single = assemble(looping, stirred(looping, dtype=torch.float32))
    double = assemble(looping, stirred(looping))
    want_BTV = logits(double, ids_of(tokens))
    assert rel(logits(single, ids_of(tokens)), want_BTV) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        got_BTV = logits(single, ids_of(tokens))
    assert got_BTV.dtype == torch.bfloat16
    assert rel(got_BTV, want_BTV) < 0.05


def test_the_adapter_keeps_bf16_activations_in_bf16() -> None:
    looping = blueprint({"start": 0, "end": 2, "adapter": "gated"})
    loop = assemble(looping, stirred(looping, dtype=torch.float32)).recurrences[0]
    x_BTD = torch.randn(2, 5, DIM, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert loop(x_BTD, x_BTD).dtype == torch.bfloat16


@pytest.mark.parametrize("adapter", ["linear", "gated"])
def test_decoding_in_chunks_gives_the_logits_of_the_whole(adapter: str) -> None:
    looping = blueprint({"start": 1, "end": 2, "adapter": adapter}, {"start": 2, "end": 4, "max_train_recurrence": 2})
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        model, ids_BT, cache = assemble(looping, stirred(looping, dtype=dtype)), ids_of(63), {}
        whole_BTV = logits(model, ids_BT)
        with torch.no_grad():
            parts = [model.extend(ids_BT[:, a:b], cache) for a, b in itertools.pairwise([0, 1, 2, 30, 31, 63])]
        assert float((torch.cat(parts, 1) - whole_BTV).abs().max()) <= bound * float(whole_BTV.abs().max())
        # one cache per step: 1 + 4 + 2 * 2 runs of a block, a key and a value of 4 for every token in each, and "seen"
        attention = {name: state for name, state in cache.items() if name.endswith("attn")}
        assert len(attention) == 9
        assert cache_bytes(attention) == 9 * (2 * 63 * (4 + 4) * dtype.itemsize + 16)


# --------------------------------------------------------------------------------------- steps in training and after


def test_steps_rise_in_equal_shares_of_the_curriculum_and_stay() -> None:
    loop = Recurrence(start=0, end=1, train_recurrence=1, max_train_recurrence=4, curriculum_fraction=0.3)
    seen = [loop.steps(k / 1000) for k in range(1001)]
    assert [seen.count(steps) for steps in (1, 2, 3)] == [100, 100, 100]
    assert seen == sorted(seen)
    assert seen[300:] == [4] * 701
    assert loop.mean_steps() == pytest.approx(np.mean([loop.steps(k / 10**4) for k in range(10**4)]), abs=1e-3)
    flat = Recurrence(start=0, end=1, train_recurrence=3, max_train_recurrence=3, curriculum_fraction=0.5)
    assert {flat.steps(k / 10) for k in range(11)} == {3}
    assert flat.mean_steps() == 3.0


def counted(model: LanguageModel) -> int:
    """How often the loop's adapter runs in one forward pass."""
    calls: list[int] = []
    handle = model.recurrences[0].register_forward_hook(lambda *_: calls.append(1))
    model(ids_of(5))
    handle.remove()
    return len(calls)


def test_progress_sets_the_steps_of_training_and_eval_steps_those_of_evaluation() -> None:
    model = build(blueprint({"start": 1, "end": 2, "curriculum_fraction": 0.5}))
    assert counted(model.train()) == 4
    for progress, steps in ((0.0, 1), (0.2, 2), (0.4, 3), (0.5, 4), (1.0, 4)):
        model.set_progress(progress)
        assert counted(model.train()) == steps
        assert counted(model.eval()) == 4
    model.eval_steps = 7
    assert counted(model.eval()) == 7
    assert counted(model.train()) == 4


def test_noise_is_for_training_only_and_follows_the_seed() -> None:
    noisy = blueprint({"start": 1, "end": 2, "start_state": "noise"})
    model = assemble(noisy, stirred(noisy))
    same = assemble(blueprint({"start": 1, "end": 2}), stirred(noisy))
    assert torch.equal(logits(model, ids_of(9)), logits(same, ids_of(9)))
    outs = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            outs.append(model.train()(ids_of(9)).detach())
    assert torch.equal(outs[0], outs[1])
    assert not torch.allclose(outs[0], outs[2])


@pytest.mark.parametrize("start_state", ["zero", "noise"])
def test_recomputing_activations_gives_the_same_gradients(start_state: str) -> None:
    looping = blueprint({"start": 1, "end": 3, "start_state": start_state})
    grads = []
    for recompute in (False, True):
        model = assemble(looping, stirred(looping)).train()
        model.recompute = recompute
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model(ids_of(9)).square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.allclose(grads[0][name], grads[1][name], rtol=1e-9, atol=1e-12) for name in grads[0])


# -------------------------------------------------------------------------------------------------------- inheritance


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("adapter", ["linear", "gated"])
@pytest.mark.parametrize("concat", [True, False])
def test_a_new_loop_is_exact_at_any_number_of_steps(norm: str, adapter: str, concat: bool) -> None:
    parent = blueprint(norm=norm)
    state = stirred(parent)
    loop = Recurrence(id="new", start=1, end=3, adapter=adapter, concat_prelude=concat)
    child = parent.evolve(recurrences=(loop,))
    inherited, report = inherit(child, [(parent, state)])
    assert report.exact
    assert report.fresh == sum(t.numel() for n, t in inherited.items() if n.startswith("recurrences"))
    model, want_BTV = assemble(child, inherited), logits(assemble(parent, state), ids_of(20))
    for steps in (1, 2, 5):
        model.eval_steps = steps
        assert float((logits(model, ids_of(20)) - want_BTV).abs().max()) <= 1e-12 * float(want_BTV.abs().max())


@pytest.mark.parametrize(
    ("change", "exact"),
    [
        ({"adapter": "gated"}, True),
        ({"concat_prelude": True}, True),
        ({"train_recurrence": 2}, True),
        ({"curriculum_fraction": 0.9}, True),
        ({"start_state": "noise"}, True),
        ({"max_train_recurrence": 5}, False),
        ({"end": 3}, False),
        ({"start": 0}, False),
    ],
)
def test_a_plan_says_which_changes_of_a_loop_are_exact(change: dict[str, Any], exact: bool) -> None:
    parent = blueprint({"start": 1, "end": 2, "concat_prelude": False})
    child = parent.evolve(recurrences=(parent.recurrences[0].evolve(**change),))
    state = stirred(parent)
    inherited, report = inherit(child, [(parent, state)])
    moved = (logits(assemble(child, inherited), ids_of(20)) - logits(assemble(parent, state), ids_of(20))).abs().max()
    assert report.exact == exact
    assert (float(moved) <= 1e-12) == exact
    if exact:  # what it was before is lossy, where tensors were added
        back = plan(parent, [child])
        assert back.exact == (set(initial_state(child, 0)) == set(initial_state(parent, 0)))


@settings(max_examples=up_to(30))
@given(model=blueprints(), seed=st.integers(0, 2**31))
def test_children_by_crossover_keep_the_first_parents_loops_where_its_blocks_are(model: Blueprint, seed: int) -> None:
    rng = np.random.default_rng(seed)
    other = apply_operator(model, "insert_block", rng)
    assert other is not None
    looped_model = apply_operator(model, "add_recurrence", rng)
    first = model if looped_model is None else looped_model[0]
    made = crossover(first, other[0], rng)
    if made is None:
        return
    cores = {r.id: {b.id for b in first.blocks[r.start : r.end]} for r in first.recurrences}
    for loop in made.child.recurrences:
        assert cores[loop.id] & {b.id for b in made.child.blocks[loop.start : loop.end]}
    assert apply(first, made.edits[0].changes) == made.child


# ---------------------------------------------------------------------------------------------- following the blocks


@pytest.mark.parametrize(
    ("after", "spans"),
    [
        ("abcdef", [(1, 3), (4, 6)]),
        ("axbycdezf", [(2, 5), (6, 9)]),  # new blocks within join
        ("acdef", [(1, 2), (3, 5)]),
        ("adef", [(2, 4)]),  # all of the first are gone
        ("bacdef", [(0, 1), (4, 6)]),  # one left it for the front: its own part or the rest, the nearer in length
        ("bcdefa", [(0, 2), (3, 5)]),
        ("xabcyzdefx", [(2, 4), (7, 9)]),
        ("efabcd", [(0, 2), (3, 5)]),
        ("x", []),
    ],
)
def test_a_loop_stays_with_its_blocks(after: str, spans: list[tuple[int, int]]) -> None:
    loops = (Recurrence(id="p", start=1, end=3), Recurrence(id="q", start=4, end=6))
    assert [(r.start, r.end) for r in follow(loops, "abcdef", after)] == spans


@given(data=st.data())
def test_following_always_gives_ranges_that_fit(data: st.DataObject) -> None:
    model = data.draw(blueprints())
    before = [block.id for block in model.blocks]
    after = data.draw(
        st.permutations([*before, "n0", "n1"]).flatmap(lambda ids: st.integers(1, len(ids)).map(lambda n: ids[:n]))
    )
    kept = follow(model.recurrences, before, after)
    cores = {r.id: set(before[r.start : r.end]) for r in model.recurrences}
    for loop in kept:
        assert cores[loop.id] & set(after[loop.start : loop.end])
    assert all(a.end <= b.start for a, b in itertools.pairwise(kept))
    assert all(0 <= loop.start < loop.end <= len(after) for loop in kept)
    if all(not core & set(after) for core in cores.values()):
        assert kept == ()


@pytest.mark.parametrize(
    "name", ["insert_block", "duplicate_block", "duplicate_block_span", "delete_block", "move_block", "swap_blocks"]
)
@settings(max_examples=up_to(20))
@given(seed=st.integers(0, 2**31))
def test_structural_operators_leave_a_valid_model_and_a_true_edit(name: str, seed: int) -> None:
    parent = blueprint({"start": 1, "end": 3}, {"start": 3, "end": 4, "adapter": "gated"}, attn=False)
    blocks = [b.evolve(ffn=b.ffn.evolve(hidden=8 + i)) for i, b in enumerate(parent.blocks) if b.ffn]
    parent = parent.evolve(blocks=tuple(blocks))
    child, made = edit(parent, name, seed)
    assert apply(parent, made.changes) == child
    state = stirred(parent)
    inherited, report = inherit(child, [(parent, state)])
    moved = float(
        (logits(assemble(child, inherited), ids_of(9)) - logits(assemble(parent, state), ids_of(9))).abs().max()
    )
    assert report.exact == made.preserves == (moved <= 1e-12)


# ----------------------------------------------------------------------------------------------------------- operators


def test_operators_add_tune_and_remove() -> None:
    plain = blueprint()
    assert apply_operator(plain, "add_additional_recurrence", np.random.default_rng(0)) is None
    assert apply_operator(plain, "remove_recurrence", np.random.default_rng(0)) is None
    assert apply_operator(plain, "tune_recurrence", np.random.default_rng(0)) is None
    one, _ = edit(plain, "add_recurrence", 5)
    assert apply_operator(one, "add_recurrence", np.random.default_rng(0)) is None
    assert (one.recurrences[0].train_recurrence, len(one.recurrences)) == (1, 1)
    seen: set[str] = set()
    for seed in range(60):
        tuned, _ = edit(one, "tune_recurrence", seed)
        seen |= {change.path.split(".")[-1] for change in changes(one, tuned)}
    assert {"start", "end", "max_train_recurrence"} & seen >= {"max_train_recurrence"}
    narrow = blueprint({"start": 1, "end": 2})
    two, _ = edit(narrow, "add_additional_recurrence", 1)
    assert len(two.recurrences) == 2
    gone, _ = edit(two, "remove_recurrence", 0)
    assert len(gone.recurrences) == 1
    whole = blueprint({"start": 0, "end": 4})
    assert apply_operator(whole, "add_additional_recurrence", np.random.default_rng(0)) is None


def test_every_free_stretch_can_be_looped_and_no_other() -> None:
    start = blueprint({"start": 1, "end": 3}, blocks=5)
    spans = set()
    for seed in range(80):
        child, _ = edit(start, "add_additional_recurrence", seed)
        spans |= {(r.start, r.end) for r in child.recurrences if r.id != "r0"}
    assert spans == {(0, 1), (3, 4), (3, 5), (4, 5)}


# ---------------------------------------------------------------------------------------------- costs, files, mistakes


@pytest.mark.parametrize("adapter", ["linear", "gated"])
@pytest.mark.parametrize("concat", [True, False])
def test_flops_are_those_the_counter_sees_and_caches_those_the_decoder_holds(adapter: str, concat: bool) -> None:
    loop = {"start": 1, "end": 3, "adapter": adapter, "concat_prelude": concat, "max_train_recurrence": 3}
    looping = blueprint(loop, attn=False)
    with torch.device("meta"):
        model = LanguageModel(looping).eval()
        ids_BT = torch.zeros(2, 10, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(ids_BT)
    assert costs(looping, 10)["flops_per_token"] == pytest.approx(counter.get_total_flops() / 20, rel=0.05)
    plain, with_loop = costs(blueprint(), 16), costs(blueprint(loop), 16)
    assert with_loop["kv_bytes_per_token"] == plain["kv_bytes_per_token"] * (2 + 3 * 2) / 4
    assert (plain["recurrences"], with_loop["recurrences"]) == (0.0, 1.0)


def test_training_flops_take_the_mean_number_of_steps() -> None:
    loop = {"start": 1, "end": 2, "train_recurrence": 1, "max_train_recurrence": 3, "curriculum_fraction": 1.0}
    rising, flat = blueprint(loop), blueprint({**loop, "train_recurrence": 3})
    one = costs(flat, 16)["flops_per_token"] - costs(blueprint(), 16)["flops_per_token"] + 0.0
    block = (
        one / 3 + (costs(blueprint(blocks=5), 16)["flops_per_token"] - costs(blueprint(), 16)["flops_per_token"]) / 3
    )
    assert train_flops(flat, 16, 100) == pytest.approx(TRAIN_FACTOR * 100 * costs(flat, 16)["flops_per_token"])
    saved = train_flops(flat, 16, 100) - train_flops(rising, 16, 100)
    assert saved == pytest.approx(TRAIN_FACTOR * 100 * block * 1.5)


def test_yaml_ids_changes_and_digest() -> None:
    model = blueprint({"start": 0, "end": 1}, {"start": 2, "end": 4, "adapter": "gated"})
    assert [loop.id for loop in model.recurrences] == ["r0", "r1"]
    assert loads(dumps(model)).parse(Blueprint) == model
    other = model.evolve(recurrences=(model.recurrences[1].evolve(adapter="linear"),))
    found = changes(model, other)
    assert [change.path for change in found] == ["recurrences.r0", "recurrences.r1.adapter"]
    assert apply(model, found) == other
    assert apply(other, changes(other, model)) == model
    assert len({digest(model), digest(other), digest(blueprint())}) == 3
    measured = model.evolve(
        recurrences=(model.recurrences[0].evolve(test_recurrences=(9,), id="zz"), model.recurrences[1])
    )
    assert digest(measured) == digest(model)
    assert distance(measured, model) == 0.0 < distance(model, other) < distance(model, blueprint())


@pytest.mark.parametrize(
    ("loops", "message"),
    [
        ([{"start": 0, "end": 5}], r"recurrences\[0\]: got end 5, but the model has 4 blocks"),
        ([{"start": 0, "end": 2}, {"start": 1, "end": 3}], r"recurrences\[1\]: starts at 1, before .* ends at 2"),
        ([{"start": 2, "end": 3}, {"start": 0, "end": 1}], r"recurrences\[1\]: starts at 0"),
        ([{"start": 2, "end": 2}], "at least one block"),
        ([{"start": 0, "end": 1, "train_recurrence": 3, "max_train_recurrence": 2}], "at most max_train_recurrence"),
        ([{"start": 0, "end": 1, "id": "a"}, {"start": 1, "end": 2, "id": "a"}], "recurrences share the id a"),
        ([{"start": 0, "end": 1, "max_train_recurrence": 1}], "greater than or equal to 2"),
    ],
)
def test_what_cannot_be_looped_is_refused(loops: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        blueprint(*loops)


def test_a_typo_in_a_file_is_found_with_its_place() -> None:
    text = dumps(blueprint({"start": 0, "end": 1})).replace("end: 1", "end: 1\n  adaptor: gated")
    with pytest.raises(InputError, match=r"recurrences\[0\].adaptor: unknown field, did you mean 'adapter'\?"):
        loads(text).parse(Blueprint)
