"""A generation's end: who of its candidates and of those before them stays. `Search.close_generation` calls it."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from morphogen.candidate import Candidate, Report, Status, origin
from morphogen.errors import RunError
from morphogen.experiment import Evolution
from morphogen.search.novelty import NAME as NOVELTY
from morphogen.selection.map_elites import elites
from morphogen.selection.objectives import Matrix, matrix
from morphogen.selection.survival import survive


def check_founders(reports: Sequence[Report]) -> None:
    """RunError unless a founder was trained: there is nothing else to breed from."""
    first, *_ = reports
    if all(report.status is not Status.TRAINED for report in reports):
        why = first.reason or "no reason given"
        raise RunError(f"the root {first.id} was not trained ({first.status.value}): {why}")


def standing(
    evolution: Evolution,
    candidates: Mapping[str, Candidate],
    reports: Mapping[str, Report],
    earlier: Iterable[str],
    newborn: Sequence[str],
) -> list[Report]:
    """Reports of the newborn, and of those chosen earlier that have not been trained on: whoever has is one of the
    newborn, and stands for what it was."""
    trained_on = set[str]()
    if evolution.trains_on:
        children = [candidates[id] for id in newborn if reports[id].status is Status.TRAINED]
        trained_on = {child.parents[0] for child in children if child.continues}
    return [reports[id] for id in dict.fromkeys((*earlier, *newborn)) if id not in trained_on]


def birth(evolution: Evolution, candidates: Mapping[str, Candidate], id: str) -> int:
    """The index that a candidate, or the one that it continues, was born with; the control's, which are all the root
    trained on, are each born."""
    return (origin(candidates, candidates[id]) if evolution.edits else candidates[id]).index


def survivors(
    evolution: Evolution,
    pool: Sequence[Report],
    births: Mapping[str, int],
    best: Matrix,
    rng: np.random.Generator,
) -> tuple[str, ...]:
    """Who breeds next: by the survival rule, or the archive's elites, and structural elites beside them.

    births: when each of the pool was born, as an index. best: the run's frontier.
    """
    objectives, limits, noise = evolution.objectives, evolution.constraints, evolution.noise
    if evolution.parent_selection == "map_elites":
        kept = elites(pool, objectives, limits, evolution.map_elites, evolution.archive_max_elites, noise)
    else:
        keep = evolution.topk_keep
        kept = survive(evolution.survival, pool, objectives, limits, keep, births, rng, best, noise)
    if evolution.structural_elite_k:
        others = [report for report in pool if report.id not in kept]
        usable = set(matrix(others, objectives, limits, strict=False).complete.ids)
        able = [report for report in others if report.id in usable]
        able.sort(key=lambda report: (-report.metrics[NOVELTY], report.id))
        kept += tuple(report.id for report in able[: evolution.structural_elite_k])
    return kept
