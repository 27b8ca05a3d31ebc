"""The engine: order of calls, identity of candidates, replay, determinism, selection over generations."""

import os
import random
import subprocess
import sys

import pytest
import simulated
from pydantic import ValidationError
from simulated import SEQ_LEN, as_text, engine, experiment, measure, run, start

from morphogen.blueprint.diff import apply, digest, distance
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Report, Status
from morphogen.cost import costs
from morphogen.errors import InputError, RunError
from morphogen.experiment import Experiment
from morphogen.parts.contract.operator import OPERATORS
from morphogen.search.births import ID_LENGTH, candidate_id
from morphogen.search.engine import Engine
from morphogen.search.novelty import NEIGHBOURS
from morphogen.selection.parents import SELECTORS
from morphogen.store.frontier import build_frontier
from morphogen.store.ledger import Asked, Reported, Stop
from morphogen.store.lineage import build_lineage
from morphogen.variation.operator import edit as make_edit


def blueprint(candidate):
    return Blueprint.model_validate(candidate.blueprint)


def state(search):
    """All that can be seen of an engine."""
    return {
        "candidates": dict(search.candidates),
        "order": list(search.candidates),
        "reports": dict(search.reports),
        "survivors": search.survivors,
        "frontier": search.frontier_ids,
        "generations": list(search.generations),
        "generation": (search.generation, search.open, search.done),
        "pending": search.pending(),
        "jobs": [search.job(candidate) for candidate in search.pending()],
    }


# ----------------------------------------------------------------------------------------------- order of calls


def test_the_root_comes_alone():
    search = engine()
    asked = search.ask()
    (root,) = asked.candidates
    assert (asked.generation, root.index, root.parents, root.edits) == (0, 0, (), ())
    assert root.id == f"root-0-{digest(search.experiment.model)[:4]}"
    assert blueprint(root) == search.experiment.model
    assert search.pending() == [root]
    assert search.job(root).parents == ()


def test_calls_out_of_order_are_refused():
    search = engine(generations=0)
    with pytest.raises(RunError, match="no generation is open"):
        search.close_generation()
    with pytest.raises(RunError, match="no candidate 'root'"):
        search.tell(Report(id="root", status=Status.TRAINED))
    root = search.ask().candidates[0]
    with pytest.raises(RunError, match="generation 0 is open"):
        search.ask()
    with pytest.raises(RunError, match=f"1 reports are missing, {root.id}"):
        search.close_generation()
    with pytest.raises(RunError, match=f"did you mean '{root.id}'"):
        search.tell(measure(root).replace(id=root.id + "x"))
    with pytest.raises(RunError, match="expected failed, gated or trained"):
        search.tell(Report(id=root.id, status=Status.REJECTED))
    assert search.pending() == [root]
    search.tell(measure(root))
    with pytest.raises(RunError, match="was already trained"):
        search.tell(measure(root))
    assert not search.done
    search.close_generation()
    assert search.done
    with pytest.raises(RunError, match="all 0 generations are done"):
        search.ask()
    with pytest.raises(RunError, match="was already trained"):
        search.tell(measure(root))


def test_a_generation_has_population_offspring_of_trained_survivors():
    search = engine()
    run(search, generations=2)
    asked = search.ask()
    assert len(asked.candidates) == 6
    assert [c.index for c in asked.candidates] == list(range(7, 13))
    assert all(set(c.parents) <= set(search.survivors) for c in asked.candidates)
    assert all(len(c.parents) == (2 if c.edits[0].sources else 1) for c in asked.candidates)


# ----------------------------------------------------------------------------------- ten generations, simulated


@pytest.fixture(scope="module")
def ten():
    search = engine(seed=3, generations=10)
    return search, run(search)


def test_ten_generations_hold_no_duplicate_and_no_unchanged_child(ten):
    search, _ = ten
    assert search.done
    assert len(search.candidates) == 1 + 10 * 6
    digests = [digest(blueprint(candidate)) for candidate in search.candidates.values()]
    assert len(set(digests)) == len(digests)
    for candidate in list(search.candidates.values())[1:]:
        here = blueprint(search.candidates[candidate.parents[0]])
        assert candidate.edits
        for edit in candidate.edits:
            here = apply(here, edit.changes)
        assert here == blueprint(candidate)


