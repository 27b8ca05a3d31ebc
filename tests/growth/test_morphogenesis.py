"""What is known of experts while a model trains, and which split, go, merge and are crossed."""

import json
import math
from typing import Any

import numpy as np
import pytest

from morphogen.blueprint.growth import CrossExperts, GrowthRule, MergeExperts, PruneExperts, SplitExperts
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.triggers import ExpertUsageTrigger, StepTrigger
from morphogen.growth.morphogenesis import Experts, entropy, usage_trigger
from morphogen.inherit.memory import Books
from morphogen.parts.contract.alignment import AxisMap

#: Of a rule that does not ask for usage.
NOW = StepTrigger(at=1)


def model(*mixtures: dict[str, Any]) -> Blueprint:
    blocks = [{"ffn": {"kind": "moe", "hidden": 8, **mixture}} for mixture in mixtures]
    return Blueprint.model_validate({"emb": {"dim": 8, "vocab": 16}, "blocks": blocks})


def usage_rule(**fields: Any) -> GrowthRule:
    return GrowthRule(when=ExpertUsageTrigger(**fields), do=SplitExperts())


SOON = {"window": 10, "interval": 1, "min_age": 0}


def watched(blueprint: Blueprint, *steps: dict[str, list[float]], **fields: Any) -> tuple[Experts, ExpertUsageTrigger]:
    trigger = ExpertUsageTrigger(**{**SOON, **fields})
    experts = Experts.of(blueprint, [GrowthRule(when=trigger, do=SplitExperts())])
    for step, loads in enumerate(steps):
        experts.observe({block: np.asarray(counts) for block, counts in loads.items()}, step + 1)
    return experts, trigger


def no_writing() -> dict[str, list[float]]:
    raise AssertionError("nothing has to be measured")


def test_usage_is_a_mean_at_first_and_an_exponential_average_over_the_window_then() -> None:
    rng = np.random.default_rng(0)
    loads = rng.integers(1, 100, (40, 4)).astype(float)
    experts, _ = watched(model({"n_experts": 4}), *({"b0": row.tolist()} for row in loads))
    shares = loads / loads.sum(1, keepdims=True)
    expected = shares[:10].mean(0)
    for row in shares[10:]:
        expected = expected + (row - expected) / 10
    np.testing.assert_allclose(experts.usage("b0"), expected, rtol=1e-12)
    assert math.isclose(sum(experts.usage("b0")), 1.0)
    assert math.isclose(entropy([0.25] * 4), math.log(4))
    assert entropy([1.0, 0.0]) == 0.0


@pytest.mark.parametrize("experts_in_all", [2, 3, 4, 8])
def test_even_use_splits_nothing_by_relative_thresholds_and_prunes_nothing(experts_in_all: int) -> None:
    blueprint = model({"n_experts": experts_in_all})
    experts, trigger = watched(blueprint, *[{"b0": [5.0] * experts_in_all}] * 20)
    assert experts.to_split(trigger, SplitExperts(), blueprint, 20) == {}
    assert experts.to_prune(trigger, PruneExperts(), blueprint, 20, no_writing) == {}
    absolute, by_value = watched(blueprint, *[{"b0": [5.0] * experts_in_all}] * 20, relative=False)
    split = absolute.to_split(by_value, SplitExperts(), blueprint, 20)
    assert bool(split) == (experts_in_all == 2)  # 1/2 is above 0.35, 1/3 is not


def test_the_most_used_split_as_long_as_there_is_room() -> None:
    blueprint = model({"n_experts": 8}, {"n_experts": 8})
    used = {"b0": [30.0, 1.0, 40.0, 1.0, 1.0, 1.0, 1.0, 1.0], "b1": [1.0] * 8}
    experts, trigger = watched(blueprint, *[used] * 12)
    assert experts.to_split(trigger, SplitExperts(), blueprint, 12) == {"b0": (2, 0)}
    assert experts.to_split(trigger, SplitExperts(max_experts=9), blueprint, 12) == {"b0": (2,)}
    assert experts.to_split(trigger, SplitExperts(max_experts=8), blueprint, 12) == {}
    assert experts.to_split(trigger, SplitExperts(blocks=("b1",)), blueprint, 12) == {}
    anyhow = experts.to_split(StepTrigger(at=1), SplitExperts(), blueprint, 12)
    assert anyhow == {"b0": (2,), "b1": (0,)}  # without a threshold one of each mixture, the most used


