"""Survivors that train on: who is compared has had the same training."""

from typing import get_args

import pytest
from simulated import as_text, engine, measure, run, start

from morphogen.candidate import Status
from morphogen.experiment import Experiment
from morphogen.search.engine import Engine
from morphogen.sections.evolution import Crossing
from morphogen.store.ledger import Asked, Generation
from morphogen.training.twin import twin_job


def trained_longer(search):
    """A measurement that is better with every generation of training behind a candidate."""

    def evaluate(candidate):
        report = measure(candidate)
        return report.replace(metrics={"bpb": report.metrics["bpb"] - 0.2 * candidate.generation})

    return evaluate


def generations(events):
    return {event.generation: event for event in events if isinstance(event, Asked)}


def test_every_survivor_goes_on_unedited_before_the_offspring():
    search = engine(survivors="train")
    events = run(search)
    closed = [event for event in events if isinstance(event, Generation)]
    for number, asked in generations(events).items():
        if not number:
            continue
        survivors = closed[number - 1].survivors
        first, rest = asked.candidates[: len(survivors)], asked.candidates[len(survivors) :]
        assert [c.parents for c in first] == [(id,) for id in survivors]
        assert all(c.continues and c.id.startswith("continued-") for c in first)
        assert [c.blueprint for c in first] == [search.candidates[id].blueprint for id in survivors]
        assert len(rest) == search.evolution.population
        assert not any(c.continues for c in rest)
        jobs = [search.job(c) for c in (*first, *rest)]
        assert len({job.first_token for job in jobs}) == 1


def test_who_survives_and_who_breeds_has_the_training_of_its_generation():
    search = engine(survivors="train", generations=5)
    events = run(search, evaluate=trained_longer(search))
    closed = [event for event in events if isinstance(event, Generation)]
    for event in closed:
        assert {search.candidates[id].generation for id in event.survivors} == {event.generation}
    for candidate in search.candidates.values():
        assert all(search.candidates[id].generation == candidate.generation - 1 for id in candidate.parents)
    replaced = {c.parents[0] for c in search.candidates.values() if c.continues}
    assert replaced.isdisjoint(closed[-1].frontier)  # what went on stands for what it was
    blueprints = [str(search.candidates[id].blueprint) for id in closed[-1].frontier]
    assert len(blueprints) == len(set(blueprints))


def test_a_survivor_whose_further_training_fails_stays_as_it_was():
    search = engine(survivors="train", generations=2)

    def evaluate(candidate):
        return measure(candidate, Status.FAILED if candidate.generation else Status.TRAINED)

    events = run(search, evaluate=evaluate)
    (root,) = generations(events)[0].candidates
    assert search.survivors == (root.id,) == search.frontier_ids


def test_replay_and_the_order_of_reports_change_nothing():
    plain = run(engine(survivors="train"))
    search, events = engine(survivors="train"), []
    while not search.done:
        events.append(search.ask())
        for candidate in reversed(search.pending()):
            search.tell(measure(candidate))
        events.append(search.close_generation())
    kept = [event for event in plain if isinstance(event, Asked | Generation)]
    assert as_text(events) == as_text(kept)
    for cut in (3, len(plain) // 2, len(plain) - 1):
        begun = Engine.replay([start(engine(survivors="train")), *plain[:cut]], run_dir="run", device="cpu")
        assert as_text(plain[:cut] + _rest(begun)) == as_text(plain)


def _rest(search):
    """The events that are missing of a run that was cut short."""
    from morphogen.store.ledger import Reported

    events = []
    if search.open:
        for candidate in search.pending():
            events.append(Reported(report=measure(candidate)))
            search.tell(events[-1].report)
        events.append(search.close_generation())
    return events + run(search)


def test_age_is_counted_from_the_edit():
    search = engine(survivors="train", survival="ageing", topk_keep=3, population=3, generations=3)
    run(search)
    assert {search.candidates[id].generation for id in search.survivors} == {3}
    assert not any(search.candidates[id].continues for id in search.survivors)


@pytest.mark.parametrize("settings", [{"survivors": "rest"}, {"weight_inheritance": "scratch"}, {"baseline": "random"}])
def test_nobody_goes_on_where_there_is_nothing_to_go_on_with(settings):
    search = engine(**{"survivors": "train", **settings})
    events = run(search)
    assert not any(c.id.startswith("continued-") for c in search.candidates.values())
    asked = generations(events)
    assert [len(asked[number].candidates) for number in sorted(asked)] == list(search.evolution.sizes)


def test_sizes_are_those_of_the_run():
    search = engine(survivors="train", generations=4, population=3, topk_keep=5)
    asked = generations(run(search))
    assert (
        [len(asked[number].candidates) for number in sorted(asked)] == list(search.evolution.sizes) == [1, 4, 7, 8, 8]
    )


def test_a_root_short_of_a_gate_trains_on_all_the_same():
    search = engine(survivors="train", generations=2, min_layers=3)
    run(search)
    assert search.candidates[search.survivors[0]].generation == 2
    assert not any(r.status is Status.REJECTED for id, r in search.reports.items() if id.startswith("continued-"))


def test_in_several_rounds_who_goes_on_has_a_twin_of_the_length_of_all_others():
    search = engine(survivors="train", rank_by="scratch", rungs="asha", min_tokens=100, max_tokens=900)
    search.ask()
    while search.pending():
        for candidate in search.pending():
            search.tell(measure(candidate))
    search.close_generation()
    search.ask()
    assert any(candidate.continues for candidate in search.pending())
    assert all((job.with_twin, job.twin) == (True, None) for job in map(search.job, search.pending()))


def test_the_control_of_a_root_that_lacks_what_children_are_mended_to_have_is_replayed_as_it_was():
    settings = {"baseline": "control", "min_moe_blocks": 1}
    events = run(engine(**settings))
    search = Engine.replay([start(engine(**settings)), *events], run_dir="run", device="cpu")
    assert search.done
    assert not any(report.status is Status.REJECTED for report in search.reports.values())


def test_twins_can_be_trained_whatever_crosses_candidates():
    for way in get_args(Crossing):
        search = engine(rank_by="scratch", crossover={way: 1.0}, crossover_prob=1.0)
        run(search, generations=1)
        child = search.ask().candidates[0]
        job = search.job(child)
        assert job.with_twin
        alone = Experiment.model_validate(twin_job(job, measure(child)).experiment)
        assert alone.evolution.weight_inheritance == "scratch"
