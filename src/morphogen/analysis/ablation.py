"""Ablations: what is a candidate without one of its parts, or without one edit of its lineage?

Every ablated design is trained beside the candidate as it is, on the same text, with the same seeds, on as many
tokens: both from fresh weights, and both going on from the candidate's own. Differences are paired, seed by seed, with
intervals over seeds and texts, corrected after Holm. What does not apply to a candidate is said, and never trained.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from morphogen.analysis.ablations import ABLATIONS, Surrounding, find_ablation
from morphogen.analysis.recorded import Recorded
from morphogen.analysis.records import Ablated, Ablations, Start
from morphogen.analysis.repeated import text_influence
from morphogen.analysis.statistics import holm, over_seeds_and_texts, paired
from morphogen.analysis.trials import (
    MOST_DESIGNS,
    MOST_SEEDS,
    MOST_TOKENS,
    Heritage,
    Say,
    Trial,
    Workshop,
    check_range,
    check_some_trained,
    check_tokens,
    drawn_seeds,
    opened,
    run_trials,
    silent,
)
from morphogen.analysis.undoing import UNDO, chosen, lineage_edits, undone
from morphogen.blueprint.diff import changes
from morphogen.candidate import Change, Edit, Report, Status
from morphogen.cost import costs
from morphogen.data.prepare import prepare
from morphogen.errors import InputError, unknown
from morphogen.search.space import Design
from morphogen.store.ordinary import check_own
from morphogen.variation.act import train_changes

FILE, PICTURE = "ablation.json", "ablation.png"
LEVEL = 0.95
BOTH: tuple[Start, ...] = ("inherited", "scratch")


@dataclass(frozen=True)
class Wanted:
    """One ablation of one candidate. design: what is left; None where it does not apply, for the `reason`."""

    id: str
    name: str
    design: Design | None
    reason: str = ""


def ablate(
    path: Path,
    *,
    ids: Sequence[str] = (),
    top_n: int = 3,
    ablations: Sequence[str] = (),
    seeds: int = 3,
    steps: int | None = None,
    eval_batches: int | None = None,
    metric: str = "bpb",
    device: str = "cpu",
    workers: int | None = None,
    say: Say = silent,
) -> Ablations:
    """Measures what candidates of the run in a folder (or of a frontier file) are without parts of theirs, and writes
    `ablation.json` there.

    ids: candidates; none: the `top_n` of the frontier, best first by `metric`. ablations: names of `ABLATIONS`, `undo`
    for every edit of the lineage, `undo:OPERATOR` or `undo:OPERATOR@CANDIDATE` for some; none: all that have a name.
    steps: of every training (default: as many as the run gave a candidate). Finished trainings are kept below the run
    folder and not repeated. InputError for what does not fit, RunError where no training came to an end.
    """
    check_range({"top-n": (top_n, 1, MOST_DESIGNS), "seeds": (seeds, 2, MOST_SEEDS)})
    check_range({"steps": (steps, 1, MOST_TOKENS), "eval-batches": (eval_batches, 1, MOST_TOKENS)})
    run, shop = opened(path, device=device, workers=workers, say=say)
    check_own(run.folder, [FILE, PICTURE])
    if eval_batches is not None:
        shop = _measured_on(shop, eval_batches)
    tokens = run.budget_tokens if steps is None else steps * shop.prepared.tokens_per_step
    check_range({"steps": (tokens, 1, MOST_TOKENS)})
    check_tokens(tokens, shop.prepared)
    candidates = _candidates(run, ids, top_n, metric)
    _check_names(run, candidates, ablations)
    wanted = [one for id in candidates for one in _wanted(run, id, ablations)]
    drawn = drawn_seeds(run.seed, seeds, "ablate")
    found = list(_measured(run, shop, wanted, tokens, drawn, metric))
    corrected = holm([one.p for one in found])
    made = Ablations(
        run=run.name,
        folder=run.folder.resolve().name,
        metric=metric,
        direction=run.direction(metric),
        split=shop.split,
        tokens=tokens,
        seeds=drawn,
        level=LEVEL,
        ablations=tuple(one.replace(p_holm=p) for one, p in zip(found, corrected, strict=True)),
    )
    made.write(run.folder / FILE)
    return made


def _measured_on(shop: Workshop, eval_batches: int) -> Workshop:
    """Measured on so many batches of every shard."""
    data = shop.experiment.data
    tokens = eval_batches * data.seq_len * data.batch_size
    experiment = shop.experiment.model_copy(update={"data": data.model_copy(update={"eval_tokens": tokens})})
    prepared = prepare(experiment.data, experiment.train.accumulate)
    return replace(shop, experiment=experiment, prepared=prepared)


def _candidates(run: Recorded, ids: Sequence[str], top_n: int, metric: str) -> list[str]:
    """Those that were asked for, or the best of the frontier, each design once. InputError for one that is none."""
    trained = [candidate.id for candidate in run.trained]
    if strangers := [id for id in ids if id not in trained]:
        raise InputError(unknown(f"--id (of {run.folder})", strangers[0], trained))
    if ids:
        run.check_metric(metric, ids)
        return list(dict.fromkeys(ids))
    run.check_metric(metric, run.frontier)
    first: dict[str, str] = {}
    for id in run.best(metric):
        first.setdefault(run.key(run.design(id)), id)
    return list(first.values())[:top_n]


# --------------------------------------------------------------------------------------------------- what to take out


def _check_names(run: Recorded, candidates: Sequence[str], ablations: Sequence[str]) -> None:
    """InputError for the name of no ablation, and of no edit behind any of the candidates."""
    edits = [done for id in candidates for done in lineage_edits(run.candidates, id)]
    for name in ablations:
        if name == UNDO:
            continue
        if not name.startswith(f"{UNDO}:"):
            find_ablation(name)
        elif not chosen(edits, name):
            raise InputError(unknown("--ablation", name, [UNDO, *(done.name for done in edits)]))


def _wanted(run: Recorded, id: str, ablations: Sequence[str]) -> Iterator[Wanted]:
    """Every ablation that was asked for, of one candidate, each once."""
    edits = lineage_edits(run.candidates, id)
    for name in dict.fromkeys(ablations or ABLATIONS):
        if name == UNDO or name.startswith(f"{UNDO}:"):
            meant = chosen(edits, name)
            yield from (_without_edit(run, id, one.name, one.edit) for one in meant)
            if not meant:
                yield Wanted(id, name, None, "no such edit lies behind it")
        else:
            yield _without_part(run, id, name)


def _without_part(run: Recorded, id: str, name: str) -> Wanted:
    own, ablation = find_ablation(name)
    design, experiment = run.design(id), run.experiment
    made = ablation.act(design.blueprint, Surrounding(experiment.data.seq_len, experiment.priors))
    if made is None or made == design.blueprint:
        return Wanted(id, own, None, ablation.absent or "nothing would be left")
    return _told_apart(run, Wanted(id, own, Design(made, design.train)), design)


def _without_edit(run: Recorded, id: str, name: str, edit: Edit) -> Wanted:
    design = run.design(id)
    try:
        return _told_apart(run, Wanted(id, name, undone(design, edit)), design)
    except ValueError as error:
        return Wanted(id, name, None, str(error))


def _told_apart(run: Recorded, wanted: Wanted, design: Design) -> Wanted:
    """What nothing tells from the candidate is no ablation of it."""
    assert wanted.design is not None
    if run.key(wanted.design) != run.key(design):
        return wanted
    length = run.experiment.data.seq_len
    return replace(wanted, design=None, reason=f"sequences of {length} tokens cannot tell it from the candidate")


# ------------------------------------------------------------------------------------------------------- measuring


def _measured(
    run: Recorded,
    shop: Workshop,
    wanted: Sequence[Wanted],
    tokens: int,
    seeds: Sequence[int],
    metric: str,
) -> Iterator[Ablated]:
    """Every ablation from every start, those that do not apply among them; p-values are not corrected yet."""
    applied = [one for one in wanted if one.design is not None]
    heirs = {id: Heritage.of(run, id) for id in dict.fromkeys(one.id for one in applied)}
    trials: dict[tuple[str, str, Start], list[Trial]] = {}
    for start in BOTH:
        for id, heritage in heirs.items():
            if start == "inherited" and heritage is None:
                continue
            designs = {"": run.design(id)} | {one.name: one.design for one in applied if one.id == id and one.design}
            for name, design in designs.items():
                weights = heritage if start == "inherited" else None
                label = f"{id} {name or 'as it is'}, {start}"
                trials[id, name, start] = [Trial(label, design, seed, tokens, weights) for seed in seeds]
    shop.say(f"{sum(map(len, trials.values()))} trainings of {tokens:,} tokens, measured on the {shop.split} split")
    flat = run_trials(shop, [trial for each in trials.values() for trial in each])
    check_some_trained(shop, flat)
    rest = iter(flat)
    reports = {key: [next(rest) for _ in each] for key, each in trials.items()}
    for one in wanted:
        if one.design is None:
            yield Ablated(id=one.id, ablation=one.name, applied=False, reason=one.reason)
            continue
        for start in BOTH:
            if (one.id, one.name, start) in reports:
                yield _compared(run, one, start, reports, metric)
            else:
                reason = "the weights of the candidate are gone"
                yield Ablated(id=one.id, ablation=one.name, start=start, applied=False, reason=reason)


def _compared(
    run: Recorded, one: Wanted, start: Start, reports: Mapping[tuple[str, str, Start], Sequence[Report]], metric: str
) -> Ablated:
    """An ablated design against the candidate, seed by seed."""
    design, whole = one.design, run.design(one.id)
    assert design is not None
    ablated, usual = reports[one.id, one.name, start], reports[one.id, "", start]
    pairs = [
        (mine, other)
        for mine, other in zip(ablated, usual, strict=True)
        if _value(mine, metric) is not None and _value(other, metric) is not None
    ]
    differences = [mine.metrics[metric] - other.metrics[metric] for mine, other in pairs]
    mean, low, high = over_seeds_and_texts(differences, text_influence(pairs, metric), LEVEL)
    sign = 1.0 if run.direction(metric) == "min" else -1.0
    ends = [] if low is None or high is None else sorted((sign * low, sign * high))
    known, theirs = (costs(it.blueprint, run.experiment.data.seq_len) for it in (design, whole))
    return Ablated(
        id=one.id,
        ablation=one.name,
        start=start,
        applied=True,
        changes=_all_changes(whole, design),
        values=tuple(mine.metrics[metric] for mine, _ in pairs),
        usual=tuple(other.metrics[metric] for _, other in pairs),
        failures=tuple(it.reason for it in (*ablated, *usual) if it.status is not Status.TRAINED),
        difference=mean,
        low=low,
        high=high,
        p=paired(differences),
        shown="better" if ends and ends[1] < 0.0 else "worse" if ends and ends[0] > 0.0 else "no",
        others=_others(pairs, metric),
        params=known["params"],
        params_before=theirs["params"],
        flops_per_token=known["flops_per_token"],
        flops_per_token_before=theirs["flops_per_token"],
    )


def _all_changes(whole: Design, design: Design) -> tuple[Change, ...]:
    return (*changes(whole.blueprint, design.blueprint), *train_changes(whole.train, design.train))


def _others(pairs: Sequence[tuple[Report, Report]], metric: str) -> dict[str, float]:
    """The mean differences of all else that is measured of both."""
    alike = frozenset.intersection(*(frozenset(one.metrics) for pair in pairs for one in pair)) if pairs else ()
    return {
        name: sum(mine.metrics[name] - other.metrics[name] for mine, other in pairs) / len(pairs)
        for name in sorted(alike)
        if name != metric
    }


def _value(report: Report, metric: str) -> float | None:
    return report.metrics.get(metric) if report.status is Status.TRAINED else None
