"""Step cost (forward and backward, one thread) of linear attention with every decay, against its peers.

Each length has the same number of tokens in all (batch x length is constant). Peers: torch's fused softmax attention,
and for the delta rule the chunked path of transformers; a ratio above 1 means that morphogen is the faster. The
growth exponent is the slope of log(time of ONE sequence) over log(length): 1 is linear, 2 quadratic. Contestants take
turns; times are medians.

    python benchmarks/linear_attention.py [--quick]

B batch, H heads, T tokens, E head width
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
from torch.nn import functional as F
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from morphogen.ops.linear_attention import gated_delta, linear_attention, unit

HEADS, WIDTH = 4, 64
Step = Callable[[], object]
Function = Callable[..., Tensor]


def normalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Weighted means, as by `decay: none` with a positive feature map."""
    y = linear_attention(q[:, :, None], k, torch.cat([v, torch.ones_like(v[..., :1])], -1))[0][:, :, 0]
    return y[..., :-1] / (y[..., -1:] + 1e-6)


def retention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A fixed decay per head."""
    return linear_attention(q[:, :, None], k, v, -torch.linspace(0.002, 0.03, HEADS)[None, :, None])[0]


def gated(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """A decay per head and token."""
    return linear_attention(q[:, :, None], k, v, g)[0]


def delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """The gated delta rule."""
    return gated_delta(q[:, :, None], k, v, g, beta)[0]


def delta_of_transformers(*inputs: Tensor) -> Tensor:
    """The same, by transformers' chunked path; its tensors have heads after tokens."""
    turned = [x.transpose(1, 2) for x in inputs]
    y: Tensor = torch_chunk_gated_delta_rule(*turned)[0]
    return y


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's fused causal attention."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


#: Name -> (function, how many of q, k, v, g, beta it takes).
CONTESTANTS: dict[str, tuple[Function, int]] = {
    "none": (normalised, 3),
    "retention": (retention, 3),
    "gated": (gated, 4),
    "delta": (delta, 5),
    "transformers' delta": (delta_of_transformers, 5),
    "softmax": (softmax, 3),
}
PEERS = {"delta": "transformers' delta"}


def medians(contestants: dict[str, Step], rounds: int) -> dict[str, float]:
    """Seconds of each, the median over rounds in which all take turns; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, step in contestants.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def step_of(function: Function, inputs: Sequence[Tensor]) -> Step:
    """A forward and a backward pass of `function`."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    gradient = torch.randn_like(function(*leaves))
    return lambda: torch.autograd.grad(function(*leaves), leaves, gradient)


def inputs_of(tokens: int, length: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k of unit length, v; log decays and beta in fp32."""
    draw = torch.Generator().manual_seed(0)
    batch = max(1, tokens // length)
    q, k, v = (torch.randn(batch, length, HEADS, WIDTH, generator=draw).transpose(1, 2) for _ in range(3))
    g, beta = (torch.rand(batch, HEADS, length, generator=draw) for _ in range(2))
    return [unit(q).to(dtype), unit(k).to(dtype), v.to(dtype), -0.1 * g, beta]


def slope(lengths: Sequence[int], seconds: Sequence[float]) -> float:
    """Least-squares slope of log time over log length."""
    return statistics.linear_regression([math.log(n) for n in lengths], [math.log(s) for s in seconds]).slope


def table(lengths: Sequence[int], tokens: int, dtype: torch.dtype, rounds: int) -> Table:
    """One row per decay: milliseconds and ratios at each length, then the exponents."""
    names = [name for name in CONTESTANTS if name not in PEERS.values() and name != "softmax"]
    out = Table(title=f"linear attention, {dtype}: ms (softmax / ours, transformers / ours)")
    for column in ("decay", *(f"L={n}" for n in lengths), "exponent"):
        out.add_column(column, justify="right")
    taken = []
    for length in lengths:
        inputs = inputs_of(tokens, length, dtype)
        steps = {name: step_of(function, inputs[:count]) for name, (function, count) in CONTESTANTS.items()}
        taken.append(medians(steps, rounds))
    for name in names:
        cells = []
        for seconds in taken:
            ratios = [seconds["softmax"] / seconds[name]]
            ratios += [seconds[PEERS[name]] / seconds[name]] if name in PEERS else []
            cells.append(f"{seconds[name] * 1e3:.0f} ({', '.join(f'{r:.2f}x' for r in ratios)})")
        of_one = [seconds[name] * length / tokens for seconds, length in zip(taken, lengths, strict=True)]
        out.add_row(name, *cells, f"{slope(lengths, of_one):.2f}")
    return out


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Step cost of linear attention against its peers.")
    parser.add_argument("--quick", action="store_true", help="fewer tokens, lengths and rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lengths, tokens, rounds = ([256, 1024], 2048, 3) if arguments.quick else ([256, 512, 1024, 2048, 4096], 4096, 5)
    console = Console(width=160)
    console.print(f"{tokens} tokens, {HEADS} heads of {WIDTH}, forward and backward, one thread.")
    for dtype in (torch.float32, torch.bfloat16):
        console.print(table(lengths, tokens, dtype, rounds))


if __name__ == "__main__":
    main()
