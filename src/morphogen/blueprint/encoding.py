"""Blueprints as numbers, for models that predict from them: what stands where, derived from the fields of every part.

A plug-in's kind is encoded like ours, with nothing said of it. Called by search/space.py, for screening.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from morphogen.blueprint.diff import canonical
from morphogen.blueprint.schema import Blueprint


def encoded(blueprint: Blueprint) -> dict[str, float]:
    """The blueprint as named numbers; a name that is missing counts as 0.

    Of every field of a part: its sum over the blocks, the same weighted by depth (-1 for the first block, 1 for the
    last), and its value in the first and in the last block. Sizes are taken as logarithms, words and switches as counts
    of each value but `none`. Then which kinds follow one another, and the fields of all that is in no block.
    """
    plain = canonical(blueprint)
    found: defaultdict[str, float] = defaultdict(float)
    blocks = [_summed(_of_block(block)) for block in plain["blocks"]]
    for position, block in enumerate(blocks):
        depth = 2.0 * position / (len(blocks) - 1) - 1.0 if len(blocks) > 1 else 0.0
        for name, value in block.items():
            found[name] += value
            found[f"{name} by depth"] += depth * value
    for place, block in (("first", blocks[0]), ("last", blocks[-1])):
        for name, value in block.items():
            found[f"{name} {place}"] += value
    kinds = [part.get("kind") or path for block in plain["blocks"] for path, part in block["parts"]]
    words = ["start", *kinds, "end"]
    for one, other in pairwise(words):
        found[f"{one} > {other}"] += 1.0
    rest = {name: plain[name] for name in ("emb", "norm", "head", "recurrences")}
    found.update(_summed(leaves("model", rest)))
    found.update(_summed(pair for rule in plain.get("growth", []) for pair in _of_rule(rule)))
    found["blocks"] = math.log2(len(blocks))
    return dict(found)


def _of_block(block: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Kinds that may stand in one place share the names of their fields; of a list, each kind has its own."""
    yield from leaves("block", {"parallel": block["parallel"]})
    for path, part in block["parts"]:
        slot, _, number = path.partition(".")
        yield from leaves(f"{slot}.{part.get('kind')}" if number else slot, part)


def _of_rule(rule: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Triggers and actions have names of their own for their fields, and each counts."""
    when, do = rule["when"], rule["do"]
    yield from leaves(f"growth.when.{when['trigger']}", when)
    yield from leaves(f"growth.do.{do['action']}", do)
    yield from leaves("growth.limits", rule["limits"])


def leaves(path: str, value: Any) -> Iterator[tuple[str, float]]:
    """What stands in plain data, as pairs of a path and a number; a list's entries share their path."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from leaves(f"{path}.{name}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from leaves(path, inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, math.copysign(math.log2(1.0 + abs(value)), value)
    elif value not in (None, False, "none"):
        yield f"{path}={value}", 1.0


def _summed(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Each name once, with the sum of its values."""
    total: defaultdict[str, float] = defaultdict(float)
    for name, value in pairs:
        total[name] += value
    return dict(total)
