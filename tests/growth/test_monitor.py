"""What a machine has room for, decided on faked snapshots; and what actions take."""

from itertools import product

import pytest
import torch

from morphogen.blueprint.growth import GrowthAction
from morphogen.growth.monitor import GROWING, SORTS, Ceilings, Machine, Memory, Snapshot, Verdict, decide

USUAL = Ceilings()
ALL = dict.fromkeys((*GROWING, Verdict.PRUNE), 10)


def machine(ram: int = 50, vram: int = 50, load: float = 0.1, *, on_device: bool = True) -> Snapshot:
    return Snapshot(Memory(vram, 100), Memory(ram, 100), load, on_device)


def test_every_action_has_its_sort() -> None:
    names = {kind.model_fields["action"].default for kind in GrowthAction.__origin__.__args__}
    assert set(SORTS) == names


@pytest.mark.parametrize(
    ("snapshot", "wants", "verdict"),
    [
        (machine(), ALL, Verdict.WIDTH),
        (machine(), {Verdict.DEPTH: 10, Verdict.MOE: 10}, Verdict.DEPTH),
        (machine(), {Verdict.MOE: 10}, Verdict.MOE),
        (machine(), {Verdict.WIDTH: 90, Verdict.DEPTH: 10}, Verdict.DEPTH),
        (machine(), {Verdict.WIDTH: 90, Verdict.DEPTH: 90, Verdict.MOE: 90}, Verdict.NO_BUDGET),
        (machine(), {Verdict.WIDTH: 90, Verdict.PRUNE: 0}, Verdict.PRUNE),
        (machine(), {Verdict.PRUNE: 0}, Verdict.WAIT),
        (machine(), {}, Verdict.WAIT),
        (machine(load=0.6), ALL, Verdict.WAIT),
        (machine(ram=99), ALL, Verdict.PRUNE),
        (machine(ram=99), {Verdict.WIDTH: 0}, Verdict.NO_BUDGET),
        (machine(vram=85), {Verdict.WIDTH: 0}, Verdict.NO_BUDGET),
        (machine(ram=99, load=0.9), {Verdict.WIDTH: 0}, Verdict.NO_BUDGET),
        (machine(vram=80), {Verdict.WIDTH: 5}, Verdict.NO_BUDGET),  # of the device's memory
        (machine(vram=80), {Verdict.WIDTH: 4}, Verdict.WIDTH),
        (machine(ram=75, on_device=False), {Verdict.WIDTH: 5}, Verdict.NO_BUDGET),  # of the machine's
        (machine(ram=75), {Verdict.WIDTH: 5}, Verdict.WIDTH),
        (Snapshot(ram=Memory(10, 100)), {Verdict.WIDTH: 60}, Verdict.WIDTH),  # no device
    ],
)
def test_the_decision_table(snapshot: Snapshot, wants: dict[Verdict, int], verdict: Verdict) -> None:
    assert decide(snapshot, USUAL, wants) is verdict


def test_nothing_grows_where_memory_is_short() -> None:
    sorts = (*GROWING, Verdict.PRUNE)
    for ram, vram, load, wanted in product((10, 99), (10, 99), (0.0, 1.0), product((False, True), repeat=4)):
        if ram < 99 and vram < 99:
            continue
        wants = {sort: 0 for sort, asked in zip(sorts, wanted, strict=True) if asked}
        for on_device in (False, True):
            assert decide(machine(ram, vram, load, on_device=on_device), USUAL, wants) not in GROWING


def test_a_snapshot_is_of_this_machine() -> None:
    seen = Machine(torch.device("cpu")).snapshot()
    assert 0 < seen.ram.used < seen.ram.total
    assert 0.0 <= seen.load <= 1.0
    assert seen.vram.share(10**12) == 0.0
    assert "RAM" in str(seen)
