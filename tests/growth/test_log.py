"""The lines and rows that tell of growth."""

import csv
import io
import re
from typing import Any

import pytest

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Edit, GrowthEvent, Size
from morphogen.growth.log import COLUMNS, NAMES, Moment, Row, header, line, rows_of, table

DENSE = {"kind": "dense", "hidden": 32}
LINE = re.compile(
    r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] Step \d+ \| Tokens [\d,]+ \| LossCE [\d.-]+ \| LossLB [\d.-]+ \| LR [\de.+-]+ "
    r"\| Event \w+ \| Layer [\d,-]+ \| Action [^|]+ \| Expert [\d+-]+ \| Usage [\d.-]+ \| Thresh [\d.-]+ \| \d+→\d+"
)


def blueprint(*experts: int, dim: int = 16) -> Blueprint:
    """A block for every number of experts; 0: a dense one."""
    blocks = [
        {"id": f"b{place}", "ffn": {"kind": "moe", "hidden": 8, "n_experts": count, "k": 1} if count else DENSE}
        for place, count in enumerate(experts)
    ]
    return Blueprint.model_validate({"emb": {"dim": dim, "vocab": 11}, "blocks": blocks})


def size(of: Blueprint, *experts: int) -> Size:
    counts = {f"b{place}": count for place, count in enumerate(experts) if count}
    return Size(params=1000 + sum(experts), layers=len(of.blocks), dim=of.emb.dim, flops_per_token=1.0, experts=counts)


def rows(action: str, before: tuple[int, ...], after: tuple[int, ...], **fields: Any) -> list[Row]:
    one, other = blueprint(*before), blueprint(*after)
    event = GrowthEvent.model_validate(
        {
            "steps": 900,
            "tokens": 900_000,
            "own_steps": 400,
            "rule": "rule0",
            "trigger": "expert_usage",
            "action": action,
            "reason": "because",
            "before": size(one, *before),
            "after": size(other, *after),
            "loss": 2.5,
            "loss_after": 2.5,
            "max_delta": 0.0,
            "max_logit": 4.0,
            "exact": True,
            "edit": Edit(operator=action, target="model", changes=(), preserves=True),
            **fields,
        }
    )
    moment = Moment(time="2026-11-29 21:40:05", step=400, tokens=819_200, loss=2.71828, balance=0.0104, lr=2e-4)
    return rows_of(event, moment, one, other)


def test_a_split_is_told_exactly_as_the_format_says() -> None:
    (row,) = rows("split_experts", (0, 2), (0, 3), experts={"b1": (1,)}, usage={"b1": (0.612,)}, threshold=0.35)
    assert line(row) == (
        "[2026-11-29 21:40:05] Step 400 | Tokens 819,200 | LossCE 2.7183 | LossLB 0.0104 | LR 2.000e-04 | "
        "Event evolve_split | Layer 1 | Action split | Expert 1 | Usage 0.6120 | Thresh 0.3500 | 2→3"
    )
    assert row.experts_per_layer == (0, 3)


def test_an_event_of_several_experts_has_a_line_for_each() -> None:
    found = rows(
        "split_experts",
        (2, 2),
        (4, 3),
        experts={"b0": (0, 1), "b1": (1,)},
        usage={"b0": (0.5, 0.5), "b1": (0.9,)},
        threshold=0.35,
    )
    assert [(row.layer, row.expert, row.usage, row.before, row.after) for row in found] == [
        ("0", "0", 0.5, 2, 3),
        ("0", "1", 0.5, 3, 4),
        ("1", "1", 0.9, 2, 3),
    ]


@pytest.mark.parametrize(
    ("action", "before", "after", "experts", "told"),
    [
        ("prune_experts", (4,), (3,), {"b0": (2,)}, [("0", "2", 4, 3)]),
        ("merge_experts", (4,), (3,), {"b0": (1, 3)}, [("0", "1+3", 4, 3)]),
        ("cross_experts", (4,), (4,), {"b0": (1,)}, [("0", "1", 4, 4)]),
        ("add_experts", (2, 0, 2), (3, 0, 3), {}, [("0", "-", 2, 3), ("2", "-", 2, 3)]),
        ("to_moe", (0, 0), (4, 0), {}, [("0", "-", 1, 4)]),
        ("deepen", (0, 0), (0, 0, 0), {}, [("-", "-", 2, 3)]),
        ("deepen", (2, 2), (2, 2, 2), {}, [("-", "-", 2, 3)]),
        ("drop_layer", (0, 2), (0,), {}, [("-", "-", 2, 1)]),
    ],
)
def test_every_action_counts_what_it_changes(
    action: str, before: tuple[int, ...], after: tuple[int, ...], experts: Any, told: list[tuple[Any, ...]]
) -> None:
    found = rows(action, before, after, experts=experts)
    assert [(row.layer, row.expert, row.before, row.after) for row in found] == told
    assert all(row.event == NAMES[action][0] for row in found)
    assert all(LINE.fullmatch(line(row)) for row in found)


def test_blocks_of_an_event_are_told_by_their_places() -> None:
    (row,) = rows("widen", (0, 0, 0), (0, 0, 0), blocks=("b0", "b2"))
    assert (row.layer, row.event, row.before, row.after) == ("0,2", "grow_width", 1000, 1000)


def test_what_is_not_known_is_a_dash_in_the_line_and_empty_in_the_table() -> None:
    (row,) = rows("deepen", (0,), (0, 0))
    row = row.replace(loss_ce=None, loss_lb=None, lr=None)
    assert "LossCE - | LossLB - | LR - | " in line(row)
    (cells,) = csv.DictReader(io.StringIO(header() + table([row])))
    assert cells["loss_ce"] == cells["usage"] == ""
    assert list(cells) == list(COLUMNS)


def test_the_table_has_experts_of_every_layer_and_no_formulas() -> None:
    found = rows("split_experts", (0, 2), (0, 3), experts={"b1": (1,)}, rule="x")
    (cells,) = csv.DictReader(io.StringIO(header() + table([found[0].replace(trigger="=1+1")])))
    assert cells["experts_per_layer"] == "0 3"
    assert cells["trigger"] == "'=1+1"
    assert cells["tokens"] == "819200"