def test_ids_name_operators_index_and_digest(ten):
    search, _ = ten
    kinds = set()
    for id, candidate in list(search.candidates.items())[1:]:
        operators, index, four = id.rsplit("-", 2)
        assert int(index) == candidate.index
        assert digest(blueprint(candidate)).startswith(four)
        if len(candidate.parents) == 2:
            assert operators == "xover"
        else:
            assert operators == "+".join(edit.operator for edit in candidate.edits)
            assert len(candidate.edits) in (1, 2)
        kinds.add(len(candidate.parents))
    assert kinds == {1, 2}


def test_long_ids_are_cut_at_whole_names():
    model = experiment().model
    names = sorted(OPERATORS)
    id = candidate_id(names, 5, digest(model))
    operators, index, _ = id.rsplit("-", 2)
    shown = operators.split("+")
    assert shown[:-1] == names[: len(shown) - 1]
    assert shown[-1] == f"{len(names) - len(shown) + 1}more"
    assert len("+".join(shown[:-1])) <= ID_LENGTH
    assert index == "5"


def test_selection_beats_the_root_and_hypervolume_never_falls(ten):
    search, _ = ten
    root, *_ = search.reports.values()
    assert min(search.reports[id].metrics["bpb"] for id in search.frontier_ids) < root.metrics["bpb"]
    volumes = [event.hypervolume for event in search.generations]
    assert volumes == sorted(volumes)
    assert volumes[-1] > volumes[0] > 0
    assert len({str(event.reference) for event in search.generations}) == 1


def test_the_frontier_is_of_the_whole_run_and_survivors_are_few(ten):
    search, _ = ten
    points = {id: (r.metrics["bpb"], r.costs["flops_per_token"]) for id, r in search.reports.items()}
    best = {
        id for id, p in points.items() if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points.values())
    }
    assert set(search.frontier_ids) == best
    assert all(len(event.survivors) <= 4 for event in search.generations)


# --------------------------------------------------------------------------------------- replay and determinism


def test_replay_restores_every_prefix():
    live = engine(seed=5, generations=2, population=4)
    events, states = [start(live)], [state(live)]

    def note(event):
        events.append(event)
        states.append(state(live))

    while not live.done:
        note(live.ask())
        note(Stop(reason="interrupted"))
        for candidate in live.pending():
            live.tell(measure(candidate))
            note(Reported(report=live.reports[candidate.id]))
        note(live.close_generation())
    assert len(events) == 1 + 4 + 2 * 7
    for count, expected in enumerate(states, start=1):
        replayed = Engine.replay(events[:count], run_dir="run", device="cpu")
        assert state(replayed) == expected
        if not replayed.open and not replayed.done:
            assert replayed.ask() == events[count]
        elif replayed.open and not replayed.pending():
            assert replayed.close_generation() == events[count]


def test_a_crash_before_the_question_was_written_asks_the_same_again():
    search = engine(seed=6)
    events = [start(search), *run(search, generations=2)]
    lost = search.ask()
    assert Engine.replay(events, run_dir="run", device="cpu").ask() == lost


def test_replay_goes_on_to_the_same_end():
    whole = engine(seed=7, generations=3)
    events = [start(whole), *run(whole)]
    for count in (2, 3, 8, 12, 17):
        search = Engine.replay(events[:count], run_dir="run", device="cpu")
        rest = []
        if search.open:
            for candidate in search.pending():
                rest.append(Reported(report=measure(candidate)))
                search.tell(rest[-1].report)
            rest.append(search.close_generation())
        rest += run(search)
        assert as_text(events[:count] + rest) == as_text(events)


def test_recorded_candidates_are_taken_as_they_are_not_drawn_again():
    search = engine(seed=8)
    events = [start(search), *run(search, generations=1)]
    other = engine(seed=9)
    run(other, generations=1)
    foreign = other.ask()
    replayed = Engine.replay([*events, foreign], run_dir="run", device="cpu")
    assert replayed.pending() == list(foreign.candidates)


def test_a_finished_run_goes_on_with_more_generations():
    short = engine(seed=4, generations=1)
    events = [start(short), *run(short)]
    longer = experiment(generations=2)
    search = Engine.replay(events, run_dir="run", device="cpu", experiment=longer)
    whole = engine(seed=4, generations=2)
    assert as_text(events[1:] + run(search)) == as_text(run(whole))


