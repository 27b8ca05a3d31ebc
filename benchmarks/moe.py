"""Step cost (forward and backward, one thread) of mixtures of experts, against a dense layer and transformers' Mixtral.

The dense layer does the same active FLOPs: its hidden size is that of the experts one token runs. `skewed` means that
the router prefers some experts, the busiest by several times. Weights and inputs are in the dtype of the table.
Contestants take turns; times are medians, and ratios are to the dense layer: lower is better.

    python benchmarks/moe.py [--quick]

N tokens, D model dim, E experts, K choices
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralSparseMoeBlock

from morphogen.ops import routing
from morphogen.parts.base import Context
from morphogen.parts.mlp import MLP
from morphogen.parts.moe import MoE

DIM, HIDDEN, CHOICES, TOKENS = 256, 512, 2, 2048
CONTEXT = Context(dim=DIM, norm="rmsnorm", vocab=1, init_std=0.02, branches=1)
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


def step_of(function: Callable[[Tensor], Tensor], module: nn.Module, x_BTD: Tensor) -> Step:
    """A forward and a backward pass to the input and all parameters."""
    x_BTD = x_BTD.clone().requires_grad_()
    leaves = [x_BTD, *(p for name, p in module.named_parameters() if not name.startswith("norm"))]
    gradient = torch.randn_like(x_BTD)
    return lambda: torch.autograd.grad(function(x_BTD), leaves, gradient)


def module_of(part: MoE | MLP, dtype: torch.dtype) -> Any:
    """The part's module, freshly drawn."""
    module = part.build(CONTEXT)
    draw = torch.Generator().manual_seed(0)
    module.load_state_dict(
        {n: torch.randn(s.shape, generator=draw) / 16 for n, s in part.specs(CONTEXT).items()}, strict=True
    )
    return module.to(dtype)


def mixtral(n_experts: int, implementation: str, ours: Any, dtype: torch.dtype) -> nn.Module:
    """Transformers' layer with our weights."""
    config = MixtralConfig(
        hidden_size=DIM, intermediate_size=HIDDEN, num_local_experts=n_experts, num_experts_per_tok=CHOICES
    )
    config._experts_implementation = implementation
    module: Any = MixtralSparseMoeBlock(config).to(dtype)
    with torch.no_grad():
        module.gate.weight.copy_(ours.router.weight)
        module.experts.gate_up_proj.copy_(torch.cat([ours.gate.weight, ours.up.weight], 1))
        module.experts.down_proj.copy_(ours.down.weight.mT)
    return module  # type: ignore[no-any-return]


def row(n_experts: int, skewed: bool, dtype: torch.dtype, rounds: int) -> list[str]:
    """Ratios to the dense layer, and how busy the busiest expert is."""
    part = MoE(hidden=HIDDEN, n_experts=n_experts, k=CHOICES)
    ours = module_of(part, dtype)
    x_BTD = torch.randn(8, TOKENS // 8, DIM, generator=torch.Generator().manual_seed(1))
    x_BTD[..., 0] = 1.0
    with torch.no_grad():
        ours.router.weight[:, 0] = torch.linspace(0, 2.5, n_experts) if skewed else 0.0
    x_BTD = x_BTD.to(dtype)
    dense = module_of(MLP(hidden=CHOICES * HIDDEN), dtype)
    steps = {"dense": step_of(dense.mix, dense, x_BTD), "morphogen": step_of(ours.mix, ours, x_BTD)}
    for name in ("grouped_mm", "eager"):
        peer = mixtral(n_experts, name, ours, dtype)
        if dtype == torch.float32:  # in bf16 the peer's router rounds, and sends some tokens elsewhere
            torch.testing.assert_close(peer(x_BTD), ours.mix(x_BTD), rtol=1e-3, atol=1e-4)
        steps[name] = step_of(peer, peer, x_BTD)
    with torch.no_grad():
        logits_NF = x_BTD.flatten(0, 1) @ ours.router.weight.T
        load_E = routing.choose(logits_NF, CHOICES, "softmax").places_NK.flatten().bincount(minlength=n_experts)
    taken = medians(steps, rounds)
    busy = float(load_E.max() / load_E.double().mean())
    ratios = [f"{taken[name] / taken['dense']:.2f}" for name in ("morphogen", "grouped_mm", "eager")]
    return [f"{n_experts} experts, busiest {busy:.1f}x", f"{taken['dense'] * 1e3:.0f}", *ratios]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Step cost of mixtures of experts against dense and Mixtral.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 3 if parser.parse_args().quick else 9
    torch.set_num_threads(1)
    console = Console(width=120)
    console.print(f"{TOKENS} tokens, dim {DIM}, hidden {HIDDEN}, top-{CHOICES}, forward and backward, one thread.")
    for dtype in (torch.float32, torch.bfloat16):
        table = Table(title=f"{dtype}: time / time of a dense layer of the same active FLOPs")
        for column in ("", "dense, ms", "morphogen", "Mixtral grouped", "Mixtral eager"):
            table.add_column(column, justify="right")
        for n_experts in (8, 32):
            for skewed in (False, True):
                table.add_row(*row(n_experts, skewed, dtype, rounds))
        console.print(table)


if __name__ == "__main__":
    main()
