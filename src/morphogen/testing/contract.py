"""The part contract (DESIGN section 4) as checks of one blueprint, and as a test over any kinds of part.

B batch, T tokens, V vocabulary, D model dim
"""

import functools
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from morphogen.blueprint.diff import digest
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.blueprint.yaml import dumps, loads
from morphogen.network import Cache, LanguageModel, assemble, build
from morphogen.parts.contract.branch import Branch, Modulation
from morphogen.parts.contract.part import Modifier, Part, kinds_of
from morphogen.parts.contract.tensors import flat
from morphogen.testing.counting import counted_flops, held_bytes, undropped
from morphogen.testing.models import TOKENS, ids_of, known, logits, loss_of, stirred, uncut
from morphogen.testing.strategies import VOCAB, blueprints_with

#: Drawn blueprints for each check of a kind.
EXAMPLES = 8
#: Tokens for the FLOPs: as many choices as any number of places up to 6 divides.
COUNTED = 60
#: Sequences for the FLOPs of a part: so many that what a grouped matmul adds to fill its groups is little.
BATCH = 8
#: Tokens fed one by one when bytes are compared: as many as a memory ever lets wait.
ALONE = 16
#: How far predicted and counted FLOPs of a part may lie apart.
FLOPS = 0.05
#: What to look for where a branch decodes otherwise than it trains.
STATE = "does `state` hold all that `mix_on` needs of earlier tokens, in no narrower a type than they are computed in?"
#: Of Hypothesis's health checks those that the size of a model, and fields that may not go together, would fail.
TOLERATED = (HealthCheck.too_slow, HealthCheck.filter_too_much)
#: How many blueprints with a kind are drawn for one example of its checks, that these do not all try the same.
SPARE = 2


def contract_tests(*kinds: type[Part] | tuple[str, str], examples: int = EXAMPLES) -> Callable[..., None]:
    """Makes a test of every check of the contract, for every kind. Assign it to a name `test_...`.

    Args:
        kinds: Classes of parts, or pairs of slot and kind.
        examples: Drawn blueprints for each check of a kind.

    Returns:
        A test for pytest.
    """
    found: list[tuple[str, str]] = [
        (each.slot, kind) for each in kinds if not isinstance(each, tuple) for kind in kinds_of(each)
    ]
    found += [each for each in kinds if isinstance(each, tuple)]

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    @pytest.mark.parametrize(("slot", "kind"), found)
    @settings(max_examples=examples, deadline=None, suppress_health_check=[*TOLERATED, HealthCheck.nested_given])
    @given(data=st.data())
    def test_contract(slot: str, kind: str, check: Check, data: st.DataObject) -> None:
        check(data.draw(st.sampled_from(_drawn(slot, kind, SPARE * examples))), data)

    test: Callable[..., None] = test_contract
    return test


@functools.cache
def _drawn(slot: str, kind: str, count: int) -> list[Blueprint]:
    """Blueprints with a kind, for all of its checks: to draw one takes longer than most of them."""
    found: list[Blueprint] = []

    @settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=TOLERATED)
    @given(blueprint=blueprints_with(slot, kind))
    def draw(blueprint: Blueprint) -> None:
        found.append(blueprint)

    draw()
    return found


def axes_cover_exactly_the_parameters_and_give_their_shapes(blueprint: Blueprint, data: st.DataObject) -> None:
    """What a part declares of its tensors is what its module has."""
    for gene in blueprint.genes():
        if gene.slot == "stem":
            continue
        with torch.device("meta"):
            module = gene.part.build(gene.ctx)
        specs = gene.part.specs(gene.ctx)
        real = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        declared = {name: spec.shape for name, spec in specs.items()}
        said, made = dict(declared.items() - real.items()), dict(real.items() - declared.items())
        assert real == declared, f"{gene.part.label}: `tensors` and `sizes` say {said}, but the module has {made}"
        sizes = gene.part.sizes(gene.ctx)
        for name, spec in specs.items():
            assert spec.shape == tuple(math.prod(sizes[a] for a in factors) for factors in flat(spec.axes)), name
        trained = {name for name, spec in specs.items() if spec.trained}
        parameters = {name for name, _ in module.named_parameters()}
        assert trained <= parameters, f"{gene.part.label}: {sorted(trained - parameters)} are no parameters"
        for name, spec in specs.items():
            assert set(spec.fresh_zero) <= {axis for factors in flat(spec.axes) for axis in factors}, name
            assert "dim" in spec.axes or not spec.writes, name