@pytest.mark.parametrize(
    ("pick", "message"),
    [
        (lambda e: e[1:], "first event is asked, expected start"),
        (lambda e: [], "first event is missing"),
        (lambda e: [e[0], e[0]], "a start event in the middle"),
        (lambda e: [e[0], e[1], e[1]], "generation 0 was asked for, but 0 is the last and open"),
        (lambda e: [e[0], e[1], e[3]], "not open with all reports in"),
        (lambda e: [e[0], e[2]], "there is no candidate"),
        (lambda e: [*e[:4], e[4].replace(candidates=e[4].candidates[1:])], "is number 2, expected 1"),
        (lambda e: [*e[:4], e[4].replace(generation=3)], "generation 3 was asked for, but 0 is the last and closed"),
    ],
)
def test_events_that_do_not_follow_one_another_are_refused(pick, message):
    search = engine(seed=2, generations=1)
    events = [start(search), *run(search)]
    with pytest.raises(RunError, match=message):
        Engine.replay(pick(events), run_dir="run", device="cpu")


def test_the_order_of_reports_does_not_matter():
    plain, mixed = engine(seed=1), engine(seed=1)
    shuffle = random.Random(0)
    while not plain.done:
        assert plain.ask() == mixed.ask()
        for candidate in plain.pending():
            plain.tell(measure(candidate))
        for candidate in shuffle.sample(mixed.pending(), len(mixed.pending())):
            mixed.tell(measure(candidate))
        assert plain.close_generation() == mixed.close_generation()


def test_a_run_is_equal_under_another_hash_seed():
    paths = os.pathsep.join(path for path in sys.path if path)
    env = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": paths}
    script = [sys.executable, simulated.__file__, "3"]
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == simulated.run_digest(3)


def test_seeds_differ():
    assert len({as_text(run(engine(seed=seed), generations=2)) for seed in range(3)}) == 3


# -------------------------------------------------------------------------------------- failures and rejections


def test_rung_0_rejections_are_recorded_and_replaced():
    root = engine().experiment.model
    limit = simulated.costs(root, simulated.SEQ_LEN)["params"] * 1.05
    search = engine(rung0_thresholds={"params": limit})
    run(search, generations=1)
    asked = search.ask()
    rejected = [c for c in asked.candidates if c.id in search.reports]
    assert rejected
    assert len(search.pending()) == 6
    assert len(asked.candidates) == 6 + len(rejected)
    for candidate in rejected:
        report = search.reports[candidate.id]
        assert report.status is Status.REJECTED
        assert report.reason.startswith("params is ")
        assert report.costs["params"] > limit
        assert report.checkpoint is None
        with pytest.raises(RunError, match="was already rejected"):
            search.tell(measure(candidate))
    for candidate in search.pending():
        search.tell(measure(candidate))
    closed = search.close_generation()
    assert not {c.id for c in rejected} & {*closed.survivors, *closed.frontier}


def test_when_nothing_passes_rung_0_the_survivors_go_on():
    params = simulated.costs(engine().experiment.model, simulated.SEQ_LEN)["params"]
    growing = {name: float(name in ("widen_dim", "insert_block")) for name in OPERATORS}
    search = engine(rung0_thresholds={"params": params}, mutation_weights=growing, crossover_prob=0.0)
    run(search, generations=1)
    asked = search.ask()
    assert asked.candidates
    assert search.pending() == []
    assert search.close_generation().survivors == search.generations[0].survivors


def test_a_root_that_rung_0_rejects_ends_the_run_with_the_reason():
    with pytest.raises(RunError, match=r"root is rejected by rung 0: params is \d+, above rung0_thresholds.params 10"):
        engine(rung0_thresholds={"params": 10}).ask()


def test_a_root_that_fails_ends_the_run_with_the_reason():
    search = engine()
    (root,) = search.ask().candidates
    search.tell(measure(root, Status.FAILED))
    for _ in range(2):
        with pytest.raises(RunError, match=r"was not trained \(failed\): it was so decided"):
            search.close_generation()


def test_a_root_without_a_value_of_an_objective_breeds_until_somebody_has_one():
    search = engine()
    (root,) = search.ask().candidates
    search.tell(measure(root, bpb=float("inf")))
    closed = search.close_generation()
    assert closed.survivors == closed.frontier == (root.id,)
    assert (closed.hypervolume, closed.reference) == (0.0, {})
    run(search)
    volumes = [generation.hypervolume for generation in search.generations]
    assert root.id not in search.frontier_ids
    assert volumes[0] == 0.0 < volumes[1] <= volumes[2]
    assert search.generations[1].reference == search.generations[2].reference != {}


