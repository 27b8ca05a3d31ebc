"""Verification: are the finalists better than the root when all are trained from scratch alike?

Finalists, the root and the best of a random search are trained anew by one schedule with several seeds, on equal tokens
and on several times as many, since signs depend on the budget; and measured on the test split, which no search has
seen. Each is compared with the root trained as long, corrected after Holm, in two ways. *Paired*, seed by seed:
trainings of one seed read the same text in the same order, and every tensor that two designs have in common, by gene,
name and shape, begins with the same weights; what luck that brings cancels. By *Welch's* t-test, which takes them for
independent, and is the more careful one where pairs have little in common.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from morphogen.analysis.recorded import Recorded
from morphogen.analysis.records import Paired, Role, Verification, Verified
from morphogen.analysis.repeated import text_influence
from morphogen.analysis.statistics import holm, paired, t_interval, welch
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
from morphogen.estimates import composed, standard_error
from morphogen.reading import placeless
from morphogen.search.rungs import rejection
from morphogen.search.space import Architectures, Design

FILE = "verify.json"
#: Random walks drawn for one candidate of the baseline before it is given up.
TRIES = 50
LEVEL = 0.95
#: A design is trained on so many times the tokens: what starts fast may end behind.
TIMES = (1, 4)
MOST_TIMES = 10_000


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
    times: Sequence[int] = TIMES,
    finalists: int = 5,
    metric: str = "bpb",
    device: str = "cpu",
    workers: int | None = None,
    say: Say = silent,
) -> Verification:
    """Verifies the run in a folder (or of a frontier file), and writes `verify.json` there.

    baseline: another run on the same text, whose best takes the place of a random search's. random: candidates of that
    search (default: as many as the run trained, on as many tokens each; 0 for none, as for a run without edits).
    tokens: of each training (default: the run's for one candidate). times: every design is trained on so many times
    these tokens, each of them anew. finalists: at most so many, the best by `metric`.
    workers: processes that train; None is this one alone. Finished trainings are kept below the run folder and not
    repeated. InputError for what does not fit, RunError as `Recorded.read`, and where no training came to an end.
    """
    _check_options(seeds, finalists, times, random, tokens)
    run, shop = opened(path, device=device, workers=workers, say=say)
    tokens = run.budget_tokens if tokens is None else tokens
    check_range({"tokens times --times": (tokens * max(times), 1, MOST_TOKENS)})
    check_tokens(tokens, shop.prepared)
    if measurable(shop.prepared, "test"):
        shop = replace(shop, split="test")
    root = min(run.candidates, key=lambda id: run.candidates[id].index)
    run.check_metric(metric, [root, *run.frontier])
    chosen, walked = _chosen(run, shop, root, finalists, baseline, random, metric)
    drawn = drawn_seeds(run.seed, seeds, "verify")
    lengths = [factor * tokens for factor in sorted(set(times))]
    several = " and ".join(f"{length:,}" for length in lengths)
    say(f"{len(chosen)} designs x {seeds} seeds x {several} tokens, measured on the {shop.split} split")
    groups = _trained(shop, chosen, drawn, lengths)
    compared = [
        one
        for i, length in enumerate(lengths)
        for one in _compared(chosen, groups[i * len(chosen) : (i + 1) * len(chosen)], metric, length, run)
    ]
    found = Verification(
        run=run.name,
        metric=metric,
        direction=run.direction(metric),
        split=shop.split,
        tokens=tokens,
        times=tuple(sorted(set(times))),
        seeds=drawn,
        level=LEVEL,
        searched=len(run.trained),
        random=walked,
        candidates=tuple(_corrected(compared)),
    )
    found.write(run.folder / FILE)
    return found


def _check_options(seeds: int, finalists: int, times: Sequence[int], random: int | None, tokens: int | None) -> None:
    """InputError for an option out of its range."""
    check_range({"seeds": (seeds, 2, MOST_SEEDS), "finalists": (finalists, 1, MOST_DESIGNS)})
    for factor in times:
        check_range({"times": (factor, 1, MOST_TIMES)})
    check_range({"random": (random, 0, MOST_DESIGNS), "tokens": (tokens, 1, MOST_TOKENS)})


def _chosen(
    run: Recorded,
    shop: Workshop,
    root: str,
    finalists: int,
    baseline: Path | None,
    random: int | None,
    metric: str,
) -> tuple[list[Contender], int]:
    """The root, the finalists, and the best of another search; how many candidates a random one had."""
    chosen = [Contender("root", root, run.design(root))]
    chosen += [Contender("finalist", id, run.design(id)) for id in run.best(metric)]
    chosen = _distinct(run, chosen)[: 1 + finalists]
    if baseline is not None:
        return [*chosen, _best_of(run, baseline, metric)], 0
    if random != 0 and run.experiment.evolution.edits:
        walked = random or len(run.trained)
        return [*chosen, *_random_best(run, shop, walked, metric)], walked
    return chosen, 0


def _trained(
    shop: Workshop, chosen: Sequence[Contender], seeds: Sequence[int], lengths: Sequence[int]
) -> list[list[Report]]:
    """Reports of each design's seeds, one design after the other, length by length."""
    trials = [
        Trial(f"{role} {id} {length:,} tokens", design, seed, length)
        for length in lengths
        for role, id, design in chosen
        for seed in seeds
    ]
    reports = run_trials(shop, trials)
    check_some_trained(shop, reports)
    return [list(reports[i : i + len(seeds)]) for i in range(0, len(reports), len(seeds))]


def _distinct(run: Recorded, chosen: Sequence[Contender]) -> list[Contender]:
    """The first of each design: the root may stand on the frontier, and a control's copies are its equals."""
    first: dict[str, Contender] = {}
    for one in chosen:
        first.setdefault(run.key(one.design), one)
    return list(first.values())


def _best_of(run: Recorded, path: Path, metric: str) -> Contender:
    """The best of another run's frontier. InputError unless it is a run on the same text."""
    other = Recorded.read(path)
    mine, theirs = (placeless(it.experiment).data for it in (run, other))
    texts = (text_of(prepare(it.experiment.data).environment()) for it in (run, other))
    if mine != theirs or next(texts) != next(texts):
        raise InputError(f"--baseline {path}: its data section differs from that of {run.folder}, expected the same")
    best = other.best(metric)[0]
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
        if not rejection(known | composed(known, evolution.composite_metrics), evolution):
            return design
    return None


def _value(report: Report, metric: str) -> float | None:
    """The metric of a finished training; None for one that failed, or a random design that has no such figure."""
    return report.metrics.get(metric) if report.status is Status.TRAINED else None


def _compared(
    chosen: Sequence[Contender], reports: Sequence[Sequence[Report]], metric: str, tokens: int, run: Recorded
) -> list[Verified]:
    """Every design against the first, which is the root, after so many tokens; not corrected yet."""
    values = [[value for one in group if (value := _value(one, metric)) is not None] for group in reports]
    found = []
    for i, (role, id, design) in enumerate(chosen):
        mean, low, high = t_interval(values[i], LEVEL)
        root = t_interval(values[0], LEVEL).value
        known = costs(design.blueprint, run.experiment.data.seq_len)
        found.append(
            Verified(
                id=id,
                role=role,
                tokens=tokens,
                blueprint=design.blueprint.to_json(),
                train=design.train.model_dump(mode="json"),
                params=known["params"],
                flops_per_token=known["flops_per_token"],
                values=tuple(values[i]),
                failures=tuple(report.reason for report in reports[i] if report.status is not Status.TRAINED),
                mean=mean,
                low=low,
                high=high,
                difference=mean - root if i and mean is not None and root is not None else None,
                p=welch(values[i], values[0]) if i else None,
                p_holm=None,
                paired=_paired(reports[i], reports[0], metric) if i else None,
            )
        )
    return found


def _paired(reports: Sequence[Report], roots: Sequence[Report], metric: str) -> Paired:
    """A design against the root, seed by seed; not corrected yet."""
    pairs = [
        (one, other)
        for one, other in zip(reports, roots, strict=True)
        if _value(one, metric) is not None and _value(other, metric) is not None
    ]
    differences = [one.metrics[metric] - other.metrics[metric] for one, other in pairs]
    mean, low, high = t_interval(differences, LEVEL)
    influence_U = text_influence(pairs, metric)
    error = None if influence_U is None else standard_error(influence_U)
    p = paired(differences)
    return Paired(pairs=len(pairs), difference=mean, low=low, high=high, p=p, p_holm=None, text_error=error)


def _corrected(compared: Sequence[Verified]) -> list[Verified]:
    """With p-values corrected for all comparisons, Welch's and the paired ones each for themselves."""
    welchs = holm([one.p for one in compared])
    pairs = holm([one.paired.p if one.paired is not None else None for one in compared])
    return [
        one.replace(p_holm=p, paired=one.paired and one.paired.replace(p_holm=pair))
        for one, p, pair in zip(compared, welchs, pairs, strict=True)
    ]
