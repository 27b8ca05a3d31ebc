"""When rules of growth fire: on synthetic curves, on counts, and combined."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from morphogen.blueprint.triggers import Trigger
from morphogen.growth.monitor import Ceilings, Memory, Snapshot, Verdict
from morphogen.growth.triggers import LATER, Fired, Signals, Since, Watched, ahead, fired, flat, reach

READ: TypeAdapter[Trigger] = TypeAdapter(Trigger)
START = Watched("rule0", Since(0, 0))
WINDOWS = 300


def trigger(**fields: Any) -> Trigger:
    return READ.validate_python(fields)


def fires(when: Trigger, watched: Watched = START, **signals: Any) -> bool:
    return fired(when, Signals(**{"steps": 100, "tokens": 1000, **signals}), watched) is not None


# ---------------------------------------------------------------------------------------------------- plateau


def shares(curve: Any, noise: float, window: int, history: int, tolerance: float = 1e-3) -> float:
    """How many of many windows count as flat, each at the end of so long a history of a curve with noise."""
    found = 0
    for seed in range(WINDOWS):
        rng = np.random.default_rng(seed)
        losses = curve(np.arange(history)) + rng.normal(0.0, noise, history)
        found += flat(losses.tolist(), window, tolerance)
    return found / WINDOWS


@pytest.mark.parametrize("window", [10, 50])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("windows", [1, 4, 7])
def test_a_flat_loss_is_flat_at_any_noise(window: int, noise: float, windows: int) -> None:
    assert shares(lambda t: 3.0 + 0.0 * t, noise, window, windows * window) >= 0.95


@pytest.mark.parametrize("window", [20, 50, 200])
@pytest.mark.parametrize("fall", [0.01, 0.1, 1.0])
def test_a_falling_loss_is_not_flat_in_one_window_that_shows_it(window: int, fall: float) -> None:
    """The fall over the window against what noise alone would show, five standard errors of it."""
    error = (fall - 3e-3) / (5.5 * math.sqrt(12.0 / window))  # what is within the tolerance counts as none
    assert shares(lambda t: 3.0 - fall * t / window, error, window, window) <= 0.05


@pytest.mark.parametrize("window", [20, 50, 200])
def test_a_fall_that_is_small_against_the_noise_shows_in_several_windows(window: int) -> None:
    """A fall of one standard error in a window, as a straight line, and of two and a half as it slows down."""
    noise = 0.05
    error = noise * math.sqrt(12.0 / window)
    assert shares(lambda t: 3.0 - 1.2 * error * t / window, noise, window, 4 * window) <= 0.05
    slow = 25.0 * error
    assert shares(lambda t: 3.0 + slow * np.exp(-t / (4.0 * window)), noise, window, 4 * window) <= 0.05


@pytest.mark.parametrize("rate", [20.0, 100.0])
def test_a_loss_that_decays_is_flat_only_when_it_has_decayed(rate: float) -> None:
    def curve(t: Any) -> Any:
        return 2.0 + 2.0 * np.exp(-t / rate)

    assert shares(curve, 0.01, 50, round(2 * rate) + 50) <= 0.05
    assert shares(curve, 0.01, 50, round(10 * rate) + 200) >= 0.95


def test_falls_below_the_tolerance_are_flat_and_above_it_not_without_noise() -> None:
    for share, expected in ((0.5e-3, True), (2e-3, False)):
        losses = [2.0 * (1.0 - share * i / 49) for i in range(50)]
        assert flat(losses, 50, 1e-3) == expected
    assert flat([2.0 + 0.01 * i for i in range(50)], 50, 1e-3)  # it rises
    assert not flat([2.0] * 49, 50, 1e-3)
    assert not flat([2.0] * 49 + [math.nan], 50, 1e-3)
    assert flat([2.0, 2.0], 2, 1e-3)
    assert not flat([2.0, 1.0], 2, 1e-3)


# --------------------------------------------------------------------------------------------------- all others


@pytest.mark.parametrize("unit", ["step", "tokens"])
def test_counts_fire_when_they_are_crossed_and_until_the_rule_has_acted(unit: str) -> None:
    def at(now: int, since: int, **fields: int) -> bool:
        return fires(trigger(trigger=unit, **fields), Watched("r", Since(since, since)), steps=now, tokens=now)

    assert [at(now, 0, at=10) for now in (9, 10, 11, 500)] == [False, True, True, True]
    assert not at(11, 10, at=10)
    assert not at(500, 20, at=10)
    assert [at(now, 10, every=10) for now in (10, 19, 20, 35)] == [False, False, True, True]
    assert not at(35, 31, every=10)


@pytest.mark.parametrize(
    ("fields", "low", "high"),
    [
        ({"trigger": "gradient_norm", "above": 2.0, "window": 4}, [1.0] * 4, [3.0] * 4),
        ({"trigger": "gradient_norm", "below": 2.0, "window": 4}, [3.0] * 4, [1.0] * 4),
        ({"trigger": "gradient_norm", "above": 2.0, "window": 4}, [3.0] * 3, [0.0, 3.0, 3.0, 3.0]),
        ({"trigger": "perplexity", "below": 7.0, "window": 2}, [2.0, 2.0], [9.0, 1.9, 1.9]),
        ({"trigger": "perplexity", "above": 7.0, "window": 2}, [1.9, 1.9], [1.9, 800.0]),
        ({"trigger": "loss_spike", "factor": 1.5, "window": 4}, [2.0] * 4 + [2.9], [2.0] * 4 + [3.1]),
        ({"trigger": "loss_spike", "factor": 1.5, "window": 4}, [2.0] * 3 + [9.0], [2.0, 2.0, 8.0, 2.0, 9.0]),
        ({"trigger": "loss_spike", "window": 40}, [2.0] * 40 + [9.0] + [2.0] * 4, [2.0] * 40 + [9.0] + [2.0] * 3),
    ],
)
def test_windows(fields: Mapping[str, Any], low: list[float], high: list[float]) -> None:
    """Below and beyond the bound; the last one: between two looks no spike is missed, and none is seen twice."""
    assert not fires(trigger(**fields), losses=low, grad_norms=low)
    assert fires(trigger(**fields), losses=high, grad_norms=high)
    assert reach(trigger(**fields)) >= fields["window"]


def test_utilization_asks_for_a_share_of_the_layers() -> None:
    when = trigger(trigger="utilization", threshold=0.5, share=0.75)
    for uses, expected in (
        (None, False),
        ({}, False),
        ({"a": 0.6, "b": 0.6, "c": 1.0, "d": 0.0}, True),
        ({"a": 0.6, "b": 0.5, "c": 1.0, "d": 0.0}, False),
    ):
        assert fires(when, uses=lambda trigger, uses=uses: uses) == expected


def test_resources_fire_where_there_is_room_for_what_the_rule_does() -> None:
    when = trigger(trigger="resources", ram=0.7)

    def room(snapshot: Snapshot, ceilings: Ceilings) -> Verdict:
        return Verdict.NO_BUDGET if snapshot.ram.share() > ceilings.ram else Verdict.WIDTH

    watched = Watched("rule0", Since(0, 0), room)
    assert fires(when, watched, snapshot=lambda: Snapshot(ram=Memory(60, 100)))
    assert not fires(when, watched, snapshot=lambda: Snapshot(ram=Memory(75, 100)))


def test_manual_and_expert_usage() -> None:
    assert fires(trigger(trigger="manual"), asked=frozenset({"rule0"}))
    assert not fires(trigger(trigger="manual"), asked=frozenset({"rule1"}))
    found = Fired("expert 3", {"b0": (3,)})
    watched = Watched("rule0", Since(0, 0), experts=lambda trigger: found)
    when = trigger(trigger="expert_usage", interval=50)
    assert fired(when, Signals(100, 0), watched) == found
    assert fired(when, Signals(99, 0), watched) is None


def test_combinations() -> None:
    passed, not_yet = {"trigger": "step", "at": 50}, {"trigger": "tokens", "at": 5000}
    experts = {"trigger": "expert_usage", "interval": 100}
    chosen = Fired("expert 3", {"b0": (3,)})
    watched = Watched("rule0", Since(0, 0), experts=lambda trigger: chosen)
    for sort, of, expected in (
        ("any", [passed, not_yet], True),
        ("any", [not_yet, not_yet], False),
        ("all", [passed, not_yet], False),
        ("all", [passed, passed], True),
        ("majority", [passed, not_yet], False),
        ("majority", [passed, not_yet, passed], True),
        ("majority", [passed, not_yet, {"trigger": "any", "of": [not_yet, passed]}], True),
        ("majority", [passed, not_yet, not_yet, passed], False),
    ):
        assert fires(trigger(trigger=sort, of=of), watched) == expected, (sort, of)
    both = fired(trigger(trigger="all", of=[passed, experts]), Signals(100, 1000), watched)
    assert both == Fired("50 steps; expert 3", {"b0": (3,)})


def test_when_to_look_again() -> None:
    now = Since(37, 370)
    for fields, expected in (
        ({"trigger": "step", "at": 40}, 3),
        ({"trigger": "step", "at": 37}, LATER),
        ({"trigger": "step", "every": 10}, 3),
        ({"trigger": "tokens", "at": 401}, 4),
        ({"trigger": "tokens", "every": 100}, 3),
        ({"trigger": "plateau", "window": 50}, 3),
        ({"trigger": "plateau", "window": 5}, 1),
        ({"trigger": "expert_usage", "interval": 25}, 13),
        ({"trigger": "manual"}, LATER),
        ({"trigger": "any", "of": [{"trigger": "manual"}, {"trigger": "step", "at": 45}]}, 8),
    ):
        assert ahead(trigger(**fields), now, 10) == expected, fields
