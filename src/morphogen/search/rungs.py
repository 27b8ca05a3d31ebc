"""The rungs of evaluation: static gates, token budgets, and who goes on from one round of training to the next.

Rung 0 trains nothing. A *round* is what one job trains of a candidate: with `rungs: fixed` rungs 1 and 2 at one go,
with `rungs: asha` one rung. Promotion adds a last one. A round ends when every report of it is in, so that who goes on
does not depend on the order of arrival (synchronous successive halving: Jamieson and Talwalkar 2016).
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from morphogen.candidate import Report, Stage, Status
from morphogen.errors import InputError, unknown
from morphogen.experiment import Evolution
from morphogen.figures import Bounds
from morphogen.selection.objectives import matrix
from morphogen.selection.pareto import order


def check_thresholds(evolution: Evolution, names: Collection[str]) -> None:
    """InputError, with the nearest name, for a threshold on anything but the costs called `names`, and what is
    composed of them."""
    known = set(names)
    for name, composite in evolution.composite_metrics.items():
        known |= {name} if known.issuperset(composite.names) else set()
    for name in evolution.rung0_thresholds:
        if name not in known:
            raise InputError(unknown(f"evolution.rung0_thresholds.{name}", name, known))


def rejection(costs: Mapping[str, float], evolution: Evolution, *, gated: bool = True) -> str:
    """Why rung 0 turns a genome of these costs away, every reason; empty when it passes.

    gated: whether the structural gates hold for it.
    """
    reasons = []
    for name, limit in evolution.rung0_thresholds.items():
        limits = limit if isinstance(limit, Bounds) else Bounds(max=limit)
        value = costs.get(name, math.nan)  # a ratio to nothing has no value
        if math.isnan(value):
            reasons.append(f"{name} cannot be computed")
        elif complaint := limits.complaint(name, value, f"rung0_thresholds.{name}"):
            reasons.append(complaint)
    for name, least in evolution.gates.items() if gated else ():
        if costs.get(name, math.inf) < least:  # genomes of another kind have no such cost
            reasons.append(f"{name} is {costs[name]:.12g}, below min_{name} {least}")
    return "; ".join(reasons)


def stages(evolution: Evolution) -> tuple[Stage, ...]:
    """Every rung that all candidates may reach, each with its own budget; one without a budget is left out."""
    if evolution.rungs == "fixed":
        budgets = [evolution.rung1_tokens, evolution.rung2_tokens]
    else:
        ends = []
        end = evolution.min_tokens
        while end < evolution.max_tokens:
            ends.append(end)
            end *= evolution.eta
        ends.append(evolution.max_tokens)
        budgets = [ends[0], *np.diff(ends).tolist()]
    return tuple(Stage(rung=rung, budget_tokens=budget) for rung, budget in enumerate(budgets, start=1) if budget > 0)


def promotion(evolution: Evolution) -> Stage:
    """The extra rung of the promoted: the last rung's budget times both multipliers."""
    last = stages(evolution)[-1]
    factor = evolution.promotion_steps_multiplier * evolution.promotion_tokens_multiplier
    return Stage(rung=last.rung + 1, budget_tokens=max(1, math.floor(last.budget_tokens * factor)))


def rounds(evolution: Evolution) -> tuple[tuple[Stage, ...], ...]:
    """What each round trains, in order."""
    all_of_them = stages(evolution)
    planned = (all_of_them,) if evolution.rungs == "fixed" else tuple((stage,) for stage in all_of_them)
    return (*planned, (promotion(evolution),)) if evolution.promotion_prob > 0.0 else planned


class Decision(NamedTuple):
    """After a round: who goes on to the next, and what is now to be said of those who do not."""

    on: tuple[str, ...]
    stopped: dict[str, str]


def decide(evolution: Evolution, round: int, reports: Iterable[Report], draws: Mapping[str, float]) -> Decision:
    """Who of those trained in `round` goes on to the next one; nobody after the last.

    draws: a number in [0, 1) for every candidate, for `promotion_prob`. Successive halving keeps the best 1/eta by
    front and crowding, at least one, and stops the others for good. Promotion stops nobody.
    """
    trained = [report for report in reports if report.status is Status.TRAINED]
    planned = rounds(evolution)
    if round + 1 >= len(planned) or not trained:
        return Decision((), {})
    if evolution.promotion_prob > 0.0 and round + 2 == len(planned):
        return Decision(
            tuple(r.id for r in trained if draws[r.id] < evolution.promotion_prob and promotable(r, evolution)), {}
        )
    scored = matrix(trained, evolution.objectives, evolution.constraints, noise=evolution.noise, strict=False)
    keep = max(1, len(trained) // evolution.eta)
    placed = [scored.ids[row] for row in order(scored)]
    places = {id: place for place, id in enumerate(placed, start=1)}
    rung = planned[round][-1].rung
    stopped = {
        r.id: f"rung {rung}: place {places[r.id]} of {len(trained)}, the first {keep} go on"
        for r in trained
        if places[r.id] > keep
    }
    return Decision(tuple(placed[:keep]), stopped)


def promotable(report: Report, evolution: Evolution) -> bool:
    """Whether a trained candidate meets every condition for an extra budget; one it has no figure for it does not."""
    least = {
        "layers": float(evolution.promotion_min_layers) or None,
        "moe_blocks": float(evolution.promotion_min_moe_blocks) or None,
        "router_entropy": evolution.promotion_min_router_entropy,
        "recurrence_gain": evolution.promotion_min_recurrence_gain,
    }
    most = {"instability": evolution.promotion_max_instability}
    limits = [(name, Bounds(min=bound)) for name, bound in least.items() if bound is not None]
    limits += [(name, Bounds(max=bound)) for name, bound in most.items() if bound is not None]
    for name, limit in limits:
        value = report.value(name)
        if value is None or not math.isfinite(value) or limit.violation(value) > 0.0:
            return False
    return True