def test_experts_of_other_kinds_do_not_split() -> None:
    other = {"kind": "dense", "hidden": 4}
    blueprint = model({"n_experts": 4, "experts": [other]})
    experts, trigger = watched(blueprint, *[{"b0": [1.0, 1.0, 1.0, 97.0]}] * 12)
    assert experts.to_split(trigger, SplitExperts(), blueprint, 12) == {}


def test_the_least_used_go_below_the_threshold_and_enough_stay() -> None:
    blueprint = model({"n_experts": 6, "k": 2})
    used = {"b0": [40.0, 1.0, 40.0, 0.0, 38.0, 0.5]}
    experts, trigger = watched(blueprint, *[used] * 12)
    assert experts.to_prune(trigger, PruneExperts(), blueprint, 12, no_writing) == {"b0": (3, 5, 1)}
    assert experts.to_prune(trigger, PruneExperts(min_experts=4), blueprint, 12, no_writing) == {"b0": (3, 5)}
    assert experts.to_prune(trigger, PruneExperts(min_experts=6), blueprint, 12, no_writing) == {}
    assert experts.to_prune(StepTrigger(at=1), PruneExperts(), blueprint, 12, no_writing) == {"b0": (3,)}
    narrow = model({"n_experts": 6, "k": 5})  # the router has to have as many places as it chooses
    experts, trigger = watched(narrow, *[used] * 12)
    assert experts.to_prune(trigger, PruneExperts(), narrow, 12, no_writing) == {"b0": (3,)}


def test_the_chooser_orders_those_below_the_threshold() -> None:
    blueprint = model({"n_experts": 4})
    experts, trigger = watched(blueprint, *[{"b0": [60.0, 40.0, 1.0, 2.0]}] * 12)

    def written() -> dict[str, list[float]]:
        return {"b0": [0.0, 1.0, 3.0, 2.0]}

    assert experts.to_prune(trigger, PruneExperts(), blueprint, 12, no_writing) == {"b0": (2, 3)}
    by_norm = experts.to_prune(trigger, PruneExperts(chooser="gate_norm"), blueprint, 12, written)
    assert by_norm == {"b0": (3, 2)}  # expert 0 writes less yet, but is well used
    other = model({"n_experts": 4, "experts": [{"kind": "dense", "hidden": 4}] * 2})
    for chooser in ("usage", "merge"):
        by = PruneExperts.model_validate({"chooser": chooser})
        assert experts.to_prune(trigger, by, other, 12, no_writing) == {}
    merge = PruneExperts(chooser="merge", min_experts=2)
    lonely = model({"n_experts": 4, "experts": [{"kind": "dense", "hidden": 4}] * 3})
    assert experts.to_prune(StepTrigger(at=1), merge, lonely, 12, no_writing) == {}


def test_what_experts_write_is_measured_once_for_all_mixtures_and_only_where_it_is_asked_for() -> None:
    blueprint = model({"n_experts": 4}, {"n_experts": 4}, {"n_experts": 4})
    load = {f"b{i}": [60.0, 40.0, 1.0, 2.0] for i in range(3)}
    experts, trigger = watched(blueprint, *[load] * 12)
    calls = list[int]()

    def written() -> dict[str, list[float]]:
        calls.append(1)
        return {block: [0.0, 1.0, 3.0, 2.0] for block in load}

    assert len(experts.to_prune(trigger, PruneExperts(chooser="gate_norm"), blueprint, 12, written)) == 3
    assert len(calls) == 1
    assert len(experts.to_cross(trigger, CrossExperts(), blueprint, 12, written)) == 3
    assert len(calls) == 2
    assert len(experts.to_prune(trigger, PruneExperts(), blueprint, 12, written)) == 3
    assert len(calls) == 2


def test_twins_may_go_where_places_may_not() -> None:
    blueprint = model({"n_experts": 5, "k": 2, "twins": (0, 2)})  # two places would be left of three
    experts, trigger = watched(blueprint, *[{"b0": [1.0, 2.0, 400.0, 3.0, 4.0]}] * 12)
    assert experts.to_prune(trigger, PruneExperts(), blueprint, 12, no_writing) == {"b0": (0, 1, 4)}
    three = model({"n_experts": 5, "k": 3, "twins": (0, 2)})
    experts, trigger = watched(three, *[{"b0": [1.0, 2.0, 400.0, 3.0, 4.0]}] * 12)
    assert experts.to_prune(trigger, PruneExperts(), three, 12, no_writing) == {"b0": (0, 4)}


