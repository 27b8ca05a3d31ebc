"""Small valid blueprints over every registered kind and field, drawn by hypothesis; and generators.

`PARTS` and `MODIFIERS` hold what is known of kinds beyond their fields; a kind that they lack is drawn from its fields.
"""

import functools
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
from hypothesis import strategies as st

from morphogen.blueprint.schema import Block, Blueprint
from morphogen.parts.contract.part import REGISTRY, Modifier, Part
from morphogen.parts.ffn.mlp import MLP, Activation
from morphogen.parts.ffn.moe import MoE
from morphogen.parts.memory.associative_memory import AssocMemory
from morphogen.parts.memory.chunk_memory import ChunkMemory
from morphogen.parts.memory.memory_tokens import MemoryTokens
from morphogen.parts.memory.retro import AGGREGATORS, Retro
from morphogen.parts.mixing.branch_router import BranchRouter
from morphogen.parts.mixing.gated import Gated
from morphogen.parts.mixing.layer_scale import LayerScale
from morphogen.parts.mixing.short_conv import ShortConv
from morphogen.parts.recurrence.recurrence import Recurrence
from morphogen.parts.ssm.mamba import Mamba
from morphogen.parts.ssm.mamba2 import Mamba2
from morphogen.testing.attending import attentions, latent_attentions, linear_attentions
from morphogen.testing.fields import parts_of
from morphogen.testing.rules import growth_rules

VOCAB = 37
#: Kinds that need what a strategy does not have: a plug-in, or the files of another model.
NEEDING = (("extra", "custom"), ("extra", "foreign"))
#: Of a block.
SLOTS = ("attn", "ssm", "ffn", "extra")


def rngs() -> st.SearchStrategy[np.random.Generator]:
    """Seeded numpy generators."""
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


@st.composite
def mlps(draw: st.DrawFn) -> MLP:
    """A feed-forward layer, its size not always a multiple of 8."""
    activation = draw(st.sampled_from(get_args(Activation)))
    return MLP(hidden=draw(st.sampled_from([1, 7, 9, 16, 24, 40])), activation=activation, bias=draw(st.booleans()))


