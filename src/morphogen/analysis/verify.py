"""Verification: are the finalists better than the root when all are trained from scratch alike?

Finalists, the root and the best of a random search are trained anew on equal tokens with several seeds, and measured on
the test split, which no search has seen. Each is compared with the root by Welch's t-test, corrected after Holm. Not
paired by seed: trainings of one seed share the order of the text but no weights, so that pairing would halve the
degrees of freedom for little; what correlation there is makes Welch's test the more careful one.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from morphogen.analysis.recorded import Recorded
from morphogen.analysis.records import Role, Verification, Verified
from morphogen.analysis.statistics import holm, t_interval, welch
from morphogen.analysis.trials import (
    MOST_DESIGNS,
    MOST_SEEDS,
    MOST_TOKENS,
    Say,
    Trial,
    Workshop,
    check_range,
    check_some_trained,
    check_tokens,
    drawn_seeds,
    measurable,
    opened,
    run_trials,
    silent,
)
from morphogen.candidate import Report, Status, stream
from morphogen.cost import costs
from morphogen.data.prepare import prepare, text_of
from morphogen.errors import InputError
from morphogen.reading import placeless
from morphogen.search.rungs import composed, rejection
from morphogen.search.space import Architectures, Design
from morphogen.variation.act import design_key

FILE = "verify.json"
#: Random walks drawn for one candidate of the baseline before it is given up.
TRIES = 50
LEVEL = 0.95


class Contender(NamedTuple):
    """What is trained, and why."""

    role: Role
    id: str
    design: Design


def verify(
    path: Path,
    *,
    baseline: Path | None = None,
    random: int | None = None,
    seeds: int = 3,
    tokens: int | None = None,
    finalists: int = 5,
    metric: str = "bpb",
    device: str = "cpu",
    workers: int | None = None,
    say: Say = silent,
) -> Verification:
    """Verifies the run in a folder (or of a frontier file), and writes `verify.json` there.

    baseline: another run on the same text, whose best takes the place of a random search's. random: candidates of that
    search (default: as many as the run trained, on as many tokens each; 0 for none, as for a run without edits).
    tokens: of each training (default: the run's for one candidate). finalists: at most so many, the best by `metric`.
    workers: processes that train; None is this one alone. Finished trainings are kept below the run folder and not
    repeated. InputError for what does not fit, RunError as `Recorded.read`, and where no training came to an end.
    """
    check_range({"seeds": (seeds, 2, MOST_SEEDS), "finalists": (finalists, 1, MOST_DESIGNS)})
    check_range({"random": (random, 0, MOST_DESIGNS), "tokens": (tokens, 1, MOST_TOKENS)})
    run, shop = opened(path, device=device, workers=workers, say=say)
    tokens = run.budget_tokens if tokens is None else tokens
    check_tokens(tokens, shop.prepared)
    if measurable(shop.prepared, "test"):
        shop = replace(shop, split="test")
    root = min(run.candidates, key=lambda id: run.candidates[id].index)
    run.check_metric(metric, [root, *run.frontier])
    chosen = [Contender("root", root, run.design(root))]
    chosen += [Contender("finalist", id, run.design(id)) for id in _best(run, metric)]
    chosen = _distinct(chosen)[: 1 + finalists]
    walked = 0
    if baseline is not None:
        chosen.append(_best_of(run, baseline, metric))
    elif random != 0 and run.experiment.evolution.edits:
        walked = random or len(run.trained)
        chosen += _random_best(run, shop, walked, metric)
    drawn = drawn_seeds(run.seed, seeds, "verify")
    trials = [Trial(f"{role} {id}", design, seed, tokens) for role, id, design in chosen for seed in drawn]
    say(f"{len(chosen)} designs x {seeds} seeds x {tokens:,} tokens, measured on the {shop.split} split")
    reports = run_trials(shop, trials)
    check_some_trained(shop, reports)
    by_design = [reports[i : i + seeds] for i in range(0, len(reports), seeds)]
    found = Verification(
        run=run.name,
        metric=metric,
        direction=run.direction(metric),
        split=shop.split,
        tokens=tokens,
        seeds=drawn,
        level=LEVEL,
        searched=len(run.trained),
        random=walked,
        candidates=tuple(_compared(chosen, by_design, metric, run.experiment.data.seq_len)),
    )
    found.write(run.folder / FILE)
    return found


def _best(run: Recorded, metric: str) -> list[str]:
    """The frontier, best first."""
    sign = 1.0 if run.direction(metric) == "min" else -1.0
    return sorted(run.frontier, key=lambda id: (sign * run.value(id, metric), id))


def _distinct(chosen: Sequence[Contender]) -> list[Contender]:
    """The first of each design: the root may stand on the frontier, and a control's copies are its equals."""
    first: dict[str, Contender] = {}
    for one in chosen:
        first.setdefault(design_key(*one.design), one)
    return list(first.values())


def _best_of(run: Recorded, path: Path, metric: str) -> Contender:
    """The best of another run's frontier. InputError unless it is a run on the same text."""
    other = Recorded.read(path)
    mine, theirs = (placeless(it.experiment).data for it in (run, other))
    texts = (text_of(prepare(it.experiment.data).environment()) for it in (run, other))
    if mine != theirs or next(texts) != next(texts):
        raise InputError(f"--baseline {path}: its data section differs from that of {run.folder}, expected the same")
    best = _best(other, metric)[0]
    return Contender("baseline", f"{other.name}:{best}", other.design(best))


def _random_best(run: Recorded, shop: Workshop, count: int, metric: str) -> list[Contender]:
    """The best of `count` random walks from the root, each trained from scratch on one candidate's tokens of the run.

    A walk is one step a generation for as many generations as the run had, or fewer, evenly; as with `baseline:
    random`, but trained from scratch. Choosing is by the eval split and the run's seed, like the run's own.
    """
    shop, longest = replace(shop, split="eval"), max(1, run.generations)
    walks = [(k, found) for k in range(count) if (found := _walk(run, k, longest)) is not None]
    trials = [Trial(f"random-{k}", design, run.seed, run.budget_tokens) for k, design in walks]
    shop.say(f"random baseline: {len(trials)} walks of at most {longest} steps, {run.budget_tokens:,} tokens each")
    reports = run_trials(shop, trials)
    sign = 1.0 if run.direction(metric) == "min" else -1.0
    values = [(sign * value, i) for i, report in enumerate(reports) if (value := _value(report, metric)) is not None]
    if not values:
        return []
    best = trials[min(values)[1]]
    return [Contender("baseline", best.label, best.design)]


def _walk(run: Recorded, number: int, longest: int) -> Design | None:
    """A random walk from the root that passes rung 0; None where `TRIES` draws found none."""
    space, evolution = Architectures(run.experiment), run.experiment.evolution
    rng = stream(run.seed, number, "verify/baseline")
    (root,) = space.founders(rng)
    for _ in range(TRIES):
        design = root
        for _ in range(int(rng.integers(1, longest + 1))):
            made = space.mutate(design, rng)
            design = design if made is None else made[0]
        known = space.costs(design)
        if not rejection(known | composed(known, evolution), evolution):
            return design
    return None


def _value(report: Report, metric: str) -> float | None:
    """The metric of a finished training; None for one that failed, or a random design that has no such figure."""
    return report.metrics.get(metric) if report.status is Status.TRAINED else None


def _compared(
    chosen: Sequence[Contender], reports: Sequence[Sequence[Report]], metric: str, seq_len: int
) -> list[Verified]:
    """Every design against the first, which is the root."""
    values = [[value for one in group if (value := _value(one, metric)) is not None] for group in reports]
    intervals = [t_interval(group, LEVEL) for group in values]
    p_values = [None, *(welch(group, values[0]) for group in values[1:])]
    found = []
    for i, (p, p_holm) in enumerate(zip(p_values, holm(p_values), strict=True)):
        (role, id, design), mean, root = chosen[i], intervals[i].value, intervals[0].value
        known = costs(design.blueprint, seq_len)
        found.append(
            Verified(
                id=id,
                role=role,
                blueprint=design.blueprint.to_json(),
                train=design.train.model_dump(mode="json"),
                params=known["params"],
                flops_per_token=known["flops_per_token"],
                values=tuple(values[i]),
                failures=tuple(report.reason for report in reports[i] if report.status is not Status.TRAINED),
                mean=mean,
                low=intervals[i].low,
                high=intervals[i].high,
                difference=mean - root if i and mean is not None and root is not None else None,
                p=p,
                p_holm=p_holm,
            )
        )
    return found