def test_probation_has_to_last() -> None:
    blueprint = model({"n_experts": 3, "k": 1})
    low, even = {"b0": [99.0, 1.0, 100.0]}, {"b0": [1.0, 1.0, 2.0]}

    def pruned(*steps: dict[str, list[float]]) -> bool:
        experts, trigger = watched(blueprint, *steps, window=2, probation=5)
        return bool(experts.to_prune(trigger, PruneExperts(), blueprint, len(steps), no_writing))

    assert not pruned(*[low] * 4)
    assert pruned(*[low] * 5)
    assert not pruned(*[low] * 5, *[even] * 3, *[low] * 5)
    assert pruned(*[low] * 5, *[even] * 3, *[low] * 9)


def grown(before: Blueprint, index: list[int], **fields: Any) -> tuple[Blueprint, dict[str, AxisMap]]:
    ffn = before.blocks[0].ffn
    assert ffn is not None
    after = before.with_blocks([before.blocks[0].model_copy(update={"ffn": ffn.evolve(**fields)})])
    parent = ffn.sizes(before.context())["expert"]
    return after, {"b0.ffn/expert": AxisMap(how="index", size=len(index), parent_size=parent, index=tuple(index))}


def test_young_experts_are_left_alone_and_share_their_source_s_usage() -> None:
    before = model({"n_experts": 4, "k": 1})
    experts, trigger = watched(before, *[{"b0": [97.0, 1.0, 1.0, 1.0]}] * 12, min_age=20)
    assert experts.to_split(trigger, SplitExperts(), before, 12) == {"b0": (0,)}
    after, takes = grown(before, [0, 1, 2, 3, 0], n_experts=5, twins=(0,))
    experts.follow(before, after, 12, takes)
    assert experts.usage("b0") == pytest.approx([0.485, 0.01, 0.01, 0.01, 0.485])
    assert experts.books["b0"].born == [None, None, None, None, 12]
    for step in range(13, 33):
        experts.observe({"b0": np.asarray([1.0, 1.0, 1.0, 1.0, 96.0])}, step)
        assert experts.to_split(trigger, SplitExperts(), after, step) == ({"b0": (4,)} if step >= 32 else {})


def test_no_split_and_prune_in_one_mixture_at_one_tick() -> None:
    before = model({"n_experts": 4, "k": 1})
    experts, trigger = watched(before, *[{"b0": [97.0, 2.0, 1.0, 0.0]}] * 12)
    assert experts.to_prune(trigger, PruneExperts(), before, 12, no_writing) == {"b0": (3, 2)}
    after, takes = grown(before, [0, 1, 2, 3, 0], n_experts=5, twins=(0,))
    experts.follow(before, after, 12, takes)
    assert experts.to_prune(trigger, PruneExperts(), after, 12, no_writing) == {}
    assert experts.to_merge(NOW, MergeExperts(), after, 12, lambda block, expert: (0, 1)) == {}
    assert experts.to_prune(trigger, PruneExperts(), after, 13, no_writing) != {}


def test_what_is_left_after_a_prune_keeps_what_is_known_of_it() -> None:
    before = model({"n_experts": 4, "k": 1})
    experts, _ = watched(before, *[{"b0": [5.0, 3.0, 0.0, 2.0]}] * 12)
    after, takes = grown(before, [0, 1, 3], n_experts=3)
    experts.follow(before, after, 12, takes)
    assert experts.usage("b0") == pytest.approx([0.5, 0.3, 0.2])
    assert experts.books["b0"].observed == [12, 12, 12]


def test_a_growth_elsewhere_leaves_the_books_alone_and_new_mixtures_begin_anew() -> None:
    before = model({"n_experts": 4, "k": 1})
    experts, _ = watched(before, *[{"b0": [5.0, 3.0, 0.0, 2.0]}] * 12)
    known = experts.state()
    after, _ = grown(before, [0, 1, 2, 3], hidden=16)
    experts.follow(before, after, 12)
    assert experts.state() == known
    deeper = after.with_blocks([*after.blocks, after.blocks[0].model_copy(update={"id": "b9", "origin": "b0"})])
    experts.follow(after, deeper, 12)
    assert experts.books["b9"].born == [12, 12, 12, 12]
    assert experts.books["b9"].observed == [0] * 4
    experts.follow(deeper, before, 13)
    assert set(experts.books) == {"b0"}


def test_fitness_is_the_share_of_what_is_written() -> None:
    blueprint = model({"n_experts": 4, "k": 1})
    experts, _ = watched(blueprint, *[{"b0": [5.0, 3.0, 0.0, 2.0]}] * 12)
    assert experts.fitness("b0", [1.0, 2.0, 9.0, 0.5]) == pytest.approx([5 / 12, 6 / 12, 0.0, 1 / 12])
    assert experts.fitness("b0", [0.0] * 4) == (0.25,) * 4
    crossed = experts.to_cross(NOW, CrossExperts(), blueprint, 12, lambda: {"b0": [1.0, 2.0, 9.0, 0.5]})
    assert crossed == {"b0": (2, 1)}