def ssm_fields(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of either kind of state-space layer: odd sizes, chunks shorter and longer than the tests' sequences."""
    return {
        "d_state": draw(st.sampled_from([1, 3, 8, 16])),
        "d_conv": draw(st.integers(1, 5)),
        "expand": draw(st.sampled_from([0.5, 1.0, 1.5, 2.0])),
        "chunk": draw(st.sampled_from([None, 1, 5, 16, 64])),
        "gate": draw(st.booleans()),
    }


@st.composite
def mamba2s(draw: st.DrawFn) -> Mamba2:
    """Mamba-2, its heads not always dividing the inner channels."""
    return Mamba2(**ssm_fields(draw), head_dim=draw(st.sampled_from([1, 3, 4, 8])))


@st.composite
def mambas(draw: st.DrawFn) -> Mamba:
    """Mamba."""
    return Mamba(**ssm_fields(draw), dt_rank=draw(st.sampled_from([None, 1, 3])))


@st.composite
def moes(draw: st.DrawFn, other: st.SearchStrategy[Part] | None = None) -> MoE:
    """A mixture of few experts, so that a short text reaches each: shared ones, twins (of twins), capacities, others.

    other: what an expert of another kind is; a dense layer when None.
    """
    own = draw(st.integers(2, 4))
    others = draw(st.lists(mlps() if other is None else other, max_size=1))
    twins = [draw(st.integers(0, own - 1 + i)) for i in range(draw(st.integers(0, 2)))]
    greedy = draw(st.booleans())
    return MoE(
        hidden=draw(st.sampled_from([1, 7, 8, 16])),
        n_experts=own + len(others) + len(twins),
        k=draw(st.integers(1, 3 if own + len(others) > 2 else 2)),
        activation=draw(st.sampled_from(["swiglu", "geglu", "gelu", "relu", "relu2", "silu"])),
        shared=draw(st.integers(0, 2)),
        shared_hidden=draw(st.sampled_from([None, 5, 8])),
        router_type=draw(st.sampled_from(["softmax", "sigmoid"])),
        router_temperature=draw(st.sampled_from([0.5, 1.0])),
        router_bias=draw(st.sampled_from(["none", "aux_free"])),
        balance=draw(st.sampled_from([0.0, 0.01])),
        z_loss=draw(st.sampled_from([0.0, 1e-3])),
        capacity_factor=draw(st.sampled_from([1.0, 1.5])) if greedy else None,
        drop_policy="greedy" if greedy else "none",
        experts=tuple(others),
        twins=tuple(twins),
    )


def head_sizes() -> st.SearchStrategy[dict[str, int]]:
    """heads and head_dim of a memory, odd ones among them."""
    return st.fixed_dictionaries({"heads": st.integers(1, 3), "head_dim": st.sampled_from([3, 4, 8])})


@st.composite
def retros(draw: st.DrawFn) -> Retro:
    """A memory of chunks, some shorter than what is kept of them."""
    return Retro(
        memory_tokens=draw(st.integers(2, 12)),
        stride=draw(st.integers(2, 9)),
        aggregator=draw(st.sampled_from(AGGREGATORS)),
        gating_weight=draw(st.sampled_from([0.3, 0.5, 0.9])),
        **draw(head_sizes()),
    )


@st.composite
def chunk_memories(draw: st.DrawFn) -> ChunkMemory:
    """A memory of summaries that may overlap; a token sees two or more before the end."""
    stride = draw(st.integers(2, 9))
    return ChunkMemory(stride=stride, chunk_size=stride + draw(st.integers(0, 9)), **draw(head_sizes()))


@st.composite
def memory_tokens(draw: st.DrawFn) -> MemoryTokens:
    """Learned keys and values; one alone has no softmax to learn."""
    return MemoryTokens(tokens=draw(st.integers(2, 9)), **draw(head_sizes()))


@st.composite
def assoc_memories(draw: st.DrawFn) -> AssocMemory:
    """Fast weights with every feature map."""
    return AssocMemory(feature_map=draw(st.sampled_from(["elu", "relu", "dpfp"])), **draw(head_sizes()))


@st.composite
def short_convs(draw: st.DrawFn) -> ShortConv:
    """A short convolution, as wide as the model or not."""
    return ShortConv(kernel=draw(st.integers(1, 5)), width=draw(st.sampled_from([None, 1, 6, 20])))


def targets(slots: tuple[str, ...], least: int = 1) -> st.SearchStrategy[tuple[str, ...]]:
    """Some of the block's slots, in order."""
    return st.lists(st.sampled_from(slots), min_size=least, unique=True).map(lambda drawn: tuple(sorted(drawn)))


@st.composite
def layer_scales(draw: st.DrawFn, slots: tuple[str, ...] = ("attn", "ffn")) -> LayerScale:
    """A learned scale on some of the block's branches."""
    return LayerScale(targets=draw(targets(slots)), init=draw(st.sampled_from([1.0, 0.5])))


@st.composite
def gates(draw: st.DrawFn, slots: tuple[str, ...] = ("attn", "ffn")) -> Gated:
    """A gate on some of the block's branches."""
    weight = draw(st.sampled_from([1.0, 0.5]))
    return Gated(targets=draw(targets(slots)), init_weight=weight, learnable=draw(st.booleans()))


def routers(slots: tuple[str, ...] = ("attn", "ffn")) -> st.SearchStrategy[BranchRouter]:
    """A router over some of the block's branches, which must be two at least."""
    if len(slots) < 2:
        return st.nothing()
    return st.builds(
        BranchRouter,
        targets=targets(slots, least=2),
        router_type=st.sampled_from(["token", "static"]),
        hidden=st.sampled_from([1, 5, 8]),
        temperature=st.sampled_from([0.5, 1.0, 2.0]),
    )


#: (slot, kind) -> strategy, for parts that are branches
PARTS: dict[tuple[str, str], Callable[[], st.SearchStrategy[Any]]] = {
    ("attn", "MHA"): lambda: attentions("MHA"),
    ("attn", "GQA"): lambda: attentions("GQA"),
    ("attn", "MQA"): lambda: attentions("MQA"),
    ("attn", "MLA"): latent_attentions,
    ("attn", "LINEAR"): linear_attentions,
    ("ssm", "mamba2"): mamba2s,
    ("ssm", "mamba"): mambas,
    ("ffn", "dense"): mlps,
    ("ffn", "moe"): moes,
    ("extra", "retro"): retros,
    ("extra", "chunk_memory"): chunk_memories,
    ("extra", "memory_tokens"): memory_tokens,
    ("extra", "assoc_memory"): assoc_memories,
    ("extra", "short_conv"): short_convs,
}

#: (slot, kind) -> strategy of the block's slots, for parts that act on the block's branches
MODIFIERS: dict[tuple[str, str], Callable[[tuple[str, ...]], st.SearchStrategy[Any]]] = {
    ("extra", "layer_scale"): layer_scales,
    ("extra", "gated"): gates,
    ("extra", "branch_router"): routers,
}


def strategy(slot: str, kind: str, slots: tuple[str, ...] = ("attn", "ffn")) -> st.SearchStrategy[Any]:
    """Parts of one kind. slots: of the block's branches, for those that act on them."""
    if (slot, kind) in MODIFIERS:
        return MODIFIERS[slot, kind](slots)
    return PARTS[slot, kind]() if (slot, kind) in PARTS else parts_of(REGISTRY[slot, kind], kind)


def kinds(modifiers: bool = False) -> list[tuple[str, str]]:
    """Every kind that may stand in a block and can be drawn, or every one that acts on a block's branches."""
    ours = [*PARTS, *MODIFIERS]
    others = [key for key in REGISTRY if key not in ours and key[0] in SLOTS and key not in NEEDING]
    return [key for key in [*ours, *others] if issubclass(REGISTRY[key], Modifier) == modifiers]


def experts() -> st.SearchStrategy[Part]:
    """Any branch that may be an expert of a mixture."""
    return _one_of(tuple(key for key in kinds() if key[0] in ("ssm", "extra", "ffn") and key[1] != "moe"))


def parts(slot: str) -> st.SearchStrategy[Part]:
    """Any branch that may stand in `slot`."""
    return _one_of(tuple(key for key in kinds() if key[0] == slot))


@functools.cache
def _one_of(keys: tuple[tuple[str, str], ...]) -> st.SearchStrategy[Part]:
    return st.one_of([strategy(*key) for key in keys])


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    """A block without an id: attention, state space, an extra, feed-forward or several, with up to one modifier."""
    both, three = ("attn", "ffn"), ("attn", "ssm", "ffn")
    slots = draw(st.sampled_from([both, both, ("ssm", "ffn"), three, ("attn",), ("ssm",), ("ffn",), ()]))
    branches = {slot: draw(parts(slot)) for slot in slots}
    memories = draw(st.lists(parts("extra"), min_size=0 if slots else 1, max_size=1))
    modifiers = [strategy(*key, (*slots, "extra") if memories else slots) for key in kinds(modifiers=True)]
    extras = draw(st.permutations([*memories, *draw(st.lists(st.one_of(modifiers), max_size=1))]))
    return Block(**branches, extras=tuple(extras), parallel=draw(st.booleans()))


@st.composite
def recurrences(draw: st.DrawFn, start: int, end: int, id: str = "r0") -> Recurrence:
    """Blocks `[start, end)` looped a few times, with every adapter and curriculum."""
    most = draw(st.integers(2, 4))
    return Recurrence(
        id=id,
        start=start,
        end=end,
        adapter=draw(st.sampled_from(["linear", "gated"])),
        concat_prelude=draw(st.booleans()),
        train_recurrence=draw(st.integers(1, most)),
        max_train_recurrence=most,
        curriculum_fraction=draw(st.sampled_from([0.0, 0.3, 1.0])),
        test_recurrences=draw(st.sampled_from([(), (1, 3), (1, 2, 4)])),
        start_state=draw(st.sampled_from(["zero", "noise"])),
    )


@st.composite
def loops(draw: st.DrawFn, blocks: int) -> tuple[Recurrence, ...]:
    """Up to two recurrences over a model of so many blocks; more often none than not."""
    cuts = sorted(draw(st.lists(st.integers(0, blocks), max_size=4, unique=True)))
    spans = list(zip(cuts[::2], cuts[1::2], strict=False)) if draw(st.integers(0, 2)) else []
    return tuple(draw(recurrences(start, end, f"r{i}")) for i, (start, end) in enumerate(spans))


@st.composite
def blueprints(draw: st.DrawFn, min_blocks: int = 1, max_blocks: int = 4, vocab: int | None = VOCAB) -> Blueprint:
    """Draws a small valid blueprint over all registered kinds, in fp32 a few thousand parameters.

    Args:
        draw: Given by Hypothesis.
        min_blocks: The fewest blocks.
        max_blocks: The most blocks.
        vocab: Tokens of the vocabulary; None leaves it open.
    """
    ids = [f"b{i}" for i in range(draw(st.integers(min_blocks, max_blocks)))]
    return Blueprint(
        name="drawn",
        emb={"dim": draw(st.sampled_from([8, 9, 12, 16, 24, 33, 48])), "vocab": vocab},
        norm=draw(st.sampled_from(["rmsnorm", "layernorm"])),
        blocks=tuple(draw(blocks()).model_copy(update={"id": id}) for id in ids),
        head={"tie_embeddings": draw(st.booleans())},
        recurrences=draw(loops(len(ids))),
        growth=draw(growth_rules(tuple(ids))),
    )


@st.composite
def blueprints_with(draw: st.DrawFn, slot: str, kind: str) -> Blueprint:
    """Draws a blueprint of two blocks, the first of which holds a part of the given kind.

    Args:
        draw: Given by Hypothesis.
        slot: Where the part stands.
        kind: Its kind.
    """
    rest = draw(blueprints(min_blocks=1, max_blocks=1))
    part = draw(strategy(slot, kind))
    if isinstance(part, Modifier):
        block = Block(id="probe", attn=draw(attentions("MHA")), ffn=draw(mlps()), extras=(part,))
    else:
        block = Block(id="probe", extras=(part,)) if slot == "extra" else Block(id="probe", **{slot: part})
    return Blueprint.model_validate({**dict(rest), "blocks": (block, *rest.blocks)})