def yaml_round_trip(blueprint: Blueprint, data: st.DataObject) -> None:
    """A blueprint written and read is the same."""
    again = loads(dumps(blueprint)).parse(Blueprint)
    assert again == blueprint
    assert digest(again) == digest(blueprint)


def fresh_branches_do_not_drown_the_embedding(blueprint: Blueprint, data: st.DataObject) -> None:
    """What fresh branches add is at most of the size of the embedding."""
    model, seen = build(blueprint, seed=data.draw(st.integers(0, 9))).eval(), list[torch.Tensor]()
    model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(ids_of(1))
        emb_BTD = model.emb(ids_of(1))
    added, size = float((seen[0] - emb_BTD).norm()), float(emb_BTD.norm())
    assert added <= 1.5 * size, (
        f"fresh branches add {added / size:.1f} times the embedding: does the tensor that is added to it say `writes`?"
    )


def output_shape_no_future_and_no_neighbour(blueprint: Blueprint, data: st.DataObject) -> None:
    """A changed token changes nothing before it, and nothing of another sequence."""
    state, base_BTV = known(blueprint, 0, torch.float64)
    ids_BT = ids_of(0)
    assert base_BTV.shape == (2, TOKENS, VOCAB)
    at = data.draw(st.integers(0, TOKENS - 1))
    changed_BT = ids_BT.clone()
    changed_BT[0, at] = (changed_BT[0, at] + 1) % VOCAB
    moved_BT = (logits(blueprint, state, changed_BT) - base_BTV).abs().amax(-1)
    early = float(moved_BT[0, :at].max()) if at else 0.0
    assert early <= 1e-5, f"token {at} moves the logits of those before it by {early:.1g}: a branch sees the future"
    beside = float(moved_BT[1].max())
    assert beside <= 1e-5, f"a token moves the logits of another sequence of the batch by {beside:.1g}"
    assert float(moved_BT[0, at]) > 0.0, f"token {at} does not change its own logits"


def a_prefix_gives_the_same_logits(blueprint: Blueprint, data: st.DataObject) -> None:
    """What follows does not matter."""
    state, whole_BTV = known(blueprint, 0, torch.float64)
    cut = data.draw(st.integers(1, TOKENS))
    whole, prefix = whole_BTV[:, :cut], logits(blueprint, state, ids_of(0)[:, :cut])
    apart = _apart(prefix, whole)
    assert apart <= 1e-10, f"logits of the first {cut} tokens alone are {apart:.1g} from those of the whole"


def decoding_in_chunks_gives_the_logits_of_the_whole(blueprint: Blueprint, data: st.DataObject) -> None:
    """At 63 tokens in cuts of any size, one token at a time among them; 1e-10 in fp64, 1e-4 in fp32.

    Where rounding in fp32 can tip a choice (a selector's, a router's), fp64 alone tells.
    """
    blueprint = uncut(blueprint)
    cuts = data.draw(st.lists(st.integers(1, TOKENS - 1), max_size=6, unique=True).map(sorted))
    if data.draw(st.booleans()):
        cuts = list(range(data.draw(st.integers(1, TOKENS - 1)), TOKENS))
    text = blueprint.model_dump_json()
    chooses = '"selector":"dsa"' in text or '"kind":"moe"' in text
    for dtype, bound in [(torch.float64, 1e-10)] + [(torch.float32, 1e-4)] * (not chooses):
        ids_BT, cache = ids_of(0), Cache()
        state, whole_BTV = known(blueprint, 0, dtype)
        model = assemble(blueprint, state).eval()
        with torch.no_grad():
            chunks = [model.extend(ids_BT[:, a:b], cache) for a, b in itertools.pairwise([0, *cuts, TOKENS])]
        apart = _apart(torch.cat(chunks, 1), whole_BTV)
        assert apart <= bound, f"decoded in {dtype} in cuts at {cuts}, logits are {apart:.1g} from the whole's; {STATE}"


