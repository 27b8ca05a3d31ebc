"""Step cost (forward and backward, one thread) of the memories and the short convolution against dense attention.

The peer is morphogen's own causal attention branch with as many channels, on the same number of tokens in all (batch x
length is constant): a ratio above 1 means that the memory is the faster. The growth exponent is the slope of log(time
of ONE sequence) over log(length): 1 is linear, 2 quadratic. The short convolution also stands against transformers'
`Lfm2ShortConv`, and fast weights against a loop over tokens. Contestants take turns; times are medians of CPU seconds.

    python benchmarks/memories.py [--quick]

B batch, T tokens, D model dim
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.models.lfm2.configuration_lfm2 import Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

from morphogen.ops import naive_memory
from morphogen.ops.fast_weights import delta_memory, features
from morphogen.parts.associative_memory import AssocMemory
from morphogen.parts.attention import Attention
from morphogen.parts.base import Branch, Context, Part
from morphogen.parts.chunk_memory import ChunkMemory
from morphogen.parts.initial import draw
from morphogen.parts.memory_tokens import MemoryTokens
from morphogen.parts.retro import Retro
from morphogen.parts.short_conv import ShortConv

DIM = 256
HEADS = {"heads": 4, "head_dim": 32}
PARTS: dict[str, Part] = {
    "retro, 64 of 32, gate": Retro(**HEADS),
    "retro, 16 of 32, mean": Retro(memory_tokens=16, aggregator="mean", **HEADS),
    "assoc_memory, elu": AssocMemory(**HEADS),
    "memory_tokens, 64": MemoryTokens(tokens=64, **HEADS),
    "chunk_memory, 64 by 32": ChunkMemory(**HEADS),
    "short_conv, 4": ShortConv(width=128),
}
PEER = Attention(kind="MHA", **HEADS)
Step = Callable[[], object]


def medians(contestants: dict[str, Step], rounds: int) -> dict[str, float]:
    """CPU seconds of each, the median over rounds in which all take turns; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, step in contestants.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def module(part: Part) -> Branch:
    """The part's module, freshly initialised."""
    ctx = Context(DIM, "rmsnorm", vocab=256, init_std=0.02, branches=2)
    built, generator = part.build(ctx), torch.Generator().manual_seed(0)
    built.load_state_dict({n: draw(s.init, s.shape, generator) for n, s in part.specs(ctx).items()}, assign=True)
    assert isinstance(built, Branch)
    return built


def step_of(branch: Callable[[Tensor], Tensor], parameters: Sequence[Tensor], x_BTD: Tensor, bf16: bool) -> Step:
    """A forward and a backward pass."""
    leaves = [x_BTD.clone().requires_grad_(), *parameters]

    def step() -> object:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            y_BTD = branch(leaves[0])
        return torch.autograd.grad(y_BTD.sum(), leaves)

    return step


def parts_table(lengths: Sequence[int], tokens: int, rounds: int, bf16: bool) -> Table:
    """One row per part: attention's time over its own at each length, then the exponents."""
    dtype = "bf16 autocast" if bf16 else "fp32"
    table = Table(title=f"{dtype}: attention / memory (ms of the memory), fwd + bwd, {tokens} tokens, dim {DIM}")
    for column in ("", *(f"L={length}" for length in lengths), "exponent"):
        table.add_column(column, justify="right")
    modules = {name: module(part) for name, part in (PARTS | {"attention": PEER}).items()}
    rows: dict[str, list[float]] = {name: [] for name in modules}
    for length in lengths:
        x_BTD = torch.randn(max(1, tokens // length), length, DIM, generator=torch.Generator().manual_seed(0))
        steps = {n: step_of(branch, list(branch.parameters()), x_BTD, bf16) for n, branch in modules.items()}
        for name, seconds in medians(steps, rounds).items():
            rows[name].append(seconds)
    for name, row in rows.items():
        cells = [f"{peer / own:.2f}x ({own * 1e3:.0f})" for own, peer in zip(row, rows["attention"], strict=True)]
        one = [math.log(own / max(1, tokens // length)) for own, length in zip(row, lengths, strict=True)]
        slope = statistics.linear_regression([math.log(length) for length in lengths], one).slope
        table.add_row(name, *cells, f"{slope:.2f}")
    return table


def peers_table(length: int, rounds: int) -> Table:
    """The short convolution against transformers' class, fast weights against a loop over tokens; fp32."""
    table = Table(title=f"fp32, 2 sequences of {length}: peer / morphogen (ms of morphogen)")
    for column in ("", "ratio"):
        table.add_column(column, justify="right")
    x_BTD = torch.randn(2, length, DIM, generator=torch.Generator().manual_seed(0))
    config = Lfm2Config(
        hidden_size=DIM, num_hidden_layers=1, conv_L_cache=4, conv_bias=False, layer_types=["conv"],
        num_attention_heads=4, num_key_value_heads=4, vocab_size=8, intermediate_size=16,
    )  # fmt: skip
    peer = Lfm2ShortConv(config, 0)
    branch = module(ShortConv())
    taken = medians(
        {
            "ours": step_of(branch.mix, [p for n, p in branch.named_parameters() if "norm" not in n], x_BTD, False),
            "peer": step_of(peer, list(peer.parameters()), x_BTD, False),
        },
        4 * rounds,
    )
    table.add_row("short_conv / Lfm2ShortConv", f"{taken['peer'] / taken['ours']:.2f}x ({taken['ours'] * 1e3:.1f})")
    leaves = [torch.randn(2, 4, length, 32) for _ in range(3)] + [torch.rand(2, 4, length)]
    start = torch.zeros(2, 4, 32, 32)

    def memory(op: Callable[..., tuple[Tensor, Tensor]]) -> Step:
        return step_of(
            lambda q: op(features(q, "elu"), features(leaves[1], "elu"), leaves[2], leaves[3], start)[0],
            [],
            leaves[0],
            False,
        )

    taken = medians({"ours": memory(delta_memory), "peer": memory(naive_memory.delta_memory)}, rounds)
    table.add_row("delta rule / loop over tokens", f"{taken['peer'] / taken['ours']:.1f}x ({taken['ours'] * 1e3:.1f})")
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Step cost of the memories against dense attention and peers.")
    parser.add_argument("--quick", action="store_true", help="fewer tokens, lengths and rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lengths, tokens, rounds = ([256, 1024], 2048, 3) if arguments.quick else ([512, 1024, 2048, 4096], 4096, 5)
    console = Console(width=130)
    for bf16 in (False, True):
        console.print(parts_table(lengths, tokens, rounds, bf16))
    console.print(peers_table(512, rounds))


if __name__ == "__main__":
    main()