@pytest.mark.parametrize("status", [Status.FAILED, Status.GATED])
def test_when_a_whole_generation_fails_the_survivors_go_on(status):
    search = engine(seed=1, generations=4)
    run(search, generations=2)
    before = sorted(search.survivors), search.frontier_ids, search.generations[-1].hypervolume
    run(search, generations=1, evaluate=lambda candidate: measure(candidate, status, bpb=0.1))
    assert (sorted(search.survivors), search.frontier_ids, search.generations[-1].hypervolume) == before
    asked = search.ask()
    assert all(search.reports[id].status is Status.TRAINED for c in asked.candidates for id in c.parents)


def test_an_exhausted_space_gives_smaller_generations():
    weights = {name: float(name in ("untie_head", "tie_head", "change_norm")) for name in OPERATORS}
    search = engine(mutation_weights=weights, mutation_steps=1, crossover_prob=0.0, generations=3)
    run(search)
    assert len(search.candidates) == 4  # two norms, tied or untied


# ------------------------------------------------------------------------------------------------------ control


def test_the_control_copies_and_never_crosses():
    search = engine(mutation_steps=0, crossover_prob=1.0)
    run(search)
    assert len(search.candidates) == 1 + 3 * 6
    root, *copies = search.candidates.values()
    for copy in copies:
        assert copy.blueprint == root.blueprint
        assert copy.edits == ()
        assert len(copy.parents) == 1
        assert copy.id.startswith(f"continued-{copy.index}-")


def test_the_control_needs_no_operator():
    engine(mutation_steps=0, mutation_weights=dict.fromkeys(OPERATORS, 0.0))
    with pytest.raises(InputError, match="mutation_steps to 0"):
        engine(mutation_steps=1, mutation_weights=dict.fromkeys(OPERATORS, 0.0))


# --------------------------------------------------------------------------------------------------------- jobs


def test_a_job_holds_parents_ancestors_and_stages(ten):
    search, _ = ten
    crossed = next(c for c in search.candidates.values() if len(c.parents) == 2 and c.generation > 2)
    job = search.job(crossed)
    assert [ref.id for ref in job.parents] == list(crossed.parents)
    assert [ref.checkpoint for ref in job.parents] == [f"checkpoints/{id}.safetensors" for id in crossed.parents]
    assert [ref.blueprint for ref in job.parents] == [search.candidates[id].blueprint for id in crossed.parents]
    indices = [ancestor.steps - 10 for ancestor in job.ancestors]  # as the simulated reports have it
    assert indices == sorted(set(indices))
    assert indices[0] == 0
    assert crossed.index not in indices
    everyone = {c.index: c for c in search.candidates.values()}
    each = search.evolution.rung1_tokens + search.evolution.rung2_tokens
    assert [a.first_token for a in job.ancestors] == [each * everyone[i].generation for i in indices]
    assert job.first_token == each * crossed.generation
    assert {p for i in indices for p in everyone[i].parents} | set(crossed.parents) == {everyone[i].id for i in indices}
    assert all(a.tokens == 90 + a.steps for a in job.ancestors)
    assert [stage.rung for stage in job.stages] == [1, 2]
    assert (job.seed, job.run_dir, job.device) == (3, "run", "cpu")
    assert job.experiment == search.experiment.model_dump(mode="json")


@pytest.mark.parametrize("inheritance", ["scratch", "init"])
def test_jobs_without_inheritance_have_no_parents(inheritance):
    search = engine(weight_inheritance=inheritance)
    run(search, generations=1)
    child = search.ask().candidates[0]
    assert child.parents
    job = search.job(child)
    assert (job.parents, job.ancestors) == ((), ())


def test_a_parent_without_weights_is_reported():
    search = engine()
    (root,) = search.ask().candidates
    search.tell(measure(root).replace(checkpoint=None))
    search.close_generation()
    child = search.ask().candidates[0]
    with pytest.raises(RunError, match=f"{root.id}, which has no checkpoint"):
        search.job(child)


# -------------------------------------------------------------------------------------------- settings and novelty


@pytest.mark.parametrize(
    ("evolution", "message"),
    [
        ({"mutation_weights": {"widen_fnn": 1.0}}, "did you mean 'widen_ffn'"),
        ({"rung0_thresholds": {"parms": 1.0}}, "did you mean 'params'"),
    ],
)
def test_unknown_names_are_refused_before_anything_runs(evolution, message):
    with pytest.raises(InputError, match=message):
        engine(**evolution)