def a_sequence_fed_in_pieces_gives_the_same_output(blueprint: Blueprint, data: st.DataObject) -> None:
    """Every branch alone, as in decoding."""
    blueprint = uncut(blueprint)
    model = assemble(blueprint, known(blueprint, 0, torch.float64).state).eval()
    first, second = data.draw(st.integers(1, TOKENS - 2)), data.draw(st.integers(1, 3))
    x_BTD = torch.randn(2, TOKENS, blueprint.emb.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for name, module in ((name, m) for name, m in model.named_modules() if isinstance(m, Branch)):
        with torch.no_grad():
            state: dict[str, torch.Tensor] = {}
            cuts = [first, min(second, TOKENS - first), TOKENS - first - min(second, TOKENS - first)]
            pieces = [module.extend(piece, state) for piece in torch.split(x_BTD, cuts, 1) if piece.shape[1]]
            whole_BTD = module(x_BTD)
        apart = _apart(torch.cat(pieces, 1), whole_BTD)
        assert apart <= 1e-10, (
            f"{name}, fed in pieces of {cuts} tokens, is {apart:.1g} from what it gives at once; {STATE}"
        )


def every_parameter_gets_a_gradient(blueprint: Blueprint, data: st.DataObject) -> None:
    """None is idle in training, of those that may be trained."""
    blueprint = without_dead_units(blueprint)
    model = assemble(blueprint, stirred(blueprint)).train()
    torch.autograd.backward(loss_of(model, ids_of(3)))
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    dead = [name for name, p in trained if p.grad is None or not bool(p.grad.any())]
    assert not dead, f"no gradient reaches {', '.join(dead)}"


def cost_is_positive_and_grows_with_width(blueprint: Blueprint, data: st.DataObject) -> None:
    """And parameters are counted as the module has them."""
    wider = Blueprint.model_validate({**dict(blueprint), "emb": {**dict(blueprint.emb), "dim": blueprint.emb.dim * 2}})
    assert 0 < parameter_count(blueprint) < parameter_count(wider)
    for small, large in zip(blueprint.genes(), wider.genes(), strict=True):
        narrow, wide = (gene.part.cost(gene.ctx).flops for gene in (small, large))
        assert 0 < narrow < wide, f"{small.part.label}: `cost` says no more FLOPs at twice the width of the model"
    with torch.device("meta"):
        model = LanguageModel(blueprint)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert parameter_count(blueprint) == trained, (
        f"`tensors` declare {parameter_count(blueprint)}, the modules have {trained}"
    )


def flops_are_those_counted(blueprint: Blueprint, data: st.DataObject) -> None:
    """The parts of the first block, each alone: what torch counts of matrix products, with what the part declares
    beside them, within 5 %."""
    blueprint = _first_block(undropped(blueprint))
    model = assemble(blueprint, stirred(blueprint, dtype=torch.float32)).eval()
    x_BTD = torch.randn(BATCH, COUNTED, blueprint.emb.dim, generator=torch.Generator().manual_seed(5))
    for gene in blueprint.genes(COUNTED)[1:]:
        module, cost = model.get_submodule(gene.prefix), gene.part.cost(gene.ctx)
        counted = counted_flops(functools.partial(_run, gene.part, module, x_BTD)) / (BATCH * COUNTED)
        assert counted + cost.elementwise == pytest.approx(cost.flops, rel=FLOPS), (
            f"{gene.part.label}: cost says {cost.flops:,.0f} FLOPs per token, {cost.elementwise:,.0f} of them "
            f"elementwise; counted are {counted:,.0f} that are not"
        )


def caches_hold_the_bytes_that_cost_says(blueprint: Blueprint, data: st.DataObject) -> None:
    """The branches of the first block, each alone, decoding in bf16: never more at any length, and at some that much.

    Fewer may be held where tokens wait to be summarised.
    """
    blueprint = _first_block(blueprint)
    model = assemble(blueprint, stirred(blueprint, dtype=torch.float32)).eval()
    x_BTD = torch.randn(1, TOKENS, blueprint.emb.dim, generator=torch.Generator().manual_seed(5))
    for gene in blueprint.genes()[1:]:
        module, state, spare = model.get_submodule(gene.prefix), dict[str, torch.Tensor](), list[float]()
        if not isinstance(module, Branch):
            continue
        for start, end in itertools.pairwise([0, *range(TOKENS - ALONE, TOKENS + 1)]):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                module.extend(x_BTD[:, start:end], state)
            cost = gene.part.cost(replace(gene.ctx, seq_len=end))
            spare.append(cost.kv_bytes * end + cost.state_bytes - held_bytes(state))
        assert min(spare) == pytest.approx(0.0, abs=1e-3), (
            f"{gene.part.label}: cost says {min(spare):+,.0f} bytes of cache beyond what is held, expected 0 at some "
            "length and never fewer"
        )


def _apart(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference, relative to the largest entry where that is above 1."""
    return float((got - want).abs().max()) / max(1.0, float(want.abs().max()))


def _first_block(blueprint: Blueprint) -> Blueprint:
    """Nothing but the first block, run once."""
    return blueprint.model_copy(update={"blocks": blueprint.blocks[:1], "recurrences": ()})


def _run(part: Part, module: torch.nn.Module, x_BTD: torch.Tensor) -> None:
    """A branch, or a modifier on as many branches as it acts on."""
    if isinstance(module, Modulation):
        seen = module.look(x_BTD)
        for slot in part.acts_on() if isinstance(part, Modifier) else ():
            module.modulate(slot, x_BTD, seen)
    else:
        module(x_BTD)


def without_dead_units(blueprint: Blueprint, split: bool = False) -> Blueprint:
    """The same with no unit that may be dead by nature on the few tokens of a test.

    silu stands for relu and relu2, elu for feature maps that are zero on one side, and every token runs every expert,
    so that none goes without tokens. split: experts may still be split, a token being one twin's.
    """
    data = json.loads(blueprint.model_dump_json())
    for block in data["blocks"]:
        for part in (block["attn"], *block["extras"]):
            if part and part.get("feature_map") in ("relu", "dpfp"):
                part["feature_map"] = "elu"
        ffn = block["ffn"] or {}
        for layer in (ffn, *ffn.get("experts", ())):
            if layer.get("activation") in ("relu", "relu2"):
                layer["activation"] = "silu"
        if ffn and ffn["kind"] == "moe":
            places = ffn["n_experts"] - len(ffn["twins"])
            ffn.update({"k": places} if split else {"n_experts": places, "k": places, "twins": []})
    return Blueprint.model_validate(data)


Check = Callable[[Blueprint, st.DataObject], None]
CHECKS: tuple[Check, ...] = (
    axes_cover_exactly_the_parameters_and_give_their_shapes,
    yaml_round_trip,
    fresh_branches_do_not_drown_the_embedding,
    output_shape_no_future_and_no_neighbour,
    a_prefix_gives_the_same_logits,
    decoding_in_chunks_gives_the_logits_of_the_whole,
    a_sequence_fed_in_pieces_gives_the_same_output,
    every_parameter_gets_a_gradient,
    cost_is_positive_and_grows_with_width,
    flops_are_those_counted,
    caches_hold_the_bytes_that_cost_says,
)
