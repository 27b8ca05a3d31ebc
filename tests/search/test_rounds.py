"""Rounds of training, baselines, elites and composites in the engine: order-free, and the same when replayed."""

import random
from collections import Counter

import pytest
import simulated
from simulated import as_text, engine, measure, run, start

from morphogen.analysis.motifs import motifs
from morphogen.candidate import Stage, Status
from morphogen.cli.status import standing
from morphogen.cost import train_flops
from morphogen.errors import InputError, RunError
from morphogen.experiment import Evolution
from morphogen.figures import Bounds
from morphogen.parts.contract.operator import OPERATORS
from morphogen.search.engine import Engine
from morphogen.search.rungs import promotable, rounds
from morphogen.store.ledger import Ledger, Reported

ASHA = {"rungs": "asha", "eta": 2, "min_tokens": 100, "max_tokens": 500, "population": 8}
PROMOTION = {"promotion_prob": 0.6, "promotion_tokens_multiplier": 2.0, "rung1_tokens": 10, "rung2_tokens": 20}


def evaluate(search):
    """What a trained candidate reports in this round: better the longer it was trained."""

    def of(candidate):
        report = measure(candidate)
        before = search.job(candidate).before
        tokens = search.job(candidate).stages[-1].budget_tokens + (before.tokens.own if before else 0)
        bpb = report.metrics["bpb"] + 10.0 / tokens
        return report.replace(metrics={"bpb": bpb}, tokens={"own": tokens, "lineage": tokens, "unique": tokens})

    return of


def play(search, order=lambda pending: pending):
    """The events of a whole run, rounds and all."""
    events = [start(search)]
    while not search.done:
        events.append(search.ask())
        while pending := search.pending():
            told = evaluate(search)
            for report in [told(candidate) for candidate in order(pending)]:
                events.append(Reported(report=report))
                search.tell(report)
        events.append(search.close_generation())
    return events


# ------------------------------------------------------------------------------------------------ successive halving


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rung1_tokens": 5, "rung2_tokens": 7}, [[(1, 5), (2, 7)]]),
        ({"rungs": "asha", "eta": 3, "min_tokens": 10, "max_tokens": 90}, [[(1, 10)], [(2, 20)], [(3, 60)]]),
        ({"rungs": "asha", "eta": 2, "min_tokens": 10, "max_tokens": 50}, [[(1, 10)], [(2, 10)], [(3, 20)], [(4, 10)]]),
        ({"rungs": "asha", "min_tokens": 10, "max_tokens": 10}, [[(1, 10)]]),
        (
            {"rung1_tokens": 5, "rung2_tokens": 7, "promotion_prob": 0.1, "promotion_steps_multiplier": 1.5},
            [[(1, 5), (2, 7)], [(3, 10)]],
        ),
    ],
)
def test_rounds_have_these_rungs_and_budgets(settings, expected):
    planned = [[(stage.rung, stage.budget_tokens) for stage in stages] for stages in rounds(Evolution(**settings))]
    assert planned == expected


def test_halving_sends_the_best_half_on_and_stops_the_others_for_good():
    search = engine(seed=1, generations=2, **ASHA)
    play(search)
    for number in (1, 2):
        members = [search.reports[c.id] for c in search.candidates.values() if c.generation == number]
        tokens = sorted(report.tokens.own for report in members)
        assert tokens == [100] * 4 + [200] * 2 + [400] + [500]
        (winner,) = [report for report in members if report.status is Status.TRAINED]
        assert winner.tokens.own == 500
        assert all(report.status is Status.GATED for report in members if report is not winner)
    assert search.reports[next(iter(search.candidates))].tokens.own == 500  # the root went all the way
    assert all(search.reports[id].tokens.own == 500 for id in (*search.survivors, *search.frontier_ids))


def test_who_is_stopped_is_told_his_place():
    search = engine(seed=1, generations=1, **ASHA)
    play(search)
    reasons = [r.reason for r in search.reports.values() if r.status is Status.GATED]
    assert reasons.count("rung 1: place 5 of 8, the first 4 go on") == 1


