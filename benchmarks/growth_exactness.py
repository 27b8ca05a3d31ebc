"""What growth changes at the moment it happens: max |Δlogit| over max |logit|, action by action.

    python benchmarks/growth_exactness.py [--quick]

Over {RMSNorm, LayerNorm} × {tied, untied} × {MHA, GQA} × {RoPE, ALiBi, none}, with weights as after training. Widths
and mixtures have to stay within 2e-6 in fp32 and 1e-12 in fp64, depth at exactly 0, and in bf16 the loss within 0.005.
"""

import argparse
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import TypeAdapter
from torch.nn import functional as F

from morphogen.blueprint.growth import GrowthAction
from morphogen.blueprint.schema import Blueprint
from morphogen.growth.actions import act
from morphogen.growth.surgery import max_delta, operate
from morphogen.inherit.descent import inherit
from morphogen.network import LanguageModel, assemble
from morphogen.testing.models import stirred
from morphogen.variation.act import apply_operator

ACTION: TypeAdapter[GrowthAction] = TypeAdapter(GrowthAction)
VOCAB, TOKENS = 97, 64
FP32, FP64, BF16 = 2e-6, 1e-12, 0.005
POSITIONS: dict[str, dict[str, Any]] = {
    "rope": {},
    "alibi": {"rope": "none", "alibi": True},
    "none": {"rope": "none"},
}
DEPTH = [
    {"action": "deepen", "layers": layers, "where": where, "how": how}
    for where in ("middle", "end", "alternate")
    for how in ("copy", "fresh")
    for layers in (1, 3)
]
#: Name -> actions, one after another; or the name of an operator.
GROWTHS: dict[str, list[dict[str, Any]] | str] = {
    "dim 64 -> 96": [{"action": "widen", "target": "dim", "factor": 1.5}],
    "dim 64 -> 100": [{"action": "widen", "target": "dim", "factor": 1.5625}],
    "ffn +1": [{"action": "widen", "factor": 1.001}],
    "ffn x1.5": [{"action": "widen", "factor": 1.5}],
    "ffn x4": [{"action": "widen", "factor": 4.0}],
    "heads x1.5": [{"action": "widen", "target": "heads", "factor": 1.5}],
    "heads x2": [{"action": "widen", "target": "heads", "factor": 2.0}],
    "kv groups": "split_kv",
    "query heads": "add_query_heads",
    "to MoE, top 1": [{"action": "to_moe", "k": 1}],
    "to MoE, top 2": [{"action": "to_moe", "k": 2}],
    "expert split": [{"action": "to_moe"}, {"action": "split_experts"}],
    "split twice": [{"action": "to_moe"}, *[{"action": "split_experts"}] * 4],
    "vocabulary": [{"action": "grow_vocabulary", "tokens": 130}],
    **{f"depth {d['where']} {d['how']} {d['layers']}": [d] for d in DEPTH},
}


class Row(NamedTuple):
    """One growth of one architecture: relative to the largest logit in fp64 and fp32; the loss's change in bf16."""

    architecture: str
    growth: str
    fp64: float
    fp32: float
    bf16: float

    @property
    def holds(self) -> bool:
        """Whether it is within its bounds; the logits of a deeper model stay bit for bit in fp32 and fp64."""
        same = self.growth.startswith("depth")
        return self.fp64 <= FP64 * (not same) and self.fp32 <= FP32 * (not same) and self.bf16 <= BF16


def architectures() -> Iterator[tuple[str, Blueprint]]:
    """The 24, by name."""
    for norm, tied, kind, position in itertools.product(
        ("rmsnorm", "layernorm"), (True, False), ("MHA", "GQA"), POSITIONS
    ):
        attn = {"kind": kind, "heads": 4, "head_dim": 16, "kv_groups": 2 if kind == "GQA" else 1, **POSITIONS[position]}
        block = {"attn": attn, "ffn": {"kind": "dense", "hidden": 96}}
        yield (
            f"{norm} {'tied' if tied else 'untied'} {kind} {position}",
            Blueprint.model_validate(
                {
                    "emb": {"dim": 64, "vocab": VOCAB},
                    "norm": norm,
                    "head": {"tie_embeddings": tied},
                    "blocks": [block, {**block, "ffn": {"kind": "dense", "hidden": 96, "activation": "gelu"}}, block],
                }
            ),
        )


def grown(blueprint: Blueprint, growth: str, dtype: torch.dtype) -> tuple[LanguageModel, LanguageModel] | None:
    """The models before and after the last of a growth's actions; None where it does not apply."""
    todo, state = GROWTHS[growth], stirred(blueprint, 0, dtype)
    if isinstance(todo, str):
        made = apply_operator(blueprint, todo, np.random.default_rng(0))
        if made is None:
            return None
        after, _ = inherit(made[0], [(blueprint, state)], edits=[made[1]])
        return assemble(blueprint, state), assemble(made[0], after)
    before = here = assemble(blueprint, state)
    for step, action in enumerate(todo):
        result = act(here.blueprint, ACTION.validate_python(action), np.random.default_rng(step))
        assert result is not None
        done = operate(result, here.blueprint, here.state_dict(), {}, step)
        before, here = here, assemble(result.blueprint, done.state)
    return before, here


def measure(name: str, blueprint: Blueprint, growth: str) -> Row | None:
    """A row of the table; None where the growth does not apply."""
    ids_BT = torch.randint(VOCAB, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    found = []
    for dtype in (torch.float64, torch.float32):
        pair = grown(blueprint, growth, dtype)
        if pair is None:
            return None
        delta, size = max_delta(*pair, ids_BT)
        found.append(delta / size)
    known = min(model.emb.num_embeddings for model in pair)
    losses = [_bf16_loss(model, ids_BT, known) for model in pair]
    return Row(name, growth, *found, abs(losses[1] - losses[0]))


@torch.no_grad()
def _bf16_loss(model: LanguageModel, ids_BT: torch.Tensor, known: int) -> float:
    with torch.autocast("cpu", torch.bfloat16):
        logits_BTV = model.eval()(ids_BT[:, :-1])[..., :known]
    return float(F.cross_entropy(logits_BTV.float().flatten(0, 1), ids_BT[:, 1:].flatten()))


def main() -> None:
    """Prints the largest of every growth over all architectures, and what does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every fifth architecture")
    chosen = list(architectures())[:: 5 if parser.parse_args().quick else 1]
    rows = [row for name, blueprint in chosen for growth in GROWTHS if (row := measure(name, blueprint, growth))]
    print(f"{'growth':28} {'architectures':>13} {'fp64':>9} {'fp32':>9} {'bf16 loss':>9}")
    for growth in GROWTHS:
        its = [row for row in rows if row.growth == growth]
        most = [max(values) for values in zip(*(row[2:] for row in its), strict=True)]
        print(f"{growth:28} {len(its):13} " + " ".join(f"{value:9.1e}" for value in most))
    for row in rows:
        if not row.holds:
            print("beyond its bound:", row)


if __name__ == "__main__":
    main()
