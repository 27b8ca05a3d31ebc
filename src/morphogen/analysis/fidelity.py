"""Fidelity: how well does the ranking of a short rung predict that of a longer one?

Candidates of a run are trained from scratch on a short and on a long budget. Predictors of the long ranking are the
short rung, the run's own measurement (by inheritance, where the run inherits), and the number of parameters, which any
predictor has to beat: overall, and among candidates of nearly equal size, where counting parameters says little.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from morphogen.analysis.recorded import Recorded
from morphogen.analysis.records import Fidelity, Predicted, Predictor, Ranked, Scope
from morphogen.analysis.statistics import agreements, size_bands
from morphogen.analysis.trials import (
    MOST_DESIGNS,
    MOST_RESAMPLES,
    MOST_SEEDS,
    MOST_TOKENS,
    Say,
    Trial,
    check_range,
    drawn_seeds,
    opened,
    run_trials,
    silent,
)
from morphogen.candidate import Report, Status, stream
from morphogen.cost import costs
from morphogen.errors import InputError, RunError
from morphogen.figures import Direction
from morphogen.search.rungs import stages
from morphogen.search.space import Design

FILE = "fidelity.json"
LEVEL = 0.95
#: Candidates within ± this share of a band's centre count as of equal size.
BAND = 0.05


def fidelity(
    path: Path,
    *,
    short: int | None = None,
    long: int | None = None,
    candidates: int = 16,
    seeds: int = 1,
    top_k: int = 1,
    resamples: int = 2000,
    metric: str = "bpb",
    device: str = "cpu",
    workers: int | None = None,
    say: Say = silent,
) -> Fidelity:
    """Measures the fidelity of the run in a folder, and writes `fidelity.json` there.

    short, long: training tokens (default: those of rung 1, and of one whole candidate). candidates: at most so many
    architectures, evenly over the run. Short and long trainings share seeds and text, as the rungs of a run do.
    Finished trainings are kept below the run folder and not repeated. InputError for what does not fit, RunError as
    `Recorded.read`.
    """
    check_range({"candidates": (candidates, 3, MOST_DESIGNS), "seeds": (seeds, 1, MOST_SEEDS)})
    check_range({"top-k": (top_k, 1, MOST_DESIGNS), "bootstrap": (resamples, 1, MOST_RESAMPLES)})
    check_range({"short": (short, 1, MOST_TOKENS), "long": (long, 1, MOST_TOKENS)})
    run, shop = opened(path, device=device, workers=workers, say=say)
    chosen = _spread(run, candidates)
    run.check_metric(metric, chosen)
    short, long = _budgets(run, short, long)
    drawn = drawn_seeds(run.seed, seeds, "fidelity")
    trials = [
        Trial(f"{id} {tokens:,} tokens", design, seed, tokens)
        for id, design in chosen.items()
        for tokens in (short, long)
        for seed in drawn
    ]
    say(f"{len(chosen)} architectures x {seeds} seeds, {short:,} and {long:,} tokens")
    reports = run_trials(shop, trials)
    ranked, failures = _ranked(run, chosen, reports, seeds, metric)
    if len(ranked) < 3:
        raise RunError(f"{run.folder}: {len(ranked)} of {len(chosen)} architectures could be trained: {failures}")
    rng = stream(run.seed, 0, "fidelity/bootstrap")
    found = Fidelity(
        run=run.name,
        metric=metric,
        direction=run.direction(metric),
        short_tokens=short,
        long_tokens=long,
        seeds=drawn,
        top_k=top_k,
        resamples=resamples,
        level=LEVEL,
        band=BAND,
        candidates=tuple(ranked),
        failures=failures,
        predictors=tuple(compare(ranked, run.direction(metric), rng, top_k=top_k, resamples=resamples)),
    )
    found.write(run.folder / FILE)
    return found


def compare(
    ranked: Sequence[Ranked], direction: Direction, rng: np.random.Generator, *, top_k: int, resamples: int
) -> list[Predicted]:
    """Every predictor against the long training, among all and within bands of equal size."""
    sign = 1.0 if direction == "min" else -1.0
    true = [sign * one.long for one in ranked]
    predictions: dict[Predictor, list[float]] = {
        "short": [sign * one.short for one in ranked],
        "recorded": [sign * one.recorded for one in ranked],
        "params": [-one.params for one in ranked],  # more parameters are predicted to be better
    }
    scopes: dict[Scope, list[int] | None] = {"all": None, "equal size": [one.band for one in ranked]}
    found = []
    for scope, bands in scopes.items():
        for name, predicted in predictions.items():
            measured = agreements(predicted, true, rng, bands=bands, top_k=top_k, resamples=resamples, level=LEVEL)
            found.append(Predicted(predictor=name, scope=scope, **measured._asdict()))
    return found


def _spread(run: Recorded, most: int) -> dict[str, Design]:
    """At most `most` different designs, evenly over the run, the first and the last among them; by id.

    InputError for fewer than three.
    """
    distinct: dict[str, tuple[str, Design]] = {}
    for candidate in run.trained:
        design = run.design(candidate.id)
        distinct.setdefault(run.key(design), (candidate.id, design))
    found = list(distinct.values())
    places = np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int).tolist()
    if len(places) < 3:
        raise InputError(f"{run.folder}: has {len(places)} trained architectures, expected at least 3 to rank")
    return dict(found[place] for place in places)


def _budgets(run: Recorded, short: int | None, long: int | None) -> tuple[int, int]:
    """Tokens of the short and the long training; InputError where the one is not below the other."""
    short = stages(run.experiment.evolution)[0].budget_tokens if short is None else short
    long = run.budget_tokens if long is None else long
    if not 0 < short < long:
        raise InputError(
            f"--short, --long: got {short} and {long} tokens, expected the first above 0 and below the second"
        )
    return short, long


def _ranked(
    run: Recorded, chosen: Mapping[str, Design], reports: Sequence[Report], seeds: int, metric: str
) -> tuple[list[Ranked], dict[str, str]]:
    """Every candidate of which all trainings came to an end, and why the others did not."""
    values: list[tuple[str, float, float]] = []
    failures: dict[str, str] = {}
    for i, id in enumerate(chosen):
        own = reports[2 * seeds * i : 2 * seeds * (i + 1)]
        if lost := [report.reason for report in own if report.status is not Status.TRAINED]:
            failures[id] = lost[0]
            continue
        if any(metric not in report.metrics for report in own):
            failures[id] = f"{metric} was no finite number"
            continue
        short, long = ([report.metrics[metric] for report in part] for part in (own[:seeds], own[seeds:]))
        values.append((id, sum(short) / seeds, sum(long) / seeds))
    sizes = [costs(chosen[id].blueprint, run.experiment.data.seq_len)["params"] for id, _, _ in values]
    return [
        Ranked(id=id, params=size, band=band, recorded=run.value(id, metric), short=short, long=long)
        for (id, short, long), size, band in zip(values, sizes, size_bands(sizes, BAND), strict=True)
    ], failures