def test_a_job_of_a_later_round_goes_on_from_the_last_report():
    search = engine(seed=1, generations=1, **ASHA)
    search.ask()
    (root,) = search.pending()
    first = search.job(root)
    assert (first.before, first.stages, first.budget_tokens) == (None, (Stage(rung=1, budget_tokens=100),), 500)
    told = evaluate(search)(root)
    search.tell(told)
    second = search.job(root)
    assert (second.before, second.stages, second.parents) == (told, (Stage(rung=2, budget_tokens=100),), ())


@pytest.mark.parametrize(
    "settings",
    [
        ASHA,
        PROMOTION,
        pytest.param({**ASHA, "promotion_prob": 1.0}, marks=pytest.mark.slow),
        {"structural_elite_k": 2, "survival": "nsga3", "parent_selection": "tournament"},
        pytest.param({"parent_selection": "map_elites", "archive_max_elites": 5}, marks=pytest.mark.slow),
        pytest.param({"survival": "ageing", "parent_selection": "downsampled_lexicase"}, marks=pytest.mark.slow),
        pytest.param({"baseline": "random"}, marks=pytest.mark.slow),
        {"objectives": {"bpb": "min", "novelty": "max"}, "constraints": {"params": {"max": 9000.0}}},
    ],
)
def test_neither_the_order_of_reports_nor_a_replay_changes_anything(settings):
    plain, mixed = engine(seed=2, **settings), engine(seed=2, **settings)
    events = play(plain)
    shuffle = random.Random(0)
    play(mixed, lambda pending: shuffle.sample(pending, len(pending)))
    assert as_text(plain.generations) == as_text(mixed.generations)
    assert plain.reports == mixed.reports
    assert plain.candidates == mixed.candidates
    for cut in (len(events) // 2, len(events) - 2, len(events)):
        search = Engine.replay(events[:cut], run_dir="run", device="cpu")
        while not search.done:
            if not search.open:
                search.ask()
            while pending := search.pending():
                told = evaluate(search)
                for report in [told(candidate) for candidate in pending]:
                    search.tell(report)
            search.close_generation()
        assert (search.generations, search.reports) == (plain.generations, plain.reports)


# --------------------------------------------------------------------------------------------------------- promotion


def test_promotion_trains_some_for_longer_and_stops_nobody():
    search = engine(seed=3, generations=3, **PROMOTION)
    play(search)
    own = [report.tokens.own for report in search.reports.values()]
    assert set(own) == {20, 60}  # the simulation counts a round's last stage
    assert 0.3 < own.count(60) / len(own) < 0.9
    assert all(report.status is Status.TRAINED for report in search.reports.values())


def test_nobody_is_promoted_below_the_bounds():
    search = engine(generations=1, **{**PROMOTION, "promotion_prob": 1.0, "promotion_min_layers": 3})
    play(search)
    assert {r.tokens.own for r in search.reports.values() if r.costs["layers"] < 3} == {20}
    assert {r.tokens.own for r in search.reports.values() if r.costs["layers"] >= 3} <= {60}


@pytest.mark.parametrize(
    ("bound", "figures", "passes"),
    [
        ({"promotion_min_moe_blocks": 1}, {"moe_blocks": 0.0}, False),
        ({"promotion_min_moe_blocks": 1}, {"moe_blocks": 1.0}, True),
        ({"promotion_min_router_entropy": 0.5}, {}, False),
        ({"promotion_min_router_entropy": 0.5}, {"router_entropy": 0.6}, True),
        ({"promotion_min_recurrence_gain": 0.0}, {"recurrence_gain": -0.1}, False),
        ({"promotion_min_recurrence_gain": 0.0}, {"recurrence_gain": 0.0}, True),
        ({"promotion_max_instability": 1.0}, {"instability": 1.1}, False),
        ({"promotion_max_instability": 1.0}, {"instability": 0.9}, True),
        ({}, {}, True),
    ],
)
def test_every_bound_of_promotion_counts(bound, figures, passes):
    report = simulated.Report(id="a", status=Status.TRAINED, metrics=figures)
    assert promotable(report, Evolution(**bound)) is passes


@pytest.mark.parametrize(("settings", "status"), [(ASHA, Status.GATED), (PROMOTION, Status.TRAINED)])
def test_a_failure_in_a_later_round_keeps_what_was_measured_before(settings, status):
    search = engine(generations=1, **{**settings, "promotion_prob": 1.0 if settings is PROMOTION else 0.0})
    search.ask()
    while pending := search.pending():
        for candidate in pending:
            search.tell(evaluate(search)(candidate))
    search.close_generation()
    search.ask()
    for candidate in search.pending():
        search.tell(evaluate(search)(candidate))
    gone_on = search.pending()
    assert gone_on
    before = {c.id: search.reports[c.id].metrics["bpb"] for c in gone_on}
    for candidate in gone_on:
        search.tell(measure(candidate, Status.FAILED, bpb=0.0))
    for id, bpb in before.items():
        assert (search.reports[id].metrics["bpb"], search.reports[id].status) == (bpb, status)
        assert "failed: it was so decided" in search.reports[id].reason
    search.close_generation()


@pytest.mark.parametrize("settings", [ASHA, PROMOTION])
def test_a_failure_in_a_later_round_is_told_as_what_it_left(settings, tmp_path):
    search = engine(generations=1, **{**settings, "promotion_prob": 1.0 if settings is PROMOTION else 0.0})
    events = [start(search)]
    while not search.done:
        events.append(search.ask())
        while pending := search.pending():
            told, fails = evaluate(search), search.round > 0 and search.generation > 0
            for report in [measure(one, Status.FAILED) if fails else told(one) for one in pending]:
                events.append(Reported(report=report))
                search.tell(report)
        events.append(search.close_generation())
    with Ledger.open(tmp_path, create=True) as ledger:
        for event in events:
            ledger.append(event)
    known = Counter(str(report.status) for report in search.reports.values())
    assert "failed" not in known
    assert standing(tmp_path)["candidates"] == {**known, "pending": 0}
    counted = motifs([tmp_path], least=1).motifs[0]
    assert counted.of_frontier + counted.of_others == len(search.candidates)


def test_equal_flops_give_the_cheap_more_tokens():
    search = engine(budget="flops", generations=1, rung1_tokens=1000, rung2_tokens=3000)
    run(search, generations=1)
    search.ask()
    model, spent = search.experiment.model, []
    for candidate in search.pending():
        job = search.job(candidate)
        blueprint = type(model).model_validate(candidate.blueprint)
        spent.append(train_flops(blueprint, simulated.SEQ_LEN, job.budget_tokens))
        assert job.budget_tokens == sum(stage.budget_tokens for stage in job.stages)
    assert spent == pytest.approx([train_flops(model, simulated.SEQ_LEN, 4000)] * len(spent), rel=1e-3)


# --------------------------------------------------------------------------------------------------------- baselines


def test_the_random_baseline_walks_from_the_root_whatever_was_measured():
    search, other = (engine(seed=4, baseline="random", generations=4) for _ in range(2))
    run(search)
    run(other, evaluate=lambda candidate: measure(candidate).replace(metrics={"bpb": float(candidate.index)}))
    root, *walks = search.candidates.values()
    assert walks == list(other.candidates.values())[1:]
    assert {walk.parents for walk in walks} == {(root.id,)}
    lengths = {n: max(len(w.edits) for w in walks if w.generation == n) for n in (1, 4)}
    assert lengths[1] <= 2 < lengths[4] <= 8
    assert len(search.frontier_ids) > 1


def test_the_control_by_name_is_the_control_without_edits():
    named, without = engine(seed=5, baseline="control"), engine(seed=5, mutation_steps=0)
    run(named)
    run(without)
    assert named.candidates == without.candidates
    engine(baseline="control", mutation_weights=dict.fromkeys(OPERATORS, 0.0))


# ---------------------------------------------------------------------------- composites, constraints, elites, space


def test_composites_are_objectives_thresholds_and_reported():
    composites = {
        "product": {"op": "product", "of": ["bpb", "params"]},
        "ratio": {"op": "ratio", "of": ["product", "flops_per_token"]},
        "sum": {"op": "weighted_sum", "of": {"bpb": 2.0, "layers": 0.5}},
        "size": {"op": "product", "of": ["params", "layers"]},
    }
    root = engine().experiment.model
    known = simulated.costs(root, simulated.SEQ_LEN)
    limit = known["params"] * known["layers"] * 1.05
    objectives = {"ratio": "min", "sum": "min"}
    search = engine(composite_metrics=composites, objectives=objectives, rung0_thresholds={"size": limit})
    run(search)
    for report in search.reports.values():
        if report.status is Status.REJECTED:
            assert report.reason.startswith("size is ")
            continue
        bpb, costs = report.metrics["bpb"], report.costs
        assert report.metrics["product"] == pytest.approx(bpb * costs["params"])
        assert report.metrics["ratio"] == pytest.approx(bpb * costs["params"] / costs["flops_per_token"])
        assert report.metrics["sum"] == pytest.approx(2 * bpb + 0.5 * costs["layers"])
        assert costs["params"] * costs["layers"] <= limit
    assert any(report.status is Status.REJECTED for report in search.reports.values())
    with pytest.raises(InputError, match=r"rung0_thresholds\.sum"):  # it needs a measurement
        engine(composite_metrics=composites, rung0_thresholds={"sum": 1.0})


def test_a_threshold_may_bound_from_below():
    with pytest.raises(RunError, match=r"graph_entropy is 1, below rung0_thresholds\.graph_entropy 1\.5"):
        engine(rung0_thresholds={"graph_entropy": {"min": 1.5}}).ask()


def test_a_run_moves_from_an_infeasible_root_to_what_keeps_the_constraint():
    params = simulated.costs(engine().experiment.model, simulated.SEQ_LEN)["params"]
    search = engine(seed=3, constraints={"params": {"min": params * 1.1}}, generations=6)
    run(search)
    volumes = [event.hypervolume for event in search.generations]
    assert volumes[0] == 0.0 < volumes[-1]
    assert all(search.reports[id].costs["params"] >= params * 1.1 for id in search.frontier_ids)


def test_structural_elites_stay_beside_the_others():
    settings = {"seed": 1, "generations": 1, "population": 12, "topk_keep": 2}
    plain, elite = engine(**settings), engine(**settings, structural_elite_k=3)
    run(plain)
    run(elite)
    assert elite.survivors[:2] == plain.survivors
    others = set(elite.candidates) - set(plain.survivors)
    novelty = {id: elite.reports[id].metrics["novelty"] for id in others}
    assert set(elite.survivors[2:]) == set(sorted(others, key=lambda id: (-novelty[id], id))[:3])


def test_map_elites_keeps_one_of_every_cell_and_at_most_so_many():
    axes = {"layers": {"scale": "linear", "width": 1.0}}
    search = engine(seed=3, parent_selection="map_elites", map_elites=axes, generations=6, topk_keep=1)
    run(search)
    best = {}
    for report in search.reports.values():
        layers = report.costs["layers"]
        best[layers] = min(best.get(layers, (9e9, "")), (report.metrics["bpb"], report.id))
    assert {id for _, id in best.values()} == set(search.survivors)
    assert len(best) > 2
    few = engine(seed=3, parent_selection="map_elites", map_elites=axes, generations=6, archive_max_elites=2)
    run(few)
    assert len(few.survivors) == 2


def test_limits_and_composites_read_the_same_from_a_file():
    settings = Evolution(
        constraints={"params": {"max": 5}},
        rung0_thresholds={"params": 7, "layers": {"min": 2}},
        composite_metrics={"x": {"op": "ratio", "of": ["bpb", "params"]}},
    )
    assert Evolution.model_validate(settings.model_dump(mode="json")) == settings
    assert settings.rung0_thresholds == {"params": 7.0, "layers": Bounds(min=2.0)}


@pytest.mark.parametrize(
    "settings",
    [
        {**ASHA, "objectives": {"bpb": "min", "router_entropy": "max"}},
        {"structural_elite_k": 1, "objectives": {"bpb": "min", "router_entropy": "max"}},
        {"parent_selection": "weighted", "weights": {"router_entropy": 1.0}, "survival": "ageing", "topk_keep": 2},
        {"lexicase_cases": ("bpb", "router_entropy"), "survival": "ageing", "topk_keep": 2},
        {"lexicase_cases": ("bpb", "router_entropy"), "topk_keep": 2},
    ],
)
def test_a_figure_that_the_root_alone_has_ends_no_run(settings):
    """A mixture of experts may die out, and with it what only such a model reports."""
    search = engine(**settings)
    while not search.done:
        search.ask()
        while pending := search.pending():
            for candidate in pending:
                figures = {"router_entropy": 1.0} if candidate.index == 0 else {}
                search.tell(measure(candidate, **figures))
        search.close_generation()
    assert len(search.candidates) > 12
