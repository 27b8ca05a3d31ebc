"""Norms and RoPE (forward and backward, one thread) against torch's norms and RoPE by halves.

A ratio above 1 means that morphogen is the faster. Contestants take turns; times are medians of CPU seconds.

    python benchmarks/elementwise.py [--quick]

B batch, H heads, T tokens, E head width, F rotated pairs
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from morphogen.ops.elementwise import apply_rope, layer_norm, rms_norm, rope_rotations
from speed import Step, medians

HEADS, WIDTH = 4, 64


def step_of(function: Callable[..., Tensor], *inputs: Tensor) -> Step:
    """A forward and a backward pass of `function`."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    gradient = torch.randn_like(function(*leaves))
    return lambda: torch.autograd.grad(function(*leaves), leaves, gradient)


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
            taken = medians({"ours": ours, "peer": peer}, rounds)
            cells.setdefault(name, []).append(f"{taken['peer'] / taken['ours']:.2f}x ({taken['ours'] * 1e3:.2f})")
    for name, row in cells.items():
        table.add_row(name, *row)
    return table


def rope_by_halves(x: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """RoPE the usual way."""
    low, high = x.chunk(2, -1)
    return x * cos_TE + torch.cat([-high, low], -1) * sin_TE


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Step cost of norms and RoPE against torch's own.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 12 if parser.parse_args().quick else 40
    torch.set_num_threads(1)
    Console(width=120).print(elementwise_table(2048, rounds))


if __name__ == "__main__":
    main()
