"""Files of the older system as ours: every field is accounted for, what it meant there is kept, and nothing is lost in
silence."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from morphogen.blueprint.yaml import loads
from morphogen.errors import InputError
from morphogen.experiment import Experiment
from morphogen.older.convert import Converted, convert
from morphogen.older.fields import dotted

Plain = dict[str, Any]

ATTN: Plain = {"kind": "MHA", "heads": 4, "head_dim": 16}
DENSE: Plain = {"type": "dense", "hidden": 64}
MOE: Plain = {"type": "moe", "hidden": 64, "n_experts": 4}
SSM: Plain = {"kind": "mamba2", "d_state": 8, "d_conv": 4, "dt_rank": 4, "chunk": 16}
ASSOC: Plain = {"type": "assoc_memory", "heads": 2, "head_dim": 8}


def old(block: Plain | None = None, **sections: Plain) -> Plain:
    """A small experiment of the older system with one block, and other fields in its sections."""
    plain: Plain = {
        "model": {
            "emb": {"dim": 64},
            "blocks": [{"attn": ATTN, "ffn": DENSE} if block is None else block],
            "head": {"vocab": 300},
        },
        "train": {"lr": 1e-3},
        "data": {"tokenizer": "gpt2", "seq_len": 128, "batch_size": 2, "shards": [{"name": "ag_news", "weight": 1.0}]},
        "evolution": {"pareto_objectives": ["ppl_code", "ram"]},
    }
    for name, fields in sections.items():
        plain[name] = {**plain.get(name, {}), **fields}
    return copy.deepcopy(plain)


class Told:
    """A conversion, and what it made."""

    def __init__(self, found: Converted) -> None:
        self.found = found
        self.plain: Plain = loads(found.text).plain()

    def how(self, place: str) -> tuple[str, str]:
        """What became of a field, and what is said of it."""
        (note,) = [note for note in self.found.notes if note.place == place]
        return note.how + (" without effect" if note.idle else ""), note.said

    def at(self, path: str) -> Any:
        """A value of ours; what the file leaves out is its default."""
        value: Any = loads(self.found.text).parse(Experiment).model_dump(mode="json")
        for step in path.replace("[", ".").replace("]", "").split("."):
            value = value[int(step)] if step.isdigit() else value[step]
        return value


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(plain: Plain) -> Told:
        path = tmp_path / "old.yaml"
        path.write_text(json.dumps(plain))
        return Told(convert(str(path)))

    return read


def leaves(value: Any, loc: tuple[int | str, ...] = ()) -> Iterator[tuple[int | str, ...]]:
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for step, item in items:
        yield from leaves(item, (*loc, step))
    if not items:
        yield loc


def silent(plain: Plain, found: Converted) -> list[str]:
    """The values of the older file that no note speaks of, be it of what they stand in."""
    said = {note.place for note in found.notes}
    return [dotted(leaf) for leaf in leaves(plain) if not said & {dotted(leaf[:n]) for n in range(1, len(leaf) + 1)}]


#: Everything that a file of the older system may hold.
RICH = old(
    model={
        "name": "rich",
        "norm": "rmsnorm",
        "emb": {"dim": 64, "vocab": 300, "rope": "standard", "dropout": 0.1, "init_std": 0.02},
        "macro": None,
        "kv_policy": {"cache": "window", "window": 64, "quant": "fp8", "latent_dim": None},
        "recurrences": [
            {
                "start": 0, "end": 2, "adapter": "gated", "adapter_dim": 8, "concat_prelude": True,
                "init_state": "noise", "noise_std": 0.02, "train_recurrence": 1, "max_train_recurrence": 4,
                "curriculum_fraction": 0.5, "test_recurrences": [1, 2, 128],
            },
            {"start": 1, "end": 3, "adapter": "linear"},
            {"start": 3, "end": 4},
            {"start": 4, "end": 99},
        ],
        "blocks": [
            {
                "name": "mixer-one",
                "attn": {
                    **ATTN, "causal": True, "rope": "yarn", "rope_theta": 10000.0, "rope_factor": None, "alibi": True,
                    "linear_feature_map": "elu", "kv_latent_dim": None, "sw": 32, "kv_groups": 1, "dropout": 0.1,
                    "qk_norm_max": 5.0, "gating_pos": "output", "gating_op": "diagonal", "sparsity": "local_global",
                    "block_size": None, "block_stride": None, "global_stride": 16, "dilation": None,
                    "selector": "none", "selector_topk": None, "selector_heads": None, "selector_dim": None,
                    "selector_rope": "none", "selector_detach": False, "stencil": {"kind": "local", "window": 3},
                    "softmax": {"qk_norm": "rms"}, "projection": {"type": "none"}, "value_glu": True,
                },
                "ssm": {**SSM, "gate": 0.15},
                "ffn": {**DENSE, "activation": "gelu", "dropout": 0.2},
                "extras": [
                    {**ASSOC, "feature_map": "elu", "dropout": 0.1, "gating_weight": 0.3},
                    {"type": "gated", "targets": ["attn", "memory"], "init_weight": 0.2, "learnable": True},
                    {"type": "layer_scale", "targets": ["ssm"], "init": 0.1, "learnable": False},
                    {
                        "type": "branch_router", "targets": ["attn", "ffn"], "router_type": "sequence", "hidden": None,
                        "dropout": 0.1, "temperature": 2.0,
                    },
                ],
            },
            {
                "name": "mixer one",
                "attn": {**ATTN, "selector": "dsa", "selector_rope": "partial", "selector_detach": True, "sw": 8},
                "ffn": {
                    **MOE, "k": 2, "capacity_factor": 1.5, "balance": 0.05, "shared": 2, "router_temperature": 0.5,
                    "router_type": "sigmoid", "router_bias_detached": True, "shared_expert": True,
                    "router_aux_weight": 0.1, "router_lb_weight": 0.2, "drop_policy": "greedy",
                    "experts": [
                        {"type": "dense", "hidden": None, "activation": "silu", "hops": 2},
                        {"type": "ssm", "ssm": {**SSM, "gate": 0.5}, "hops": 1},
                        {"type": "custom", "name": "exp-1", "params": {"dim": 32, "strange": 1}},
                    ],
                },
                "extras": [
                    {"type": "custom", "name": "feedback_gate", "params": {"type": "feedback", "strength": 0.1}},
                    {"type": "memory_tokens", "tokens": 8, "heads": 2, "head_dim": 8, "init_std": 0.02, "dropout": 0.0},
                    {"type": "gated", "targets": ["ssm"]},
                ],
            },
            {
                "attn": {
                    **ATTN, "kind": "MLA", "kv_groups": 2, "rope": "standard", "alibi": True, "gating_pos": "value"
                },
                "extras": [
                    {"type": "retro", "memory_tokens": 64, "stride": 16, "aggregator": "mean", "gating_weight": 1.0},
                    {"type": "chunk_memory", "chunk_size": 16, "stride": None, "heads": 2, "head_dim": 8},
                ],
            },
            {"attn": {**ATTN, "kind": "LINEAR", "rope": "standard", "linear_feature_map": "elu", "dropout": 0.1}},
            {"ffn": DENSE, "extras": []},
        ],
        "head": {"vocab": 300, "tie_embeddings": False},
    },
    train={
        "warmup": 10, "clip": 1.0, "bf16": False, "grad_checkpoint": True, "max_tokens": 1000, "weight_decay": 0.1,
        "seed": 3, "router_lb_coeff": 0.01, "router_entropy_coeff": 0.01, "entropy_threshold": 0.3,
        "entropy_patience": 4, "instability_threshold": 9.0, "no_improve_patience": 7, "improvement_tolerance": 0.01,
        "ppl_stop_threshold": 500.0, "init_checkpoint": "runs/x.pt", "passkey_eval_steps": 20,
        "passkey_eval_batches": 2, "passkey_eval_seq_len": 256, "passkey_eval_min_distance": 8, "passkey_eval_lr": 1e-3,
        "passkey_eval_batch_size": 2, "passkey_eval_vocab_limit": 99,
        "optimizer": {"name": "lion", "lr": 1e-4, "betas": None, "eps": 1e-8, "weight_decay": 0.0},
    },
    data={
        "hf_revision": "v1", "workers": 2, "streaming": True, "eval_tokens": 4096, "healing_tokens": 512,
        "shards": [
            {"name": "wikitext", "split": "wikitext-2-raw-v1:train[:1%]", "weight": 2.0, "cache_path": None},
            {"name": "wikitext", "split": "wikitext-2-raw-v1:test", "weight": 1.0, "revision": "main"},
            {"name": "openai/gsm8k", "split": "main:train", "weight": 1.0},
        ],
        "eval_shards": [{"name": "ag_news", "split": "test", "weight": 1.0}],
        "healing_shards": [{"name": "ag_news", "weight": 1.0}],
    },
    evolution={
        "population": 10, "topk_keep": 0.33, "crossover_prob": 0.3, "parent_selection": "map_elites",
        "rung1_tokens": 1000, "rung2_tokens": 5000, "objectives": None, "generations": 40,
        "pareto_objectives": [
            "ppl_code", "ppl_math", "ram", "long_recall", "selector_topk_avg", "passkey_loss", "cheap"
        ],
        "composite_metrics": [
            {"name": "cheap", "op": "ratio", "numerator": "ppl_code", "denominator": "throughput", "epsilon": 1e-3},
            {"name": "both", "op": "product", "numerator": "ppl_code", "denominator": "params"},
            {"name": "sum", "op": "weighted_sum", "terms": {"ppl_code": 1.0, "layers": 0.1}},
            {"name": "lost", "op": "weighted_sum", "terms": {"prior_distance": 1.0}},
        ],
        "rung0_thresholds": {
            "max_params": 1e7, "max_kv_bytes_per_token": 1e6, "min_layers": 2, "min_moe_blocks": 1,
            "min_throughput_proxy": 0.5, "gate_entropy_min": 1.0, "gate_entropy_max": 3.0,
        },
        "promotion_prob": 0.1, "promotion_min_layers": 2, "promotion_min_moe_blocks": 1,
        "promotion_steps_multiplier": 2.0, "promotion_tokens_multiplier": 2.0, "promotion_min_router_entropy": 0.0,
        "promotion_min_recurrence_gain": 0.0, "promotion_max_instability": 4.0, "archive_max_elites": 16,
        "adaptive_mutation": True, "adaptive_mutation_eta": 0.2, "weight_inheritance": "init", "structural_elite_k": 2,
    },
    priors={"tokens_per_param": 4.0, "window_scale": 6.0, "rope_theta_default": 1e4, "compute_penalty_weight": 0.0},
)  # fmt: skip


def test_no_value_of_a_file_that_holds_everything_is_dropped_in_silence(read: Any) -> None:
    told = read(RICH)
    assert silent(RICH, told.found) == []
    assert not told.found.lossless
    places = [note.place for note in told.found.notes]
    assert len(places) == len(set(places)), "a field has two accounts"


def test_what_the_older_system_never_knew_is_told_wherever_it_stands(read: Any) -> None:
    def strange(value: Any) -> Any:
        if isinstance(value, list):
            return [strange(item) for item in value]
        return {**{k: strange(v) for k, v in value.items()}, "zzz": {"a": [1]}} if isinstance(value, dict) else value

    plain = strange(RICH)
    plain["model"]["kv_policy"] = {"cache": "full"}
    plain["evolution"]["composite_metrics"][2]["terms"].pop("zzz")
    plain["evolution"]["composite_metrics"][3]["terms"].pop("zzz")
    assert silent(plain, read(plain).found) == []


def test_a_plain_file_loses_nothing_but_the_form_of_its_pool(read: Any) -> None:
    told = read(old(model={"norm": "layernorm", "emb": {"dim": 64, "rope": None}}))
    assert told.found.of("dropped") == []
    assert [note.place for note in told.found.of("approximated")] == ["evolution without topk_keep"]


ABSENT = object()
#: A block's field of the older system, what became of it, and what stands in its place.
BLOCKS: dict[str, tuple[Plain, str, str, dict[str, Any]]] = {
    "yarn without a factor is plain RoPE": (
        {"attn": {**ATTN, "rope": "yarn"}}, "attn.rope", "translated", {"attn.rope": "standard"},
    ),
    "no rope is none": ({"attn": {**ATTN, "rope": None}}, "attn.rope", "translated", {"attn.rope": "none"}),
    "linear scaling": (
        {"attn": {**ATTN, "rope": "linear", "rope_factor": 4.0}}, "attn.rope_factor", "translated",
        {"attn.rope": "standard", "attn.rope_factor": 4.0, "attn.rope_theta": 10000.0},
    ),
    "ntk scaling": (
        {"attn": {**ATTN, "rope": "ntk", "rope_factor": 4.0}}, "attn.rope_factor", "translated",
        {"attn.rope": "standard", "attn.rope_factor": None, "attn.rope_theta": pytest.approx(1e4 * 4.0 ** (16 / 14))},
    ),
    "yarn with a factor": (
        {"attn": {**ATTN, "rope": "yarn", "rope_factor": 4.0}}, "attn.rope_factor", "translated",
        {"attn.rope_factor": 4.0, "attn.rope_theta": pytest.approx(1e4 * 4.0 ** (16 / 14))},
    ),
    "a window alone slides": (
        {"attn": {**ATTN, "sw": 32}}, "attn.sw", "translated",
        {"attn.sparsity": "sliding", "attn.sliding_window": 32},
    ),
    "a sliding window is by default as long as a head is wide": (
        {"attn": {**ATTN, "sparsity": "sliding"}}, "attn.sparsity", "translated", {"attn.sliding_window": 16},
    ),
    "global tokens": (
        {"attn": {**ATTN, "sparsity": "local_global", "sliding_window": 8}}, "attn.sparsity", "translated",
        {"attn.global_stride": 128, "attn.sliding_window": 8},
    ),
    "blocks that touch": (
        {"attn": {**ATTN, "sparsity": "block", "block_size": 32, "block_stride": 32}}, "attn.block_stride",
        "translated", {"attn.block_size": 32, "attn.block_stride": 0},
    ),
    "stations in tokens become blocks": (
        {"attn": {**ATTN, "sparsity": "local_block", "sw": 16, "block_size": 16, "block_stride": 64}},
        "attn.block_stride", "approximated", {"attn.block_stride": 4},
    ),
    "a block without a size sees all": (
        {"attn": {**ATTN, "sparsity": "block"}}, "attn.sparsity", "translated", {"attn.sparsity": "none"},
    ),
    "a quarter of the heads are a group": (
        {"attn": {**ATTN, "kind": "GQA", "heads": 8}}, "attn.kind", "translated", {"attn.kv_groups": 2},
    ),
    "MHA that shares is GQA": (
        {"attn": {**ATTN, "kv_groups": 2}}, "attn.kind", "translated", {"attn.kind": "GQA", "attn.kv_groups": 2},
    ),
    "groups that do not divide": (
        {"attn": {**ATTN, "kind": "GQA", "kv_groups": 3}}, "attn.kv_groups", "approximated", {"attn.kv_groups": 2},
    ),
    "a clamp of the input": (
        {"attn": {**ATTN, "qk_norm_max": 4.0}}, "attn.qk_norm_max", "approximated", {"attn.qk_norm": "rms"},
    ),
    "a selector with a pattern": (
        {"attn": {**ATTN, "selector": "dsa", "sparsity": "sliding", "sw": 8}}, "attn.sparsity", "dropped",
        {"attn.sparsity": "none", "attn.selector": "dsa", "attn.selector_heads": 1, "attn.selector_dim": 16},
    ),
    "an old switch for gates": (
        {"attn": {**ATTN, "gated": True}}, "attn.gated", "translated", {"attn.gating_pos": "output"},
    ),
    "linear attention is not rotated": (
        {"attn": {**ATTN, "kind": "LINEAR", "rope": "standard"}}, "attn.rope", "dropped", {"attn.kind": "LINEAR"},
    ),
    "linear attention with a window was softmax attention": (
        {"attn": {**ATTN, "kind": "LINEAR", "sw": 8}}, "attn.kind", "translated",
        {"attn.kind": "GQA", "attn.sparsity": "sliding"},
    ),
    "whose heads share no keys": (
        {"attn": {**ATTN, "kind": "LINEAR", "heads": 8, "alibi": True}}, "attn.kind", "translated",
        {"attn.kind": "GQA", "attn.kv_groups": 1},
    ),
    "a latent without ALiBi": (
        {"attn": {**ATTN, "kind": "MLA", "alibi": "no"}}, "attn.alibi", "dropped without effect", {},
    ),
    "a latent for grouped heads": (
        {"attn": {**ATTN, "kind": "MLA", "kv_groups": 2}}, "attn.kv_groups", "approximated",
        {"attn.kv_latent_dim": 32, "attn.rope_head_dim": 0},
    ),
    "a latent with rotation": (
        {"attn": {**ATTN, "kind": "MLA", "rope": "standard", "kv_latent_dim": 24}}, "attn.rope", "approximated",
        {"attn.rope_head_dim": 8, "attn.kv_latent_dim": 24},
    ),
    "a latent with ALiBi": ({"attn": {**ATTN, "kind": "MLA", "alibi": True}}, "attn.alibi", "dropped", {}),
    "causal": ({"attn": {**ATTN, "causal": True}}, "attn.causal", "dropped without effect", {}),
    "unwired": (
        {"attn": {**ATTN, "stencil": {"kind": "local"}}}, "attn.stencil", "dropped without effect",
        {"attn.sparsity": "none"},
    ),
    "a label": ({"name": "a b-1", "attn": ATTN}, "name", "translated", {"id": "a_b_1"}),
    "dropout of zero": ({"ffn": {**DENSE, "dropout": 0.0}}, "ffn.dropout", "dropped without effect", {}),
    "dropout": ({"ffn": {**DENSE, "dropout": 0.1}}, "ffn.dropout", "dropped", {}),
    "a mixture's default balance": ({"ffn": MOE}, "ffn.type", "translated", {"ffn.balance": 0.05, "ffn.shared": 0}),
    "a balance of the layer's own": (
        {"ffn": {**MOE, "router_lb_weight": 0.2, "balance": 0.1}}, "ffn.router_lb_weight", "translated",
        {"ffn.balance": 0.2},
    ),
    "one shared expert": (
        {"ffn": {**MOE, "shared_expert": True}}, "ffn.shared_expert", "translated", {"ffn.shared": 1},
    ),
    "two shared experts were one": ({"ffn": {**MOE, "shared": 2}}, "ffn.shared", "translated", {"ffn.shared": 1}),
    "more choices than experts": ({"ffn": {**MOE, "k": 9}}, "ffn.k", "approximated", {"ffn.k": 4}),
    "a capacity of nothing": (
        {"ffn": {**MOE, "capacity_factor": 0.0}}, "ffn.capacity_factor", "approximated", {"ffn.capacity_factor": 1.2},
    ),
    "a temperature of nothing": (
        {"ffn": {**MOE, "router_temperature": 0}}, "ffn.router_temperature", "approximated",
        {"ffn.router_temperature": 1.0},
    ),
    "more experts than there are": (
        {"ffn": {**MOE, "n_experts": 2, "experts": [{"type": "dense"}] * 2 + [{"type": "ssm", "ssm": SSM}]}},
        "ffn.experts[2].ssm", "dropped without effect", {"ffn.experts": []},
    ),
    "an expert's factor by default": (
        {"ffn": {**MOE, "experts": [{"type": "ssm", "ssm": SSM}, {"type": "dense"}]}},
        "ffn.experts[0].ssm without gate", "dropped", {},
    ),
    "an expert's factor": (
        {"ffn": {**MOE, "experts": [{"type": "ssm", "ssm": {**SSM, "gate": 0.5}}, {"type": "dense"}]}},
        "ffn.experts[0].ssm.gate", "dropped", {},
    ),
    "an expert's factor of 1": (
        {"ffn": {**MOE, "experts": [{"type": "ssm", "ssm": {**SSM, "gate": 1.0}}, {"type": "dense"}]}},
        "ffn.experts[0].ssm.gate", "dropped without effect", {},
    ),
    "a bias that was not trained": (
        {"ffn": {**MOE, "router_bias_detached": True}}, "ffn.router_bias_detached", "dropped", {},
    ),
    "a router's entropy": ({"ffn": {**MOE, "router_aux_weight": 0.1}}, "ffn.router_aux_weight", "dropped", {}),
    "experts of another kind": (
        {"ffn": {**MOE, "experts": [{"type": "dense", "hidden": 32}, {"type": "ssm", "ssm": SSM}]}},
        "ffn.experts[0].hidden", "translated",
        {"ffn.hidden": 32, "ffn.experts[0].kind": "mamba2", "ffn.experts[2].kind": "mamba2"},
    ),
    "a constant factor on a state-space layer": (
        {"ssm": {**SSM, "gate": 0.15}}, "ssm.gate", "translated",
        {"extras[0].targets": ["ssm"], "extras[0].init_weight": 0.15, "extras[0].learnable": False},
    ),
    "and the one that it had by default": ({"ssm": SSM}, "ssm.kind", "translated", {"extras[0].init_weight": 0.1}),
    "a factor of 1": ({"ssm": {**SSM, "gate": 1.0}}, "ssm.gate", "translated", {"extras": []}),
    "another name of a state-space layer": (
        {"ssm": {**SSM, "kind": "ssm", "gate": 1.0}}, "ssm.kind", "approximated", {"ssm.kind": "mamba2"},
    ),
    "an unregistered module": (
        {"attn": ATTN, "extras": [{"type": "custom", "name": "exp-7", "params": {"dim": 24}}]}, "extras[0].name",
        "translated", {"extras[0].kind": "linear_silu", "extras[0].hidden": 24},
    ),
    "feedback that nobody registered": (
        {"attn": ATTN, "extras": [{"type": "custom", "name": "feedback_gate", "params": {"strength": 0.1}}]},
        "extras[0].params.strength", "dropped without effect", {"extras[0].hidden": 64},
    ),
    "a target that the block has not": (
        {"attn": ATTN, "extras": [{"type": "gated", "targets": ["attn", "ssm"], "init_weight": 0.3}]},
        "extras[0].targets", "translated", {"extras[0].targets": ["attn"]},
    ),
    "none of the targets": (
        {"attn": ATTN, "extras": [{"type": "gated", "targets": ["ssm"]}]}, "extras[0].type", "dropped", {"extras": []},
    ),
    "memory as a target": (
        {"attn": ATTN, "extras": [{**ASSOC, "gating_weight": 1.0}, {"type": "gated", "targets": ["memory"]}]},
        "extras[1].targets", "translated", {"extras[1].targets": ["extra"], "extras[1].init_weight": 0.1},
    ),
    "a memory's factor": (
        {"attn": ATTN, "extras": [{**ASSOC, "gating_weight": 0.3}]}, "extras[0].gating_weight", "translated",
        {"extras[1].targets": ["extra"], "extras[1].init_weight": 0.3, "extras[1].learnable": False},
    ),
    "a memory's factor among several": (
        {"attn": ATTN, "extras": [{**ASSOC, "gating_weight": 0.3}, {"type": "retro"}]}, "extras[0].gating_weight",
        "dropped", {"extras[1].kind": "retro", "extras[1].memory_tokens": 1024},
    ),
    "fractions of a memory": (
        {"attn": ATTN, "extras": [{"type": "retro", "memory_tokens": 64.5, "stride": 8}]}, "extras[0].memory_tokens",
        "translated", {"extras[0].memory_tokens": 64, "extras[0].stride": 8},
    ),
    "a memory's dropout": ({"attn": ATTN, "extras": [{**ASSOC, "dropout": 0.1}]}, "extras[0].dropout", "dropped", {}),
    "a scale that starts small": (
        {"attn": ATTN, "extras": [{"type": "layer_scale", "targets": ["attn"]}]}, "extras[0].targets", "translated",
        {"extras[0].init": 1e-5},
    ),
    "a scale that learns": (
        {"attn": ATTN, "extras": [{"type": "layer_scale", "targets": ["attn"], "learnable": True}]},
        "extras[0].learnable", "dropped without effect", {},
    ),
    "a router that sees the future": (
        {"attn": ATTN, "ffn": DENSE, "extras": [{"type": "branch_router", "router_type": "sequence", "hidden": None}]},
        "extras[0].router_type", "approximated",
        {"extras[0].router_type": "token", "extras[0].targets": ["attn", "ffn"]},
    ),
    "a linear router": (
        {"attn": ATTN, "ffn": DENSE, "extras": [{"type": "branch_router", "hidden": None}]}, "extras[0].hidden",
        "approximated", {"extras[0].hidden": 16},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BLOCKS)
def test_a_field_of_a_block_keeps_its_older_meaning(what: str, read: Any) -> None:
    block, field, how, wanted = BLOCKS[what]
    told = read(old(block))
    assert told.how(f"model.blocks[0].{field}")[0] == how
    for path, value in wanted.items():
        assert told.at(f"model.blocks[0].{path}") == value


#: The same of other sections.
SECTIONS: dict[str, tuple[Plain, str, str, dict[str, Any]]] = {
    "the head's vocabulary": ({}, "model.head.vocab", "translated", {"model.emb.vocab": 300}),
    "positions of the embedding": (
        {"model": {"emb": {"dim": 64, "rope": "yarn"}}}, "model.emb.rope", "dropped without effect", {},
    ),
    "no norm is layernorm": ({}, "model without norm", "translated", {"model.norm": "layernorm"}),
    "a macro": ({"model": {"macro": {"x": 1}}}, "model.macro", "dropped", {}),
    "a cache of the whole model": (
        {"model": {"kv_policy": {"cache": "window", "window": 64}}}, "model.kv_policy.window", "translated",
        {"model.blocks[0].attn.kv_policy.kind": "window", "model.blocks[0].attn.kv_policy.window": 64},
    ),
    "a cache that nobody has": (
        {"model": {"kv_policy": {"cache": "window", "window": 64}, "blocks": [{"ffn": DENSE}]}},
        "model.kv_policy.window", "dropped without effect", {},
    ),
    "embeddings that are all dropped": (
        {"model": {"emb": {"dim": 64, "dropout": 1.0}}}, "model.emb.dropout", "dropped", {"model.emb.dropout": 0.0},
    ),
    "a cache of half bytes": (
        {"model": {"kv_policy": {"quant": "nf4"}}}, "model.kv_policy.quant", "approximated",
        {"model.blocks[0].attn.kv_policy.quant": "int8"},
    ),
    "checkpoints of gradients": (
        {"train": {"grad_checkpoint": False}}, "train.grad_checkpoint", "translated", {"train.grad_ckpt": False},
    ),
    "gradients of nothing": (
        {"train": {"instability_threshold": 0.0}}, "train.instability_threshold", "dropped",
        {"train.instability_threshold": 5.0},
    ),
    "nothing to measure on": ({"data": {"eval_tokens": 0}}, "data.eval_tokens", "dropped without effect", {}),
    "no healing": (
        {"data": {"healing_tokens": 0, "healing_shards": [{"name": "ag_news", "weight": 1}]}}, "data.healing_tokens",
        "dropped without effect", {"data.healing_tokens": 0},
    ),
    "a shard of no weight": (
        {"data": {"shards": [{"name": "ag_news", "weight": 0}]}}, "data.shards[0].weight", "approximated",
        {"data.shards[0].weight": 1.0},
    ),
    "no elites of structure": (
        {"evolution": {"structural_elite_k": 0}}, "evolution.structural_elite_k", "translated",
        {"evolution.structural_elite_k": 0},
    ),
    "the older defaults": (
        {}, "train without warmup", "translated",
        {"train.warmup": 2000, "train.bf16": True, "train.weight_decay": 0.01, "train.optimizer.betas": [0.9, 0.999]},
    ),
    "entropy of routers": (
        {"train": {"entropy_threshold": 0.5}}, "train.entropy_threshold", "dropped", {"train.entropy_threshold": 0.0},
    ),
    "patience with it": ({"train": {"entropy_patience": 2}}, "train.entropy_patience", "dropped", {}),
    "improvement in nats": (
        {"train": {"improvement_tolerance": 0.01}}, "train.improvement_tolerance", "approximated",
        {"train.improvement_tolerance": pytest.approx(0.01 / 5.704, rel=1e-2)},
    ),
    "a coefficient in place of a balance": (
        {"model": {"blocks": [{"ffn": MOE}]}, "train": {"router_lb_coeff": 0.02}}, "train.router_lb_coeff",
        "approximated", {"train.router_lb_coeff": 0.02},
    ),
    "pickled weights": ({"train": {"init_checkpoint": "x.pt"}}, "train.init_checkpoint", "dropped", {}),
    "no gate of perplexity": (
        {"train": {"ppl_stop_threshold": None}}, "train.ppl_stop_threshold", "translated",
        {"train.ppl_stop_threshold": None},
    ),
    "a copy task that nobody asked": (
        {"train": {"passkey_eval_batches": 3}}, "train.passkey_eval_batches", "dropped without effect", {},
    ),
    "a copy task": ({"train": {"passkey_eval_steps": 3}}, "train.passkey_eval_steps", "approximated", {}),
    "its batches": (
        {"train": {"passkey_eval_steps": 3, "passkey_eval_batches": 3}}, "train.passkey_eval_batches", "dropped", {},
    ),
    "a configuration in the split": (
        {"data": {"shards": [{"name": "wikitext", "split": "wikitext-2-raw-v1:test", "weight": 1}]}},
        "data.shards[0].split", "translated",
        {"data.shards[0].source": "hf:wikitext:wikitext-2-raw-v1", "data.shards[0].split": "test"},
    ),
    "a slice is no configuration": (
        {"data": {"shards": [{"name": "c4", "split": "train[:1%]", "weight": 1}]}}, "data.shards[0].split",
        "translated", {"data.shards[0].source": "hf:c4", "data.shards[0].split": "train[:1%]"},
    ),
    "questions": (
        {"data": {"shards": [{"name": "openai/gsm8k", "split": "main:train", "weight": 1}]}},
        "data.shards[0] without text_field", "translated", {"data.shards[0].text_field": "question"},
    ),
    "code": (
        {"data": {"shards": [{"name": "codeparrot/github-code-clean", "weight": 1}]}},
        "data.shards[0] without text_field", "translated", {"data.shards[0].text_field": "code"},
    ),
    "a revision for all": (
        {"data": {"hf_revision": "abc"}}, "data.hf_revision", "translated", {"data.shards[0].revision": "abc"},
    ),
    "the revision main": (
        {"data": {"hf_revision": "main"}}, "data.hf_revision", "dropped without effect",
        {"data.shards[0].revision": None},
    ),
    "workers": ({"data": {"workers": 4}}, "data.workers", "dropped without effect", {}),
    "streaming": ({"data": {"streaming": True}}, "data.streaming", "dropped without effect", {}),
    "a share of the pool": (
        {"evolution": {"population": 10, "topk_keep": 1.0}}, "evolution.topk_keep", "approximated",
        {"evolution.topk_keep": 10, "evolution.population": 10},
    ),
    "children are generations": (
        {"evolution": {"population": 10, "generations": 40}}, "evolution.generations", "approximated",
        {"evolution.generations": 4},
    ),
    "rung 2 in all": (
        {"evolution": {"rung1_tokens": 1000, "rung2_tokens": 5000}}, "evolution.rung2_tokens", "translated",
        {"evolution.rung1_tokens": 1000, "evolution.rung2_tokens": 4000},
    ),
    "a list of objectives": (
        {"evolution": {"pareto_objectives": ["ppl_code", "ram", "throughput"]}}, "evolution.pareto_objectives",
        "translated", {"evolution.objectives": {"ppl": "min", "params": "min", "throughput": "max"}},
    ),
    "a mapping of objectives": (
        {"evolution": {"objectives": {"ppl_code": "min", "ppl_math": "min", "layers": "max"}}},
        "evolution.objectives.ppl_math", "dropped", {"evolution.objectives": {"ppl": "min", "layers": "max"}},
    ),
    "recall is measured": (
        {"evolution": {"pareto_objectives": ["ppl_code", "long_recall", "passkey_loss"]}},
        "evolution without the probe mqar",
        "approximated", {"evolution.objectives": {"ppl": "min", "long_recall": "max", "nll_passkey": "min"}},
    ),
    "a copy task at a length of its own": (
        {"train": {"passkey_eval_steps": 3, "passkey_eval_seq_len": 1024}}, "train.passkey_eval_seq_len",
        "translated", {"data.shards[1].source": "probe:passkey", "data.shards[1].lengths": [1024]},
    ),
    "a copy task in short sequences": (
        {"train": {"passkey_eval_steps": 3, "passkey_eval_seq_len": 8}}, "train.passkey_eval_seq_len",
        "translated", {"data.shards[1].source": "probe:passkey:3", "data.shards[1].lengths": [8]},
    ),
    "a copy task in a model of short sequences": (
        {"train": {"passkey_eval_steps": 3, "passkey_eval_seq_len": 64}, "data": {"seq_len": 10}},
        "train.passkey_eval_seq_len", "translated", {"data.shards[1].source": "probe:passkey:4"},
    ),
    "a ratio with its epsilon": (
        {"evolution": {"composite_metrics": [
            {"name": "x", "op": "ratio", "numerator": "ppl_code", "denominator": "ram", "epsilon": 1e-3}]}},
        "evolution.composite_metrics[0].epsilon", "translated",
        {"evolution.composite_metrics.x.of": ["ppl", "params"], "evolution.composite_metrics.x.epsilon": 1e-3},
    ),
    "one that was ready-made": (
        {"evolution": {"pareto_objectives": ["ppl_per_param"]}}, "evolution.pareto_objectives", "translated",
        {"evolution.objectives": {"ppl_per_param": "min"}},
    ),
    "bounds on costs": (
        {"evolution": {"rung0_thresholds": {"max_params": 5e6, "max_kv_bytes_per_token": 7.0, "min_layers": 1}}},
        "evolution.rung0_thresholds.max_kv_bytes_per_token", "translated",
        {"evolution.rung0_thresholds": {"params": 5e6, "kv_bytes_per_token": 7.0}, "evolution.min_layers": 1},
    ),
    "a proxy of throughput": (
        {"evolution": {"rung0_thresholds": {"min_throughput_proxy": 0.5}}},
        "evolution.rung0_thresholds.min_throughput_proxy", "dropped", {},
    ),
    "what the simulator read": (
        {"evolution": {"rung0_thresholds": {"gate_entropy_max": 3.0}}}, "evolution.rung0_thresholds.gate_entropy_max",
        "dropped without effect", {},
    ),
    "a promotion that asks for nothing": (
        {"evolution": {
            "promotion_prob": 0.5, "promotion_min_router_entropy": 0.0, "promotion_min_recurrence_gain": 0.0}},
        "evolution.promotion_min_router_entropy", "translated",
        {"evolution.promotion_min_router_entropy": None, "evolution.promotion_min_recurrence_gain": None},
    ),
    "an archive without a size": (
        {"evolution": {"archive_max_elites": 0}}, "evolution.archive_max_elites", "dropped without effect", {},
    ),
    "exactly one edit": ({}, "evolution without mutation_steps", "translated", {"evolution.mutation_steps": [1, 1]}),
    "priors": (
        {"priors": {"tokens_per_param": 4.0, "window_scale": 6.0, "rope_theta_default": 5e4}}, "priors.window_scale",
        "translated",
        {"priors.tokens_per_param": 4.0, "priors.window_scale": 6.0, "priors.rope_theta_default": 5e4},
    ),
    "a penalty on compute": (
        {"priors": {"compute_penalty_weight": 0.5}}, "priors.compute_penalty_weight", "approximated",
        {"priors.compute_penalty_weight": 0.5},
    ),
    "no penalty": (
        {"priors": {"compute_penalty_weight": 0.0}}, "priors.compute_penalty_weight", "dropped without effect", {},
    ),
    "a base of RoPE that is none": (
        {"priors": {"rope_theta_default": 0.5}}, "priors.rope_theta_default", "dropped", {},
    ),
    "distance from priors": ({"priors": {"prior_weight": 1.0}}, "priors.prior_weight", "dropped", {}),
}  # fmt: skip


@pytest.mark.parametrize("what", SECTIONS)
def test_a_field_of_a_section_keeps_its_older_meaning(what: str, read: Any) -> None:
    sections, field, how, wanted = SECTIONS[what]
    told = read(old(**sections))
    assert told.how(field)[0] == how
    for path, value in wanted.items():
        assert told.at(path) == value


def looped(*loops: Plain) -> Plain:
    return old(model={"blocks": [{"attn": ATTN}] * 4, "recurrences": list(loops)})


def test_loops_run_where_the_older_model_ran_them(read: Any) -> None:
    told = read(looped({"start": 1, "end": 9}))
    assert told.at("model.recurrences")[0]["end"] == 4
    told = read(looped({"start": 0, "end": 3}, {"start": 1, "end": 4}))
    assert len(told.at("model.recurrences")) == 1
    assert told.how("model.recurrences[1].start")[0] == "dropped without effect"
    told = read(looped({"start": 2, "end": 3}))
    assert told.at("model.recurrences") == []
    assert told.how("model.recurrences[0].start")[0] == "approximated"
    told = read(looped({"start": 7, "end": 9}))
    assert told.how("model.recurrences[0].end")[0] == "dropped without effect"


def test_how_a_loop_starts_and_how_often_it_runs(read: Any) -> None:
    told = read(looped({"start": 0, "end": 2, "init_state": "zeros", "noise_std": 0.02, "adapter_dim": 8}))
    assert told.at("model.recurrences")[0]["start_state"] == "zero"
    assert told.at("model.recurrences")[0]["test_recurrences"] == [1, 2, 4, 8]
    assert told.how("model.recurrences[0].noise_std")[0] == "dropped without effect"
    assert told.how("model.recurrences[0].adapter_dim")[0] == "dropped without effect"
    told = read(looped({"start": 0, "end": 2, "init_state": "noise", "noise_std": 0.5, "max_train_recurrence": 1}))
    assert told.at("model.recurrences")[0]["start_state"] == "noise"
    assert told.how("model.recurrences[0].noise_std")[0] == "approximated"
    assert told.how("model.recurrences[0].max_train_recurrence")[0] == "approximated"


def test_how_often_a_loop_is_tried(read: Any) -> None:
    place = "model.recurrences[0].test_recurrences"
    for asked, how, wanted in (
        ([1, 2.0], "translated", [1, 2]),
        ([0, 1, 3], "translated", [1, 3]),
        ([2, 65], "approximated", [2]),
        ([], "translated", []),
    ):
        told = read(looped({"start": 0, "end": 2, "test_recurrences": asked}))
        assert (told.how(place)[0], told.at(place)) == (how, wanted)
    assert "64" not in read(looped({"start": 0, "end": 2, "test_recurrences": [0, 3]})).how(place)[1]


def test_only_what_is_an_objective_is_a_ready_made_figure(read: Any) -> None:
    told = read(old(evolution={"pareto_objectives": ["ppl_code", "ppl_per_parameter", "my_ppl_per_throughput"]}))
    assert told.at("evolution.composite_metrics") == {}
    told = read(old(evolution={"objectives": {"ppl_code": "min"}, "pareto_objectives": ["ppl_per_param"]}))
    assert told.at("evolution.composite_metrics") == {}


def test_objectives_that_are_left_out_are_told_in_their_order(read: Any) -> None:
    names = ("router_entropy", "router_overflow", "acc_passkey_len_64", "nll_induction", "recurrence_gain")
    told = read(old(evolution={"objectives": {"ppl_code": "min", **dict.fromkeys(names, "max")}}))
    lost = [note.place for note in told.found.notes if "the root has no such figure" in note.said]
    assert len(lost) > 2
    assert lost == [f"evolution.objectives ({name})" for name in names if f"evolution.objectives ({name})" in lost]


def test_nulls_are_defaults(read: Any) -> None:
    names = (
        "block_size",
        "block_stride",
        "global_stride",
        "dilation",
        "sw",
        "rope_theta",
        "kv_groups",
        "kv_latent_dim",
    )
    block = {
        "attn": {**ATTN, **dict.fromkeys((*names, "selector_topk", "selector_heads", "selector_dim"))},
        "ffn": None,
    }
    told = read(old(block, train={"optimizer": {"betas": None, "eps": None}}, data={"healing_tokens": None}))
    assert told.found.of("dropped") == []
    assert silent(old(block), told.found) == []


TEMPLATES: Plain = {
    "templates": [
        {
            "name": "all",
            "weight": 2.0,
            "conditions": {"requires_ssm_block": True, "requires_dense_ffn": True, "min_blocks": 2, "odd": 1},
            "actions": [
                {"add_extra": {"selector": "random_ssm", "extra_type": "retro", "params": {"stride": 16, "odd": 1}}},
                {"add_extra": {"extra_type": "gated", "params": {"init_weight": 0.2}}},
                {"add_extra": {"extra_type": "feedback", "params": {"strength": 0.1}}},
                {"insert_block": {"block_template": "retro_moe", "position": "end"}},
                {"replace_ffn": {"selector": "random", "new_type": "moe", "n_experts": 8, "k": 2, "balance": 0.05}},
                {"remove_block": {"selector": "random"}},
                {"tune_attn": {"sparsity": "sliding", "dilation": None, "block_size": 64, "qk_norm_max": 8.0}},
                {"tune_router": {"temperature": 0.7, "lb_coeff": 0.01, "entropy_coeff": 0.0}},
                {"tune_optimizer": {"lr": 1e-3}},
            ],
        },
        {"name": "nothing", "actions": [{"tune_optimizer": {"lr": 1e-3}}]},
    ]
}


def test_templates_become_ours(read: Any) -> None:
    told = read(TEMPLATES)
    assert silent(TEMPLATES, told.found) == []
    (template,) = told.plain["templates"]
    assert template["conditions"] == {"min_blocks": 2, "has": ["attn", "dense", "moe", "ssm"], "lacks": ["gated"]}
    assert [action["operator"] for action in template["actions"]] == [
        *("insert_retro_module", "toggle_gated_mix", "insert_linear_silu", "insert_block", "dense_to_moe"),
        *("insert_retro_module", "dense_to_moe", "delete_block", "tune_attn_sparsity", "toggle_qk_norm"),
        *("tune_router", "tune_router_coeffs"),
    ]
    assert any(note.place.endswith("tune_optimizer.lr") for note in told.found.of("dropped"))
    assert any("random_ssm" in str(note) or note.place.endswith("selector") for note in told.found.of("approximated"))


def template(*actions: Plain, **fields: Any) -> Plain:
    return {"templates": [{"name": "one", "actions": list(actions), **fields}, TEMPLATES["templates"][0]]}


#: An action of the older system, the field that is told of, what became of it, and our settings.
ACTIONS: dict[str, tuple[Plain, str, str, Plain]] = {
    "a selector that nobody knew": (
        {"remove_block": {"selector": "random_moes"}}, "remove_block.selector", "approximated", {},
    ),
    "a window alone": (
        {"tune_attn": {"sw": 32}}, "tune_attn.sw", "translated", {"sparsity": "sliding", "sliding_window": 32},
    ),
    "a window of its pattern": (
        {"tune_attn": {"sparsity": "local_global", "sliding_window": 32, "global_stride": 8}},
        "tune_attn.sliding_window", "translated",
        {"sparsity": "local_global", "sliding_window": 32, "global_stride": 8},
    ),
    "a window of another pattern": (
        {"tune_attn": {"sparsity": "dilated", "sw": 32, "dilation": 4}}, "tune_attn.sw", "dropped",
        {"sparsity": "dilated", "dilation": 4},
    ),
    "a knob without a pattern": (
        {"tune_attn": {"dilation": 4, "qk_norm_max": 8.0}}, "tune_attn.dilation", "dropped", {"qk_norm": "rms"},
    ),
    "a gate of 1": (
        {"add_extra": {"extra_type": "retro", "params": {"gating_weight": 1.0}}}, "add_extra.params.gating_weight",
        "approximated", {"gating_weight": 0.999},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ACTIONS)
def test_an_action_keeps_its_older_meaning(what: str, read: Any) -> None:
    action, field, how, wanted = ACTIONS[what]
    told = read(template(action))
    assert told.how(f"templates[0].actions[0].{field}")[0] == how
    assert told.plain["templates"][0]["actions"][0].get("set", {}) == wanted


def test_conditions_and_weights_of_zero_have_an_account_of_their_own(read: Any) -> None:
    told = read(template({"remove_block": {}}, conditions={"min_blocks": 0, "max_blocks": 0}))
    assert told.how("templates[0].conditions.min_blocks")[0] == "dropped without effect"
    assert "conditions" not in told.plain["templates"][0]
    told = read(template({"remove_block": {}}, weight=0))
    assert told.how("templates[0].weight")[0] == "dropped"
    assert [one["name"] for one in told.plain["templates"]] == ["all"]


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ({"tune_attn": {"sparsity": "slidin"}}, "did you mean 'sliding'?"),
        ({"tune_attn": {"sparsity": "block", "block_size": 2.5}}, "got 2.5, expected a whole number"),
        ({"tune_attn": {"gating_pos": "outputs"}}, "did you mean 'output'?"),
        ({"tune_ffn": {"activation": "swigl"}}, "did you mean 'swiglu'?"),
        ({"replace_ffn": {"new_type": "moe", "k": "two"}}, "got 'two', expected a number"),
        ({"add_extra": {"extra_type": "gated", "params": {"learnable": 3}}}, "got 3, expected true or false"),
        ({"add_extra": {"extra_type": "retro", "params": {"aggregator": "means"}}}, "did you mean 'mean'?"),
        ({"add_extra": {"extra_type": "custom", "params": {"params": {"dim": 0}}}}, "got 0, expected a whole number"),
    ],
)
def test_values_of_actions_are_checked(action: Plain, said: str, read: Any) -> None:
    with pytest.raises(InputError, match=r"old\.yaml:1:\d+ ") as error:
        read(template(action))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"head": {}}}, "model.head.vocab: got nothing, expected a number of tokens"),
        ({"model": {"blocks": []}}, "model.blocks: got [], expected at least one block"),
        ({"model": {"blocks": 3}}, "model.blocks: got 3, expected a list"),
        ({"model": {"blocks": [{"attn": {**ATTN, "heads": "many"}}]}}, "attn.heads: got 'many', expected a number"),
        ({"model": {"blocks": [{"attn": {**ATTN, "heads": 2.5}}]}}, "attn.heads: got 2.5, expected a whole number"),
        ({"model": {"blocks": [{"attn": {**ATTN, "kind": "MHB"}}]}}, "attn.kind: got 'MHB', expected one of"),
        ({"model": {"blocks": [{"extras": [{"type": "retr"}]}]}}, "did you mean 'retro'?"),
        ({"model": {"blocks": [{"attn": {"head_dim": 16}}]}}, "attn.heads: got nothing, expected a whole number"),
        ({"model": {"blocks": [{"attn": {**ATTN, "kind": "LINEAR", "linear_feature_map": "rel"}}]}}, "got 'rel'"),
        ({"model": {"blocks": [{"attn": {**ATTN, "selector": "dsa", "selector_rope": "all"}}]}}, "got 'all'"),
        ({"model": {"blocks": [{"ffn": {"type": "moe", "hidden": 8}}]}}, "n_experts: got nothing"),
        ({"model": {"blocks": [{"extras": [{**ASSOC, "feature_map": "relu"}]}]}}, "feature_map: got 'relu'"),
        ({"model": {"blocks": [{"extras": [{**ASSOC, "heads": 2.7}]}]}}, "heads: got 2.7, expected a whole number"),
        ({"model": {"blocks": [{"extras": [{"type": "memory_tokens", "heads": 2}]}]}}, "tokens: got nothing"),
        ({"model": {"blocks": [{"ffn": DENSE}], "kv_policy": {"cache": "al"}}}, "kv_policy.cache: got 'al'"),
        ({"model": {"blocks": [{"attn": {**ATTN, "kind": "LINEAR"}}], "kv_policy": {"quant": "int9"}}}, "'int8'?"),
        ({"model": {"kv_policy": {"cache": "ring"}}}, "kv_policy.window: got nothing, expected a whole number"),
        ({"data": {"shards": []}}, "data.shards: got [], expected at least one source of text"),
        ({"train": {"lr": 0}}, "train.lr: got 0, expected a number above 0"),
        ({"train": {"optimizer": {"betas": [0.9]}}}, "train.optimizer.betas: got [0.9], expected two numbers"),
        ({"evolution": {"objectives": {"ppl_code": "down"}}}, "evolution.objectives.ppl_code: got 'down'"),
    ],
)  # fmt: skip
def test_what_neither_system_can_mean_is_refused_with_its_place(change: Plain, said: str, read: Any) -> None:
    with pytest.raises(InputError, match=r"old\.yaml:1:\d+ ") as error:
        read(old(**change))
    assert said in str(error.value)


def test_what_is_no_file_of_the_older_system_is_refused(read: Any) -> None:
    with pytest.raises(InputError, match=r"no model, expected an experiment .* of the older system"):
        read({"train": {}})
