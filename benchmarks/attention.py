"""Step cost (forward and backward, one thread) of attention, norms and RoPE against torch's own.

Every pattern is timed against `scaled_dot_product_attention` under the same boolean mask, on the same number of
tokens in all (batch x length is constant): a ratio above 1 means that morphogen is the faster. The growth exponent is
the slope of log(time of ONE sequence) over log(length): 1 is linear, 2 quadratic. Contestants take turns; times are
medians.

    python benchmarks/attention.py [--quick]

B batch, H heads, T tokens, E head width, F rotated pairs
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from morphogen.ops.elementwise import apply_rope, layer_norm, rms_norm, rope_rotations
from morphogen.ops.sparse_attention import Pattern, attend, visible

HEADS, WIDTH = 4, 64
SIZE = 128
PATTERNS = {
    "sliding": Pattern("sliding", window=SIZE),
    "block": Pattern("block", block_size=SIZE),
    "dilated": Pattern("dilated", dilation=16),
    "local_global": Pattern("local_global", window=SIZE, global_stride=SIZE),
    "local_block": Pattern("local_block", window=SIZE, block_size=SIZE, block_stride=8),
}
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


def step_of(function: Callable[..., Tensor], *inputs: Tensor) -> Step:
    """A forward and a backward pass of `function`."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    gradient = torch.randn_like(function(*leaves))
    return lambda: torch.autograd.grad(function(*leaves), leaves, gradient)


