"""The part contract (DESIGN section 4): one suite over every registered kind. B batch, T tokens, D model dim."""

import itertools
import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import TOKENS, ids_of, logits, loss_of, stirred, uncut
from morphogen.blueprint.diff import apply, digest
from morphogen.blueprint.schema import Block, Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.blueprint.yaml import dumps, loads
from morphogen.candidate import Edit
from morphogen.inherit.descent import inherit
from morphogen.inherit.plan import plan
from morphogen.network import LanguageModel, assemble, build, initial_state
from morphogen.parts.contract.branch import Branch
from morphogen.parts.contract.operator import OPERATORS
from morphogen.parts.contract.part import REGISTRY, Modifier
from morphogen.parts.contract.tensors import flat
from morphogen.variation.operator import apply_operator
from plugins import installed
from strategies import MODIFIERS, PARTS, VOCAB, blueprints

KINDS = sorted(REGISTRY)
FP32_BOUND, FP64_BOUND = 2e-6, 1e-12
#: Operators that others do not work through.
SIMPLE = [name for name, op in OPERATORS.items() if op.level in ("part", "block", "model")]


def jump(parent: Blueprint, edit: Edit, dtype: torch.dtype, seed: int = 0) -> tuple[float, bool]:
    """max |Δlogit| over max |logit|, and whether the splice, step by step, called itself exact."""
    state = stirred(parent, seed, dtype)
    child = apply(parent, edit.changes)
    child_state, report = inherit(child, [(parent, state)], edits=[edit], seed=seed)
    before, after = logits(parent, state, ids_of(seed)), logits(child, child_state, ids_of(seed))
    return float((before - after).abs().max() / before.abs().max()), report.exact


def rounding(blueprint: Blueprint, seed: int) -> float:
    """How far the same weights' logits in fp32 and fp64 lie apart."""
    state = stirred(blueprint, seed, torch.float32)
    single = logits(blueprint, state, ids_of(seed))
    double = logits(blueprint, {name: tensor.double() for name, tensor in state.items()}, ids_of(seed))
    return float((single - double).abs().max() / double.abs().max())


