"""Attention over the tokens that a selector picks, against dense attention, and latent attention against DeepSeek's.

Forward and backward, one thread. A ratio above 1 means that morphogen is the faster. `picking` is the indexer alone
(scores of all pairs and their highest: quadratic, though light), `reading` the attention over picked tokens; `training`
is both with the indexer's alignment loss. Contestants take turns; times are medians.

    python benchmarks/selector.py [--quick]

B batch, H heads, T tokens, E head width, A indexer heads, I their width
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from morphogen.blueprint.schema import Blueprint
from morphogen.network import build
from morphogen.ops.selection import Scoring, attend_picked, divergence, pick_tokens, picked_scores

HEADS, WIDTH, INDEXER = 4, 64, (4, 32)
Step = Callable[[], object]


def medians(contestants: dict[str, Step], rounds: int) -> dict[str, float]:
    """Seconds of each, the median over rounds in which all take turns; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, step in contestants.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def contestants_at(length: int, topk: int) -> dict[str, Step]:
    """Dense attention by torch, the same under a mask of picks, and the parts of ours."""
    draw = torch.Generator().manual_seed(0)
    q, k, v, dy = (torch.randn(1, length, HEADS, WIDTH, generator=draw).transpose(1, 2) for _ in range(4))
    heads, width = INDEXER
    index = [
        torch.randn(1, heads, length, width, generator=draw),
        torch.randn(1, 1, length, width, generator=draw),
        torch.randn(1, heads, length, generator=draw),
    ]
    leaves = [x.requires_grad_() for x in (q, k, v)]
    learned = [x.requires_grad_() for x in index]
    scoring, picks = Scoring(WIDTH**-0.5), pick_tokens(index[0], index[1], index[2], topk)
    mask_TT = torch.zeros(length, length, dtype=torch.bool).scatter(1, picks.tokens()[0], True).tril()

    def dense(mask: Tensor | None) -> object:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return torch.autograd.grad(y, leaves, dy)

    def reading() -> object:
        return torch.autograd.grad(attend_picked(q, k, v, replace(picks), scoring)[0], leaves, dy)

    def training() -> object:
        chosen = pick_tokens(index[0], index[1], index[2], topk)
        y, p = attend_picked(q, k, v, chosen, scoring)
        loss = divergence(p.detach().mean(1), picked_scores(index[0], index[1], index[2], chosen), chosen)
        return torch.autograd.grad([y, loss], [*leaves, *learned], [dy, torch.ones_like(loss)])

    return {
        "SDPA": lambda: dense(None),
        "masked SDPA": lambda: dense(mask_TT),
        "picking": lambda: pick_tokens(index[0], index[1], index[2], topk),
        "reading": reading,
        "training": training,
    }


def selector_table(lengths: Sequence[int], share: int, rounds: int) -> Table:
    """Dense over selected attention at each length, a fixed share of which is read, then the growth exponents."""
    table = Table(title=f"selector of T/{share} tokens, float32: dense / morphogen (ms of morphogen)")
    for column in ("", *(f"T={length}" for length in lengths), "exponent"):
        table.add_column(column, justify="right")
    taken = [medians(contestants_at(length, length // share), rounds) for length in lengths]
    rows = {
        "SDPA / (picking + reading)": ("SDPA", ("picking", "reading")),
        "SDPA / with alignment loss": ("SDPA", ("training",)),
        "masked SDPA / (picking + reading)": ("masked SDPA", ("picking", "reading")),
    }
    for name, (peer, ours) in rows.items():
        seconds = [sum(times[part] for part in ours) for times in taken]
        cells = [f"{times[peer] / own:.2f}x ({own * 1e3:.0f})" for times, own in zip(taken, seconds, strict=True)]
        table.add_row(name, *cells, f"{slope(lengths, seconds):.2f}")
    for part in ("picking", "reading", "SDPA"):
        seconds = [times[part] for times in taken]
        table.add_row(f"{part}, ms", *(f"{s * 1e3:.0f}" for s in seconds), f"{slope(lengths, seconds):.2f}")
    return table


def slope(lengths: Sequence[int], seconds: Sequence[float]) -> float:
    """Least-squares slope of log seconds over log length."""
    return statistics.linear_regression([math.log(x) for x in lengths], [math.log(y) for y in seconds]).slope


def latent_table(lengths: Sequence[int], tokens: int, rounds: int) -> Table:
    """A training step of MLA at d=256: 4 heads of 32, a latent of 64, 16 rotated channels."""
    table = Table(title="latent attention, float32: transformers' DeepseekV3Attention (SDPA) / morphogen (ms)")
    for column in ("", *(f"T={length}" for length in lengths)):
        table.add_column(column, justify="right")
    attn = {"kind": "MLA", "heads": 4, "head_dim": 32, "kv_latent_dim": 64, "rope_head_dim": 16}
    mine: nn.Module = build(Blueprint.model_validate({"emb": {"dim": 256, "vocab": 8}, "blocks": [{"attn": attn}]}))
    branch = mine.get_submodule("blocks.0.attn")
    config = DeepseekV3Config(
        hidden_size=256, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=None, kv_lora_rank=64,
        qk_nope_head_dim=32, v_head_dim=32, qk_rope_head_dim=16, attn_implementation="sdpa",
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    peer, rotary = DeepseekV3Attention(config, 0), DeepseekV3RotaryEmbedding(config)
    cells = []
    for length in lengths:
        x_BTD = torch.randn(max(1, tokens // length), length, 256)
        places = rotary(x_BTD, torch.arange(length)[None])

        def ours(x_BTD: Tensor = x_BTD) -> object:
            return branch(x_BTD).sum().backward()

        def theirs(x_BTD: Tensor = x_BTD, places: tuple[Tensor, Tensor] = places) -> object:
            return peer(x_BTD, position_embeddings=places, attention_mask=None)[0].sum().backward()

        taken = medians({"ours": ours, "theirs": theirs}, rounds)
        cells.append(f"{taken['theirs'] / taken['ours']:.2f}x ({taken['ours'] * 1e3:.0f})")
    table.add_row("MLA", *cells)
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Step cost of selected and of latent attention.")
    parser.add_argument("--quick", action="store_true", help="fewer lengths and rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lengths, rounds = ([512, 1024], 3) if arguments.quick else ([512, 1024, 2048, 4096], 5)
    console = Console(width=120)
    console.print(f"one sequence, {HEADS} heads of {WIDTH}, indexer {INDEXER[0]} of {INDEXER[1]}, one thread.")
    console.print(selector_table(lengths, 32, rounds))
    console.print(latent_table(lengths[:3], 2048, rounds))


if __name__ == "__main__":
    main()
