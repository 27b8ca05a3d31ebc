"""A small experiment made large: what is kept, what follows from size, and that the learning rate stays right."""

import glob
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count, specs
from morphogen.cli.options import count_of
from morphogen.errors import InputError
from morphogen.experiment import Experiment, Train
from morphogen.network import LanguageModel, build
from morphogen.parts.contract.tensors import Spec, flat
from morphogen.reading import read_experiment
from morphogen.scaling_up import How, Scaled, Shape, Wish, loops, resized, scale, sources, write_scaled
from morphogen.sections.priors import Priors
from morphogen.training.optimizers import make_updater
from morphogen.training.trainer import Trainer
from morphogen.training.transfer import factors

CONFIGS = Path(__file__).parent.parent / "configs"
SEED: dict[str, Any] = {
    "model": {
        "emb": {"dim": 64},
        "norm": "layernorm",
        "blocks": [
            {
                "attn": {"kind": "GQA", "heads": 4, "head_dim": 16, "kv_groups": 2, "sparsity": "sliding",
                         "sliding_window": 16},
                "ffn": {"kind": "moe", "hidden": 48, "n_experts": 4, "shared": 1, "shared_hidden": 64},
            },
            {"ssm": {"kind": "mamba2", "head_dim": 16}, "extras": [{"kind": "retro", "heads": 2, "head_dim": 16}]},
            {"attn": {"kind": "MQA", "heads": 4, "head_dim": 16}, "ffn": {"kind": "dense", "hidden": 160}},
            {"attn": {"kind": "MLA", "heads": 4, "head_dim": 16, "kv_latent_dim": 32, "rope_head_dim": 8}},
        ],
        "recurrences": [{"id": "r0", "start": 1, "end": 3}],
        "growth": [{"when": {"trigger": "step", "at": 5}, "do": {"action": "widen", "target": "ffn", "factor": 2.0}}],
    },
    "train": {"lr": 0.004, "warmup": 7},
    "data": {"tokenizer": "bytes", "seq_len": 128, "batch_size": 4},
    "evolution": {"rung0_thresholds": {"params": 1e6}, "repeat": 3},
}  # fmt: skip


def scaled(params: int, **wish: Any) -> Scaled:
    return scale(Experiment.model_validate(SEED), Wish(params, **wish))


def fields(made: Scaled, block: int, slot: str) -> dict[str, Any]:
    return dict(dict(made.experiment.model.blocks[block])[slot])


def test_blocks_are_stretched_in_place_or_stacked_over_again() -> None:
    assert sources(3, 6, "stretch") == [0, 0, 1, 1, 2, 2]
    assert sources(3, 6, "stack") == [0, 1, 2, 0, 1, 2]
    assert sources(3, 4, "stretch") == [0, 0, 1, 2]
    assert sources(4, 2, "stretch") == [0, 2]


def test_recurrences_go_with_their_blocks() -> None:
    (loop,) = Experiment.model_validate(SEED).model.recurrences

    def ranges(after: int, depth: Any) -> list[tuple[str, int, int]]:
        return [(it.id, it.start, it.end) for it in loops([loop], sources(4, after, depth), depth)]

    assert ranges(8, "stretch") == [("r0", 2, 6)]
    assert ranges(8, "stack") == [("r0", 1, 3), ("r0_2", 5, 7)]
    assert ranges(6, "stack") == [("r0", 1, 3), ("r0_2", 5, 6)]
    whole = loop.model_copy(update={"start": 0, "end": 4})
    assert [(it.start, it.end) for it in loops([whole], sources(4, 8, "stack"), "stack")] == [(0, 4), (4, 8)]


