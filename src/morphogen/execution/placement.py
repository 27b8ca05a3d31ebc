"""Which candidate computes on which of a machine's devices, and when. Decisions alone: no torch, no processes.

A candidate needs so many bytes, as predicted of its architecture and corrected by what candidates before it took. It
begins where that fits beside what computes there already, several small ones on one device. The first in line that fits
nowhere yet has a device kept free for it, so that later ones, which may overtake it elsewhere, do not keep it waiting
for ever. What no device has room for has the largest to itself.
"""

import os
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

#: What a process holds of an accelerator's memory beside its tensors: its context and its kernels.
CONTEXT_BYTES = 600 * 2**20
#: Of a device's memory so much stays free: for contexts of workers that wait, and for pieces that are too small.
SLACK = 0.08
#: Candidates may take so many times what is predicted, as long as fewer than `FEW` have been seen.
UNSEEN, FEW = 1.3, 4
#: So many times the worst of the last `REMEMBERED` seen: an allocator holds more than is in use.
MARGIN, REMEMBERED = 1.1, 32


@dataclass(frozen=True)
class Device:
    """A device that candidates compute on.

    Attributes:
        name: As this process calls it: `cuda:1`, or `cpu`.
        pinned: What `CUDA_VISIBLE_DEVICES` is for a worker that sees it alone; None where there is nothing to see.
        kind: As such a worker calls it.
        free_bytes: Of memory that others leave, before any candidate is there.
        total_bytes: Of memory.
    """

    name: str
    pinned: str | None
    kind: str
    free_bytes: int
    total_bytes: int

    @property
    def room_bytes(self) -> int:
        """What candidates may take of it together, by prediction."""
        return max(0, self.free_bytes - int(SLACK * self.total_bytes))


def boundless(name: str) -> Device:
    """A device on which candidates are not placed by memory, as a machine's processors are."""
    return Device(name, None, name, sys.maxsize, sys.maxsize)


@dataclass(frozen=True)
class Need:
    """Memory that a candidate is predicted to take, and whether it is to have a device to itself."""

    bytes: int
    alone: bool = False


def place(
    devices: Sequence[Device], at_work: Mapping[str, Sequence[Need]], waiting: Sequence[Need], most: int
) -> list[tuple[int, Device]]:
    """Who begins where, now.

    Args:
        devices: That answer.
        at_work: By name of the device, what those need that compute there.
        waiting: What those need that wait, in order.
        most: How many may begin.

    Returns:
        Positions in `waiting`, in order, each with its device: of those that it fits on now the one with the fewest at
        work, then the one with the most room. Sums of what is predicted exceed no device's room, but for one that is
        alone on its device.
    """
    held = {device.name: list(at_work.get(device.name, ())) for device in devices}
    begun: list[tuple[int, Device]] = []
    kept: Device | None = None
    for position, need in enumerate(waiting):
        if len(begun) == most:
            break
        able = _able(devices, need)
        fitting = [device for device in able if device != kept and _fits(device, held[device.name], need)]
        if fitting:
            device = min(
                fitting, key=lambda device: (len(held[device.name]), _taken(held[device.name]) - device.room_bytes)
            )
            held[device.name].append(need)
            begun.append((position, device))
        elif kept is None and able:
            # of this one what is held only shrinks from now on, so that no other can stand in for it again and again
            kept = min(able, key=lambda device: _taken(held[device.name]) - (0 if need.alone else device.room_bytes))
    return begun


def _able(devices: Sequence[Device], need: Need) -> list[Device]:
    """Devices that have enough room for it when they are empty; where none has, those with the most."""
    enough = [device for device in devices if need.bytes <= device.room_bytes]
    largest = max((device.room_bytes for device in devices), default=0)
    return enough or [device for device in devices if device.room_bytes == largest]


def _fits(device: Device, held: Sequence[Need], need: Need) -> bool:
    if not held:
        return True
    shares = not need.alone and not any(other.alone for other in held)
    return shares and _taken(held) + need.bytes <= device.room_bytes


def _taken(held: Sequence[Need]) -> int:
    return sum(need.bytes for need in held)


@dataclass(frozen=True)
class _Waiting:
    key: int
    predicted_bytes: float
    alone: bool = False


