"""Finalists on other seeds: which jobs it takes, beside what, and what they show."""

import pytest
from simulated import engine, measure, run, start

from morphogen.analysis.repeated import against_root
from morphogen.candidate import Status, Tokens, Twin
from morphogen.errors import RunError
from morphogen.report.wording import differs, verdict
from morphogen.search.engine import Engine
from morphogen.search.repeats import FIRST_CONTROL, _line, due, finalists
from morphogen.store.ledger import Repeated


def same_tokens(candidate, **more):
    """Measured after equally many tokens, as real candidates are."""
    return measure(candidate, **more).replace(tokens=Tokens(own=96, lineage=0, unique=0), steps=3)


def carry_out(search, evaluate=same_tokens):
    """All repeats of a run: the events, and the jobs of each round of them."""
    events, rounds = [], []
    while jobs := due(search):
        rounds.append(jobs)
        for job in jobs:
            events.append(Repeated(candidate=job.candidate, report=evaluate(job.candidate)))
            search.apply(events[-1])
    return events, rounds


@pytest.fixture
def over():
    """A run at its end, that wants three repeats."""
    search = engine(repeat=3, seed=1)
    return search, run(search, evaluate=same_tokens)


def test_nothing_is_due_before_the_end_or_unless_it_is_asked_for():
    search = engine(repeat=2)
    assert due(search) == []
    run(search, generations=2)
    assert due(search) == []
    idle = engine()
    run(idle)
    assert due(idle) == []
    assert against_root(idle) == {}


def test_every_finalist_is_repeated_beside_a_control_of_as_many_tokens(over):
    search, _ = over
    _, rounds = carry_out(search)
    jobs = {job.candidate.id: job for one in rounds for job in one}
    assert finalists(search)
    for id in finalists(search):
        line = _line(search, id)
        for n in (1, 2, 3):
            own = jobs[f"{id}~{n}"]
            beside = [job for job in jobs.values() if job.repeat == n and job.candidate.index >= FIRST_CONTROL]
            (control,) = (job for job in beside if len(job.ancestors) == len(line))
            assert own.candidate == search.candidates[id].replace(id=f"{id}~{n}")
            assert own.repeat == control.repeat == n
            assert own.stages == control.stages
            assert own.parents == search.job_in(search.candidates[id], 0, None).parents
            tokens = [search.reports[one].tokens.own for one in line]
            assert tokens == [one.tokens for one in control.ancestors]
            crossed = any(len(search.candidates[one].parents) > 1 for one in (*line, id))
            assert crossed or tokens == [one.tokens for one in own.ancestors]
            assert control.candidate.blueprint == search.experiment.model.to_json()
            assert control.candidate.edits == ()
    firsts = [job for job in jobs.values() if not job.repeat]  # the parts of controls, one after the other
    assert len({job.candidate.index for job in firsts}) == len(firsts)
    assert all(job.candidate.index >= FIRST_CONTROL for job in firsts)
    assert len({tuple(stage.budget_tokens for stage in job.stages) for job in firsts}) <= 1


@pytest.mark.parametrize(("rank_by", "difference"), [("scratch", -0.3), ("both", -0.1), ("inherited", 0.1)])
def test_what_selection_reads_is_compared_that_of_twins_where_there_are_any(rank_by, difference):
    search = engine(repeat=2, seed=1, rank_by=rank_by)
    twin = Twin(metrics={}, share=search.evolution.twin_share or 1.0, tokens=96, steps=3, flops=1.0)

    def twinned(candidate, with_twin=True):
        edited = candidate.index < FIRST_CONTROL and candidate.parents != ()
        report = same_tokens(candidate, bpb=2.1 if edited else 2.0)
        return report.replace(twin=twin.replace(metrics={"bpb": 2.7 if edited else 3.0}) if with_twin else None)

    run(search, evaluate=lambda candidate: twinned(candidate, rank_by != "inherited"))
    while jobs := due(search):
        for job in jobs:
            assert job.with_twin == (rank_by != "inherited" and job.repeat > 0)
            search.apply(Repeated(candidate=job.candidate, report=twinned(job.candidate, job.with_twin)))
    found = against_root(search)
    assert set(found) == set(finalists(search)) != set()
    assert {round(one.difference, 6) for (one,) in found.values()} == {difference}


