"""Models of random blueprints over every kind: sound numbers, no leaks, decoding, and costs that are the real ones.

Six blueprints in the fast suite, 1,000 in the slow one. B batch, T tokens, V vocabulary
"""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import seed as seed_of_draws
from hypothesis import strategies as st

from morphogen.blueprint.schema import Blueprint
from morphogen.cost import costs, total
from morphogen.experiment import Train
from morphogen.network import Cache, LanguageModel, assemble, build
from morphogen.parts.attention.kv_policy import Cached
from morphogen.parts.attention.linear_attention import DECAYS
from morphogen.parts.attention.selector import Selective
from morphogen.parts.attention.sparsity import SPARSITIES
from morphogen.parts.contract.part import REGISTRY, Part
from morphogen.parts.ffn.moe import MoE
from morphogen.parts.memory.readers import SlotReader
from morphogen.parts.memory.retro import AGGREGATORS
from morphogen.testing.contract import COUNTED, FLOPS
from morphogen.testing.counting import counted_flops, undropped
from morphogen.testing.models import ids_of, stirred, uncut
from morphogen.training.trainer import Trainer
from strategies import VOCAB, blueprints, experts, moes

#: Tokens: more than one tile of attention and one chunk of every scan.
TOKENS = 72
#: Tokens of a training sequence.
TRAINED = 16
LEAK, AGREE, FP64 = 1e-5, 1e-4, 1e-10
#: Field -> values that must each be drawn.
CHOICES = {
    "sparsity": SPARSITIES,
    "decay": DECAYS,
    "rope": ("none", "standard", "yarn", "partial"),
    "selector": ("none", "dsa"),
    "qk_norm": ("none", "rms", "layer"),
    "gating_pos": ("none", "output", "value"),
    "aggregator": AGGREGATORS,
    "router_type": ("softmax", "sigmoid", "token", "static"),
    "drop_policy": ("none", "greedy"),
    "adapter": ("linear", "gated"),
    "start_state": ("zero", "noise"),
    "activation": ("swiglu", "geglu", "gelu", "relu", "relu2", "silu"),
}


@st.composite
def mixed(draw: st.DrawFn) -> Blueprint:
    """Any blueprint; every mixture's experts may be of any kind."""
    blueprint = draw(blueprints())
    blocks = [
        block.model_copy(update={"ffn": draw(moes(experts()))}) if isinstance(block.ffn, MoE) else block
        for block in blueprint.blocks
    ]
    return blueprint.model_copy(update={"blocks": tuple(blocks)})


def check(blueprint: Blueprint, seed: int) -> str:
    """All that the model of any blueprint must do; how its decoding agreed, as `leaks_nothing_and_decodes` says."""
    trains(blueprint, seed)
    costs_what_is_predicted(blueprint)
    return leaks_nothing_and_decodes(blueprint, np.random.default_rng(seed))


def trains(blueprint: Blueprint, seed: int) -> None:
    """Two steps of the training loop; every loss, gradient norm, parameter and logit is finite afterwards."""
    model = build(blueprint, seed=seed % 1000)
    ids_BT1 = ids_of(seed % 1000, tokens=TRAINED + 1).numpy()
    trainer = Trainer(model, Train(warmup=0, lr=3e-3), total_steps=2, tokens_per_step=2 * TRAINED, seed=0)
    trainer.run(lambda step: np.roll(ids_BT1, step, 1), 2)
    assert trainer.step == 2
    assert np.isfinite(trainer.trace.losses + trainer.trace.grad_norms).all()
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def leaks_nothing_and_decodes(blueprint: Blueprint, rng: np.random.Generator) -> str:
    """No token of the future, no neighbour in the batch; prefixes and chunks give the logits of the whole.

    `fp32`: in fp32 within the bounds. Else in fp64 all but exactly, and in fp32 apart for one of two reasons. `tie`:
    rounding decided between two all but equal choices of a router or selector (equal tokens have equal scores).
    `rounding`: no further apart than 8 times what rounding alone does to the whole's logits.
    """
    at, cuts = int(rng.integers(TOKENS)), sorted({int(cut) for cut in rng.integers(1, TOKENS - 1, 3)})
    ids_BT = ids_of(int(rng.integers(1000)), tokens=TOKENS)
    leak, apart, single_BTV = leaks_and_differences(uncut(blueprint), torch.float32, ids_BT, at, cuts)
    if leak <= LEAK and apart <= AGREE:
        return "fp32"
    exact_leak, exact_apart, double_BTV = leaks_and_differences(uncut(blueprint), torch.float64, ids_BT, at, cuts)
    assert exact_leak <= FP64
    assert exact_apart <= FP64
    if chooses(blueprint):
        return "tie"
    assert leak <= LEAK
    assert apart <= 8 * float((single_BTV - double_BTV).abs().max() / double_BTV.abs().max())
    return "rounding"


def leaks_and_differences(
    blueprint: Blueprint, dtype: torch.dtype, ids_BT: torch.Tensor, at: int, cuts: list[int]
) -> tuple[float, float, torch.Tensor]:
    """How far logits move that a change of token `at` must not move, and how far those of a prefix and of pieces, one
    token alone after each cut, differ from the whole's, relative to the largest; the whole's."""
    model, changed_BT = assemble(blueprint, stirred(blueprint, dtype=dtype)).eval(), ids_BT.clone()
    changed_BT[0, at] = (changed_BT[0, at] + 1) % VOCAB
    bounds = sorted({0, *cuts, *(cut + 1 for cut in cuts), TOKENS})
    cache: Cache = {}
    with torch.no_grad():
        whole_BTV, moved_BTV, prefix_BTV = model(ids_BT), model(changed_BT), model(ids_BT[:, : cuts[0]])
        pieces = [model.extend(ids_BT[:, a:b], cache) for a, b in itertools.pairwise(bounds)]
    still_BT = (moved_BTV - whole_BTV).abs().amax(-1)
    still_BT[0, at:] = 0.0
    apart = max((prefix_BTV - whole_BTV[:, : cuts[0]]).abs().max(), (torch.cat(pieces, 1) - whole_BTV).abs().max())
    return float(still_BT.max()), float(apart / whole_BTV.abs().max()), whole_BTV