class Floor:
    """A machine's devices, who computes on them, and who waits. Who is known by a number.

    devices: that there are.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        #: whether there is memory to place by
        self.by_memory = any(device.pinned is not None for device in devices)
        self.devices = tuple(devices)
        self._waiting: deque[_Waiting] = deque()
        self._at_work: dict[int, tuple[_Waiting, Device, Need]] = {}
        self._ratios: deque[float] = deque(maxlen=REMEMBERED)

    def add(self, key: int, predicted_bytes: float = 0.0) -> None:
        """One more that waits, behind all others. predicted_bytes: as its architecture tells; 0 where that is nothing
        to place it by."""
        self._waiting.append(_Waiting(key, predicted_bytes))

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def clear(self) -> None:
        """Nobody waits or computes any more; what was seen stays known."""
        self._waiting.clear()
        self._at_work.clear()

    def begin(self, most: int) -> list[tuple[int, Device]]:
        """At most so many of those that wait, each with the device on which it begins now."""
        needs = [self._need(one) for one in self._waiting]
        begun = place(self.devices, self._held(), needs, most)
        waiting = list(self._waiting)
        for position, device in begun:
            need = needs[position]
            need = replace(need, alone=need.alone or need.bytes > device.room_bytes)  # by itself it is so anyway
            self._at_work[waiting[position].key] = waiting[position], device, need
        gone = {position for position, _ in begun}
        self._waiting = deque(one for position, one in enumerate(waiting) if position not in gone)
        return [(waiting[position].key, device) for position, device in begun]

    def at_work(self, key: int) -> tuple[Device, Need]:
        """Where it computes, and what it is predicted to need there."""
        _, device, need = self._at_work[key]
        return device, need

    def done(self, key: int, seen_bytes: float | None = None) -> None:
        """It computes no more. seen_bytes: the most that its tensors held, where that was looked at; predictions are
        corrected by it."""
        one, _, _ = self._at_work.pop(key)
        if seen_bytes is not None and one.predicted_bytes > 0.0:
            self._ratios.append(seen_bytes / one.predicted_bytes)

    def again(self, key: int, *, alone: bool = False) -> None:
        """It computes no more, and is the first of those that wait. alone: it is to have a device to itself from now
        on."""
        one, _, _ = self._at_work.pop(key)
        self._waiting.appendleft(replace(one, alone=one.alone or alone))

    def lost(self, device: Device) -> list[int]:
        """A device is taken out. Those that computed there are the first of those that wait, in order; who they are."""
        self.devices = tuple(each for each in self.devices if each != device)
        there = [key for key, (_, where, _) in self._at_work.items() if where == device]
        for key in reversed(there):
            self.again(key)
        return there

    def _held(self) -> dict[str, list[Need]]:
        held: dict[str, list[Need]] = {}
        for _, device, need in self._at_work.values():
            held.setdefault(device.name, []).append(need)
        return held

    def _need(self, one: _Waiting) -> Need:
        if one.predicted_bytes == 0.0:
            return Need(0, one.alone)
        return Need(CONTEXT_BYTES + int(one.predicted_bytes * self.correction), one.alone)

    @property
    def correction(self) -> float:
        """What predictions are multiplied by, as far as is known by now."""
        seen = MARGIN * max(self._ratios, default=0.0)
        return seen if len(self._ratios) >= FEW else max(seen, UNSEEN)


def pins(visible: str | None, count: int) -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` has to be for a process that is to see the k-th device of this one alone, by k.

    visible: what it is here; None where it is not set. Devices keep the numbers or names that the variable has for them
    here, so that a scheduler's choice of them stays in force.
    """
    if visible is None:
        return [str(k) for k in range(count)]
    return [name.strip() for name in visible.split(",")][:count]


def found(name: str, memory: Sequence[tuple[int, int] | None]) -> tuple[Device, ...]:
    """The CUDA devices that candidates are placed on.

    Args:
        name: `cuda` for all that this process sees, `cuda:N` for one of them.
        memory: Of each that it sees, what is free and what there is, in bytes; None where it does not answer.
    """
    names = pins(os.environ.get("CUDA_VISIBLE_DEVICES"), len(memory))
    devices = [
        Device(f"cuda:{k}", pinned, "cuda", *sizes)
        for k, (pinned, sizes) in enumerate(zip(names, memory, strict=True))
        if sizes is not None
    ]
    return tuple(device for device in devices if name in ("cuda", device.name))
