"""What a training tells of its growth: a line of text for every event, and the same fields as rows of a table.

    [2026-11-29 21:40:05] Step 400 | Tokens 819,200 | LossCE 2.7183 | LossLB 0.0104 | LR 2.000e-04 | Event evolve_split
    | Layer 1 | Action split | Expert 0 | Usage 0.6120 | Thresh 0.3500 | 2→3

Steps are the optimizer's, tokens those that it was trained on until then. An event that changes several experts has a
line for each. `a→b` counts what the action changes: experts of the layer, layers, channels, or parameters.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import NonNegativeInt

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import GrowthEvent, Record
from morphogen.escape import csv_cell, visible

#: Action -> (what its event is called, what the line says was done).
NAMES = {
    "split_experts": ("evolve_split", "split"),
    "prune_experts": ("evolve_prune", "prune"),
    "merge_experts": ("evolve_merge", "merge"),
    "cross_experts": ("evolve_cross", "cross"),
    "add_experts": ("evolve_add", "add"),
    "to_moe": ("grow_moe", "to_moe"),
    "widen": ("grow_width", "widen"),
    "deepen": ("grow_depth", "deepen"),
    "grow_vocabulary": ("grow_vocabulary", "grow_vocabulary"),
    "drop_layer": ("shrink_depth", "drop_layer"),
    "narrow": ("shrink_width", "narrow"),
}


class Moment(Record):
    """Where a training stands when it grows. lr: as of the last step. loss, balance: of the last step, in nats per
    token, and what load balancing adds to it."""

    time: str
    step: NonNegativeInt
    tokens: NonNegativeInt
    loss: float | None
    balance: float | None
    lr: float | None


class Row(Record):
    """One line. layer: positions of the blocks, from 0. before, after: the count that the action changes.
    experts_per_layer: afterwards, 0 where a layer has no mixture."""

    time: str
    step: NonNegativeInt
    tokens: NonNegativeInt
    loss_ce: float | None
    loss_lb: float | None
    lr: float | None
    event: str
    layer: str
    action: str
    expert: str
    usage: float | None
    threshold: float | None
    before: NonNegativeInt
    after: NonNegativeInt
    experts_per_layer: tuple[NonNegativeInt, ...]
    rule: str
    trigger: str
    params_before: NonNegativeInt
    params_after: NonNegativeInt
    layers: NonNegativeInt
    dim: NonNegativeInt
    loss_held: float | None
    loss_held_after: float | None
    max_delta: float | None
    exact: bool


COLUMNS = tuple(Row.model_fields)


def rows_of(event: GrowthEvent, moment: Moment, before: Blueprint, after: Blueprint) -> list[Row]:
    """The lines of an event that led from one blueprint to another."""
    name, done = NAMES.get(event.action, (event.action, event.action))
    rest = {
        "time": moment.time,
        "step": moment.step,
        "tokens": moment.tokens,
        "loss_ce": moment.loss,
        "loss_lb": moment.balance,
        "lr": moment.lr,
        "event": name,
        "action": f"{done} (taken back)" if event.taken_back else done,
        "threshold": event.threshold,
        "experts_per_layer": experts_per_layer(after, event.after.experts),
        "rule": event.rule,
        "trigger": event.trigger,
        "params_before": event.before.params,
        "params_after": event.after.params,
        "layers": event.after.layers,
        "dim": event.after.dim,
        "loss_held": event.loss,
        "loss_held_after": event.loss_after,
        "max_delta": event.max_delta,
        "exact": event.exact,
    }
    return [Row(**rest, **own) for own in _changes(event, before, after)]


def experts_per_layer(blueprint: Blueprint, experts: Mapping[str, int]) -> tuple[int, ...]:
    """Experts of every layer in order, 0 where it has no mixture; `experts` has them by block id."""
    return tuple(experts.get(block.id, 0) for block in blueprint.blocks)


def _changes(event: GrowthEvent, before: Blueprint, after: Blueprint) -> list[dict[str, Any]]:
    """Layer, expert, usage and counts of every line."""
    places = {block.id: place for blueprint in (before, after) for place, block in enumerate(blueprint.blocks)}
    old, new = event.before.experts, event.after.experts
    per_block = {block for block in {**old, **new} if old.get(block) != new.get(block)}
    if event.action == "cross_experts" or event.taken_back:  # the only ones that may leave all counts as they are
        per_block |= event.experts.keys()
    if per_block and event.before.layers == event.after.layers:
        ordered = sorted(per_block, key=lambda block: places.get(block, -1))
        return [line for block in ordered for line in _of_experts(event, block, places)]
    layers = ",".join(str(places[block]) for block in event.blocks if block in places)
    return [{"layer": layers or "-", "expert": "-", "usage": None, **_counts(event)}]


def _of_experts(event: GrowthEvent, block: str, places: Mapping[str, int]) -> list[dict[str, Any]]:
    """Those of one mixture: one by one where each changes the count by one."""
    first, last = (size.experts.get(block, 1) for size in (event.before, event.after))
    chosen, usage = event.experts.get(block, ()), event.usage.get(block, ())
    line = {"layer": str(places.get(block, "-"))}
    if chosen and abs(last - first) == len(chosen):
        step = 1 if last > first else -1
        return [
            {
                **line,
                "expert": str(expert),
                "usage": usage[place] if place < len(usage) else None,
                "before": first + step * place,
                "after": first + step * (place + 1),
            }
            for place, expert in enumerate(chosen)
        ]
    return [
        {
            **line,
            "expert": "+".join(map(str, chosen)) or "-",
            "usage": usage[0] if usage else None,
            "before": first,
            "after": last,
        }
    ]


def _counts(event: GrowthEvent) -> dict[str, int]:
    """Of layers, channels or parameters: the first of them that changed."""
    sizes = [(event.before.layers, event.after.layers), (event.before.dim, event.after.dim)]
    first, last = next((pair for pair in sizes if pair[0] != pair[1]), (event.before.params, event.after.params))
    return {"before": first, "after": last}


def line(row: Row) -> str:
    """A row as a line of text."""
    return visible(
        f"[{row.time}] Step {row.step} | Tokens {row.tokens:,} | LossCE {_told(row.loss_ce)} | "
        f"LossLB {_told(row.loss_lb)} | LR {_told(row.lr, '.3e')} | Event {row.event} | Layer {row.layer} | "
        f"Action {row.action} | Expert {row.expert} | Usage {_told(row.usage)} | Thresh {_told(row.threshold)} | "
        f"{row.before}→{row.after}"
    )


def _told(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)


def table(rows: Iterable[Row]) -> str:
    """Rows as CSV, without the header."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in rows:
        fields = {**dict(row), "experts_per_layer": " ".join(map(str, row.experts_per_layer))}
        writer.writerow([_cell(fields[name]) for name in COLUMNS])
    return out.getvalue()


def header(columns: Sequence[str] = COLUMNS) -> str:
    """The first line of a table."""
    return ",".join(columns) + "\n"


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return csv_cell(value) if isinstance(value, str) and value != "-" else value
