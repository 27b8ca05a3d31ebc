"""What bf16 costs on the machine at hand: some processors have no instructions for it, and compute it slowly."""

import statistics
import time

import torch

#: Width of the matrices that are multiplied to find out: large enough that arithmetic is what takes the time.
WIDTH = 256
#: Multiplications of each kind, taken in turns.
REPEATS = 5
#: A product in bf16 that takes this many times as long as in fp32 is worth a word.
WORTH_TELLING = 1.5


def bf16_slowdown(device: torch.device) -> float:
    """Time of a product of two matrices in bf16 over that in fp32, measured on `device`; above 1 bf16 is slower."""
    one, other = (torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(i)).to(device) for i in (0, 1))
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(1 + REPEATS):
        for dtype, taken in seconds.items():
            a, b = one.to(dtype), other.to(dtype)
            start = time.perf_counter()
            (a @ b).sum().item()
            taken.append(time.perf_counter() - start)
    fp32, bf16 = (statistics.median(taken[1:]) for taken in seconds.values())  # the first is a warm-up
    return bf16 / fp32


def bf16_warning(bf16: bool, device: torch.device) -> str:
    """What a run with `train.bf16` on this device should be told before it starts; empty where there is nothing."""
    if not bf16 or device.type != "cpu" or (ratio := bf16_slowdown(device)) < WORTH_TELLING:
        return ""
    return (
        f"train.bf16 is true, but this processor multiplies in bf16 {ratio:.2g} times slower than in fp32 (measured): "
        "training will take many times as long; set train.bf16: false"
    )
