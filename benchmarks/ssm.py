"""Step cost (forward and backward, one thread) of the state-space layers against the transformers mixers on this CPU.

Layers are timed whole, projections, convolution, scan and gate included, against a mixer of the same sizes, and their
scans alone; a ratio above 1 means that morphogen is the faster. The growth exponent is the slope of log(time of ONE
sequence) over log(length): 1 is linear, 2 quadratic. Contestants take turns; times are medians of CPU time, as others
may share the machine. The mixer's Mamba loop takes seconds and gigabytes: one sequence, one round.

    python benchmarks/ssm.py [--quick]

B batch, T tokens, D model dim
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import Mamba2Config, MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer, mamba_selective_scan
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer, mamba2_chunk_scan

from morphogen.ops.scan import selective_scan, ssd
from morphogen.parts.base import Context
from morphogen.parts.initial import draw
from morphogen.parts.mamba import Mamba
from morphogen.parts.mamba2 import Mamba2
from morphogen.parts.ssm import SSM, SSMBranch

DIM = 256
CTX = Context(dim=DIM, norm="rmsnorm", vocab=4096, init_std=0.02, branches=1)
LAYERS: dict[str, SSM] = {
    "mamba, state 16": Mamba(d_state=16),
    "mamba2, state 16, heads of 32": Mamba2(d_state=16, head_dim=32),
    "mamba2, state 64, heads of 64": Mamba2(d_state=64, head_dim=64),
}
Step = Callable[[], object]


def layer_of(part: SSM) -> SSMBranch:
    """The part's module with the tensors its specs ask for."""
    module = part.build(CTX)
    assert isinstance(module, SSMBranch)
    noise = torch.Generator().manual_seed(0)
    module.load_state_dict({name: draw(spec.init, spec.shape, noise) for name, spec in part.specs(CTX).items()})
    return module


def mixer_of(part: SSM) -> nn.Module:
    """The transformers mixer of the same sizes, its chunk as it ships."""
    sizes = {
        "hidden_size": DIM,
        "state_size": part.d_state,
        "conv_kernel": part.d_conv,
        "expand": 2,
        "num_hidden_layers": 1,
    }
    if isinstance(part, Mamba2):
        heads = {"num_heads": part.units(CTX), "head_dim": part.head_dim, "n_groups": 1}
        return Mamba2Mixer(Mamba2Config(**sizes, **heads), layer_idx=0)
    return MambaMixer(MambaConfig(**sizes), layer_idx=0)


def step_of(forward: Callable[[torch.Tensor], torch.Tensor], module: nn.Module, batch: int, tokens: int) -> Step:
    """A forward and a backward pass."""
    x_BTD = torch.randn(batch, tokens, DIM, generator=torch.Generator().manual_seed(1)).requires_grad_()
    dy_BTD = torch.randn(batch, tokens, DIM, generator=torch.Generator().manual_seed(2))

    def step() -> None:
        module.zero_grad(set_to_none=True)
        forward(x_BTD).backward(dy_BTD)

    return step


def medians(contestants: dict[str, Step], rounds: int) -> dict[str, float]:
    """CPU seconds of each, the median over rounds in which all take turns; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, step in contestants.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def scan_steps(part: SSM, length: int) -> dict[str, Step]:
    """Our scan and the mixer's on the same random inputs, forward and backward."""
    noise, inner, size = torch.Generator().manual_seed(0), part.inner(CTX), part.d_state
    heads, per = part.units(CTX), inner // part.units(CTX)
    x, dt = torch.randn(1, length, heads, per, generator=noise), torch.rand(1, length, heads, generator=noise) * 0.1
    b, c = (torch.randn(1, length, size, generator=noise) for _ in range(2))
    d, dy = torch.randn(heads, generator=noise), torch.randn(1, length, heads, per, generator=noise)
    if isinstance(part, Mamba2):
        a = -16 * torch.rand(heads, generator=noise)
    else:
        a, x, dy = -16 * torch.rand(size, heads, generator=noise), x.squeeze(-1), dy.squeeze(-1)
    leaves = [tensor.requires_grad_() for tensor in (x, dt, a, b, c, d)]

    def ours() -> object:
        y = ssd(*leaves, chunk=part.chunk_tokens)[0] if isinstance(part, Mamba2) else selective_scan(*leaves)[0]
        return torch.autograd.grad(y, leaves, dy)

    def theirs() -> object:
        if isinstance(part, Mamba2):
            y = mamba2_chunk_scan(x, dt, a, b[:, :, None], c[:, :, None], Mamba2Config().chunk_size, D=d)
        else:
            y = mamba_selective_scan(x.mT, dt.mT, a.mT, b.mT, c.mT, D=d).mT
        return torch.autograd.grad(y, leaves, dy)

    return {"ours": ours, "theirs": theirs}


def layer_steps(part: SSM, length: int) -> dict[str, Step]:
    """Our layer and the mixer, forward and backward."""
    ours, theirs = layer_of(part), mixer_of(part).train()
    return {"ours": step_of(ours.mix, ours, 1, length), "theirs": step_of(theirs, theirs, 1, length)}


def peer_table(lengths: list[int], rounds: int) -> Table:
    """The mixer's time over ours."""
    table = Table(title="transformers / morphogen (ms of morphogen), one sequence, fp32")
    for column in ("", "", *(f"T={length}" for length in lengths)):
        table.add_column(column, justify="right" if "=" in column else "left")
    for name, part in LAYERS.items():
        for what, steps_of in (("layer", layer_steps), ("scan", scan_steps)):
            cells = []
            for length in lengths:
                taken = medians(steps_of(part, length), 1 if isinstance(part, Mamba) else rounds)
                cells.append(f"{taken['theirs'] / taken['ours']:.1f}x ({taken['ours'] * 1e3:.0f})")
            table.add_row(name, what, *cells)
    return table


def growth_table(lengths: list[int], tokens: int, rounds: int) -> Table:
    """Time of ours at a constant number of tokens, and the exponent; fp32 and bf16 autocast."""
    table = Table(title=f"morphogen alone, ms for {tokens} tokens")
    for column in ("layer", "dtype", *(f"T={length}" for length in lengths), "exponent"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for name, part in LAYERS.items():
        for autocast in (False, True):
            layer = layer_of(part)

            def forward(x_BTD: torch.Tensor, layer: SSMBranch = layer, autocast: bool = autocast) -> torch.Tensor:
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    return layer.mix(x_BTD).float()

            steps = {str(t): step_of(forward, layer, tokens // t, t) for t in lengths}
            taken = list(medians(steps, rounds).values())
            each = [seconds * t / tokens for t, seconds in zip(lengths, taken, strict=True)]
            cells = [f"{seconds * 1e3:.0f}" for seconds in taken]
            table.add_row(name, "bf16" if autocast else "fp32", *cells, f"{slope(lengths, each):.2f}")
    return table


def slope(lengths: list[int], seconds: list[float]) -> float:
    """Least-squares slope in log-log."""
    xs, ys = [math.log(n) for n in lengths], [math.log(s) for s in seconds]
    mean_x, mean_y = statistics.mean(xs), statistics.mean(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer lengths and rounds")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    console = Console(width=120)
    console.print(peer_table([512] if quick else [512, 1024], 2 if quick else 5))
    console.print(
        growth_table([512, 2048] if quick else [512, 1024, 2048, 4096], 2048 if quick else 4096, 2 if quick else 3)
    )


if __name__ == "__main__":
    main()