def test_a_vocabulary_is_needed():
    plain = experiment()
    unknown = plain.evolve(model=plain.model.evolve(emb=plain.model.emb.evolve(vocab=None)))
    with pytest.raises(InputError, match=r"model.emb.vocab: not set"):
        Engine(unknown, seed=0, run_dir="run", device="cpu")


def test_novelty_is_the_mean_distance_to_the_nearest():
    search = engine(weights={"novelty": 1.0}, parent_selection="weighted", generations=2)
    run(search)
    live = {*search.survivors, *search.frontier_ids, *search.newborn}
    assert len(live) > 6
    for id in live:
        mine = blueprint(search.candidates[id])
        others = (blueprint(c) for c in search.candidates.values() if c.id != id)
        nearest = sorted(distance(mine, other) for other in others)[:NEIGHBOURS]
        assert search.reports[id].metrics["novelty"] == pytest.approx(sum(nearest) / NEIGHBOURS)


def test_novelty_can_be_an_objective():
    search = engine(objectives={"bpb": "min", "novelty": "max"}, generations=2)
    run(search)
    assert search.generations[0].reference["novelty"] == -1.0
    assert search.generations[-1].hypervolume > 0


def test_novelty_costs_nothing_unless_asked_for(monkeypatch):
    monkeypatch.setattr("morphogen.search.space.trait_distance", lambda a, b: pytest.fail("computed"))
    run(engine(generations=2))


@pytest.mark.parametrize("selection", SELECTORS)
def test_every_parent_selection_runs(selection):
    search = engine(parent_selection=selection, weights={"ppl": 1.0}, generations=2)
    run(search, evaluate=lambda candidate: measure(candidate, ppl=float(candidate.index)))
    assert search.done
    parents = {parent for candidate in search.candidates.values() for parent in candidate.parents}
    assert len(parents) > 1


def test_whoever_changed_in_training_breeds_and_inherits_as_what_it_became():
    """Reported, not asked for: the parent's blueprint of a job, the genome that is varied, and the exports."""
    search = engine(structural_elite_k=1)
    search.ask()
    (root,) = search.pending()
    wider, _ = make_edit(Blueprint.model_validate(root.blueprint), "widen_ffn", 0)
    search.tell(measure(root).replace(blueprint=wider.to_json(), costs=costs(wider, SEQ_LEN)))
    search.close_generation()
    search.ask()
    for child in search.pending():
        job = search.job(child)
        assert job.parents[0].blueprint == wider.to_json()
        before = wider
        for edit in (step for whole in child.edits for step in whole.single()):
            before = apply(before, edit.changes)
        assert before == Blueprint.model_validate(child.blueprint) != wider
    reports, candidates = search.reports, search.candidates
    (entry,) = build_frontier("r", {"bpb": "min"}, 0.0, candidates, reports, [root.id]).candidates
    assert entry.blueprint == wider.to_json()
    node, *others = build_lineage("r", candidates, reports, [root.id]).nodes
    assert node.blueprint == wider.to_json()
    told = [other.model_dump(mode="json") for other in others]
    assert told
    assert not any("blueprint" in data for data in told)
    events = [start(search), Asked(generation=0, candidates=(root,)), Reported(report=reports[root.id])]
    again = Engine.replay(events, run_dir="run", device="cpu")
    assert as_text([again.close_generation(), again.ask()]) == as_text([search.generations[0], asked_of(search)])


def asked_of(search):
    return Asked(generation=search.generation, candidates=tuple(search.candidates[id] for id in search.newborn))


def test_all_but_the_root_train_at_the_rate_that_it_found():
    settings = experiment().model_dump(mode="json")
    settings["train"]["lr"] = "auto"
    asked = Experiment.model_validate(settings)
    search = Engine(asked, seed=0, run_dir="run", device="cpu")
    search.ask()
    (root,) = search.pending()
    assert search.job(root).experiment["train"]["lr"] == "auto"
    search.tell(measure(root, lr=0.004))
    search.close_generation()
    search.ask()
    assert {search.job(child).experiment["train"]["lr"] for child in search.pending()} == {0.004}
    assert search.job_in(root, 0, None).experiment["train"]["lr"] == "auto"  # to be trained again as it was
    assert search.as_trained.train.lr == 0.004


@pytest.mark.parametrize("lr", ["atuo", 0.0, -1, None, "auto "])
def test_a_rate_is_a_number_or_auto(lr):
    settings = experiment().model_dump(mode="json")
    settings["train"]["lr"] = lr
    with pytest.raises(ValidationError) as error:
        Experiment.model_validate(settings)
    assert len(error.value.errors()) == 1
