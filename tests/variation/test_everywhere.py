"""Edits of all blocks at once, and that what is known to be good can be reached from a model of 2019."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from morphogen.blueprint.diff import apply
from morphogen.blueprint.schema import Blueprint
from morphogen.cost import costs
from morphogen.parts.contract.operator import OPERATORS
from morphogen.parts.ffn.mlp import GATED
from morphogen.testing.operators import jump
from morphogen.variation.act import Surroundings
from morphogen.variation.everywhere import AGREED
from morphogen.variation.operator import apply_operator, describe_operators

SEQ_LEN = 32


def gpt2(blocks: int = 3, **block: Any) -> Blueprint:
    """Like GPT-2, but without learned positions: LayerNorm, full heads, gelu."""
    plain = {
        "attn": {"kind": "MHA", "heads": 4, "head_dim": 16, "rope": "none"},
        "ffn": {"kind": "dense", "hidden": 256, "activation": "gelu"},
    }
    model = {"emb": {"dim": 64, "vocab": 64}, "norm": "layernorm", "blocks": [{**plain, **block}] * blocks}
    return Blueprint.model_validate(model)


def ground() -> list[Blueprint]:
    """Models on one of which every operator applies."""
    return [
        gpt2(),
        gpt2(ffn={"kind": "moe", "hidden": 16, "n_experts": 4, "activation": "gelu"}),
        gpt2(attn={"kind": "GQA", "heads": 4, "head_dim": 16, "kv_groups": 2}),
        gpt2(attn=None, ssm={"kind": "mamba2", "head_dim": 16}),
    ]


@pytest.mark.parametrize("name", AGREED)
def test_all_blocks_are_edited_alike_in_one_edit_that_names_them(name: str) -> None:
    rng = np.random.default_rng(1)
    around = Surroundings(seq_len=SEQ_LEN)
    made = [(start, apply_operator(start, f"{name}_everywhere", rng, around)) for start in ground()]
    start, (child, edit) = next((start, found) for start, found in made if found is not None)
    assert [step.operator for step in edit.steps] == [name] * 3
    assert all(block.id in edit.target for block in start.blocks)
    first, *others = (block.model_copy(update={"id": ""}) for block in child.blocks)
    assert all(block == first for block in others)
    assert apply(start, edit.changes) == child
    distance, exact = jump(start, edit, torch.float64)
    assert exact == edit.preserves == all(step.preserves for step in edit.steps)
    assert not exact or distance <= 1e-12


def test_blocks_that_have_it_already_are_left_alone() -> None:
    mixed = gpt2().evolve(blocks=(gpt2().blocks[0].evolve(parallel=True), *gpt2().blocks[1:]))
    assert mixed is not None
    ends = set()
    for seed in range(12):
        made = apply_operator(mixed, "toggle_parallel_everywhere", np.random.default_rng(seed))
        if made is not None:
            ends |= {tuple(block.parallel for block in made[0].blocks)}
    assert ends == {(True, True, True)}  # to make one block serial would be an edit of one


def test_they_are_listed_and_switched_off_with_the_operator_they_work_through() -> None:
    told = {info["name"]: info for info in describe_operators(gpt2())}
    assert told["change_rope_everywhere"]["applies"]
    assert "in all blocks at once" in told["change_rope_everywhere"]["summary"]
    off = Surroundings(weights={**dict.fromkeys(OPERATORS, 1.0), "change_rope": 0.0})
    assert apply_operator(gpt2(), "change_rope_everywhere", np.random.default_rng(0), off) is None


def test_a_gate_comes_at_equal_parameters_and_flops() -> None:
    for hidden in (8, 43, 96, 256, 1000, 2048):
        root = gpt2(1, ffn={"kind": "dense", "hidden": hidden, "activation": "gelu"})
        child, _ = apply_operator(root, "toggle_ffn_gate", np.random.default_rng(0)) or pytest.fail("does not apply")
        before, after = costs(root, SEQ_LEN), costs(child, SEQ_LEN)
        assert abs(after["params"] / before["params"] - 1) <= 0.02
        assert abs(after["flops_per_token"] / before["flops_per_token"] - 1) <= 0.02


#: What is known to help, the operators that lead there from GPT-2, and how it is told.
MOTIFS: dict[str, tuple[tuple[str, ...], Callable[[Blueprint], bool]]] = {
    "RMSNorm": (("change_norm",), lambda b: b.norm == "rmsnorm"),
    "RoPE": (("change_rope_everywhere",), lambda b: all(x.attn.rope == "standard" for x in b.blocks)),
    "SwiGLU at equal size": (
        ("toggle_ffn_gate_everywhere",),
        lambda b: all((x.ffn.activation, x.ffn.hidden) == ("swiglu", 168) for x in b.blocks),
    ),
    "any gate in one block": (("toggle_ffn_gate",), lambda b: any(x.ffn.activation in GATED for x in b.blocks)),
    "GQA": (("make_gqa_everywhere",), lambda b: all(x.attn.kv_groups == 2 for x in b.blocks)),
    "QK-norm": (("toggle_qk_norm_everywhere",), lambda b: all(x.attn.qk_norm == "rms" for x in b.blocks)),
    "parallel branches": (("toggle_parallel_everywhere",), lambda b: all(x.parallel for x in b.blocks)),
    "Mamba hybrid": (("toggle_ssm",), lambda b: sum(x.ssm is not None for x in b.blocks) == 1),
    "Mamba beside attention": (("insert_ssm",), lambda b: any(x.ssm and x.attn for x in b.blocks)),
    "Mamba alone": (("toggle_ssm_everywhere",), lambda b: all(x.ssm and not x.attn for x in b.blocks)),
    "mixture of experts": (("dense_to_moe",), lambda b: any(x.ffn.label == "moe" for x in b.blocks)),
    "mixtures everywhere": (("dense_to_moe_everywhere",), lambda b: all(x.ffn.label == "moe" for x in b.blocks)),
    "short convolution": (("insert_short_conv",), lambda b: any(x.extras for x in b.blocks)),
    "short convolutions": (("insert_short_conv_everywhere",), lambda b: all(x.extras for x in b.blocks)),
    "delta rule": (
        ("toggle_linear_attention",),
        lambda b: any(x.attn.label == "LINEAR" and x.attn.decay == "delta" for x in b.blocks),
    ),
    "delta rule with SiLU": (
        ("toggle_linear_attention", "change_feature_map"),
        lambda b: any(
            x.attn.label == "LINEAR" and (x.attn.decay, x.attn.feature_map) == ("delta", "silu") for x in b.blocks
        ),
    ),
    "sliding windows": (
        ("tune_attn_sparsity_everywhere",),
        lambda b: all(x.attn.sparsity == "sliding" for x in b.blocks),
    ),
    "gated attention": (
        ("tune_attn_gating_everywhere",),
        lambda b: all(x.attn.gating_pos == "output" for x in b.blocks),
    ),
    "latent attention": (("toggle_mla_attention_everywhere",), lambda b: all(x.attn.label == "MLA" for x in b.blocks)),
    "a head of its own": (("untie_head",), lambda b: not b.head.tie_embeddings),
}


@pytest.mark.parametrize("motif", MOTIFS)
def test_known_motifs_are_within_reach_of_gpt2(motif: str) -> None:
    operators, there = MOTIFS[motif]
    for seed in range(60):
        child, rng = gpt2(), np.random.default_rng(seed)
        for name in operators:
            made = apply_operator(child, name, rng, Surroundings(seq_len=128))
            child = child if made is None else made[0]
        if there(child):
            return
    pytest.fail(f"{' + '.join(operators)} did not lead there")