def test_of_two_that_merge_the_more_used_one_stays() -> None:
    blueprint = model({"n_experts": 4, "k": 1})
    experts, _ = watched(blueprint, *[{"b0": [5.0, 3.0, 0.0, 2.0]}] * 12)
    assert experts.to_merge(NOW, MergeExperts(), blueprint, 12, lambda block, expert: (2, 3)) == {"b0": (3, 2)}
    assert experts.to_merge(NOW, MergeExperts(min_experts=4), blueprint, 12, lambda block, expert: (2, 3)) == {}


def test_by_their_usage_only_those_used_too_little_merge_or_cross() -> None:
    blueprint = model({"n_experts": 4, "k": 1})
    written = {"b0": [1.0, 1.0, 1.0, 1.0]}
    for counts, merged, crossed in (
        ([1.0, 1.0, 1.0, 1.0], {}, {}),
        ([50.0, 30.0, 19.0, 1.0], {"b0": (1, 3)}, {"b0": (3, 0)}),
    ):
        experts, trigger = watched(blueprint, *[{"b0": counts}] * 12)

        def nearest(block: str, expert: int | None) -> tuple[int, int]:
            return (0, 1) if expert is None else (expert, 1)

        assert experts.to_merge(trigger, MergeExperts(), blueprint, 12, nearest) == merged
        assert experts.to_cross(trigger, CrossExperts(), blueprint, 12, lambda: written) == crossed


def test_where_the_least_used_expert_cannot_go_the_next_one_merges() -> None:
    # each token chooses both places, so that the second has to stay; of the first and its twin either may go
    blueprint = model({"n_experts": 3, "k": 2, "twins": [0]})
    experts, trigger = watched(blueprint, *[{"b0": [97.0, 1.0, 2.0]}] * 12)

    def nearest(block: str, expert: int | None) -> tuple[int, int]:
        return (1, 0) if expert is None else (expert, 0)

    assert experts.to_prune(trigger, PruneExperts(), blueprint, 12, no_writing) == {"b0": (2,)}
    assert experts.to_merge(trigger, MergeExperts(), blueprint, 12, nearest) == {"b0": (0, 2)}
    assert experts.to_merge(NOW, MergeExperts(), blueprint, 12, nearest) == {"b0": (1, 0)}


def test_nothing_is_judged_before_it_was_observed_for_an_interval() -> None:
    blueprint = model({"n_experts": 2, "k": 1})
    experts, trigger = watched(blueprint, *[{"b0": [99.0, 1.0]}] * 4, interval=5)
    assert experts.to_split(trigger, SplitExperts(), blueprint, 4) == {}
    experts.observe({"b0": np.asarray([99.0, 1.0])}, 5)
    assert experts.to_split(trigger, SplitExperts(), blueprint, 5) == {"b0": (0,)}
    experts.observe({"b0": np.zeros(2)}, 6)  # a step in which nothing was sent says nothing
    assert experts.books["b0"].observed == [5, 5]


def test_books_go_on_from_json_as_if_nothing_had_been() -> None:
    rng = np.random.default_rng(0)
    blueprint = model({"n_experts": 4}, {"n_experts": 3})
    rules = [usage_rule(window=7), GrowthRule(when=ExpertUsageTrigger(window=30, probation=3), do=PruneExperts())]

    def step() -> dict[str, np.ndarray[Any, Any]]:
        return {"b0": rng.random(4), "b1": rng.random(3)}

    one = Experts.of(blueprint, rules)
    for at in range(1, 50):
        one.observe(step(), at)
    other = Experts.from_state(blueprint, rules, Books.model_validate_json(json.dumps(one.state())))
    for at in range(50, 90):
        loads = step()
        one.observe(loads, at)
        other.observe(loads, at)
    assert one.state() == other.state()


def test_the_usage_trigger_is_found_among_combined_ones() -> None:
    rule = GrowthRule.model_validate(
        {
            "when": {
                "trigger": "all",
                "of": [
                    {"trigger": "step", "every": 5},
                    {"trigger": "any", "of": [{"trigger": "plateau"}, {"trigger": "expert_usage", "window": 9}]},
                ],
            },
            "do": {"action": "split_experts"},
        }
    )
    found = usage_trigger(rule.when)
    assert found is not None
    assert found.window == 9
    assert usage_trigger(StepTrigger(at=1)) is None
