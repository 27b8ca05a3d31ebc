"""In which precision a device is to compute: what it multiplies natively, and what bf16 costs where it does not.

Some processors have no instructions for bf16, and compute it slowly. `auto` is settled once, when a run begins, and
stands in its experiment as true or false from then on: workers, nodes of a cluster and a run that is resumed compute as
it was begun.
"""

import functools
import statistics
import time
from typing import NamedTuple

import torch

from morphogen.errors import InputError
from morphogen.experiment import Train
from morphogen.training.device import is_here
from morphogen.training.processor import bf16_instructions

#: Width of the matrices that are multiplied to find out: large enough that arithmetic is what takes the time.
WIDTH = 256
#: Multiplications of each kind, taken in turns.
REPEATS = 5
#: A product in bf16 that takes this many times as long as in fp32 is worth a word.
WORTH_TELLING = 1.5
#: On a CPU bf16 has to take at most this share of fp32's time for `auto` to choose it.
CLEARLY_FASTER = 0.8


class Precision(NamedTuple):
    """Whether to compute in bf16, and why that was chosen."""

    bf16: bool
    why: str


def chosen(train: Train, device: torch.device) -> Precision:
    """What `train.bf16` comes to on `device`: `auto` is on where that multiplies bf16 natively and, for a CPU, where
    that is measured to be clearly faster."""
    if train.bf16 != "auto":
        return Precision(train.bf16, "as asked")
    if device.type == "mps":
        return Precision(False, "auto: not available on mps")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision(native, f"auto: this device {'multiplies' if native else 'does not multiply'} bf16 natively")
    if not (flags := bf16_instructions()):
        return Precision(False, "auto: this processor has no instructions for bf16")
    ratio = bf16_slowdown(device)
    measured = f"this processor has {', '.join(flags)}, and a product in bf16 takes {ratio:.2g} of fp32's time"
    return Precision(ratio <= CLEARLY_FASTER, f"auto: {measured}")


def check_settles(train: Train, device: torch.device) -> None:
    """InputError for `auto` where this machine has no such device to settle it by."""
    if train.bf16 == "auto" and not is_here(device):
        raise InputError(f"train.bf16: auto depends on the device, and there is no {device} here; set true or false")


def settled(train: Train, device: torch.device) -> Train:
    """`train` with `bf16` as true or false."""
    return train if train.bf16 != "auto" else train.model_copy(update={"bf16": chosen(train, device).bf16})


@functools.cache
def bf16_slowdown(device: torch.device) -> float:
    """Time of a product of two matrices in bf16 over that in fp32, measured once on `device`; above 1 it is slower."""
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


def bf16_warning(train: Train, device: torch.device) -> str:
    """What a run that asks for `train.bf16` on this device should be told before it starts; empty where there is
    nothing."""
    if train.bf16 is not True or device.type != "cpu" or (ratio := bf16_slowdown(device)) < WORTH_TELLING:
        return ""
    return (
        f"train.bf16 is true, but this processor multiplies in bf16 {ratio:.2g} times slower than in fp32 (measured): "
        "training will take many times as long; set train.bf16: false, or auto"
    )


def told(train: Train, device: torch.device) -> str:
    """In which precision this device will train, and why, in a line."""
    found = chosen(train, device)
    return f"{'bf16' if found.bf16 else 'fp32'} ({found.why})"
