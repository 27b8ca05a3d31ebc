"""Operators on recurrences: which blocks are looped, how often, and what each step is given."""

from collections.abc import Iterable
from itertools import combinations, pairwise

import numpy as np

from morphogen.blueprint.schema import Blueprint
from morphogen.parts.contract.operator import model_operator, pick
from morphogen.parts.recurrence.recurrence import MOST_STEPS, Recurrence

#: Operators loop over at most this many blocks,
LONGEST = 4
#: and start with at most this many steps.
FIRST_STEPS = 4


def with_recurrences(blueprint: Blueprint, loops: Iterable[Recurrence]) -> Blueprint | None:
    """The blueprint with other recurrences, validated; None where that is invalid or nothing differs."""
    return blueprint.evolve(recurrences=tuple(sorted(loops, key=lambda loop: loop.start)))


@model_operator(preserves=True)
def add_recurrence(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """A first recurrence, over one to four blocks in a row; at first every step is alike. Ref: arXiv 2502.05171."""
    return None if blueprint.recurrences else _with_another(blueprint, rng)


@model_operator(preserves=True)
def add_additional_recurrence(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """One more recurrence, over blocks that none loops over yet. Ref: arXiv 2502.05171."""
    return _with_another(blueprint, rng) if blueprint.recurrences else None


def _with_another(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    taken = [loop_end for loop in blueprint.recurrences for loop_end in (loop.start, loop.end)]
    # between one recurrence's end and the next one's start
    free = list(pairwise([0, *taken, len(blueprint.blocks)]))[::2]
    spans = [
        span for first, last in free for span in combinations(range(first, last + 1), 2) if span[1] - span[0] <= LONGEST
    ]
    if (span := pick(rng, spans)) is None:
        return None
    steps = int(rng.integers(2, FIRST_STEPS + 1))
    loop = Recurrence(
        id=blueprint.fresh_id(rng),
        start=span[0],
        end=span[1],
        adapter="gated" if rng.random() < 0.5 else "linear",
        concat_prelude=bool(rng.random() < 0.5),
        max_train_recurrence=steps,
        test_recurrences=(1, steps),
        start_state="noise" if rng.random() < 0.25 else "zero",
    )
    return with_recurrences(blueprint, (*blueprint.recurrences, loop))


def _with_changed(blueprint: Blueprint, rng: np.random.Generator, **changes: object) -> Blueprint | None:
    """The blueprint with changes to one of the recurrences that they would change."""
    made = [(i, loop.evolve(**changes)) for i, loop in enumerate(blueprint.recurrences)]
    chosen = pick(rng, [(i, loop) for i, loop in made if loop is not None])
    if chosen is None:
        return None
    loops = list(blueprint.recurrences)
    loops[chosen[0]] = chosen[1]
    return with_recurrences(blueprint, loops)


@model_operator(preserves=False)
def tune_recurrence(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """One or two steps more or fewer, or a block more or less at one end of the core."""
    loop = pick(rng, blueprint.recurrences)
    if loop is None:
        return None
    if rng.random() < 0.5:
        step = int(rng.choice([-1, 1]))
        end = "start" if rng.random() < 0.5 else "end"
        tuned = loop.evolve(**{end: dict(loop)[end] + step})
    else:
        most = min(MOST_STEPS, max(2, loop.max_train_recurrence + int(rng.choice([-2, -1, 1, 2]))))
        first = min(loop.train_recurrence, most)
        tuned = loop.evolve(max_train_recurrence=most, train_recurrence=first, test_recurrences=(1, most))
    if tuned is None:
        return None
    return with_recurrences(blueprint, (tuned if other is loop else other for other in blueprint.recurrences))


@model_operator(preserves=True)
def tune_recurrence_curriculum(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """How a recurrence is trained: its first number of steps, when it has its last one, where the state starts."""
    curricula: list[dict[str, object]] = [
        {"train_recurrence": int(rng.integers(1, 4))},
        {"curriculum_fraction": float(rng.choice([0.0, 0.25, 0.5, 1.0]))},
        {"start_state": "noise" if rng.random() < 0.5 else "zero"},
    ]
    return _with_changed(blueprint, rng, **curricula[int(rng.integers(len(curricula)))])


@model_operator(preserves=True)
def enrich_recurrence_adapter(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """A gate on what a recurrence's steps are given, or the prelude among what they read; neutral at first."""
    change = {"adapter": "gated"} if rng.random() < 0.5 else {"concat_prelude": True}
    return _with_changed(blueprint, rng, **change)


@model_operator(preserves=False)
def simplify_recurrence_adapter(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """A recurrence without its gate, or without reading the prelude."""
    change = {"adapter": "linear"} if rng.random() < 0.5 else {"concat_prelude": False}
    return _with_changed(blueprint, rng, **change)


@model_operator(preserves=False)
def remove_recurrence(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """The blocks of a recurrence once and no longer again and again."""
    gone = pick(rng, blueprint.recurrences)
    return with_recurrences(blueprint, (loop for loop in blueprint.recurrences if loop is not gone)) if gone else None
