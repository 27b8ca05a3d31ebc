"""Candidates on devices: who begins where, what becomes of those for whom memory is short and of a device that is lost.

A pretended allocator of pretended devices: what a candidate really takes is known to it alone.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphogen.execution.placement import (
    CONTEXT_BYTES,
    FEW,
    MARGIN,
    SLACK,
    UNSEEN,
    Device,
    Floor,
    Need,
    boundless,
    found,
    pins,
    place,
)

GIB = 2**30


def device(k: int, gib: float) -> Device:
    """A device with so much room for candidates."""
    total = int(gib * GIB / (1 - SLACK)) + 1
    return Device(f"cuda:{k}", str(k), "cuda", total, total)


@dataclass(frozen=True)
class Sham:
    """A candidate that is predicted to take `said` GiB and takes `real` ones, fewer in parts, but for `fixed`."""

    said: float
    real: float
    seconds: int = 1
    fixed: float = 0.0

    def takes(self, parts: int) -> float:
        return self.fixed + (self.real - self.fixed) / parts


@dataclass
class Shop:
    """A run of candidates on pretended devices. `told` says what happened, `trained` in how many parts each batch went;
    0 is a failure."""

    room: Sequence[float]
    batch: int = 8
    workers: int = 4
    told: list[str] = field(default_factory=list)
    trained: dict[str, int] = field(default_factory=dict)

    def run(self, shams: Mapping[str, Sham], lost: Mapping[int, int] = {}) -> None:
        """lost: second -> the device that is gone then."""
        names, candidates = list(shams), list(shams.values())
        floor = self.floor = Floor([device(k, gib) for k, gib in enumerate(self.room)])
        unit = UNSEEN * GIB  # so that predictions are those said as long as little was seen
        for key, sham in enumerate(candidates):
            floor.add(key, max(1.0, (sham.said * GIB - CONTEXT_BYTES) * GIB / unit))
        held: dict[int, tuple[str, float, int]] = {}
        ends: list[tuple[int, int]] = [(second, -1 - k) for second, k in lost.items()]
        heapq.heapify(ends)
        now = 0
        while True:
            begun = floor.begin(self.workers - len(held))
            while begun:
                for key, where in begun:
                    self._begins(floor, key, names[key], candidates[key], where, held, ends, now)
                begun = floor.begin(self.workers - len(held))
            if not ends:
                return
            now, what = heapq.heappop(ends)
            if what < 0:
                self._loses(floor, -1 - what, names, held, ends)
            else:
                _, taken, parts = held.pop(what)
                self.trained[names[what]] = parts
                floor.done(what, taken * GIB - CONTEXT_BYTES if parts == 1 else None)
                self.told.append(f"{names[what]} trained" + ("" if parts == 1 else f" in {parts} parts"))

    def _begins(self, floor, key, name, sham, where, held, ends, now) -> None:
        _, need = floor.at_work(key)
        alone = " alone" if need.alone else ""
        free = self.room[int(where.name[-1])] - sum(taken for at, taken, _ in held.values() if at == where.name)
        self.told.append(f"{name} on {where.name}{alone}")
        if not need.alone and sham.takes(1) > free:
            self.told.append(f"{name} out of memory")
            floor.again(key, alone=True)
            return
        parts = next((2**k for k in range(self.batch.bit_length()) if sham.takes(2**k) <= free), 0)
        if not parts:
            self.told.append(f"{name} failed")
            self.trained[name] = 0
            floor.done(key)
            return
        held[key] = where.name, sham.takes(parts), parts
        heapq.heappush(ends, (now + sham.seconds, key))

    def _loses(self, floor, k, names, held, ends) -> None:
        gone = next((each for each in floor.devices if each.name == f"cuda:{k}"), None)
        if gone is None:
            return
        self.told.append(f"{gone.name} lost")
        for key in floor.lost(gone):
            held.pop(key)
            ends[:] = [(second, what) for second, what in ends if what != key]
        heapq.heapify(ends)


#: What happens -> room of the devices, candidates, devices that are lost, what is told.
CASES: dict[str, tuple[Sequence[float], Mapping[str, Sham], Mapping[int, int], str]] = {
    "one has the emptiest": ((4, 8), {"a": Sham(3, 3)}, {}, "a on cuda:1, a trained"),
    "one a device": (
        (8, 8),
        {"a": Sham(3, 3), "b": Sham(3, 3)},
        {},
        "a on cuda:0, b on cuda:1, a trained, b trained",
    ),
    "two fit on one": ((8,), {"a": Sham(3, 3), "b": Sham(4, 4)}, {}, "a on cuda:0, b on cuda:0, a trained, b trained"),
    "the third waits": (
        (8,),
        {"a": Sham(3, 3, 1), "b": Sham(4, 4, 2), "c": Sham(3, 3)},
        {},
        "a on cuda:0, b on cuda:0, a trained, c on cuda:0, b trained, c trained",
    ),
    "predicted too big for all, has the largest to itself": (
        (4, 8),
        {"a": Sham(20, 7, 3), "b": Sham(1, 1), "c": Sham(6, 6)},
        {},
        "a on cuda:1 alone, b on cuda:0, b trained, a trained, c on cuda:1, c trained",
    ),
    "too big, goes in parts": (
        (8,),
        {"a": Sham(20, 20, fixed=2), "b": Sham(1, 1)},
        {},
        "a on cuda:0 alone, a trained in 4 parts, b on cuda:0, b trained",
    ),
    "too big in single sequences": (
        (8,),
        {"a": Sham(20, 20, fixed=9), "b": Sham(1, 1)},
        {},
        "a on cuda:0 alone, a failed, b on cuda:0, b trained",
    ),
    "out of memory once, beside another": (
        (8,),
        {"a": Sham(3, 6, 2), "b": Sham(3, 5), "c": Sham(1, 1)},
        {},
        "a on cuda:0, b on cuda:0, b out of memory, c on cuda:0, c trained, a trained, b on cuda:0 alone, b trained",
    ),
    "out of memory twice": (
        (8,),
        {"a": Sham(3, 3, 2), "b": Sham(3, 9, fixed=1)},
        {},
        "a on cuda:0, b on cuda:0, b out of memory, a trained, b on cuda:0 alone, b trained in 2 parts",
    ),
    "out of memory, while other devices work on": (
        (8, 8),
        {"a": Sham(5, 5, 3), "b": Sham(3, 7, 5), "c": Sham(4, 7), "d": Sham(1, 1)},
        {},
        "a on cuda:0, b on cuda:1, c on cuda:1, c out of memory, d on cuda:0, d trained, a trained, "
        "c on cuda:0 alone, c trained, b trained",
    ),
    "a device lost": (
        (8, 8),
        {"a": Sham(5, 5, 3), "b": Sham(5, 5, 3), "c": Sham(3, 3, 1), "d": Sham(5, 5)},
        {2: 0},
        "a on cuda:0, b on cuda:1, c on cuda:0, c trained, cuda:0 lost, b trained, a on cuda:1, a trained, "
        "d on cuda:1, d trained",
    ),
    "all lost": ((8, 8), {"a": Sham(5, 5, 9), "b": Sham(5, 5, 9)}, {1: 0, 2: 1}, "a on cuda:0, b on cuda:1, "
        "cuda:0 lost, cuda:1 lost"),
    "the large one is not kept waiting by small ones": (
        (8,),
        {"a": Sham(3, 3, 3), "b": Sham(3, 3, 1), "c": Sham(7, 7), "d": Sham(3, 3), "e": Sham(3, 3)},
        {},
        "a on cuda:0, b on cuda:0, b trained, a trained, c on cuda:0, c trained, d on cuda:0, e on cuda:0, d trained, "
        "e trained",
    ),
    "small ones overtake it elsewhere": (
        (4, 8),
        {"a": Sham(3, 3, 1), "b": Sham(7, 7, 4), "c": Sham(7, 7), "d": Sham(3, 3), "e": Sham(3, 3)},
        {},
        "a on cuda:1, d on cuda:0, a trained, b on cuda:1, d trained, e on cuda:0, e trained, b trained, "
        "c on cuda:1, c trained",
    ),
    "predictions follow what is seen": (
        (8,),
        {name: Sham(2, 2.6) for name in "abcdefg"},
        {},
        "a on cuda:0, b on cuda:0, c on cuda:0, d on cuda:0, d out of memory, a trained, b trained, c trained, "
        "d on cuda:0 alone, d trained, e on cuda:0, f on cuda:0, e trained, g on cuda:0, f trained, g trained",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_who_begins_where_and_what_becomes_of_it(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    room, shams, lost, want = CASES[case]
    shop = Shop(room)
    shop.run(shams, lost)
    print(f"{case:<55} {', '.join(shop.told)}")
    assert ", ".join(shop.told) == want


def test_predictions_are_corrected_by_the_worst_that_was_seen_lately() -> None:
    floor = Floor([device(0, 64)])
    for key in range(100):
        floor.add(key, 1000.0)
    assert floor.correction == UNSEEN
    floor.begin(100)
    assert floor.at_work(0)[1] == Need(CONTEXT_BYTES + int(1000 * UNSEEN))
    for key in range(FEW):
        floor.done(key, 900.0)
    assert floor.correction == pytest.approx(0.9 * MARGIN)
    floor.done(FEW, 2500.0)
    floor.done(FEW + 1)  # of which nothing was seen
    assert floor.correction == pytest.approx(2.5 * MARGIN)
    for key in range(FEW + 2, FEW + 34):
        floor.done(key, 900.0)
    assert floor.correction == pytest.approx(0.9 * MARGIN)


@st.composite
def _floors(draw: st.DrawFn) -> tuple[Floor, list[int]]:
    """Devices and candidates, of whole numbers of bytes."""
    sizes = draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
    floor = Floor([Device(f"cuda:{k}", str(k), "cuda", size, 0) for k, size in enumerate(sizes)])
    return floor, draw(st.lists(st.integers(1, 10), min_size=1, max_size=20))


@given(_floors(), st.integers(1, 6), st.data())
def test_nobody_exceeds_a_device_by_prediction_unless_alone_and_all_come_to_an_end(
    made: tuple[Floor, list[int]], workers: int, data: st.DataObject
) -> None:
    floor, sizes = made
    needs = [Need(size) for size in sizes]
    at_work: dict[int, Device] = {}
    ended: list[int] = []
    waiting = list(range(len(needs)))
    while waiting or at_work:
        held = {each.name: [needs[key] for key, where in at_work.items() if where == each] for each in floor.devices}
        begun = place(floor.devices, held, [needs[key] for key in waiting], workers - len(at_work))
        assert begun or at_work  # somebody always computes
        assert [position for position, _ in begun] == sorted({position for position, _ in begun})
        at_work |= {waiting[position]: where for position, where in begun}
        assert len(at_work) <= workers
        waiting = [key for key in waiting if key not in at_work]
        for each in floor.devices:
            there = [needs[key] for key, where in at_work.items() if where == each]
            assert len(there) < 2 or sum(need.bytes for need in there) <= each.room_bytes
            assert len(there) < 2 or not any(need.alone for need in there)
        key = data.draw(st.sampled_from(sorted(at_work)))
        del at_work[key]
        match data.draw(st.sampled_from(("ends", "ends", "short"))):
            case "short" if not needs[key].alone:
                needs[key] = Need(needs[key].bytes, alone=True)
                waiting.insert(0, key)
            case _:
                ended.append(key)
    assert sorted(ended) == list(range(len(needs)))


@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=3),
    st.booleans(),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=30),
)
def test_the_first_in_line_begins_however_many_small_ones_come_after_it(
    sizes: list[int], alone: bool, small: list[tuple[int, int]]
) -> None:
    devices = [Device(f"cuda:{k}", str(k), "cuda", size, 0) for k, size in enumerate(sizes)]
    large = Need(max(sizes), alone)
    at_work = [(small[k % len(small)], device) for k, device in enumerate(devices)]  # (need, seconds left) and where
    queue, drawn = [(large, 0)], len(devices)
    # whenever all that compute now are done, the device kept for it is emptier by one at least, or another is
    for _ in range(5 * len(devices) * (1 + max(sizes))):
        held = {each.name: [Need(need) for (need, _), where in at_work if where == each] for each in devices}
        more = [small[(drawn + k) % len(small)] for k in range(12)]
        begun = place(devices, held, [need for need, _ in queue] + [Need(need) for need, _ in more], 99)
        if begun and begun[0][0] == 0:
            return
        at_work += [(more[position - 1], where) for position, where in begun]
        drawn += len(begun)
        at_work = [((need, left - 1), where) for (need, left), where in at_work if left > 1]
    raise AssertionError("it never began")


def test_a_device_without_bounds_takes_all_in_order() -> None:
    floor = Floor([boundless("cpu")])
    for key in range(5):
        floor.add(key)
    assert [key for key, _ in floor.begin(3)] == [0, 1, 2]
    floor.again(1)
    assert [key for key, _ in floor.begin(2)] == [1, 3]
    floor.clear()
    assert floor.begin(9) == []


@pytest.mark.parametrize(
    ("visible", "want"),
    [
        (None, ["0", "1"]),
        ("2,5", ["2", "5"]),
        ("5, 2", ["5", "2"]),
        ("GPU-8a1c,GPU-77b0", ["GPU-8a1c", "GPU-77b0"]),
        ("MIG-1f/7/0,MIG-2f/7/0,MIG-3", ["MIG-1f/7/0", "MIG-2f/7/0"]),
        ("3,1,-1,2", ["3", "1"]),  # CUDA stops at what is none
    ],
)
def test_a_worker_sees_the_device_that_this_process_sees_under_a_number(
    visible: str | None, want: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pins(visible, 2) == want
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    memory = [(70 * GIB, 80 * GIB), (80 * GIB, 80 * GIB)]
    devices = found("cuda", memory)
    assert [(each.name, each.pinned) for each in devices] == [("cuda:0", want[0]), ("cuda:1", want[1])]
    assert found("cuda:1", memory) == devices[1:]
    assert found("cuda", [None, memory[1]]) == devices[1:]
    assert devices[0].room_bytes == 70 * GIB - int(SLACK * 80 * GIB)
