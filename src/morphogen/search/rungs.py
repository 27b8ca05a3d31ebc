"""The rungs of evaluation: the static gates of rung 0, which trains nothing, and the token budgets of the others."""

from collections.abc import Collection, Mapping

from morphogen.candidate import Stage
from morphogen.errors import InputError, unknown
from morphogen.experiment import Evolution


def check_thresholds(evolution: Evolution, names: Collection[str]) -> None:
    """InputError, with the nearest name, for a threshold on anything but the costs called `names`."""
    for name in evolution.rung0_thresholds:
        if name not in names:
            raise InputError(unknown(f"evolution.rung0_thresholds.{name}", name, names))


def rejection(costs: Mapping[str, float], evolution: Evolution, *, gated: bool = True) -> str:
    """Why rung 0 turns a blueprint of these costs away, every reason; empty when it passes.

    gated: whether the structural gates hold for it.
    """
    reasons = [
        f"{name} is {costs[name]:.12g}, above rung0_thresholds.{name} {limit:.12g}"
        for name, limit in evolution.rung0_thresholds.items()
        if costs[name] > limit
    ]
    for name, least in evolution.gates.items() if gated else ():
        if least > 0 and costs[name] < least:
            reasons.append(f"{name} is {costs[name]:.12g}, below min_{name} {least}")
    return "; ".join(reasons)


def stages(evolution: Evolution) -> tuple[Stage, ...]:
    """The rungs that train, each with its own budget; one without a budget is left out."""
    budgets = {1: evolution.rung1_tokens, 2: evolution.rung2_tokens}
    return tuple(Stage(rung=rung, budget_tokens=budget) for rung, budget in budgets.items() if budget > 0)
