"""What a machine has left, what an action would take of it, and what that leaves to be done. No torch at import.

Only what a snapshot says depends on the machine and on the clock; all else is computed.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import psutil

from morphogen.blueprint.growth import GrowthAction
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.parts.contract.tensors import Spec

if TYPE_CHECKING:
    import torch

#: Bytes of a number: weights, gradients and moments are fp32.
NUMBER = 4


class Verdict(StrEnum):
    """What there is room for."""

    WAIT = "wait"  # the processors are busy, which passes; or nothing is wanted
    WIDTH = "width"
    DEPTH = "depth"
    MOE = "moe"
    PRUNE = "prune"  # memory is short, and something may go
    NO_BUDGET = "no_budget"  # memory is short, and waiting does not help


#: What fills memory, in the order in which it is tried where several are wanted.
GROWING = (Verdict.WIDTH, Verdict.DEPTH, Verdict.MOE)

#: What each action does to a model's memory.
SORTS: Mapping[str, Verdict] = {
    "widen": Verdict.WIDTH,
    "grow_vocabulary": Verdict.WIDTH,
    "deepen": Verdict.DEPTH,
    "to_moe": Verdict.MOE,
    "add_experts": Verdict.MOE,
    "split_experts": Verdict.MOE,
    "cross_experts": Verdict.MOE,
    "prune_experts": Verdict.PRUNE,
    "merge_experts": Verdict.PRUNE,
    "drop_layer": Verdict.PRUNE,
    "narrow": Verdict.PRUNE,
}


def sort_of(action: GrowthAction) -> Verdict:
    """What an action does to a model's memory."""
    return SORTS[action.action]


@dataclass(frozen=True)
class Memory:
    """Bytes of one memory. A machine without one has a total of 0, and nothing is ever short of it."""

    used: int = 0
    total: int = 0

    def share(self, more: int = 0) -> float:
        """How much of it is used, with `more` bytes."""
        return (self.used + more) / self.total if self.total > 0 else 0.0


@dataclass(frozen=True)
class Snapshot:
    """A machine at one moment. load: of its processors, as a share. on_device: whether the model lies in `vram`, else
    it lies in `ram`."""

    vram: Memory = field(default_factory=Memory)
    ram: Memory = field(default_factory=Memory)
    load: float = 0.0
    on_device: bool = False

    def __str__(self) -> str:
        held = [f"{name} {memory.share():.0%}" for name, memory in (("VRAM", self.vram), ("RAM", self.ram))]
        known = [text for text, memory in zip(held, (self.vram, self.ram), strict=True) if memory.total > 0]
        return ", ".join([*known, f"compute {self.load:.0%}"])


@dataclass(frozen=True)
class Ceilings:
    """Shares that must not be passed."""

    vram: float = 0.85
    ram: float = 0.80
    compute: float = 0.60


def decide(snapshot: Snapshot, ceilings: Ceilings, wants: Mapping[Verdict, int]) -> Verdict:
    """What there is room for. wants: WIDTH, DEPTH, MOE or PRUNE -> the bytes that it would take.

    | memory now | processors | wanted | verdict |
    |---|---|---|---|
    | at a ceiling | any | PRUNE | PRUNE |
    | at a ceiling | any | no PRUNE | NO_BUDGET |
    | below | at the ceiling | any | WAIT |
    | below | below | none but PRUNE | WAIT |
    | below | below | some that fit | the first of WIDTH, DEPTH, MOE that fits |
    | below | below | some, none fits | PRUNE where wanted, else NO_BUDGET |

    What fits stays below the ceilings of device memory and of RAM, each by what it would add there.
    """

    def short(more: int) -> bool:
        on_device, in_ram = (more, 0) if snapshot.on_device else (0, more)
        return snapshot.vram.share(on_device) >= ceilings.vram or snapshot.ram.share(in_ram) >= ceilings.ram

    without_room = Verdict.PRUNE if Verdict.PRUNE in wants else Verdict.NO_BUDGET
    if short(0):
        return without_room
    wanted = [sort for sort in GROWING if sort in wants]
    if snapshot.load >= ceilings.compute or not wanted:
        return Verdict.WAIT
    return next((sort for sort in wanted if not short(wants[sort])), without_room)


#: Names of `psutil.cpu_times`: a processor that waits for a disk works for nobody, and a guest's time is in `user`.
WAITING, COUNTED_TWICE = ("idle", "iowait"), ("guest", "guest_nice")


class Machine:
    """The machine that a training runs on. Its load is that of other processes since the last snapshot: what this
    training itself takes of the processors, it would take of any."""

    def __init__(self, device: "torch.device") -> None:
        self._device = device
        self._process = psutil.Process()
        self._last = self._seconds()

    def _seconds(self) -> tuple[float, float]:
        """All processors' seconds so far, and those that others than this process kept them busy."""
        times, own = psutil.cpu_times()._asdict(), self._process.cpu_times()
        whole = sum(seconds for name, seconds in times.items() if name not in COUNTED_TWICE)
        idle = sum(times.get(name, 0.0) for name in WAITING)
        return whole, whole - idle - own.user - own.system

    def snapshot(self) -> Snapshot:
        """As it is now."""
        now = self._seconds()
        whole, busy = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        load = min(1.0, max(0.0, busy / whole)) if whole > 0.0 else 0.0
        memory = psutil.virtual_memory()
        ram = Memory(memory.total - memory.available, memory.total)
        if self._device.type != "cuda":
            return Snapshot(ram=ram, load=load)
        import torch

        free, total = torch.cuda.mem_get_info(self._device)
        reusable = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return Snapshot(Memory(total - free - reusable, total), ram, load, on_device=True)


#: How many numbers are kept for each entry of a parameter: an optimizer's, and an average where there is one.
Kept = Callable[[Spec], int]


def two_moments(spec: Spec) -> int:
    """As AdamW keeps them."""
    return 2


def held_bytes(blueprint: Blueprint, kept: Kept = two_moments) -> int:
    """Bytes of a model's weights and buffers, of its parameters' gradients, and of what is kept of these."""
    entries = 0
    for _, _, spec in specs(blueprint.nominal).values():
        entries += math.prod(spec.shape) * (2 + kept(spec) if spec.trained else 1)
    return NUMBER * entries


def added_bytes(before: Blueprint, after: Blueprint, kept: Kept = two_moments) -> int:
    """What `held_bytes` will have grown by: negative where it shrinks."""
    return held_bytes(after, kept) - held_bytes(before, kept)