def mask_of(pattern: Pattern, length: int) -> Tensor:
    """The boolean mask (T, T) that SDPA gets for `pattern`."""
    at_T = torch.arange(length)
    i_T1 = at_T[:, None]
    if pattern.kind == "dilated":
        return (at_T <= i_T1) & ((i_T1 - at_T) % pattern.dilation == 0)
    if pattern.kind == "block":
        return (at_T <= i_T1) & (i_T1 // pattern.block_size == at_T // pattern.block_size)
    return visible(pattern, i_T1, at_T)


def random_qkv(tokens: int, length: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k and v in the layout projections give."""
    draw = torch.Generator().manual_seed(0)
    shape = (max(1, tokens // length), length, HEADS, WIDTH)
    return [torch.randn(shape, generator=draw).to(dtype).transpose(1, 2) for _ in range(3)]


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Torch's attention, under a mask or causal."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


def attention_table(lengths: Sequence[int], tokens: int, dtype: torch.dtype, rounds: int) -> Table:
    """One row per pattern: ratio at each length, then the exponents."""
    table = new_table(f"sparse attention, {dtype}: masked SDPA / morphogen (ms of morphogen)", lengths)
    table.add_column("exponent", justify="right")
    table.add_column("of SDPA", justify="right")
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in PATTERNS}
    for length in lengths:
        qkv = random_qkv(tokens, length, dtype)
        steps: dict[str, Step] = {}
        for name, pattern in PATTERNS.items():
            steps[name] = step_of(partial(attend, pattern=pattern), *qkv)
            steps["SDPA " + name] = step_of(partial(fused, mask=mask_of(pattern, length)), *qkv)
        taken = medians(steps, rounds)
        for name, rows in seconds.items():
            rows.append((taken[name] / len(qkv[0]), taken["SDPA " + name] / len(qkv[0])))
    for name, rows in seconds.items():
        sequences = [max(1, tokens // length) for length in lengths]
        cells = [f"{sdpa / ours:.1f}x ({ours * n * 1e3:.0f})" for (ours, sdpa), n in zip(rows, sequences, strict=True)]
        table.add_row(name, *cells, *(f"{slope(lengths, [row[i] for row in rows]):.2f}" for i in (0, 1)))
    return table


def dense_table(lengths: Sequence[int], tokens: int, dtype: torch.dtype, rounds: int) -> Table:
    """Dense causal attention, against torch's fused kernel."""
    table = new_table(f"dense attention, {dtype}: causal SDPA / morphogen (ms of morphogen)", lengths)
    cells = []
    for length in lengths:
        qkv = random_qkv(tokens, length, dtype)
        steps = {
            "ours": step_of(partial(attend, pattern=Pattern()), *qkv),
            "torch": step_of(partial(fused, mask=None), *qkv),
        }
        taken = medians(steps, rounds)
        cells.append(f"{taken['torch'] / taken['ours']:.2f}x ({taken['ours'] * 1e3:.0f})")
    table.add_row("none", *cells)
    return table


def elementwise_table(rows: int, rounds: int) -> Table:
    """Norms and RoPE on 2,048 tokens of 256 channels, against torch's norms and RoPE by halves."""
    table = Table(title="elementwise, 2048 tokens of 256 channels: peer / morphogen (ms of morphogen)")
    for column in ("", "float32", "bfloat16"):
        table.add_column(column, justify="right")
    eps, cells = torch.tensor(1e-5), dict[str, list[str]]()
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, bias = torch.randn(rows, 256).to(dtype), torch.rand(256), torch.rand(256)
        x_BHTE = torch.randn(rows // 256, 256, HEADS, WIDTH).to(dtype).transpose(1, 2)
        cis_TF, _ = rope_rotations(256, WIDTH, theta=1e4)
        cis_TF = cis_TF.to(torch.complex64)
        cos_TE, sin_TE = (part.repeat(1, 2).to(dtype) for part in (cis_TF.real, cis_TF.imag))
        pairs = {
            "rms_norm": (
                step_of(partial(rms_norm, eps=eps), x, weight),
                step_of(lambda x, w: F.rms_norm(x, (256,), w.to(x.dtype), 1e-5), x, weight),
            ),
            "layer_norm": (
                step_of(partial(layer_norm, eps=eps), x, weight, bias),
                step_of(lambda x, w, b: F.layer_norm(x, (256,), w, b, 1e-5), x, weight, bias),
            ),
            "rope": (
                step_of(partial(apply_rope, cis_TF=cis_TF), x_BHTE),
                step_of(partial(rope_by_halves, cos_TE=cos_TE, sin_TE=sin_TE), x_BHTE),
            ),
        }
        for name, (ours, peer) in pairs.items():
            taken = medians({"ours": ours, "peer": peer}, 4 * rounds)
            cells.setdefault(name, []).append(f"{taken['peer'] / taken['ours']:.2f}x ({taken['ours'] * 1e3:.2f})")
    for name, row in cells.items():
        table.add_row(name, *row)
    return table


def rope_by_halves(x: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """RoPE the usual way."""
    low, high = x.chunk(2, -1)
    return x * cos_TE + torch.cat([-high, low], -1) * sin_TE


def new_table(title: str, lengths: Sequence[int]) -> Table:
    """A table with a column per length."""
    table = Table(title=title)
    for column in ("", *(f"L={length}" for length in lengths)):
        table.add_column(column, justify="right")
    return table


def slope(lengths: Sequence[int], seconds: Sequence[float]) -> float:
    """Least-squares slope of log seconds over log length."""
    return statistics.linear_regression([math.log(x) for x in lengths], [math.log(y) for y in seconds]).slope


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Step cost of every sparsity pattern against torch's own attention.")
    parser.add_argument("--quick", action="store_true", help="fewer tokens, lengths and rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lengths, tokens, rounds = ([256, 1024], 2048, 3) if arguments.quick else ([512, 1024, 2048, 4096], 4096, 5)
    console = Console(width=120)
    console.print(
        f"{tokens} tokens, {HEADS} heads of {WIDTH}, window and blocks of {SIZE}, forward and backward, one thread."
    )
    for dtype in (torch.float32, torch.bfloat16):
        console.print(attention_table(lengths, tokens, dtype, rounds))
        console.print(dense_table([128, 256, *lengths], tokens, dtype, rounds))
    console.print(elementwise_table(2048, rounds))


if __name__ == "__main__":
    main()