def test_a_large_model_keeps_ratios_and_groups_and_has_the_size_asked_for() -> None:
    made = scaled(40_000_000, dim=512)
    model = made.experiment.model
    assert made.params == parameter_count(model.with_vocab(257))
    assert abs(made.params / 40e6 - 1.0) < 0.15
    assert model.norm == "layernorm"
    assert len(model.blocks) == len({block.id for block in model.blocks})
    attn, moe = fields(made, 0, "attn"), fields(made, 0, "ffn")
    assert (attn["heads"], attn["head_dim"], attn["kv_groups"], attn["sliding_window"]) == (8, 64, 2, 16)
    assert (moe["hidden"], moe["shared_hidden"], moe["n_experts"], moe["k"]) == (384, 512, 4, 2)
    kinds = [[part.label for _, _, part in block.parts()] for block in model.blocks]
    single = fields(made, kinds.index(["MQA", "dense"]), "attn")
    assert (single["heads"], single["kv_groups"]) == (8, 8)
    assert fields(made, kinds.index(["MLA"]), "attn")["kv_latent_dim"] == 256
    assert model.growth == ()
    assert any("Growth rules are left out" in note for note in made.notes)
    train, evolution = made.experiment.train, made.experiment.evolution
    assert (train.lr, train.base_dim, train.max_tokens) == (0.004, 64, 20 * made.params)
    assert train.warmup == round(0.01 * (train.max_tokens // 512))
    assert (evolution.generations, evolution.rung0_thresholds, evolution.rung2_tokens) == (0, {}, train.max_tokens)


def test_the_proportion_of_width_and_depth_is_kept_where_nothing_else_is_asked_for() -> None:
    made = scaled(6_000_000)
    model = made.experiment.model
    assert abs(made.params / 6e6 - 1.0) < 0.05
    assert 16.0 < model.emb.dim / len(model.blocks) < 64.0
    small = scaled(100_000)
    assert small.params < parameter_count(Experiment.model_validate(SEED).model.with_vocab(257))


def test_longer_sequences_widen_windows_by_the_root_and_priors_have_their_say() -> None:
    made = scaled(2_000_000, seq_len=512)
    assert fields(made, 0, "attn")["sliding_window"] == 32
    assert fields(made, 0, "attn")["rope_theta"] == 40_000.0
    seed = Experiment.model_validate({**SEED, "priors": {"window_scale": 2.0, "tokens_per_param": 5.0}})
    made = scale(seed, Wish(2_000_000, seq_len=256))
    assert fields(made, 0, "attn")["sliding_window"] == 32
    assert made.experiment.train.max_tokens == 5 * made.params


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match=r"--params: got 10, expected 1,000 to"):
        scaled(10)
    with pytest.raises(InputError, match=r"the nearest with 64 channels and 2 blocks has"):
        scaled(50_000_000, dim=64, layers=2)
    assert [count_of("--params", text) for text in ("400M", "1.5b", "4e8", "12k", "7")] == [
        400_000_000,
        1_500_000_000,
        400_000_000,
        12_000,
        7,
    ]
    for text in ("", "M", "-1", "4 apples", "nan"):
        with pytest.raises(InputError, match="--params: got"):
            count_of("--params", text)


def test_the_scale_hop_among_the_configs_is_what_scale_makes_of_its_seed(tmp_path: Path) -> None:
    seed = CONFIGS / "live_phi_gpu.yaml"
    made = scale(read_experiment(seed), Wish(400_000_000, dim=1536, seq_len=2048))
    write_scaled(made, seed, tmp_path / "hop.yaml")
    assert (tmp_path / "hop.yaml").read_bytes() == (CONFIGS / "scalehop_phi_400m.yaml").read_bytes()
    model = read_experiment(CONFIGS / "scalehop_phi_400m.yaml").model
    assert (model.emb.dim, model.norm) == (1536, "rmsnorm")
    assert {dict(block.attn or {})["kv_groups"] for block in model.blocks} == {2}
    assert {dict(block.attn or {})["sparsity"] for block in model.blocks} == {"sliding", "none"}
    with torch.device("meta"):
        built = LanguageModel(model.with_vocab(32768))
    assert sum(parameter.numel() for parameter in built.parameters()) == made.params
    assert 380e6 < made.params < 420e6


# ------------------------------------------------------------------------------------------------------------------ µP


def plain(dim: int) -> Blueprint:
    attn = {"kind": "GQA", "heads": dim // 16, "head_dim": 16, "kv_groups": 2}
    block = {"attn": attn, "ffn": {"kind": "dense", "hidden": 2 * dim}}
    return Blueprint.model_validate({"emb": {"dim": dim, "vocab": 256}, "blocks": [block, block]})


def test_rates_of_matrices_fall_with_the_width_and_decay_stays() -> None:
    model = build(plain(64), seed=0)
    assert set(factors(model.blueprint, None).values()) == {1.0}
    assert set(factors(model.blueprint, 64).values()) == {1.0}
    found = factors(model.blueprint, 16)
    assert found["emb.weight"] == 0.5
    assert found["blocks.0.attn.q.weight"] == found["blocks.0.ffn.up.weight"] == 0.25
    assert found["blocks.0.attn.o.weight"] == found["blocks.0.ffn.down.weight"] == 0.125
    assert found["norm.weight"] == found["blocks.0.attn.norm.weight"] == 1.0
    names = {parameter: name for name, parameter in model.named_parameters()}
    table = specs(model.blueprint)
    for name in ("adamw", "lion"):
        train = Train.model_validate({"lr": 0.01, "base_dim": 16, "weight_decay": 0.1, "optimizer": {"name": name}})
        for optimizer in make_updater(model, train).optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    assert group["lr"] == pytest.approx(0.01 * found[names[parameter]])
                    if len(table[names[parameter]][2].shape) == 2 and "emb" not in names[parameter]:
                        assert group["lr"] * group["weight_decay"] == pytest.approx(0.001)


KINDS: list[dict[str, Any]] = [
    {"attn": {"kind": "MHA", "heads": 4, "head_dim": 16, "bias": "all", "gating_pos": "value", "selector": "dsa"},
     "extras": [{"kind": "retro", "aggregator": "attention", "heads": 4, "head_dim": 16},
                {"kind": "memory_tokens", "heads": 4, "head_dim": 16}]},
    {"attn": {"kind": "MLA", "heads": 4, "head_dim": 16, "kv_latent_dim": 32, "rope_head_dim": 8},
     "extras": [{"kind": "chunk_memory", "heads": 4, "head_dim": 16}, {"kind": "short_conv"}]},
    {"attn": {"kind": "LINEAR", "heads": 4, "head_dim": 16, "decay": "delta"},
     "extras": [{"kind": "assoc_memory", "heads": 4, "head_dim": 16}, {"kind": "layer_scale", "targets": ["attn"]}]},
    {"ssm": {"kind": "mamba", "d_conv": 4}, "ffn": {"kind": "dense", "hidden": 128},
     "extras": [{"kind": "branch_router", "targets": ["ssm", "ffn"], "hidden": 16}]},
    {"ssm": {"kind": "mamba2", "head_dim": 16, "d_conv": 4}, "extras": [{"kind": "linear_silu"}],
     "ffn": {"kind": "moe", "hidden": 32, "n_experts": 4, "shared": 1, "shared_hidden": 64,
             "experts": [{"kind": "mamba2", "head_dim": 16, "d_conv": 4}]}},
]  # fmt: skip


def reading(spec: Spec) -> list[str]:
    """The axes that a matrix reads: those that it does not write, of one expert."""
    rows = {"expert", "heads"} if len(spec.shape) > 2 else set[str]()
    axes = [axis for axis in flat(spec.axes) if not rows.issuperset(axis)]
    if spec.writes:
        axes.remove(("dim",))
    return list(axes[-1])


def test_the_rate_falls_for_a_fan_in_that_grows_with_the_width_and_for_no_other() -> None:
    loop = {"start": 0, "end": 1}
    emb = {"dim": 64, "vocab": 257, "positions": 64}
    small = Blueprint.model_validate({"emb": emb, "blocks": KINDS, "recurrences": [loop]})
    large = resized(small, Shape(256, len(KINDS)), "stretch", How(4.0, 256, 1.0, 64, Priors()), [])
    wide, found = specs(large), factors(large, 64)
    for name, (gene, _, spec) in specs(small).items():
        if len(spec.shape) < 2 or (spec.axes == ("vocab", "dim") and not spec.writes):
            continue
        before, after = gene.part.sizes(gene.ctx), wide[name][0].part.sizes(wide[name][0].ctx)
        grows = any(before[axis] != after[axis] for axis in reading(spec))
        assert spec.steady is not grows, (name, spec.axes)
        assert found[name] == (0.25 if grows else 1.0) * (0.5 if spec.writes else 1.0), name
    assert found["blocks.4.ffn.router.weight"] == found["blocks.4.ffn.other_router.weight"] == 0.25
    assert found["blocks.4.ssm.conv_x.weight"] == found["blocks.4.ffn.others.0.conv_x.weight"] == 1.0
    assert found["positions.weight"] == found["emb.weight"] == 0.5


def test_muon_takes_no_base_dim() -> None:
    with pytest.raises(ValueError, match="base_dim is for adamw and lion"):
        Train.model_validate({"base_dim": 64, "optimizer": {"name": "muon"}})


def batches() -> Any:
    files = sorted(glob.glob(f"{sysconfig.get_paths()['stdlib']}/*.py"))[:120]
    text = np.frombuffer(b"".join(Path(file).read_bytes() for file in files), dtype=np.uint8).astype(np.int64)

    def batch(step: int) -> NDArray[np.int64]:
        starts = np.random.default_rng(step).integers(0, len(text) - 49, 8)
        return np.stack([text[start : start + 49] for start in starts])

    return batch


@pytest.mark.slow
def test_the_best_rate_stays_put_from_width_64_to_256() -> None:
    batch, steps = batches(), 50
    rates = (0.002, 0.004, 0.008, 0.016, 0.032)

    def loss(dim: int, lr: float, base_dim: int | None) -> float:
        guards = {"no_improve_patience": 10**9, "instability_threshold": 1e9, "entropy_threshold": 0.0}
        train = Train.model_validate({"lr": lr, "warmup": 10, "schedule": "cosine", "base_dim": base_dim, **guards})
        trainer = Trainer(build(plain(dim), seed=0), train, total_steps=steps, tokens_per_step=8 * 48, seed=0)
        assert trainer.run(batch, steps) is None
        return float(np.mean(trainer.trace.losses[-12:]))

    small = {lr: loss(64, lr, None) for lr in rates}
    large = {lr: loss(256, lr, 64) for lr in rates}
    best = min(small, key=lambda lr: small[lr])
    assert best in rates[1:-1]
    assert min(large, key=lambda lr: large[lr]) == best
    # and with one rate for all it would not have
    assert loss(256, rates[0], None) < loss(256, best, None)