@pytest.fixture(scope="module", autouse=True)
def _plugin() -> Iterator[None]:
    """A plug-in is installed, so that it can be put in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("morphogen.plugins.entry_points", installed)
        yield


@st.composite
def around(draw: st.DrawFn, slot: str, kind: str) -> Blueprint:
    """A two-block blueprint in which the first block holds a part of the given kind."""
    rest = draw(blueprints(min_blocks=1, max_blocks=1))
    if issubclass(REGISTRY[slot, kind], Modifier):
        modifier = draw(MODIFIERS[slot, kind](("attn", "ffn")))
        attn, ffn = draw(PARTS["attn", "MHA"]()), draw(PARTS["ffn", "dense"]())
        block = Block(id="probe", attn=attn, ffn=ffn, extras=(modifier,))
    else:
        part = draw(PARTS[slot, kind]())
        block = Block(id="probe", extras=(part,)) if slot == "extra" else Block(id="probe", **{slot: part})
    return Blueprint.model_validate({**dict(rest), "blocks": (block, *rest.blocks)})


@pytest.mark.parametrize(("slot", "kind"), KINDS)
@settings(max_examples=12)
@given(data=st.data())
def test_axes_cover_exactly_the_parameters_and_give_their_shapes(slot: str, kind: str, data: st.DataObject) -> None:
    blueprint = data.draw(around(slot, kind))
    for gene in blueprint.genes():
        if gene.slot == "stem":
            continue
        with torch.device("meta"):
            module = gene.part.build(gene.ctx)
        specs = gene.part.specs(gene.ctx)
        real = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        assert real == {name: spec.shape for name, spec in specs.items()}
        sizes = gene.part.sizes(gene.ctx)
        for name, spec in specs.items():
            assert spec.shape == tuple(math.prod(sizes[a] for a in factors) for factors in flat(spec.axes)), name
        trained = {name for name, spec in specs.items() if spec.trained}
        assert trained <= {name for name, _ in module.named_parameters()}
        for name, spec in specs.items():
            assert set(spec.fresh_zero) <= {axis for factors in flat(spec.axes) for axis in factors}, name
            assert "dim" in spec.axes or not spec.writes, name


@pytest.mark.parametrize(("slot", "kind"), KINDS)
@settings(max_examples=8)
@given(data=st.data())
def test_yaml_round_trip(slot: str, kind: str, data: st.DataObject) -> None:
    blueprint = data.draw(around(slot, kind))
    again = loads(dumps(blueprint)).parse(Blueprint)
    assert again == blueprint
    assert digest(again) == digest(blueprint)


@pytest.mark.parametrize(("slot", "kind"), KINDS)
@settings(max_examples=8)
@given(data=st.data())
def test_fresh_branches_do_not_drown_the_embedding(slot: str, kind: str, data: st.DataObject) -> None:
    blueprint = data.draw(around(slot, kind))
    model, seen = build(blueprint, seed=data.draw(st.integers(0, 9))).eval(), list[torch.Tensor]()
    model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(ids_of(1))
        emb_BTD = model.emb(ids_of(1))
    assert float((seen[0] - emb_BTD).norm()) <= 1.5 * float(emb_BTD.norm())


@pytest.mark.parametrize(("slot", "kind"), KINDS)
@settings(max_examples=8)
@given(data=st.data())
def test_output_shape_no_future_and_no_neighbour(slot: str, kind: str, data: st.DataObject) -> None:
    blueprint = data.draw(around(slot, kind))
    state = stirred(blueprint)
    ids_BT = ids_of(1)
    base_BTV = logits(blueprint, state, ids_BT)
    assert base_BTV.shape == (2, TOKENS, VOCAB)
    at = data.draw(st.integers(0, TOKENS - 1))
    changed_BT = ids_BT.clone()
    changed_BT[0, at] = (changed_BT[0, at] + 1) % VOCAB
    moved_BT = (logits(blueprint, state, changed_BT) - base_BTV).abs().amax(-1)
    assert float(moved_BT[0, :at].max()) <= 1e-5 if at else True
    assert float(moved_BT[1].max()) <= 1e-5
    assert float(moved_BT[0, at]) > 0.0


@pytest.mark.parametrize(("slot", "kind"), KINDS)
@settings(max_examples=6)
@given(data=st.data())
def test_a_prefix_gives_the_same_logits(slot: str, kind: str, data: st.DataObject) -> None:
    blueprint = data.draw(around(slot, kind))
    state, ids_BT = stirred(blueprint), ids_of(2)
    cut = data.draw(st.integers(1, TOKENS))
    whole, prefix = logits(blueprint, state, ids_BT)[:, :cut], logits(blueprint, state, ids_BT[:, :cut])
    assert float((whole - prefix).abs().max()) <= 1e-10 * max(1.0, float(whole.abs().max()))


@pytest.mark.parametrize(("slot", "kind"), KINDS)
@settings(max_examples=10)
@given(data=st.data())
def test_decoding_in_chunks_gives_the_logits_of_the_whole(slot: str, kind: str, data: st.DataObject) -> None:
    """At 63 tokens in cuts of any size, one token at a time among them; 1e-10 in fp64, 1e-4 in fp32.

    Where rounding in fp32 can tip a choice (a selector's, a router's), fp64 alone tells.
    """
    blueprint = uncut(data.draw(around(slot, kind)))
    cuts = data.draw(st.lists(st.integers(1, TOKENS - 1), max_size=6, unique=True).map(sorted))
    if data.draw(st.booleans()):
        cuts = list(range(data.draw(st.integers(1, TOKENS - 1)), TOKENS))
    text = blueprint.model_dump_json()
    chooses = '"selector":"dsa"' in text or '"kind":"moe"' in text
    for dtype, bound in [(torch.float64, 1e-10)] + [(torch.float32, 1e-4)] * (not chooses):
        state, ids_BT = stirred(blueprint, dtype=dtype), ids_of(5)
        whole_BTV, cache = logits(blueprint, state, ids_BT), {}
        model = assemble(blueprint, state).eval()
        with torch.no_grad():
            chunks = [model.extend(ids_BT[:, a:b], cache) for a, b in itertools.pairwise([0, *cuts, TOKENS])]
        assert float((torch.cat(chunks, 1) - whole_BTV).abs().max()) <= bound * max(1.0, float(whole_BTV.abs().max()))


@pytest.mark.parametrize(("slot", "kind"), KINDS)
@settings(max_examples=6)
@given(data=st.data())
def test_a_sequence_fed_in_pieces_gives_the_same_output(slot: str, kind: str, data: st.DataObject) -> None:
    blueprint = uncut(data.draw(around(slot, kind)))
    model = assemble(blueprint, stirred(blueprint)).eval()
    first, second = data.draw(st.integers(1, TOKENS - 2)), data.draw(st.integers(1, 3))
    x_BTD = torch.randn(2, TOKENS, blueprint.emb.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for module in (m for m in model.modules() if isinstance(m, Branch)):
        with torch.no_grad():
            state: dict[str, torch.Tensor] = {}
            cuts = [first, min(second, TOKENS - first), TOKENS - first - min(second, TOKENS - first)]
            pieces = [module.extend(piece, state) for piece in torch.split(x_BTD, cuts, 1) if piece.shape[1]]
            whole_BTD = module(x_BTD)
        assert float((torch.cat(pieces, 1) - whole_BTD).abs().max()) <= 1e-10 * max(1.0, float(whole_BTD.abs().max()))


@pytest.mark.parametrize(("slot", "kind"), KINDS)
@settings(max_examples=6)
@given(data=st.data())
def test_every_parameter_gets_a_gradient(slot: str, kind: str, data: st.DataObject) -> None:
    blueprint = without_dead_units(data.draw(around(slot, kind)))
    model = assemble(blueprint, stirred(blueprint)).train()
    loss_of(model, ids_of(3)).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not dead


@pytest.mark.parametrize(("slot", "kind"), KINDS)
@settings(max_examples=8)
@given(data=st.data())
def test_cost_is_positive_and_grows_with_width(slot: str, kind: str, data: st.DataObject) -> None:
    blueprint = data.draw(around(slot, kind))
    wider = Blueprint.model_validate({**dict(blueprint), "emb": {**dict(blueprint.emb), "dim": blueprint.emb.dim * 2}})
    assert 0 < parameter_count(blueprint) < parameter_count(wider)
    for small, large in zip(blueprint.genes(), wider.genes(), strict=True):
        assert 0 < small.part.cost(small.ctx).flops < large.part.cost(large.ctx).flops
    with torch.device("meta"):
        model = LanguageModel(blueprint)
    assert parameter_count(blueprint) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(OPERATORS))
@settings(max_examples=8)
@given(blueprint=blueprints(), seed=st.integers(0, 2**31))
def test_an_operator_changes_something_and_is_exact_as_declared(name: str, blueprint: Blueprint, seed: int) -> None:
    changes_and_is_exact_as_declared(name, blueprint, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OPERATORS))
@settings(max_examples=60)
@given(blueprint=blueprints(), seed=st.integers(0, 2**31))
def test_an_operator_is_exact_as_declared_on_many_blueprints(name: str, blueprint: Blueprint, seed: int) -> None:
    changes_and_is_exact_as_declared(name, blueprint, seed)


def changes_and_is_exact_as_declared(name: str, blueprint: Blueprint, seed: int) -> None:
    made = apply_operator(blueprint, name, np.random.default_rng(seed))
    if made is None:
        return
    child, edit = made
    assert apply(blueprint, edit.changes) == child
    assert (digest(child) != digest(blueprint)) == (edit.target != "train")
    drawn = plan(child, [blueprint])
    assert sorted(t.tensor for t in drawn.tensors) == sorted(initial_state(child, 0))
    distance, called_exact = jump(blueprint, edit, torch.float64, seed=seed % 1000)
    assert called_exact == edit.preserves, (edit.target, drawn.notes)
    if edit.preserves:
        assert distance <= FP64_BOUND
        # Rounding alone passes the bound now and then at 8 channels or 1 hidden unit, in the parent as in the child;
        # fp64 above tells rounding from a jump.
        bound = max(FP32_BOUND, 8 * rounding(blueprint, seed % 1000))
        assert jump(blueprint, edit, torch.float32, seed=seed % 1000)[0] <= bound


@pytest.mark.parametrize("name", sorted(n for n, op in OPERATORS.items() if op.preserves is False))
def test_a_lossy_operator_is_lossy_somewhere(name: str) -> None:
    for seed in range(40):
        blueprint = LOSSY_GROUND[seed % len(LOSSY_GROUND)]
        made = apply_operator(blueprint, name, np.random.default_rng(seed))
        if made is not None and jump(blueprint, made[1], torch.float64, seed)[0] > 1e-6:
            return
    pytest.fail("no draw moved the logits")


@pytest.mark.parametrize("name", sorted(n for n in SIMPLE if OPERATORS[n].preserves is not False))
@settings(max_examples=8)
@given(blueprint=blueprints(), seed=st.integers(0, 2**31))
def test_new_weights_train(name: str, blueprint: Blueprint, seed: int) -> None:
    """After two optimizer steps at least 99 % of the fresh entries have a gradient that is not zero."""
    blueprint = without_dead_units(blueprint)
    made = apply_operator(blueprint, name, np.random.default_rng(seed))
    if made is None or not made[1].preserves:
        return
    child = without_dead_units(made[0], split=True)
    parent_state = stirred(blueprint, 0)
    child_state, report = inherit(child, [(blueprint, parent_state)], seed=seed % 1000)
    if report.fresh == 0:
        return
    model = assemble(child, child_state).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids_BT = ids_of(4, batch=4)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, ids_BT).backward()
        optimizer.step()
    optimizer.zero_grad()
    loss_of(model, ids_BT).backward()
    fresh = fresh_entries(child, blueprint)
    alive = sum(
        int((p.grad[fresh[n]] != 0).sum()) for n, p in model.named_parameters() if n in fresh and p.grad is not None
    )
    total = sum(int(mask.sum()) for n, mask in fresh.items() if n in dict(model.named_parameters()))
    assert alive >= 0.99 * total, f"{alive} of {total}"


def without_dead_units(blueprint: Blueprint, split: bool = False) -> Blueprint:
    """The same with no unit that may be dead by nature on the few tokens of a test.

    silu stands for relu and relu2, and every token runs every expert, so that none goes without tokens. split: experts
    may still be split, a token being one twin's.
    """
    data = json.loads(blueprint.model_dump_json())
    for block in data["blocks"]:
        ffn = block["ffn"] or {}
        for layer in (ffn, *ffn.get("experts", ())):
            if layer.get("activation") in ("relu", "relu2"):
                layer["activation"] = "silu"
        if ffn and ffn["kind"] == "moe":
            places = ffn["n_experts"] - len(ffn["twins"])
            ffn.update({"k": places} if split else {"n_experts": places, "k": places, "twins": []})
    return Blueprint.model_validate(data)


def fresh_entries(child: Blueprint, parent: Blueprint) -> dict[str, torch.Tensor]:
    """Masks of the entries that a splice initialises, found by splicing a parent of NaNs."""
    nans = {name: torch.full_like(t, torch.nan, dtype=torch.float64) for name, t in initial_state(parent, 0).items()}
    state, _ = inherit(child, [(parent, nans)])
    return {name: ~t.isnan() for name, t in state.items() if bool((~t.isnan()).any())}


LOSSY_GROUND = [
    Blueprint.model_validate(
        {
            "emb": {"dim": 24, "vocab": VOCAB},
            "norm": norm,
            "head": {"tie_embeddings": tied},
            "recurrences": [{"start": 1, "end": 2, "adapter": "gated" if tied else "linear", "test_recurrences": [1]}],
            "blocks": [
                {
                    "attn": {
                        "kind": "GQA",
                        "heads": 4,
                        "head_dim": 8,
                        "kv_groups": 2,
                        "sparsity": sparsity,
                        "sw": 16,
                        "block_size": 16,
                        "block_stride": 2,
                        "global_stride": 8,
                        "dilation": 4,
                        "alibi": tied,
                    },
                    "ffn": {"kind": "dense", "hidden": 40},
                    "extras": [{"kind": "layer_scale", "init": 0.7}, {"kind": "gated"}],
                },
                {
                    "attn": {"kind": "MHA", "heads": 4, "head_dim": 16, "gating_pos": "value", "rope": "none"},
                    "ffn": {"kind": "dense", "hidden": 24, "activation": "gelu"},
                    "extras": [
                        {"kind": "retro", "memory_tokens": 4, "stride": 4, "heads": 2, "head_dim": 8},
                        {"kind": "chunk_memory", "chunk_size": 8, "stride": 4, "heads": 2, "head_dim": 8},
                        {"kind": "branch_router", "targets": ["attn", "extra", "ffn"]},
                    ],
                },
                {
                    "ffn": {"kind": "dense", "hidden": 32, "activation": "relu2"},
                    "extras": [
                        {"kind": "assoc_memory", "heads": 2, "head_dim": 8},
                        {"kind": "memory_tokens", "tokens": 8, "heads": 2, "head_dim": 8},
                        {"kind": "short_conv"},
                    ],
                },
                {"attn": {"kind": "LINEAR", "heads": 2, "head_dim": 8, "gate": "swish" if tied else "none"}},
                {"attn": {"kind": "MLA", "heads": 3, "head_dim": 8, "kv_latent_dim": 16, "rope_head_dim": 4}},
                {
                    "attn": {
                        "kind": "MHA",
                        "heads": 2,
                        "head_dim": 8,
                        "selector": "dsa",
                        "selector_topk": 16,
                        "selector_heads": 2,
                        "selector_dim": 16,
                    }
                },
                {"ssm": {"kind": "mamba2", "head_dim": 8}},
                {"ssm": {"kind": "mamba", "dt_rank": 4}},
                {"ffn": {"kind": "moe", "hidden": 24, "n_experts": 5, "k": 2, "shared": 1, "router_bias": "aux_free"}},
                {
                    "ffn": {
                        "kind": "moe",
                        "hidden": 16,
                        "n_experts": 5,
                        "k": 2,
                        "twins": [1],
                        "experts": [{"kind": "dense", "hidden": 8}],
                    }
                },
            ],
        }
    )
    for norm in ("rmsnorm", "layernorm")
    for tied in (True, False)
    for sparsity in ("none", "sliding", "block", "local_global", "dilated", "local_block")
]