def test_a_root_that_went_on_without_edits_is_the_control():
    search = engine(repeat=2, mutation_steps=0, crossover_prob=0.0, generations=2)
    run(search, evaluate=same_tokens)
    assert finalists(search) == []
    assert due(search) == []


def test_replay_gives_the_same_state_and_the_rest_of_the_jobs(over):
    search, events = over
    more, _ = carry_out(search)
    for cut in (0, 1, len(more) // 2, len(more)):
        again = Engine.replay([start(search), *events, *more[:cut]], run_dir="run", device="cpu")
        assert set(again.again) == {event.candidate.id for event in more[:cut]}
        rest, _ = carry_out(again)
        assert sorted([*more[:cut], *rest], key=repr) == sorted(more, key=repr)
        assert against_root(again) == against_root(search)
    with pytest.raises(RunError, match="was measured again, but there is one of that name"):
        search.apply(more[0])


def test_failures_are_harmless_and_not_tried_again(over):
    search, _ = over
    _, rounds = carry_out(search, lambda candidate: same_tokens(candidate, status=Status.FAILED))
    assert len(rounds) <= 2
    assert against_root(search) == {}
    assert due(search) == []


def test_without_inheritance_the_control_is_the_root_from_scratch():
    search = engine(repeat=1, weight_inheritance="scratch")
    run(search, evaluate=same_tokens)
    _, (jobs,) = carry_out(search)
    assert all(job.parents == () for job in jobs)
    assert len({job.candidate.id for job in jobs if job.candidate.index >= FIRST_CONTROL}) == 1


def with_effect(effect, noise):
    """Of repeats: a finalist is better by `effect`, with this much between pairs that nobody can foresee."""

    def evaluate(candidate):
        number = int(candidate.id.rpartition("~")[2]) if "~" in candidate.id else 0
        own = candidate.index < FIRST_CONTROL
        return same_tokens(candidate, bpb=2.0 + 0.1 * number - own * (effect + noise * (number - 2)))

    return evaluate


@pytest.mark.parametrize(
    ("effect", "noise", "shown"),
    [(0.05, 0.005, "better"), (-0.05, 0.005, "worse"), (0.005, 0.05, "no"), (0.01, 0.0, "better"), (0.0, 0.0, "no")],
)
def test_an_interval_on_one_side_of_zero_is_shown(over, effect, noise, shown):
    search, _ = over
    carry_out(search, with_effect(effect, noise))
    found = against_root(search)
    assert set(found) == set(finalists(search))
    for (one,) in found.values():
        assert one.figure == "bpb"
        assert one.pairs == 3
        assert one.difference == pytest.approx(-effect)
        assert one.value - one.root == pytest.approx(-effect)
        assert one.high - one.low == pytest.approx(2 * 4.302653 * noise / 3**0.5, rel=1e-4)
        if effect and noise:
            assert one.shown == shown


def test_one_pair_has_no_interval_and_shows_nothing():
    search = engine(repeat=1, seed=1)
    run(search, evaluate=same_tokens)
    carry_out(search, with_effect(0.5, 0.0))
    assert {(one.low, one.high, one.shown) for (one,) in against_root(search).values()} == {(None, None, "no")}


def test_the_best_by_what_the_search_measured_is_told_of_in_one_line(over):
    search, _ = over
    carry_out(search, with_effect(0.05, 0.005))
    found = against_root(search)
    line = verdict(found, search.reports, search.evolution.objectives)
    best = min(found, key=lambda id: search.reports[id].metrics["bpb"])
    assert line.startswith(f"best: {best}, bpb ")
    assert line.endswith("-0.0500 [-0.0624, -0.0376], 3 pairs, 95 %: shown to be better")
    assert differs(found[best][0]) == "-0.0500 ± 0.0124 better"
    assert verdict({}, search.reports, search.evolution.objectives) == ""