def chooses(blueprint: Blueprint) -> bool:
    """Whether something in it takes one of several choices: a router of experts, or a selector of tokens."""
    return any(
        isinstance(gene.part, MoE) or (isinstance(gene.part, Selective) and gene.part.selector != "none")
        for gene in blueprint.genes()
    )


def costs_what_is_predicted(blueprint: Blueprint) -> None:
    """Parameters and cache bytes exactly, FLOPs within 5 %."""
    model = build(blueprint)
    predicted = costs(blueprint, COUNTED)
    assert predicted["params"] == sum(parameter.numel() for parameter in model.parameters())
    even, ids_1T = undropped(blueprint), ids_of(0, COUNTED, batch=1)
    running = build(even).eval()
    counted = counted_flops(lambda: running(ids_1T)) / COUNTED + total(even, COUNTED).elementwise
    assert predicted["flops_per_token"] == pytest.approx(counted, rel=FLOPS)
    caches_what_is_predicted(blueprint, model)


def caches_what_is_predicted(blueprint: Blueprint, model: LanguageModel) -> None:
    """The bytes of a bf16 decoder's cache, less where the next token stands.

    What waits for the next slot of a memory is counted at its largest, and here is what it is.
    """
    cache, predicted = Cache(), costs(blueprint, TOKENS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for piece in ids_of(0, TOKENS, batch=1).split([TOKENS - 9, 1, 8], 1):
            model.eval().extend(piece, cache)
    waiting = sum(
        2.0 * (part.slots.size - 1) * gene.ctx.dim * (gene.loop.steps(1.0) if gene.loop else 1)
        for gene in blueprint.genes(TOKENS)
        for part in (gene.part, *experts_of(gene.part))
        if isinstance(part, SlotReader)
    )
    held = [(name.split(".")[-1], x) for state in cache.values() for name, x in state.items()]
    tails = sum(x.numel() * x.element_size() for name, x in held if name == "tail")
    real = sum(x.numel() * x.element_size() for name, x in held if name not in ("tail", "seen"))
    assert tails <= waiting
    want = predicted["kv_bytes_per_token"] * TOKENS + predicted["state_bytes"] - waiting
    assert real == pytest.approx(want, rel=1e-9, abs=1e-6)


def experts_of(part: Part) -> tuple[Part, ...]:
    """The parts that are experts of a mixture."""
    return part.experts if isinstance(part, MoE) else ()


def drawn(count: int) -> Counter[str]:
    """The kinds and choices that so many blueprints hold."""
    found = Counter[str]()

    @settings(max_examples=count)
    @given(blueprint=mixed())
    def look(blueprint: Blueprint) -> None:
        for gene in blueprint.genes():
            for part in (gene.part, *experts_of(gene.part)):
                fields = {name: value for name, value in dict(part).items() if name in CHOICES}
                found.update([f"{name} {value}" for name, value in fields.items()])
                found.update([f"expert {part.label}"] if part is not gene.part else [])
                found.update([f"{gene.slot} {part.label}"] if part.slot not in ("stem", "recurrence") else [])
        found.update(f"parallel {block.parallel}" for block in blueprint.blocks)
        found.update(f"kv {block.attn.kv_policy.kind}" for block in blueprint.blocks if isinstance(block.attn, Cached))
        found.update(["recurrences"] * len(blueprint.recurrences))

    look()
    return found


def test_every_kind_is_drawn() -> None:
    """Every registered kind is in some of 80 blueprints, but for layers of other models."""
    assert sorted({f"{slot} {kind}" for slot, kind in REGISTRY} - drawn(80).keys()) == ["extra foreign"]


@pytest.mark.slow
def test_every_kind_and_choice_is_drawn() -> None:
    """Every registered kind, and every value of the fields that change the maths, is in some of 400 blueprints."""
    found = drawn(400)
    wanted = {f"{slot} {kind}" for slot, kind in REGISTRY}
    wanted |= {f"{name} {value}" for name, values in CHOICES.items() for value in values}
    wanted |= {"expert dense", "expert mamba", "expert mamba2", "expert custom", "recurrences", "parallel True"}
    wanted |= {"kv full", "kv window", "kv latent"}
    assert sorted(wanted - found.keys()) == ["extra foreign"]


def checked(count: int, numbered: int = 0) -> Counter[str]:
    """So many blueprints checked, others for every number: how their decoding agreed."""
    found = Counter[str]()

    @seed_of_draws(numbered)
    @settings(max_examples=count)
    @given(blueprint=mixed(), seed=st.integers(0, 2**31))
    def run(blueprint: Blueprint, seed: int) -> None:
        found[check(blueprint, seed)] += 1

    run()
    return found


def test_random_blueprints_do_all_that_a_model_must() -> None:
    found = checked(6)
    assert found.total() >= 6
    assert found["fp32"] >= 0.95 * found.total()


@pytest.mark.slow
@pytest.mark.parametrize("quarter", range(4))
def test_a_thousand_random_blueprints_do(quarter: int) -> None:
    found = checked(250, quarter)
    print(dict(found))
    assert found.total() >= 250
    assert found["fp32"] >= 0.97 * found.total()
